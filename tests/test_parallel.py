"""torchrun: two processes that share each batch learn what one does, and end together."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time

import pytest
import torch

from kstep.models import checkpoint as checkpoints
from trainings import ROOT, command, make_dataset, rows_of

MODEL = ("arch: egnn\nheads: {energy: true, jump: true}\nelements: [1, 6, 8]\nhidden_dim: 8\nvector_dim: 4\n"
         "num_layers: 1\nnum_rbf: 6\n")
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"), "methanol", "water", max_samples=60)


def test_two_processes_give_the_loss_curve_of_one(dataset, tmp_path, monkeypatch, capsys):
    """On molecules of two sizes, batches that do not divide, accumulated, with both heads and every kind of term."""
    flags = ["--max-steps", "9", "--log-level", "warning"]
    for assignment in ("batch_size=7", "grad_accum=2", "log_interval_steps=1", "checkpoint_interval_steps=4",
                       "lambda_struct_angle=0.1", "lambda_struct_dihedral=0.1", "uncertainty_weighting=true"):
        flags += ["--set", assignment]
    two = subprocess.Popen(TWO + list(map(str, command(dataset, tmp_path / "two", *flags, model=MODEL))),
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    monkeypatch.syspath_prepend(str(ROOT / "src"))
    monkeypatch.setattr(sys, "argv", list(map(str, command(dataset, tmp_path / "one", *flags, model=MODEL))))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(sys.argv[0], run_name="__main__")
    said, complaint = two.communicate(timeout=120)
    assert not ended.value.code and two.returncode == 0, complaint
    assert said.count("checkpoints:") == 1  # the first process alone speaks

    one, both = (rows_of(tmp_path / run) for run in ("one", "two"))
    assert [row["kind"] for row in one] == [row["kind"] for row in both]
    assert one[0]["world_size"] == 1 and both[0]["world_size"] == 2
    for a, b in zip(one[1:], both[1:]):
        words = [key for key in a if isinstance(a[key], str)]
        assert [a.pop(key) for key in words] == [b.pop(key) for key in words]
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    assert sum("train_loss" in row and "log_variance_dx" in row for row in one) == 9
    states = [checkpoints.load(tmp_path / run / "best.pt")["state_dict"] for run in ("one", "two")]
    assert all(torch.allclose(states[0][name].double(), states[1][name].double(), rtol=1e-3, atol=1e-5)
               for name in states[0])
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


def test_ctrl_c_ends_both_processes_and_leaves_what_resume_needs(dataset, tmp_path):
    flags = ["--max-steps", "100000", "--set", "max_epochs=100000", "--set", "log_interval_steps=1"]
    run = subprocess.Popen(TWO + list(map(str, command(dataset, tmp_path, *flags, model=MODEL))),
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    log, deadline = tmp_path / "metrics.jsonl", time.monotonic() + 90
    while not (log.exists() and '"train"' in log.read_text()):
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    assert run.returncode != 0
    last = json.loads(log.read_text().splitlines()[-1])
    assert last["kind"] == "end" and last["reason"] == "interrupted"
    assert checkpoints.load(tmp_path / "last.pt")["training"]["step"] == last["step"]


def test_an_error_in_one_process_ends_both(dataset, tmp_path):
    """The second process fails in its third step, the first then waits for gradients that never come."""
    script = tmp_path / "fails.py"
    script.write_text(
        "import os, runpy, sys\n"
        "from kstep.training import window_training\n"
        "take = window_training.Trainer._take\n"
        "def failing(self, pieces):\n"
        "    if self.group.rank == 1 and self.at.step == 2:\n"
        "        raise window_training.UserError('the second process gives up')\n"
        "    take(self, pieces)\n"
        "window_training.Trainer._take = failing\n"
        f"sys.path.insert(0, {str(ROOT / 'src')!r})\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n")
    arguments = [script, *command(dataset, tmp_path / "out", model=MODEL)]
    done = subprocess.run(TWO + list(map(str, arguments)), capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert done.returncode != 0 and "error: the second process gives up" in done.stderr
    assert not (tmp_path / "out" / "training.json").exists()
