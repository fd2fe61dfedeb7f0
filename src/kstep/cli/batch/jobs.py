"""One task of a batch: its commands, each a program of its own that writes into the task's log.

It may run in a thread of the batch or on a Dask worker, which may be another machine with the same file system.
Whoever dies harms nobody else: a command that crashes is a row of the table; a worker that is killed leaves a command
that ends as by SIGTERM, with its restart files written, and the worker that takes over waits for that.  It waits at the
log, which the command and all its processes hold locked while they live.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import kstep
from kstep.cli.batch.stage import Stage
from kstep.cli.batch.stages import Baseline
from kstep.errors import UserError, sentence_of
from kstep.interruption import ENDS_WITH_STDIN, Stopped, Terminated
from kstep.processes import THREAD_VARIABLES
from kstep.study.batch import Found

PATIENCE_S, LOOKS_APART_S = 120.0, 0.5  # for the end of what an earlier worker has started
STOPPED = "interrupted; the same command continues it"


@dataclass(frozen=True)
class TaskRow:
    """What became of a task: a line of the table at the end."""

    task: str
    status: str  # skipped, planned, done, failed, stopped
    text: str = ""
    seconds: float | None = None
    cpu_s: float | None = None

    @property
    def is_well(self) -> bool:
        """Whether the task has, or would have, its result."""
        return self.status not in ("failed", "stopped")


@dataclass(frozen=True)
class Place:
    """Where a batch runs: the folder that its paths start from, and its own name among others on the same workers."""

    folder: Path
    batch: str


class _Running:
    """The programs of this process, by batch, and the batches that are to end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._programs: dict[str, set[subprocess.Popen]] = {}
        self._ended: set[str] = set()

    def start(self, batch: str, **how) -> subprocess.Popen | None:
        """Start a program; None where its batch has ended."""
        with self._lock:
            if batch in self._ended:
                return None
            program = subprocess.Popen(**how)
            self._programs.setdefault(batch, set()).add(program)
            return program

    def wait(self, batch: str, program: subprocess.Popen) -> tuple[int, float]:
        """Exit code and CPU seconds of a program and of what it waited for."""
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)  # it keeps its number until nobody signals it
        with self._lock:
            self._programs[batch].discard(program)
            _, status, usage = os.wait4(program.pid, 0)
        program.returncode = os.waitstatus_to_exitcode(status)
        return program.returncode, usage.ru_utime + usage.ru_stime

    def signal(self, batch: str, number: int) -> None:
        """Signal the programs of a batch; all but SIGUSR1 end it, SIGKILL with all their processes."""
        with self._lock:
            if number != signal.SIGUSR1:
                self._ended.add(batch)
            for program in self._programs.get(batch, ()):
                (os.killpg if number == signal.SIGKILL else os.kill)(program.pid, number)

    def has_ended(self, batch: str) -> bool:
        """Whether a batch is to end."""
        return batch in self._ended


RUNNING = _Running()


def signal_batch(batch: str, number: int) -> None:
    """Signal what this process runs of a batch."""
    RUNNING.signal(batch, number)


def perform(stage: Stage, task: str, place: Place) -> TaskRow:
    """Make what a task lacks; whatever goes wrong is in the row."""
    if RUNNING.has_ended(place.batch):
        return TaskRow(task, "stopped", STOPPED)
    began = time.perf_counter()
    spent = [0.0]
    try:
        status, text = _perform(stage, task, place, spent)
    except (UserError, OSError, MemoryError) as error:
        status, text = "failed", sentence_of(error)
    return TaskRow(task, status, text.replace("\n", " "), time.perf_counter() - began, spent[0])


def log_of(stage: Stage, task: str) -> Path:
    """Where what a task prints goes."""
    return stage.at("logs", stage.script, f"{task}.log")


def _perform(stage: Stage, task: str, place: Place, spent: list[float]) -> tuple[str, str]:
    path, told = log_of(stage, task), []
    with _held(path, place) as log:
        for command in stage.commands(task):
            kind, text = command.found(set_aside=True)
            if kind is Found.OTHER:
                return "failed", text
            if kind is not Found.DONE:
                if command.needs is not None and not command.needs.exists():
                    return "failed", f"{command.needs} does not exist; {Baseline.script}.sh or kstep batch baseline " \
                                     "makes it"
                start = log.tell()
                code, cpu_s = _run(command.words, log, place)
                spent[0] += cpu_s
                kind, text = command.found()
                # by a signal of its own name: before it heeded SIGTERM, or by SIGKILL
                ended = code < 0 and kind is not Found.DONE and RUNNING.has_ended(place.batch)
                if ended or code in (Stopped.code, Terminated.code):
                    return "stopped", STOPPED
                if code not in command.ends:
                    return "failed", f"{_last_error(path, start) or _end_of(code)} ({path})"
                if kind is not Found.DONE:
                    return "failed", f"{text or f'{command.makes[0]} was not made'} ({path})"
            if command.tells:
                told.append(text)
    return "done", told[0]


@contextlib.contextmanager
def _held(path: Path, place: Place) -> Iterator[BinaryIO]:
    """The log of a task, open to be added to and locked; UserError where another job keeps holding it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + PATIENCE_S
    with open(path, "ab") as log:
        while True:
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end or RUNNING.has_ended(place.batch):
                    raise UserError(f"another job is making it ({path}); wait for that, and give the same command "
                                    "again") from None
                time.sleep(LOOKS_APART_S)
                continue
            except OSError:
                pass  # a file system without locks: nothing guards there
            log.seek(0, os.SEEK_END)
            yield log
            return


def _run(words: list[str], log: BinaryIO, place: Place) -> tuple[int, float]:
    """Run a kstep command to its end: exit code and CPU seconds; that of SIGTERM where its batch has ended."""
    if not place.folder.is_dir():
        raise UserError(f"this worker does not see {place.folder}; workers need the file system of the batch")
    log.write(f"$ {shown(words)}\n".encode())
    log.flush()
    program = RUNNING.start(
        place.batch, args=[sys.executable, "-m", "kstep", *words], cwd=place.folder, env=_environment(),
        stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
        start_new_session=True)  # Ctrl-C goes to the batch alone, which passes it on
    if program is None:
        return Terminated.code, 0.0
    try:
        return RUNNING.wait(place.batch, program)
    finally:
        program.stdin.close()
        log.seek(0, os.SEEK_END)


def _environment() -> dict[str, str]:
    """One thread per true call, this very kstep, and a standard input that stands for whoever started it."""
    path = [str(Path(kstep.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1"), ENDS_WITH_STDIN: "1",
            "PYTHONPATH": os.pathsep.join(filter(None, path))}


def shown(words: list[str]) -> str:
    """A kstep command as a shell takes it."""
    import shlex

    return shlex.join([sys.executable, "-m", "kstep", *words])


def _last_error(path: Path, start: int) -> str:
    """The last sentence of a log, from a place on, that says what was wrong; '' where none does."""
    with open(path, "rb") as log:
        log.seek(start)
        lines = log.read().decode(errors="replace").replace("\r", "\n").splitlines()
    errors = [line.partition(mark)[2] for line in lines for mark in ("error: ", "E ") if line.startswith(mark)]
    return errors[-1] if errors else ""


def _end_of(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"ended by {signal.Signals(-code).name}" + (", as where memory runs out" if -code == signal.SIGKILL else "")
