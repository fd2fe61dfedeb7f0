"""How a run grows with the workers that its true calls are made on, and where it stops: docs/growth.md and its figure.

Measured here: what a task costs Dask's scheduler, the process that asks and the worker (CPU seconds, so that what else
the machine does counts little), what a true call of xTB takes, and how fast answers are written down; the network's
speed is that of benchmarks/results/inner_loop.json.  From these a run's throughput is the smallest of five limits
(growth_limits.py).  It is held against runs of xTB on one and two workers, and against 64 workers whose calls sleep.
Keeps all of it in benchmarks/results/growth.json; growth_page.py shows it.

    python benchmarks/growth.py            # two minutes; --draw only writes the page again
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

import growth_page
from growth_limits import ATOMS, HALVES, Costs, Truth, limits, throughput
from kstep.files import write_json_compact, write_text_atomic
from kstep.forces import PhysicsSpec, physics_spec
from kstep.forces.dask_pool import DaskPool, calls_per_task
from kstep.forces.tblite import QMConfig
from kstep.molecules.prepare import prepare_molecule
from kstep.npz import write_npz
from kstep.processes import CallTimes
from running import RESULTS, ROOT, machine, provenance
from sleeping import sleeping

RESULT, PAGE, PICTURE = RESULTS / "growth.json", ROOT / "docs" / "growth.md", ROOT / "docs" / "growth.svg"
SLEEPERS, SLEEP_S = 64, 10.0  # long, since 64 workers in one process have one interpreter
# which each of the workers in one process would make of all of it, a hundred times a second
NO_PROFILE = {"distributed.worker.profile.enabled": False}


@contextlib.contextmanager
def cluster(n_workers: int, folder: Path) -> Iterator[tuple[str, list[subprocess.Popen]]]:
    """A scheduler and its workers, processes of their own; the scheduler file."""
    file = folder / f"scheduler_{n_workers}.json"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'benchmarks'}"}
    dask = [str(Path(sys.executable).with_name("dask"))]
    quiet = dict(env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
    started = [subprocess.Popen([*dask, "scheduler", "--scheduler-file", str(file), "--host", "127.0.0.1", "--port",
                                 "0", "--dashboard-address", ":0"], **quiet)]
    try:
        while not file.exists():
            time.sleep(0.1)
        started.append(subprocess.Popen([*dask, "worker", "--scheduler-file", str(file), "--nthreads", "1",
                                         "--nworkers", str(n_workers), "--no-dashboard"], **quiet))
        yield str(file), started
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait()


@contextlib.contextmanager
def pool_of(spec: PhysicsSpec, n_workers: int) -> Iterator[DaskPool]:
    """A pool, once it has all of its workers."""
    with DaskPool(spec) as pool:
        while pool.n_workers < n_workers:
            pool._look()
            time.sleep(0.05)
        yield pool


def cpu_s(pids) -> float:
    """CPU seconds of processes and of those that they started."""
    import psutil

    processes = [each for pid in pids for each in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def task_costs(file: str, scheduler: subprocess.Popen, workers: subprocess.Popen) -> dict[str, float]:
    """CPU seconds of a task at the scheduler, here and at two workers, from calls that cost nothing; the least of some
    measurements.
    """
    def spent() -> np.ndarray:
        return np.array([cpu_s([scheduler.pid]), time.process_time(), cpu_s([workers.pid])])

    with pool_of(sleeping(0.0, file, ATOMS), 2) as pool:
        least = {}
        for call_s, n in ((1.0, 200), (0.1 / 64, 4096)):
            pool._times, positions = Known(call_s), np.zeros((n, ATOMS, 3))
            pool.evaluate(positions[:64])
            found = []
            for _ in range(3):
                before = spent()
                pool.evaluate(positions)
                found.append((spent() - before) * calls_per_task(call_s, 2) / n)
            least[calls_per_task(call_s, 2)] = np.min(found, axis=0)
        waits = []
        for _ in range(10):
            began = time.perf_counter()
            pool.evaluate(positions[:1])
            waits.append(time.perf_counter() - began)
    (_, single), (chunk, bundled) = least.items()
    call_s = max(0.0, (bundled[1] - single[1]) / (chunk - 1))
    return {"scheduler_task_s": single[0], "client_task_s": single[1] - call_s, "client_call_s": call_s,
            "worker_task_s": single[2], "latency_s": min(waits)}


def file_rate(folder: Path, n: int = 20_000) -> float:
    """Bytes per second of answers that are written as a run writes them, on the disk."""
    rng, spent = np.random.default_rng(0), []
    arrays = {name: rng.normal(size=(n, ATOMS, 3)) for name in ("positions", "forces")}
    for number in range(3):
        began = time.perf_counter()
        write_npz(folder / f"{number}.npz", arrays)
        spent.append(time.perf_counter() - began)
    return sum(array.nbytes for array in arrays.values()) / min(spent)


class Known(CallTimes):
    """Of calls whose time is known beforehand, which sets how many are in a task; what they take is kept."""

    def __init__(self, call_s: float):
        super().__init__()
        super().add(call_s)
        self.seen: list[float] = []

    def add(self, seconds: float) -> None:
        """Keep it apart."""
        self.seen.append(seconds)


def rate(pool: DaskPool, positions: np.ndarray, call_s: float, seconds: float) -> tuple[float, float, int]:
    """Calls per second of two halves in flight, seconds of a call as its worker saw it, mean, and calls in a task."""
    pool._times, rows = Known(call_s), np.array_split(np.arange(len(positions)), HALVES)
    flights, calls, began = [pool.submit(positions[mine], mine) for mine in rows], 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for n, mine in enumerate(rows):
            pool.collect(flights[n])
            flights[n], calls = pool.submit(positions[mine], mine), calls + len(mine)
    for flight, mine in zip(flights, rows):
        pool.collect(flight)
        calls += len(mine)
    return (calls / (time.perf_counter() - began), statistics.fmean(pool._times.seen),
            calls_per_task(call_s, pool.n_workers))


def checked(truth: str, n_workers: int, costs: Costs, measured: tuple[float, float, int]) -> dict:
    """A run beside what the limits say of it."""
    calls_per_s, call_s, chunk = measured
    expected = min(limits(Truth("", call_s, 0, ""), n_workers, costs, None, chunk).values())
    found = {"truth": truth, "workers": n_workers, "call_s": call_s, "calls_per_task": chunk,
             "calls_per_s": calls_per_s, "expected": expected}
    print(found, flush=True)
    return found


def of_xtb(file: str, n_workers: int, costs: Costs) -> dict:
    """A run of xTB, four tasks for each worker in flight."""
    molecule = prepare_molecule("ethanol", "CCO").molecule
    n = 2 * HALVES * n_workers * calls_per_task(costs.xtb_call_s, n_workers)
    with pool_of(physics_spec(molecule, QMConfig(scheduler=file)), n_workers) as pool:
        return checked("xTB, ethanol", n_workers, costs, rate(
            pool, np.repeat(molecule.conformers[:1], n, axis=0), costs.xtb_call_s, 10.0))


def of_sleepers(costs: Costs) -> dict:
    """64 workers that sleep, threads of this process."""
    import dask
    from distributed import LocalCluster

    with dask.config.set(NO_PROFILE), LocalCluster(n_workers=SLEEPERS, threads_per_worker=1, processes=False,
                                                   dashboard_address=":0", silence_logs=logging.CRITICAL) as many, \
            pool_of(sleeping(SLEEP_S, many.scheduler_address, ATOMS), SLEEPERS) as pool:
        return checked(f"sleep, {SLEEP_S:g} s", SLEEPERS, costs, rate(
            pool, np.zeros((HALVES * SLEEPERS, ATOMS, 3)), SLEEP_S, 3 * SLEEP_S))


def xtb_call_s() -> float:
    """Seconds of CPU of a true call of ethanol here, median."""
    molecule = prepare_molecule("ethanol", "CCO").molecule
    physics, spent = physics_spec(molecule, QMConfig()).build(), []
    for _ in range(30):
        began = time.process_time()
        physics.energy_and_forces(molecule.conformers[0])
        spent.append(time.process_time() - began)
    return statistics.median(spent)


def measure() -> dict:
    """All of it; {"costs", "checks", "load"}."""
    inner = json.loads((RESULTS / "inner_loop.json").read_text())["atoms"][str(ATOMS)]["step_us"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with cluster(2, folder) as (file, processes):
            costs = Costs(**task_costs(file, *processes), step_s=1e-6 * min(inner.values()),
                          file_bytes_per_s=file_rate(folder), xtb_call_s=xtb_call_s())
            print(costs, flush=True)
            two = of_xtb(file, 2, costs)
        with cluster(1, folder) as (file, _):
            one = of_xtb(file, 1, costs)
    return {"costs": asdict(costs), "checks": [one, two, of_sleepers(costs)], "load": os.getloadavg()[0]}


def main() -> None:
    """Measure, keep, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="measure nothing: the page and the figure of what is kept")
    if not parser.parse_args().draw:
        record = measure()
        write_json_compact(RESULT, {**record, "throughput": throughput(Costs(**record["costs"])),
                                    "machine": machine(), **provenance()})
    record = json.loads(RESULT.read_text())
    write_text_atomic(PICTURE, growth_page.svg(record))
    write_text_atomic(PAGE, growth_page.page(record))
    print(json.dumps({key: record[key] for key in ("costs", "checks", "load")}, indent=1))


if __name__ == "__main__":
    main()
