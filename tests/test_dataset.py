"""02: windows lie inside one stretch of NVE dynamics and one split; bad input is one sentence."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kstep.errors import UserError
from kstep.npz import read_npz, write_npz
from kstep.schemas import load_dataset, load_trajectory, save_trajectory
from kstep.stages.datasets import DatasetSettings, make_datasets
from kstep.training.batches import Windows
from kstep.training.dataset import build_dataset, find_trajectories
from kstep.training.splits import make_splits, select
from kstep.training.windows import cut, time_blocks
from springs import METHANOL, WATER, write_trajectory

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def water(tmp_path_factory):
    return write_trajectory(tmp_path_factory.mktemp("md") / "water" / "trajectory.npz")


def run_02(*arguments):
    return subprocess.run([sys.executable, ROOT / "src/02_make_dataset.py", *map(str, arguments)],
                          capture_output=True, text=True)


@pytest.mark.parametrize("k", [1, 4, 12])
def test_windows_stay_inside_a_segment_and_a_block(water, k):
    trajectory = load_trajectory(water)
    block = time_blocks(trajectory)
    start, end, dropped = cut(trajectory, k, block)
    assert len(start) > 100
    assert np.array_equal(trajectory.segment[start], trajectory.segment[end])
    assert np.array_equal(trajectory.replica[start], trajectory.replica[end])
    assert np.array_equal(trajectory.step[end] - trajectory.step[start], np.full(len(start), k))
    assert np.array_equal(block[start], block[end])
    roles = {trajectory.segments[s]["role"] for s in np.unique(trajectory.segment[start])}
    assert roles == {"train", "hot"}
    assert dropped["frames of role drift"] == 2 * 101


def test_a_window_is_k_steps_of_velocity_verlet(water):
    arrays, metadata = build_dataset({"water": water}, 4)
    trajectory = load_trajectory(water)
    dt, m = 0.5e-3, trajectory.masses[:, None]
    n = len(arrays["frame"])
    shaped = {key: arrays[key].reshape(n, 3, 3) for key in ("x_t", "v_t", "x_tk", "v_tk", "v_half", "f_tk")}
    frame, k = arrays["frame"], arrays["k_steps"]
    assert set(k) == {4, 2, 1} and metadata["true_calls"] == len(trajectory.step)
    assert np.array_equal(shaped["x_t"], trajectory.pos[frame])
    assert np.array_equal(shaped["x_tk"], trajectory.pos[frame + k])
    # The velocity half a step before the end is what velocity Verlet moved the last step with.
    last_move = (trajectory.pos[frame + k] - trajectory.pos[frame + k - 1]) / dt
    assert np.allclose(shaped["v_half"], last_move, atol=1e-9)
    assert np.allclose(shaped["v_half"] + 0.5 * dt * shaped["f_tk"] / m, shaped["v_tk"], atol=1e-12)


def test_splits_in_time_share_no_frame(water):
    arrays, metadata = build_dataset({"water": water}, 8, stride=1)
    splits = make_splits(["water"], metadata["n_blocks"])
    covered = {}
    for part, split in splits.items():
        chosen = select(arrays, metadata, split)
        frames = [np.arange(f, f + k + 1) for f, k in zip(arrays["frame"][chosen], arrays["k_steps"][chosen])]
        covered[part] = set(np.concatenate(frames).tolist())
        assert len(chosen)
    assert not (covered["train"] & covered["val"] or covered["train"] & covered["test"]
                or covered["val"] & covered["test"])


def test_splits_by_molecule_hold_out_whole_molecules():
    names = [f"m{i}" for i in range(10)]
    splits = make_splits(names, 20, seed=3)
    parts = [set(s["molecules"]) for s in splits.values()]
    assert [len(p) for p in parts] == [8, 1, 1] and set.union(*parts) == set(names)
    with pytest.raises(UserError, match="cannot be split by molecule"):
        make_splits(["one"], 20, by="molecule")


def test_frames_stored_every_other_step(tmp_path):
    path = write_trajectory(tmp_path / "water" / "trajectory.npz", save_every=2)
    arrays, _ = build_dataset({"water": path}, 4)
    assert set(arrays["k_steps"]) == {4, 2}
    with pytest.raises(UserError, match="multiples that divide k"):
        build_dataset({"water": path}, 3)


def test_molecules_of_different_size_share_a_dataset(water, tmp_path):
    methanol = write_trajectory(tmp_path / "methanol.npz", METHANOL, n_segments=4, name="methanol")
    arrays, metadata = build_dataset({"water": water, "methanol": methanol}, 4, max_samples=50)
    data = Windows(arrays, metadata)
    import torch

    chosen = torch.tensor([0, len(data) - 1, 3])
    batch, targets = data.batch(chosen)
    assert batch.atoms_per_graph.tolist() == [3, 6, 3]
    assert batch.numbers.tolist() == [8, 1, 1, 6, 8, 1, 1, 1, 1, 8, 1, 1]
    assert batch.bonds.tolist()[:3] == [[0, 1], [0, 2], [3, 4]] and batch.bonds.tolist()[-1] == [9, 11]
    last = slice(arrays["ptr"][-2], arrays["ptr"][-1])
    assert np.array_equal(batch.positions[3:9].numpy(), arrays["x_t"][last])
    assert np.array_equal(targets.v_half[3:9].numpy(), arrays["v_half"][last])
    assert len(targets.angles) == 1 + 7 + 1


def test_rotated_copies_keep_energies_and_lengths(water):
    plain, _ = build_dataset({"water": water}, 4, max_samples=40)
    turned, _ = build_dataset({"water": water}, 4, max_samples=40, rotations=2, seed=1)
    n, a = len(plain["frame"]), len(plain["x_t"])
    assert len(turned["frame"]) == 3 * n and np.array_equal(turned["epot_t"][n:2 * n], plain["epot_t"])
    x, y = plain["x_t"].reshape(n, 3, 3), turned["x_t"][a:2 * a].reshape(n, 3, 3)
    assert not np.allclose(x, y)
    assert np.allclose(np.linalg.norm(x[:, 0] - x[:, 1], axis=-1), np.linalg.norm(y[:, 0] - y[:, 1], axis=-1))
    volume = [np.linalg.det(z - z.mean(1, keepdims=True) + np.eye(3)) for z in (x, y)]
    assert np.all(np.isfinite(volume))


def test_02_writes_datasets_and_splits(water, tmp_path):
    done = run_02("--md-root", water.parents[1], "--out-root", tmp_path, "--splits-dir", tmp_path / "splits",
                  "--ks", 4, 8)
    assert done.returncode == 0, done.stderr
    assert "windows past the end of a segment" in done.stderr
    for k in (4, 8):
        arrays, metadata = load_dataset(tmp_path / f"dataset_k{k}.npz")
        assert metadata["k_steps"] == k and arrays["k_steps"].max() == k
    assert sorted(p.name for p in (tmp_path / "splits").iterdir()) == ["test.json", "train.json", "val.json"]


def test_bad_input_is_one_sentence(water, tmp_path):
    def refused(words, *arguments):
        done = run_02("--out-root", tmp_path, "--splits-dir", tmp_path, *arguments)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr

    refused("not a whole number >= 1", "--md-root", water.parents[1], "--ks", 0)
    refused("no trajectory found", "--md-root", tmp_path / "empty")


def test_unusable_trajectories_are_refused(water, tmp_path):
    paths = {"water": water}
    with pytest.raises(UserError, match="no trajectory found"):
        find_trajectories(tmp_path)
    with pytest.raises(UserError, match="stores no forces"):
        build_dataset({"w": write_trajectory(tmp_path / "a.npz", store_forces=False)}, 4)
    other = write_trajectory(tmp_path / "b.npz", WATER, dt_fs=0.25)
    with pytest.raises(UserError, match="one timestep"):
        build_dataset({**paths, "b": other}, 4)
    cut_file = tmp_path / "c.npz"
    cut_file.write_bytes(water.read_bytes()[:5000])
    with pytest.raises(UserError, match="truncated"):
        build_dataset({"c": cut_file}, 4)
    arrays = read_npz(water)
    arrays["pos"] = arrays["pos"].copy()
    arrays["pos"][7, 0, 0] = np.nan
    write_npz(tmp_path / "d.npz", arrays)
    with pytest.raises(UserError, match="NaN"):
        build_dataset({"d": tmp_path / "d.npz"}, 4)
    with pytest.raises(UserError, match="k = 500"):
        build_dataset(paths, 500)
    hybrid = load_trajectory(water)
    kept = {key: value for key, value in vars(hybrid).items() if key != "metadata"}
    save_trajectory(tmp_path / "e.npz", kept, {**hybrid.metadata, "scheme": "metropolis"})
    with pytest.raises(UserError, match="metropolis"):
        build_dataset({"e": tmp_path / "e.npz"}, 4)


def test_a_dataset_is_the_result_of_the_same_command_and_replaced_by_none(water, tmp_path):
    def make(**more):
        return make_datasets(DatasetSettings(**{**dict(md_root=water.parents[1], out_root=tmp_path, ks=(4,),
                                                       splits_dir=tmp_path / "splits", split_by="time"), **more}))

    first = make()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert make() == first
    for change, words in (({"stride": 3}, "stride was null and is 3"), ({"rotations": 1}, "rotations was 0 and is 1"),
                          ({"train_fraction": 0.5, "out_root": tmp_path / "new"}, "is another split")):
        with pytest.raises(UserError, match=words):
            make(**change)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    make(stride=3, overwrite=True)
    assert (tmp_path / "dataset_k4.npz.backup-1").read_bytes() == before[tmp_path / "dataset_k4.npz"]
    assert load_dataset(tmp_path / "dataset_k4.npz")[1]["fingerprint"]["stride"] == 3
