"""Commands killed at any moment: what is there is whole, and the same command again has the result of a quiet one."""

import random
import shutil
import signal

import numpy as np
import pytest

import synthetic
from killing import ended, load_what_it_loaded
from kstep.molecules.prepare import ensure_prepared
from kstep.molecules.smiles import Entry
from kstep.schemas import load_trajectory

EACH, OF_A_LONG_ONE, OF_A_RUN = 2, 1, 3  # kills of a command, of which there are many: places and signals are drawn
LONG = ("report", "evaluate")
COMMANDS = {  # and with what an earlier result was made, which gives way
    "populations": (("populations", "run.npz", "--out", "o/p.json"), ("--smallest", "0.4")),
    "average": (("average", "run.npz", "--distance", "0-2", "--out", "o/a.json"), ("--temperature", "310")),
    "spectrum": (("spectrum", "vibrating.npz", "--out", "o/s.json", "o/s.csv", "o/s.png"), ()),
    "profile": (("profile", "run.npz", "--torsion", "0-1-2-8", "--out", "o"), ("--bins", "20")),
    "export": (("export", "run.npz", "o/x.extxyz", "--overwrite"), ("--all",)),
    "report": (("report", "run.npz", "--out", "o/r.html"), ()),
    "evaluate": (("evaluate", "run.npz", "--baseline", "run.npz", "--out-dir", "o"), ()),
}
ENDS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143}  # exit codes


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    synthetic.save(folder / "run.npz", synthetic.ethanol(replicas=4, frames=60))
    vibrating = synthetic.ethanol(replicas=4, frames=10, spacing_ps=0.0035, drift=0.0, drift_frames=130)
    synthetic.save(folder / "vibrating.npz", vibrating)
    return folder


def files(folder):
    """{name: content} of what is there, without temporary files and what was set aside."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and not path.name.startswith(".") and ".backup-" not in path.name}


def orphans(folder):
    return [path for path in folder.rglob(".*") if path.is_file()]


def drawn(name, n_changes, n):
    """(place, signal) of n kills."""
    rng = random.Random(name)
    return [(at, rng.choice(list(ENDS))) for at in sorted(rng.sample(range(1, n_changes + 1), min(n, n_changes)))]


def end_well(command, folder):
    code, n_changes = ended(command, folder)
    assert code == 0, folder.with_name(f"{folder.name}.txt").read_text()
    return n_changes


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_leaves_whole_files_and_can_be_repeated(runs, tmp_path, name):
    command, other = COMMANDS[name]
    whole, earlier = tmp_path / "whole", tmp_path / "earlier"
    shutil.copytree(runs, whole)
    shutil.copytree(runs, earlier)
    n_changes = end_well(command, whole)
    load_what_it_loaded(whole)
    end_well((*command, *other), earlier)
    right, before = files(whole), files(earlier)
    assert len(right) > len(files(runs)) and (right != before) == bool(other)
    for start in (runs, earlier):
        for at, number in drawn(f"{name} {start is runs}", n_changes, OF_A_LONG_ONE if name in LONG else EACH):
            folder = tmp_path / f"{start.name}{at}"
            shutil.copytree(start, folder)
            code, made = ended(command, folder, at, number)
            # it may do less where there is a result already
            assert code == ENDS[number] or (start is earlier and code == 0 and made < at), (at, number)
            for path, content in files(folder).items():
                assert content in (right[path], before[path] if start is earlier else None), (path, at, number)
            end_well(command, folder)
            assert files(folder) == right and not orphans(folder), (at, number, orphans(folder))


def test_windows_of_an_umbrella_that_are_killed_go_on_to_the_same(tmp_path):
    """Twice each, the second time while it goes on."""
    ensure_prepared(Entry("water", "O"), tmp_path / "raw")
    (tmp_path / "mm.yaml").write_text("platform: Reference\ntemperature_K: 300.0\n")
    command = ("umbrella", tmp_path / "raw/water", "--config", tmp_path / "mm.yaml", "--scheme", "plain", "--steps", 8,
               "--burn-in-steps", 1, "--replicas", 2, "--num-workers", 1, "--restrain", "distance:0-1", "--from",
               "0.09", "--to", "0.1", "--windows", 2, "--k", 5000, "--set", "checkpoint_interval=2", "--set",
               "save_interval_steps=1", "--set", "dt_fs=0.5", "--out", "u", "--resume")
    (tmp_path / "whole").mkdir()
    n_changes = end_well(command, tmp_path / "whole")
    load_what_it_loaded(tmp_path / "whole")
    for at, number in drawn("umbrella", n_changes, OF_A_RUN):
        folder = tmp_path / str(at)
        folder.mkdir()
        for _ in range(2):
            assert ended(command, folder, at, number)[0] in (ENDS[number], 0), (at, number)
        end_well(command, folder)
        assert files(folder).keys() == files(tmp_path / "whole").keys() and not orphans(folder), (at, number)
        assert (folder / "u/distance_0-1.json").read_bytes() == (tmp_path / "whole/u/distance_0-1.json").read_bytes()
        for window in ("u/window_00.npz", "u/window_01.npz"):
            one, other = load_trajectory(folder / window), load_trajectory(tmp_path / "whole" / window)
            for key in ("pos", "vel", "Epot", "step", "replica", "segment"):
                assert np.array_equal(getattr(one, key), getattr(other, key)), (key, at, number)
            assert one.metadata["true_calls"] == other.metadata["true_calls"], (at, number)
