"""Runs as a user starts them, told to end or robbed of a worker: nothing is lost, nobody stays behind."""

import copy
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import synthetic
from conftest import ROOT, hears_ctrl_c, run_python
from kstep.schemas import PER_FRAME, load_trajectory
from test_scripts import alive, children, wait_until

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "8"}  # of a shell that means well


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    work = tmp_path_factory.mktemp("signals")
    (work / "one.smi").write_text("O water\n")
    done = run_python("src/00_prep_mols.py", "--smiles", work / "one.smi", "--out-dir", work / "raw")
    assert done.returncode == 0, done.stderr
    return work


STARTED = []


@pytest.fixture(autouse=True)
def nobody_is_left():
    """What a test that failed has started works on for hours, and makes all others slow."""
    yield
    while STARTED:
        run = STARTED.pop()
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)


def start(*command):
    STARTED.append(subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, env=ENVIRONMENT, text=True,
                                    stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
                                    preexec_fn=hears_ctrl_c))
    return STARTED[-1]


def baseline(work, out, length_ps, *flags):
    return ("src/01b_run_qm_baselines.py", "--smiles-file", work / "one.smi", "--raw", work / "raw", "--config",
            "configs/qm_fast.yaml", "--out", out, "--num-workers", 2, "--set", f"length_ps={length_ps}",
            "--set", "equilibration_ps=0.02", "--set", "hot_length_ps=0", *flags)


def parts_of(folder, n):
    """The folders of parts of n runs below a folder, once all of them are at work."""
    found = [path.parent for name in ("calls_*", "checkpoint.npz") for path in folder.rglob(name)]
    return sorted(set(found)) if len(set(found)) == n else None


def at_work(run, folder):
    """Wait until files say that both runs of water are at work, which SIGUSR1 lets them write at once."""
    wait_until(lambda: list((folder / "water").glob("*.parts")) or None, 240)
    wait_until(lambda: run.send_signal(signal.SIGUSR1) or parts_of(folder, 2), 120)


def ended(run, number, to=os.kill):
    """Send a signal to the main process alone, or with os.killpg to all, as a terminal does; (exit code, CPU seconds
    that all processes took from then on, what it said, workers that are still there).

    CPU seconds do not grow where the machine does other work, so that a bound on them holds on any.
    """
    workers, before = workers_of(run), cpu_s_of_children()
    spent = sum(cpu_s(pid, with_children=True) for pid in (run.pid, *workers))
    to(run.pid, number)
    said = run.communicate(timeout=100)[1]
    return run.returncode, cpu_s_of_children() - before - spent, said, [pid for pid in workers if alive(pid)]


def cpu_s_of_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def workers_of(run):
    """Its worker processes, without Python's own resource tracker."""
    return [pid for pid in children(run.pid) if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.parametrize("to", [os.kill, os.killpg], ids=["main process", "terminal"])
def test_ctrl_c_on_01b_ends_it_at_once_and_nobody_stays(work, tmp_path, to):
    run = start(*baseline(work, tmp_path / "out", 2000))
    at_work(run, tmp_path / "out")
    since, began = time.monotonic(), {pid: cpu_s(pid) for pid in workers_of(run)}
    time.sleep(1.0)
    assert all(cpu_s(pid) - began[pid] < 1.3 * (time.monotonic() - since) for pid in began)  # one thread each
    before = time.time()
    code, seconds, said, left = ended(run, signal.SIGINT, to)
    assert code == 130 and not left and seconds < 3.0, said  # what is queued takes hours
    for parts in tmp_path.rglob("*.parts"):  # what was asked since the restart file, if that was not being written
        assert list(parts.glob("calls_*")) or (parts / "checkpoint.npz").stat().st_mtime > before - 1.0
    assert "--resume continues" in said and "leaked" not in said and "Traceback" not in said
    assert "interrupted" in (tmp_path / "out/plain_md.log").read_text()


def log_of(path):
    return path.read_text() if path.exists() else ""


def cpu_s(pid, *, with_children=False):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15 if with_children else 13])) / os.sysconf("SC_CLK_TCK")


def test_a_worker_of_01b_that_is_killed_or_stopped_costs_nothing(work, tmp_path):
    length_ps = 1.0
    whole = run_python(*baseline(work, tmp_path / "whole", length_ps))
    assert whole.returncode == 0, whole.stderr
    run = start(*baseline(work, tmp_path / "cut", length_ps, "--set", "call_limit_s=3"))
    at_work(run, tmp_path / "cut")  # both are past loading, for which they have ten minutes
    first, *_, last = workers_of(run)  # before another one takes the place of the first
    os.kill(first, signal.SIGKILL)
    os.kill(last, signal.SIGSTOP)
    said = run.communicate(timeout=200)[1]
    assert run.returncode == 0 and said.count("another one goes on") == 2, said
    a, b = (load_trajectory(tmp_path / name / "water/trajectory.npz") for name in ("whole", "cut"))
    for key in ("pos", "vel", "Epot", "forces", "step", "replica"):
        assert np.array_equal(getattr(a, key), getattr(b, key)), key
    assert a.metadata["true_calls"] == b.metadata["true_calls"]


def test_sigterm_on_06b_leaves_what_a_bit_equal_run_goes_on_from(work, tmp_path):
    def command(name, *flags):
        return ("src/06b_hybrid_integrate_qm.py", "--molecule", work / "raw/water", "--qm-config",
                "configs/qm_fast.yaml", "--scheme", "plain", "--replicas", 4, "--num-workers", 2, "--burn-in-steps", 0,
                "--set", "checkpoint_interval=100000", "--steps", 300, "--out", tmp_path / f"{name}.npz", *flags)

    run = start(*command("cut"))
    wait_until(lambda: "0 of 300" in log_of(tmp_path / "cut.npz.log") or None, 240)
    time.sleep(0.3)
    code, seconds, said, left = ended(run, signal.SIGTERM)
    assert code == 143 and not left and seconds < 3.0, said
    assert "SIGTERM" in said and "leaked" not in said and list(tmp_path.glob("cut.npz.parts/calls_*"))
    again, whole = run_python(*command("cut", "--resume")), run_python(*command("whole"))
    assert again.returncode == whole.returncode == 0, again.stderr
    assert "are known already" in again.stderr
    a, b = (load_trajectory(tmp_path / f"{name}.npz") for name in ("whole", "cut"))
    for key in ("pos", "vel", "Epot", "step"):
        assert np.array_equal(getattr(a, key), getattr(b, key)), key
    assert a.metadata["true_calls"] == b.metadata["true_calls"] >= 4 * 301  # and those of its starts
    assert not list(tmp_path.glob("*.parts"))


def test_a_short_soak_holds(tmp_path):
    """Two hours of it, with a network: benchmarks/soak.py."""
    done = run_python("benchmarks/soak.py", "--minutes", 0.2, "--fault-minutes", 0.07, "--most-faults", 4, "--scheme",
                      "plain", "--smiles", "O", "--replicas", 2, "--faults", "kill worker", "kill run", "end run",
                      "damaged file", "--work", tmp_path / "work", "--out", tmp_path / "soak.json", timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["faults"] and found["holds"] and not found["fails"]
    assert not found["lost_or_doubled"]
    assert found["same_bits"] or any("kill worker" in fault for fault in found["faults"])  # whose SCF had a history


def one_twice(t):
    t.step[30] = t.step[29]


def frames(t, chosen):
    for key in PER_FRAME:
        if len(getattr(t, key)):
            setattr(t, key, getattr(t, key)[chosen])


def its_last_one_lost(t):
    frames(t, np.arange(len(t.pos)) != np.flatnonzero(t.replica == 0)[-1])


WRONG = [  # of a run, what of it fails
    (lambda t: None, []), (one_twice, ["frames"]), (its_last_one_lost, ["frames"]),
    (lambda t: t.metadata.update(true_calls=t.metadata["true_calls"] + 1), ["true calls"]),
    (lambda t: t.Epot.__iadd__(3.0) is None, ["energy"]),
]


@pytest.mark.parametrize("change, fails", WRONG, ids=lambda value: "-".join(value) if isinstance(value, list) else "")
def test_a_soak_that_does_not_hold_says_what(tmp_path, change, fails):
    import soak

    quiet = synthetic.ethanol(0, replicas=4, frames=400)
    quiet.metadata["k_steps"] = int(np.diff(quiet.step[:2])[0])
    noisy = copy.deepcopy(quiet)
    change(noisy)
    for name, run in (("quiet", quiet), ("noisy", noisy)):
        synthetic.save(tmp_path / f"{name}.npz", run)
    flat = [(0.0, 100.0)] * 400
    patient = soak.Patient([], tmp_path, None, memory=flat)
    assert soak.judge(tmp_path / "quiet.npz", tmp_path / "noisy.npz", patient, flat)["fails"] == fails
    if not fails:
        grows = [(0.0, 100.0)] * 250 + [(1.0, 110.0)] * 150
        for more, quiet_memory in ((flat, grows), (grows, flat)):
            patient = soak.Patient([], tmp_path, None, memory=more, wrong_ends=["end run: exit code 1"])
            found = soak.judge(tmp_path / "quiet.npz", tmp_path / "noisy.npz", patient, quiet_memory)
            assert found["fails"] == ["ends", "memory"] and not found["holds"]


def test_a_soak_notes_a_run_that_does_not_end_as_it_should(tmp_path):
    import soak

    ends_with_5 = ("import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); "
                   "print(flush=True); time.sleep(60)")
    for kind, notes in (("end run", ["end run: exit code 5"]), ("kill run", [])):
        patient = soak.Patient([sys.executable, "-c", "pass"], tmp_path / "x.npz", random.Random(0))
        patient.process = subprocess.Popen([sys.executable, "-c", ends_with_5], stdout=subprocess.PIPE)
        patient.process.stdout.readline()
        patient.process.stdout.close()
        patient.fault(kind)
        assert patient.process.wait() == 0 and patient.wrong_ends == notes and patient.history[0][1] == kind


def test_a_soak_knows_a_gap_that_both_runs_have():
    import soak

    whole = synthetic.ethanol(0, replicas=4, frames=20)
    k = int(np.diff(whole.step[:2])[0])
    gap = copy.deepcopy(whole)
    frames(gap, np.arange(len(gap.pos)) != np.flatnonzero(gap.replica == 1)[5])
    assert soak.out_of_step(whole, k) == 0 and soak.out_of_step(gap, k) == 1 and not soak.lost_or_doubled(gap, gap)


def test_a_soak_tells_populations_apart():
    import soak

    one, other = (synthetic.ethanol(seed, replicas=8, frames=400) for seed in (0, 1))
    assert soak.shares_apart(one, one) == 0.0 and soak.shares_apart(one, other) < soak.MOST_DEVIATION
    assert soak.shares_apart(one, synthetic.ethanol(2, replicas=8, frames=400, wells=[0] * 8)) > soak.MOST_DEVIATION
