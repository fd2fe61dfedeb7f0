"""A batch over workers of its own: one of them dies, Ctrl-C, a scheduler that stands, molecules from structure files."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT
from kstep.cli.batch.jobs import Place, perform, signal_batch
from kstep.cli.batch.stages import STAGES, Command, Source, Stage
from kstep.cli.batch.workers import workers
from kstep.errors import UserError
from kstep.schemas import load_trajectory

TINY = "equilibration_ps: 0.01\nlength_ps: {}\nredraw_interval_ps: 0.1\nhot_length_ps: 0.0\nreplicas: 1\n"
FILE = "O water\nC methane\nN ammonia\n"


def start(folder, *words, **more):
    environment = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "TMPDIR", "LANG", "PYTHONPATH")}
    return subprocess.Popen([sys.executable, "-m", "kstep", "batch", *map(str, words), "--out-dir", str(folder / "out")],
                            env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            start_new_session=True, **more)


def ended(batch, timeout=300):
    out, err = batch.communicate(timeout=timeout)
    assert "Traceback" not in err + out, err
    return batch.returncode, out, err


def programs(*texts):
    """{pid: parent} of programs whose command line holds all of some texts."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if all(text in words for text in texts):
                found[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            pass  # it has ended
    return found


def until(what, batch, seconds=240.0):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert batch.poll() is None, batch.communicate()
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)
    return found


def starts_in(log):
    return sum(line.startswith("$ ") for line in log.read_text().splitlines())


def test_a_worker_that_is_killed_costs_nothing_that_was_finished(tmp_path):
    """Its job ends by itself, another worker goes on with it, bit for bit, and nothing else is done again."""
    (tmp_path / "some.smi").write_text(FILE)
    (tmp_path / "long.yaml").write_text(TINY.format(1.5))
    given = ["--smiles-file", tmp_path / "some.smi", "--qm-config", tmp_path / "long.yaml"]
    out, logs = tmp_path / "out", tmp_path / "out/logs/run_qm_trajectories"
    batch = start(tmp_path, "baseline", *given, "--max-jobs", 2)
    try:
        done = until(lambda: [path.parent.name for path in (out / "md").glob("*/trajectory.npz")], batch)
        made = {name: (out / f"md/{name}/trajectory.npz").stat().st_mtime_ns for name in done}
        [(job, worker)] = until(lambda: programs("kstep baseline", "ammonia", str(tmp_path)), batch).items()
        until((out / "md/ammonia").exists, batch)
        assert worker != batch.pid
        os.kill(worker, signal.SIGKILL)
        code, text, _ = ended(batch)
    finally:
        batch.kill()
    assert code == 0 and text.count(" done ") == 3
    assert not programs(str(tmp_path))
    assert {name: (out / f"md/{name}/trajectory.npz").stat().st_mtime_ns for name in made} == made
    assert starts_in(logs / "ammonia.log") == 2 and all(starts_in(logs / f"{name}.log") == 1 for name in made)
    alone = start(tmp_path / "alone", "baseline", *given, "--molecules", "ammonia")
    assert ended(alone)[0] == 0
    one, other = (load_trajectory(folder / "out/md/ammonia/trajectory.npz") for folder in (tmp_path,
                                                                                           tmp_path / "alone"))
    assert np.array_equal(one.pos, other.pos) and one.metadata["true_calls"] == other.metadata["true_calls"]

