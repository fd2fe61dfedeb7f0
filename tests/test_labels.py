"""Labels and their fit: what is kept, what is refused, and that a known potential is found again."""

import json
import subprocess
import sys
from dataclasses import replace
from math import erfc
from pathlib import Path

import numpy as np
import pytest
import torch

from kstep.errors import UserError
from kstep.learning.earlier import Earlier
from kstep.models import build_model, checkpoint as checkpoints
from kstep.models.model_config import ModelConfig
from kstep.models.network import Network
from kstep.models.pair_mlp_gradient import EnergyAndSlope
from kstep.molecules.molecule import Molecule
from kstep.schemas import load_dataset, save_dataset
from kstep.training import whitening
from kstep.training.batches import Windows
from kstep.training.dataset import build_dataset
from kstep.training.equivalent_atoms import exchange_equivalent
from kstep.training.label_fit import expected_acceptance, fit
from kstep.training.labels import Labels
from kstep.training.splits import make_splits
from kstep.training.train_config import FitConfig
from kstep.training.whitening import mixing, whitened
from kstep.units import kT
from springs import METHANOL, WATER, write_trajectory

ROOT = Path(__file__).parents[1]
SMALL = ModelConfig(arch="pair_mlp", pair_hidden=[32, 32])
CONFIG = FitConfig(fit_passes=120, fit_batch_size=32, fit_ema_decay=0.99)
ABOUT = dict(method="springs", dt_fs=1.0, temperature_K=600.0, true_calls=160)
SHAPE = np.array(METHANOL["shape"], float)


def methanol():
    numbers, bonds = np.array(METHANOL["numbers"]), np.array(METHANOL["bonds"])
    return Molecule(name="methanol", smiles="CO", numbers=numbers, masses=np.array(METHANOL["masses"]), bonds=bonds,
                    bond_orders=np.ones(len(bonds)), conformers=SHAPE[None], conformer_energies=np.zeros(1))


def truth(x):
    """Springs between all pairs that do not tell one methyl hydrogen from another, (S,N,3) -> (S,), (S,N,3)."""
    rest = np.linalg.norm(SHAPE[:, None] - SHAPE[None], axis=-1)
    turned = [[0, 1, *h, 5] for h in ([2, 3, 4], [3, 4, 2], [4, 2, 3])]
    rest = np.mean([rest[np.ix_(t, t)] for t in turned], axis=0)
    rest[2:5, 2:5] = rest[2, 3]
    stiff = np.where(rest < 0.15, 2.0e5, 1.0e4)
    d = x[:, :, None] - x[:, None]
    r = np.linalg.norm(d, axis=-1) + np.eye(len(rest))
    stretch = np.where(np.eye(len(rest)) > 0, 0.0, r - rest)
    return -3.0e4 + 0.25 * (stiff * stretch**2).sum((1, 2)), -((stiff * stretch / r)[..., None] * d).sum(2)


def labels(n=160, seed=0):
    x = SHAPE + np.random.default_rng(seed).normal(scale=0.003, size=(n, *SHAPE.shape))
    return Labels(x, *truth(x), 600.0)


def fitted(given=None, config=CONFIG, seed=1, **more):
    return fit(SMALL, methanol(), labels() if given is None else given, config, seed=seed, **{**ABOUT, **more})


@pytest.fixture(scope="module")
def first():
    return fitted(validation=labels(200, seed=9))


# labels ---------------------------------------------------------------------------------------------------------------

def test_append_keeps_what_is_finite_and_counts_it():
    own, new = labels(3), labels(4, seed=1)
    new.energies[1], new.forces[2, 0, 0] = np.nan, np.inf
    assert own.append(new.positions, new.energies, new.forces, 300.0) == 2 and len(own) == 5
    assert own.temperature_K.tolist() == [600.0] * 3 + [300.0] * 2
    assert np.array_equal(own.energies[3:], new.energies[[0, 3]])
    assert np.array_equal(own.select(slice(3, None)).positions, new.positions[[0, 3]])
    with pytest.raises(ValueError, match="do not join"):
        own.append(np.zeros((1, 3, 3)), [0.0], np.zeros((1, 3, 3)), 300.0)


def test_labels_survive_their_file(tmp_path):
    own = labels(25)
    own.save(tmp_path / "labels.npz", methanol(), method="springs", true_calls=31, dt_fs=0.5)
    again, metadata = Labels.load(tmp_path / "labels.npz")
    assert again.sha256() == own.sha256() and metadata["true_calls"] == 31
    arrays, _ = load_dataset(tmp_path / "labels.npz")
    assert np.array_equal(arrays["x_t"], arrays["x_tk"]) and not arrays["v_t"].any()
    assert set(arrays["block"]) == set(range(metadata["n_blocks"])), "every split in time must find labels"
    own.energies[0] += 1e-9
    assert again.sha256() != own.sha256()


def test_labels_of_windows_are_their_starts_and_of_one_molecule(tmp_path):
    paths = {name: write_trajectory(tmp_path / f"{name}.npz", molecule, n_segments=2, name=name)
             for name, molecule in (("water", WATER), ("methanol", METHANOL))}
    arrays, metadata = build_dataset({"methanol": paths["methanol"]}, 4, max_samples=20)
    save_dataset(tmp_path / "one.npz", arrays, metadata)
    own, _ = Labels.load(tmp_path / "one.npz")
    assert np.array_equal(own.positions.reshape(-1, 3), arrays["x_t"])
    assert np.array_equal(own.energies, arrays["epot_t"])
    save_dataset(tmp_path / "two.npz", *build_dataset(paths, 4, max_samples=20))
    with pytest.raises(UserError, match="labels are of one"):
        Labels.load(tmp_path / "two.npz")


@pytest.mark.parametrize("change, words", [
    ({"numbers": np.array([8, 6, 1, 1, 1, 1]), "bonds": np.array([[0, 1], [1, 2], [1, 3], [1, 4], [0, 5]])},
     "or of its atoms in another order"),  # the SMILES OC in the place of CO
    ({"bonds": np.array([[0, 1], [0, 2], [0, 3], [1, 4], [1, 5]])}, "another molecule than methanol"),
    ({"charge": 1}, "holds labels of charge 1, and methanol has charge 0"),
    ({"multiplicity": 3}, "holds labels of multiplicity 3"),
    ("field", "holds labels among 2 point charges, and there are 0 around methanol")])
def test_labels_of_as_many_atoms_are_refused_where_they_are_of_another_surface(tmp_path, change, words):
    """All that an earlier learning left is of the same number of atoms here, and would be learned as true."""
    own, path = labels(12), tmp_path / "labels.npz"
    if change == "field":
        own.extra = {"field": np.zeros((12, 2, 3)), "field_forces": np.zeros((12, 2, 3))}
    own.save(path, methanol() if change == "field" else replace(methanol(), **change), method="springs", true_calls=12,
             dt_fs=0.5)
    with pytest.raises(UserError, match=words):
        Earlier(None, path).check(methanol())
    if change == "field":
        assert len(Labels.load(path, methanol(), 2)[0]) == 12
        with pytest.raises(UserError, match="among 2 point charges, and there are 3"):
            Labels.load(path, methanol(), 3)


def test_no_label_is_no_file(tmp_path):
    with pytest.raises(UserError, match="no label"):
        Labels.empty(6).save(tmp_path / "x.npz", methanol(), method="springs", true_calls=0, dt_fs=1.0)


def train_04(folder, model):
    (folder / "model.yaml").write_text(model)
    (folder / "train.yaml").write_text("batch_size: 16\nmax_epochs: 2\n")
    return subprocess.run([sys.executable, ROOT / "src/04_train.py", "--dataset", folder / "labels.npz",
                           "--model-config", folder / "model.yaml", "--train-config", folder / "train.yaml",
                           "--splits", folder / "train.json", folder / "val.json", "--out-dir", folder / "out",
                           "--device", "cpu"], capture_output=True, text=True)


def test_04_trains_an_energy_on_labels_and_refuses_a_jump(tmp_path):
    labels(60).save(tmp_path / "labels.npz", methanol(), method="springs", true_calls=60, dt_fs=1.0)
    for part, split in make_splits(["methanol"], 10).items():
        (tmp_path / f"{part}.json").write_text(json.dumps(split))
    refused = train_04(tmp_path, "arch: egnn\nheads: {energy: true, jump: true}\nelements: [1, 6, 8]\n")
    assert refused.returncode == 2 and "labels without dynamics" in refused.stderr
    assert "Traceback" not in refused.stderr
    done = train_04(tmp_path, "arch: pair_mlp\npair_hidden: [8]\n")
    assert done.returncode == 0, done.stderr
    assert checkpoints.load(tmp_path / "out" / "best.pt")["true_calls_training"] == 60


# outliers -------------------------------------------------------------------------------------------------------------

def test_a_label_counts_by_the_stated_rule():
    own = labels(50)
    limit = 1.0 * 12 * kT(600.0)
    lowest = own.energies.min()
    own.energies[:3] = lowest + limit * np.array([0.99, 2.0, 100.0])
    weights = own.weights(1.0)
    assert weights[:3] == pytest.approx([1.0, 1 / 16, 1e-8])
    own.temperature_K[1] = 1200.0  # twice as hot: that energy is thermal there
    assert own.weights(1.0)[1] == pytest.approx(1.0)
    assert own.weights(2.0)[2] == pytest.approx(16e-8)


def test_fused_atoms_do_not_spoil_the_fit(first):
    """A label 10^5 kJ/mol up multiplies the spread of the energies by a thousand where nothing plays it down."""
    own, unseen = labels(), labels(200, seed=9)
    own.append(own.positions[:2] * 0.4, own.energies[:2] + 1e5, own.forces[:2] * 1e4, 600.0)
    kept = fitted(own, validation=unseen)
    assert kept.played_down == first.played_down + 2
    assert kept.errors["energy_std_kJ_per_mol"] < 1.5 * first.errors["energy_std_kJ_per_mol"] + 0.1
    blind = fitted(own, CONFIG.model_copy(update={"fit_outlier_kT": 1e6}), validation=unseen)
    assert blind.errors["energy_std_kJ_per_mol"] > 5 * kept.errors["energy_std_kJ_per_mol"]


# the fit --------------------------------------------------------------------------------------------------------------

def test_a_known_potential_is_found_again(first, tmp_path):
    """160 labels: energies to 6 % of their spread, forces to 8 % of their size, in the hands of dynamics."""
    unseen = labels(200, seed=9)
    checkpoints.save(tmp_path / "fit.pt", first.checkpoint)
    molecule = methanol()
    network = Network.load(tmp_path / "fit.pt", molecule.numbers, molecule.masses, molecule.bonds, method="springs")
    energy, forces = network.energy_and_forces(unseen.positions + 3.0)
    error = energy - unseen.energies
    spread = unseen.energies.std()
    assert error.std() < 0.06 * spread and abs(error.mean()) < 0.06 * spread
    assert np.sqrt(((forces - unseen.forces) ** 2).mean() / (unseen.forces**2).mean()) < 0.08
    assert error.std() == pytest.approx(first.errors["energy_std_kJ_per_mol"], rel=0.02)
    assert network.metadata["true_calls_training"] == 160
    assert network.metadata["data_sha256"] == labels().sha256()


def test_a_seed_repeats_bit_by_bit(first):
    torch.manual_seed(77)  # whatever ran before
    again, other = fitted().checkpoint["state_dict"], fitted(seed=2).checkpoint["state_dict"]
    own = first.checkpoint["state_dict"]
    assert all(torch.equal(own[name], again[name]) for name in own)
    assert not torch.equal(own["readout"], other["readout"])


def test_the_fit_leaves_random_numbers_and_threads_as_they_were():
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    fitted(passes=0.4)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads


def test_a_warm_start_goes_on_from_where_it_was(first):
    unseen = labels(200, seed=9)
    cold = fitted(passes=12, validation=unseen)
    warm = fitted(passes=12, validation=unseen, start=first.checkpoint["state_dict"])
    assert warm.errors["energy_std_kJ_per_mol"] < 0.5 * cold.errors["energy_std_kJ_per_mol"]
    mean = warm.checkpoint["state_dict"]["feature_mean"]
    assert torch.equal(mean, first.checkpoint["state_dict"]["feature_mean"])
    with pytest.raises(UserError, match="another model config"):
        fit(ModelConfig(arch="pair_mlp", pair_hidden=[8]), methanol(), labels(), CONFIG, seed=0, **ABOUT,
            start=first.checkpoint["state_dict"])


def test_labels_far_above_the_start_name_what_held_them_there():
    """A strong restraint does: one label at the minimum makes all others atypical."""
    given = labels()
    given.energies[1:] += 1e4
    with pytest.raises(UserError, match="are too few to fit a network; .* or is held far from them .learn without the"):
        fitted(given)


def test_what_cannot_be_fitted_is_refused_in_a_sentence():
    with pytest.raises(UserError, match="too few"):
        fitted(labels(9))
    with pytest.raises(UserError, match="arch pair_mlp"):
        fit(ModelConfig(arch="egnn"), methanol(), labels(), CONFIG, seed=0, **ABOUT)
    with pytest.raises(UserError, match="lower fit_lr"):
        fitted(config=CONFIG.model_copy(update={"fit_lr": 1e30}))


@pytest.mark.parametrize("name, value", [
    ("fit_passes", 1.5), ("fit_batch_size", 8), ("fit_lr", 1e-3), ("fit_weight_decay", 5.0), ("fit_beta2", 0.9),
    ("fit_warmup_ratio", 0.5), ("fit_grad_clip", 1e-3), ("fit_ema_decay", 0.0), ("fit_lambda_energy", 9.0),
    ("fit_lambda_force", 1.0), ("fit_whitening", 0.0), ("fit_outlier_kT", 0.3), ("fit_exchange_hydrogens", False)])
def test_every_setting_changes_the_fit(name, value):
    base = CONFIG.model_copy(update={"fit_passes": 6})
    one, two = (fitted(config=c).checkpoint["state_dict"]["readout"]
                for c in (base, base.model_copy(update={name: value})))
    assert not torch.equal(one, two)


def test_weight_derivatives_are_exact():
    torch.manual_seed(0)
    shapes = [(3, 5), (4,), (5,), (5,), (6, 5), (6,), (4, 6), (4,)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(EnergyAndSlope.apply, inputs)
    energy, slope = EnergyAndSlope.apply(*inputs)
    assert torch.allclose(torch.autograd.grad(energy.sum(), inputs[0])[0], slope, atol=1e-12)


def test_whitening_evens_the_features_out_and_leaves_the_function_alone():
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    u = torch.as_tensor(rng.normal(size=(500, 6)) * [3, 1, 1, 0.3, 0.1, 0.1] @ axes, dtype=torch.float32)
    mix = mixing(u, 1.0)
    assert torch.allclose(mix(u).T @ mix(u) / len(u), torch.eye(6), atol=1e-3)
    assert torch.allclose(mix.inverse()(mix(u)), u, atol=1e-4)
    assert torch.allclose(mixing(u, 0.0)(torch.eye(6)), torch.eye(6) / u.square().mean().sqrt(), atol=1e-4)
    layer = torch.nn.Linear(6, 4)
    before = layer(u).detach()
    with whitened(layer, u, 0.5, fresh=False):
        assert torch.allclose(layer(u), before, atol=1e-4)
        moved = {name: p.detach().clone() for name, p in layer.named_parameters()}
    assert torch.allclose(layer(u), before, atol=1e-4) and set(dict(layer.named_parameters())) == {"weight", "bias"}
    assert not torch.allclose(moved["parametrizations.weight.original"], layer.weight, atol=1e-2)


def test_directions_beyond_the_largest_are_stretched_alike(monkeypatch):
    """As the last of those that are told apart, and T^-1 undoes it."""
    monkeypatch.setattr(whitening, "DIRECTIONS", 2)
    rng = np.random.default_rng(0)
    u = torch.as_tensor(rng.normal(size=(20000, 4)) * [12.0, 3.0, 1.5, 0.75], dtype=torch.float32)
    mix = mixing(u, 1.0)
    assert torch.allclose(mix.inverse()(mix(u)), u, atol=1e-4)
    assert mix(u).std(0) / mix(u)[:, 0].std() == pytest.approx([1.0, 1.0, 0.5, 0.25], abs=0.02)
    dense = mix(torch.eye(4))
    assert torch.allclose(dense, dense.T, atol=1e-5)


def test_expected_acceptance_is_that_of_gaussian_errors():
    """Errors of variance s^2 on both ends: erfc(s / 2 kT) for a Gaussian (the difference has variance 2 s^2)."""
    rng = np.random.default_rng(0)
    for s in (0.2, 0.5):
        errors = 7.0 + s * kT(300.0) * rng.normal(size=4000)
        assert expected_acceptance(errors, 300.0) == pytest.approx(erfc(s / 2), abs=0.01)
    assert expected_acceptance(np.zeros(5), 300.0) == pytest.approx(1.0)


# equivalent hydrogens -------------------------------------------------------------------------------------------------

ETHANOL = np.array([6, 6, 8, 1, 1, 1, 1, 1, 1]), np.array([[0, 1], [1, 2], [0, 3], [0, 4], [0, 5], [1, 6], [1, 7],
                                                             [2, 8]])


def distinct(numbers, bonds, n=2000):
    return {tuple(row) for row in exchange_equivalent(numbers, bonds, np.random.default_rng(0), n)}


def test_exchange_reaches_rotations_and_mirror_images():
    """Ethanol: three turns of the methyl, and three with every group exchanged as a mirror does."""
    found = distinct(*ETHANOL)
    swapped = {row for row in found if row[6:8] == (7, 6)}
    assert len(found) == 6 and len(swapped) == 3
    assert {row[3:6] for row in swapped} == {(4, 3, 5), (5, 4, 3), (3, 5, 4)}


def test_a_stereocentre_forbids_mirror_images():
    """CHFCl-CH3: its methyl turns, but no motion leads to the other hand."""
    numbers = np.array([6, 6, 9, 17, 1, 1, 1, 1])
    bonds = np.array([[0, 1], [0, 2], [0, 3], [0, 4], [1, 5], [1, 6], [1, 7]])
    assert {row[5:] for row in distinct(numbers, bonds)} == {(5, 6, 7), (6, 7, 5), (7, 5, 6)}


def test_nothing_to_exchange_is_no_exchange():
    assert distinct(np.array([8, 1, 17]), np.array([[0, 1], [0, 2]])) == {(0, 1, 2)}


def test_exchanged_hydrogens_keep_the_true_energy_and_the_network_learns_it(first):
    unseen, molecule = labels(100, seed=9), methanol()
    order = exchange_equivalent(molecule.numbers, molecule.bonds, np.random.default_rng(3), len(unseen))[..., None]
    moved = np.take_along_axis(unseen.positions, order, 1)
    energy, forces = truth(moved)
    assert np.allclose(energy, unseen.energies, atol=1e-8)
    assert np.allclose(forces, np.take_along_axis(unseen.forces, order, 1), atol=1e-6)

    def change(checkpoint):
        model = build_model(SMALL, checkpoints.molecule_arrays(checkpoint["molecule"]))
        model.load_state_dict(checkpoint["state_dict"])
        before, after = (model.energy_and_gradient(torch.as_tensor(x, dtype=torch.float32))[0]
                         for x in (unseen.positions, moved))
        return float((after - before).std().detach())

    blind = fitted(config=CONFIG.model_copy(update={"fit_exchange_hydrogens": False}))
    assert change(first.checkpoint) < 0.4 < 4 * change(first.checkpoint) < change(blind.checkpoint)


def test_04_and_the_fit_share_the_exchange(tmp_path):
    labels(12).save(tmp_path / "labels.npz", methanol(), method="springs", true_calls=12, dt_fs=1.0)
    data = Windows(*load_dataset(tmp_path / "labels.npz"))
    molecule = methanol()
    assert np.array_equal(data.exchange_equivalent(0, np.random.default_rng(4), 9),
                          exchange_equivalent(molecule.numbers, molecule.bonds, np.random.default_rng(4), 9))
