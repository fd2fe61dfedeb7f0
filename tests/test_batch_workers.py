"""A batch over workers of its own: one of them dies, Ctrl-C, a scheduler that stands, structure files, populations."""

import csv
import fcntl
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import ROOT, hears_ctrl_c
from kstep.cli import batch as batch_module
from kstep.cli.batch import jobs
from kstep.cli.batch.jobs import Place, perform, signal_batch
from kstep.cli.batch.stage import Command, Stage
from kstep.cli.batch.stages import STAGES
from kstep.cli.batch.workers import workers
from kstep.errors import UserError
from kstep.interruption import ENDS_WITH_STDIN
from kstep.processes import THREAD_VARIABLES
from kstep.schemas import load_trajectory

TINY = "equilibration_ps: 0.01\nlength_ps: {}\nredraw_interval_ps: 0.1\nhot_length_ps: 0.0\nreplicas: 1\n"
DEAF = ("import signal, time; signal.signal(signal.SIGUSR1, lambda *_: print('heard', flush=True)); "
        "print('ready', flush=True); [time.sleep(1) for _ in range(60)]")
FILE = "O water\nC methane\nN ammonia\n"


def start(folder, *words):
    environment = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "TMPDIR", "LANG", "PYTHONPATH")}
    command = [sys.executable, "-m", "kstep", "batch", *map(str, words), "--out-dir", str(folder / "out")]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, start_new_session=True, preexec_fn=hears_ctrl_c)


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
    (tmp_path / "long.yaml").write_text(TINY.format(0.3))
    given = ["--smiles-file", tmp_path / "some.smi", "--qm-config", tmp_path / "long.yaml"]
    out, logs = tmp_path / "out", tmp_path / "out/logs/run_qm_trajectories"
    batch = start(tmp_path, "baseline", *given, "--max-jobs", 2)
    try:
        done = until(lambda: [path.parent.name for path in (out / "md").glob("*/trajectory.npz")], batch)
        made = {name: (out / f"md/{name}/trajectory.npz").stat().st_mtime_ns for name in done}
        [(_, worker)] = until(lambda: programs("kstep baseline", "ammonia", str(tmp_path)), batch).items()
        until((out / "md/ammonia").exists, batch)
        assert worker != batch.pid
        os.kill(worker, signal.SIGKILL)
        code, text, _ = ended(batch)
    finally:
        batch.kill()
    assert code == 0 and text.count(": done in ") == 3
    assert not programs(str(tmp_path))
    assert {name: (out / f"md/{name}/trajectory.npz").stat().st_mtime_ns for name in made} == made
    assert starts_in(logs / "ammonia.log") == 2 and all(starts_in(logs / f"{name}.log") == 1 for name in made)
    alone = start(tmp_path / "alone", "baseline", *given, "--molecules", "ammonia")
    assert ended(alone)[0] == 0
    one, other = (load_trajectory(folder / "out/md/ammonia/trajectory.npz") for folder in (tmp_path,
                                                                                           tmp_path / "alone"))
    assert np.array_equal(one.pos, other.pos) and one.metadata["true_calls"] == other.metadata["true_calls"]



def test_ctrl_c_ends_all_jobs_which_leave_what_they_go_on_from(tmp_path):
    """Two workers, Ctrl-C as a terminal sends it: to every process of the batch."""
    (tmp_path / "some.smi").write_text("O water\nC methane\nN ammonia\n")
    (tmp_path / "long.yaml").write_text(TINY.format(1000))
    batch = start(tmp_path, "baseline", "--smiles-file", tmp_path / "some.smi", "--qm-config", tmp_path / "long.yaml",
                  "--max-jobs", 2)
    try:
        def left():
            """The jobs that have answers of true calls, or a restart file, on disk."""
            files = [path for name in ("calls_*", "checkpoint.npz") for path in (tmp_path / "out/md").rglob(name)]
            return {path.relative_to(tmp_path / "out/md").parts[0] for path in files}

        until(lambda: len(list((tmp_path / "out/md").rglob("*.parts"))) == 2, batch)
        until(lambda: batch.send_signal(signal.SIGUSR1) or len(left()) == 2, batch)  # which lets them write at once
        jobs = programs("kstep baseline", str(tmp_path))
        assert len(jobs) == 2 and len(set(jobs.values()) - {batch.pid}) == 2
        os.killpg(batch.pid, signal.SIGINT)
        code, text, _ = ended(batch, timeout=90)
        assert code == 130 and text.count("stopped") >= 3
    finally:
        os.killpg(batch.pid, signal.SIGKILL) if batch.poll() is None else None
    assert not programs(str(tmp_path))
    assert len(left()) == 2


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path, str(tmp_path))


class Given(Stage):
    """A stage of commands that are given."""

    script = "given"

    def __init__(self, out_dir, *commands):
        self.out_dir, self._commands = out_dir, commands

    def commands(self, task):
        return list(self._commands)


def making(path, *words, **more):
    return Command(list(words), (path,), lambda path: f"made {path.name}", **more)


def test_a_job_says_in_one_sentence_why_it_failed(tmp_path, place):
    made = tmp_path / "made"
    refused = perform(Given(tmp_path, making(made, "prepare", "CC(", "--name", "x", "--out-dir", str(tmp_path))), "x",
                      place)
    assert refused.status == "failed" and "SMILES 'CC(' cannot be read" in refused.text
    assert refused.cpu_s > 0.1 and "given/x.log" in refused.text
    nothing = perform(Given(tmp_path, making(made, "--version")), "x", place)
    assert nothing.status == "failed" and f"{made} was not made" in nothing.text
    early = perform(Given(tmp_path, making(made, "--version", needs=tmp_path / "raw")), "x", place)
    assert early.status == "failed" and "raw does not exist; run_qm_trajectories.sh" in early.text
    made.touch()
    assert perform(Given(tmp_path, making(made, "no", "such")), "x", place).text == "made made"
    gone = perform(Given(tmp_path, making(tmp_path / "other", "--version")), "x", Place(tmp_path / "not", "here"))
    assert gone.status == "failed" and "does not see" in gone.text
    signal_batch(place.batch, signal.SIGTERM)  # which nothing of it outlives
    assert perform(Given(tmp_path, making(tmp_path / "later", "--version")), "x", place).status == "stopped"


@pytest.mark.parametrize("batch_ends", [True, False])
def test_a_job_that_a_signal_ends_before_it_listens_is_stopped_where_its_batch_ends(tmp_path, place, monkeypatch,
                                                                                   batch_ends):
    wait = jobs.RUNNING.wait

    def at_once(batch, program):
        if batch_ends:
            signal_batch(batch, signal.SIGTERM)
        os.kill(program.pid, signal.SIGKILL)  # Python has not begun: SIGTERM would do the same
        return wait(batch, program)

    monkeypatch.setattr(jobs.RUNNING, "wait", at_once)
    row = perform(Given(tmp_path, making(tmp_path / "made", "--version")), "x", place)
    assert row.status == ("stopped" if batch_ends else "failed"), row


def test_a_job_has_one_thread_a_starter_that_it_outlives_not_and_the_last_of_its_errors(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    found = jobs._environment()
    assert {found[name] for name in THREAD_VARIABLES} == {"1"} and found[ENDS_WITH_STDIN] == "1"
    log = tmp_path / "log"
    log.write_text("error: of before\n")
    start = log.stat().st_size
    assert jobs._last_error(log, start) == ""
    with log.open("a") as more:
        more.write("12:00 I well\nE one\nerror: another\nwell\n")
    assert jobs._last_error(log, start) == "another"


def test_sigusr1_ends_no_program_of_a_batch():
    for number, code in ((signal.SIGUSR1, None), (signal.SIGTERM, -signal.SIGTERM)):
        program = jobs.RUNNING.start("usr1", args=[sys.executable, "-c", DEAF], stdout=subprocess.PIPE)
        assert program.stdout.readline() == b"ready\n"
        jobs.signal_batch("usr1", number)
        assert jobs.RUNNING.has_ended("usr1") == (code is not None)
        if code is None:
            assert program.stdout.readline() == b"heard\n"
            program.kill()
        assert jobs.RUNNING.wait("usr1", program)[0] == (code or -signal.SIGKILL)
        program.stdout.close()


def test_a_batch_hands_sigusr1_down(monkeypatch):
    asked, heard = iter([0, 0, 1, 1]), []
    monkeypatch.setattr(batch_module, "restarts_requested", lambda: next(asked))
    monkeypatch.setattr(batch_module, "LOOKS_APART_S", 0.01)
    future = Future()

    def everywhere(function, batch, number):
        heard.append((function, batch, number))
        future.set_result(jobs.TaskRow("x", "done"))

    rows = batch_module._rows({future: "x"}, SimpleNamespace(everywhere=everywhere), Place(Path(), "b"), 10.0)
    assert [task for task, _ in rows] == ["x"] and heard == [(signal_batch, "b", signal.SIGUSR1)]


def test_a_job_waits_for_the_one_that_holds_its_log(tmp_path, place, monkeypatch):
    monkeypatch.setattr("kstep.cli.batch.jobs.PATIENCE_S", 0.2)
    log = tmp_path / "logs/given/x.log"
    log.parent.mkdir(parents=True)
    with open(log, "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        made = Given(tmp_path, making(tmp_path / "made", "--version"))
        assert "another job is making it" in perform(made, "x", place).text
    assert "was not made" in perform(made, "x", place).text


@pytest.mark.parametrize("scheduler, words", [("tcp://127.0.0.1:9", "no Dask scheduler answers at tcp://127.0.0.1:9"),
                                              ("none.json", "scheduler file none.json does not exist")])
def test_a_scheduler_that_is_not_there_is_one_sentence(scheduler, words, monkeypatch):
    monkeypatch.setattr("kstep.forces.dask_cluster.CONNECT_S", 1)
    with pytest.raises(UserError, match=words), workers(2, 1, scheduler):
        pass


def test_paths_are_whole_for_workers_that_stand_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.smi").write_text("O water\n")
    stage = STAGES["baseline"](out_dir=Path("out"), smiles_file=Path("own.smi"), qm_config=Path("configs/qm.yaml"))
    stage.read_sources()
    stage.placed(tmp_path)
    assert (stage.out_dir, stage.smiles_file) == (tmp_path / "out", tmp_path / "own.smi")
    assert stage.qm_config == Path("configs/qm.yaml")  # shipped, wherever the worker is
    assert stage.commands("water")[0].makes == (tmp_path / "out/md/water/trajectory.npz",)


def test_a_standing_scheduler_runs_the_tasks(tmp_path):
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None,
                      protocol="tcp://") as cluster, workers(2, 1, cluster.scheduler_address) as who:
        futures = [who.executor.submit(perform, Given(tmp_path, making(tmp_path / "x", "--version")), name,
                                       Place(tmp_path, "standing")) for name in ("a", "b")]
        assert [future.result().task for future in futures] == ["a", "b"]
        who.everywhere(signal_batch, "standing", signal.SIGTERM)
        late = who.executor.submit(perform, Given(tmp_path, making(tmp_path / "x", "--version")), "c",
                                   Place(tmp_path, "standing"))
        assert late.result().status == "stopped"


def test_molecules_of_a_folder_of_structures(tmp_path):
    folder = tmp_path / "structures"
    folder.mkdir()
    (folder / "water.extxyz").write_text("3\n\nO 0 0 0.12\nH 0 0.76 -0.47\nH 0 -0.76 -0.47\n")
    (folder / "water.xyz").write_text("1\n\nH 0 0 0\n")
    (folder / "a b.xyz").write_text("1\n\nH 0 0 0\n")
    (folder / "notes.txt").write_text("")
    (tmp_path / "tiny.yaml").write_text(TINY.format(0.1))
    batch = start(tmp_path, "baseline", "--structure", folder, "--qm-config", tmp_path / "tiny.yaml")
    code, text, _ = ended(batch)
    rows = [line.split(None, 2) for line in text.split("---\n")[1].splitlines()]
    assert code == 1 and [row[:2] for row in rows] == [["-", "failed"], ["-", "failed"], ["water", "done"]]
    assert "'a b' cannot be a folder name" in rows[0][2] and "water.extxyz has the same name" in rows[1][2]
    found = load_trajectory(tmp_path / "out/md/water/trajectory.npz")
    assert found.metadata["smiles"] == "O" and len(found.masses) == 3
    again = ended(start(tmp_path, "baseline", "--structure", folder, "--qm-config", tmp_path / "tiny.yaml",
                        "--molecules", "water"))
    assert again[0] == 0 and " skipped " in again[1]


def test_populations_of_a_list(tmp_path):
    """From SMILES to conformers, a table over all, and the same command again does nothing twice."""
    (tmp_path / "some.smi").write_text("O water\nCC( broken\n")
    (tmp_path / "hybrid.yaml").write_text("burn_in_steps: 1\nreplicas: 4\nsteps: 4\nmoves: 2\ntune: false\n"
                                          "network_ladder_K: [300]\n")
    (tmp_path / "learn.yaml").write_text("learn_replicas: 4\nfit_passes: 5\nround_passes: 2\nmax_true_calls: 60\n"
                                         "verify_proposals: 4\n")
    given = ["populations", "--smiles-file", tmp_path / "some.smi", "--hybrid-config", tmp_path / "hybrid.yaml",
             "--learn-config", tmp_path / "learn.yaml", "--device", "cpu"]
    code, text, _ = ended(start(tmp_path, *given))
    assert code == 1 and "true calls, " in text and "SMILES 'CC(' cannot be read" in text
    with open(tmp_path / "out/populations/populations.csv") as table:
        rows = list(csv.DictReader(table))
    run = load_trajectory(tmp_path / "out/populations/water.npz")
    [one] = run.metadata["populations"]["conformers"]
    assert [row["molecule"] for row in rows] == ["water"] and float(rows[0]["population"]) == one["population"] == 1
    assert rows[0]["converged"] == str(run.metadata["populations"]["converged"])
    assert int(rows[0]["true_calls"]) == run.metadata["true_calls"]
    made = (tmp_path / "out/populations/water.npz").stat().st_mtime_ns
    code, text, _ = ended(start(tmp_path, *given, "--molecules", "water"))
    assert code == 0 and " skipped " in text and (tmp_path / "out/populations/water.npz").stat().st_mtime_ns == made
    (tmp_path / "out/populations/cut.npz").write_bytes(b"PK")
    other = STAGES["populations"](out_dir=tmp_path / "out", smiles_file=tmp_path / "some.smi", part=(2, 2))
    other.read_sources()  # what other jobs of an array have made stays in the table
    assert list(other.sources) == ["broken"] and other.afterwards().endswith("conformers of 1 molecules")
    with open(tmp_path / "out/populations/populations.csv") as table:
        assert list(csv.DictReader(table)) == rows
    (tmp_path / "hybrid.yaml").write_text("burn_in_steps: 1\nreplicas: 5\nsteps: 4\ntune: false\n")
    code, text, _ = ended(start(tmp_path, *given, "--molecules", "water"))
    assert code == 1 and "replicas 4, not 5" in text


def test_parts_of_a_list_are_all_of_it_once(tmp_path):
    names = [f"m{n}" for n in range(7)]
    (tmp_path / "some.smi").write_text("\n".join(f"C {name}" for name in names) + "\nbad\n")
    parts = []
    for number in (1, 2, 3):
        stage = STAGES["evaluate"](smiles_file=tmp_path / "some.smi", part=(number, 3))
        problems = stage.read_sources()
        assert len(problems) == (number == 1)
        parts += stage.sources
    assert sorted(parts) == names
