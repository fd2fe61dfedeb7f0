"""The network's own dynamics of R replicas, which costs no true call: what carries them, and frame after frame.

On CPU the inner loop of a small network is bound by one core, so replicas are dealt out to spawned
processes with one thread each; on a GPU one process carries the whole batch.
"""

from __future__ import annotations

import functools
import itertools
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from kstep.errors import PhysicsError, UserError
from kstep.processes import MOST_LOST, START_S, CallTimes, Worker, WorkerLost, end_all, exit_with_parent, loading
from kstep.schemes.maxwell import draw_velocities
from kstep.schemes.velocity_verlet import velocity_verlet
from kstep.units import PS_PER_FS

log = logging.getLogger("kstep")


class Carrier:
    """Velocity Verlet on a network's conservative force, in this process."""

    def __init__(self, network):
        if not hasattr(network, "forces"):
            raise ValueError("a sampler needs a conservative force: the jump map is neither reversible nor "
                             "volume-preserving, so the Metropolis test would not be exact")
        self.network = network

    cpu_s, true_calls = 0.0, 0  # its work is this process's, and on the count of the network here

    def __call__(self, positions, velocities, masses, dt_ps: float, n_steps: int, scale=None):
        """Positions and velocities (R,N,3) after n_steps of dt_ps with masses (N,) Da.

        scale (R,p): of the forces of a network of p parts (`schemes.network_ladder`); None: as they are.
        """
        network = self.network
        forces = network.forces if scale is None else functools.partial(network.forces, scale=scale)
        inverse = np.broadcast_to(1.0 / np.asarray(masses)[None, :, None], (1, len(masses), 3))  # as a batch of one
        with np.errstate(over="ignore", invalid="ignore"):  # a diverged proposal is rejected by its energy
            x, v = velocity_verlet(forces, network.native(positions), network.native(velocities),
                                   network.native(inverse), dt_ps, n_steps)
            return network.numpy(x), network.numpy(v)

    def change_network(self, network, arguments: dict) -> None:
        """From the next call on, carry with this network."""
        self.network = network

    def close(self) -> None:
        """Nothing to stop."""


def _serve(connection) -> None:
    """Of a worker process: (load, arguments) is its network from now on, anything else is carried by it."""
    exit_with_parent()
    carrier: Any = None

    def spent() -> np.ndarray:
        return np.array([time.process_time(), getattr(carrier and carrier.network, "true_calls", 0)])

    while True:
        try:
            task, *payload = connection.recv()
        except (EOFError, OSError):
            return
        if task == "stop":
            return
        try:
            if task == "network":
                load_network, arguments = payload
                with loading():
                    carrier = Carrier(load_network(**arguments))
                connection.send(("there", None, spent()))
            else:
                connection.send(("carried", carrier(*payload), spent()))
        except Exception as error:  # reported to the parent, which raises it
            known = isinstance(error, UserError | PhysicsError)
            connection.send(("error", error if known else RuntimeError(traceback.format_exc()), spent()))


class ShardedCarrier:
    """The same, replicas dealt out to `n_workers` spawned processes.

    `load_network(**arguments)` builds the network in each of them, once; both must be picklable.  A process that dies
    or hangs is replaced, and carries the same again.
    """

    def __init__(self, load_network, arguments: dict, n_workers: int):
        self.n_workers = n_workers
        # CPU seconds, and calls of a potential in the network's place; and of processes that others replaced
        self._spent, self._of_earlier = np.zeros((n_workers, 2)), np.zeros((n_workers, 2))
        self._workers: list[Worker | None] = [None] * n_workers
        self._load_network, self._arguments, self._has_network = load_network, arguments, [False] * n_workers
        self._times = CallTimes()

    def change_network(self, network, arguments: dict) -> None:
        """From the next call on, carry with this network, which `load_network(**arguments)` builds."""
        self._arguments, self._has_network = arguments, [False] * self.n_workers

    def __call__(self, positions, velocities, masses, dt_ps: float, n_steps: int, scale=None):
        """As `Carrier`; shards are contiguous and their sizes fixed, so results repeat exactly."""
        shards = [s for s in np.array_split(np.arange(len(positions)), self.n_workers) if len(s)]
        tasks = [("carry", positions[s], velocities[s], masses, dt_ps, n_steps, None if scale is None else scale[s])
                 for s in shards]
        self._send_network(len(shards))
        began = time.perf_counter()
        for worker, task in enumerate(tasks):
            self._workers[worker].send(task)
        parts = [self._carried(worker, task) for worker, task in enumerate(tasks)]
        self._times.add((time.perf_counter() - began) / n_steps)
        return tuple(np.concatenate(arrays) for arrays in zip(*parts))

    def _send_network(self, n_workers: int) -> None:
        """To those of the first n_workers that have not got it yet."""
        missing = [worker for worker in range(n_workers) if not self._has_network[worker]]
        for worker in missing:
            if self._workers[worker] is None:
                self._workers[worker] = Worker(_serve, ())
            self._workers[worker].send(self._network)
        for worker in missing:
            self._carried(worker, self._network)
            self._has_network[worker] = True

    @property
    def _network(self) -> tuple:
        return "network", self._load_network, self._arguments

    def _carried(self, worker: int, task: tuple):
        """What a process answers to a task that it was sent; another one takes the place of one that is lost."""
        for _ in range(MOST_LOST):
            try:
                limit_s = START_S if task[0] == "network" else self._times.limit_for(task[5])
                kind, answer, spent = self._workers[worker].receive(limit_s)
            except WorkerLost as why:
                log.warning("a process carrying the network's dynamics %s; another one takes its place", why)
                self._workers[worker].kill()
                self._of_earlier[worker] = self._spent[worker]
                self._workers[worker] = Worker(_serve, ())
                if task[0] != "network":
                    self._workers[worker].send(self._network)
                    self._carried(worker, self._network)
                self._workers[worker].send(task)
                continue
            if kind == "error":
                raise answer
            self._spent[worker] = self._of_earlier[worker] + spent
            return answer
        raise PhysicsError(f"{MOST_LOST} processes that carry the network's dynamics were lost one after the other; "
                           "see the lines above, or use --num-workers 1")

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the processes."""
        return float(self._spent[:, 0].sum())

    @property
    def true_calls(self) -> int:
        """Calls of a potential in the network's place (runs.proposal_potential), in the processes."""
        return int(self._spent[:, 1].sum())

    def close(self) -> None:
        """Stop the processes, one in the middle of its work too, and wait until they have ended."""
        end_all([worker for worker in self._workers if worker is not None], ("stop",), patience_s=1.0)
        self._workers, self._has_network = [None] * self.n_workers, [False] * self.n_workers


def make_carrier(network, load_network, arguments: dict, n_processes: int) -> Carrier | ShardedCarrier:
    """What carries with `network`, which `load_network(**arguments)` builds: n_processes of them on the CPU."""
    if n_processes > 1 and network.device == "cpu":
        return ShardedCarrier(load_network, arguments, n_processes)
    return Carrier(network)


class NetworkFrame(NamedTuple):
    """Positions (R,N,3) nm, velocities (R,N,3) nm/ps, and the network's energy (R,) kJ/mol and forces (R,N,3) there."""

    positions: np.ndarray
    velocities: np.ndarray
    energy: np.ndarray
    forces: np.ndarray


def network_dynamics(network, carry, positions: np.ndarray, masses: np.ndarray, temperature_K: float,
                     rng: np.random.Generator, *, dt_fs: float, steps_per_frame: int, frames_per_draw: int,
                     inside: Callable[[np.ndarray], np.ndarray] | None = None) -> Iterator[NetworkFrame]:
    """The frames of `carry` from positions (R,N,3) nm, without end; velocities are drawn anew every frames_per_draw.

    masses (N,) Da: any give the same geometries.  A replica in a hole of the network goes on, perhaps as NaN; or, with
    inside((R,N,3)) -> (R,) bool, goes on from the frame before the one that is not inside, with velocities drawn anew.
    """
    x, masses = positions, np.asarray(masses, dtype=np.float64)
    for frame in itertools.count():
        if frame % frames_per_draw == 0:
            v = draw_velocities(len(x), masses, temperature_K, rng)
        before = x
        x, v = carry(x, v, masses, dt_fs * PS_PER_FS, steps_per_frame)
        if inside is not None and not (stays := inside(x)[:, None, None]).all():
            x, v = np.where(stays, x, before), np.where(stays, v, draw_velocities(len(x), masses, temperature_K, rng))
        with np.errstate(all="ignore"):
            energy, forces = network.energy_and_forces(x)
        yield NetworkFrame(x, v, energy, forces)
