"""What dynamics promises, on molecules under MMFF94: order, ensembles, restarts, exact sampling."""

import json
from dataclasses import replace

import numpy as np
import pytest

from conftest import ForceNetwork
from kstep.forces import PhysicsSpec
from kstep.forces.local_pool import EvaluationPool
from kstep.forces.openmm import MDConfig
from kstep.runs import run_hybrid as hybrid_module, run_network
from kstep.runs.baseline import run_baseline
from kstep.runs.baseline_engines import LoopEngine, OpenMMEngine
from kstep.runs.baseline_plan import Stretch
from kstep.runs.loop import initial_state, run
from kstep.runs.network_dynamics import Carrier
from kstep.runs.recorder import TrajectoryWriter
from kstep.schemas import load_trajectory
from kstep.schemes import Plain
from kstep.schemes.hybrid_config import HybridConfig
from kstep.schemes.langevin import LangevinThermostat
from kstep.schemes.maxwell import draw_velocities
from kstep.schemes.state import State, kinetic_energy
from kstep.units import BOLTZMANN, kT

KT = kT(300.0)


def mmff94_xml(molecule):
    import openmm
    from rdkit import Chem

    from kstep.molecules import build_system

    system = build_system(Chem.AddHs(Chem.MolFromSmiles(molecule.smiles)), "mmff94")
    return openmm.XmlSerializer.serialize(system)


@pytest.fixture(scope="module")
def ethanol_xml(ethanol):
    return mmff94_xml(ethanol)


def physics(molecule, xml):
    return PhysicsSpec("openmm", molecule.numbers, molecule.masses, {"system_xml": xml, "platform": "Reference"})


def openmm_engine(molecule, xml, dt_fs=0.5, friction_per_ps=5.0):
    return OpenMMEngine(xml, molecule.masses, "Reference", dt_fs, friction_per_ps)


def stretch(ensemble, temperature_K, n_steps):
    return Stretch("train", ensemble, temperature_K, n_steps, True)


def moved(engine, state, ensemble, temperature_K, n_steps, seed=0):
    frames = []
    engine.run(state, stretch(ensemble, temperature_K, n_steps), np.random.default_rng(seed), 1, frames.append)
    return frames


@pytest.fixture(scope="module")
def warm(ethanol, ethanol_xml):
    """Ethanol after 1 ps of Langevin dynamics at 300 K, with fresh velocities."""
    engine, rng = openmm_engine(ethanol, ethanol_xml), np.random.default_rng(1)
    state = engine.start(ethanol.conformers[0], draw_velocities(1, ethanol.masses, 300.0, rng)[0])
    state = engine.run(state, stretch("NVT", 300.0, 2000), rng, 2000, lambda s: None)
    return replace(state, velocities=draw_velocities(1, ethanol.masses, 300.0, rng))


def total_energy(frames, masses):
    return np.array([f.energy[0] + kinetic_energy(f.velocities, masses)[0] for f in frames])


@pytest.mark.parametrize("which", ["openmm", "loop"])
def test_energy_error_of_ethanol_is_second_order_in_the_timestep(which, ethanol, ethanol_xml, warm):
    spread = []
    with EvaluationPool(physics(ethanol, ethanol_xml), 1) as pool:
        for dt_fs in (0.5, 0.25):
            engine = (openmm_engine(ethanol, ethanol_xml, dt_fs) if which == "openmm"
                      else LoopEngine(pool, ethanol.masses, dt_fs, 5.0))
            frames = moved(engine, warm, "NVE", 300.0, round(200 / dt_fs))
            spread.append(total_energy(frames, ethanol.masses).std())
    assert spread[0] / spread[1] == pytest.approx(4.0, rel=0.15)
    assert spread[1] < 0.05  # kJ/mol


def test_openmm_and_the_loop_take_the_same_steps(ethanol, ethanol_xml, warm):
    """Positions, velocities, energies and forces of one instant, whatever ran in the engine before."""
    engine = openmm_engine(ethanol, ethanol_xml)
    moved(engine, warm, "NVE", 300.0, 5)
    moved(engine, warm, "NVT", 450.0, 20)
    ours = moved(engine, warm, "NVE", 300.0, 100)
    with EvaluationPool(physics(ethanol, ethanol_xml), 1) as pool:
        theirs = moved(LoopEngine(pool, ethanol.masses, 0.5, 5.0), warm, "NVE", 300.0, 100)
    for a, b in zip(ours, theirs, strict=True):
        assert a.step == b.step
        for key in ("positions", "velocities", "energy", "forces"):
            assert np.abs(getattr(a, key) - getattr(b, key)).max() < 1e-6, key


def test_ethanol_retraces_its_path(ethanol, ethanol_xml, warm):
    engine = openmm_engine(ethanol, ethanol_xml)
    there = moved(engine, warm, "NVE", 300.0, 200)[-1]
    back = moved(engine, replace(there, velocities=-there.velocities), "NVE", 300.0, 200)[-1]
    assert np.abs(there.positions - warm.positions).max() > 0.01
    assert np.abs(back.positions - warm.positions).max() < 1e-9
    assert np.abs(back.velocities + warm.velocities).max() < 1e-6


def simulation(physical_validation, temperature_K, kinetic, potential, n_atoms):
    data = physical_validation.data
    units = data.UnitData(kb=BOLTZMANN, energy_str="kJ/mol", energy_conversion=1.0, length_str="nm",
                          length_conversion=1.0, volume_str="nm^3", volume_conversion=1.0, temperature_str="K",
                          temperature_conversion=1.0, pressure_str="bar", pressure_conversion=1.0, time_str="ps",
                          time_conversion=1.0)
    return data.SimulationData(
        units=units, ensemble=data.EnsembleData("NVT", natoms=n_atoms, volume=1.0, temperature=temperature_K),
        system=data.SystemData(natoms=n_atoms, nconstraints=0, ndof_reduction_tra=3, ndof_reduction_rot=0),
        observables=data.ObservableData(kinetic_energy=kinetic, potential_energy=potential,
                                        total_energy=kinetic + potential, volume=np.ones_like(kinetic)))


def assert_maxwell(physical_validation, data):
    check = physical_validation.kinetic_energy.distribution
    assert check(data, strict=True, verbosity=0, data_is_uncorrelated=True) > 1e-3
    assert max(check(data, strict=False, verbosity=0, data_is_uncorrelated=True, bootstrap_seed=1)) < 3.5


def test_baseline_of_ethanol_passes_physical_validation(ethanol, ethanol_xml, tmp_path):
    """Kinetic energies of the redrawn NVE stretches are Maxwell's, potential ones Boltzmann's at two temperatures."""
    import physical_validation
    runs = []
    for temperature_K in (300.0, 345.0):
        config = MDConfig(temperature_K=temperature_K, dt_fs=0.5, equilibration_ps=2.0, length_ps=160.0,
                          redraw_interval_ps=0.2, save_interval_steps=400)
        writer = TrajectoryWriter(tmp_path / f"{temperature_K:g}.npz", masses=ethanol.masses,
                                  masses_sampler=ethanol.masses, atom_types=ethanol.numbers, bonds=ethanol.bonds,
                                  fingerprint={})
        run_baseline(openmm_engine(ethanol, ethanol_xml), writer, ethanol.conformers[0], config, replica=0,
                     seed=int(temperature_K), resume=False)
        writer.finish({"molecule": "ethanol"})
        trajectory = load_trajectory(writer.path)
        ends = trajectory.frames_of("train")[1::2]  # the last frame of each stretch: 0.2 ps of dynamics after its draw
        assert len(ends) == 800
        kinetic, potential = trajectory.Ekin[ends], trajectory.Epot[ends]
        assert kinetic == pytest.approx(kinetic_energy(trajectory.vel[ends], ethanol.masses), rel=1e-12)
        runs.append(simulation(physical_validation, temperature_K, kinetic, potential, len(ethanol)))
        assert_maxwell(physical_validation, runs[-1])
    # the slope of ln(p_1/p_2) against the energy must be beta_2 - beta_1
    (deviation,) = physical_validation.ensemble.check(*runs, total_energy=False, data_is_uncorrelated=True, verbosity=0,
                                                      bootstrap_seed=2)
    assert deviation < 3.5


def test_langevin_dynamics_of_ethanol_passes_physical_validation(ethanol, ethanol_xml):
    import physical_validation
    masses, rng, n = ethanol.masses, np.random.default_rng(4), 16
    kinetic, potential, per_atom = [], [], []

    def record(state, info):
        if state.step % 100 == 0 and state.step >= 400:
            kinetic.append(kinetic_energy(state.velocities, masses))
            potential.append(state.energy)
            per_atom.append((masses[:, None] * state.velocities**2).mean(axis=(0, 2)))

    with EvaluationPool(physics(ethanol, ethanol_xml), 1) as pool:
        state = initial_state(pool, np.repeat(ethanol.conformers[:1], n, axis=0),
                              draw_velocities(n, masses, 300.0, rng))
        state = run(Plain(masses, 5e-4), pool, state, rng, 3200, thermostat=LangevinThermostat(300.0, 40.0, masses),
                    reporters=[record])
    assert np.abs(np.einsum("rni,n->ri", state.velocities, masses)).max() < 1e-9
    assert_maxwell(physical_validation, simulation(physical_validation, 300.0, np.concatenate(kinetic),
                                                   np.concatenate(potential), len(ethanol)))
    hydrogens = ethanol.numbers == 1  # equipartition: no element is hotter than another
    for atoms in (hydrogens, ~hydrogens):
        found, share = np.mean(per_atom, axis=0)[atoms].mean(), (1 - masses / masses.sum())[atoms].mean()
        assert found == pytest.approx(KT * share, rel=0.1)


def test_langevin_without_friction_is_velocity_verlet(ethanol, ethanol_xml, warm):
    engine = openmm_engine(ethanol, ethanol_xml, friction_per_ps=0.0)
    free, noisy = (moved(engine, warm, ensemble, 300.0, 50) for ensemble in ("NVE", "NVT"))
    for a, b in zip(free, noisy, strict=True):
        assert np.abs(a.positions - b.positions).max() < 1e-12 and np.abs(a.velocities - b.velocities).max() < 1e-9


def test_openmm_langevin_heats_ethanol_to_its_temperature(ethanol, ethanol_xml):
    """The thermostat of the equilibration: every atom at kT, and the centre of mass at rest afterwards."""
    engine, rng, masses = openmm_engine(ethanol, ethanol_xml,
                                        friction_per_ps=50.0), np.random.default_rng(6), ethanol.masses
    cold, frames = engine.start(ethanol.conformers[0], np.zeros_like(ethanol.conformers[0])), []
    last = engine.run(cold, stretch("NVT", 300.0, 82_000), rng, 100, frames.append)
    assert np.abs(np.einsum("rni,n->ri", last.velocities, masses)).max() < 1e-9
    temperature_K = np.array([(masses[:, None] * f.velocities[0] ** 2).sum() / (27 * BOLTZMANN) for f in frames[20:]])
    error = 300.0 * np.sqrt(2.0 / 27.0 / (len(temperature_K) / 3))  # a frame every 0.05 ps, 2/friction = 0.04 ps
    assert abs(temperature_K.mean() - 300.0) < 4 * error and error < 6.0
    assert temperature_K.std() == pytest.approx(300.0 * np.sqrt(2.0 / 27.0), rel=0.15)


def test_langevin_friction_is_the_rate_at_which_velocities_are_forgotten():
    """Two half-steps around a free flight of t: <v(t) v(0)> / <v v> = exp(-friction t)."""
    masses, rng, n = np.array([12.0, 16.0, 1.0]), np.random.default_rng(7), 20_000
    thermostat = LangevinThermostat(300.0, 5.0, masses)
    before = draw_velocities(n, masses, 300.0, rng)
    state = State(np.zeros_like(before), before, np.zeros(n), np.zeros_like(before))
    after = thermostat.half_step(thermostat.half_step(state, 0.1, rng), 0.1, rng).velocities
    correlation = np.einsum("rni,rni,n->", after, before, masses) / np.einsum("rni,rni,n->", before, before, masses)
    assert correlation == pytest.approx(np.exp(-5.0 * 0.1), abs=0.01)
    assert kinetic_energy(after, masses).mean() == pytest.approx(3 * KT, rel=0.02)


def test_resumed_mm_baseline_is_bit_equal(ethanol, ethanol_xml, tmp_path):
    """Cut in every stretch in turn (thermostatted, redrawn, drift, hot) and continued by a new engine."""
    config = MDConfig(dt_fs=0.5, equilibration_ps=0.05, length_ps=0.1, redraw_interval_ps=0.05, drift_windows=1,
                      drift_length_ps=0.05, hot_length_ps=0.05, save_interval_steps=7)

    def go(name, resume, stop_after=None):
        finished = []

        def progress(n):
            finished.append(n)
            if len(finished) == stop_after:
                raise KeyboardInterrupt

        writer = TrajectoryWriter(tmp_path / f"{name}.npz", masses=ethanol.masses, masses_sampler=ethanol.masses,
                                  atom_types=ethanol.numbers, bonds=ethanol.bonds, fingerprint={"seed": 3})
        try:
            calls = run_baseline(openmm_engine(ethanol, ethanol_xml), writer, ethanol.conformers[0], config, replica=1,
                                 seed=3, resume=resume, checkpoint_interval_steps=1, progress=progress)
            writer.finish({"molecule": "ethanol"})
        finally:
            writer.release()  # as the end of its process would
        return load_trajectory(writer.path), calls["true_calls"]

    whole, calls = go("whole", False)
    assert [s["role"] for s in whole.segments] == ["equil", "train", "train", "drift", "equil", "hot"]
    with pytest.raises(KeyboardInterrupt):
        go("cut", False, stop_after=2)
    for _ in range(2):  # `progress` is first told of what is there already
        with pytest.raises(KeyboardInterrupt):
            go("cut", True, stop_after=3)
    again, calls_again = go("cut", True)
    for key in ("pos", "vel", "forces", "Epot", "Ekin", "segment", "step", "time_ps"):
        assert np.array_equal(getattr(whole, key), getattr(again, key)), key
    assert whole.segments == again.segments and calls == calls_again


def water_averages(molecule, xml):
    """Exact averages of MMFF94 water at 300 K over (r_1, r_2, cos theta) with weight r_1^2 r_2^2."""
    r = np.linspace(0.085, 0.112, 28)
    angle = np.radians(np.linspace(68.0, 142.0, 38))
    true = physics(molecule, xml).build()
    energy = np.zeros((len(r), len(r), len(angle)))
    for i, a in enumerate(r):
        for j, b in enumerate(r[: i + 1]):
            for k, theta in enumerate(angle):
                x = np.array([[0, 0, 0], [a, 0, 0], [b * np.cos(theta), b * np.sin(theta), 0]])
                energy[i, j, k] = energy[j, i, k] = true.energy(x)
    weight = r[:, None, None] ** 2 * r[None, :, None] ** 2 * np.sin(angle) * np.exp(-(energy - energy.min()) / KT)
    weight /= weight.sum()
    assert max(weight[edge].sum() for edge in (0, -1)) < 1e-5 and weight[:, :, [0, -1]].sum() < 1e-5
    bond, bend = weight.sum(axis=(1, 2)), weight.sum(axis=(0, 1))
    return {"energy": (weight * energy).sum(), "bond": bond @ r, "bond2": bond @ r**2,
            "angle": bend @ angle, "angle2": bend @ angle**2}


# lengths between the half periods of stretch and bend, at which a harmonic mode returns to its own amplitude
@pytest.mark.parametrize("hydrogen_mass_Da, k_steps", [(None, 12), (4.0, 20)])
def test_metropolis_run_of_water_is_exact_under_any_hydrogen_mass(hydrogen_mass_Da, k_steps, water, tmp_path,
                                                                  monkeypatch):
    """The whole run (pool, sampler masses, burn-in, tally, file) with a wrong network, against quadrature."""
    xml = mmff94_xml(water)
    exact = water_averages(water, xml)
    rest = np.array([0.0980, 0.0980, 0.155])  # a little wrong in every length and stiffness
    stiff = np.array([4.2e5, 4.2e5, 1.0e5])
    first, second = np.array([0, 0, 1]), np.array([1, 2, 2])

    def wrong(x):
        d = x[:, first] - x[:, second]
        length = np.linalg.norm(d, axis=-1)
        pull = (-stiff * (length - rest) / length)[..., None] * d
        forces = np.zeros_like(x)
        for pair, (i, j) in enumerate(zip(first, second)):
            forces[:, i] += pull[:, pair]
            forces[:, j] -= pull[:, pair]
        return forces

    network = ForceNetwork(wrong)
    network.device, network.metadata = "cpu", {}
    monkeypatch.setattr(run_network, "load_network", lambda **_: network)
    hybrid = HybridConfig(scheme="metropolis", k_steps=k_steps, dt_fs=0.6, steps=350, burn_in_steps=40, replicas=64,
                          temperature_K=300.0, hydrogen_mass_Da=hydrogen_mass_Da, checkpoint_interval=1000,
                          inner="numpy")
    spec = physics(water, xml)
    metadata = hybrid_module.run_hybrid(
        hybrid_module.HybridRun(water, spec, "mmff94", hybrid, None, tmp_path / "water.npz", seed=11), {}, {})
    assert 0.2 < metadata["acceptance"] < 0.95  # wrong enough to matter
    found = load_trajectory(tmp_path / "water.npz")
    rows = found.frames_of("train").reshape(350, 64)
    x = found.pos[rows]
    a, b = x[:, :, 1] - x[:, :, 0], x[:, :, 2] - x[:, :, 0]
    ra, rb = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
    theta = np.arccos((a * b).sum(-1) / ra / rb)
    series = {"energy": found.Epot[rows], "bond": (ra + rb) / 2, "bond2": (ra**2 + rb**2) / 2, "angle": theta,
              "angle2": theta**2}
    for name, values in series.items():
        means = values.mean(axis=0)
        error = means.std(ddof=1) / np.sqrt(64)
        assert abs(means.mean() - exact[name]) < 4 * error, (name, means.mean(), exact[name], error)
    assert series["energy"].mean(axis=0).std(ddof=1) / 8 < 0.05 * exact["energy"]
    # kinetic energies belong to the sampler's masses, centre of mass at rest
    masses = water.masses.copy()
    if hydrogen_mass_Da:
        masses[1:] = hydrogen_mass_Da
    assert np.array_equal(found.masses_sampler, masses) and np.array_equal(found.masses, water.masses)
    assert np.abs(np.einsum("tni,n->ti", found.vel, masses)).max() < 1e-9
    assert found.Ekin == pytest.approx(kinetic_energy(found.vel, masses), rel=1e-12)
    kinetic = found.Ekin[rows].mean(axis=0)
    assert abs(kinetic.mean() - 3 * KT) < 4 * kinetic.std(ddof=1) / 8
    # <exp(-beta dH)> = 1 over all proposals, accepted or not
    weights = np.exp(-found.delta_H[rows] / KT)
    assert weights.mean() == pytest.approx(metadata["mean_exp_minus_beta_dH"], rel=1e-9)
    error = weights.mean(axis=0).std(ddof=1) / 8
    assert abs(weights.mean() - 1.0) < 4 * error and error < 0.05
    assert found.accepted[rows].mean() == pytest.approx(metadata["acceptance"], rel=1e-12)
    json.dumps(metadata)


def test_the_single_precision_network_retraces_its_path(ethanol):
    """Metropolis is exact for a reversible map; rounding must not spoil it over a whole proposal."""
    import torch

    from kstep.models import build_model
    from kstep.models.model_config import ModelConfig
    from kstep.models.pair_mlp_numpy import FastPairMLP

    torch.manual_seed(0)
    model = build_model(ModelConfig(arch="pair_mlp", pair_hidden=[32, 32], heads={"energy": True, "jump": False}),
                        {"numbers": ethanol.numbers, "bonds": ethanol.bonds})
    rng = np.random.default_rng(5)
    x = ethanol.conformers[:1] + 0.004 * rng.normal(size=(200, 9, 3))
    model.fit_normalisation({"positions": x, "energies": 30.0 * rng.normal(size=200)})
    fast = FastPairMLP(model)
    carry = Carrier(ForceNetwork(lambda y: fast.energy_and_forces(y)[1]))
    v = draw_velocities(8, ethanol.masses, 300.0, rng)
    x_k, v_k = carry(x[:8], v, ethanol.masses, 5e-4, 500)
    x_0, v_0 = carry(x_k, -v_k, ethanol.masses, 5e-4, 500)
    assert np.abs(x_k - x[:8]).max() > 0.01
    assert np.abs(x_0 - x[:8]).max() < 1e-5 and np.abs(v_0 + v).max() < 1e-2
    assert np.abs(np.einsum("rni,n->ri", v_k, ethanol.masses)).max() < 1e-3
