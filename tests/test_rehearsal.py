"""A run whose weights say little: what it asked is learned, and production begins anew with a better network."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from kstep import importance
from kstep.learning.learn_config import LearnConfig
from kstep.learning.relearning import Relearner
from kstep.learning.target import Target
from kstep.models import checkpoint as checkpoints
from kstep.models.model_config import ModelConfig
from kstep.restraints import Restraint
from kstep.runs import production, rehearsal
from kstep.runs.rehearsal import Rehearsal
from kstep.runs.run_hybrid import run_hybrid
from kstep.runs.settings import HybridRun
from kstep.schemas import load_trajectory
from kstep.schemes.hybrid_config import HybridConfig
from kstep.training.label_fit import fit
from kstep.training.labels import Labels
from test_impulse_checked import water_spec  # noqa: F401

RNG = np.random.default_rng
FITTED = LearnConfig(fit_passes=60)
MOST_LABELS = 900  # two networks learn what the run asked, and then there is no room for another
FACTS = {"method": "mmff94", "dt_fs": 0.5, "seed": 0}


@pytest.fixture(scope="module")
def network(water, water_spec, tmp_path_factory):  # noqa: F811
    """A folder with a network that was fitted to geometries far narrower than thermal ones, and its labels."""
    folder, true = tmp_path_factory.mktemp("rehearsal"), water_spec.build()
    x = water.conformers[0] + 0.002 * RNG(7).standard_normal((40, 3, 3))
    energy, forces = zip(*map(true.energy_and_forces, x))
    labels = Labels(x, np.array(energy), np.array(forces), 300.0)
    labels.save(folder / "labels.npz", water, method="mmff94", true_calls=40, dt_fs=0.5)
    model = ModelConfig(arch="pair_mlp", pair_hidden=[32], heads={"energy": True, "jump": False})
    fitted = fit(model, water, labels, FITTED, true_calls=40, temperature_K=300.0, passes=60, **FACTS)
    checkpoints.save(folder / "network.pt", {**fitted.checkpoint, "cpu_s_training": 12.0})
    return folder


def run_it(network, water, spec, out, *, share=0.97, samples=400, resume=False, cut_at=None, seed=5,
           calls=6000):
    target = Target(molecule=water, spec=spec, method="mmff94", temperatures_K=(300.0,))
    learn = Relearner(network / "network.pt", target, FITTED, dt_fs=0.5, seed=0, earlier=network / "labels.npz",
                      fresh=True)
    hybrid = HybridConfig(scheme="nested", tune=False, moves=2, k_steps=20, dt_fs=0.5, network_ladder_K=[300.0, 400.0],
                          effective_samples=samples, max_true_calls=calls, burn_in_steps=8, replicas=20,
                          temperature_K=300.0, checkpoint_interval=5, inner="numpy", judge="weights")
    steps, n = production.macro_steps, [0]

    def cut(*arguments, **more):
        for state in steps(*arguments, **more):
            if n[0] == cut_at:
                raise KeyboardInterrupt
            n[0] += 1
            yield state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(production, "macro_steps", cut)
        return run_hybrid(HybridRun(water, spec, "mmff94", hybrid, network / "network.pt", out, seed=seed,
                                    resume=resume), {}, {}, None, Rehearsal(learn, share, 40, MOST_LABELS))


@pytest.fixture(scope="module")
def whole(network, water, water_spec):  # noqa: F811
    out = network / "whole.npz"
    return run_it(network, water, water_spec, out), load_trajectory(out)


def test_what_the_run_asked_is_learned_and_production_begins_anew(network, whole):
    metadata, run = whole
    first = metadata["tally"]["learned"][0]
    assert metadata["aim"]["reached"] and "frames are worth" in first["why"]
    assert metadata["checkpoint"] == metadata["tally"]["learned"][-1]["checkpoint"]
    assert metadata["cpu_s_training"] == 12.0 and metadata["true_calls_training"] == 40
    # frames of the first network are burn-in, and so are those that the second one needs to find its place
    made = run.frames_of("train")
    last = metadata["tally"]["learned"][-1]["macro_step"]
    assert run.step[made].min() == 20 * (last + 8 + 1) and metadata["tally"]["macro_steps"] == len(made)
    assert metadata["true_calls_burn_in"] >= 20 * (last + 8)
    before = run.weight[(run.step > 20 * 8) & (run.step <= 20 * first["macro_step"])]
    assert importance.effective_share(before) < 0.97 < importance.effective_share(run.weight[made])
    # the labels are the run's own answers
    labels = Labels.load(network / "labels.npz")[0]
    assert len(labels) + first["truths"] <= 40 + 20 * first["macro_step"]


def test_the_weighted_mean_is_that_of_the_truth(whole, water, water_spec):  # noqa: F811
    """The network is another in mid-run, and the mean energy stays that of the true potential."""
    run = whole[1]
    made = run.frames_of("train")
    mean = np.average(run.Epot[made], weights=run.weight[made])
    # the truth by importance from a Gaussian about the minimum, in the coordinates that do not move the molecule
    true = water_spec.build()
    x0 = water.conformers[0]
    step, beta = 1e-4, 1.0 / 2.494338785
    hessian = np.array([-(true.energy_and_forces(x0 + step * e.reshape(3, 3))[1]
                          - true.energy_and_forces(x0 - step * e.reshape(3, 3))[1]).ravel() / (2 * step)
                        for e in np.eye(9)])
    value, vector = np.linalg.eigh(0.5 * (hessian + hessian.T))
    stiff = value > 1e3
    z = RNG(1).standard_normal((6000, int(stiff.sum()))) * 1.2 / np.sqrt(beta * value[stiff])
    energy = np.array([true.energy_and_forces(x0 + (vector[:, stiff] @ each).reshape(3, 3))[0] for each in z])
    log_w = -beta * (energy - energy.min()) + 0.5 * beta / 1.44 * (value[stiff] * z**2).sum(axis=1)
    w = np.exp(log_w - log_w.max())
    expected = np.average(energy, weights=w)
    assert stiff.sum() == 3 and importance.effective_share(w) > 0.3
    blocks = [np.average(run.Epot[made][run.replica[made] == r], weights=run.weight[made][run.replica[made] == r])
              for r in range(20)]
    error = np.std(blocks, ddof=1) / np.sqrt(20)
    assert abs(mean - expected) < 4 * error + 0.05 and error < 0.15


def test_a_run_cut_before_and_after_it_learned_is_bit_equal(network, whole, water, water_spec, tmp_path):  # noqa: F811
    metadata, run = whole
    out, learned = tmp_path / "whole.npz", [each["macro_step"] for each in metadata["tally"]["learned"]]
    assert 9 < learned[0] < 9 + 20 < learned[1]  # it goes on from macro-step 5
    for cut_at in (9, 24):
        with pytest.raises(KeyboardInterrupt):
            run_it(network, water, water_spec, out, cut_at=cut_at, resume=cut_at > 9)
    resumed = run_it(network, water, water_spec, out, resume=True)
    again = load_trajectory(out)
    for key in ("pos", "weight", "Epot", "segment"):
        assert np.array_equal(getattr(run, key), getattr(again, key)), key
    assert run.segments == again.segments and metadata["true_calls"] == resumed["true_calls"]
    told = [{key: value for key, value in each.items() if key != "checkpoint"} for each in resumed["tally"]["learned"]]
    assert told == [{key: value for key, value in each.items() if key != "checkpoint"}
                    for each in metadata["tally"]["learned"]]


def test_a_larger_aim_goes_on_with_the_network_that_learned(network, whole, water, water_spec,  # noqa: F811
                                                             tmp_path):
    short = whole[0]
    shutil.copy(network / "whole.npz", tmp_path / "run.npz")
    long = run_it(network, water, water_spec, tmp_path / "run.npz", samples=1500, resume=True)
    assert short["aim"]["reached"] and long["aim"]["reached"]
    assert long["true_calls"] > short["true_calls"]
    assert json.dumps(long["tally"]["learned"][:1]) == json.dumps(short["tally"]["learned"][:1])


def test_a_budget_that_ends_before_a_new_production_keeps_the_one_there_is(network, whole, water,
                                                                            water_spec, tmp_path):  # noqa: F811
    """A run that began anew with its last calls had burn-in alone to show, and nothing of what it had sampled."""
    first = whole[0]["tally"]["learned"][0]["macro_step"]
    calls = 20 * (1 + first + 8 + 256 // 20)
    short = run_it(network, water, water_spec, tmp_path / "run.npz", calls=calls)
    made = load_trajectory(tmp_path / "run.npz").frames_of("train")
    assert len(made) == 20 * (first - 8) and "populations" in short and "learned" not in short["tally"]
    assert short["aim"]["budget_spent"] and not short["aim"]["reached"]
    grown = run_it(network, water, water_spec, tmp_path / "run.npz", resume=True, calls=calls + 200)
    at_once = run_it(network, water, water_spec, tmp_path / "once.npz", calls=calls + 200)
    assert grown["tally"]["learned"][0]["truths"] == at_once["tally"]["learned"][0]["truths"]
    for key in ("pos", "weight", "segment"):
        assert np.array_equal(*(getattr(load_trajectory(tmp_path / name), key) for name in ("run.npz", "once.npz")))


def test_weights_that_are_worth_enough_begin_nothing_anew(network, water, water_spec, tmp_path):  # noqa: F811
    metadata = run_it(network, water, water_spec, tmp_path / "run.npz", share=0.001, samples=60)
    assert "learned" not in metadata["tally"] and metadata["checkpoint"] == str(network / "network.pt")


def test_when_weights_fall_short():
    rehearses = Rehearsal(lambda *_: None, 0.1, 0, 10_000)
    even, heavy = np.ones(400), np.ones(400)
    heavy[0] = 150.0
    assert rehearses.shortfall(even) is None and "1" in rehearses.shortfall(heavy)
    assert "worth 13 of them" in rehearses.shortfall(heavy)
    assert rehearses.shortfall(heavy[: rehearsal.FEWEST_FRAMES - 1]) is None
    tail = 1.0 / RNG(2).random(4000) ** 0.9  # of a Pareto with k 0.9
    assert importance.effective_share(np.minimum(tail, 60.0)) > 0.1
    assert "k-hat" in Rehearsal(lambda *_: None, 0.001, 0, 10_000).shortfall(tail)


def test_a_restrained_chain_has_no_weights_to_learn_by(network, water, water_spec, tmp_path):  # noqa: F811
    """Its frames weigh exp(W/kT) for averages, which no network could better; metropolis writes no other weight."""
    held = (Restraint(kind="distance", atoms=(0, 1), centre=0.097, k=2e4),)
    hybrid = HybridConfig(scheme="metropolis", tune=False, k_steps=20, dt_fs=0.5, effective_samples=3000,
                          max_true_calls=1000, burn_in_steps=8, replicas=20, temperature_K=300.0,
                          checkpoint_interval=5, inner="numpy", restraints=held, store_forces=True)
    never = Rehearsal(lambda *arguments: pytest.fail("it learned"), 0.97, 40, 5000)
    metadata = run_hybrid(HybridRun(water, replace(water_spec, restraints=held), "mmff94", hybrid,
                                    network / "network.pt", tmp_path / "held.npz"), {}, {}, None, never)
    assert metadata["status"] == "finished" and "learned" not in metadata["tally"]
