"""04, in detail: transfer, frozen rounds, weighting and its warm-up, rotations, accumulation, log and checkpoints."""

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kstep.config import load_config
from kstep.errors import UserError
from kstep.forces.openmm import MDConfig
from kstep.forces.tblite import QMConfig
from kstep.models import build_model, checkpoint as checkpoints
from kstep.models.model_config import ModelConfig
from kstep.schemas import load_dataset
from kstep.training import initial_weights as start, losses
from kstep.training.batches import Windows
from kstep.training.distributed import Group
from kstep.training.objective import Objective
from kstep.training.rotations import random_rotations, turns_of_epoch
from kstep.training.step_plan import Piece, drawn, shares_of
from kstep.training.train_config import TrainConfig
from kstep.training.window_training import train
from trainings import EGNN, JUMP, PAIR_MLP, ROOT, TRANSFORMER, make_dataset, prepare, rows_of


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"), "methanol", "water", max_samples=120)


@pytest.fixture(scope="module")
def methanol(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("methanol"), "methanol", max_samples=120)


def stirred(setup, model_config):
    """The setup in float64, its weights away from the zeros that heads start at."""
    torch.manual_seed(3)
    setup["model"].double()
    with torch.no_grad():
        for weight in setup["model"].parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return setup


def gradients(objective, pieces):
    objective.zero_grad()
    losses_of = []
    for piece in pieces:
        loss, _ = objective(piece, 1.0)
        loss.backward()
        losses_of.append(float(loss.detach()))
    return sum(losses_of), [p.grad.clone() for p in objective.parameters() if p.grad is not None]


STRUCTURE = {"lambda_struct_bond": 0.3, "lambda_struct_angle": 0.2, "lambda_struct_dihedral": 0.1,
             "lambda_angular_momentum": 0.5}


@pytest.mark.parametrize("rank_of, accumulated", [((0, 1), 2), ((0, 2), 1), ((0, 3), 2)])
def test_pieces_of_a_step_add_up_to_one_large_batch(dataset, rank_of, accumulated):
    """Accumulated batches and the shares of processes, on molecules of different size, terms and weighting included."""
    parts, whole = [], None
    for batch_size, grad_accum, size in ((16, 1, 1), (16 // accumulated, accumulated, rank_of[1])):
        setup = stirred(prepare(dataset, EGNN, batch_size=batch_size, grad_accum=grad_accum,
                                uncertainty_weighting=True, **STRUCTURE), EGNN)
        objective = Objective(setup["model"], setup["data"], setup["config"], setup["scales"]).double()
        windows = torch.as_tensor(setup["train_windows"])
        assert len(torch.unique(setup["data"].molecule[windows[drawn_order(setup, windows)]])) == 2
        for rank in range(size):
            epoch = drawn(setup["data"], windows, 7, 0, setup["config"], False, Group(rank, size))
            if size == 1 and grad_accum == 1:
                whole = gradients(objective, epoch.pieces(0))
            else:
                parts.append(gradients(objective, epoch.pieces(0)))
    assert sum(loss for loss, _ in parts) == pytest.approx(whole[0], rel=1e-10)
    for own, *others in zip(whole[1], *(gradient for _, gradient in parts)):
        assert torch.allclose(own, sum(others), rtol=1e-8, atol=1e-9)


def drawn_order(setup, windows):
    """Places of the first step's windows."""
    return np.random.default_rng([7, 0]).permutation(len(windows))[:16]


def test_a_batch_smaller_than_the_group_weighs_nothing_extra(dataset):
    setup = prepare(dataset, JUMP, batch_size=4)
    windows = torch.as_tensor(setup["train_windows"][:5])  # steps of 4 and 1 windows
    idle = drawn(setup["data"], windows, 0, 0, setup["config"], False, Group(1, 2)).pieces(1)
    busy = drawn(setup["data"], windows, 0, 0, setup["config"], False, Group(0, 2)).pieces(1)
    assert set(idle[0].shares.values()) == {0.0} and busy[0].shares["atoms"] == 1.0
    with pytest.raises(UserError, match="cannot be shared by 5 processes"):
        train(**setup, out_dir=dataset / "never", group=Group(0, 5))


@pytest.mark.parametrize("mode", ["per_graph", "batch"])
def test_rotated_windows_give_the_same_loss(dataset, mode):
    setup = stirred(prepare(dataset, EGNN, **STRUCTURE), EGNN)
    chosen = torch.as_tensor(setup["train_windows"][::7][:12])
    turns = torch.as_tensor(turns_of_epoch(mode, 12, 12, seed=1, epoch=2))
    assert torch.allclose(turns @ turns.transpose(1, 2), torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(torch.linalg.det(turns), torch.ones(12, dtype=torch.float64))
    apart = (turns[1:] - turns[:1]).abs().amax((1, 2))
    assert (apart > 0.1).all() if mode == "per_graph" else (apart == 0).all()
    objective = Objective(setup["model"], setup["data"], setup["config"], setup["scales"])
    for at_end in (False, True):
        plain, _ = objective(Piece(chosen, at_end), 1.0)
        turned, _ = objective(Piece(chosen, at_end, turns=turns), 1.0)
        assert turned.item() == pytest.approx(plain.item(), rel=1e-9) and plain.item() != 0
    straight, _ = setup["data"].batch(chosen)
    moved, _ = setup["data"].batch(chosen, turns=turns)
    for name in ("positions", "velocities", "forces"):
        assert torch.allclose(getattr(moved, name), torch.einsum("axy,ay->ax", turns[moved.graph],
                                                                 getattr(straight, name)))
    assert not torch.allclose(moved.positions, straight.positions, atol=1e-3)


def test_the_mode_reaches_the_steps(dataset):
    for mode, there in (("none", False), ("per_graph", True), ("batch", True)):
        setup = prepare(dataset, JUMP, batch_size=8, random_rotate_mode=mode)
        epoch = drawn(setup["data"], torch.as_tensor(setup["train_windows"]), 0, 0, setup["config"], False, Group())
        pieces = [epoch.pieces(step)[0] for step in range(2)]
        assert all((piece.turns is not None) == there for piece in pieces)
        if there:
            assert not torch.equal(pieces[0].turns[0], pieces[1].turns[0])
            assert torch.equal(pieces[0].turns[0], pieces[0].turns[1]) == (mode == "batch")
    assert abs(random_rotations(np.random.default_rng(0), 4000).mean(0)).max() < 0.05  # no direction is preferred


def test_inputs_need_no_centring(dataset):
    setup = stirred(prepare(dataset, EGNN), EGNN)
    objective = Objective(setup["model"], setup["data"], setup["config"], setup["scales"])
    piece = Piece(torch.as_tensor(setup["train_windows"][:8]))
    near, _ = objective(piece, 1.0)
    for name in ("x_t", "x_tk"):
        setup["data"].vectors[name] += 100.0  # nm
    far, _ = objective(piece, 1.0)
    assert far.item() == pytest.approx(near.item(), rel=1e-7)


def test_jumps_keep_centre_of_mass_and_momentum_whatever_the_weights(dataset):
    """So terms for them would have no gradient, and there are none; the angular momentum has one."""
    setup = stirred(prepare(dataset, JUMP, lambda_angular_momentum=1.0), JUMP)
    batch, targets = setup["data"].batch(torch.as_tensor(setup["train_windows"][:8]))
    x_k, v_half = setup["model"].jump(batch)
    weights = list(setup["model"].parameters())
    mass = batch.masses[:, None]

    def summed(values):
        return values.new_zeros(batch.n_graphs, 3).index_add(0, batch.graph, mass * values)

    for got, true, size in ((x_k, targets.x_k, 1e-12), (v_half, targets.v_half, 1e-9)):
        assert (summed(got) - summed(true)).abs().max() < size
        gradient = torch.autograd.grad(summed(got)[0, 0], weights, retain_graph=True, allow_unused=True)
        assert max(g.abs().max() for g in gradient if g is not None) < 1e-9
    terms = losses.jump_terms(setup["model"], batch, targets, setup["config"])
    gradient = torch.autograd.grad(terms["angular_momentum"], weights, allow_unused=True)
    assert max(g.abs().max() for g in gradient if g is not None) > 1e-6


def test_angular_momentum_term_is_one_for_independent_errors_of_the_scale(dataset):
    setup = prepare(dataset, JUMP)
    batch, targets = setup["data"].batch(torch.as_tensor(setup["train_windows"]))
    generator = torch.Generator().manual_seed(0)
    scale_x, scale_v = (torch.full((len(batch.masses), 1), size, dtype=torch.float64) for size in (1e-4, 0.05))

    def noise(scale):
        return scale * torch.randn(len(batch.masses), 3, generator=generator, dtype=torch.float64)

    wrong = losses._angular_momentum_error(batch, targets.x_k + noise(scale_x), targets.v_half + noise(scale_v),
                                           targets, scale_x, scale_v)
    right = losses._angular_momentum_error(batch, targets.x_k, targets.v_half, targets, scale_x, scale_v)
    assert right.max() == 0 and 0.75 < float(wrong.mean()) / 3 < 1.25


def test_structural_weights_grow_from_zero():
    config = TrainConfig(struct_warmup_ratio=0.5, lambda_struct_bond=2.0)
    assert [losses.ramp("struct_bond", p, config) for p in (0.0, 0.25, 0.5, 0.9)] == [0.0, 0.5, 1.0, 1.0]
    assert losses.ramp("dx", 0.0, config) == 1.0
    assert losses.ramp("struct_angle", 0.0, TrainConfig()) == 1.0


def test_warm_up_reaches_the_loss(dataset):
    setup = prepare(dataset, JUMP, struct_warmup_ratio=0.5, lambda_struct_bond=2.0)
    objective = Objective(setup["model"], setup["data"], setup["config"], setup["scales"])
    piece = Piece(torch.as_tensor(setup["train_windows"][:8]))
    (at_start, terms), (half, _), (full, _) = (objective(piece, progress) for progress in (0.0, 0.25, 0.7))
    assert float(at_start.detach()) == pytest.approx(float(terms["dx"] + terms["dv"]), rel=1e-6)
    assert float((half - at_start).detach()) == pytest.approx(float(terms["struct_bond"]), rel=1e-5)
    assert float((full - at_start).detach()) == pytest.approx(2 * float(terms["struct_bond"]), rel=1e-5)


def test_learned_uncertainties_follow_kendall(methanol, tmp_path):
    """d loss / ds = 1 - exp(-s) lambda L; they are logged, resumed bit-equal and no part of the network."""
    setup = prepare(methanol, PAIR_MLP, uncertainty_weighting=True, exchange_hydrogens=False)
    objective = Objective(setup["model"], setup["data"], setup["config"], setup["scales"])
    with torch.no_grad():
        objective.log_variances.copy_(torch.tensor([0.3, -0.2]))
    loss, terms = objective(Piece(torch.as_tensor(setup["train_windows"][:16])), 1.0)
    loss.backward()
    expected = sum(math.exp(-s) * weight * float(terms[name]) + s
                   for s, weight, name in ((0.3, 1.0, "energy"), (-0.2, 10.0, "force")))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert objective.log_variances.grad[0] == pytest.approx(1 - math.exp(-0.3) * float(terms["energy"]), rel=1e-4)

    changes = dict(uncertainty_weighting=True, log_interval_steps=3)
    train(**prepare(methanol, PAIR_MLP, **changes), out_dir=tmp_path / "whole", seed=2)
    train(**prepare(methanol, PAIR_MLP, **changes), out_dir=tmp_path / "parts", seed=2, should_stop=lambda s: s == 7)
    last = checkpoints.load(tmp_path / "parts" / "last.pt")
    train(**prepare(methanol, PAIR_MLP, **changes), out_dir=tmp_path / "parts", seed=2, resume=last)
    rows = rows_of(tmp_path / "whole", "train")
    assert rows == rows_of(tmp_path / "parts", "train")
    assert rows[-1]["log_variance_force"] != rows[0]["log_variance_force"] != 0
    one, two = (checkpoints.load(tmp_path / run / "last.pt") for run in ("whole", "parts"))
    assert all(torch.equal(a, b) for a, b in zip(one["training"]["weights"], two["training"]["weights"], strict=True))
    assert not any("log_variance" in name for name in one["state_dict"])
    plain = prepare(methanol, PAIR_MLP)
    with pytest.raises(UserError, match="another uncertainty_weighting"):
        train(**plain, out_dir=tmp_path / "parts", resume=last)


def test_a_number_freezes_the_rounds_before_it(methanol, tmp_path):
    arrays, _ = load_dataset(methanol / "dataset_k4.npz")
    molecule = Windows.molecule_of(0, arrays)
    two_rounds = TRANSFORMER.model_copy(update={"num_layers": 2})
    for config, n, frozen, free in (
            (two_rounds, "1", {"energy_head.embedding.", "energy_head.encoding.", "energy_head.layers.0."},
             {"energy_head.layers.1.", "energy_head.readout."}),
            (EGNN, "1", {"jump_head.embedding.", "jump_head.start.", "jump_head.vectors.", "jump_head.layers.0.",
                         "energy_head.layers.0."}, {"jump_head.springs.", "jump_head.out.", "energy_head.readout."}),
            (PAIR_MLP, "1", {"layers.0."}, {"layers.1.", "readout", "slope"}),
            (EGNN, "jump_head.springs", {"jump_head.springs."}, {"jump_head.embedding.", "energy_head."})):
        model = build_model(config, molecule)
        start.freeze(model, [n])
        for name, weight in model.named_parameters():
            if name.startswith(tuple(frozen | free)):
                assert weight.requires_grad == name.startswith(tuple(free)), name
    with pytest.raises(UserError, match="the network has 2 rounds"):
        start.freeze(build_model(PAIR_MLP, molecule), ["3"])
    setup = prepare(methanol, PAIR_MLP, weight_decay=0.1)
    start.freeze(setup["model"], ["1"])
    before = {name: w.detach().clone() for name, w in setup["model"].named_parameters()}
    train(**setup, out_dir=tmp_path, max_steps=3)
    moved = {name for name, w in setup["model"].named_parameters() if not torch.equal(w, before[name])}
    assert moved == set(before) - {"layers.0.weight", "layers.0.bias"}


@pytest.mark.parametrize("model_config", [EGNN, PAIR_MLP])
def test_transfer_keeps_the_function_and_refits_the_zero_of_energy(methanol, tmp_path, model_config):
    """To labels of "another method" that differ by a constant, a pretrained network fits as it is."""
    setup = prepare(methanol, model_config, max_epochs=3)
    train(**setup, out_dir=tmp_path / "cheap")
    checkpoint = checkpoints.load(tmp_path / "cheap" / "best.pt")
    dear = make_dataset(tmp_path / "dear", "methanol", offset=-90000.0, max_samples=60)
    other = prepare(dear, model_config)
    windows = torch.as_tensor(other["train_windows"])
    start.transfer(other["model"], checkpoint, "cheap", other["data"], windows)
    batch, targets = other["data"].batch(windows)
    trained = checkpoints.model_from(checkpoint)
    energy, forces = other["model"].energy_and_forces(batch)
    assert torch.equal(forces, trained.energy_and_forces(batch)[1])
    shift = energy - trained.energy_and_forces(batch)[0]
    assert shift.std() < 1e-6 and float(shift.mean()) == pytest.approx(-89500.0, abs=100.0)
    assert float((energy - targets.energy).mean()) == pytest.approx(0, abs=1e-6)
    if model_config.heads.jump:
        assert torch.equal(other["model"].jump(batch)[0], trained.jump(batch)[0])


def test_transfer_refuses_what_does_not_fit(methanol, tmp_path):
    setup = prepare(methanol, PAIR_MLP)
    train(**setup, out_dir=tmp_path, max_steps=1)
    checkpoint = checkpoints.load(tmp_path / "best.pt")
    windows = torch.as_tensor(setup["train_windows"])
    for change, words in (({"numbers": checkpoint["state_dict"]["numbers"].flip(0)}, "another molecule or atom order"),
                          ({"layers.0.bias": torch.zeros(3)}, "another architecture or size")):
        wrong = {**checkpoint, "state_dict": {**checkpoint["state_dict"], **change}}
        with pytest.raises(UserError, match=words):
            start.transfer(setup["model"], wrong, "x.pt", setup["data"], windows)
    (tmp_path / "x.pt").write_bytes(b"x")
    facts = {"method": "DFT", "true_calls_training": 10, "data_sha256": "b"}
    for method, calls in (("DFT", 10 + 7), ("xTB", 10)):
        cheap = {"method": method, "data_sha256": "a", "true_calls_training": 7}
        told = start.facts_of_transfer(facts, cheap, tmp_path / "x.pt")
        assert told["true_calls_training"] == calls and told["pretrained"]["method"] == method


def test_mixed_precision_is_close_and_not_equal(methanol):
    """bfloat16 keeps three digits of the features; geometry and energies' references stay exact."""
    for config in (JUMP, TRANSFORMER):
        setup = prepare(methanol, config)
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in setup["model"].parameters():
                weight.add_(0.05 * torch.randn_like(weight))
        objective = Objective(setup["model"], setup["data"], setup["config"], setup["scales"])
        piece = Piece(torch.as_tensor(setup["train_windows"][:8]))
        full, _ = objective(piece, 1.0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed, _ = objective(piece, 1.0)
        mixed.backward()
        assert float(mixed.detach()) == pytest.approx(float(full.detach()), rel=0.05)
        assert float(mixed.detach()) != float(full.detach())
        assert all(torch.isfinite(w.grad).all() for w in setup["model"].parameters() if w.grad is not None)
    setup = prepare(methanol, PAIR_MLP, amp=True)
    with pytest.raises(UserError, match="amp: true rounds"):
        Objective(setup["model"], setup["data"], setup["config"], setup["scales"])


def test_amp_reaches_the_loop(methanol, tmp_path):
    rows = []
    for amp in (False, True):
        train(**prepare(methanol, JUMP, amp=amp, log_interval_steps=1), out_dir=tmp_path / str(amp), max_steps=3)
        rows.append(rows_of(tmp_path / str(amp), "train")[-1]["train_loss"])
    assert rows[0] != rows[1] and rows[1] == pytest.approx(rows[0], rel=0.1)


def test_the_log_keeps_its_contract(methanol, tmp_path):
    setup = prepare(methanol, PAIR_MLP, batch_size=16, max_epochs=3, log_interval_steps=4, checkpoint_interval_steps=5)
    train(**setup, out_dir=tmp_path, should_stop=lambda step: step == 7)
    train(**prepare(methanol, PAIR_MLP, batch_size=16, max_epochs=3, log_interval_steps=4,
                    checkpoint_interval_steps=5), out_dir=tmp_path, resume=checkpoints.load(tmp_path / "last.pt"))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    of = {kind: [row for row in rows if row["kind"] == kind] for kind in
          ("start", "train", "validation", "checkpoint", "end")}
    assert sum(map(len, of.values())) == len(rows)
    total = of["start"][0]["total_steps"]
    assert [row["step"] for row in of["start"]] == [0, 7] and of["start"][0]["world_size"] == 1
    assert set(of["start"][0]) == {"kind", "time", "arch", "parameters", "total_steps", "step", "batch_size",
                                   "train_windows", "val_windows", "device", "world_size"}
    assert [row["step"] for row in of["train"]] == sorted({*range(4, total + 1, 4), total})
    assert {"epoch", "step", "total_steps", "lr", "wall_s", "samples_per_s", "peak_memory_MB", "train_loss",
            "train_energy", "train_force"} < set(of["train"][0])
    assert of["train"][0]["samples_per_s"] > 0 and 50 < of["train"][0]["peak_memory_MB"] < 1e5
    row = of["train"][0]
    assert row["train_loss"] == pytest.approx(row["train_energy"] + 10 * row["train_force"], rel=1e-5)
    assert len(of["validation"]) == 3 and of["validation"][0]["best"] is True
    assert {"val_loss", "energy_rmse_kJ_per_mol", "force_rmse_kJ_per_mol_nm"} < set(of["validation"][0])
    files = [row["file"] for row in of["checkpoint"]]
    assert [name for name in files if name.startswith("step")] == [f"step_{n}.pt" for n in range(5, total + 1, 5)]
    assert files.count("last.pt") == 3 and files[0] == "last.pt"
    assert files.count("best.pt") == sum(row["best"] for row in of["validation"])
    assert [row["reason"] for row in of["end"]] == ["stopped by the caller", "the schedule is through"]
    again = rows.index(of["start"][1])
    for session in (rows[:again], rows[again:]):
        walls = [row["wall_s"] for row in session if "wall_s" in row]
        assert walls == sorted(walls) and walls[0] > 0
    kept = checkpoints.model_from(checkpoints.load(tmp_path / "step_5.pt"))
    assert kept.config.arch == "pair_mlp" and not (tmp_path / "step_4.pt").exists()
    with pytest.raises(UserError, match="only last.pt holds the state"):
        train(**setup, out_dir=tmp_path, resume=checkpoints.load(tmp_path / "step_5.pt"))


def test_loggers_are_off_unless_asked_and_hear_every_row(methanol, tmp_path, monkeypatch):
    heard = []

    class Run:
        def log(self, numbers, step):
            heard.append((step, numbers))

        def finish(self):
            heard.append("finished")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **settings: Run()))
    train(**prepare(methanol, PAIR_MLP), out_dir=tmp_path, max_steps=3)
    assert not heard
    train(**prepare(methanol, PAIR_MLP, wandb=True, log_interval_steps=2), out_dir=tmp_path, max_steps=3)
    assert [entry[0] for entry in heard[:-1]] == [2, 3, 3] and heard[-1] == "finished"
    assert "train_loss" in heard[0][1] and "val_loss" in heard[2][1]
    assert all(isinstance(value, (int, float)) for entry in heard[:-1] for value in entry[1].values())
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install"):
        train(**prepare(methanol, PAIR_MLP, wandb=True), out_dir=tmp_path, max_steps=3)


@pytest.mark.parametrize("name", ["train.yaml", "train_fast.yaml", "train_qm.yaml", "train_pair_mlp.yaml"])
def test_training_configs_load(name):
    load_config(TrainConfig, ROOT / "configs" / name)


def test_names_people_know_are_kept():
    known = {MDConfig: "temperature_K friction_per_ps dt_fs length_ps save_interval_steps",
             QMConfig: "method charge spin_multiplicity temperature_K friction_per_ps dt_fs length_ps",
             ModelConfig: "arch hidden_dim num_layers cutoff_nm max_disp_nm use_force_head attention_heads dropout",
             TrainConfig: "batch_size grad_accum lr weight_decay max_epochs amp grad_clip lambda_force "
                          "lambda_struct_bond lambda_struct_angle lambda_struct_dihedral random_rotate_mode "
                          "warmup_ratio ema_decay wandb"}
    for kind, names in known.items():
        assert not set(names.split()) - set(kind.model_fields), kind.__name__


def test_patience_ends_a_training_that_no_longer_improves(methanol, tmp_path):
    outcome = train(**prepare(methanol, PAIR_MLP, max_epochs=30, lr=1e-12, patience=2), out_dir=tmp_path)
    assert outcome.reason == "no better validation for 2 epochs" and outcome.epochs < 30


def test_force_head_is_trained_on_true_forces(methanol):
    """Its term falls when it alone is trained, and it does not touch the conservative forces' target."""
    config = EGNN.model_copy(update={"use_force_head": True, "heads": EGNN.heads.model_copy(update={"jump": False})})
    setup = prepare(methanol, config)
    objective = Objective(setup["model"], setup["data"], setup["config"], setup["scales"])
    piece = Piece(torch.as_tensor(setup["train_windows"][:16]))
    head = [w for name, w in setup["model"].named_parameters() if ".force." in name]
    optimiser = torch.optim.Adam(head, lr=0.05)
    terms = []
    for _ in range(25):
        optimiser.zero_grad()
        loss, values = objective(piece, 1.0)
        loss.backward()
        optimiser.step()
        terms.append(values)
    assert terms[-1]["direct_force"] < 0.95 * terms[0]["direct_force"]
    assert terms[-1]["force"] == terms[0]["force"] and terms[0]["direct_force"] > 0.5


def test_rows_of_windows_are_the_same_for_even_and_ragged_molecules(dataset, methanol):
    """One molecule takes a shorter way to its rows than several do."""
    even, ragged = prepare(methanol, JUMP)["data"], prepare(dataset, JUMP)["data"]
    assert even.atoms.even == 6 and ragged.atoms.even is None
    chosen = torch.tensor([5, 2, 2])
    quick = [tensor.tolist() for tensor in even.bonds.rows(even.molecule[chosen])]
    even.bonds.even = None
    assert quick == [tensor.tolist() for tensor in even.bonds.rows(even.molecule[chosen])]
    rows, owner = even.atoms.rows(chosen)
    assert rows.tolist() == [*range(30, 36), *range(12, 18), *range(12, 18)] and owner.tolist() == [
        i for i in range(3) for _ in range(6)]


def test_shares_count_what_a_term_averages_over(dataset):
    setup = prepare(dataset, JUMP)
    data, windows = setup["data"], torch.as_tensor(setup["train_windows"])
    water = windows[data.molecule[windows] == 1][:2]
    both = torch.cat([water, windows[data.molecule[windows] == 0][:1]])
    assert shares_of(data, water, both) == {"windows": 2 / 3, "atoms": 0.5, "bonds": 4 / 9, "angles": 2 / 9,
                                            "torsions": 0.0}
    assert set(losses.AVERAGED_OVER) == set(losses.weights(setup["config"]))
