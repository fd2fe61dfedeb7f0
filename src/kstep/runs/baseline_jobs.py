"""Replicas of plain MD: one in this process, or many in spawned ones with one thread each."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np

from kstep.config import HOW_IT_WORKS, BaselineConfig
from kstep.errors import PhysicsError, UserError, sentence_of
from kstep.forces import PhysicsSpec
from kstep.interruption import ExitFile, Stopped, restarts_requested, signals_heeded
from kstep.molecules.molecule import Molecule
from kstep.processes import MOST_LOST, SLICE_S, START_S, Worker, WorkerLost, end_all, exit_with_parent
from kstep.runs.baseline import run_baseline
from kstep.runs.baseline_engines import engine_of
from kstep.runs.baseline_plan import plan_baseline
from kstep.runs.coverage import SpeciesWatch
from kstep.runs.recorder import TrajectoryWriter

BEATS_APART_S = 1.0  # between two signs of life of a worker
PATIENCE_S = 2.0  # for workers to write down where they are

log = logging.getLogger("kstep")


@dataclass(frozen=True)
class ReplicaJob:
    """One replica of one molecule, from its start to its own trajectory file.

    platform: OpenMM's, which then integrates by itself; None for the project's loop.  start (N,3) nm; None: a conformer
    by the replica's number.  place: its number among those that run at once, for the workers of a scheduler.
    """

    molecule: Molecule
    spec: PhysicsSpec
    config: BaselineConfig
    replica: int
    seed: int
    out: Path
    resume: bool
    platform: str | None = None
    store_forces: bool = True
    start: np.ndarray | None = None
    place: int = 0


@dataclass(frozen=True)
class ReplicaResult:
    """true_calls, seconds of wall and CPU time; species_changes: of a SpeciesWatch; `error` is '' or one sentence."""

    job: ReplicaJob
    true_calls: int
    wall_s: float
    cpu_s: float
    error: str = ""
    species_changes: tuple[dict, ...] = ()


def run_replica(job: ReplicaJob, progress: Callable[[int], None] = lambda n: None,
                say: Callable[[str], None] = log.warning,
                beat: Callable[[Any, int], None] = lambda pool, step: None) -> ReplicaResult:
    """Run one replica in this process.

    `progress(n)` is told of every n finished timesteps, `say` what is a warning, `beat` the pool and the timestep after
    every true call.
    """
    molecule = job.molecule
    writer = TrajectoryWriter(
        job.out, masses=molecule.masses, masses_sampler=molecule.masses, atom_types=molecule.numbers,
        bonds=molecule.bonds, store_forces=job.store_forces,
        fingerprint={"config": job.config.model_dump(exclude={"replicas", *HOW_IT_WORKS}), "seed": job.seed,
                     "replica": job.replica, "smiles": molecule.smiles, "physics": job.spec.fingerprint,
                     "platform": job.platform},
        restraints=job.spec.restraints)
    try:
        done = writer.finished() if job.resume else None
        if done is not None:
            progress(sum(stretch.n_steps for stretch in plan_baseline(job.config)))
            return ReplicaResult(job, done["true_calls"], done["wall_s"], done["cpu_s"],
                                 species_changes=tuple(done.get("species_changes", ())))
        watch = SpeciesWatch(molecule, say=say)
        with engine_of(job.spec, job.config, job.platform, writer.parts, beat, job.place) as engine:
            start = molecule.conformers[job.replica % len(molecule.conformers)] if job.start is None else job.start
            spent = run_baseline(engine, writer, start, job.config, replica=job.replica, seed=job.seed,
                                 resume=job.resume, progress=progress, watch=watch)
            writer.finish({"molecule": molecule.name, "species_changes": watch.changes, **spent})
            engine.end()
    finally:
        writer.release()
    return ReplicaResult(job, **spent, species_changes=tuple(watch.changes))


class _Reporter:
    """How a worker process speaks: a sign of life once a second, and what is done and said at once."""

    def __init__(self, connection):
        self.connection, self._last = connection, 0.0

    def beat(self, pool, step: int) -> None:
        """Tell which timestep it is at, and how long the next one may take."""
        now = time.monotonic()
        if now - self._last > BEATS_APART_S:
            self._last = now
            self.connection.send(("alive", (step, pool.call_limit_s)))

    def done(self, n: int) -> None:
        self.connection.send(("done", n))

    def say(self, text: str) -> None:
        self.connection.send(("say", text))


def _serve(connection) -> None:
    """Of a worker process: run the jobs that come; an unphysical run becomes its result's error, and stops no other."""
    exit_with_parent()
    # Ctrl-C goes to all of a terminal: heeded here, the parent's SIGTERM would cut short what it made this one write
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    report = _Reporter(connection)
    try:
        with signals_heeded():
            while (job := connection.recv()) is not None:
                try:
                    result = run_replica(job, report.done, report.say, report.beat)
                except (PhysicsError, UserError, OSError, MemoryError) as error:
                    result = ReplicaResult(job, 0, 0.0, 0.0,
                                           f"{job.molecule.name}, replica {job.replica}: {sentence_of(error)}")
                except Exception:
                    connection.send(("error", RuntimeError(traceback.format_exc())))
                    return
                connection.send(("result", result))
    except (Stopped, EOFError, OSError):  # asked to end, and what was answered is on disk; or the parent is gone
        return


@dataclass
class _Post:
    """A worker process, and the job that it is at: seconds of silence, and how many it may be silent for.

    step: the farthest timestep that any worker of this job has told of, -1: none; lost: workers since.
    """

    worker: Worker
    job: ReplicaJob | None = None
    silent_s: float = 0.0
    limit_s: float = START_S
    step: int = -1
    lost: int = 0

    def begin(self, job: ReplicaJob) -> None:
        self.job, self.silent_s, self.limit_s = job, 0.0, START_S if job.spec.scheduler is None else math.inf
        self.worker.send(job)

    def replace_worker(self, why: str) -> ReplicaResult | None:
        """Another worker goes on from the restart files; the third one lost at one place is the job's failure."""
        job, self.lost = self.job, self.lost + 1
        where = f"{job.molecule.name}, replica {job.replica}: a worker {why}"
        self.worker.kill()
        self.worker = Worker(_serve, (), job.spec.threads)
        if self.lost == MOST_LOST:
            return ReplicaResult(job, 0, 0.0, 0.0, f"{where}, the third one at the same place")
        log.warning("%s; another one goes on", where)
        # what lay there before the first sign of life is no part of this run
        self.begin(replace(job, resume=job.resume or self.step >= 0))
        return None


def run_jobs(jobs: list[ReplicaJob], n_workers: int, tick: Callable[[int], None],
             folders: Iterable[Path] = ()) -> Iterator[ReplicaResult]:
    """Run jobs on spawned workers and yield results as they finish; `tick(n)` counts timesteps.

    A worker that dies or hangs is replaced, and its job goes on.  Ended from outside, or by a file EXIT in one of
    `folders`, all of them write down where they are.
    """
    waiting, exit_file, requested = deque(jobs), ExitFile(folders), restarts_requested()
    posts = [_Post(Worker(_serve, (), jobs[0].spec.threads)) for _ in range(min(n_workers, len(jobs)))]
    try:
        while waiting or any(post.job for post in posts):
            for post in posts:
                if post.job is None and waiting:
                    post.step, post.lost = -1, 0
                    post.begin(waiting.popleft())
            exit_file.check()
            if restarts_requested() != requested:
                requested = restarts_requested()
                for post in posts:
                    os.kill(post.worker.process.pid, signal.SIGUSR1)
                log.info("restart files written, as SIGUSR1 asks")
            for post, message in _hear([post for post in posts if post.job is not None]):
                result = _heed(post, message, tick)
                if result is not None:
                    post.job = None
                    yield result
        end_all([post.worker for post in posts], None)
    except BaseException:
        for post in posts:
            with suppress(ProcessLookupError):
                os.kill(post.worker.process.pid, signal.SIGTERM)
        end_all([post.worker for post in posts], None, patience_s=PATIENCE_S)
        raise


def _hear(posts: list[_Post]) -> Iterator[tuple[_Post, tuple[str, Any]]]:
    """What workers say within half a second; of one that is lost ("lost", why)."""
    began = time.monotonic()
    heard = wait([post.worker.pipe for post in posts], timeout=SLICE_S)
    passed = min(time.monotonic() - began, 2 * SLICE_S)  # while this process is stopped, none passes
    for post in posts:
        post.silent_s = 0.0 if post.worker.pipe in heard else post.silent_s + passed
        if post.worker.pipe in heard or post.silent_s > post.limit_s + BEATS_APART_S:
            try:
                yield post, post.worker.receive(0.0)
            except WorkerLost as why:
                yield post, ("lost", str(why) if post.worker.pipe in heard else f"was silent for {post.silent_s:.0f} s")


def _heed(post: _Post, message: tuple[str, Any], tick: Callable[[int], None]) -> ReplicaResult | None:
    """Act on what a worker said; the result of its job, once there is one."""
    kind, said = message
    if kind == "done":
        tick(said)
    elif kind == "say":  # a warning, which workers have no log for
        log.warning("%s", said)
    elif kind == "alive":
        step, limit_s = said
        if post.job.spec.scheduler is None:  # else it waits for others, and knows itself for how long
            post.limit_s = post.job.spec.call_limit_s or limit_s
        if step > post.step:
            post.step, post.lost = step, 0
    elif kind == "result":
        return said
    elif kind == "error":
        raise said
    else:
        return post.replace_worker(said)
    return None
