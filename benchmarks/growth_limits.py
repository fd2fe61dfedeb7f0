"""What a run with many workers can make at most: the smallest of five limits (docs/growth.md)."""

from __future__ import annotations

from dataclasses import dataclass

from kstep.forces.dask_pool import calls_per_task
from readme import OURS, PLAIN

ATOMS = 20  # of the molecule in the figure
CORES = (2, 64)  # that carry the network
WORKERS = (2, 10, 30, 100, 300, 1000, 3000, 10_000)
HALVES = 2  # batches in flight: one is carried while the other is asked


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


def throughput(costs: Costs) -> dict[str, dict]:
    """What the figure shows, by truth and workers: calls per second by cores of the network, chunk, replicas."""
    return {truth.name: {str(n): {
        "calls_per_s": {str(cores): min(limits(truth, n, costs, cores).values()) for cores in CORES},
        "held_by": {str(cores): min(found := limits(truth, n, costs, cores), key=found.get) for cores in CORES},
        "calls_per_task": (chunk := calls_per_task(truth.call_s, n)), "replicas": HALVES * chunk * n}
        for n in WORKERS} for truth in TRUTHS}
