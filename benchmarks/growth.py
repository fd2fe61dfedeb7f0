"""How a run grows with the workers that its true calls are made on, and where it stops: docs/growth.md and its figure.

Measured here: what a task costs Dask's scheduler, the process that asks and the worker (CPU seconds, so that what else
the machine does counts little), what a true call of xTB takes, and how fast answers are written down; the network's
speed is that of benchmarks/results/inner_loop.json.  From these a run's throughput is the smallest of five limits
(`limits`).  It is held against runs of xTB on one and two workers, and against 64 workers whose calls sleep.  Keeps all
of it in benchmarks/results/growth.json.

    python benchmarks/growth.py            # two minutes; --draw only writes the page again
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from kstep.files import write_json_compact, write_text_atomic
from kstep.forces import PhysicsSpec, physics_spec
from kstep.forces.dask_pool import DaskPool, calls_per_task
from kstep.forces.tblite import QMConfig
from kstep.molecules.prepare import prepare_molecule
from kstep.schemas import write_npz
from readme import FAINT, INK, OURS, PLAIN, text
from running import RESULTS, ROOT, provenance
from sleeping import sleeping

RESULT, PAGE, PICTURE = RESULTS / "growth.json", ROOT / "docs" / "growth.md", ROOT / "docs" / "growth.svg"
ATOMS = 20  # of the molecule in the figure
CORES = (2, 64)  # that carry the network
WORKERS = (2, 10, 30, 100, 300, 1000, 3000, 10_000)
HALVES = 2  # batches in flight: one is carried while the other is asked
SLEEPERS, SLEEP_S = 64, 1.0


@dataclass(frozen=True)
class Truth:
    """A kind of true call, its seconds, and the timesteps that a run lets its network make for each."""

    name: str
    call_s: float
    network_steps: int
    colour: str


TRUTHS = (Truth("xTB, 2 ms", 0.002, 100, PLAIN), Truth("DFT, 1 s", 1.0, 1000, OURS),
          Truth("DFT, 1 min", 60.0, 1000, "#4d7c0f"))


@dataclass(frozen=True)
class Costs:
    """Measured: seconds of a task at the scheduler, the client and the worker; client_call_s of a geometry, whatever
    task it is in; step_s of a network's timestep of one replica on one core; bytes per second of the file system.
    """

    scheduler_task_s: float
    client_task_s: float
    client_call_s: float
    worker_task_s: float
    step_s: float
    file_bytes_per_s: float
    xtb_call_s: float
    latency_s: float


def bytes_per_call(n_atoms: int) -> int:
    """Of an answer in the journal and of the frame that is made of it: positions and forces twice, and some numbers."""
    return 2 * (2 * 3 * n_atoms * 8 + 64)


def limits(truth: Truth, n_workers: int, costs: Costs, cores: int | None, chunk: int | None = None) -> dict[str, float]:
    """Calls per second that each part of a run can make at most; cores None: without a network.

    Parts work at the same time, so that a run makes as many as its slowest part.
    """
    n = chunk or calls_per_task(truth.call_s, n_workers)
    found = {"workers": n_workers / (truth.call_s + costs.worker_task_s / n),
             "scheduler": n / costs.scheduler_task_s,
             "client": 1 / (costs.client_task_s / n + costs.client_call_s),
             "file system": costs.file_bytes_per_s / bytes_per_call(ATOMS)}
    if cores is not None:
        found["network"] = cores / (truth.network_steps * costs.step_s)
    return found


def stops_at(truth: Truth, costs: Costs, cores: int) -> tuple[int, str]:
    """Workers beyond which more of them add nothing, and what holds them up; 0: not up to 10,000."""
    for n_workers in range(2, WORKERS[-1] + 1):
        found = limits(truth, n_workers, costs, cores)
        part = min(found, key=found.get)
        if part != "workers":
            return n_workers, part
    return 0, ""


def table(costs: Costs) -> dict[str, dict]:
    """What the figure shows, by truth and workers: calls per second by cores of the network, chunk, replicas."""
    return {truth.name: {str(n): {
        "calls_per_s": {str(cores): min(limits(truth, n, costs, cores).values()) for cores in CORES},
        "held_by": {str(cores): min(found := limits(truth, n, costs, cores), key=found.get) for cores in CORES},
        "calls_per_task": (chunk := calls_per_task(truth.call_s, n)), "replicas": HALVES * chunk * n}
        for n in WORKERS} for truth in TRUTHS}


# measured --------------------------------------------------------------------------------------


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


def task_costs(folder: Path) -> dict[str, float]:
    """CPU seconds of a task at the scheduler, here and at the workers, from calls that cost nothing."""
    with cluster(2, folder) as (file, (scheduler, workers)), pool_of(sleeping(0.0, file, ATOMS), 2) as pool:
        single, bundled = {}, {}
        for found, call_s, n in ((single, 1.0, 512), (bundled, 0.1 / 64, 4096)):
            positions = np.zeros((n, ATOMS, 3))
            for warm in (True, False):
                pool._times = type(pool._times)()
                pool._times.add(call_s)  # which sets the size of a question
                before = [cpu_s([scheduler.pid]), time.process_time(), cpu_s([workers.pid])]
                pool.evaluate(positions[:64] if warm else positions)
                after = [cpu_s([scheduler.pid]), time.process_time(), cpu_s([workers.pid])]
            n_tasks = n / calls_per_task(call_s, 2)
            found |= {name: (b - a) / n_tasks for name, a, b in zip(("scheduler", "client", "worker"), before, after)}
            found["chunk"] = calls_per_task(call_s, 2)
        waits = []
        for _ in range(20):
            began = time.perf_counter()
            pool.evaluate(positions[:1])
            waits.append(time.perf_counter() - began)
    call_s = max(0.0, (bundled["client"] - single["client"]) / (bundled["chunk"] - 1))
    return {"scheduler_task_s": single["scheduler"], "client_task_s": single["client"] - call_s,
            "client_call_s": call_s, "worker_task_s": single["worker"], "latency_s": statistics.median(waits)}


def file_rate(folder: Path, n: int = 20_000) -> float:
    """Bytes per second of answers that are written as a run writes them, on the disk."""
    rng, spent = np.random.default_rng(0), []
    arrays = {name: rng.normal(size=(n, ATOMS, 3)) for name in ("positions", "forces")}
    for number in range(3):
        began = time.perf_counter()
        write_npz(folder / f"{number}.npz", arrays)
        spent.append(time.perf_counter() - began)
    return sum(array.nbytes for array in arrays.values()) / min(spent)


def rate(pool: DaskPool, positions: np.ndarray, seconds: float) -> tuple[float, float, int]:
    """Calls per second of two halves in flight, seconds of a call as its worker saw it, and calls in a task."""
    rows = np.array_split(np.arange(len(positions)), HALVES)
    pool.evaluate(positions)  # what a call takes is known then
    flights, calls, began = [pool.submit(positions[mine], mine) for mine in rows], 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for n, mine in enumerate(rows):
            pool.collect(flights[n])
            flights[n], calls = pool.submit(positions[mine], mine), calls + len(mine)
    for flight, mine in zip(flights, rows):
        pool.collect(flight)
        calls += len(mine)
    call_s = pool._times.median_s
    return calls / (time.perf_counter() - began), call_s, calls_per_task(call_s, pool.n_workers)


def checked(truth: str, n_workers: int, costs: Costs, measured: tuple[float, float, int]) -> dict:
    """A run beside what the limits say of it."""
    calls_per_s, call_s, chunk = measured
    expected = min(limits(Truth("", call_s, 0, ""), n_workers, costs, None, chunk).values())
    return {"truth": truth, "workers": n_workers, "call_s": call_s, "calls_per_task": chunk,
            "calls_per_s": calls_per_s, "expected": expected}


def checks(costs: Costs, folder: Path) -> list[dict]:
    """xTB on one and two workers; 64 that sleep, threads of this process."""
    from distributed import LocalCluster

    molecule, found = prepare_molecule("ethanol", "CCO").molecule, []
    for n_workers in (1, 2):
        positions = np.repeat(molecule.conformers[:1], 128 * n_workers, axis=0)
        with cluster(n_workers, folder) as (file, _), pool_of(
                physics_spec(molecule, QMConfig(scheduler=file)), n_workers) as pool:
            found.append(checked("xTB, ethanol", n_workers, costs, rate(pool, positions, 8.0)))
    with LocalCluster(n_workers=SLEEPERS, threads_per_worker=1, processes=False, dashboard_address=":0") as many, \
            pool_of(sleeping(SLEEP_S, many.scheduler_address, ATOMS), SLEEPERS) as pool:
        found.append(checked(f"sleep, {SLEEP_S:g} s", SLEEPERS, costs,
                             rate(pool, np.zeros((HALVES * 2 * SLEEPERS, ATOMS, 3)), 12.0)))
    return found


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
    with tempfile.TemporaryDirectory() as folder:
        costs = Costs(**task_costs(Path(folder)), step_s=1e-6 * min(inner.values()),
                      file_bytes_per_s=file_rate(Path(folder)), xtb_call_s=xtb_call_s())
        return {"costs": asdict(costs), "checks": checks(costs, Path(folder)), "load": os.getloadavg()[0]}


# shown -----------------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BELOW = 760, 470, 70, 66, 110, 50


def svg(record: dict) -> str:
    """Calls per second against workers, both logarithmic: a line for each truth, solid with the network on 64 cores,
    dashed on 2; rings are what was measured.
    """
    costs = Costs(**record["costs"])
    low, high = -2, 5

    def across(n: float) -> float:
        return LEFT + np.log10(n) / 4.0 * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        return TOP + (high - np.log10(value)) / (high - low) * (HEIGHT - TOP - BELOW)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
           'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">',
           "<title>True calls per second against the number of workers</title>",
           f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#ffffff"/>',
           text(16, 28, "True calls per second", size=17, bold=True),
           text(16, 48, "solid: the network on 64 cores; dashed: on 2; rings: measured", size=13)]
    for exponent in range(low, high + 1):
        y = up(10.0**exponent)
        out += [f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="{FAINT}"/>',
                text(LEFT - 8, y + 4, f"{10.0**exponent:,g}", size=13, anchor="end")]
    for exponent in range(5):
        out.append(text(across(10.0**exponent), HEIGHT - BELOW + 20, f"{10**exponent:,}", size=13, anchor="middle"))
    out.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "workers", size=13, anchor="middle"))
    numbers = np.unique(np.geomspace(1, WORKERS[-1], 120).astype(int))
    for truth in TRUTHS:
        for cores, dash in zip(CORES, (' stroke-dasharray="5 4"', "")):
            rates = [min(limits(truth, int(n), costs, cores).values()) for n in numbers]
            points = " ".join(f"{across(n):.1f},{up(r):.1f}" for n, r in zip(numbers, rates))
            out.append(f'<polyline points="{points}" fill="none" stroke="{truth.colour}" stroke-width="2"{dash}/>')
        out.append(text(WIDTH - RIGHT + 6, up(rates[-1]) + 4, truth.name, size=13, colour=truth.colour))
    out += [f'<circle cx="{across(check["workers"]):.1f}" cy="{up(check["calls_per_s"]):.1f}" r="5" fill="none" '
            f'stroke="{INK}" stroke-width="2"/>' for check in record["checks"]]
    return "\n".join([*out, "</svg>"]) + "\n"


def page(record: dict) -> str:
    """docs/growth.md."""
    costs = Costs(**record["costs"])
    milli = {name: f"{1e3 * value:.2g} ms" for name, value in record["costs"].items() if name.endswith("_s")}
    where = []
    for truth in TRUTHS:
        stops = []
        for cores in CORES:
            n, part = stops_at(truth, costs, cores)
            stops.append(f"{n:,}: the {part}" if n else "not up to 10,000")
        chunk = calls_per_task(truth.call_s, WORKERS[-1])
        own = calls_per_task(truth.call_s, 100)
        where.append(f"| {truth.name} | {truth.network_steps} | {stops[0]} | {stops[1]} | {own} | {HALVES * own * 100:,} "
                     f"| {chunk:,} | {HALVES * chunk * WORKERS[-1]:,} |")
    held = [f"| {check['truth']} | {check['workers']} | {1e3 * check['call_s']:.3g} ms | {check['calls_per_task']} | "
            f"{check['expected']:.3g} | {check['calls_per_s']:.3g} |" for check in record["checks"]]
    reached = [f"| {truth.name} | " + " | ".join(
        f"{record['throughput'][truth.name][str(n)]['calls_per_s'][str(CORES[1])]:,.3g}" for n in WORKERS) + " |"
        for truth in TRUTHS]
    return f"""# How a run grows

With [`--scheduler`](../QM_WORKFLOW.md#on-many-machines) the true calls of one molecule are made by any number of workers.
This page says how many are of use. It is written by `benchmarks/growth.py`, from what is measured there.

![True calls per second against workers](growth.svg)

A run makes as many true calls per second as its slowest part: its **workers** (calls of t seconds, W at a time), Dask's
**scheduler** (one process, so many tasks a second), the **client** that asks and takes answers, the **network** that makes
the timesteps between two true calls, and the **file system**.

## Where it stops

Workers beyond which more of them add nothing, for a molecule of {ATOMS} atoms, by the cores that carry the network; then
what 100 and 10,000 workers ask for. The number of steps is what the network makes per true call; where it is what
holds a run up, more cores or a GPU for it (`--device cuda`) help, or fewer steps.

| true call | network's steps | network on {CORES[0]} cores | on {CORES[1]} cores | calls per task, 100 | replicas, 100 | calls per task, 10,000 | replicas, 10,000 |
|---|---|---|---|---|---|---|---|
{chr(10).join(where)}

- **Chunks** make themselves: a task holds calls for 0.1 s of work, or as many as the scheduler needs to keep up with all
  workers, whichever is more (`kstep.forces.dask_pool.calls_per_task`).
- **Replicas** are yours: `--replicas` of at least twice the workers times the calls of a task, since one half is carried
  by the network while the other is asked. With fewer, workers wait.

True calls per second, the network on {CORES[1]} cores:

| true call | {" | ".join(f"{n:,} workers" for n in WORKERS)} |
|---|{"---|" * len(WORKERS)}
{chr(10).join(reached)}

## What was measured

A task costs the scheduler {milli["scheduler_task_s"]}, the client {milli["client_task_s"]} and its worker {milli["worker_task_s"]} of CPU, and a geometry in it {1e6 * costs.client_call_s:.2g} us at
the client. The network makes a timestep in {1e6 * costs.step_s:.2g} us on one core ([the inner loop](RESULTS.md)), answers are
written at {costs.file_bytes_per_s / 1e6:.0f} MB/s, a call of GFN2-xTB of ethanol took {milli["xtb_call_s"]} of CPU, and one question by itself came
back after {milli["latency_s"]} ({record["load"]:.0f} processes wanted the {os.cpu_count()} cores of the machine meanwhile).

Held against runs, with what a call took at the workers of that run:

| true calls | workers | a call | calls per task | calls/s expected | calls/s measured |
|---|---|---|---|---|---|
{chr(10).join(held)}

The 64 workers are threads of one process whose calls sleep: scheduler, client and workers then share one Python
interpreter, which is harder on Dask than processes of their own.
"""


def main() -> None:
    """Measure, keep, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="measure nothing: the page and the figure of what is kept")
    if not parser.parse_args().draw:
        record = measure()
        write_json_compact(RESULT, {**record, "throughput": table(Costs(**record["costs"])), **provenance()})
    record = json.loads(RESULT.read_text())
    write_text_atomic(PICTURE, svg(record))
    write_text_atomic(PAGE, page(record))
    print(json.dumps({key: record[key] for key in ("costs", "checks", "load")}, indent=1))


if __name__ == "__main__":
    main()
