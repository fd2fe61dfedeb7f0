"""Replicas of plain MD: one in this process, or many in spawned ones with one thread each."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kstep.config import BaselineConfig
from kstep.errors import PhysicsError, UserError
from kstep.forces import PhysicsSpec
from kstep.molecules.molecule import Molecule
from kstep.processes import exit_with_parent
from kstep.runs.baseline import run_baseline
from kstep.runs.baseline_engines import engine_of
from kstep.runs.baseline_plan import plan_baseline
from kstep.runs.coverage import SpeciesWatch
from kstep.runs.recorder import TrajectoryWriter

log = logging.getLogger("kstep")

_progress_queue = None


@dataclass(frozen=True)
class ReplicaJob:
    """One replica of one molecule, from its start to its own trajectory file.

    platform: OpenMM's, which then integrates by itself; None for the project's loop.  start (N,3) nm; None: a conformer
    by the replica's number.
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
                say: Callable[[str], None] = log.warning) -> ReplicaResult:
    """Run one replica in this process; `progress(n)` is told of every n finished timesteps, `say` what is a warning."""
    molecule = job.molecule
    writer = TrajectoryWriter(
        job.out, masses=molecule.masses, masses_sampler=molecule.masses, atom_types=molecule.numbers,
        bonds=molecule.bonds, store_forces=job.store_forces,
        fingerprint={"config": job.config.model_dump(exclude={"replicas"}), "seed": job.seed, "replica": job.replica,
                     "smiles": molecule.smiles, "physics": job.spec.fingerprint, "platform": job.platform},
        restraints=job.spec.restraints)
    try:
        done = writer.finished() if job.resume else None
        if done is not None:
            progress(sum(stretch.n_steps for stretch in plan_baseline(job.config)))
            return ReplicaResult(job, done["true_calls"], done["wall_s"], done["cpu_s"],
                                 species_changes=tuple(done.get("species_changes", ())))
        watch = SpeciesWatch(molecule, say=say)
        with engine_of(job.spec, job.config, job.platform) as engine:
            start = molecule.conformers[job.replica % len(molecule.conformers)] if job.start is None else job.start
            spent = run_baseline(engine, writer, start, job.config, replica=job.replica, seed=job.seed,
                                 resume=job.resume, progress=progress, watch=watch)
        writer.finish({"molecule": molecule.name, "species_changes": watch.changes, **spent})
    finally:
        writer.release()
    return ReplicaResult(job, **spent, species_changes=tuple(watch.changes))


def _attempt(job: ReplicaJob) -> ReplicaResult:
    """Of a worker process: an unphysical run becomes the result's error, and stops no other."""
    try:
        return run_replica(job, _progress_queue.put, _progress_queue.put)
    except (PhysicsError, UserError) as error:
        return ReplicaResult(job, 0, 0.0, 0.0, f"{job.molecule.name}, replica {job.replica}: {error}")


def _remember(queue) -> None:
    global _progress_queue
    exit_with_parent()
    _progress_queue = queue


def run_jobs(jobs: list[ReplicaJob], n_workers: int, tick: Callable[[int], None]) -> Iterator[ReplicaResult]:
    """Run jobs on spawned workers and yield results as they finish; `tick(n)` counts timesteps."""

    def listen():
        while not queue.empty():
            said = queue.get()
            if isinstance(said, str):  # a warning, which workers have no log for
                log.warning("%s", said)
            else:
                tick(said)

    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with ProcessPoolExecutor(n_workers, mp_context=context, initializer=_remember, initargs=(queue,)) as executor:
        waiting = {executor.submit(_attempt, job) for job in jobs}
        try:
            while waiting:
                listen()
                finished = {f for f in waiting if f.done()}
                for future in finished:
                    yield future.result()
                waiting -= finished
                time.sleep(0.1)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            for process in list((executor._processes or {}).values()):
                process.terminate()
            raise
    listen()
