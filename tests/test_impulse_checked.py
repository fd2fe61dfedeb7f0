"""impulse and checked: what they become with a perfect network, reversibility, symplecticity, the certificate."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import springs
import synthetic
from conftest import BatchPool, start_state
from kstep.analysis.judge.compare import caveats, compare
from kstep.analysis.metrics.certificate import certificate_of
from kstep.analysis.metrics.drift import drift_of
from kstep.analysis.show.tables import summary_table, table
from kstep.errors import PhysicsError, UserError
from kstep.forces import PhysicsSpec
from kstep.forces.tblite import QMConfig
from kstep.runs import run_hybrid as run_module, run_network
from kstep.runs.certificate import FEWEST_PAIRS, Certificate
from kstep.runs.counters import Tally, describe
from kstep.runs.loop import macro_step, run
from kstep.runs.network_dynamics import Carrier
from kstep.runs.settings import settle_settings
from kstep.schemas import load_trajectory
from kstep.schemes import Checked, Impulse, Plain
from kstep.schemes.hybrid_config import HybridConfig, keys_of_others
from kstep.schemes.langevin import LangevinThermostat
from kstep.schemes.maxwell import draw_velocities
from kstep.schemes.projection import StretchAndBendProjection
from kstep.schemes.state import State, kinetic_energy
from kstep.units import BOLTZMANN, kT

MASSES = np.array(springs.METHANOL["masses"])
BONDS = np.array(springs.METHANOL["bonds"])
SHAPE = np.array(springs.METHANOL["shape"], dtype=float)
DT_PS = 2.5e-4


class Springs:
    """Springs between all pairs of methanol's atoms; `error` bends every one of them away from the truth."""

    def __init__(self, error=0.0, shape=SHAPE):
        self.i, self.j = np.triu_indices(len(shape), 1)
        self.rest = np.linalg.norm(shape[self.i] - shape[self.j], axis=1) * (1 + 0.1 * error)
        self.stiffness = np.where(self.rest < 0.15, 2.0e5, 1.0e4) * (1 - error)
        self.ends = np.eye(len(shape))[:, self.i] - np.eye(len(shape))[:, self.j]
        self.calls = 0

    def batch(self, x):
        """Energy (R,) and forces (R,N,3): stretch^2 / 2 and a cubic term, so that nothing is harmonic."""
        d = np.moveaxis(x, -1, 0) @ self.ends  # (3,R,pairs)
        r = np.sqrt((d * d).sum(0))
        s = r - self.rest
        tension = self.stiffness * s
        forces = (tension * (9.0 * s - 1.0) / r * d) @ self.ends.T
        return (tension * s * (0.5 - 3.0 * s)).sum(-1), np.moveaxis(forces, 0, -1).copy()

    def energy_and_forces(self, x):
        self.calls += len(x)
        return self.batch(x)

    def forces(self, x):
        return self.batch(x)[1]

    native = staticmethod(lambda array: np.array(array, dtype=np.float64))
    numpy = staticmethod(np.asarray)


class Curl(Springs):
    """A force that is the gradient of nothing."""

    def batch(self, x):
        energy, forces = super().batch(x)
        return energy, forces + 3e3 * np.roll(x, 1, axis=-1) * np.array([1.0, 2.0, 3.0])


TRUTH = Springs()
KINDS = {"impulse": Impulse, "checked": Checked}


def scheme(kind, network, k=4, dt_ps=DT_PS, **options):
    return KINDS[kind](network, Carrier(network), MASSES, dt_ps, k, **options)


def start(pool, n_replicas=3, seed=0, temperature_K=300.0):
    rng = np.random.default_rng(seed)
    x = SHAPE + 0.003 * rng.standard_normal((n_replicas, *SHAPE.shape))
    return start_state(pool, x, draw_velocities(n_replicas, MASSES, temperature_K, rng))


def go(scheme_, n, state=None, reporters=(), **options):
    pool = BatchPool(TRUTH)
    return run(scheme_, pool, start(pool) if state is None else state, np.random.default_rng(1), n,
               reporters=reporters, **options)


def total(state):
    return state.energy + kinetic_energy(state.velocities, MASSES)


def apart(a, b):
    """Largest difference of positions (nm) and of velocities (nm/ps) that two states have."""
    return max(np.abs(a.positions - b.positions).max(), np.abs(a.velocities - b.velocities).max())


@pytest.mark.parametrize("kind", KINDS)
def test_with_the_true_force_as_network_k_steps_are_k_steps_of_plain(kind):
    infos = []
    plain, hybrid = go(Plain(MASSES, DT_PS), 80), go(scheme(kind, Springs()), 20,
                                                     reporters=[lambda s, i: infos.append(i)])
    assert apart(plain, hybrid) < 1e-10 and hybrid.step == plain.step == 80
    assert np.array_equal(hybrid.energy, TRUTH.batch(hybrid.positions)[0])
    for info in infos:
        assert (info.inner_steps == 4).all() and (info.attempts == 1).all() and info.accepted.all()


def test_impulse_of_one_step_is_plain_whatever_the_network():
    plain = go(Plain(MASSES, DT_PS), 40)
    for network in (Springs(0.3), Springs(-0.5), Curl(), Springs(1.0)):
        assert apart(plain, go(scheme("impulse", network, k=1), 40)) < 1e-10
    assert apart(plain, go(scheme("checked", Springs(0.3), k=1), 40)) > 1e-3


def test_impulse_without_a_network_is_plain_at_the_long_step():
    assert apart(go(Plain(MASSES, 4 * DT_PS), 10), go(scheme("impulse", Springs(1.0)), 10)) < 1e-10


@pytest.mark.parametrize("kind, project", [("impulse", False), ("impulse", True), ("checked", False)])
def test_going_back_ends_where_it_began(kind, project):
    options = {"project": StretchAndBendProjection(BONDS, MASSES)} if project else {}
    there = scheme(kind, Springs(0.1), **options)
    first = start(BatchPool(TRUTH))
    last = go(there, 100, first)
    assert apart(first, last) > 0.1  # it went somewhere
    back = go(there, 100, replace(last, velocities=-last.velocities))
    assert np.abs(back.positions - first.positions).max() < 1e-10
    assert np.abs(back.velocities + first.velocities).max() < 1e-8


def symplectic_defect(scheme_):
    """max |J^T Omega J - Omega| of one macro-step in (x, p), J by central differences."""
    pool = BatchPool(TRUTH)
    first = start(pool, 1, seed=3)
    n = first.positions.size
    m = np.repeat(MASSES, 3)
    z = np.concatenate([first.positions.ravel(), m * first.velocities.ravel()])
    h = np.concatenate([np.full(n, 1e-6), 1e-4 * m])
    rows = np.concatenate([z + np.diag(h), z - np.diag(h)])
    shape = (len(rows), *SHAPE.shape)
    states = start_state(pool, rows[:, :n].reshape(shape), (rows[:, n:] / m).reshape(shape))
    after, _ = macro_step(scheme_, pool, states, np.random.default_rng(0))
    out = np.concatenate([after.positions.reshape(len(rows), n), m * after.velocities.reshape(len(rows), n)], axis=1)
    jacobian = ((out[: 2 * n] - out[2 * n:]) / (2 * h[:, None])).T
    omega = np.block([[np.zeros((n, n)), np.eye(n)], [-np.eye(n), np.zeros((n, n))]])
    return np.abs(jacobian.T @ omega @ jacobian - omega).max()


def test_impulse_is_symplectic_and_the_projected_kick_and_a_curl_are_not():
    for kind, error in (("impulse", 0.0), ("impulse", 0.3), ("checked", 0.3)):
        assert symplectic_defect(scheme(kind, Springs(error))) < 2e-6
    projected = scheme("impulse", Springs(0.3), project=StretchAndBendProjection(BONDS, MASSES))
    assert symplectic_defect(projected) > 1e-3
    assert symplectic_defect(scheme("impulse", Curl())) > 1e-3


def test_the_projected_kick_changes_no_bond_length_or_angle_distance_rate():
    rng = np.random.default_rng(4)
    x = SHAPE + 0.01 * rng.standard_normal((20, *SHAPE.shape))
    force = 100.0 * rng.standard_normal(x.shape)
    force -= force.mean(axis=1, keepdims=True)
    projection = StretchAndBendProjection(BONDS, MASSES)
    assert len(projection.pairs) == 5 + 7  # C has 6 angles, O one
    kept = projection(force, x)
    first, second = projection.pairs.T

    def rates(f):
        """d/dt |x_i - x_j| that a kick of 1 ps gives, by finite differences."""
        v, h = f / MASSES[:, None], 1e-6
        ends = [np.linalg.norm((x + s * h * v)[:, first] - (x + s * h * v)[:, second], axis=-1) for s in (1, -1)]
        return (ends[0] - ends[1]) / (2 * h)

    assert np.abs(rates(force)).max() > 10 and np.abs(rates(kept)).max() < 1e-6
    jacobian = projection.jacobian(x).reshape(20, len(first), -1)
    inverse = np.repeat(1 / MASSES, 3)
    # the formula of the docstring, by a pseudo-inverse
    for j, f, k in zip(jacobian, force.reshape(20, -1), kept.reshape(20, -1)):
        formula = f - j.T @ np.linalg.pinv(j @ (inverse[:, None] * j.T), rcond=1e-10) @ j @ (inverse * f)
        assert np.abs(k - formula).max() < 1e-7
    assert np.abs(projection(kept, x) - kept).max() < 1e-9  # a projection
    assert np.abs(kept).max() > 1.0  # something is left: torsions
    assert np.abs(kept.sum(axis=1) - force.sum(axis=1)).max() < 1e-9
    torque = np.cross(x, kept).sum(axis=1) - np.cross(x, force).sum(axis=1)
    assert np.abs(torque).max() < 1e-9


def test_impulse_with_nothing_left_of_the_residual_is_the_networks_dynamics():
    residual_free = scheme("impulse", Springs(0.2), project=lambda residual, x: 0.0 * residual)
    assert apart(go(residual_free, 20), go(scheme("checked", Springs(0.2)), 20)) < 1e-12


def integrator_data(physical_validation, dt_ps, energy):
    data = physical_validation.data
    n = len(MASSES)
    return data.SimulationData(
        units=data.UnitData(kb=BOLTZMANN, energy_conversion=1.0, length_conversion=1.0, volume_conversion=1.0,
                            temperature_conversion=1.0, pressure_conversion=1.0, time_conversion=1.0),
        ensemble=data.EnsembleData("NVE", natoms=n, volume=1.0, energy=float(energy[0])), dt=dt_ps,
        system=data.SystemData(natoms=n, nconstraints=0, ndof_reduction_tra=3, ndof_reduction_rot=0),
        observables=data.ObservableData(constant_of_motion=energy))


@pytest.mark.parametrize("kind", ["plain", "impulse"])
def test_the_true_energy_error_is_second_order_in_the_timestep(kind):
    """physical_validation's convergence test of an integrator in NVE; impulse at fixed k."""
    import physical_validation

    simulations, k = [], 4 if kind == "impulse" else 1
    for dt_ps in (2e-4, 1e-4, 5e-5):
        energy = []
        scheme_ = Plain(MASSES, dt_ps) if kind == "plain" else scheme("impulse", Springs(0.15), k, dt_ps)
        state = start(BatchPool(TRUTH), 1)
        go(scheme_, round(0.8 / (k * dt_ps)), state,
           reporters=[lambda s, _, kept=energy: kept.append(float(total(s)[0]))])
        simulations.append(integrator_data(physical_validation, dt_ps, np.array(energy)))
    assert physical_validation.integrator.convergence(simulations, verbose=False) < 0.1


def test_checked_conserves_the_energy_of_its_network_and_reports_the_true_one():
    network, own, true = Springs(0.1), [], []

    def record(s, info):
        own.append(s.network_energy + kinetic_energy(s.velocities, MASSES))
        true.append(total(s))

    go(scheme("checked", network, 8), 300, reporters=[record])
    assert np.std(own, axis=0).max() < 0.2 < 0.5 < np.std(true, axis=0).min()


def test_impulse_in_a_thermostat_keeps_the_temperature():
    n = 150
    state = start(BatchPool(TRUTH), n, seed=5)
    velocities = []
    go(scheme("impulse", Springs(0.1), 4), 950, state, thermostat=LangevinThermostat(300.0, 40.0, MASSES),
       reporters=[lambda s, info: velocities.append(s.velocities) if s.step % 200 == 0 else None])
    import physical_validation

    data = physical_validation.data
    velocities = np.concatenate(velocities[4:])
    sample = kinetic_energy(velocities, MASSES)
    mean, width = physical_validation.kinetic_energy.distribution(data.SimulationData(
        units=data.UnitData(kb=BOLTZMANN, energy_conversion=1.0, length_conversion=1.0, volume_conversion=1.0,
                            temperature_conversion=1.0, pressure_conversion=1.0, time_conversion=1.0),
        ensemble=data.EnsembleData("NVT", natoms=len(MASSES), volume=1.0, temperature=300.0),
        system=data.SystemData(natoms=len(MASSES), nconstraints=0, ndof_reduction_tra=3, ndof_reduction_rot=0),
        observables=data.ObservableData(kinetic_energy=sample)), strict=False, verbosity=0, data_is_uncorrelated=True,
        bootstrap_seed=1)
    assert len(sample) >= 2000 and max(mean, width) < 3.5
    # equipartition: every atom has the share that a resting centre of mass leaves it
    per_atom = MASSES * (velocities**2).mean(axis=2) / (kT(300.0) * (1 - MASSES / MASSES.sum()))
    error = per_atom.std(axis=0) / np.sqrt(len(sample))
    assert (np.abs(per_atom.mean(axis=0) - 1.0) < 3.5 * error).all() and error.max() < 0.03


def test_the_networks_force_is_asked_once_per_macro_step_and_a_restart_asks_nothing_more():
    network = Springs(0.1)
    whole = go(scheme("impulse", network), 6)
    assert network.calls == 3 * (1 + 6)  # the inner steps go through `forces`
    half = go(scheme("impulse", network), 3)
    saved = State(**{key: np.array(value) if key != "step" else value for key, value in vars(half).items()})
    network.calls = 0
    rest = go(scheme("impulse", network), 3, saved)
    assert network.calls == 3 * 3
    for key in ("positions", "velocities", "energy", "forces", "network_energy", "network_forces"):
        assert np.array_equal(getattr(whole, key), getattr(rest, key)), key


def test_a_row_whose_network_force_is_not_known_is_asked_again():
    network, there = Springs(0.1), scheme("impulse", Springs(0.1))
    state = go(there, 2)
    forgotten = replace(state, network_forces=state.network_forces * np.array([1.0, np.nan, 1.0])[:, None, None])
    assert apart(go(scheme("impulse", network), 1, state), go(scheme("impulse", network), 1, forgotten)) < 1e-12
    assert network.calls == 3 + 3 + 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_true_call_ends_the_run_with_a_sentence(kind):
    class Broken(BatchPool):
        def evaluate(self, positions, rows=None):
            truth = super().evaluate(positions)
            nan = np.where(np.arange(len(positions)) == 1, np.nan, 1.0)
            return replace(truth, energy=truth.energy * nan, forces=truth.forces * nan[:, None, None],
                           failed=np.isnan(nan), messages=("", "SCF not converged", ""))

    state = start(BatchPool(TRUTH))
    with pytest.raises(PhysicsError, match=f"{kind} dynamics of replica 1 broke at step 0: SCF not converged; use"):
        macro_step(scheme(kind, Springs(0.1)), Broken(TRUTH), state, np.random.default_rng(0))


def test_the_certificate_equals_a_calculation_by_hand():
    states, network = [], Springs(0.05)
    go(scheme("checked", network), 30, reporters=[lambda *both: states.append(both)])
    tally = Tally(scheme("checked", network))
    for state, info in states:
        tally.add(state, info)
    states = [state for state, _ in states]
    difference = np.concatenate([TRUTH.batch(s.positions)[0] - network.batch(s.positions)[0] for s in states])
    force = np.concatenate([TRUTH.batch(s.positions)[1] - network.batch(s.positions)[1] for s in states])
    figures = tally.summary()["certificate"]
    assert figures["pairs"] == 90
    assert figures["mean_kJ_per_mol"] == pytest.approx(difference.mean(), rel=1e-10)
    assert figures["spread_kJ_per_mol"] == pytest.approx(difference.std(), rel=1e-10)
    assert figures["force_rmse_kJ_per_mol_A"] == pytest.approx(0.1 * np.sqrt((force**2).mean()), rel=1e-10)
    text = describe({"molecule": "m", "scheme": "checked", "k_steps": 4, "replicas": 3, "true_calls": 90,
                     "jump_fs": 1.0,
                     "wall_production_s": 1.0, "status": "stopped at macro-step 9: why", **tally.summary()})
    assert f"spread {difference.std():.3g} kJ/mol" in text and "stopped at macro-step 9: why" in text


def pairs(difference, force_error):
    """A state whose truths lie `difference` (R,) kJ/mol and `force_error` kJ/mol/A off the network's."""
    n = len(difference)
    return State(np.zeros((n, 2, 3)), np.zeros((n, 2, 3)), 1e6 + np.asarray(difference, float),
                 np.full((n, 2, 3), 10.0 * force_error), network_energy=np.full(n, 1e6),
                 network_forces=np.zeros((n, 2, 3)))


def test_tolerances_are_judged_over_the_run_and_over_what_is_recent():
    rng = np.random.default_rng(6)
    certificate = Certificate()
    certificate.add(pairs([50.0, -50.0], 9.0))
    assert certificate.past(1.0, 1.0) is None  # two pairs tell no spread
    certificate = Certificate()
    for _ in range(2000):
        certificate.add(pairs(rng.normal(5.0, 0.4, 4), 0.5))
    assert certificate.figures()["spread_kJ_per_mol"] == pytest.approx(0.4, rel=0.05)
    assert certificate.past(0.5, 0.6) is None and certificate.past(None, None) is None
    assert certificate.past(0.3, None).startswith("the spread of E_true - E_ML is 0.")
    assert certificate.past(None, 0.45).startswith("the force error is 0.5 kJ/mol/A")
    again = Certificate(certificate.counts)
    for late in range(60):  # a late wandering is a percent of the run, yet seen
        again.add(pairs(rng.normal(5.0, 0.4, 4) + np.array([0.0, 0.0, 0.0, 2.5]), 0.5))
        if again.past(0.6, None):
            break
    assert 2 < late < 59 and "of late" in again.past(0.6, None)
    assert again.figures()["spread_kJ_per_mol"] < 0.5
    assert FEWEST_PAIRS > 2


CHECKPOINT = {"config": {"heads": {"energy": True, "jump": False}}, "k_steps": 8, "dt_fs": 0.5, "spans": [8]}


@pytest.mark.parametrize("asked, k_steps, dt_fs", [
    ({"scheme": "impulse"}, 4, 0.5), ({"scheme": "impulse", "dt_fs": 0.25}, 8, 0.25), ({"scheme": "checked"}, 32, 0.5),
    ({"scheme": "checked", "k_steps": 5, "dt_fs": 1.0}, 5, 1.0), ({"scheme": "impulse", "dt_fs": 4.0}, 1, 4.0)])
def test_defaults_are_two_and_sixteen_femtoseconds(asked, k_steps, dt_fs):
    settled = settle_settings(HybridConfig(**asked), CHECKPOINT, QMConfig())
    assert (settled.k_steps, settled.dt_fs) == (k_steps, dt_fs)


@pytest.mark.parametrize("asked, words", [
    ({"scheme": "checked", "project_residual": True}, "belongs to impulse; checked has no"),
    ({"scheme": "impulse", "max_energy_spread_kJ_per_mol": 1.0}, "belongs to checked"),
    ({"scheme": "metropolis", "past_tolerance": "learn"}, "belongs to checked"),
    ({"scheme": "checked", "past_tolerance": "learn"}, "needs a tolerance"),
    ({"scheme": "impulse", "energy_rescale": True}, "belongs to jump"),
    ({"scheme": "impulse", "hydrogen_mass_Da": 4.0}, "belongs to metropolis and nested; impulse has no"),
    ({"scheme": "metropolis", "max_attempts": 5}, "belongs to jump"),
    ({"scheme": "nested", "thermostat": "none"}, "nested draws its own momenta.*or take --scheme checked"),
    *[({"scheme": kind, "delta_scale": 0.0}, "leaves it none") for kind in ("checked", "metropolis", "nested")]])
def test_what_would_do_nothing_is_refused(asked, words):
    with pytest.raises(UserError, match=words):
        settle_settings(HybridConfig(**asked), CHECKPOINT, QMConfig())


@pytest.mark.parametrize("kind", KINDS)
def test_a_jump_network_is_refused(kind):
    jumps = {**CHECKPOINT, "config": {"heads": {"energy": False, "jump": True}}}
    with pytest.raises(UserError, match=f"{kind} needs a conservative force"):
        settle_settings(HybridConfig(scheme=kind), jumps, QMConfig())
    with pytest.raises(UserError, match="needs a network"):
        settle_settings(HybridConfig(scheme=kind), None, QMConfig())


# whole runs: pool, restart file, tally, trajectory, report

@pytest.fixture(scope="module")
def water_spec(water):
    import openmm
    from rdkit import Chem

    from kstep.molecules import build_system

    system = build_system(Chem.AddHs(Chem.MolFromSmiles("O")), "mmff94")
    return PhysicsSpec("openmm", water.numbers, water.masses,
                       {"system_xml": openmm.XmlSerializer.serialize(system), "platform": "Reference"})


def hybrid_run(monkeypatch, water, spec, path, *, stop_after=None, resume=False, **settings):
    """A run of water on MMFF94 with a network of springs; stop_after: its calls until a Ctrl-C."""
    network = Springs(0.02, water.conformers[0])
    network.device, network.metadata = "cpu", {"true_calls_training": 7}
    asked = network.energy_and_forces

    def until_interrupted(x):
        if stop_after is not None and network.calls >= stop_after:
            raise KeyboardInterrupt
        return asked(x)

    network.energy_and_forces = until_interrupted
    monkeypatch.setattr(run_network, "load_network", lambda **_: network)
    defaults = dict(k_steps=4, dt_fs=0.5, steps=60, burn_in_steps=5, replicas=4, temperature_K=300.0,
                    checkpoint_interval=20, inner="numpy")
    hybrid = HybridConfig(**{**defaults, **settings})
    job = run_module.HybridRun(water, spec, "mmff94", hybrid, None, path, seed=3, resume=resume)
    return run_module.run_hybrid(job, {}, {})


@pytest.mark.parametrize("kind, thermostat", [("impulse", "none"), ("impulse", "langevin"), ("checked", "langevin")])
def test_a_run_cut_and_resumed_is_bit_equal(kind, thermostat, water, water_spec, tmp_path, monkeypatch):
    settings = {"scheme": kind, "thermostat": thermostat, "project_residual": kind == "impulse"}
    hybrid_run(monkeypatch, water, water_spec, tmp_path / "whole.npz", **settings)
    with pytest.raises(KeyboardInterrupt):
        hybrid_run(monkeypatch, water, water_spec, tmp_path / "cut.npz", stop_after=4 * 50, **settings)
    assert not (tmp_path / "cut.npz").exists() and (tmp_path / "cut.npz.parts/checkpoint.npz").is_file()
    hybrid_run(monkeypatch, water, water_spec, tmp_path / "cut.npz", resume=True, **settings)
    a, b = load_trajectory(tmp_path / "whole.npz"), load_trajectory(tmp_path / "cut.npz")
    for key in ("pos", "vel", "forces", "Etot", "step", "segment", "inner_steps", "accepted"):
        assert np.array_equal(getattr(a, key), getattr(b, key)), key
    assert a.metadata["tally"] == b.metadata["tally"] and a.metadata["certificate"] == b.metadata["certificate"]
    assert a.metadata["true_calls"] == b.metadata["true_calls"] == 4 * 66
    role = "drift" if thermostat == "none" else "train"
    assert len(a.frames_of(role)) == 240 and len(a.frames_of("equil")) == 20


def test_a_tolerance_stops_the_run_and_keeps_what_there_is(water, water_spec, tmp_path, monkeypatch):
    path = tmp_path / "checked.npz"
    fine = hybrid_run(monkeypatch, water, water_spec, path, scheme="checked", max_energy_spread_kJ_per_mol=1e6,
                      max_force_rmse_kJ_per_mol_A=1e6)
    assert fine["status"] == "finished" and fine["certificate"]["pairs"] == 240
    limit = 0.5 * fine["certificate"]["force_rmse_kJ_per_mol_A"]
    path = tmp_path / "stopped.npz"
    metadata = hybrid_run(monkeypatch, water, water_spec, path, scheme="checked", max_force_rmse_kJ_per_mol_A=limit,
                          save_interval_steps=50)
    trajectory = load_trajectory(path)
    assert metadata["status"].startswith("stopped at macro-step ")
    assert metadata["status"].endswith(f"past its tolerance of {limit:g}")
    assert "the force error is" in metadata["status"]
    done = int(metadata["status"].split()[3].rstrip(":"))
    assert 5 < done < 60 and len(trajectory.pos) == 4 and trajectory.step.max() == 4 * done
    assert metadata["status"] in describe({**metadata, "wall_production_s": 1.0})
    assert not path.with_name("stopped.npz.parts").exists()


def test_the_report_names_what_each_scheme_does_not_promise(water, water_spec, tmp_path, monkeypatch):
    for kind, settings, words in (("impulse", {}, None), ("impulse", {"project_residual": True}, "not symplectic"),
                                  ("checked", {"max_force_rmse_kJ_per_mol_A": 1e6}, "ensemble is the network's")):
        path = tmp_path / f"{kind}_{len(settings)}.npz"
        metadata = hybrid_run(monkeypatch, water, water_spec, path, scheme=kind, thermostat="none", **settings)
        run_ = load_trajectory(path)
        assert [w for w in caveats(run_) if words and words in w] == caveats(run_), kind
        assert bool(caveats(run_)) == (words is not None)
        assert drift_of(run_)["segments"] == 4
        found = certificate_of(run_)
        assert found["spread_kJ_per_mol"] == metadata["certificate"]["spread_kJ_per_mol"] > 0
        assert found["verdicts"]["force_rmse_kJ_per_mol_A"] == ("within tolerance" if kind == "checked"
                                                                else "no tolerance")
    run_.metadata["certificate"]["force_rmse_kJ_per_mol_A"] = 2e6
    assert certificate_of(run_)["verdicts"]["force_rmse_kJ_per_mol_A"] == "past tolerance"
    run_.metadata["status"] = "stopped at macro-step 9: why"
    assert caveats(run_)[-1] == "the run stopped at macro-step 9: why"


def test_the_table_shows_the_certificate_beside_its_tolerance():
    figures = {"pairs": 800, "mean_kJ_per_mol": 3.0, "spread_kJ_per_mol": 0.7, "force_rmse_kJ_per_mol_A": 0.4}
    reference = synthetic.ethanol(0, 4, 400)
    for options in ({"drift": 0.3}, {}):
        run_ = synthetic.ethanol(1, 4, 200, scheme="checked", certificate=figures, config={
            "max_energy_spread_kJ_per_mol": 0.5, "max_force_rmse_kJ_per_mol_A": 0.5}, **options)
        result = {**compare(reference, run_), "verdicts": []}
        assert result["role"] == "hybrid" and result["certificate"]["mean_kJ_per_mol"] == 3.0
        rows = {row[0]: row[1:4] for row in table(result, {})[1]}
        assert rows["spread of E_true - E_ML (kJ/mol)"] == ["0.7", "0.5 (tolerance)", "past tolerance"]
        assert rows["force error of the network (kJ/mol/A)"] == ["0.4", "0.5 (tolerance)", "within tolerance"]
        summary = summary_table({"runs": {"run.npz": result}})[1][0]
        assert ("kJ/mol/ps" in summary[6]) == bool(options) and ("spread 0.7" in summary[6]) != bool(options)
    bare = synthetic.ethanol(1, 4, 200, scheme="impulse", certificate=figures, delta_scale=0)
    assert compare(reference, bare)["certificate"] is None and compare(reference, bare)["role"] == "no network"


class Physics(Springs):
    """The true physics in the place of the network."""

    def __init__(self, spec):
        self.true, self.calls = spec.build(), 0

    def batch(self, x):
        energy, forces = zip(*map(self.true.energy_and_forces, x))
        return np.array(energy), np.array(forces)


class Learner:
    """Stands for the training: after soft springs come stiffer ones, then the truth itself."""

    def __init__(self, water, spec):
        self.water, self.spec, self.seen = water, spec, []

    def load(self, checkpoint=None, **_):
        text = Path(checkpoint).read_text() if checkpoint else "0.6"
        network = Physics(self.spec) if text == "truth" else Springs(float(text), self.water.conformers[0])
        network.device, network.metadata = "cpu", {"true_calls_training": 7}
        return network

    def __call__(self, recorded, start, out):
        self.seen.append((recorded, start))
        out.write_text(["0.5", "truth"][len(self.seen) - 1])


def learning_run(monkeypatch, water, spec, path, learner, **options):
    monkeypatch.setattr(run_network, "load_network", learner.load)
    settings = dict(scheme="checked", k_steps=4, dt_fs=0.5, steps=120, burn_in_steps=5, replicas=4, temperature_K=300.0,
                    max_force_rmse_kJ_per_mol_A=130.0, past_tolerance="learn", checkpoint_interval=10,
                    inner="numpy")
    job = run_module.HybridRun(water, spec, "mmff94", HybridConfig(**settings), None, path, seed=3, **options)
    return run_module.run_hybrid(job, {}, {}, learner)


def test_past_a_tolerance_the_network_learns_and_production_begins_anew(water, water_spec, tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    learner = Learner(water, water_spec)
    metadata = learning_run(monkeypatch, water, water_spec, path, learner)
    trajectory = load_trajectory(path)
    first, second = metadata["tally"]["learned"]
    assert f"trained anew at macro-step 8, {second['macro_step']};" in caveats(trajectory)[-1]
    assert metadata["status"] == "finished" and first["macro_step"] == 8 and len(learner.seen) == 2
    assert "the force error is" in first["why"] and "past its tolerance of 130" in first["why"]
    assert metadata["checkpoint"] == second["checkpoint"] == str(tmp_path / "run.learned_2.pt")
    assert learner.seen[1][1] == tmp_path / "run.learned_1.pt"
    # every true answer of the run so far, and nothing else
    recorded = learner.seen[1][0]
    assert len(recorded.energy) == second["truths"] == 4 * second["macro_step"] >= 1.2 * first["truths"]
    upto = trajectory.step <= 4 * second["macro_step"]
    assert np.array_equal(np.sort(recorded.energy), np.sort(trajectory.Epot[upto]))
    assert np.array_equal(recorded.forces[:4], trajectory.forces[:4])
    # production is what came after the last network and a burn-in of its own
    production = trajectory.frames_of("train")
    assert trajectory.step[production].min() == 4 * (second["macro_step"] + 5 + 1)
    assert metadata["certificate"]["pairs"] == len(production) == metadata["tally"]["macro_steps"]
    assert metadata["true_calls"] == 4 * 126 and metadata["true_calls_burn_in"] == 4 * (second["macro_step"] + 5 + 1)
    assert metadata["certificate"]["force_rmse_kJ_per_mol_A"] < 1e-6


def test_a_learning_run_cut_and_resumed_is_bit_equal(water, water_spec, tmp_path, monkeypatch):
    learning_run(monkeypatch, water, water_spec, tmp_path / "whole.npz", Learner(water, water_spec))

    class Interrupted(Learner):
        def __call__(self, *arguments):
            super().__call__(*arguments)
            if len(self.seen) == stop_at:
                raise KeyboardInterrupt

    path = tmp_path / "cut.npz"
    learner = Interrupted(water, water_spec)
    stop_at = 2
    with pytest.raises(KeyboardInterrupt):
        learning_run(monkeypatch, water, water_spec, path, learner)
    kept = json.loads(str(np.load(path.with_name("cut.npz.parts") / "checkpoint.npz")["text"]))["progress"]
    assert kept["learned"] == str(tmp_path / "cut.learned_1.pt")
    learner.seen, stop_at = learner.seen[:1], 9
    learning_run(monkeypatch, water, water_spec, path, learner, resume=True)
    a, b = load_trajectory(tmp_path / "whole.npz"), load_trajectory(path)
    for key in ("pos", "vel", "Etot", "segment"):
        assert np.array_equal(getattr(a, key), getattr(b, key)), key
    assert a.segments == b.segments and a.metadata["certificate"] == b.metadata["certificate"]
    assert a.metadata["true_calls"] == b.metadata["true_calls"]


def test_learn_without_anything_that_trains_is_refused(water, water_spec, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="needs something that trains"):
        hybrid_run(monkeypatch, water, water_spec, tmp_path / "x.npz", scheme="checked", past_tolerance="learn",
                   max_force_rmse_kJ_per_mol_A=1.0)


def test_a_real_network_learns_on_from_what_the_run_recorded(water, water_spec, tmp_path):
    from kstep.learning.relearning import Relearner
    from kstep.learning.target import Target
    from kstep.models import checkpoint as checkpoints
    from kstep.models.model_config import ModelConfig
    from kstep.training.label_fit import fit
    from kstep.training.labels import Labels
    from kstep.training.train_config import FitConfig

    rng, true = np.random.default_rng(7), water_spec.build()
    x = water.conformers[0] + 0.004 * rng.standard_normal((60, 3, 3))
    energy, forces = zip(*map(true.energy_and_forces, x))
    labels = Labels(x, np.array(energy), np.array(forces), 300.0)
    labels.save(tmp_path / "labels.npz", water, method="mmff94", true_calls=60, dt_fs=0.5)
    model = ModelConfig(arch="pair_mlp", pair_hidden=[32, 32], heads={"energy": True, "jump": False})
    facts = dict(method="mmff94", dt_fs=0.5, temperature_K=300.0, seed=0)
    poor = fit(model, water, labels, FitConfig(fit_passes=30), true_calls=60, **facts)
    checkpoints.save(tmp_path / "poor.pt", poor.checkpoint)
    config = HybridConfig(scheme="checked", k_steps=4, dt_fs=0.5, steps=100, burn_in_steps=5, replicas=8,
                          temperature_K=300.0, past_tolerance="learn", max_force_rmse_kJ_per_mol_A=8.0)
    job = run_module.HybridRun(water, water_spec, "mmff94", config, tmp_path / "poor.pt", tmp_path / "run.npz", seed=3)
    target, how = Target(molecule=water, spec=water_spec, method="mmff94", temperatures_K=(300.0,)), {
        "dt_fs": 0.5, "seed": 0}
    with pytest.raises(UserError, match="holds labels of mmff94, the run is of GFN2-xTB"):
        Relearner(tmp_path / "poor.pt", replace(target, method="GFN2-xTB"), None, earlier=tmp_path / "labels.npz",
                  **how)
    teach = Relearner(tmp_path / "poor.pt", target, FitConfig(fit_passes=60), earlier=tmp_path / "labels.npz", **how)
    metadata = run_module.run_hybrid(job, {}, {}, teach)
    learned = metadata["tally"]["learned"]
    assert learned and metadata["checkpoint"] == learned[-1]["checkpoint"] != str(tmp_path / "poor.pt")
    assert checkpoints.load(metadata["checkpoint"])["true_calls_training"] == 60 == metadata["true_calls_training"]
    before = float(learned[0]["why"].split("force error is ")[1].split()[0])
    assert 2.0 * metadata["certificate"]["force_rmse_kJ_per_mol_A"] < before


OF_ONE_SCHEME = {"k_steps": 8, "dt_fs": 2.0, "hydrogen_mass_Da": 4.0, "hessian_masses": True, "tempering_K": [300, 400],
                 "tune": True, "project_residual": True, "max_energy_spread_kJ_per_mol": 1.0,
                 "max_force_rmse_kJ_per_mol_A": 1.0, "past_tolerance": "learn", "length_law": "fixed",
                 "integrator_acceptance": 0.9, "shortest_mean_fs": 100.0, "max_attempts": 2, "max_disp_nm": 0.2,
                 "max_bond_stretch_nm": 0.1, "max_energy_jump_kJ_per_mol": 30.0, "energy_rescale": True, "moves": 4,
                 "network_ladder_K": [300, 400], "turns": 0, "call_cost_s": 1.0, "judge": "weights",
                 "mirror_images": False, "keep_species": False, "delayed_steps": 2}


@pytest.mark.parametrize("key", sorted(OF_ONE_SCHEME))
def test_any_config_makes_plain_md_once_it_loses_what_belongs_to_other_schemes(key):
    bare = {"k_steps": None, "dt_fs": None, **keys_of_others("plain")}
    assert set(bare) == set(OF_ONE_SCHEME)
    expected = settle_settings(HybridConfig(scheme="plain"), None, QMConfig())
    assert settle_settings(HybridConfig(**OF_ONE_SCHEME | bare | {"scheme": "plain"}), None, QMConfig()) == expected
    kept = HybridConfig(**bare | {"scheme": "plain", key: OF_ONE_SCHEME[key]})
    if key == "dt_fs":
        assert settle_settings(kept, None, QMConfig()).dt_fs == 2.0
    else:
        with pytest.raises(UserError):
            settle_settings(kept, None, QMConfig())
