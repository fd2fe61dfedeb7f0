"""qm_train_tui.py: every log a training can leave is read, one frame fits its screen, the program ends cleanly."""

import json
import math
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from pathlib import Path

import pytest

pytest.importorskip("rich")
from kstep.cli.monitor.chart import draw
from kstep.cli.monitor.frame import compose
from kstep.cli.monitor.log import Follower, thin

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "qm_train_tui.py"
START = {"kind": "start", "time": 0.0, "arch": "egnn", "parameters": 1234, "total_steps": 1000, "step": 0,
         "device": "cpu"}


def train_row(step, loss=1.0, **more):
    return {"kind": "train", "epoch": 0, "step": step, "total_steps": 1000, "lr": 1e-3, "wall_s": step / 10,
            "samples_per_s": 99.0, "peak_memory_MB": 512.0, "train_loss": loss, "train_force": 0.25, **more}


def validation_row(step, loss, best):
    return {"kind": "validation", "epoch": 0, "step": step, "total_steps": 1000, "lr": 1e-3, "wall_s": step / 10,
            "val_loss": loss, "force_rmse_kJ_per_mol_nm": 100 * loss, "best": best}


def write(path, *rows, mode="a"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, mode) as handle:
        handle.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def follower(tmp_path):
    return Follower(tmp_path / "run" / "metrics.jsonl", max_points=100)


def test_a_half_written_line_counts_once_it_is_whole(follower):
    write(follower.path, START)
    line = json.dumps(train_row(10, 0.5)) + "\n"
    for piece, seen in ((line[:25], None), (line[25:], 0.5)):
        with open(follower.path, "a") as handle:
            handle.write(piece)
        assert follower.poll()
        assert follower.summary.latest.get("train_loss") == seen
    assert follower.summary.skipped == 0
    assert not follower.poll()


def test_only_what_is_new_is_read(follower):
    write(follower.path, START, *(train_row(s) for s in range(10, 1000, 10)))
    follower.poll()
    before = follower._offset
    write(follower.path, train_row(1000))
    taken = []
    follower._take = taken.append
    follower.poll()
    assert len(taken) == 1 and follower._offset == before + len(taken[0]) + 1


@pytest.mark.parametrize("rows", [1, 40], ids=["shorter", "longer"])
def test_a_restarted_training_starts_afresh(follower, rows):
    write(follower.path, START, *(train_row(s) for s in range(10, 200, 10)))
    follower.poll()
    write(follower.path, START | {"time": 1.0}, *(train_row(s, 3.0) for s in range(1, rows + 1)), mode="w")
    follower.poll()
    assert follower.summary.curves["train_loss"] == [(s, 3.0) for s in range(1, rows + 1)]


def test_a_resumed_training_overwrites_what_it_does_again(follower):
    write(follower.path, START, *(train_row(s, 1.0) for s in (10, 20, 30)), {"kind": "end", "reason": "interrupted"},
          START | {"step": 20}, train_row(30, 2.0))
    follower.poll()
    assert follower.summary.curves["train_loss"] == [(10, 1.0), (20, 1.0), (30, 2.0)]
    assert follower.summary.ended is None


def test_odd_rows_do_no_harm(follower):
    write(follower.path, START, train_row(10, 0.5), train_row(20, math.nan), train_row(30, math.inf),
          train_row(40, None), {"kind": "gpu", "train_loss": 7.0}, [1, 2], train_row(50, 10**400))
    with open(follower.path, "ab") as handle:
        handle.write(b"\xff\xfe not json\n\n" + b"[" * 100_000 + b"\n")
    follower.poll()
    summary = follower.summary
    assert summary.curves["train_loss"] == [(10, 0.5)]
    assert summary.skipped == 4
    assert math.isinf(summary.latest["train_loss"])
    compose(follower, ["train_loss"], 80, 24)


def test_time_left_follows_the_recent_pace(follower):
    rows = [train_row(s, wall_s=500 + s) for s in range(10, 510, 10)]  # 1 s a step after a slow beginning
    write(follower.path, START, *rows)
    follower.poll()
    assert follower.summary.left_s() == pytest.approx(500)
    write(follower.path, {"kind": "end", "step": 500, "reason": "interrupted"})
    follower.poll()
    assert follower.summary.left_s() is None


def test_best_is_the_best_validation(follower):
    write(follower.path, START, validation_row(10, 0.5, True), validation_row(20, 0.9, False))
    follower.poll()
    assert follower.summary.best["force_rmse_kJ_per_mol_nm"] == 50
    assert follower.summary.latest["force_rmse_kJ_per_mol_nm"] == 90


def test_thinning_keeps_spikes_and_ends():
    points = [(s, 1.0) for s in range(10_000)]
    points[5_003], points[7_001] = (5_003, 99.0), (7_001, -5.0)
    thinned = thin(points, 50)
    assert len(thinned) <= 50
    assert {points[0], points[5_003], points[7_001], points[-1]} <= set(thinned)


def test_long_curves_stay_bounded(follower):
    write(follower.path, START, *(train_row(s, 1 + s % 7) for s in range(5_000)))
    follower.poll()
    assert len(follower.summary.curves["train_loss"]) <= 400
    assert follower.summary.curves["train_loss"][-1][0] == 4_999


def test_chart_rises_and_takes_decades_logarithmically():
    cells, _, _, logarithmic = draw([[(0, 1.0), (1, 2.0)]], 10, 5, braille=False)
    assert cells[4][0][0] == cells[0][9][0] == "*" and not logarithmic
    assert draw([[(0, 1e-3), (1, 1.0)]], 10, 5, braille=True)[3]


@pytest.mark.parametrize("width, height", [(80, 24), (160, 50), (60, 15), (20, 5)])
@pytest.mark.parametrize("unicode", [True, False])
def test_a_frame_fits(follower, width, height, unicode):
    write(follower.path, START, *(train_row(s, 1 / s, **{f"train_term{i}": 0.1 for i in range(9)})
                                  for s in range(10, 1000, 10)), validation_row(500, 0.4, True),
          *({"kind": "checkpoint", "step": 500, "file": f"step_{s}.pt"} for s in range(20)))
    follower.poll()
    lines = compose(follower, ["val_loss", "train_loss"], width, height, unicode=unicode)
    assert len(lines) == height and max(line.cell_len for line in lines) <= width
    text = "\n".join(line.plain for line in lines)
    assert unicode or text.isascii()
    if width >= 80:
        for words in ("left ", "samples/s 99", "lr 0.001", "force_rmse_kJ_per_mol_nm", "step_19.pt at 500", "50 %"):
            assert words in text


def run(*arguments, **environment):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=60,
                          env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "COLUMNS": "80", "LINES": "24"}
                          | environment)


def test_once_prints_one_plain_frame(follower):
    write(follower.path, START, train_row(10, 0.5), validation_row(10, 0.5, True))
    done = run("--log-dir", follower.path.parent, "--once", TERM="dumb", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 24 and done.stdout.isascii() and "\x1b" not in done.stdout


@pytest.mark.parametrize("arguments, words", [
    (("--refresh", "0"), "--refresh must lie"),
    (("--metric", "force_rmse_kJ", "--once"), "did you mean 'force_rmse_kJ_per_mol_nm'")])
def test_bad_flags_exit_with_2(follower, arguments, words):
    write(follower.path, START, train_row(10), validation_row(10, 0.5, True))
    done = run("--log-dir", follower.path.parent, *arguments)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("key", [b"q", b"\x03"], ids=["q", "ctrl-c"])
def test_waits_for_the_log_then_shows_it_and_leaves_cleanly(follower, key):
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(theirs)
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    child = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
         "signal.signal(signal.SIGINT, signal.default_int_handler); "
         "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])",
         SCRIPT, "--log-dir", follower.path.parent, "--refresh", "0.1"], stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True,
        env=environment | {"PYTHONPATH": str(ROOT / "src"), "TERM": "xterm", "LC_ALL": "C.UTF-8"})
    seen = b""

    def read_until(words):
        nonlocal seen
        limit = time.monotonic() + 30
        while words not in seen and time.monotonic() < limit:
            if select.select([ours], [], [], 0.1)[0]:
                seen += os.read(ours, 65536)
        assert words in seen, seen[-2000:]

    try:
        read_until(b"waiting for")
        write(follower.path, START, train_row(10, 0.5), validation_row(10, 0.5, True))
        read_until(b"force_rmse_kJ_per_mol_nm")
        os.write(ours, key)
        read_until(b"\x1b[?1049l")  # back from the alternate screen
        assert child.wait(timeout=20) == 0
        assert termios.tcgetattr(theirs) == before
    finally:
        child.kill()
        child.wait()
        os.close(ours)
        os.close(theirs)
