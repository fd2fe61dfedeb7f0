"""A run without a fixed length ends where it knows enough or its budget is spent, and goes on as if it had not."""

from dataclasses import replace

import numpy as np
import pytest

import kstep
import synthetic
from conftest import molecule_from_smiles, run_program
from kstep.analysis.measure.populations import populations
from kstep.analysis.measure.statistics import estimate_means
from kstep.cli.program import code_of_run
from kstep.config import load_config
from kstep.dihedrals import dihedrals_deg
from kstep.errors import UserError
from kstep.forces import PhysicsSpec
from kstep.runs import production, run_hybrid as run_module, run_network
from kstep.runs.aim import Aim, Known, assess, describe, judged_after, series_of_run, settle_end
from kstep.schemas import PER_FRAME, join_trajectories, load_trajectory
from kstep.schemes import SCHEMES
from kstep.schemes.hybrid_config import HybridConfig
from kstep.units import kT
from test_impulse_checked import Springs
from test_populations import TRUTH, as_trajectory, made_up, named, segment

SAMPLERS = ["metropolis", "nested"]
TORSION = "C0-C1-O2-H8"  # of synthetic ethanol
# of 1-propanol, trans or gauche+ each (rows C-C-C-O, columns C-C-O-H): both torsions half and half in all
IN_STEP, OUT_OF_STEP = np.zeros((3, 3)), np.zeros((3, 3))
IN_STEP[[0, 1], [0, 1]] = OUT_OF_STEP[[0, 1], [1, 0]] = 0.5
IN_STEP, OUT_OF_STEP = IN_STEP.ravel(), OUT_OF_STEP.ravel()


@pytest.fixture(scope="module")
def propanol():
    return molecule_from_smiles("CCCO", "propanol", 1)


# what is known from frames

def autoregressive_chains(rng, replicas, frames, correlation):
    return list(synthetic.autoregressive(rng, frames, replicas, correlation).T[..., None])


@pytest.mark.parametrize("replicas, frames", [(16, 20), (16, 50), (4, 200)])
@pytest.mark.parametrize("correlation", [0.5, 0.8])
def test_short_chains_pooled_tell_their_samples(replicas, frames, correlation):
    """The mean of R independent stretches of T frames has variance sum_|t|<T (1 - |t|/T) c^|t| / (R T)."""
    rng, lags = np.random.default_rng(0), np.arange(1, frames)
    expected = replicas * frames / (1.0 + 2.0 * ((1.0 - lags / frames) * correlation**lags).sum())
    found = [estimate_means(chains, 1.0) for chains in
             (autoregressive_chains(rng, replicas, frames, correlation) for _ in range(1000))]
    assert np.mean([f.n_eff[0] for f in found]) == pytest.approx(expected, rel=0.12)
    deviation = [f.mean[0] / f.standard_error[0] for f in found]
    assert np.std(deviation) == pytest.approx(1.0, abs=0.12)  # its error bars cover


def test_chains_that_start_apart_and_stay_know_nothing():
    """Eight chains of synthetic ethanol, each in one well: as many independent energies as there are frames / 9."""
    known = assess(synthetic.ethanol(1, 8, 1000, wells=[0, 1, 2, 0, 1, 2, 0, 1]))
    assert known.samples[TORSION] == 0.0 and known.samples["energy"] == pytest.approx(8000 * 0.36 / 1.64, rel=0.3)
    assert known.slowest == TORSION and known.r_hat[TORSION] > 3
    assert known.r_hat["conformer A"] == np.inf and known.population_error > 0.1 and known.problems
    assert known.r_hat["energy"] == pytest.approx(1.0, abs=0.03)


def test_a_torsion_in_one_well_is_listed_and_not_counted():
    known = assess(synthetic.ethanol(2, 4, 500, wells=[0] * 4))
    assert known.one_well == [TORSION] and list(known.samples) == ["energy"] and not known.problems
    assert known.population_error == pytest.approx(1.0 / known.samples["energy"])
    assert set(known.r_hat) == {"energy", TORSION}


def test_too_few_frames_tell_nothing(water):
    assert assess(synthetic.ethanol(3, 4, 3)) is None
    alone = assess(of_water(water, 4, 400))
    assert list(alone.samples) == list(alone.r_hat) == ["energy"] and alone.one_well == []
    assert alone.population_error == pytest.approx(1.0 / alone.samples["energy"])


def of_water(water, chains, frames):
    rng, n = np.random.default_rng(3), chains * frames
    return as_trajectory(water, np.repeat(water.conformers[:1], n, axis=0), rng.standard_normal(n),
                         np.repeat(np.arange(chains), frames), np.tile(np.arange(frames), chains),
                         [segment(r) for r in range(chains)])


@pytest.mark.parametrize("chains", [4, 16])
def test_the_population_error_is_that_of_the_most_uncertain_conformer(propanol, chains):
    """Independent draws of STATES: sqrt(p (1 - p) / n) of its conformer of 42 %."""
    found = [assess(made_up(propanol, seed, chains=chains, frames=1600 // chains, stay=0.0)).population_error
             for seed in range(10)]
    assert 0.95 < np.mean(found) / np.sqrt(TRUTH["t+"] * (1 - TRUTH["t+"]) / 1600) < 1.35


@pytest.mark.parametrize("stay", [0.0, 0.8])
def test_populations_are_as_far_off_as_is_said(propanol, stay):
    """No more than the largest error in 68 of 100 runs, which are of a chain of memory (1 + stay)/(1 - stay)."""
    errors, said = [], []
    for seed in range(12):
        run = made_up(propanol, seed, chains=8, frames=200, stay=stay)
        found, known = named(populations([run])), assess(run)
        errors += [found[name].population - share for name, share in TRUTH.items()]
        said.append(known.population_error)
    spread = np.sqrt(TRUTH["t+"] * (1 - TRUTH["t+"]) / 1600 * (1 + stay) / (1 - stay))
    assert np.mean(said) == pytest.approx(spread, rel=0.35)
    assert 0.4 * spread < np.sqrt(np.mean(np.square(errors))) < np.mean(said)


def test_torsions_that_agree_one_by_one_are_not_conformers_that_do(propanol):
    """Half of the chains have the torsions in step, half out of step: each torsion by itself is the same in all.

    In step, both are trans or both gauche+; out of step, one of each.
    """
    runs = {kind: [made_up(propanol, seed, chains=4, frames=400, stay=0.0, states=states) for seed, states in
                   enumerate(kinds)] for kind, kinds in (("apart", (IN_STEP, OUT_OF_STEP)),
                                                         ("alike", ((IN_STEP + OUT_OF_STEP) / 2,) * 2))}
    for kind, parts in runs.items():
        run = join_trajectories(parts)
        known, aim = assess(run), Aim(hybrid_of(effective_samples=100))
        one_by_one = [known.r_hat[name] for name in known.r_hat if not name.startswith("conformer")]
        assert len(one_by_one) == 3 and max(one_by_one) < 1.05 and min(known.samples.values()) > 100
        aim.judge(run)
        if kind == "alike":
            assert aim.shortfall() is None and populations([run]).converged
        else:
            assert known.apart.startswith("conformer ") and known.r_hat[known.apart] > 1.2
            assert "chains that do not agree, R-hat" in aim.shortfall() and "of conformer" in aim.shortfall()
            assert known.population_error > 0.05 and not aim.record()["reached"]
            assert not populations([run]).converged


# the aim

def hybrid_of(**settings):
    hybrid = HybridConfig(**{"scheme": "metropolis", **settings})
    return hybrid.model_copy(update=settle_end(hybrid, SCHEMES[hybrid.scheme]))


def aim_of(**settings):
    return Aim(hybrid_of(**settings))


def test_the_aim_needs_samples_populations_and_chains_that_agree():
    aim = aim_of(effective_samples=100, population_error=0.02)
    assert "too few frames" in aim.shortfall()
    good = Known({"energy": 400.0, "t": 100.0}, {"energy": 1.0, "t": 1.05}, 0.02, [])
    for changed, words in (({}, None),
                           ({"samples": {"energy": 99.0, "t": 100.0}}, "99 of 100 effective samples of the energy"),
                           ({"samples": {"energy": 400.0, "t": 63.0}}, "63 of 100 effective samples of torsion t"),
                           ({"samples": {"energy": 400.0, "t": np.nan}}, "effective samples of torsion t"),
                           ({"population_error": 0.021}, "populations with an error of 0.021, not 0.02"),
                           ({"r_hat": {"energy": 1.0, "t": 1.06}}, "R-hat 1.06 of torsion t"),
                           ({"r_hat": {"energy": np.inf, "t": 1.0}}, "R-hat inf of the energy"),
                           ({"r_hat": {"energy": 1.0, "t": np.nan}}, "R-hat nan of torsion t")):
        aim.known = replace(good, **changed)
        assert (aim.shortfall() is None) if words is None else (words in aim.shortfall()), changed
        assert aim.record()["reached"] == (words is None)


def test_a_run_says_how_it_ended():
    aim = aim_of(effective_samples=200, max_true_calls=5000)
    aim.known = Known({"energy": 480.0, "t": 214.0}, {"energy": 1.0, "t": 1.02}, 0.02, ["u"])
    assert describe(aim.record()) == ("aim reached: 214 effective samples of torsion t (slowest), 480 of the energy, "
                                      "R-hat 1.02, in one well all the time: u")
    assert code_of_run({"aim": aim.record()}) == 0 == code_of_run({})
    aim.known, aim.is_spent = replace(aim.known, samples={"energy": 480.0, "t": 63.0}, one_well=[]), True
    assert describe(aim.record()) == ("short of its aim: 63 of 200 effective samples of torsion t within 5,000 true "
                                      "calls; --resume with a larger --max-true-calls goes on")
    assert code_of_run({"aim": aim.record()}) == 4
    aim.known = replace(aim.known, r_hat={"energy": np.inf, "t": 1.0})
    assert aim.record()["r_hat"] == {"energy": None, "t": 1.0}  # JSON has no infinity


def test_only_the_coldest_rung_is_followed():
    run = synthetic.ethanol(replicas=2, frames=40)
    run.metadata["segments"][3]["role"] = "hot"
    series = series_of_run(run)
    assert len(series.energy) == 1 and np.array_equal(series.energy[0], run.Epot[20:60])
    assert np.array_equal(series.torsions[0][:, 0], dihedrals_deg(run.pos[20:60], np.array([[0, 1, 2, 8]]))[:, 0])
    assert series.labels == [TORSION] and series.spacing_ps == pytest.approx(0.1)
    run.metadata["qm_atoms"] = [0, 3, 4, 5]
    assert series_of_run(run).labels == []
    run.metadata |= {"qm_atoms": list(range(8)), "link_hosts": [8]}
    assert series_of_run(run).labels == [TORSION]


def test_restraints_count_in_what_is_known():
    """exp(W/kT) that favours one well of three: its weights are in the energies' samples and in the populations."""
    run = synthetic.ethanol(5, 8, 400, hop=0.5)
    angle = dihedrals_deg(run.pos, np.array([[0, 1, 2, 8]]))[:, 0]
    held = replace(run, bias=np.where(np.abs(angle) > 120, kT(300.0) * np.log(4.0), 0.0))
    bare, known = assess(run), assess(held)
    assert known.samples["energy"] < 0.9 * bare.samples["energy"]
    assert known.r_hat.keys() == bare.r_hat.keys() and known.population_error != bare.population_error
    trans = max(populations([held]).conformers, key=lambda c: abs(c.wells_deg[TORSION]))
    assert trans.population == pytest.approx(4 / 6, abs=4 * trans.population_error)


@pytest.mark.parametrize("interval", [1, 7])
def test_a_run_is_judged_ever_more_rarely(interval):
    times = [judged_after(0, interval)]
    while times[-1] < 2000 * interval:
        times.append(judged_after(times[-1], interval))
    frames = np.array(times) / interval
    assert frames[0] == 4 and (frames == frames.astype(int)).all()
    assert (np.diff(frames) >= 1).all() and (np.diff(frames) <= 0.15 * frames[:-1] + 1).all() and len(times) < 50
    assert judged_after(times[3] - 1, interval) == times[3]


@pytest.mark.parametrize("scheme", SAMPLERS)
def test_a_sampler_aims_and_the_others_have_a_length(scheme):
    def settled(**settings):
        return settle_end(HybridConfig(**settings), SCHEMES[settings["scheme"]])

    assert settled(scheme=scheme) == {"effective_samples": 200, "population_error": 0.02,
                                       "max_true_calls": 20_000}
    assert settled(scheme=scheme, population_error=0.01, max_hours=2) == {}
    assert settled(scheme=scheme, max_hours=2) == {"effective_samples": 200, "population_error": 0.02}
    assert settled(scheme=scheme, effective_samples=90, max_hours=2) == {}
    assert settled(scheme=scheme, steps=3) == {}
    assert settled(scheme=scheme, replicas=2, burn_in_steps=0, max_true_calls=10).keys() == {"effective_samples",
                                                                                                  "population_error"}
    assert all(settled(scheme=other) == {"steps": 200} for other in set(SCHEMES) - set(SAMPLERS))
    for wrong, words in ((dict(steps=9, effective_samples=5), "steps 9 is a fixed length"),
                         (dict(steps=9, max_hours=5), "steps 9 is a fixed length"),
                         (dict(scheme="plain", population_error=0.1), "plain does not"),
                         (dict(replicas=16, burn_in_steps=20, max_true_calls=399), "take 400")):
        with pytest.raises(UserError, match=words):
            settled(**{"scheme": scheme, **wrong})
    assert settled(scheme=scheme, replicas=16, burn_in_steps=20, max_true_calls=400)


def test_the_budget_is_in_calls_and_hours():
    aim = aim_of(max_true_calls=1000, max_hours=0.5)
    assert aim.pays_for(1000, 1800.0) and not aim.pays_for(1001, 0.0) and not aim.pays_for(0, 1801.0)
    assert aim_of(max_hours=0.5).pays_for(10**9, 1800.0)


def test_the_file_of_settings_states_the_default():
    hybrid = load_config(HybridConfig, "configs/hybrid.yaml")
    assert {hybrid.steps, hybrid.effective_samples, hybrid.population_error, hybrid.max_true_calls,
            hybrid.max_hours} == {None}


# whole runs: water on MMFF94 with a network of springs

@pytest.fixture(scope="module")
def water_spec(water):
    import openmm
    from rdkit import Chem

    from kstep.molecules import build_system

    system = build_system(Chem.AddHs(Chem.MolFromSmiles("O")), "mmff94")
    return PhysicsSpec("openmm", water.numbers, water.masses,
                       {"system_xml": openmm.XmlSerializer.serialize(system), "platform": "Reference"})


@pytest.fixture
def sample(water, water_spec, monkeypatch):
    """sample(path, **settings): the metadata of a run; stop_after: macro-steps until a Ctrl-C."""
    def run(path, *, resume=False, stop_after=None, **settings):
        network = Springs(0.02, water.conformers[0])
        network.device, network.metadata = "cpu", {}
        asked, rows = network.forces, []

        def counted(x):
            rows.append(len(x))
            if stop_after is not None and sum(rows) > stop_after * 4 * 6:
                raise KeyboardInterrupt
            return asked(x)

        network.forces = counted
        monkeypatch.setattr(run_network, "load_network", lambda **_: network)
        hybrid = hybrid_of(**{**dict(k_steps=6, dt_fs=1.0, length_law="fixed", burn_in_steps=5, replicas=4,
                                     temperature_K=300.0, checkpoint_interval=1000, inner="numpy"), **settings})
        job = run_module.HybridRun(water, water_spec, "mmff94", hybrid, None, path, seed=3, resume=resume)
        return run_module.run_hybrid(job, {}, {})

    return run


def same_run(a, b):
    one, two = load_trajectory(a), load_trajectory(b)
    for key in ("pos", "vel", "Epot", "delta_H", "accepted", "step", "segment", "replica"):
        assert np.array_equal(getattr(one, key), getattr(two, key), equal_nan=key == "delta_H"), key
    for key in ("tally", "true_calls", "segments", "status", "true_calls_burn_in", "rotamers_never_visited"):
        assert one.metadata[key] == two.metadata[key], key
    known = [{k: v for k, v in m.get("aim", {}).items() if k not in ("wanted", "budget")}
             for m in (one.metadata, two.metadata)]
    assert known[0] == known[1]


TEMPERED = {"tempering_K": [300.0, 500.0]}
NESTED = {"scheme": "nested", "moves": 2, "network_ladder_K": [300.0, 500.0]}


@pytest.mark.parametrize("settings", [{}, TEMPERED], ids=["plain", "tempered"])
def test_a_run_stops_at_its_aim(sample, tmp_path, settings):
    metadata = sample(tmp_path / "a.npz", effective_samples=60, **settings)
    aim, trajectory = metadata["aim"], load_trajectory(tmp_path / "a.npz")
    assert metadata["status"] == "finished" and aim["reached"] and not aim["budget_spent"]
    assert aim["effective_samples"]["energy"] >= 60 and aim["r_hat"]["energy"] <= 1.05
    rows = trajectory.frames_of("train")
    n_chains = len(set(trajectory.replica[rows]))
    assert n_chains == (2 if settings else 4)
    produced = len(rows) // n_chains
    assert judged_after(produced - 1, 1) == produced > 4
    # what it says is what anyone finds in the file
    chains = [trajectory.Epot[rows][trajectory.replica[rows] == r] for r in sorted(set(trajectory.replica[rows]))]
    found = estimate_means([c[:, None] for c in chains], 0.006).n_eff[0]
    assert aim["effective_samples"]["energy"] == pytest.approx(found, rel=1e-12)
    found = trajectory.metadata["populations"]
    assert found["converged"] and found["conformers"][0]["population"] == pytest.approx(1.0)
    early = np.isin(trajectory.segment, trajectory.segment[rows]) & (trajectory.step < sorted(set(
        trajectory.step[rows]))[judged_before(produced)])
    known = assess(cut_to(trajectory, np.flatnonzero(early)))
    assert known.samples["energy"] < 60 or known.r_hat["energy"] > 1.05  # no sooner could it have stopped


def test_populations_are_counted_once_where_they_are_judged(sample, tmp_path, monkeypatch):
    """The last judgement of a run and the table that it prints are one."""
    from kstep.runs import aim, run_hybrid

    counted = []

    def counting(runs):
        counted.append(len(runs[0].pos))
        return populations(runs)

    monkeypatch.setattr(aim, "populations", counting)
    monkeypatch.setattr(run_hybrid, "populations", counting)
    metadata = sample(tmp_path / "a.npz", effective_samples=60)
    assert metadata["populations"]["frames"] > 0 and len(set(counted)) == len(counted) > 0


def cut_to(trajectory, frames):
    """The same with these frames alone."""
    return replace(trajectory, **{key: getattr(trajectory, key)[frames] for key in PER_FRAME
                                  if len(getattr(trajectory, key))})


def judged_before(produced):
    times = [judged_after(0, 1)]
    while times[-1] < produced:
        times.append(judged_after(times[-1], 1))
    return times[-2]


@pytest.mark.parametrize("settings", [{}, TEMPERED, NESTED, {"save_interval_steps": 3, "checkpoint_interval": 10}],
                         ids=["plain", "tempered", "nested", "thinned"])
def test_a_run_short_of_its_aim_goes_on_as_if_it_had_not_stopped(sample, tmp_path, settings):
    settings = {"effective_samples": 60, **settings}
    short = sample(tmp_path / "a.npz", max_true_calls=120, **settings)
    assert not short["aim"]["reached"] and short["aim"]["budget_spent"] and short["status"] == "finished"
    assert 60 < short["true_calls"] <= 120 and code_of_run(short) == 4
    assert len(load_trajectory(tmp_path / "a.npz").pos)  # it is written all the same
    sample(tmp_path / "whole.npz", **settings)
    again = sample(tmp_path / "a.npz", resume=True, max_true_calls=200, **settings)
    assert short["true_calls"] < again["true_calls"] <= 200
    last = sample(tmp_path / "a.npz", resume=True, **settings)
    assert last["aim"]["reached"] and code_of_run(last) == 0
    same_run(tmp_path / "a.npz", tmp_path / "whole.npz")
    assert not (tmp_path / "a.npz.parts").exists()


def test_half_batches_in_flight_are_at_rest_where_a_run_may_end(sample, tmp_path, monkeypatch):
    """Exchanges of rungs draw random numbers as answers come in, so that a rest changes what follows."""
    monkeypatch.setattr(production, "n_halves", lambda run: 2)
    settings = {"effective_samples": 60, **TEMPERED}
    for most in (120, 160, 20_000):
        sample(tmp_path / "a.npz", resume=most > 120, max_true_calls=most, **settings)
    sample(tmp_path / "whole.npz", **settings)
    same_run(tmp_path / "a.npz", tmp_path / "whole.npz")
    ends = {key: load_trajectory(tmp_path / "a.npz").metadata["aim"][key] for key in ("reached", "wanted")}
    assert ends == {"reached": True, "wanted": {"effective_samples": 60}}


def test_a_larger_aim_goes_on_from_the_smaller_one(sample, tmp_path):
    small = sample(tmp_path / "a.npz", effective_samples=30)
    large = sample(tmp_path / "a.npz", effective_samples=90, resume=True)
    assert small["aim"]["reached"] and large["aim"]["reached"] and large["true_calls"] > small["true_calls"]
    sample(tmp_path / "whole.npz", effective_samples=90)
    same_run(tmp_path / "a.npz", tmp_path / "whole.npz")


@pytest.mark.parametrize("stop_after", [8, 30])
def test_a_run_with_an_aim_that_was_cut_is_bit_equal(sample, tmp_path, stop_after):
    sample(tmp_path / "whole.npz", effective_samples=60)
    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path / "cut.npz", effective_samples=60, stop_after=stop_after)
    assert not (tmp_path / "cut.npz").exists()
    sample(tmp_path / "cut.npz", effective_samples=60, resume=True)
    same_run(tmp_path / "cut.npz", tmp_path / "whole.npz")


def test_a_finished_run_that_is_cut_while_it_goes_on_is_still_there(sample, tmp_path):
    sample(tmp_path / "a.npz", effective_samples=60, max_true_calls=120)
    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path / "a.npz", effective_samples=60, resume=True, stop_after=2)
    assert load_trajectory(tmp_path / "a.npz").metadata["true_calls"] <= 120
    sample(tmp_path / "a.npz", effective_samples=60, resume=True)
    sample(tmp_path / "whole.npz", effective_samples=60)
    same_run(tmp_path / "a.npz", tmp_path / "whole.npz")


def test_the_same_aim_again_is_finished_already(sample, tmp_path, caplog):
    short = sample(tmp_path / "a.npz", effective_samples=60, max_true_calls=120)
    before = (tmp_path / "a.npz").read_bytes()
    with caplog.at_level("INFO", logger="kstep"):
        again = sample(tmp_path / "a.npz", effective_samples=60, max_true_calls=120, resume=True)
    assert "is finished already" in caplog.text and code_of_run(again) == 4 == code_of_run(short)
    assert (tmp_path / "a.npz").read_bytes() == before


@pytest.mark.parametrize("first, begins_anew", [(40, False), (50, False), (15, True)])
def test_a_fixed_length_can_grow(sample, tmp_path, first, begins_anew, caplog):
    """Restart files every 20 macro-steps, burn-in included: what is after the last one is made again."""
    settings = {"burn_in_steps": 0, "checkpoint_interval": 20, **TEMPERED}
    metadata = sample(tmp_path / "a.npz", steps=first, **settings)
    assert "aim" not in metadata and code_of_run(metadata) == 0
    sample(tmp_path / "a.npz", steps=90, resume=True, **settings)
    sample(tmp_path / "whole.npz", steps=90, **settings)
    same_run(tmp_path / "a.npz", tmp_path / "whole.npz")
    assert ("begins anew" in caplog.text) == begins_anew


@pytest.mark.parametrize("first", [15, 50])
def test_a_finished_run_does_not_become_shorter(sample, tmp_path, first):
    """With its last restart file before, behind or without what is asked for: 15 macro-steps have none."""
    settings = {"burn_in_steps": 0, "checkpoint_interval": 20, **TEMPERED}
    sample(tmp_path / "a.npz", steps=first, **settings)
    before = (tmp_path / "a.npz").read_bytes()
    for fewer in (5, first - 1):
        for resume in (False, True):
            with pytest.raises(UserError, match=f"finished already, with {first} macro-steps.*ask for more --steps"):
                sample(tmp_path / "a.npz", steps=fewer, resume=resume, **settings)
    assert (tmp_path / "a.npz").read_bytes() == before and not (tmp_path / "a.npz.parts").exists()


def test_neither_does_one_that_had_an_aim(sample, tmp_path):
    sample(tmp_path / "a.npz", effective_samples=60, max_true_calls=120)
    before = (tmp_path / "a.npz").read_bytes()
    with pytest.raises(UserError, match="ask for more --steps"):
        sample(tmp_path / "a.npz", steps=3, resume=True)
    assert (tmp_path / "a.npz").read_bytes() == before and not (tmp_path / "a.npz.parts").exists()


def test_a_fixed_length_that_an_aim_ends_sooner_is_kept(sample, tmp_path):
    settings = {"checkpoint_interval": 20, "burn_in_steps": 0}
    sample(tmp_path / "a.npz", steps=59, **settings)
    before = (tmp_path / "a.npz").read_bytes()
    sample(tmp_path / "a.npz", effective_samples=1, max_true_calls=200, resume=True, **settings)
    assert len(load_trajectory(tmp_path / "a.npz").pos) < 4 * 59
    assert (tmp_path / "a.npz.backup-1").read_bytes() == before


def test_hours_are_a_budget_too(sample, tmp_path):
    metadata = sample(tmp_path / "a.npz", effective_samples=10**6, max_hours=1.0 / 3600)
    assert not metadata["aim"]["reached"] and metadata["aim"]["why"].endswith("hours") and metadata["wall_s"] < 10


# the command line

@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A network of water that has seen few geometries."""
    folder = tmp_path_factory.mktemp("aim")
    small = dict(bootstrap_labels_per_atom=10, learn_moves=2, learn_move_fs=20, learn_replicas=6, fit_passes=60,
                 search_steps=1, verify_proposals=6, max_true_calls=70)
    return kstep.learn("O", "qm_fast", out=folder / "w.npz", name="water", workers=1, device="cpu", **small)


def test_the_command_ends_with_code_4_short_of_its_aim(network, tmp_path):
    flags = ["--smiles", "O", "--qm-config", "configs/qm_fast.yaml", "--checkpoint", network, "--replicas", 4,
             "--scheme", "metropolis", "--tempering", 300, 450, "--k-steps", 20, "--dt-fs", 0.5, "--burn-in-steps", 2,
             "--num-workers", 1, "--name", "water", "--device", "cpu", "--set", "inner=numpy"]

    def command(out, *more):
        done = run_program("src/06b_hybrid_integrate_qm.py", *flags, "--out", tmp_path / out, *more)
        return done.returncode, done.stderr.strip().splitlines()[-1]

    code, last = command("a.npz", "--effective-samples", 50, "--max-true-calls", 60)
    assert code == 4 and "short of its aim: " in last and "within 60 true calls" in last, last
    assert "--resume with a larger --max-true-calls goes on" in last
    short = kstep.load(tmp_path / "a.npz")
    assert short.converged is False and short.aim["why"] in str(short) and short.true_calls <= 60
    code, last = command("a.npz", "--effective-samples", 1, "--max-true-calls", 20_000, "--resume")
    reached = kstep.load(tmp_path / "a.npz")
    assert code == 0 and "aim reached: " in last and reached.converged is True
    first = slice(0, len(short.trajectory.pos))
    assert np.array_equal(reached.trajectory.pos[first], short.trajectory.pos)
