"""pair_mlp: exact forces, invariance, the numpy hot path, and the checkpoints it travels in."""

import copy

import numpy as np
import pytest
import torch

from kstep.errors import UserError
from kstep.models import build_model, checkpoint as checkpoints, pair_mlp_numpy
from kstep.models.batch import replicate
from kstep.models.model_config import ModelConfig
from kstep.models.network import Network
from kstep.models.pair_mlp_numpy import FastPairMLP, pairs_by_offset

NUMBERS = np.array([6, 8, 1, 1, 1, 1])  # methanol
MASSES = np.array([12.011, 15.999, 1.008, 1.008, 1.008, 1.008])
BONDS = np.array([[0, 1], [0, 2], [0, 3], [0, 4], [1, 5]])
SHAPE = np.array([[0, 0, 0], [0.142, 0, 0], [-0.036, 0.103, 0], [-0.036, -0.051, 0.089],
                  [-0.036, -0.051, -0.089], [0.174, 0.090, 0.01]])


def positions(n=5, seed=0):
    return SHAPE + np.random.default_rng(seed).normal(scale=0.005, size=(n, 6, 3))


def make_model(seed=0, widths=(32, 24)):
    torch.manual_seed(seed)
    config = ModelConfig(arch="pair_mlp", pair_hidden=list(widths))
    model = build_model(config, {"numbers": NUMBERS, "bonds": BONDS})
    rng = np.random.default_rng(seed)
    x = positions(200, seed + 1)
    model.fit_normalisation({"positions": x, "energies": -30000 + 10 * rng.normal(size=200), "dt_ps": 5e-4})
    torch.nn.init.normal_(model.slope, std=0.3)
    torch.nn.init.normal_(model.readout, std=0.3)
    return model.eval()


def make_checkpoint(path, model=None, **changes):
    model = model or make_model()
    state = model.state_dict()
    buffers = dict(model.named_buffers())
    content = {
        "state_dict": state, "config": model.config.model_dump(), "normalisation": buffers, "k_steps": 8,
        "dt_fs": 0.5, "spans": [8, 4, 2], "units": "nm ps Da kJ/mol", "elements": [1, 6, 8],
        "molecule": {"numbers": torch.as_tensor(NUMBERS), "masses": torch.as_tensor(MASSES),
                     "bonds": torch.as_tensor(BONDS)},
        "temperature_K": 300.0, "method": "GFN2-xTB", "data_sha256": "0" * 64, "true_calls_training": 100,
        **changes,
    }
    checkpoints.save(path, content)
    return path


def batch_of(x):
    batch = replicate(NUMBERS, MASSES, BONDS, len(x))
    batch.positions = torch.as_tensor(x).reshape(-1, 3)
    return batch


def test_forces_are_minus_the_gradient():
    model, x = make_model().double(), positions(1)
    forces = model.energy_and_forces(batch_of(x))[1].numpy().reshape(6, 3)
    h = 1e-5
    for atom in range(6):
        for axis in range(3):
            up, down = x.copy(), x.copy()
            up[0, atom, axis] += h
            down[0, atom, axis] -= h
            with torch.no_grad():
                slope = (model.energy(batch_of(up)) - model.energy(batch_of(down))) / (2 * h)
            assert -float(slope) == pytest.approx(forces[atom, axis], rel=1e-5, abs=1e-3)


def test_energy_is_invariant_and_forces_turn_with_the_molecule():
    model, x = make_model().double(), positions(4)
    q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    energy, forces = model.energy_and_forces(batch_of(x))
    turned_energy, turned_forces = model.energy_and_forces(batch_of(x @ q.T + [1.0, -2.0, 3.0]))
    scale = float(forces.abs().max())
    assert torch.allclose(energy, turned_energy, rtol=0, atol=1e-10 * 30000)
    assert np.abs(turned_forces.numpy() - forces.numpy() @ q.T).max() < 1e-10 * scale
    assert np.abs(forces.numpy().reshape(4, 6, 3).sum(1)).max() < 1e-10 * scale


def test_energy_and_force_are_continuous_in_their_derivatives_for_training():
    model = make_model().double()
    x = torch.as_tensor(positions(2)).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda y: model.energy_and_gradient(y)[0], x)
    assert torch.autograd.gradcheck(lambda y: model.energy_and_gradient(y)[1], x, rtol=1e-4)


@pytest.mark.parametrize("widths", [(16,), (32, 24), (16, 24, 32)])
@pytest.mark.parametrize("n_replicas", [1, 7, 64])
def test_hot_path_equals_the_double_precision_network(widths, n_replicas):
    model, x = make_model(widths=widths), positions(n_replicas) + 5.0
    energy, forces = FastPairMLP(model).energy_and_forces(x)
    exact_energy, exact_forces = model.double().energy_and_forces(batch_of(x))
    exact_forces = exact_forces.numpy().reshape(x.shape)
    assert energy.dtype == forces.dtype == np.float64 and forces.flags.c_contiguous
    assert np.abs(energy - exact_energy.numpy()).max() < 1e-3
    assert np.abs(forces - exact_forces).max() < 1e-5 * np.abs(exact_forces).max()


def chain(n_atoms, n_replicas=5):
    """A network of a zigzag of carbons, every weight random, and positions of it."""
    torch.manual_seed(n_atoms)
    rng, at = np.random.default_rng(n_atoms), np.arange(n_atoms)
    model = build_model(ModelConfig(arch="pair_mlp", pair_hidden=[16, 12]),
                        {"numbers": np.full(n_atoms, 6), "bonds": np.stack([at[:-1], at[1:]], 1)})
    zigzag = np.stack([0.12 * at, 0.08 * (at % 2), np.zeros(n_atoms)], 1)
    x = zigzag + rng.normal(scale=0.005, size=(200, n_atoms, 3))
    model.fit_normalisation({"positions": x, "energies": -1000 + 10 * rng.normal(size=200)})
    for parameter in (model.slope, model.readout, model.stiffness):
        torch.nn.init.normal_(parameter, std=0.3)
    return model, x[:n_replicas]


def exactly(model, x):
    """Energy (R,) and forces (R,N,3) of the network in float64."""
    energy, forces = copy.deepcopy(model).double().energy_and_gradient(torch.as_tensor(x))
    return energy.detach().numpy(), forces.detach().numpy()


@pytest.mark.parametrize("n_atoms", [2, 3, 4, 5, 8, 9])
def test_hot_path_meets_every_pair_once(n_atoms):
    model, x = chain(n_atoms)
    assert np.array_equal(np.sort(pairs_by_offset(n_atoms)), np.arange(n_atoms * (n_atoms - 1) // 2))
    energy, forces = FastPairMLP(model).energy_and_forces(x)
    exact_energy, exact_forces = exactly(model, x)
    assert np.abs(energy - exact_energy).max() < 1e-3
    assert np.abs(forces - exact_forces).max() < 1e-5 * np.abs(exact_forces).max()


@pytest.mark.parametrize("n_atoms", [8, 9])
def test_hot_path_in_blocks_is_the_network(n_atoms, monkeypatch):
    """A replica's energy is the same in any batch: single precision moves it by less than 1e-4 kJ/mol."""
    model, x = chain(n_atoms, 64)
    whole_energy, whole = FastPairMLP(model).energy_and_forces(x)
    monkeypatch.setattr(pair_mlp_numpy, "BLOCK_BYTES", 30_000)
    fast = FastPairMLP(model)
    for n in (64, 63, 1, 64):
        energy, forces = fast.energy_and_forces(x[:n])
        assert n == 1 or len(fast._blocks) > 2
        assert np.abs(energy - whole_energy[:n]).max() < 1e-4
        assert np.abs(forces - whole[:n]).max() < 1e-5 * np.abs(whole).max()


def test_forces_alone_are_those_beside_the_energy(tmp_path):
    network, x = Network.load(make_checkpoint(tmp_path / "best.pt"), NUMBERS, MASSES, BONDS), positions(7)
    forces = network.forces(network.native(x))
    assert forces.shape == network.native(x).shape
    assert np.array_equal(network.numpy(forces), network.energy_and_forces(x)[1])


def test_a_replica_that_blew_up_leaves_the_others_alone():
    fast, x = FastPairMLP(make_model()), positions(6)
    energy, forces = fast.energy_and_forces(x)
    wrong = x.copy()
    wrong[2, 3] = np.nan
    for _ in range(2):
        found_energy, found = fast.energy_and_forces(wrong)
        assert np.isnan(found_energy[2]) and np.isnan(found[2]).any()
        rest = np.arange(6) != 2
        assert np.abs(found[rest] - forces[rest]).max() < 1e-5 * np.abs(forces).max()
        assert np.abs(found_energy[rest] - energy[rest]).max() < 1e-4
    assert np.array_equal(fast.energy_and_forces(x)[1], forces)


def test_hot_path_refuses_another_molecule():
    with pytest.raises(UserError, match="6 atoms"):
        FastPairMLP(make_model()).energy_and_forces(np.zeros((4, 7, 3)))


def test_hot_path_depends_on_positions_alone():
    fast, x = FastPairMLP(make_model()), positions(8)
    first = fast.energy_and_forces(x)
    kept = [a.copy() for a in first]
    fast.energy_and_forces(positions(3, seed=9))
    second = fast.energy_and_forces(x)
    for a, b, c in zip(first, kept, second):
        assert np.array_equal(a, b) and np.array_equal(b, c)


def test_fused_atoms_cost_energy():
    model = make_model().double()
    x = np.repeat(SHAPE[None], 5, 0)
    for i, share in enumerate([0.5, 0.8, 0.9, 0.95, 0.98]):
        x[i, 5] = SHAPE[2] + (1 - share) * (SHAPE[5] - SHAPE[2])
    energy = model.energy_and_forces(batch_of(x))[0].numpy()
    assert energy[-1] > energy[-2] > energy[-3] and energy[-1] > energy[0]


METHYL_TURNS = np.array([[0, 1, 2, 3, 4, 5], [0, 1, 3, 4, 2, 5], [0, 1, 4, 2, 3, 5]])


def closed_in(labels, orders=METHYL_TURNS, **how):
    model = make_model(**how)
    model.close_in(labels, orders)
    return model.double()


def clashing(labels):
    """The last of the labels, the hydrogen of the hydroxyl at a methyl's: (3,6,3), 0.06 to 0.10 nm from it."""
    x = np.repeat(labels[-1:], 3, axis=0)
    direction = x[:, 5] - x[:, 2]
    x[:, 5] = x[:, 2] + direction / np.linalg.norm(direction, axis=1)[:, None] * np.array([[0.06], [0.08], [0.10]])
    return x


def test_contacts_leave_the_labels_alone_and_push_apart_what_clashes():
    labels = positions(50)
    model, bare = closed_in(labels), make_model().double()
    for a, b in zip(model.energy_and_forces(batch_of(labels)), bare.energy_and_forces(batch_of(labels))):
        assert torch.equal(a, b)
    x, first, second = clashing(labels), *np.triu_indices(6, 1)
    inverse = 1.0 / np.linalg.norm(x[:, first] - x[:, second], axis=-1)
    wall = 2e4 * (np.maximum(0.0, inverse * model.contact.numpy() - 1.0) ** 2).sum(1)
    added = model.energy_and_forces(batch_of(x))[0] - bare.energy_and_forces(batch_of(x))[0]
    assert added.numpy() == pytest.approx(wall) and (wall > 1000.0).all()
    forces, h = model.energy_and_forces(batch_of(x))[1].numpy().reshape(x.shape), 1e-6
    up, down = x.copy(), x.copy()
    up[:, 5, 0] += h
    down[:, 5, 0] -= h
    slope = (model.energy(batch_of(up)) - model.energy(batch_of(down))).detach().numpy() / (2 * h)
    assert -slope == pytest.approx(forces[:, 5, 0], rel=1e-4)


def test_hot_path_knows_contacts():
    labels = positions(50)
    model = closed_in(labels)
    x = np.concatenate([labels[:4], clashing(labels)])
    energy, forces = FastPairMLP(model.float()).energy_and_forces(x)
    exact_energy, exact_forces = model.double().energy_and_forces(batch_of(x))
    assert energy == pytest.approx(exact_energy.numpy(), rel=3e-6)  # of single precision
    assert forces == pytest.approx(exact_forces.numpy().reshape(x.shape), rel=1e-4, abs=0.1)


def test_a_contact_is_that_of_all_labellings_and_of_all_pairs_alike():
    """What is far apart in all labels may come as near as any other such pair of these elements."""
    labels = positions(50)
    contact = closed_in(labels).contact.numpy()
    of = {(int(i), int(j)): float(c) for i, j, c in zip(*np.triu_indices(6, 1), contact)}
    closest = {pair: np.linalg.norm(labels[:, pair[0]] - labels[:, pair[1]], axis=-1).min() for pair in of}
    for margin, alike in (
            (1.15, ((2, 5), (3, 5), (4, 5))),  # three bonds apart: they come as near as the closest of them
            (1.05, ((0, 2), (0, 3), (0, 4))), (1.10, ((2, 3), (2, 4), (3, 4))),  # the methyl turns
            (1.10, ((1, 2), (1, 3), (1, 4))),
            (1.10, ((0, 5),))):  # an H near a C as those of the methyl are, but two bonds away
        assert {of[pair] for pair in alike} == {of[alike[0]]}
        assert of[alike[0]] == pytest.approx(min(closest[pair] for pair in alike) / margin)


def test_a_checkpoint_older_than_contacts_has_none(tmp_path):
    state = make_model().state_dict()
    del state["contact"]
    path = make_checkpoint(tmp_path / "old.pt", state_dict=state)
    model = checkpoints.model_from(checkpoints.load(path))
    assert not model.contact.any()


def test_another_order_of_atoms_is_refused(tmp_path):
    path = make_checkpoint(tmp_path / "best.pt")
    Network.load(path, NUMBERS, MASSES, BONDS[:, ::-1])
    for numbers, bonds in [(NUMBERS[[1, 0, 2, 3, 4, 5]], BONDS), (NUMBERS, [[0, 1], [1, 2], [0, 3], [0, 4], [0, 5]])]:
        with pytest.raises(UserError, match="another molecule"):
            Network.load(path, numbers, MASSES, bonds)


@pytest.mark.parametrize("wanted, words", [
    ({"dt_fs": 0.25}, "dt 0.5 fs"), ({"k_steps": 12}, "not on k = 12"), ({"method": "GFN1-xTB"}, "GFN2-xTB")])
def test_a_run_with_another_k_dt_or_method_is_refused(tmp_path, wanted, words):
    path = make_checkpoint(tmp_path / "best.pt")
    with pytest.raises(UserError, match=words):
        Network.load(path, NUMBERS, MASSES, BONDS, **wanted)
    Network.load(path, NUMBERS, MASSES, BONDS, dt_fs=0.5, k_steps=4, method="GFN2-xTB")


def test_checkpoint_refuses_nonsense(tmp_path):
    path = make_checkpoint(tmp_path / "best.pt")
    whole = path.read_bytes()
    for name, content in [("cut.pt", whole[: len(whole) // 2]), ("text.pt", b"not a checkpoint"), ("empty.pt", b"")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="is damaged" if name == "cut.pt" else "truncated or not a checkpoint"):
            checkpoints.load(tmp_path / name)
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="is not a checkpoint"):
        checkpoints.load(tmp_path / "other.pt")
    torch.save(make_model(), tmp_path / "pickled.pt")  # a pickled class could run code: never opened
    with pytest.raises(UserError, match="not a checkpoint"):
        checkpoints.load(tmp_path / "pickled.pt")
    with pytest.raises(UserError, match="does not exist"):
        checkpoints.load(tmp_path / "absent.pt")
    with pytest.raises(UserError, match="also holds \\[7\\]"):
        Network.load(path, np.array([7, 8, 1, 1, 1, 1]), MASSES, BONDS)


def test_network_scales_the_learned_force(tmp_path):
    path, x = make_checkpoint(tmp_path / "best.pt"), positions(3)
    whole, half = (Network.load(path, NUMBERS, MASSES, BONDS, delta_scale=s) for s in (1.0, 0.5))
    assert np.allclose(half.forces(half.native(x)), 0.5 * whole.forces(whole.native(x)))
    energy, forces = whole.energy_and_forces(x)
    assert energy.shape == (3,) and np.array_equal(forces, whole.numpy(whole.forces(whole.native(x))))
    with pytest.raises(UserError, match="no jump head"):
        whole.jump(x, x, x, 8)


def test_checkpoint_of_another_model_config_is_refused(tmp_path):
    path = make_checkpoint(tmp_path / "best.pt")
    checkpoint = checkpoints.load(path)
    same, other = tmp_path / "same.yaml", tmp_path / "other.yaml"
    same.write_text("arch: pair_mlp\npair_hidden: [32, 24]\n")
    other.write_text("arch: pair_mlp\npair_hidden: [32, 32]\n")
    checkpoints.check_config(checkpoint, path, same)
    with pytest.raises(UserError, match="pair_hidden"):
        checkpoints.check_config(checkpoint, path, other)


def test_first_checkpoints_still_load(tmp_path):
    model = make_model()
    path = make_checkpoint(tmp_path / "best.pt", model,
                           config={**model.config.model_dump(), "pair_features": "inverse"})
    network = Network.load(path, NUMBERS, MASSES, BONDS)
    assert np.isfinite(network.energy_and_forces(positions())[0]).all()
