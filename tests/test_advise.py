"""The advice: its arithmetic on made-up costs, its estimates where the answer is known, the script as a user has it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import synthetic
from conftest import molecule_from_smiles, run_program
from kstep.analysis.measure.fitted_tail import correlation_time
from kstep.analysis.measure.run_samples import samples_of_run
from kstep.analysis.measure.statistics import statistical_inefficiency
from kstep.errors import UserError
from kstep.forces import physics_spec
from kstep.forces.local_pool import EvaluationPool
from kstep.forces.openmm import MDConfig
from kstep.forces.tblite import QMConfig
from kstep.models.model_config import ModelConfig
from kstep.molecules.prepare import prepare_molecule
from kstep.runs.exploration import Trial, samples_per_call, with_rejections
from kstep.runs.network_dynamics import Carrier
from kstep.runs.tuning import Costs, measure_costs
from kstep.schemas import load_trajectory
from kstep.schemes import SAMPLERS, SCHEMES
from kstep.study.advice import check, cost_model as model, ladder_rates, stand_in_rates as rates, survey, timing
from kstep.study.advice.stand_ins import ForceField, untrained_network

PLAIN = model.PlainMD(cpu_s_per_step=1e-3, dt_fs=1.0, ps_per_sample={"torsion": 5.0, "energy": 0.5})  # 5 s, 0.5 s
SAMPLER = model.SamplerCost(cpu_s_per_call=4e-3, samples_per_call={"torsion": 0.1, "energy": 0.2}, acceptance=0.9,
                        dt_fs=2.0, k_steps=200, burn_in_cpu_s=6.0)  # 40 ms, 20 ms
TO_LEARN = model.Learning(true_calls=500, cpu_s=90.0, paid=False)


def predict(n, observable="torsion", plain=PLAIN, sampler=SAMPLER, learning=TO_LEARN, factor=2.0):
    return model.predict(n, observable, plain, sampler, learning, 2, factor)


def test_totals_are_what_the_costs_say():
    row = predict(1000)
    assert row["plain_cpu_s"] == pytest.approx(5000.0) and row["plain_wall_s"] == pytest.approx(2500.0)
    assert row["total_cpu_s"] == pytest.approx(90.0 + 6.0 + 1000 * 0.04)
    assert row["total_wall_s"] == pytest.approx(90.0 + 46.0 / (2 * model.BUSY_SHARE))
    assert row["gain"] == pytest.approx(5000.0 / 136.0) and row["verdict"] == "pays"


def test_at_break_even_both_cost_the_same():
    n = predict(1.0)["break_even_samples"]
    assert n == pytest.approx(96.0 / 4.96)
    row = predict(n)
    assert row["plain_cpu_s"] == pytest.approx(row["total_cpu_s"])
    assert predict(0.9 * n)["verdict"] == "do not bother"
    assert predict(1.2 * n)["verdict"] == "too close to call"
    assert predict(10 * n)["verdict"] == "pays"


def test_a_paid_network_is_not_paid_again():
    paid = model.Learning(500, 90.0, paid=True)
    row = predict(1000, learning=paid)
    assert row["total_cpu_s"] == pytest.approx(46.0) and row["cold_start_cpu_s"] == pytest.approx(136.0)
    assert row["break_even_samples"] == pytest.approx(6.0 / 4.96)
    assert row["break_even_from_cold_start"] == pytest.approx(96.0 / 4.96)


def test_cheap_physics_is_told_not_to_bother():
    """OpenMM's own loop: 14 us a step, 0.1 ps a sample, so 1.4 ms against 40 ms."""
    row = predict(10_000, plain=model.PlainMD(14e-6, 1.0, {"torsion": 0.1, "energy": 0.1}))
    assert row["verdict"] == "do not bother" and row["break_even_samples"] is None
    said = model.explain("slowest torsion", row, 2.0)
    assert "do not bother" in said and "1.4 ms" in said and "40 ms" in said
    few = predict(2)
    assert "do not bother" in model.explain("slowest torsion", few, 2.0) and " 19." in model.explain("x", few, 2.0)


def test_what_was_never_seen_is_not_predicted():
    assert predict(10, sampler=model.SamplerCost(1.0, {"torsion": None, "energy": 0.1}, 0.9, 2.0, 10)) is None
    row = predict(10, plain=model.PlainMD(1e-3, 1.0, {"torsion": None, "energy": 1.0}))
    assert row["verdict"] == "not known" and row["gain"] is None
    model.table({"torsion": row}, PLAIN, TO_LEARN)


def test_learning_grows_with_the_molecule_as_it_did():
    """Ethanol took 400-580 calls and 14-23 s, aspirin (10 ms a call) 1200-2100 calls and 85-165 s."""
    ethanol, aspirin = model.expected_learning(9, 1.3e-3), model.expected_learning(21, 1e-2)
    assert 290 < ethanol.true_calls < 800 and 10 < ethanol.cpu_s < 30
    assert 1000 < aspirin.true_calls < 2400 and 80 < aspirin.cpu_s < 180


def test_dynamics_costs_as_many_true_calls_as_its_scheme_asks():
    per_ps = model.cpu_s_per_ps(PLAIN, true_call_s=2e-3, inner_step_s=1e-5)
    assert per_ps == pytest.approx({"plain": 1.0, "impulse": 500 * 2e-3 + 0.01, "checked": 62.5 * 2e-3 + 0.01})


@pytest.mark.parametrize("value, said", [(4e-6, "4 us"), (1.37e-3, "1.37 ms"), (90.0, "90 s"), (600.0, "10 min"),
                                         (7200.0, "2 h"), (400_000.0, "4.63 days"), (None, "-")])
def test_durations_are_said_in_their_unit(value, said):
    assert model.seconds(value) == said


@pytest.mark.parametrize("correlation, acceptance", [(0.0, 0.7), (0.8, 0.85)])
def test_rejections_cost_what_the_formula_says(correlation, acceptance):
    rng = np.random.default_rng(0)
    n = 60_000
    moved = synthetic.autoregressive(rng, n, 1, correlation)
    chain = moved[np.cumsum(rng.random(n) < acceptance)[:, None].clip(max=n - 1), 0]
    expected = with_rejections((1 - correlation) / (1 + correlation), acceptance)
    assert 1.0 / statistical_inefficiency([chain])[0] == pytest.approx(expected, rel=0.1)


def test_the_fitted_tail_is_right_and_scatters_less_than_the_sum():
    g = (1 + 0.95) / (1 - 0.95)
    rng = np.random.default_rng(1)
    runs = [[synthetic.autoregressive(rng, 1000, 1, 0.95) for _ in range(4)] for _ in range(40)]
    fitted = np.array([correlation_time(run, 1, 0.15) for run in runs])
    summed = np.array([statistical_inefficiency(run)[0] for run in runs])
    assert fitted.mean() == pytest.approx(g, rel=0.08)
    assert fitted.std() < 0.8 * summed.std()


def test_a_tail_is_not_fitted_to_two_noisy_points():
    """Most of the observable is forgotten at once, and C begins about where its tail is to be fitted."""
    c, lasting = 0.8, 0.2
    rng = np.random.default_rng(2)
    runs = [[np.sqrt(lasting) * synthetic.autoregressive(rng, 196, 1, c)
             + np.sqrt(1 - lasting) * rng.normal(size=(196, 1)) for _ in range(16)] for _ in range(60)]
    over = np.array([correlation_time(run, 1, 0.15) for run in runs]) / (1 + 2 * lasting * c / (1 - c))
    assert over.mean() == pytest.approx(1.0, abs=0.1) and 0.6 < over.min() and over.max() < 1.7


def test_effective_samples_of_a_known_trajectory():
    """The energy is a sum of squares of AR(1) series of correlation c, so its own correlation is c^2."""
    trajectory = synthetic.ethanol(replicas=8, frames=3000, correlation=0.8, hop=0.05, scheme="metropolis")
    found = samples_of_run(trajectory)
    assert found["energy"] == pytest.approx(24_000 * (1 - 0.64) / (1 + 0.64), rel=0.15)
    assert found["torsion"] == pytest.approx(24_000 * 0.05 / 1.95, rel=0.25)  # forgets with probability 0.05 a frame
    assert found["label"] == "C0-C1-O2-H8" and found["never_crossed"] == []
    stuck = samples_of_run(synthetic.ethanol(replicas=3, frames=500, wells=[0, 1, 2]))
    assert stuck["torsion"] is None and stuck["never_crossed"] == ["C0-C1-O2-H8"]


EXPLORER = next(kind.name for kind in SAMPLERS if kind.traits.explores)
ONE_TRAJECTORY = next(kind.name for kind in SAMPLERS if not kind.traits.explores)
TRIAL = Trial((300.0, 420.0), 100, 9.0, "t", 2e-3, (0.3,), (), {"energy": 3.0, "torsion": 9.0})
PILOT = model.SamplerCost(cpu_s_per_call=0.03, samples_per_call={"energy": 0.5, "torsion": 0.01}, acceptance=0.8,
                      dt_fs=2.0, k_steps=1000, burn_in_cpu_s=6.0, moves=10, ladder_K=(300.0, 420.0))


def test_the_slowest_torsion_is_read_off_the_ladder_and_the_energy_off_the_pilot():
    told = ladder_rates.with_ladder(PILOT, TRIAL, enough_energy=True)
    left = 0.8**10  # of the correlation of a torsion with nine moves per sample
    free = (1 - left) / (1 + left)
    assert told.samples_per_call == pytest.approx({"energy": 0.5, "torsion": 0.8 * free / (1 + 0.2 * free)})
    assert told.cpu_s_per_sample("torsion") == pytest.approx(0.03 / told.samples_per_call["torsion"])
    few = ladder_rates.with_ladder(PILOT, TRIAL, enough_energy=False)
    assert few.samples_per_call["energy"] == pytest.approx(samples_per_call(3.0, 10, 0.8))
    still = ladder_rates.with_ladder(PILOT, replace(TRIAL, moves_per={"energy": 3.0, "torsion": None}), True)
    assert still.samples_per_call["torsion"] is None


def test_other_numbers_of_moves_cost_what_their_moves_cost():
    told = ladder_rates.with_ladder(PILOT, TRIAL, enough_energy=True)
    rows = {row["moves"]: row for row in ladder_rates.by_moves(told, TRIAL, 0.02)}
    assert rows[10]["cpu_s_per_torsion_sample"] == pytest.approx(told.cpu_s_per_sample("torsion"))
    assert rows[10]["energy_samples_per_call"] == pytest.approx(0.5)
    # a call of 20 ms with ten moves of 2 ms took 30 ms, not 40
    assert rows[100]["cpu_s_per_call"] == pytest.approx(0.75 * (0.02 + 100 * 2e-3))
    assert rows[1]["cpu_s_per_call"] == pytest.approx(0.75 * (0.02 + 2e-3))
    assert rows[100]["mean_length_fs"] == 100 * 100 * 2.0
    assert rows[100]["torsion_samples_per_call"] == pytest.approx(0.8 / 1.2)  # a new sample, or the last again
    energy = samples_per_call(3.0, 1, 0.8) / samples_per_call(3.0, 10, 0.8)
    assert rows[1]["energy_samples_per_call"] == pytest.approx(0.5 * energy)
    said = survey.about_lengths(SimpleNamespace(lengths=list(rows.values())))
    assert "by moves per true call" in said and "10 (2000 fs)" in said and "30 is the cheapest" not in said


class Forgets:
    """An explorer whose torsion takes 20 moves per sample without a ladder and 5 on one."""

    dt_ps = 0.002

    def trial(self, positions, temperatures_K, move_steps, *, most_cpu_s):
        self.budget = most_cpu_s
        moves = 20.0 if len(temperatures_K) == 1 else 5.0
        return Trial(tuple(temperatures_K), move_steps, moves, "t", 99.0, (), (), {"energy": 2.0,
                                                                                "torsion": moves}), positions


def run_of(water, **changes):
    hybrid = SCHEMES[EXPLORER].Config(**{"shortest_mean_fs": 200.0, "temperature_K": 300.0, "replicas": 64, **changes})
    return SimpleNamespace(molecule=water, hybrid=hybrid)


@pytest.mark.parametrize("call_s, fewest, most", [(1e-3, 1, 4), (60.0, 20, 320)])
def test_before_training_the_moves_are_those_that_tuning_would_choose(water, call_s, fewest, most):
    """A move of 100 timesteps of 10 us on every rung; the force field's own seconds do not count."""
    explorer = Forgets()
    sampler, trial = ladder_rates.foretold(run_of(water), explorer, np.zeros((4, 3, 3)), Costs(call_s, 1e-5), 30.0)
    rungs = len(sampler.ladder_K)
    assert rungs > 1 and trial.cpu_s_per_move == pytest.approx(rungs * 100 * 1e-5)
    assert fewest <= sampler.moves <= most and sampler.k_steps == 100 * sampler.moves
    assert sampler.cpu_s_per_call == pytest.approx(call_s + sampler.moves * trial.cpu_s_per_move)
    assert sampler.samples_per_call["torsion"] == pytest.approx(
        samples_per_call(5.0, sampler.moves, model.ACCEPTANCE_AFTER_LEARNING))
    assert sampler.burn_in_cpu_s >= 4 * 64 * sampler.cpu_s_per_call


def test_before_training_what_is_chosen_already_stays(water):
    run = run_of(water, moves=7, k_steps=350, network_ladder_K=[300.0], burn_in_steps=3)
    sampler, _ = ladder_rates.foretold(run, Forgets(), np.zeros((4, 3, 3)), Costs(1e-3, 1e-5), 30.0)
    assert (sampler.moves, sampler.k_steps, sampler.ladder_K) == (7, 350, (300.0,))
    assert sampler.burn_in_cpu_s == pytest.approx(3 * 64 * sampler.cpu_s_per_call)
    assert "7 moves of 100 fs per true call without a ladder" in sampler.in_words


def test_one_trajectory_is_said_as_one():
    assert SAMPLER.in_words == "dt 2 fs, k = 200 (mean 400 fs)"
    assert "10 moves of 200 fs per true call on a ladder 300/420 K" in PILOT.in_words


class Well:
    """A harmonic 'network' of water: its dynamics is noise about a shape, one replica falls into a hole."""

    def __init__(self, molecule, falls):
        self.molecule, self.falls, self.rng = molecule, falls, np.random.default_rng(2)
        self.energy = None

    def energy_and_forces(self, x):
        energy = 5.0 * self.rng.standard_normal(len(x)) if self.energy is None else self.energy
        return energy, np.zeros_like(x)

    def __call__(self, x, v, masses, dt_ps, n_steps):
        self.energy = 5.0 * self.rng.standard_normal(len(x))
        self.energy[: self.falls] -= 900.0
        return self.molecule.conformers[:1] + 0.001 * self.rng.standard_normal(x.shape), v


@pytest.mark.parametrize("falls", [0, 1, 5])
def test_a_replica_in_a_hole_of_the_network_is_left_out(water, falls):
    well = Well(water, falls)
    start = np.repeat(water.conformers[:1], 8, axis=0)
    options = dict(enough=50, most_cpu_s=1e-9)
    if falls > 4:
        with pytest.raises(UserError, match="does not stay together"):
            rates.stand_in_dynamics(water, well, well, start, 300.0, 1.0, 0.5, well.rng, **options)
        return
    found = rates.stand_in_dynamics(water, well, well, start, 300.0, 1.0, 0.5, well.rng, **options)
    assert found["replicas_lost"] == falls and found["torsion"] is None
    assert found["simulated_ps"] == pytest.approx((8 - falls) * rates.FIRST_PS)
    assert 0.02 < found["energy"] < 0.04  # independent every 25 fs


@pytest.fixture(scope="module")
def ethanol_mm():
    import openmm

    prepared = prepare_molecule("ethanol", "CCO")
    return prepared.molecule, openmm.XmlSerializer.serialize(prepared.system)


def test_the_force_field_carries_replicas_like_a_network_does(ethanol_mm):
    """Against the same potential carried by the project's own velocity Verlet, with heavy hydrogens."""
    molecule, system = ethanol_mm
    physics = physics_spec(molecule, MDConfig(platform="Reference"), system_xml=system).build()
    field = ForceField(system, len(molecule))
    x = molecule.conformers[:1].repeat(2, axis=0)
    energy, forces = field.energy_and_forces(x)
    assert energy[1] == pytest.approx(physics.energy(x[1])) and forces.shape == x.shape
    masses = np.where(molecule.numbers == 1, 4.0, molecule.masses)
    v = 0.3 * np.random.default_rng(0).standard_normal(x.shape)
    slow = SimpleNamespace(forces=lambda y: np.array([physics.energy_and_forces(r)[1] for r in y]), native=np.array,
                           numpy=np.asarray)
    ours, theirs = Carrier(slow)(x, v, masses, 1e-3, 50), field(x, v, masses, 1e-3, 50)
    assert np.allclose(ours[0], theirs[0], atol=1e-9) and np.allclose(ours[1], theirs[1], atol=1e-7)
    broken = field(x, v, masses, 0.1, 50)[0]
    assert not np.isfinite(broken).any() and np.isnan(field.energy_and_forces(broken)[0]).all()


def test_an_untrained_network_can_be_timed_and_one_without_energy_cannot(ethanol_mm):
    molecule, _ = ethanol_mm
    shaken = molecule.conformers[0] + 0.005 * np.random.default_rng(0).standard_normal((16, len(molecule), 3))
    network = untrained_network(ModelConfig(arch="pair_mlp"), molecule, shaken, 300.0)
    x, _ = Carrier(network)(shaken[:4], np.zeros_like(shaken[:4]), molecule.masses, 5e-4, 100)
    assert np.isfinite(x).all()
    with pytest.raises(UserError, match="energy: true"):
        untrained_network(ModelConfig(heads={"energy": False, "jump": True}), molecule, shaken, 300.0)


def test_a_true_call_is_not_timed_where_the_scf_has_nothing_left_to_do(water):
    """With warm starts a second call at one geometry costs next to nothing, which is not what a run pays."""
    asked = []
    pool = SimpleNamespace(cpu_s=0.0, evaluate=lambda x: asked.append(x.copy()))

    def carry(x, v, masses, dt_ps, n_steps):
        return x + 0.01, v

    carry.cpu_s = 0.0
    measure_costs(pool, carry, water.conformers[:1].repeat(3, axis=0), water.masses, 300.0, np.random.default_rng(0))
    assert len(asked) == 2 and not np.allclose(asked[0], asked[1])


def test_a_step_of_plain_md_is_priced_with_what_its_worker_spends(water, monkeypatch):
    """A truth with threads or a limit of its own has a worker, whose seconds are not those of this process."""
    class Elsewhere(EvaluationPool):
        """Each call takes 2 CPU seconds of a worker."""

        asked = 0

        def submit(self, *args, **kwargs):
            self.asked += 1
            return super().submit(*args, **kwargs)

        @property
        def cpu_s(self):
            return 2.0 * self.asked

    monkeypatch.setattr(timing, "make_pool", Elsewhere)
    monkeypatch.setattr(timing, "STEPS_TIMED", {"QM": 2})
    step_s = timing.plain_step_s(physics_spec(water, QMConfig()), water.conformers[0], water.masses, 1.0, 300.0,
                                 np.random.default_rng(0))
    assert 2.0 < step_s < 3.0


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Prepared ethanol and water; water with a network learned at MM and a run of each kind of sampler."""
    work = tmp_path_factory.mktemp("advise")
    (work / "two.smi").write_text("CCO ethanol\nO water\n")
    finished = run_program("src/00_prep_mols.py", "--smiles", work / "two.smi", "--out-dir", work / "raw")
    assert finished.returncode == 0, finished.stderr
    (work / "model.yaml").write_text("arch: pair_mlp\nheads: {energy: true}\npair_hidden: [24, 24]\n")
    finished = run_program("src/06_hybrid_integrate.py", "--molecule", work / "raw/water", "--learn", "--md-config",
                          "configs/md_fast.yaml", "--model-config", work / "model.yaml", "--replicas", 16,
                          "--burn-in-steps", 5, "--steps", 20, "--out", work / "water.npz")
    assert finished.returncode == 0, finished.stderr[-2000:]
    for scheme in (EXPLORER, ONE_TRAJECTORY):
        finished = run_program("src/06_hybrid_integrate.py", "--molecule", work / "raw/water", "--md-config",
                              "configs/md_fast.yaml", "--checkpoint", work / "water.npz.learn/network.pt", "--scheme",
                              scheme, "--tune", "--replicas", 16, "--burn-in-steps", 5, "--steps", 150,
                              "--out", work / f"{scheme}.npz")
        assert finished.returncode == 0, finished.stderr[-2000:]
    return work


def advise(work, molecule, *flags, expect=0):
    finished = run_program("src/08_advise.py", "--molecule", work / "raw" / molecule, *flags)
    assert finished.returncode == expect, finished.stdout[-2000:] + finished.stderr[-2000:]
    if expect:
        assert "Traceback" not in finished.stderr and finished.stderr.count("error:") == 1
    return finished


@pytest.mark.parametrize("scheme", [EXPLORER, ONE_TRAJECTORY])
def test_advice_before_anything_is_trained(work, scheme):
    finished = advise(work, "ethanol", "--md-config", "configs/md_fast.yaml", "--replicas", 8, "--most-cpu", 1,
                      "--model-config", work / "model.yaml", "--samples", 5, "--set", f"scheme={scheme}",
                      "--out", work / "cold.json")
    assert "do not bother" in finished.stdout and "factor of 2" in finished.stdout and scheme in finished.stdout
    told = json.loads((work / "cold.json").read_text())
    assert told["plain"]["cpu_s_per_step"] < 2e-4 and told["factor"]["energy"] == 2.0 and not told["learning"]["paid"]
    assert 0.5 < told["plain"]["ps_per_sample"]["torsion"] < 50  # MMFF94's O-H turns in picoseconds
    # others, while there is time
    assert told["sampler"]["k_steps"] in {row["k_steps"] for row in told["lengths"]}
    assert (told["sampler"]["ladder_K"] != []) == (scheme == EXPLORER)
    assert told["sampler"]["samples_per_call"]["torsion"] > 0.005
    ahead = told["forecast"]["torsion"]["break_even_samples"]
    assert ahead is None or ahead > 5


@pytest.mark.parametrize("scheme", [EXPLORER, ONE_TRAJECTORY])
def test_advice_with_a_network_holds_for_the_run_it_came_from(work, scheme):
    """The pilot given is the run checked, so predicted and measured are the same."""
    flags = ("--md-config", "configs/md_fast.yaml", "--replicas", 16, "--set", f"scheme={scheme}",
             "--checkpoint", work / "water.npz.learn/network.pt")
    finished = advise(work, "water", *flags, "--pilot", work / f"{scheme}.npz", "--most-cpu", 1, "--check",
                      work / f"{scheme}.npz", "--out", work / "pilot.json")
    told = json.loads((work / "pilot.json").read_text())
    assert told["checks"][0]["energy"]["predicted_over_measured"] == pytest.approx(1.0)
    assert told["learning"]["paid"] and told["learning"]["true_calls"] > 0 and told["learning"]["cpu_s"] > 0
    assert list(told["forecast"]) == ["energy"] and "30 %" in finished.stdout and f"{scheme}, dt" in finished.stdout
    fresh = advise(work, "water", *flags, "--pilot-steps", 30, "--most-cpu", 1, "--out", work / "own.json")
    told = json.loads((work / "own.json").read_text())
    assert told["facts"]["pilot"]["true_calls"] >= 16 * 30 and "pilot:" in fresh.stderr


def test_a_plain_run_is_held_against_the_forecast_for_plain_md():
    run = synthetic.ethanol(replicas=4, frames=2000, hop=0.05)
    found = samples_of_run(run)
    plain = model.PlainMD(2e-3, 1.0, {"torsion": 2 * found["ps"] / found["torsion"],
                                      "energy": found["ps"] / found["energy"]})
    seen = survey.Survey(run.atom_types, plain, SAMPLER, TO_LEARN, model.WITHOUT, [], {})
    step_s = run.metadata["cpu_s"] / run.metadata["true_calls"]
    told = check.against(seen, run, 1000, "plain.npz")
    assert told["torsion"]["predicted_over_measured"] == pytest.approx(2 * 2e-3 / step_s)
    assert told["energy"]["predicted_over_measured"] == pytest.approx(2e-3 / step_s)
    assert "torsion: predicted" in check.say(told)
    with pytest.raises(UserError, match="another molecule"):
        check.against(replace(seen, numbers=np.array([8, 1, 1])), run, 10, "plain.npz")
    run.metadata["scheme"] = "jump"
    with pytest.raises(UserError, match="scheme 'jump'"):
        check.against(seen, run, 10, "jump.npz")


def test_a_check_says_where_the_run_was_tuned_otherwise_than_the_forecast():
    told = {"run": "a.npz", "scheme": EXPLORER, "in_words": {"predicted": PILOT.in_words, "measured": SAMPLER.in_words}}
    assert "it ran with dt 2 fs, k = 200" in check.say(told)
    same = {**told, "in_words": dict.fromkeys(("predicted", "measured"), PILOT.in_words)}
    assert check.say(same).endswith("nothing to compare")


def test_bad_input_is_one_sentence(work, tmp_path):
    mm = ("--md-config", "configs/md_fast.yaml")
    network = ("--checkpoint", work / "water.npz.learn/network.pt")
    assert "exact samplers" in advise(work, "water", *mm, "--set", "scheme=plain", expect=2).stderr
    assert "belongs to" in advise(work, "water", *mm, "--set", f"scheme={ONE_TRAJECTORY}", "--set", "moves=3",
                                  expect=2).stderr
    assert "--pilot needs --checkpoint" in advise(work, "water", *mm, "--pilot", work / "water.npz", expect=2).stderr
    advise(work, "water", *mm, "--qm-config", "configs/qm.yaml", expect=2)
    advise(work, "water", *mm, "--samples", -3, expect=2)
    assert "the molecule also holds [6]" in advise(work, "ethanol", *mm, *network, expect=2).stderr
    assert "does not exist" in advise(work, "water", *mm, "--check", tmp_path / "no.npz", expect=2).stderr
    molecule = molecule_from_smiles("O", "water", 1)
    (work / "raw/bare").mkdir()
    molecule.save(work / "raw/bare/molecule.npz")
    assert "00_prep_mols.py" in advise(work, "bare", expect=2).stderr
    synthetic.save(tmp_path / "plain.npz", synthetic.ethanol(replicas=2, frames=50))
    assert "pilot must be one" in advise(work, "water", *mm, *network, "--pilot", tmp_path / "plain.npz",
                                         expect=2).stderr
    run = load_trajectory(work / "water.npz")
    run.metadata["method"] = "GFN2-xTB"
    synthetic.save(tmp_path / "other.npz", run)
    assert "not of water with mmff94" in advise(work, "water", *mm, *network, "--pilot", tmp_path / "other.npz",
                                                expect=2).stderr
