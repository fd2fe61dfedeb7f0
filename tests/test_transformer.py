"""The Transformer-EGNN beyond what test_models.py asks of both networks: bonds, attention, dropout, YAML."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from kstep.config import load_config
from kstep.errors import UserError
from kstep.models import attention, checkpoint as checkpoints
from kstep.models.batch import replicate
from kstep.models.bond_graph import LARGEST_RING, bond_graph
from kstep.models.dense import Grid, envelope
from kstep.models.model_config import ModelConfig
from kstep.models.network import Network
from kstep.models.symmetry import predictions, symmetry_errors
from kstep.topology import ring_bonds
from test_models import model_of, ragged_batch

ROOT = Path(__file__).parents[1]
FACTS = {"k_steps": 4, "dt_fs": 0.5, "spans": [4], "units": checkpoints.UNITS, "molecule": None,
         "temperature_K": 300.0, "method": "springs", "data_sha256": "", "true_calls_training": 1}
# Biphenyl's carbons with a tail, cubane's edge-sharing squares, and a ring too large to be one.
BIPHENYL = [(a, (a + 1) % 6) for a in range(6)] + [(a + 6, (a + 1) % 6 + 6) for a in range(6)] + [(0, 6), (3, 12)]
FUSED = [(0, 1), (1, 2), (2, 3), (3, 0), (2, 4), (4, 5), (5, 6), (6, 3)]
LARGE = [(a, (a + 1) % (LARGEST_RING + 1)) for a in range(LARGEST_RING + 1)]


def transformer(**keys):
    return model_of(arch="transformer_egnn", **keys)


def graph_of(bonds, n_atoms, cap=4, n_replicas=1):
    batch = replicate([6] * n_atoms, [12.0] * n_atoms, bonds, n_replicas)
    return bond_graph(batch, Grid(batch), cap)


@pytest.mark.parametrize("bonds, sizes", [
    (BIPHENYL, [6] * 12 + [0]), (FUSED, [4, 4, 4, 4, 5, 5, 5]), (LARGE, [0] * len(LARGE)), ([(0, 1), (1, 2)], [0] * 3)])
def test_rings_are_those_of_the_bonds(bonds, sizes):
    graph = graph_of(bonds, len(sizes), n_replicas=2)
    assert graph.ring_size.tolist() == [sizes, sizes]
    expected = np.zeros((len(sizes), len(sizes)), dtype=bool)
    if bonds is not LARGE:
        for (i, j), cyclic in zip(bonds, ring_bonds(len(sizes), bonds)):
            expected[i, j] = expected[j, i] = cyclic
    assert np.array_equal(graph.ring_bond[1].numpy(), expected)


def test_paths_are_shortest_and_capped():
    from scipy.sparse.csgraph import shortest_path

    bonds = np.array(BIPHENYL)
    adjacency = np.zeros((14, 14))  # the last atom is bonded to none
    adjacency[bonds[:, 0], bonds[:, 1]] = 1
    paths = shortest_path(adjacency, directed=False, unweighted=True)
    for cap in (1, 3, 20):
        assert np.array_equal(graph_of(bonds, 14, cap).distance[0].numpy(), np.minimum(paths, cap + 1))


def test_molecules_of_a_ragged_batch_have_their_own_bonds():
    batch = ragged_batch(sizes=(5, 9, 3))
    graph = bond_graph(batch, Grid(batch), 4)
    assert graph.ring_size.tolist() == [[5] * 5 + [0] * 4, [0] * 9, [0] * 9]
    assert graph.distance[1, 0].tolist() == [0, 1, 2, 3, 4, 5, 5, 5, 5]
    assert graph.distance[2, 0].tolist() == [0, 1, 2] + [5] * 6


def test_the_network_sees_bonds_and_rings():
    batch, chain = ragged_batch(), ragged_batch()
    chain.bonds = chain.bonds[1:]  # the first molecule's ring opens; the others stay
    model = transformer()
    before, after = model.energy(batch).detach(), model.energy(chain).detach()
    assert float((before - after)[0].abs()) > 1e-3
    assert torch.equal(before[1:], after[1:])


def test_the_network_sees_paths_where_no_ring_is():
    batch, rewired = ragged_batch(sizes=(4, 9)), ragged_batch(sizes=(4, 9))
    rewired.bonds[-1, 0] = 4  # the second molecule's last atom hangs at its first
    model = transformer()
    before, after = model.energy(batch).detach(), model.energy(rewired).detach()
    assert float((before - after)[1].abs()) > 1e-3 and torch.equal(before[0], after[0])


def test_no_weight_is_dead():
    model, batch = transformer(cutoff_nm=1.0), ragged_batch()  # pairs five bonds apart are seen
    said = (model.energy(batch), model.direct_forces(batch), *model.jump(batch))
    sum(values.square().sum() for values in said).backward()
    for name, weight in model.named_parameters():
        if not name.startswith("jump_head.springs"):  # of the propagator, which both architectures share
            assert weight.grad is not None and float(weight.grad.abs().max()) > 0, name
    for part in (model.energy_head, model.jump_head):
        for columns in (part.layers[0].bias.weight.grad, part.layers[0].filter.weight.grad):
            of_each_path = columns[:, -part.encoding.pair_dim:].abs().amax(0)
            assert float(of_each_path.min()) > 0


def test_attention_sums_to_less_than_one_and_survives_large_scores():
    g = torch.Generator().manual_seed(0)
    scores = 300.0 * torch.randn(2, 3, 5, 5, generator=g, dtype=torch.float64)
    weight = torch.rand(2, 5, 5, generator=g, dtype=torch.float64)
    weight[:, :, 0] = 0.0
    share = attention.fading_softmax(scores, weight) * weight[:, None]
    assert torch.isfinite(share).all() and float(share.sum(-1).max()) <= 1.0
    assert float(share[..., 0].abs().max()) == 0.0
    small = scores / 300.0
    plain = weight[:, None] * small.exp() / (1 + (weight[:, None] * small.exp()).sum(-1, keepdim=True))
    torch.testing.assert_close(attention.fading_softmax(small, weight) * weight[:, None], plain, rtol=1e-13, atol=0)


def test_the_last_neighbour_fades_too():
    """The softmax over one neighbour is 1 at any distance if nothing stands beside it in the denominator."""
    distance = torch.tensor([0.1, 0.399, 0.4 - 1e-6], dtype=torch.float64)
    weight = torch.zeros(3, 2, 2, dtype=torch.float64)
    weight[:, 0, 1] = envelope(distance, 0.4)
    share = (attention.fading_softmax(torch.full((3, 1, 2, 2), 2.0, dtype=torch.float64), weight) * weight[:, None])
    near, far, edge = share[:, 0, 0, 1].tolist()
    assert near > 0.8 and far < 1e-4 and edge < 1e-12


@pytest.mark.parametrize("what", ["energy", "jump"])
def test_energy_and_force_have_no_step_where_the_only_neighbour_leaves(what):
    """A diatomic: beyond the cutoff each atom is alone; across it nothing may jump."""
    model = transformer(cutoff_nm=0.3, spring_cutoff_nm=0.3, elements=[1, 6])
    batch = replicate([6, 1], [12.011, 1.008], [(0, 1)], 1)
    batch.velocities = torch.zeros(2, 3, dtype=torch.float64)
    batch.forces = 100.0 * torch.ones(2, 3, dtype=torch.float64)
    batch.tau_ps = torch.tensor([0.004], dtype=torch.float64)

    def values(distance):
        batch.positions = torch.tensor([[0.0, 0, 0], [distance, 0, 0]], dtype=torch.float64)
        if what == "energy":
            energy, forces = model.energy_and_forces(batch)
            return energy, forces
        x, v = model.jump(batch)
        return (x - batch.positions).detach(), v.detach()

    inside, edge, beyond = values(0.25), values(0.3 - 1e-7), values(0.3 + 1e-7)
    for a, b, c in zip(inside, edge, beyond):
        assert float((b - c).abs().max()) < 1e-6 * float((a - c).abs().max())
    if what == "energy":
        assert float(edge[1].abs().max()) < 1e-6 * float(inside[1].abs().max())


def test_mirror_images_have_one_energy_and_isomers_two():
    model, batch = transformer(), ragged_batch()
    mirrored = replace(batch, positions=batch.positions * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    torch.testing.assert_close(model.energy(mirrored), model.energy(batch), rtol=1e-13, atol=0)
    other = batch.positions.clone()
    other[0, 2] = -other[0, 2] - 0.05  # one atom through the plane of its neighbours: another molecule
    assert float((model.energy(replace(batch, positions=other)) - model.energy(batch)).detach().abs().max()) > 1e-3


def test_dropout_acts_in_training_alone_and_keeps_the_symmetries():
    batch = ragged_batch()
    model, without = transformer(dropout=0.3), transformer()
    first, second = (model.energy(batch).detach() for _ in range(2))
    assert not torch.equal(first, second)
    for mode in (model.eval(), without.train()):
        for what, (_, values) in predictions(mode, batch).items():
            torch.testing.assert_close(values, predictions(without.eval(), batch)[what][1], rtol=0, atol=0)
    model.train()
    rotated = batch.positions @ torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64).T
    for moved in (batch.positions, rotated):
        torch.manual_seed(3)
        energy, forces = model.energy_and_forces(replace(batch, positions=moved))
        if moved is batch.positions:
            kept = energy, forces
    torch.testing.assert_close(energy, kept[0], rtol=1e-12, atol=0)
    assert float(forces.norm(dim=1).sub(kept[1].norm(dim=1)).abs().max()) < 1e-9 * float(forces.abs().max())


@pytest.mark.parametrize("key, value", [("attention_heads", 1), ("feedforward_dim", 32), ("max_bond_distance", 2),
                                        ("use_force_head", False)])
def test_every_key_of_its_own_changes_the_network(key, value):
    batch = ragged_batch()
    before, after = predictions(transformer(), batch), predictions(transformer(**{key: value}), batch)
    assert set(before) != set(after) or any(not torch.equal(before[what][1], after[what][1]) for what in before)


def test_heads_must_divide_the_channels():
    with pytest.raises(UserError, match="vector_dim 6 does not split into attention_heads 4"):
        transformer(attention_heads=4)


def test_the_yaml_lists_and_explains_every_key():
    path = ROOT / "configs" / "model_transformer.yaml"
    assert set(yaml.safe_load(path.read_text())) == set(ModelConfig.model_fields) - {"pair_hidden"}
    for line in path.read_text().splitlines():
        if re.match(r"\s*\w+:", line) and not re.match(r"heads:\s*$", line):
            assert re.search(r"\s#\s*\S", line), f"'{line.strip()}' has no comment"
    config = load_config(ModelConfig, path)
    transformer(**config.model_dump(exclude={"arch"}))


def test_checkpoint_round_trip(tmp_path):
    model, batch = transformer().float(), ragged_batch()
    checkpoints.save(tmp_path / "best.pt", {**FACTS, **checkpoints.packed(model, FACTS)})
    again = checkpoints.model_from(checkpoints.load(tmp_path / "best.pt"))
    assert not again.training
    for what, (_, values) in predictions(model.eval(), batch).items():
        assert torch.equal(predictions(again, batch)[what][1], values)


def test_replicas_of_one_molecule_are_computed_as_each_alone():
    batch = ragged_batch(sizes=(9,), tau_steps=(4,))
    network = Network(transformer(), batch.numbers, batch.masses, batch.bonds, metadata={"spans": [4]})
    g = torch.Generator().manual_seed(2)
    x = (batch.positions + 0.01 * torch.randn(5, 9, 3, generator=g, dtype=torch.float64)).numpy()
    energy, forces = network.energy_and_forces(x)
    for r in range(5):
        own_energy, own_forces = network.energy_and_forces(x[r:r + 1])
        np.testing.assert_allclose(energy[r], own_energy[0], rtol=1e-12)
        np.testing.assert_allclose(forces[r], own_forces[0], atol=1e-9)
    assert np.ptp(energy) > 0.1


def test_a_replicated_molecule_keeps_every_symmetry():
    batch = ragged_batch(sizes=(7, 7), tau_steps=(4, 8))  # no padding: the grid without a slot
    for operation, deviations in symmetry_errors(transformer(), batch, torch.Generator().manual_seed(3)).items():
        for what, deviation in deviations.items():
            assert deviation < 1e-10 * max(1.0, float(predictions(transformer(), batch)[what][1].abs().max())), \
                (operation, what)
