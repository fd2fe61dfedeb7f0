"""04 --teacher: a student learns its teacher's labels, pays no true call, and is judged on the truth."""

import json
import runpy
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import BondPotential, ForceNetwork
from kstep.errors import UserError
from kstep.files import sha256
from kstep.models import build_model, checkpoint as checkpoints
from kstep.models.model_config import ModelConfig
from kstep.models.network import Network
from kstep.runs import network_geometries as explore
from kstep.runs.network_dynamics import Carrier, NetworkFrame, network_dynamics
from kstep.schemas import load_dataset, save_dataset
from kstep.schemes.maxwell import draw_velocities
from kstep.training import distillation as distill, normalisation as normalise
from kstep.training.batches import Windows
from kstep.training.dataset import build_dataset
from kstep.training.initial_weights import facts_of
from kstep.training.splits import make_splits, select
from kstep.training.train_config import TrainConfig
from kstep.training.window_training import train
from springs import METHANOL, write_trajectory
from trainings import JUMP

ROOT = Path(__file__).parents[1]
TEACHER = ModelConfig(arch="egnn", heads={"energy": True, "jump": False}, elements=[1, 6, 8], hidden_dim=12,
                      vector_dim=6, num_layers=1, num_rbf=8)
TRUE_CALLS = 777


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A dataset of methanol made of springs and a small equivariant network trained on it."""
    folder = tmp_path_factory.mktemp("distill")
    path = write_trajectory(folder / "methanol/trajectory.npz", METHANOL, name="methanol")
    arrays, metadata = build_dataset({"methanol": path}, 4, max_samples=300)
    save_dataset(folder / "dataset_k4.npz", arrays, {**metadata, "true_calls": TRUE_CALLS})
    for part, split in make_splits(["methanol"], metadata["n_blocks"]).items():
        (folder / f"{part}.json").write_text(json.dumps(split))
    arrays, metadata = load_dataset(folder / "dataset_k4.npz")
    rows = [select(arrays, metadata, json.loads((folder / f"{p}.json").read_text())) for p in ("train", "val")]
    torch.manual_seed(0)
    model, data = build_model(TEACHER), Windows(arrays, metadata)
    normalise.fit(model, data, torch.as_tensor(rows[0]))
    train(model, data, *rows, TrainConfig(batch_size=32, max_epochs=60, lr=1e-2, ema_decay=0.9),
          normalise.scales(data, torch.as_tensor(rows[0])), out_dir=folder / "teacher", progress=False,
          facts=facts_of(arrays, metadata, rows[0], folder / "dataset_k4.npz", TEACHER))
    return folder


def run_04(work, out_dir, *more, monkeypatch, teacher=None, model="arch: pair_mlp\npair_hidden: [64, 64]\n"):
    """Exit code of 04_train.py --teacher, run in this process."""
    (out_dir / "model.yaml").write_text(model)
    (out_dir / "train.yaml").write_text(
        "batch_size: 32\nlr: 0.01\nmax_epochs: 60\nema_decay: 0.9\ndistill_frames: 200\ndistill_temperature_K: 350\n")
    monkeypatch.setattr(sys, "argv", [str(word) for word in (
        ROOT / "src/04_train.py", "--dataset", work / "dataset_k4.npz", "--model-config", out_dir / "model.yaml",
        "--train-config", out_dir / "train.yaml", "--splits", work / "train.json", work / "val.json", "--device", "cpu",
        "--log-level", "error", "--teacher", teacher or work / "teacher/best.pt", "--out-dir", out_dir, *more)])
    monkeypatch.syspath_prepend(str(ROOT / "src"))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(sys.argv[0], run_name="__main__")
    return ended.value.code


@pytest.fixture(scope="module")
def student(work, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    with pytest.MonkeyPatch.context() as patch:
        assert run_04(work, folder, monkeypatch=patch) == 0
    return folder


def test_student_learns_the_labels_of_its_teacher(work, student):
    own = Windows.molecule_of(0, load_dataset(work / "dataset_k4.npz")[0])
    teacher, pupil = (Network.load(path / "best.pt", **own) for path in (work / "teacher", student))
    arrays, metadata = load_dataset(student / "distilled.npz")
    n = metadata["n_train"]
    x = arrays["x_t"].reshape(-1, 6, 3)[:n]
    energy, forces = teacher.energy_and_forces(x)
    assert np.allclose(arrays["epot_t"][:n], energy, atol=1e-3)
    assert np.allclose(arrays["f_t"].reshape(-1, 6, 3)[:n], forces, atol=0.1)
    learned, learned_forces = pupil.energy_and_forces(x)
    # It takes over its teacher's mistakes: it is nearer to the teacher than the teacher to the truth.
    wrong = json.loads((student / "training.json").read_text())["teacher"]
    assert np.std(learned - energy) < 0.7 * wrong["energy_rmse_kJ_per_mol"]
    assert np.std(learned_forces - forces) < 0.7 * wrong["force_rmse_kJ_per_mol_nm"]


def test_student_sees_the_training_frames_and_those_of_its_teachers_dynamics(work, student):
    truth, _ = load_dataset(work / "dataset_k4.npz")
    rows = select(*load_dataset(work / "dataset_k4.npz"), json.loads((work / "train.json").read_text()))
    arrays, metadata = load_dataset(student / "distilled.npz")
    n = metadata["n_train"]
    visited = 2 * (n - len(rows))  # two geometries per window
    assert 150 <= visited <= 200
    seen = {x.tobytes() for key in ("x_t", "x_tk") for x in arrays[key].reshape(-1, 6, 3)[:n]}
    given = {x.tobytes() for key in ("x_t", "x_tk") for x in truth[key].reshape(-1, 6, 3)[rows]}
    held_out = {x.tobytes() for x in truth["x_t"].reshape(-1, 6, 3)[select(
        truth, load_dataset(work / "dataset_k4.npz")[1], json.loads((work / "val.json").read_text()))]}
    assert given <= seen and len(seen - given) == visited and not held_out & seen


def test_student_is_judged_on_true_labels_beside_its_teacher(work, student):
    truth, meta = load_dataset(work / "dataset_k4.npz")
    rows = select(truth, meta, json.loads((work / "val.json").read_text()))
    arrays, metadata = load_dataset(student / "distilled.npz")
    n = metadata["n_train"]
    assert np.array_equal(arrays["epot_t"][n:], truth["epot_t"][rows])
    assert np.array_equal(arrays["f_tk"].reshape(-1, 6, 3)[n:], truth["f_tk"].reshape(-1, 6, 3)[rows])
    report = json.loads((student / "training.json").read_text())
    own = Windows.molecule_of(0, truth)
    for errors, path in ((report["teacher"], work / "teacher"), (report["best"], student)):
        forces = Network.load(path / "best.pt", **own).energy_and_forces(truth["x_t"].reshape(-1, 6, 3)[rows])[1]
        missed = forces - truth["f_t"].reshape(-1, 6, 3)[rows]
        assert errors["force_rmse_kJ_per_mol_nm"] == pytest.approx(np.sqrt((missed**2).mean()), rel=1e-3)


def test_checkpoint_says_whose_pupil_it_is_and_what_that_cost(work, student):
    pupil, teacher = checkpoints.load(student / "best.pt"), checkpoints.load(work / "teacher/best.pt")
    assert pupil["true_calls_training"] == teacher["true_calls_training"] == TRUE_CALLS
    assert pupil["distilled_from"] == {"sha256": sha256(work / "teacher/best.pt"), "arch": "egnn", "frames": 200,
                                       "temperature_K": 350.0}
    facts = {"data_sha256": "another", "true_calls_training": 23}
    told = distill.facts_of_student(facts, teacher, work / "teacher/best.pt", TrainConfig())
    assert told["true_calls_training"] == TRUE_CALLS + 23  # frames of a dataset the teacher never saw


def test_resumed_student_keeps_its_labels(work, student, tmp_path, monkeypatch, capsys):
    for name in ("last.pt", "best.pt", "distilled.npz"):
        (tmp_path / name).write_bytes((student / name).read_bytes())
    before = sha256(tmp_path / "distilled.npz")
    assert run_04(work, tmp_path, "--resume", monkeypatch=monkeypatch) == 0
    assert sha256(tmp_path / "distilled.npz") == before
    capsys.readouterr()
    assert run_04(work, tmp_path, "--resume", "--set", "distill_temperature_K=500", monkeypatch=monkeypatch) == 2
    assert "another teacher, dataset or distill_* setting" in capsys.readouterr().err


def test_what_cannot_teach_is_refused_in_one_sentence(work, tmp_path, monkeypatch, capsys):
    def refused(words, **more):
        assert run_04(work, more.pop("out_dir", tmp_path), monkeypatch=monkeypatch, **more) == 2
        printed = capsys.readouterr().err
        assert words in printed and printed.count("\n") == 1, printed

    refused("does not exist", teacher=tmp_path / "absent.pt")
    refused("would be overwritten by what is written to best.pt", out_dir=work / "teacher")
    refused("would be overwritten by what is written to last.pt", out_dir=work / "teacher",
            teacher=work / "teacher/last.pt")
    refused("energy head alone", model="arch: egnn\nelements: [1, 6, 8]\nheads: {energy: true, jump: true}\n")
    teacher = checkpoints.load(work / "teacher/best.pt")
    checkpoints.save(tmp_path / "other.pt", {**teacher, "method": "GFN2-xTB"})
    refused("was trained on GFN2-xTB", teacher=tmp_path / "other.pt")
    model = build_model(JUMP)
    checkpoints.save(tmp_path / "jump.pt", {**teacher, "config": JUMP.model_dump(), "state_dict": model.state_dict()})
    refused("no energy head", teacher=tmp_path / "jump.pt")


class Spring(ForceNetwork):
    """One bond as a network; with `hole`, an atom pulled out further than that falls without end."""

    def __init__(self, stiffness=2.0e4, hole=None):
        def u(r):
            bound = 0.5 * stiffness * (r - 0.15) ** 2
            return bound if hole is None else np.where(r - 0.15 < hole, bound, -1e6 * (r - 0.15))

        def du(r):
            bound = stiffness * (r - 0.15)
            return bound if hole is None else np.where(r - 0.15 < hole, bound, -1e6)

        bond = BondPotential(np.array([12.0, 16.0]), [(0, 1)], u, du)
        super().__init__(lambda x: bond.batch(x)[1])
        self.energy_and_forces = bond.batch


def bonds_at_rest(n=40):
    x = np.zeros((n, 2, 3))
    x[:, 1, 0] = np.linspace(0.14, 0.16, n)
    return x


def explored(network, n_frames, temperature_K=400.0):
    return explore.explore(network, bonds_at_rest(), np.array([6, 8]), np.array([12.0, 16.0]), [[0, 1]], temperature_K,
                           n_frames, np.random.default_rng(0))


def test_geometries_have_the_temperature_that_was_asked_for():
    x = explored(Spring(stiffness=8.0e4), 6000)
    assert 5900 <= len(x) <= 6000
    stretch = np.linalg.norm(x[1000:, 0] - x[1000:, 1], axis=-1) - 0.15
    assert (stretch**2).mean() == pytest.approx(0.0083145 * 400 / 8.0e4, rel=0.15)


def test_geometries_of_a_hole_are_thrown_away():
    x = explored(Spring(hole=0.03), 2000)  # 2.3 sigma away
    assert 1000 < len(x) < 2000 and np.linalg.norm(x[:, 0] - x[:, 1], axis=-1).max() < 0.19


@pytest.mark.parametrize("frames_per_draw", [1, 3])
def test_the_networks_own_dynamics_is_redrawn_as_often_as_asked(frames_per_draw):
    network, masses, x = Spring(), np.array([12.0, 16.0]), bonds_at_rest(4)
    frames = network_dynamics(network, Carrier(network), x, masses, 300.0, np.random.default_rng(3), dt_fs=0.5,
                              steps_per_frame=7, frames_per_draw=frames_per_draw)
    rng = np.random.default_rng(3)
    for done, frame in enumerate(islice(frames, 6)):
        if done % frames_per_draw == 0:
            v = draw_velocities(4, masses, 300.0, rng)
        x, v = Carrier(network)(x, v, masses, 0.0005, 7)
        assert np.array_equal(frame.positions, x) and np.array_equal(frame.velocities, v)
        assert all(map(np.array_equal, (frame.energy, frame.forces), network.energy_and_forces(x)))


def test_a_replica_that_leaves_goes_on_from_where_it_was_within():
    network, masses, x = Spring(), np.array([12.0, 16.0]), np.repeat(bonds_at_rest(8)[3:4], 8, axis=0)

    def inside(positions):
        return np.linalg.norm(positions[:, 0] - positions[:, 1], axis=-1) < 0.154

    frames = network_dynamics(network, Carrier(network), x, masses, 300.0, np.random.default_rng(3), dt_fs=0.5,
                              steps_per_frame=7, frames_per_draw=50, inside=inside)
    v, times = None, 0
    for number, frame in enumerate(islice(frames, 40)):
        assert inside(frame.positions).all()
        if number:
            forward = Carrier(network)(x, v, masses, 0.0005, 7)
            left = ~inside(forward[0])
            assert np.array_equal(frame.positions, np.where(left[:, None, None], x, forward[0]))
            assert np.array_equal(frame.velocities[~left], forward[1][~left])
            assert not (frame.velocities[left] == forward[1][left]).any()
            times += left.sum()
        x, v = frame.positions, frame.velocities
    assert times > 3


def test_known_ground_has_bonds_and_distances_and_energies():
    start = bonds_at_rest()
    known = explore.KnownGround(Spring(), start, [[0, 1]], 300.0)
    loose = explore.KnownGround(Spring(), start, np.zeros((0, 2), dtype=int), 300.0)
    lengths = np.array([0.15, 0.14 * 0.86, 0.16 * 1.14, 0.14 * 0.84, 0.16 * 1.16, np.nan])
    x = np.zeros((6, 2, 3))
    x[:, 1, 2] = lengths

    def held(ground, network):
        return ground.holds(NetworkFrame(x, np.zeros_like(x), *network.energy_and_forces(x))).tolist()

    assert held(known, Spring()) == [True, True, True, False, False, False]
    assert held(loose, Spring()) == [True, True, True, False, True, False]
    stiff = explore.KnownGround(Spring(stiffness=2.0e6), start, [[0, 1]], 300.0)
    assert held(stiff, Spring(stiffness=2.0e6)) == [True, False, False, False, False, False]


def test_a_network_that_falls_from_most_places_is_no_teacher():
    with pytest.raises(UserError, match="lower distill_temperature_K"):
        explored(Spring(hole=0.012), 2000)
