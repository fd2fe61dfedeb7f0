"""Ladders of truth: a cheap method is learned, a dear one costs a few dozen energies, and what is sampled is exact."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml

from conftest import ROOT
from kstep.analysis.measure.observables import average
from kstep.config import load_config
from kstep.errors import UserError
from kstep.forces import calculator_spec, load_qm_config, physics_spec
from kstep.forces.local_pool import EvaluationPool
from kstep.learning import climber, truth_ladder as module
from kstep.learning.cold_start import learn_for
from kstep.learning.corrected import CorrectedPool
from kstep.learning.learn_config import LearnConfig
from kstep.learning.target import Target
from kstep.learning.truth_ladder import Rung, check_rungs, climb
from kstep.models import checkpoint as checkpoints
from kstep.models.network import Network
from kstep.molecules.prepare import prepare_smiles
from kstep.schemas import load_trajectory
from kstep.schemes.hybrid_config import HybridConfig
from kstep.stages import sampling as stage
from kstep.stages.physics import TruePhysics
from kstep.stages.sampling import SamplingSettings, sample
from kstep.training.difference import fit_difference
from ladder_truths import Cheap, Dear, DearEnergy, known_difference, springs
from test_difference import ORDERS, geometries
from test_learn import QUICK, SMALL

CONFIG = LearnConfig(**{**QUICK, "difference_batch": 8, "fit_passes": 150, "round_passes": 50})


@pytest.fixture(scope="module")
def water():
    molecule = prepare_smiles("O", "water").molecule
    return replace(molecule, conformers=np.array([[[0, 0, 0], [0.096, 0, 0], [-0.024, 0.093, 0]]]),
                   conformer_energies=np.zeros(1))


def spec_of(calculator, water):
    return calculator_spec(calculator, water, method=f"{type(calculator).__name__} {calculator.parameters.size:g}")


def rung(calculator, water):
    spec = spec_of(calculator, water)
    return Rung(spec, spec.method)


@pytest.fixture(scope="module")
def base(water, tmp_path_factory):
    """(target, its network, its labels) of the cheap method."""
    spec = spec_of(Cheap(), water)
    target = Target(molecule=water, spec=spec, method=spec.method, temperatures_K=(300.0,))
    path = learn_for(target, tmp_path_factory.mktemp("base") / "w.npz", CONFIG, model_config=SMALL, seed=1)
    return target, path, path.with_name("labels.npz")


def climb_to(dear, base, water, out, *, between=(), **more):
    target, path, labels = base
    rungs = [Rung(target.spec, target.method), *(rung(each, water) for each in between), rung(dear, water)]
    top = replace(target, spec=rungs[-1].spec, method=rungs[-1].method)
    return climb(top, rungs, path, labels, out, SMALL, more.pop("config", CONFIG), **{"seed": 1, **more})


def rows(folder):
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def left(path, water):
    """Spread in kT of U_dear - U_network at warm geometries."""
    x = geometries(200, 50, 0.002)
    network = Network.load(path, water.numbers, water.masses, water.bonds)
    return (springs(x)[1] + known_difference(x)[0] - network.energy_and_forces(x)[0]).std() / 2.494


@pytest.fixture(scope="module")
def climbed(base, water, tmp_path_factory):
    out = tmp_path_factory.mktemp("climb") / "w.npz"
    return climb_to(DearEnergy(), base, water, out), out


def test_a_dear_method_is_learned_from_a_few_of_its_energies(climbed, base, water):
    path, out = climbed
    checkpoint, rounds = checkpoints.load(path), rows(out.with_name("w.npz.via1"))
    assert checkpoint["method"] == "DearEnergy 1" and path == out.with_name("w.npz.via1") / "network.pt"
    assert checkpoint["true_calls_training"] == rounds[-1]["labels"] <= 40
    by_method = checkpoint["true_calls_training_by_method"]
    assert by_method["DearEnergy 1"] == checkpoint["true_calls_training"]
    assert by_method["Cheap 0"] > checkpoints.load(base[1])["true_calls_training"] + rounds[-1]["labels"]
    assert [row["method"] for row in checkpoint["rungs"]] == ["Cheap 0", "DearEnergy 1"]
    assert rounds[0]["fresh_kT"] > 2 * rounds[-1]["spread_kT"]
    assert left(path, water) < 0.5 * left(base[1], water)
    assert checkpoint["d_spread_kT"] >= rounds[-1]["spread_kT"] and checkpoint["cpu_s_per_true_call"] > 0.0


def test_the_network_of_the_sum_has_one_energy_and_its_slope(climbed, water):
    path, x, h = climbed[0], geometries(3, 2), 1e-5
    slow = Network.load(path, water.numbers, water.masses, water.bonds, inner="eager")
    fast = Network.load(path, water.numbers, water.masses, water.bonds, inner="numpy")
    energy, forces = fast.energy_and_forces(x)
    assert np.allclose(energy, slow.energy_and_forces(x)[0], atol=2e-3)
    assert np.allclose(forces, slow.energy_and_forces(x)[1], atol=0.05)
    slow.model.double()
    for atom, axis in np.ndindex(3, 3):
        shift = np.zeros((3, 3))
        shift[atom, axis] = h
        up, down = (slow.energy_and_forces(x + s)[0] for s in (shift, -shift))
        assert np.allclose((down - up) / (2 * h), forces[:, atom, axis], atol=2.0)


def test_forces_and_a_rung_between_need_fewer_calls_of_the_dearest(base, water, tmp_path, climbed):
    path = climb_to(DearEnergy(), base, water, tmp_path / "w.npz", between=[Dear(size=0.9)])
    checkpoint = checkpoints.load(path)
    assert path.parent.name == "w.npz.via2" and left(path, water) < 0.5 * left(base[1], water)
    assert [row["method"] for row in checkpoint["rungs"]] == ["Cheap 0", "Dear 0.9", "DearEnergy 1"]
    assert set(checkpoint["true_calls_training_by_method"]) == {"Cheap 0", "Dear 0.9", "DearEnergy 1"}
    raw = [rows(tmp_path / f"w.npz.via{n}")[0]["fresh_kT"] for n in (1, 2)]
    assert raw[1] < 0.5 * raw[0]  # what the first difference knows, the second need not learn
    assert checkpoint["true_calls_training"] <= checkpoints.load(climbed[0])["true_calls_training"]


def test_a_teacher_alone_makes_the_network_and_the_dear_method_is_asked_nothing(base, water, tmp_path, monkeypatch):
    """The same network under the dear method's name, whose calls are none; another teacher's is another's."""
    monkeypatch.setattr(module, "Climber", None)  # what asks the dear method
    path = climb_to(DearEnergy(), base, water, tmp_path / "w.npz", taught=True)
    first, taught = checkpoints.load(base[1]), checkpoints.load(path)
    assert path == tmp_path / "w.npz.via1" / "network.pt" and taught["method"] == "DearEnergy 1"
    x = geometries(3, 2)
    energies = [Network.load(each, water.numbers, water.masses, water.bonds).energy_and_forces(x)[0]
                for each in (path, base[1])]
    assert np.array_equal(*energies)
    assert taught["true_calls_training"] == 0 and taught["true_calls_training_by_method"] == {
        "Cheap 0": first["true_calls_training"], "DearEnergy 1": 0}
    assert [taught[key] for key in ("acceptance_expected", "d_spread_kT", "cpu_s_per_true_call")] == [None] * 3
    assert [row["method"] for row in taught["rungs"]] == ["Cheap 0"]
    before = path.stat().st_mtime_ns
    assert climb_to(DearEnergy(), base, water, tmp_path / "w.npz", taught=True) == path
    assert path.stat().st_mtime_ns == before
    settings = SamplingSettings(physics=TruePhysics(water, load_qm_config(None)), hybrid=HybridConfig(),
                                out=tmp_path / "x.npz", teacher=TruePhysics(water, load_qm_config(None)))
    assert settings.learns and [each.method for each in settings.rungs] == ["GFN2-xTB"] * 2
    with pytest.raises(UserError, match="GFN2-xTB stands twice in the ladder"):
        sample(settings)
    with pytest.raises(UserError, match="--teacher learns from one method alone"):
        sample(replace(settings, via=(settings.teacher,)))


def test_starts_that_no_first_network_has_paid_for_are_on_the_bill_of_the_cheapest_method(base, water, tmp_path,
                                                                                          climbed):
    """With a network of the cheapest method given, its starts were on nobody's."""
    starts = {"true_calls": 7, "cpu_s": 2.5, "wall_s": 3.0}
    here = (replace(base[0], starts_spent=starts), *base[1:])
    taught = checkpoints.load(climb_to(DearEnergy(), here, water, tmp_path / "taught.npz", taught=True))
    first, whole = checkpoints.load(base[1]), checkpoints.load(climbed[0])
    assert taught["true_calls_training_by_method"]["Cheap 0"] == first["true_calls_training"] + 7
    assert taught["cpu_s_training"] == first["cpu_s_training"] + 2.5
    learned = checkpoints.load(climb_to(DearEnergy(), here, water, tmp_path / "w.npz"))
    assert learned["true_calls_training_by_method"] == {
        **whole["true_calls_training_by_method"], "Cheap 0": whole["true_calls_training_by_method"]["Cheap 0"] + 7}
    assert learned["rungs"][0]["true_calls"] == whole["rungs"][0]["true_calls"] + 7


@pytest.mark.parametrize("given", [False, True], ids=["learned", "given"])
def test_starts_are_paid_once_by_whichever_network_a_ladder_begins_with(base, water, tmp_path, monkeypatch, given):
    seen = []
    monkeypatch.setattr(stage, "climb", lambda target, *_, **more: seen.append(target.starts_spent))
    monkeypatch.setattr(stage, "learn_for", lambda target, *_, **more: (seen.append(target.starts_spent), base[1])[1])
    more = {"checkpoint": base[1], "labels": base[2]} if given else {}
    spent, hybrid = {"true_calls": 7}, HybridConfig()
    settings = SamplingSettings(physics=physics(Dear(), water), via=(physics(Cheap(), water),), hybrid=hybrid,
                                out=tmp_path / "w.npz", n_workers=1, **more)
    monkeypatch.setattr(stage, "_check_learning", lambda s: hybrid)
    stage.learn_network(settings, spent)
    assert seen == ([spent] if given else [spent, {}])


def test_a_cut_climb_goes_on_to_the_same_network(base, water, tmp_path, monkeypatch, climbed):
    asked, original = [], climber.fit_difference

    def cut(positions, *args):
        asked.append(len(positions))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return original(positions, *args)

    monkeypatch.setattr(climber, "fit_difference", cut)
    with pytest.raises(KeyboardInterrupt):
        climb_to(DearEnergy(), base, water, tmp_path / "w.npz")
    monkeypatch.setattr(climber, "fit_difference", original)
    with pytest.raises(UserError, match="has not finished; --resume"):
        climb_to(DearEnergy(), base, water, tmp_path / "w.npz")
    with pytest.raises(UserError, match="other settings"):
        climb_to(DearEnergy(), base, water, tmp_path / "w.npz", resume=True, seed=2)
    resumed = checkpoints.load(climb_to(DearEnergy(), base, water, tmp_path / "w.npz", resume=True))
    whole = checkpoints.load(climbed[0])
    assert all(np.array_equal(resumed["state_dict"][k], v) for k, v in whole["state_dict"].items())
    for key in ("true_calls_training_by_method", "rungs", "d_spread_kT"):
        assert resumed[key] == whole[key]
    again = checkpoints.load(climb_to(DearEnergy(), base, water, tmp_path / "w.npz"))
    assert again["cpu_s_training"] == resumed["cpu_s_training"]  # finished: nothing is done again


def test_the_sum_of_a_cheap_method_and_a_difference_is_a_surface(water):
    x = geometries(12)
    difference = fit_difference(x, *known_difference(x), ORDERS)
    fused = x[:2].copy()
    fused[1, 1] = fused[1, 0]
    with CorrectedPool(EvaluationPool(spec_of(Cheap(), water), 1), (difference, difference)) as pool:
        truth = pool.evaluate(x)
        energy, forces = difference.energy_and_forces(x)
        assert np.allclose(truth.energy, springs(x)[1] + 2 * energy) and pool.true_calls == 12
        assert np.allclose(truth.bare[1], truth.forces) and not np.allclose(truth.forces, truth.forces - forces)
        assert pool.evaluate(fused).failed.tolist() == [False, True] and len(pool.failures) == 1


def physics(calculator, water):
    config = load_qm_config(None, {"backend": "ase", "calculator": type(calculator).__name__, "relax_starts": False})
    return TruePhysics(water, config, calculator=calculator)


def run_of(water, out, dear, *via, **given):
    hybrid = load_config(HybridConfig, None, {"replicas": 8, "steps": 60, "burn_in_steps": 6, "moves": 4,
                                              "k_steps": 120, "dt_fs": 1.0, "mirror_images": False})
    sample(SamplingSettings(physics=physics(dear, water), via=tuple(physics(each, water) for each in via),
                            hybrid=hybrid, out=out, learn_config=CONFIG, model_config=SMALL, n_workers=1, device="cpu",
                            seed=3, **given))
    return load_trajectory(out)


def mean_energy(run):
    found = average([run], lambda x: springs(x)[1] + known_difference(x)[0])
    return float(found.mean), float(found.error)


def test_a_run_says_whose_calls_it_cost_and_a_bad_rung_costs_acceptance_alone(water, tmp_path, monkeypatch):
    good = run_of(water, tmp_path / "good.npz", DearEnergy(), Cheap())
    m = good.metadata
    assert m["method"] == physics(DearEnergy(), water).method and m["acceptance"] > 0.8
    assert m["true_calls_training"] <= 40 < m["true_calls_training_by_method"][physics(Cheap(), water).method]
    assert m["true_calls"] == 8 * 66 + 8  # and none to measure what one costs
    monkeypatch.setattr(climber, "fit_difference", lambda x, energy, *others: fit_difference(
        x, energy.mean() + 0.2 * (energy - energy.mean()), *others))
    cheap = tmp_path / "good.npz.learn"
    bad = run_of(water, tmp_path / "bad.npz", DearEnergy(), Cheap(), checkpoint=cheap / "network.pt",
                 labels=cheap / "labels.npz")
    assert bad.metadata["acceptance"] < m["acceptance"] - 0.1
    (one, error), (other, other_error) = mean_energy(good), mean_energy(bad)
    assert abs(one - other) < 4 * np.hypot(error, other_error)


@pytest.mark.parametrize("below", ["via", "teacher"])
def test_learning_alone_relaxes_starts_on_the_cheapest_rung_and_asks_the_dear_one_nothing(water, tmp_path, monkeypatch,
                                                                                          below):
    seen = {}
    monkeypatch.setattr(stage, "learn_network", lambda s, spent: (seen.update(s=s, spent=spent), "network.pt"))
    cheap, dear = (replace(each, config=each.config.model_copy(update={"relax_starts": True})) for each in (
        physics(Cheap(), water), physics(Dear(), water)))
    settings = SamplingSettings(physics=dear, hybrid=HybridConfig(), out=tmp_path / "w.npz", n_workers=1, learn=True,
                                **{below: cheap if below == "teacher" else (cheap,)})
    assert stage.learn_alone(settings) == "network.pt" and seen["spent"]["true_calls"] > 0
    assert seen["s"].physics.molecule.relaxed_on == cheap.method


def test_learning_a_ladder_anew_sets_all_of_its_folders_aside(water, tmp_path):
    settings = SamplingSettings(physics=physics(Dear(), water), via=(physics(Cheap(), water),), hybrid=HybridConfig(),
                                out=tmp_path / "w.npz", overwrite=True)
    for name in ("w.npz.learn", "w.npz.via1"):
        (tmp_path / name).mkdir()
    stage._settle_output(settings, runs=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.npz.learn.backup-1", "w.npz.via1.backup-1"]


def test_wrong_rungs_are_refused_in_a_sentence(water, base, tmp_path):
    cheap, dear = rung(Cheap(), water), rung(Dear(), water)
    with pytest.raises(UserError, match="stands twice"):
        check_rungs([cheap, dear, cheap])
    with pytest.raises(UserError, match="has no forces, and learning a network of it needs them"):
        check_rungs([rung(DearEnergy(), water), dear])
    qm = load_qm_config(ROOT / "configs/qm.yaml")
    specs = {name: physics_spec(water, qm.model_copy(update=changes)) for name, changes in {
        "neutral": {}, "charged": {"charge": 1, "spin_multiplicity": 2}, "wet": {"solvent": "water"}}.items()}
    for wrong, key in (("charged", "charge 1"), ("wet", "solvent water")):
        with pytest.raises(UserError, match=key):
            check_rungs([Rung(specs[wrong], "GFN1-xTB"), Rung(specs["neutral"], "GFN2-xTB")])
    with pytest.raises(UserError, match="is of Cheap 0, and the ladder --via begins with Dear 1"):
        climb(base[0], [dear, cheap], base[1], base[2], tmp_path / "w.npz", SMALL, CONFIG)


def test_another_molecules_network_is_no_first_rung(water, base, tmp_path):
    peroxide = prepare_smiles("OO", "peroxide").molecule
    settings = SamplingSettings(
        physics=TruePhysics(peroxide, load_qm_config(ROOT / "configs/qm.yaml", {"method": "GFN1-xTB"})),
        via=(TruePhysics(peroxide, load_qm_config(ROOT / "configs/qm.yaml")),), hybrid=HybridConfig(),
        out=tmp_path / "p", checkpoint=base[1], labels=base[2], n_workers=1)
    with pytest.raises(UserError, match="another molecule"):
        sample(settings)
    with pytest.raises(UserError, match="give both --checkpoint and --labels, or neither"):
        sample(replace(settings, labels=None))
    assert yaml.safe_load((ROOT / "configs/learn.yaml").read_text())["difference_batch"] == 10


@pytest.mark.parametrize("changes, more, words", [
    ({"thermostat": "none"}, {}, "thermostat: none is a run at constant energy"),
    ({"store_forces": True}, {}, "has no forces, and store_forces needs them"),
    ({"delayed_steps": 2}, {}, "name it with --delay-with"),
    ({"scheme": "metropolis"}, {"delay_with": Cheap()}, "metropolis does not ask a cheaper method first"),
    ({"scheme": "nested"}, {"delay_with": DearEnergy()}, "the truth itself"),
    ({}, {"initial_md": "nowhere.npz"}, "nowhere.npz does not exist")])
def test_a_run_to_be_refused_is_refused_before_its_network_is_learned(water, tmp_path, monkeypatch, changes, more,
                                                                      words):
    monkeypatch.setattr(stage, "learn_network", None)
    if "delay_with" in more:
        more = {"delay_with": physics(more["delay_with"], water)}
    hybrid = load_config(HybridConfig, None, {"steps": 5, **changes})
    with pytest.raises(UserError, match=words):
        sample(SamplingSettings(physics=physics(DearEnergy(), water), via=(physics(Cheap(), water),), hybrid=hybrid,
                                out=tmp_path / "w.npz", n_workers=1, **more))
