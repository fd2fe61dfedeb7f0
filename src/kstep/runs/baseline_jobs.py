"""QM baselines: one spawned process per replica, one thread each."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kstep.config import ChargedConfig
from kstep.errors import PhysicsError, UserError
from kstep.forces import PhysicsSpec
from kstep.forces.pool import EvaluationPool
from kstep.molecules.molecule import Molecule
from kstep.processes import exit_with_parent
from kstep.runs.baseline import run_baseline
from kstep.runs.baseline_engines import LoopEngine
from kstep.runs.baseline_plan import plan_baseline
from kstep.runs.recorder import TrajectoryWriter

_progress_queue = None


@dataclass(frozen=True)
class ReplicaJob:
    """One replica of one molecule, from a conformer to its own trajectory file."""

    molecule: Molecule
    spec: PhysicsSpec
    config: ChargedConfig
    replica: int
    seed: int
    out: Path
    resume: bool


@dataclass(frozen=True)
class ReplicaResult:
    """true_calls, seconds of wall and CPU time; `error` is '' or one sentence."""

    job: ReplicaJob
    true_calls: int
    wall_s: float
    cpu_s: float
    error: str = ""


def run_replica(job: ReplicaJob) -> ReplicaResult:
    """Run one replica in this process; an unphysical run becomes the result's error."""
    wall, cpu = time.perf_counter(), time.process_time()
    molecule = job.molecule
    writer = TrajectoryWriter(
        job.out, masses=molecule.masses, masses_sampler=molecule.masses, atom_types=molecule.numbers,
        bonds=molecule.bonds,
        fingerprint={"config": job.config.model_dump(exclude={"replicas"}), "seed": job.seed, "replica": job.replica,
                     "smiles": molecule.smiles, "settings": job.spec.settings})
    report = _progress_queue.put if _progress_queue is not None else (lambda n: None)
    calls = 0
    try:
        done = writer.finished() if job.resume else None
        if done is not None:
            report(sum(stretch.n_steps for stretch in plan_baseline(job.config)))
            return ReplicaResult(job, done["true_calls"], done["wall_s"], done["cpu_s"])
        with EvaluationPool(job.spec, 1) as pool:
            engine = LoopEngine(pool, molecule.masses, job.config.dt_fs, job.config.friction_per_ps)
            start = molecule.conformers[job.replica % len(molecule.conformers)]
            calls = run_baseline(engine, writer, start, job.config, replica=job.replica, seed=job.seed,
                                 resume=job.resume, progress=report)
        wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
        writer.finish({"molecule": molecule.name, "true_calls": calls, "wall_s": wall_s, "cpu_s": cpu_s})
    except (PhysicsError, UserError) as error:
        return ReplicaResult(job, calls, time.perf_counter() - wall, time.process_time() - cpu,
                             f"{molecule.name}, replica {job.replica}: {error}")
    finally:
        writer.release()
    return ReplicaResult(job, calls, wall_s, cpu_s)


def _remember(queue) -> None:
    global _progress_queue
    exit_with_parent()
    _progress_queue = queue


def run_jobs(jobs: list[ReplicaJob], n_workers: int, tick: Callable[[int], None]) -> Iterator[ReplicaResult]:
    """Run jobs on spawned workers and yield results as they finish; `tick(n)` counts timesteps."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with ProcessPoolExecutor(n_workers, mp_context=context, initializer=_remember, initargs=(queue,)) as executor:
        waiting = {executor.submit(run_replica, job) for job in jobs}
        try:
            while waiting:
                while not queue.empty():
                    tick(queue.get())
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
    while not queue.empty():
        tick(queue.get())
