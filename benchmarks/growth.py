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
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
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
from kstep.processes import CallTimes
from kstep.schemas import write_npz
from readme import FAINT, INK, OURS, PLAIN, text
from running import RESULTS, ROOT, machine, provenance
from sleeping import sleeping

RESULT, PAGE, PICTURE = RESULTS / "growth.json", ROOT / "docs" / "growth.md", ROOT / "docs" / "growth.svg"
ATOMS = 20  # of the molecule in the figure
CORES = (2, 64)  # that carry the network
WORKERS = (2, 10, 30, 100, 300, 1000, 3000, 10_000)
FEW_AND_MANY = (100, 10_000)
HALVES = 2  # batches in flight: one is carried while the other is asked
SLEEPERS, SLEEP_S = 64, 10.0  # long, since 64 workers in one process have one interpreter
# which each of the workers in one process would make of all of it, a hundred times a second
NO_PROFILE = {"distributed.worker.profile.enabled": False}


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


def rows(lines) -> str:
    """Of a table in Markdown, its head first."""
    head, *others = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    return "\n".join([head, "|---" * len(lines[0]) + "|", *others])


def where_it_stops(costs: Costs) -> str:
    """The table of how many workers are of use, and what they ask for."""
    lines = [("true call", "network's steps", *(f"network on {cores} cores" for cores in CORES),
              *(f"{what}, {n:,} workers" for n in FEW_AND_MANY for what in ("calls per task", "replicas")))]
    for truth in TRUTHS:
        stops = [f"{n:,}: the {part}" if n else f"not up to {WORKERS[-1]:,}"
                 for n, part in (stops_at(truth, costs, cores) for cores in CORES)]
        chunks = {n: calls_per_task(truth.call_s, n) for n in FEW_AND_MANY}
        lines.append((truth.name, truth.network_steps, *stops,
                      *(f"{each:,}" for n, chunk in chunks.items() for each in (chunk, HALVES * chunk * n))))
    return rows(lines)


BUSY = ("More processes than cores wanted to run while this was measured ({load:.0f} for {cores}), and what Dask does "
        "between two calls took as many times longer than its CPU seconds say: these runs are below what an idle "
        "machine shows, and hold the limits to their order of magnitude alone.")


def is_busy(record: dict) -> bool:
    """Whether others had most of the machine while it was measured."""
    return record["load"] > 2 * record["machine"]["cores"]


def page(record: dict) -> str:
    """docs/growth.md."""
    costs = Costs(**record["costs"])
    milli = {name: f"{float(f'{1e3 * value:.2g}'):g} ms"
             for name, value in record["costs"].items() if name.endswith("_s")}
    held = rows([("true calls", "workers", "a call", "calls per task", "calls/s expected", "calls/s measured"), *(
        (check["truth"], check["workers"], f"{check['call_s']:.3g} s", check["calls_per_task"],
         f"{check['expected']:.3g}", f"{check['calls_per_s']:.3g}") for check in record["checks"])])
    reached = rows([("true call", *(f"{n:,} workers" for n in WORKERS)), *(
        (truth.name, *(f"{float(f'{min(limits(truth, n, costs, CORES[-1]).values()):.2g}'):,g}" for n in WORKERS))
        for truth in TRUTHS)])
    return "\n\n".join(part if part.startswith(("|", "#", "!", "- ")) else fill(part) for part in (
        "# How a run grows",
        "With [`--scheduler`](../QM_WORKFLOW.md#on-many-machines) the true calls of one molecule are made by any "
        "number of workers. This page says how many are of use. It is written by `benchmarks/growth.py`, from what is "
        "measured there.",
        "![True calls per second against workers](growth.svg)",
        "A run makes as many true calls per second as its slowest part: its **workers**, Dask's **scheduler**, which "
        "handles so many tasks a second, the **client**, which asks and takes answers, the **network**, which makes "
        "the timesteps between two true calls, and the **file system**.",
        "## Where it stops",
        f"Workers beyond which more of them add nothing, for a molecule of {ATOMS} atoms, by the cores that carry the "
        "network; then what a hundred and ten thousand workers ask for. The steps are what the network makes per true "
        "call, a choice: where the network holds a run up, more cores or a GPU (`--device cuda`) carry further, or "
        "fewer steps do.",
        where_it_stops(costs),
        fill("- **Chunks** make themselves: a task holds calls for 0.1 s of work, or for as long as the scheduler "
             "needs to serve all workers twice, whichever is longer (`calls_per_task` of `kstep.forces.dask_pool`).",
             "  ")
        + "\n" + fill("- **Replicas** are yours: `--replicas` of at least twice the workers times the calls of a task, "
                      "since the network carries one half while the other is asked. With fewer, workers wait.", "  "),
        f"True calls per second, the network on {CORES[-1]} cores:", reached,
        "## What was measured",
        f"A task costs the scheduler {milli['scheduler_task_s']}, the client {milli['client_task_s']} and its worker "
        f"{milli['worker_task_s']} of CPU, and each geometry in it the client {1e6 * costs.client_call_s:.2g} us. The "
        f"network makes a timestep of a replica in {1e6 * costs.step_s:.2g} us on one core, answers are written at "
        f"{costs.file_bytes_per_s / 1e6:.0f} MB/s, and a call of GFN2-xTB of ethanol takes {milli['xtb_call_s']} of "
        f"CPU. One question by itself came back after {milli['latency_s']}, while {record['load']:.0f} processes "
        f"wanted the {record['machine']['cores']} cores of the machine: a time of the clock, unlike the others.",
        "Held against runs, with what a call took at the workers of that run:", held,
        *([BUSY.format(load=record["load"], cores=record["machine"]["cores"])] if is_busy(record) else []),
        "The workers whose calls sleep are threads of one process, which they share with scheduler and client: that is "
        "harder on Dask than processes of their own.")) + "\n"


def fill(paragraph: str, indent: str = "") -> str:
    """In lines of 120 characters."""
    return textwrap.fill(paragraph, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    """Measure, keep, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="measure nothing: the page and the figure of what is kept")
    if not parser.parse_args().draw:
        record = measure()
        write_json_compact(RESULT, {**record, "throughput": table(Costs(**record["costs"])),
                                    "machine": machine(), **provenance()})
    record = json.loads(RESULT.read_text())
    write_text_atomic(PICTURE, svg(record))
    write_text_atomic(PAGE, page(record))
    print(json.dumps({key: record[key] for key in ("costs", "checks", "load")}, indent=1))


if __name__ == "__main__":
    main()
