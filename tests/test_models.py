"""The transferable networks: their symmetries, their limits, and that every key of their YAML acts."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import ROOT
from kstep.errors import UserError
from kstep.models import REGISTRY, build_model, network_class
from kstep.models.batch import MoleculeBatch
from kstep.models.dense import CELLS_PER_PAIR, Grid
from kstep.models.model_config import ModelConfig
from kstep.models.radius_graph import RadiusGraph
from kstep.models.symmetry import predictions, shake, symmetry_errors

DT_PS = 0.0005
BOTH = {"energy": True, "jump": True}
ARCHITECTURES = [name for name in REGISTRY if not network_class(name).bound_to_one_molecule]
architectures = pytest.mark.parametrize("arch", ARCHITECTURES)


def molecule(n_atoms: int, generator: torch.Generator):
    """Atoms on a jittered zigzag, 0.13 nm apart: distances as in a molecule, no symmetry."""
    steps = torch.arange(n_atoms, dtype=torch.float64)
    x = torch.stack([0.11 * steps, 0.07 * (steps % 2), 0.05 * (steps % 3)], 1)
    return x + 0.01 * torch.randn(n_atoms, 3, generator=generator, dtype=torch.float64)


def ragged_batch(sizes=(5, 9, 3), tau_steps=(8, 4, 1), seed=1) -> MoleculeBatch:
    """Molecules of different size and jump length, float64: chains, the first of which closes to a ring."""
    g = torch.Generator().manual_seed(seed)
    n = sum(sizes)
    numbers = torch.tensor([1, 6, 8, 7])[torch.randint(0, 4, (n,), generator=g)]
    masses = torch.tensor([1.008, 12.011, 15.999, 14.007], dtype=torch.float64)[
        torch.tensor([[1, 6, 8, 7].index(z) for z in numbers.tolist()])]
    return MoleculeBatch(
        numbers=numbers, masses=masses, positions=torch.cat([molecule(s, g) for s in sizes]),
        graph=torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)), n_graphs=len(sizes),
        bonds=torch.cat([torch.tensor([[0, sizes[0] - 1]])] + [
            torch.stack([torch.arange(s - 1), torch.arange(1, s)], 1) + sum(sizes[:m]) for m, s in enumerate(sizes)]),
        velocities=torch.randn(n, 3, generator=g, dtype=torch.float64),
        forces=1000.0 * torch.randn(n, 3, generator=g, dtype=torch.float64),
        tau_ps=torch.tensor(tau_steps, dtype=torch.float64) * DT_PS)


def model_of(seed=0, shaken=True, **keys):
    keys = {"heads": BOTH, "hidden_dim": 16, "vector_dim": 6, "num_layers": 2, "num_rbf": 8, "use_force_head": True,
            "elements": [1, 6, 7, 8], "propagator": "bounded", "attention_heads": 2, "feedforward_dim": 24, **keys}
    torch.manual_seed(seed)
    model = build_model(ModelConfig(**keys)).double()
    model.fit_normalisation({"dt_ps": DT_PS, "force_rms": 1500.0})
    if shaken:
        shake(model, torch.Generator().manual_seed(seed + 1), 0.2)
    return model


@pytest.mark.parametrize("arch, propagator", [("egnn", "taylor"), ("egnn", "auto"),
                                              *((arch, "bounded") for arch in ARCHITECTURES)])
def test_rotation_reflection_translation_and_permutation_change_nothing(arch, propagator):
    model, batch = model_of(arch=arch, propagator=propagator), ragged_batch()
    for operation, deviations in symmetry_errors(model, batch, torch.Generator().manual_seed(3)).items():
        for what, deviation in deviations.items():
            size = max(1.0, float(predictions(model, batch)[what][1].abs().max()))
            assert deviation < 1e-10 * size, (operation, what)


@architectures
def test_predictions_are_not_trivially_symmetric(arch):
    batch = ragged_batch()
    said, said_by_propagator = model_of(arch=arch).jump(batch), model_of(arch=arch).propagate(batch)
    for learned, cheap, least in zip(said, said_by_propagator, (1e-4, 1e-2)):
        assert float((learned - cheap).detach().abs().max()) > least
    energy = model_of(arch=arch).energy(batch)
    assert float(energy.detach().std()) > 0.1


@architectures
def test_forces_are_minus_the_gradient_of_the_energy(arch):
    model, batch = model_of(arch=arch), ragged_batch()
    _, forces = model.energy_and_forces(batch)
    h = 1e-5
    for row in range(0, len(batch.numbers), 3):
        for axis in range(3):
            shift = torch.zeros_like(batch.positions)
            shift[row, axis] = h
            up, down = (model.energy(replace(batch, positions=batch.positions + s)).sum() for s in (shift, -shift))
            assert float(-(up - down).detach() / (2 * h)) == pytest.approx(float(forces[row, axis]), abs=1e-4, rel=1e-6)


def layouts_of(model, batch):
    return (replace(batch, layout=model.layout(batch, sparse)) for sparse in (False, True))


def energy_pair_by_pair(model, batch):
    """The energy head as its docstrings write it, atom by atom and pair by pair."""
    head, total = model.energy_head, []
    for g in range(batch.n_graphs):
        own = batch.graph == g
        x, species = batch.positions[own], model.element_index[batch.numbers[own]]
        h, V = head.embedding(species), x.new_zeros(len(x), 3, head.vector_dim)
        for layer in head.layers:
            new_h, new_V = [], []
            for i in range(len(x)):
                message, gathered = 0.0, 0.0
                for j in set(range(len(x))) - {i}:
                    d = x[i] - x[j]
                    r = d.norm()
                    u = (r / head.cutoff).clamp(max=1.0)
                    w = 1 - 10 * u**3 + 15 * u**4 - 6 * u**5
                    e = head.basis(r)
                    m = w * layer.act(layer.receiver(h[i]) + layer.sender(h[j]) + layer.edge(e))
                    a, b = layer.coefficients(m).split(layer.vector_dim)
                    message = message + m
                    gathered = gathered + d[:, None] / r * a + (V[j] - V[i]) * b
                kept, seen = layer.mix(V[i]).split(layer.vector_dim, -1)
                size = ((seen + gathered).square().sum(0) + 1e-2).sqrt()
                dh, gate = layer.update(torch.cat([h[i], message, size])).split([len(h[i]), layer.vector_dim])
                new_h.append(h[i] + dh)
                new_V.append(V[i] + kept + gathered * (1 + gate))
            h, V = torch.stack(new_h), torch.stack(new_V)
        total.append(model.reference_energy[species].sum() + model.energy_scale * head.readout(h).sum())
    return torch.stack(total)


def test_energy_and_forces_are_those_of_the_formulas():
    """The grid or list, the sums taken early and the zeros left out change rounding alone (1e-12 in float64)."""
    model, batch = model_of(num_layers=3), ragged_batch()
    model.fit_normalisation({"elements": model.elements, "reference_energy": [-1.0, -100.0, -150.0, -200.0]})
    predicted = [model.energy_and_forces(given) for given in layouts_of(model, batch)]
    batch.positions.requires_grad_(True)
    expected = energy_pair_by_pair(model, batch)
    expected_forces = -torch.autograd.grad(expected.sum(), batch.positions)[0]
    expected = expected.detach()
    for energy, forces in predicted:
        assert float((energy - expected).abs().max()) < 1e-12 * float(expected.abs().max())
        assert float((forces - expected_forces).abs().max()) < 1e-12 * float(expected_forces.abs().max())


@architectures
def test_a_batch_that_is_used_again_keeps_its_layout_alone(arch):
    model, batch = model_of(arch=arch), ragged_batch()
    again = replace(batch, layout=model.layout(batch))
    for shift in (0.0, 0.01):
        moved = batch.positions * (1 + shift)
        for one, other in zip(model.energy_and_forces(replace(batch, positions=moved)),
                              model.energy_and_forces(replace(again, positions=moved))):
            assert torch.equal(one, other)


@pytest.mark.parametrize("arch", [name for name in ARCHITECTURES if "sparse" in network_class(name).ways])
@pytest.mark.parametrize("sizes", [(9, 9, 9), (5, 30, 1, 3)])
def test_a_radius_graph_gives_what_all_pairs_give(arch, sizes):
    """Predictions, and what training goes down: only the order of the sums differs."""
    model, batch = model_of(arch=arch, num_layers=3), ragged_batch(sizes, tau_steps=(8, 4, 1, 2)[:len(sizes)])
    gradients = []
    dense, sparse = layouts_of(model, batch)
    assert isinstance(dense.layout[0], Grid) and isinstance(sparse.layout[0], RadiusGraph)
    for (what, (_, expected)), (_, values) in zip(predictions(model, dense).items(),
                                                  predictions(model, sparse).values()):
        assert float((values - expected).abs().max()) < 1e-10 * float(expected.abs().max()), what
    for given in (dense, sparse):
        model.zero_grad()
        energy, forces = model.energy_and_forces(given, create_graph=True)
        x, v = model.jump(given)
        (energy.square().mean() + forces.square().mean() + x.square().sum() + v.square().sum()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert float((gradients[0] - gradients[1]).abs().max()) < 1e-10 * float(gradients[0].abs().max())


@pytest.mark.parametrize("sizes, listed", [((8,), False), ((7, 8), False), ((40,), True), ((4, 8, 12), True)])
def test_pairs_are_listed_where_most_cells_of_a_grid_are_empty(sizes, listed):
    """Chains of six neighbours within 0.4 nm; by what benchmarks/ragged.py measured, and never for attention."""
    batch = ragged_batch(sizes, tau_steps=[8] * len(sizes))
    near = Grid(batch).near(batch.positions, 0.4)
    assert bool(near.numel() > CELLS_PER_PAIR * near.sum()) == listed
    assert isinstance(model_of(cutoff_nm=0.4).layout(batch)[0], RadiusGraph if listed else Grid)
    assert isinstance(model_of(cutoff_nm=0.4, arch="transformer_egnn").layout(batch)[0], Grid)


def test_pairs_are_listed_where_the_benchmark_saw_a_clear_gain():
    rows = json.loads((ROOT / "benchmarks/results/ragged.json").read_text())["training"].values()
    listed, others = ([row["times_faster"] for row in rows if (row["cells_per_pair"] > CELLS_PER_PAIR) == above]
                      for above in (True, False))
    assert min(listed) > 1.1 and max(others) < 1.3


@architectures
def test_net_force_and_torque_vanish(arch):
    model, batch = model_of(arch=arch), ragged_batch()
    _, forces = model.energy_and_forces(batch)
    torque = torch.linalg.cross(batch.positions, forces)
    for vector in (forces, torque, model.direct_forces(batch).detach()):
        if vector is not torque:
            assert float(vector.abs().max()) > 1.0
        total = torch.zeros(3, 3, dtype=torch.float64).index_add(0, batch.graph, vector)
        assert float(total.abs().max()) < 1e-8


@architectures
@pytest.mark.parametrize("what", ["energy", "jump"])
def test_second_derivative_is_continuous_where_an_atom_crosses_the_cutoff(arch, what):
    """The curvatures just inside and outside draw together as the cutoff is approached."""
    model = model_of(arch=arch, cutoff_nm=0.3, spring_cutoff_nm=0.3)
    batch = ragged_batch(sizes=(4,), tau_steps=(8,))

    def value(distance):
        positions = batch.positions.clone()
        positions[3] = positions[0] + torch.tensor([distance, 0.0, 0.0], dtype=torch.float64)
        moved = replace(batch, positions=positions)
        return float(model.energy(moved)[0].detach() if what == "energy" else model.jump(moved)[0][0, 0].detach())

    def difference(h):
        inside, outside = ((value(0.3 + s * h) - 2 * value(0.3 + 2 * s * h) + value(0.3 + 3 * s * h)) / h**2
                           for s in (-1, 1))
        return abs(inside - outside)

    far, near = difference(2e-3), difference(2e-5)
    assert near < 0.04 * far  # linear in h; a kink would stay


@architectures
def test_molecules_of_a_batch_do_not_see_each_other(arch):
    model, batch = model_of(arch=arch), ragged_batch()
    together = predictions(model, batch)
    first = batch.graph == 0
    alone = replace(batch, n_graphs=1, tau_ps=batch.tau_ps[:1], bonds=batch.bonds[batch.graph[batch.bonds[:, 0]] == 0],
                    **{k: getattr(batch, k)[first] for k in
                       ("numbers", "masses", "positions", "graph", "velocities", "forces")})
    for what, (kind, values) in predictions(model, alone).items():
        expected = together[what][1][:1] if kind == "scalar" else together[what][1][first]
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-9)


def centre(batch, vectors):
    weighted = batch.masses[:, None] * vectors
    total = torch.zeros(batch.n_graphs, 3, dtype=weighted.dtype).index_add(0, batch.graph, weighted)
    mass = torch.zeros(batch.n_graphs, dtype=weighted.dtype).index_add(0, batch.graph, batch.masses)
    return total / mass[:, None]


@architectures
def test_jump_keeps_the_total_momentum(arch):
    model, batch = model_of(arch=arch), ragged_batch()
    mean_force = torch.zeros(3, 3, dtype=torch.float64).index_add(0, batch.graph, batch.forces)
    batch.forces = batch.forces - (mean_force / batch.atoms_per_graph[:, None])[batch.graph]
    x, v = model.jump(batch)
    free = centre(batch, batch.positions) + centre(batch, batch.velocities) * batch.tau_ps[:, None]
    assert float((centre(batch, x) - free).abs().max()) < 1e-13
    assert float((centre(batch, v) - centre(batch, batch.velocities)).abs().max()) < 1e-12


@pytest.mark.parametrize("propagator", ["taylor", "bounded"])
def test_one_step_without_correction_is_exactly_velocity_verlet(propagator):
    model, batch = model_of(propagator=propagator), ragged_batch(tau_steps=(1, 1, 1))
    x, v = model.jump(batch, delta_scale=0.0)
    acceleration = batch.forces / batch.masses[:, None]
    torch.testing.assert_close(x, batch.positions + DT_PS * (batch.velocities + 0.5 * DT_PS * acceleration),
                               rtol=0, atol=1e-15)
    torch.testing.assert_close(v, batch.velocities + 0.5 * DT_PS * acceleration, rtol=0, atol=1e-14)


@architectures
def test_an_untrained_model_is_its_propagator(arch):
    model, batch = model_of(arch=arch, shaken=False), ragged_batch()
    for learned, cheap in zip(model.jump(batch), model.propagate(batch)):
        torch.testing.assert_close(learned, cheap, rtol=0, atol=0)


def test_taylor_propagator_is_k_steps_under_a_constant_force():
    model, batch = model_of(propagator="taylor"), ragged_batch()
    x, v = batch.positions, batch.velocities
    kick = batch.forces / batch.masses[:, None] * DT_PS
    for step in range(8):
        v = v + (0.5 if step == 0 else 1.0) * kick
        x = x + DT_PS * v
    first = batch.graph == 0  # the molecule that jumps 8 steps
    jumped_x, jumped_v = model.propagate(batch)
    torch.testing.assert_close(jumped_x[first], x[first], rtol=0, atol=1e-14)
    torch.testing.assert_close(jumped_v[first], v[first], rtol=0, atol=1e-12)


def test_bounded_propagator_stays_bounded_where_taylor_flies_away():
    """An O-H bond stretched by 0.01 nm and let go: after 12 fs Taylor is far out, the spring is not."""
    batch = MoleculeBatch(
        numbers=torch.tensor([8, 1]), masses=torch.tensor([15.999, 1.008], dtype=torch.float64),
        positions=torch.tensor([[0.0, 0, 0], [0.106, 0, 0]], dtype=torch.float64),
        graph=torch.zeros(2, dtype=torch.int64), n_graphs=1, bonds=torch.tensor([[0, 1]]),
        velocities=torch.zeros(2, 3, dtype=torch.float64),
        forces=torch.tensor([[4000.0, 0, 0], [-4000.0, 0, 0]], dtype=torch.float64),
        tau_ps=torch.tensor([24 * DT_PS], dtype=torch.float64))
    moved = {}
    for propagator in ("taylor", "bounded"):
        x, _ = model_of(shaken=False, propagator=propagator).propagate(batch)
        moved[propagator] = float((x - batch.positions).norm(dim=1).max())
    assert moved["taylor"] > 0.25
    assert moved["bounded"] < 0.06


def test_auto_is_taylor_to_two_femtoseconds_and_bounded_beyond():
    batch = ragged_batch(tau_steps=(4, 4, 8))
    auto, taylor, bounded = (model_of(propagator=p) for p in ("auto", "taylor", "bounded"))
    near, far = batch.graph < 2, batch.graph == 2
    torch.testing.assert_close(auto.propagate(batch)[0][near], taylor.propagate(batch)[0][near], rtol=0, atol=0)
    torch.testing.assert_close(auto.propagate(batch)[0][far], bounded.propagate(batch)[0][far], rtol=0, atol=0)
    assert not torch.equal(auto.propagate(batch)[0][far], taylor.propagate(batch)[0][far])


@architectures
def test_delta_scale_scales_the_learned_correction(arch):
    model, batch = model_of(arch=arch), ragged_batch()
    zero, half, one = (model.jump(batch, delta_scale=s)[0] for s in (0.0, 0.5, 1.0))
    torch.testing.assert_close(half - zero, 0.5 * (one - zero), rtol=1e-9, atol=1e-14)
    assert float((one - zero).abs().max()) > 1e-4


@architectures
def test_learned_displacement_respects_its_bound(arch):
    batch = ragged_batch()
    model = model_of(arch=arch, max_disp_nm=0.003)
    model.fit_normalisation({"tau_ps": [0.004], "elements": model.elements, "dx_rms": torch.ones(1, 4),
                             "dv_rms": torch.ones(1, 4)})
    learned = model.jump(batch)[0] - model.propagate(batch)[0]
    # The mean that is removed afterwards may add up to one more bound.
    assert 0.002 < float(learned.norm(dim=1).max()) < 2 * 0.003


@architectures
def test_float32_weights_keep_float64_positions(arch):
    model, batch = model_of(arch=arch).float(), ragged_batch(tau_steps=(1, 1, 1))
    batch.positions = batch.positions + 1000.0  # far from the origin: float32 alone would lose 1e-4 nm
    x, _ = model.jump(batch)
    reference, _ = model_of(arch=arch).jump(batch)
    assert x.dtype == torch.float64
    assert float((x - reference).abs().max()) < 1e-6
    energy, _ = model.energy_and_forces(batch)
    assert energy.dtype == torch.float64


def test_jump_scales_follow_a_power_law_between_the_fitted_times():
    model = model_of()
    table = torch.tensor([[1e-5, 1e-5, 1e-5, 1e-5], [1.6e-4, 1.6e-4, 1.6e-4, 1.6e-4]], dtype=torch.float64)
    longest_first = table.flip(0)
    model.fit_normalisation({"elements": model.elements, "tau_ps": [0.004, 0.001], "dx_rms": longest_first,
                             "dv_rms": longest_first})
    scale, _ = model.jump_scales(torch.tensor([1, 6, 8]), torch.tensor([0.001, 0.002, 0.004], dtype=torch.float64))
    np.testing.assert_allclose(scale[:, 0], [1e-5, 4e-5, 1.6e-4], rtol=1e-9)


@architectures
def test_state_dict_carries_weights_and_normalisation(arch):
    trained, batch = model_of(arch=arch), ragged_batch()
    trained.fit_normalisation({"elements": torch.tensor([1, 6]), "reference_energy": [-1.0, -100.0],
                               "tau_ps": [0.001, 0.002, 0.004], "dx_rms": torch.rand(3, 2) + 0.1,
                               "dv_rms": torch.rand(3, 2) + 0.1})
    fresh = model_of(arch=arch, seed=5)
    fresh.load_state_dict(trained.state_dict())
    for what, (_, values) in predictions(trained, batch).items():
        torch.testing.assert_close(predictions(fresh, batch)[what][1], values, rtol=0, atol=0)


@architectures
def test_the_seed_alone_decides_the_weights(arch):
    batch = ragged_batch()
    one, same, other = (predictions(model_of(arch=arch, seed=s), batch) for s in (0, 0, 7))
    for what in one:
        assert torch.equal(one[what][1], same[what][1])
        assert not torch.equal(one[what][1], other[what][1])


@architectures
@pytest.mark.parametrize("key, value", [
    ("activation", "gelu"), ("hidden_dim", 20), ("vector_dim", 8), ("num_layers", 3), ("cutoff_nm", 0.25),
    ("num_rbf", 10), ("propagator", "taylor"), ("propagator", "auto"), ("spring_cutoff_nm", 0.2),
    ("max_disp_nm", 0.0005),
    ("elements", [1, 6, 7, 8, 16]),
])
def test_every_key_changes_the_network(arch, key, value):
    batch = ragged_batch(tau_steps=(4, 4, 4))
    before, after = (predictions(model_of(arch=arch, **keys), batch) for keys in ({}, {key: value}))
    assert any(not torch.equal(before[what][1], after[what][1]) for what in before)


@architectures
def test_heads_decide_what_can_be_asked(arch):
    batch = ragged_batch()
    energy_only = model_of(arch=arch, heads={"energy": True, "jump": False}, use_force_head=False)
    jump_only = model_of(arch=arch, heads={"energy": False, "jump": True})
    with pytest.raises(UserError, match="no jump head"):
        energy_only.jump(batch)
    with pytest.raises(UserError, match="no force head"):
        energy_only.direct_forces(batch)
    with pytest.raises(UserError, match="no energy head"):
        jump_only.energy(batch)
    with pytest.raises(UserError, match="both false"):
        model_of(arch=arch, heads={"energy": False, "jump": False})


@architectures
def test_an_unknown_element_is_named(arch):
    batch = ragged_batch()
    batch.numbers[0] = 35
    with pytest.raises(UserError, match="35"):
        model_of(arch=arch).energy(batch)


@architectures
def test_jump_learns_an_anharmonic_bond(arch):
    """Windows of one anharmonic diatomic: training brings the error far below the propagator's."""
    torch.manual_seed(0)
    masses = torch.tensor([12.011, 1.008], dtype=torch.float64)

    def force(x):
        r = x[:, 0] - x[:, 1]
        length = r.norm(dim=-1, keepdim=True)
        u = length - 0.109
        pull = -3.0e5 * u * (1 - 30.0 * u) * r / length
        return torch.stack([pull, -pull], 1)

    def windows(count, generator, k=16):
        x = torch.zeros(count, 2, 3, dtype=torch.float64)
        x[:, 1, 0] = 0.109 + 0.006 * torch.randn(count, generator=generator, dtype=torch.float64)
        v = torch.randn(count, 2, 3, generator=generator, dtype=torch.float64) * (2.494 / masses[:, None]).sqrt()
        start, f = (x, v), force(x)
        f_start, half = f, v
        for step in range(k):
            half = half + (0.5 if step == 0 else 1.0) * DT_PS * f / masses[:, None]
            x = x + DT_PS * half
            f = force(x)
        batch = MoleculeBatch(
            numbers=torch.tensor([6, 1]).repeat(count), masses=masses.repeat(count), positions=start[0].reshape(-1, 3),
            graph=torch.arange(count).repeat_interleave(2), n_graphs=count, bonds=torch.zeros(0, 2, dtype=torch.int64),
            velocities=start[1].reshape(-1, 3), forces=f_start.reshape(-1, 3),
            tau_ps=torch.full((count,), k * DT_PS, dtype=torch.float64))
        return batch, x.reshape(-1, 3), half.reshape(-1, 3)

    def rms(a):
        return float(a.square().mean().sqrt())

    model = model_of(arch=arch, shaken=False, elements=[1, 6], heads={"energy": False, "jump": True}).float()
    generator = torch.Generator().manual_seed(4)
    test, x_true, v_true = windows(500, generator)
    with torch.no_grad():
        x0, v0 = model.propagate(test)
    model.fit_normalisation({"tau_ps": [16 * DT_PS], "elements": [1, 6], "dx_rms": [[rms(x_true - x0)] * 2],
                             "dv_rms": [[rms(v_true - v0)] * 2]})
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, 300)
    for _ in range(300):
        batch, x, v = windows(64, generator)
        scale_x, scale_v = model.jump_scales(batch.numbers, batch.tau_ps[batch.graph])
        jumped_x, jumped_v = model.jump(batch)
        loss = ((jumped_x - x) / scale_x).square().mean() + ((jumped_v - v) / scale_v).square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        jumped_x, jumped_v = model.jump(test)
    assert rms(jumped_x - x_true) < 0.1 * rms(x0 - x_true)
    assert rms(jumped_v - v_true) < 0.1 * rms(v0 - v_true)
