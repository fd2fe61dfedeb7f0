"""Self-learning: from a SMILES to a frozen network, every true call a label and none of them a sample."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import erfc

from conftest import run_program
from kstep.dihedrals import dihedrals_deg, wrap_deg
from kstep.errors import UserError
from kstep.files import Claim
from kstep.forces import physics_spec
from kstep.forces.local_pool import EvaluationPool
from kstep.forces.openmm import MDConfig
from kstep.forces.pool import Truth
from kstep.learning import learner as module, progress as progress_module
from kstep.learning.earlier import Earlier, warn_beyond
from kstep.learning.ending import LENGTHS
from kstep.learning.explorer import LabelSeeker
from kstep.learning.learn_config import LearnConfig
from kstep.learning.learner import learn
from kstep.learning.target import Target
from kstep.learning.turned_torsions import turn
from kstep.models import checkpoint as checkpoints
from kstep.models.model_config import ModelConfig
from kstep.molecules.molecule import Molecule
from kstep.molecules.prepare import prepare_molecule
from kstep.runs.coverage import TorsionWatch
from kstep.schemas import load_trajectory
from kstep.schemes import PREFERRED
from kstep.schemes.state import State
from kstep.topology import find_angles, find_rotatable_torsions
from kstep.training.labels import Labels

SMALL = ModelConfig(arch="pair_mlp", pair_hidden=[24, 24])
QUICK = dict(learn_replicas=6, bootstrap_labels_per_atom=10.0, learn_moves=2, learn_move_fs=20.0, inner_dt_fs=1.0,
             fit_passes=120, fit_lr=0.02, fit_cost_calls=0.0, samples_wanted=20, search_steps=3, verify_proposals=36)


@pytest.fixture(scope="module")
def water():
    import openmm

    prepared = prepare_molecule("water", "O")
    return prepared.molecule, physics_spec(prepared.molecule, MDConfig(platform="Reference"),
                                           system_xml=openmm.XmlSerializer.serialize(prepared.system))


def target(water, **more):
    molecule, spec = water
    return Target(**{**dict(molecule=molecule, spec=spec, method="mmff94", temperatures_K=(300.0,)),
                     **more})


def learn_it(water, folder, config=None, *, seed=1, resume=False, **more):
    return learn(target(water, **more), SMALL, LearnConfig(**QUICK) if config is None else config, folder=folder,
                 seed=seed, resume=resume)


def rows(folder):
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def learned(water, tmp_path_factory):
    folder = tmp_path_factory.mktemp("learn")
    return learn_it(water, folder), folder


def test_it_stops_by_itself_once_fresh_states_of_all_rungs_show_no_hole(learned):
    path, folder = learned
    *before, last = rows(folder)
    assert last["what"] == "verify" and not any(last["holes"]) and all(r["what"] == "round" for r in before)
    assert all(r["ladder_K"] == [300.0, 600.0] and len(r["spread_kT"]) == 2 for r in rows(folder))
    checkpoint = checkpoints.load(path)
    assert checkpoint["ladder_K"] == [300.0, 600.0] and checkpoint["d_spread_kT"] == last["spread_kT"][0] < 0.3
    assert checkpoint["acceptance_expected"] == pytest.approx(erfc(0.5 * last["spread_kT"][0]))
    # a start and three timesteps of true dynamics for each of six chains, and all that was verified
    assert checkpoint["holes"] == {"searched": 6 * 4 + 36, "found": 0}


def test_every_true_call_is_a_label_and_is_paid_for(learned, water):
    path, folder = learned
    labels, metadata = Labels.load(folder / "labels.npz")
    last, checkpoint = rows(folder)[-1], checkpoints.load(path)
    assert len(labels) + last["failed_true_calls"] == last["true_calls_training"] == metadata["true_calls"]
    assert checkpoint["true_calls_training"] == last["true_calls_training"]
    assert checkpoint["cpu_s_training"] >= last["cpu_s_training"] > 0
    with EvaluationPool(water[1]) as pool:  # the labels are the truth at their positions, in their own row
        truth = pool.evaluate(labels.positions)
    assert np.allclose(truth.energy, labels.energies) and np.allclose(truth.forces, labels.forces)
    assert set(labels.temperature_K) == {450.0, 300.0, 600.0}
    # one start is all that water has; beside it nothing is asked twice, also where a chain stayed
    assert len(np.unique(labels.energies)) >= len(labels) - 2 * 6 + 1


def test_chains_leave_the_one_start_before_a_network_is_fitted(water, tmp_path):
    """Of two atoms, or with many chains, the starts alone are as many labels as the bootstrap asks for."""
    config = LearnConfig(**{**QUICK, "bootstrap_labels_per_atom": 1.0, "learn_replicas": 12, "round_passes": 5,
                            "fit_passes": 10, "max_true_calls": 12})
    learn_it(water, tmp_path, config)
    labels, _ = Labels.load(tmp_path / "labels.npz")
    assert set(labels.temperature_K[:24]) == {450.0} and labels.energies[12:24].std() > 0.1  # before the first fit


def test_fits_begin_afresh_and_cost_no_more_than_labels_do(water, tmp_path, monkeypatch):
    """Each is made of all labels, of which a round adds a share: all fits of rounds together are a few last ones."""
    fits, original = [], Target.fit

    def watch(self, labels, model, config, **how):
        fits.append((len(labels), how))
        return original(self, labels, model, config, **how)

    monkeypatch.setattr(Target, "fit", watch)
    config = LearnConfig(**{**QUICK, "samples_wanted": 10**6, "max_true_calls": 200, "round_passes": 5,
                            "fit_passes": 10})
    learn_it(water, tmp_path, config)
    assert all("start" not in how for _, how in fits)
    *of_rounds, last = [n for n, _ in fits]
    assert len(of_rounds) > 4 and sum(of_rounds) < (1 + 1 / config.round_growth) * last


def test_what_a_true_call_is_said_to_cost_is_reckoned_with(water, tmp_path, monkeypatch):
    """Where it is dear the last fit is longer, and moves of the network cost nothing beside it."""
    fits, samplings, original, rule = [], [], Target.fit, module.more_labels_pay

    def watch(self, labels, model, config, **how):
        fits.append(how["passes"])
        return original(self, labels, model, config, **how)

    def overhear(rounds, n_labels, *, sampling, **how):
        samplings.append(sampling)
        return rule(rounds, n_labels, sampling=sampling, **how)

    monkeypatch.setattr(Target, "fit", watch)
    monkeypatch.setattr(module, "more_labels_pay", overhear)
    config = LearnConfig(**{**QUICK, "fit_cost_calls": None, "round_passes": 5, "fit_passes": 10})
    lasts = {}
    for call_cost_s in (1e-6, 60.0):
        fits.clear()
        learn_it(water, tmp_path / f"{call_cost_s:g}", config, call_cost_s=call_cost_s)
        assert set(fits[:3]) == {5.0}
        lasts[call_cost_s] = fits[3], samplings[-1]
    (quick, cheap), (slow, dear) = lasts[1e-6], lasts[60.0]
    assert quick == 10.0 and slow == 10.0 * LENGTHS[-1] and dear.moves < 1e-3 < 1.0 < cheap.moves
    assert dear.samples == QUICK["samples_wanted"] and dear(0.5) < cheap(0.5)


def test_a_cut_run_goes_on_to_the_same_network(water, tmp_path, monkeypatch, learned):
    fits, original = [], Target.fit

    def cut(*args, **kwargs):
        fits.append(1)
        if len(fits) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(Target, "fit", cut)
    with pytest.raises(KeyboardInterrupt):
        learn_it(water, tmp_path)
    monkeypatch.setattr(Target, "fit", original)
    resumed = checkpoints.load(learn_it(water, tmp_path, resume=True))
    whole = checkpoints.load(learned[0])
    assert all(np.array_equal(resumed["state_dict"][k], v) for k, v in whole["state_dict"].items())
    assert resumed["true_calls_training"] == whole["true_calls_training"]
    again = learn_it(water, tmp_path, resume=True)  # finished: nothing is done again
    assert checkpoints.load(again)["cpu_s_training"] == resumed["cpu_s_training"]
    with pytest.raises(UserError, match="other settings"):
        learn_it(water, tmp_path, seed=2, resume=True)


def test_a_learning_cut_within_a_round_asks_for_no_label_twice(water, tmp_path, monkeypatch, learned):
    asked, cuts, original = [], [3, 9, 14], EvaluationPool.submit  # in the bootstrap, and in rounds

    def counted(self, positions, *args, **kwargs):
        if cuts and len(asked) == cuts[0]:
            del cuts[0]
            raise KeyboardInterrupt
        asked.append(len(positions))
        return original(self, positions, *args, **kwargs)

    monkeypatch.setattr(EvaluationPool, "submit", counted)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            learn_it(water, tmp_path, resume=True)
    resumed, whole = checkpoints.load(learn_it(water, tmp_path, resume=True)), checkpoints.load(learned[0])
    assert all(np.array_equal(resumed["state_dict"][k], v) for k, v in whole["state_dict"].items())
    assert sum(asked) == resumed["true_calls_training"] == whole["true_calls_training"]
    assert not cuts and not list(tmp_path.glob("calls_*"))


@pytest.mark.parametrize("name", ["write_restart", "save"])
def test_a_kill_between_its_files_counts_no_round_twice(water, tmp_path, monkeypatch, learned, name):
    """After the row on round 2 was written: before labels.npz is, or after it and before the restart file."""
    at, calls = {"write_restart": (progress_module, 3), "save": (Labels, 3)}[name], []
    original = getattr(at[0], name)

    def cut(*args, **kwargs):
        calls.append(1)
        if len(calls) == at[1]:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(at[0], name, cut)
    with pytest.raises(KeyboardInterrupt):
        learn_it(water, tmp_path)
    monkeypatch.setattr(at[0], name, original)
    assert [row["round"] for row in rows(tmp_path)] == [1, 2]
    with pytest.raises(UserError, match="has not finished; --resume goes on"):
        learn_it(water, tmp_path)
    with Claim(tmp_path, tmp_path), pytest.raises(UserError, match="another run is writing"):
        learn_it(water, tmp_path, resume=True)
    resumed, whole = checkpoints.load(learn_it(water, tmp_path, resume=True)), checkpoints.load(learned[0])
    assert all(np.array_equal(resumed["state_dict"][k], v) for k, v in whole["state_dict"].items())
    assert [(r["what"], r["round"], r["labels"]) for r in rows(tmp_path)] == [
        (r["what"], r["round"], r["labels"]) for r in rows(learned[1])]
    labels, _ = Labels.load(tmp_path / "labels.npz")
    assert labels.sha256() == Labels.load(learned[1] / "labels.npz")[0].sha256()


def test_a_finished_learning_is_the_result_of_the_same_command(water, learned, monkeypatch):
    path, folder = learned
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    monkeypatch.setattr(Target, "fit", None)
    assert learn_it(water, folder) == path
    molecule, spec = water
    charged = replace(spec, settings={**spec.settings, "charge": 1})
    heavy = replace(spec, masses=2 * molecule.masses)
    for more, words in (({"seed": 2}, "seed was 1 and is 2"), ({"spec": charged}, "charge was not there and is 1"),
                        ({"spec": heavy}, "physics.masses.0 was 15.999 and is 31.998")):
        for resume in (False, True):
            with pytest.raises(UserError, match=words):
                learn_it(water, folder, resume=resume, **more)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_budget_ends_it_with_a_warning(water, tmp_path, caplog):
    config = LearnConfig(**{**QUICK, "samples_wanted": 10**9, "max_true_calls": 60})
    with caplog.at_level("WARNING", logger="kstep"):
        learn_it(water, tmp_path, config)
    assert 60 < rows(tmp_path)[-1]["true_calls_training"] <= 60 + 6 * 4 + 6 * 4 + 36  # round, search, confirmation
    assert any("raise max_true_calls to learn on" in r.message for r in caplog.records)


def test_a_ladder_is_learned_at_all_its_temperatures(water, tmp_path):
    learn_it(water, tmp_path, LearnConfig(**{**QUICK, "learn_replicas": 5}), temperatures_K=(300.0, 500.0))
    labels, _ = Labels.load(tmp_path / "labels.npz")
    assert set(labels.temperature_K) >= {300.0, 500.0} and rows(tmp_path)[0]["ladder_K"] == [300.0, 500.0]


def test_a_false_wall_is_found_by_true_dynamics_and_learned_away(water, tmp_path, monkeypatch):
    """The network forbids what it never saw: its own chains keep away, and only the truth leads there."""
    fits, original = [], module._Learner._fit

    class Walled:
        def __init__(self, network):
            self.network = network

        def __getattr__(self, name):
            return getattr(self.network, name)

        def energy_and_forces(self, x):
            energy, forces = self.network.energy_and_forces(x)
            return energy + 1e3 * (np.linalg.norm(x[:, 1] - x[:, 0], axis=-1) > 0.099), forces

    def planted(self, passes):
        original(self, passes)
        fits.append((len(self.explorer.labels), self.progress.found))
        if not self.progress.found:
            self.explorer.network = Walled(self.explorer.network)

    monkeypatch.setattr(module._Learner, "_fit", planted)
    path = learn_it(water, tmp_path, LearnConfig(**{**QUICK, "search_steps": 6, "round_passes": 30, "fit_passes": 60}))
    found = [n for _, n in fits]
    assert found[0] == 0 and found[-1] > 0  # seen, and a network made after it
    first = found.index(found[-1])
    assert fits[first][0] >= fits[first - 1][0] + 6 * 7  # what showed the wall was learned
    assert [r["what"] for r in rows(tmp_path)] == ["round"] * (len(fits) - 1) + ["verify"]
    assert checkpoints.load(path)["holes"] == {"searched": 2 * 6 * 7 + 36, "found": 0}


def test_holes_that_the_last_fit_has_are_learned_and_say_nothing_of_its_spread(water, tmp_path, monkeypatch):
    """A chain in a hole is far off: as the spread of what a last fit leaves it would never let learning end."""
    original, verified, fit, passes = LabelSeeker.explore, [], module._Learner._fit, []

    def heard(self, n):
        passes.append(n)
        fit(self, n)

    def holed(self, state, n_questions, **how):
        state, seen = original(self, state, n_questions, **how)
        if "longer" in how and not verified:
            verified.append(seen)
            seen = replace(seen, holes=[5, 0], spread_kT=[1e3, 0.1])
        return state, seen

    monkeypatch.setattr(LabelSeeker, "explore", holed)
    monkeypatch.setattr(module._Learner, "_fit", heard)
    path = learn_it(water, tmp_path, LearnConfig(**{**QUICK, "round_passes": 50}))
    what = [row["what"] for row in rows(tmp_path)]
    assert what == ["round"] * what.index("verify") + ["verify", "round", "verify"]
    before, after = rows(tmp_path)[-3:-1]
    assert after["labels"] < 1.2 * before["labels"]  # for these holes few labels more, and no round as before
    lasts = [n for n in passes if n > QUICK["fit_passes"] / 2]
    assert lasts == [QUICK["fit_passes"] * LENGTHS[-1], QUICK["fit_passes"] * LENGTHS[-1] / 2]  # a longer fit has more
    assert checkpoints.load(path)["holes"]["found"] == 0 and checkpoints.load(path)["d_spread_kT"] < 1.0


def test_an_earlier_learning_is_gone_on_with(learned, water, tmp_path, caplog):
    """Its labels are reused and paid for where the method is the same; else its network leads to the first ones."""
    labels, metadata = Labels.load(learned[1] / "labels.npz")
    earlier = Earlier(learned[0], learned[1] / "labels.npz")
    path = learn(target(water, temperatures_K=(400.0,)), SMALL, LearnConfig(**QUICK), folder=tmp_path / "same", seed=1,
                 earlier=earlier)
    own, _ = Labels.load(tmp_path / "same/labels.npz")
    assert np.array_equal(own.energies[:len(labels)], labels.energies)
    assert checkpoints.load(path)["true_calls_training"] == metadata["true_calls"] + len(own) - len(labels)
    assert checkpoints.load(path)["ladder_K"][0] == 400.0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    learn(target(water, method="another"), SMALL, LearnConfig(**QUICK), folder=tmp_path / "other", seed=1,
          earlier=earlier)
    other, _ = Labels.load(tmp_path / "other/labels.npz")
    assert not np.isin(labels.energies[6:30], other.energies).any()
    assert set(other.temperature_K[6:30]) == {300.0, 600.0}  # rungs of the network, no hot dynamics
    said = " ".join(record.message for record in caplog.records)
    assert "they are left aside" in said and "leads the way" in said


def test_a_temperature_that_was_not_learned_is_said_aloud(learned, caplog):
    warn_beyond(learned[0], (300.0, 598.0))
    assert not caplog.records
    warn_beyond(learned[0], (300.0, 700.0))
    assert "from 300 to 600 K, and this run is at 700 K" in caplog.records[0].message


def test_rotamers_never_visited_are_named():
    numbers, bonds = np.array([6, 8, 8, 6]), np.array([[0, 1], [1, 2], [2, 3]])
    # a peroxide without hydrogens: one torsion, which no methyl hides

    def at(angle_deg):
        a = np.radians(angle_deg)
        return np.array([[0.1, 0.1, 0], [0, 0, 0], [0, 0, 0.15], [0.1 * np.cos(a - np.pi / 4) * 1.4,
                                                                 0.1 * np.sin(np.pi / 4 - a) * 1.4, 0.15]])

    conformers = np.array([at(180.0), at(60.0), at(-60.0), at(64.0)])
    chain = Molecule("chain", "COOC", numbers, np.ones(4), bonds, np.ones(3), conformers, np.zeros(4))
    watch = TorsionWatch(chain)
    assert [len(r) for r in watch.rotamers] == [3]
    watch.see(np.array([at(175.0), at(-150.5)]))
    assert [round(abs(u["angle_deg"])) for u in watch.unvisited()] == [60, 60]
    resumed = TorsionWatch(chain, seen=json.loads(json.dumps(watch.seen)))
    resumed.see(at(-35.0)[None])
    assert len(resumed.unvisited()) == 1 and resumed.unvisited()[0]["atoms"] == [0, 1, 2, 3]
    assert not len(TorsionWatch(replace(chain, region=np.array([0, 1, 2]))).torsions)  # of a QM region alone


CONFIG = "\n".join(f"{key}: {value}" for key, value in QUICK.items()) + "\n"


@pytest.fixture(scope="module")
def from_smiles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smiles")
    (folder / "learn.yaml").write_text(CONFIG)
    (folder / "model.yaml").write_text("arch: pair_mlp\npair_hidden: [24, 24]\n")
    flags = ("--smiles", "O", "--learn", "--learn-config", folder / "learn.yaml",
             "--model-config", folder / "model.yaml", "--md-config", "configs/md_fast.yaml", "--out",
             folder / "water.npz", "--steps", 30, "--burn-in-steps", 3, "--replicas", 8, "--set", "shortest_mean_fs=20")
    finished = run_program("src/06_hybrid_integrate.py", *flags)
    assert finished.returncode == 0, finished.stderr[-2000:]
    return folder, flags, load_trajectory(folder / "water.npz")


def test_one_command_leads_from_a_smiles_to_samples(from_smiles):
    _, _, trajectory = from_smiles
    metadata = trajectory.metadata
    assert metadata["molecule"] == "water" and metadata["scheme"] == PREFERRED[0].name and metadata["acceptance"] > 0.5
    assert abs(metadata["mean_exp_minus_beta_dH"] - 1.0) < 4 * metadata["mean_exp_minus_beta_dH_error"] + 0.02
    tuning = metadata["tuning"]
    assert metadata["k_steps"] == tuning["k_steps"] and metadata["dt_fs"] == tuning["dt_fs"]
    assert metadata["config"]["hydrogen_mass_Da"] == 4.0
    assert trajectory.masses_sampler.tolist() == pytest.approx([15.999, 4.0, 4.0], abs=1e-3)
    assert trajectory.masses.tolist() == pytest.approx([15.999, 1.008, 1.008], abs=1e-3)


def test_adaptation_is_never_counted_as_samples(from_smiles):
    """Nothing of the learning is in the file, its burn-in is marked, and production's network is the frozen one."""
    folder, _, trajectory = from_smiles
    metadata = trajectory.metadata
    production = trajectory.frames_of("train")
    assert len(production) == 30 * 8 and len(trajectory.frames_of("equil")) == 3 * 8
    tuned_calls = 2 * 8  # costs were measured on the start geometries
    most = 8 * (1 + 33) + tuned_calls  # nothing is asked where no move of the network was accepted
    assert most - 16 <= metadata["true_calls"] <= most
    assert metadata["true_calls_training"] == rows(folder / "water.npz.learn")[-1]["true_calls_training"]
    assert metadata["cpu_s_training"] > 0
    assert len(np.unique(trajectory.inner_steps[production])) > 5  # random lengths


def test_the_evaluation_passes_over_what_was_learned(from_smiles):
    from kstep.analysis.evaluate import find_trajectories

    folder, _, _ = from_smiles
    problems = []
    assert list(find_trajectories(folder, problems)) == [folder / "water.npz"] and not problems


def test_resume_after_learning_learns_nothing_new(from_smiles):
    folder, flags, _ = from_smiles
    before = (folder / "water.npz.learn/rounds.jsonl").read_text()
    finished = run_program("src/06_hybrid_integrate.py", *flags, "--resume")
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert (folder / "water.npz.learn/rounds.jsonl").read_text() == before


@pytest.mark.parametrize("flags, words", [
    (("--smiles", "CCO"), "needs a network"),
    (("--learn",), "either --molecule"),
    (("--smiles", "CCO", "--molecule", "data/raw/ethanol", "--learn"), "either --molecule"),
    (("--smiles", "C(C", "--learn"), "C(C"),
    (("--smiles", "O", "--learn", "--checkpoint", "x.pt"), "x.pt does not exist"),
    (("--smiles", "O", "--learn", "--labels", "x.npz"), "x.npz does not exist"),
    (("--smiles", "O", "--learn", "--scheme", "jump"), "for nested or metropolis, not for jump"),
    (("--smiles", "O", "--learn", "--model-config", "configs/model.yaml"), "leave --model-config out"),
    (("--smiles", "O", "--learn", "--tempering", "300", "200"), "must rise"),
    (("--smiles", "O", "--learn", "--scheme", "metropolis", "--moves", "3"), "belongs to nested"),
    (("--smiles", "O", "--learn", "--tempering", "300", "400", "--replicas", "5"), "multiple of 2"),
    (("--smiles", "O", "--learn", "--hydrogen-mass", "-1"), "number > 0"),
    (("--smiles", "O", "--learn", "--learn-config", "nowhere.yaml"), "does not exist"),
])
def test_bad_input_is_one_sentence(tmp_path, flags, words):
    finished = run_program("src/06b_hybrid_integrate_qm.py", *flags, "--out", tmp_path / "x.npz")
    assert finished.returncode == 2, finished.stderr[-1500:]
    assert words in finished.stderr and "Traceback" not in finished.stderr
    assert not (tmp_path / "x.npz").exists()


@pytest.fixture(scope="module")
def peroxide():
    import openmm

    prepared = prepare_molecule("peroxide", "OO")
    return prepared.molecule, physics_spec(prepared.molecule, MDConfig(platform="Reference"),
                                           system_xml=openmm.XmlSerializer.serialize(prepared.system))


@pytest.mark.parametrize("temperatures_K", [(300.0,), (300.0, 500.0)])
def test_a_ladder_is_learned_from_turned_conformers_too(peroxide, tmp_path, monkeypatch, temperatures_K):
    """What lies behind a barrier is a wall to a network that was never shown it, at every rung."""
    def cut(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Target, "fit", cut)
    with pytest.raises(KeyboardInterrupt):
        learn_it(peroxide, tmp_path, temperatures_K=temperatures_K)
    labels, metadata = Labels.load(tmp_path / "labels.npz")
    molecule = peroxide[0]
    torsion = find_rotatable_torsions(molecule.numbers, molecule.bonds)
    starts, then = (dihedrals_deg(labels.positions[rows], torsion)[:, 0] for rows in (slice(0, 6), slice(6, 9)))
    assert metadata["true_calls"] == len(labels)
    assert np.allclose(sorted(np.abs(wrap_deg(then - starts[1::2]))), [90, 90, 180], atol=1e-3)  # every second chain


@pytest.mark.parametrize("wall_kJ", [0.0, 100.0])
def test_a_wall_behind_a_barrier_is_found_at_rotamers(peroxide, wall_kJ):
    """Neither starts nor 5 fs of dynamics from them come to the other side of a torsion, nor the network's chains."""
    molecule, spec = peroxide
    torsion = find_rotatable_torsions(molecule.numbers, molecule.bonds)
    config = LearnConfig(**{**QUICK, "learn_replicas": 40})
    explorer = LabelSeeker(target(peroxide, temperatures_K=(300.0, 500.0)), config, 1, 1)
    start = dihedrals_deg(molecule.conformers, torsion)[:, 0]
    with EvaluationPool(spec, 1) as truth:
        class Walled:
            def energy_and_forces(self, x):
                away = np.abs(wrap_deg(dihedrals_deg(x, torsion)[:, :1] - start)).min(axis=1) > 60.0
                found = truth.evaluate(x)
                return found.energy + wall_kJ * away, found.forces

        explorer.pool, explorer.network = truth, Walled()
        x, energy = explorer.searched()
        assert truth.true_calls == explorer.search_calls == 40 * 5
        assert len(x) == len(energy) <= 200 and len(explorer.labels) == 200
        assert (explorer.holes_among(x, energy) > 5) == (wall_kJ > 0.0)


def test_a_turn_moves_one_torsion_and_nothing_else():
    molecule = prepare_molecule("methoxyethanol", "COCCO").molecule
    torsions = find_rotatable_torsions(molecule.numbers, molecule.bonds)
    start = molecule.conformers[0]
    new = turn(start, molecule.bonds, torsions[1], 70.0)
    change = wrap_deg(dihedrals_deg(new[None], torsions) - dihedrals_deg(start[None], torsions))[0]
    assert np.allclose(change, np.where(np.arange(len(torsions)) == 1, 70.0, 0.0), atol=1e-6)
    angles = find_angles(len(molecule), molecule.bonds)
    for i, j in (molecule.bonds.T, angles[:, [0, 2]].T):  # lengths, and with the 1-3 distances all angles
        assert np.allclose(*(np.linalg.norm(x[i] - x[j], axis=-1) for x in (start, new)))


def test_a_clash_starts_no_chain(peroxide, tmp_path):
    explorer = LabelSeeker(target(peroxide, temperatures_K=(300.0, 500.0)), LearnConfig(**QUICK), 1, 1)
    x = np.repeat(peroxide[0].conformers[:1], 6, axis=0)
    state = State(x, np.zeros_like(x), np.zeros(6), np.zeros_like(x))
    answer = Truth(np.array([20.0, 1e4, np.nan]), np.ones((3, 4, 3)), np.array([False, False, True]))

    class Pool:
        def evaluate(self, positions, rows=None):
            assert list(rows) == [1, 3, 5]
            return answer

    explorer.pool = Pool()
    new = explorer.turn_over(state)
    assert [r for r in range(6) if not np.array_equal(new.positions[r], x[r])] == [1]
    assert list(new.energy) == [0.0, 20.0, 0.0, 0.0, 0.0, 0.0] and new.forces[1].all() and not new.forces[3].any()
    assert len(explorer.labels) == 2  # the clash says where a wall is


def test_a_failed_call_of_hot_dynamics_stops_no_learning(water):
    """Its chain stays where it was, without a label, and goes on from there; the others never hear of it."""
    seen = {}
    with EvaluationPool(water[1]) as truth:
        for failing in (None, 2):
            explorer = LabelSeeker(target(water), LearnConfig(**QUICK), 1, 1)
            asked = []

            class Pool:
                def submit(self, positions, rows, asked=asked):
                    asked.append(positions)
                    return positions

                def collect(self, positions, asked=asked, failing=failing):
                    found = truth.evaluate(positions)
                    fails = (np.arange(6) == failing) & (len(asked) == 3)
                    return Truth(np.where(fails, np.nan, found.energy),
                                 np.where(fails[:, None, None], np.nan, found.forces), fails,
                                 tuple("no SCF" if f else "" for f in fails))

            explorer.pool = Pool()
            x = np.repeat(water[0].conformers[:1], 6, axis=0)
            found = truth.evaluate(x)
            explorer.true_dynamics(State(x, np.zeros_like(x), found.energy, found.forces), 5)
            seen[failing] = np.array(asked), len(explorer.labels)
    (all_went, n_all), (one_stayed, n_without) = seen[None], seen[2]
    assert n_all == 30 and n_without == 29
    others = np.arange(6) != 2
    assert np.array_equal(all_went[:, others], one_stayed[:, others])
    after, before = one_stayed[3, 2], one_stayed[1, 2]
    assert np.isfinite(one_stayed).all() and 0 < np.abs(after - before).max() < 0.002 < np.abs(
        one_stayed[2, 2] - before).max()
