"""The network's own dynamics of R replicas, which costs no true call: what carries them, and frame after frame.

On CPU the inner loop of a small network is bound by one core, so replicas are dealt out to spawned
processes with one thread each; on a GPU one process carries the whole batch.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import numpy as np

from kstep.errors import PhysicsError
from kstep.processes import exit_with_parent
from kstep.schemes.maxwell import draw_velocities
from kstep.schemes.velocity_verlet import velocity_verlet
from kstep.units import PS_PER_FS


class Carrier:
    """Velocity Verlet on a network's conservative force, in this process."""

    def __init__(self, network):
        if not hasattr(network, "forces"):
            raise ValueError("a sampler needs a conservative force: the jump map is neither reversible nor "
                             "volume-preserving, so the Metropolis test would not be exact")
        self.network = network

    cpu_s = 0.0  # its work is this process's

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


_carrier = None  # of a worker process


def _take(load_network, arguments: dict) -> None:
    global _carrier
    _carrier = Carrier(load_network(**arguments))


def _carry(*task):
    return _carrier(*task), time.process_time()


class ShardedCarrier:
    """The same, replicas dealt out to `n_workers` spawned processes.

    `load_network(**arguments)` builds the network in each of them, once; both must be picklable.  A process has an
    executor of its own, so that a network can be sent to each, and not along with every task.
    """

    def __init__(self, load_network, arguments: dict, n_workers: int):
        self.n_workers = n_workers
        self._cpu_s = [0.0] * n_workers
        self._executors = [ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"),
                                               initializer=exit_with_parent) for _ in range(n_workers)]
        self._load_network, self._arguments, self._has_network = load_network, arguments, [False] * n_workers

    def change_network(self, network, arguments: dict) -> None:
        """From the next call on, carry with this network, which `load_network(**arguments)` builds."""
        self._arguments, self._has_network = arguments, [False] * self.n_workers

    def __call__(self, positions, velocities, masses, dt_ps: float, n_steps: int, scale=None):
        """As `Carrier`; shards are contiguous and their sizes fixed, so results repeat exactly."""
        shards = [s for s in np.array_split(np.arange(len(positions)), self.n_workers) if len(s)]
        try:
            self._send_network(len(shards))
            tasks = [executor.submit(_carry, positions[s], velocities[s], masses, dt_ps, n_steps,
                                     None if scale is None else scale[s])
                     for executor, s in zip(self._executors, shards)]
            parts = [task.result() for task in tasks]
        except BrokenProcessPool:
            raise PhysicsError("a process carrying the network's dynamics died; see the lines above, or use "
                               "--num-workers 1") from None
        for worker, (_, cpu_s) in enumerate(parts):
            self._cpu_s[worker] = cpu_s
        return tuple(np.concatenate(arrays) for arrays in zip(*(pair for pair, _ in parts)))

    def _send_network(self, n_workers: int) -> None:
        """To those of the first n_workers that have not got it yet."""
        missing = [worker for worker in range(n_workers) if not self._has_network[worker]]
        loading = {worker: self._executors[worker].submit(_take, self._load_network, self._arguments)
                   for worker in missing}
        for worker, loaded in loading.items():
            loaded.result()
            self._has_network[worker] = True

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the processes."""
        return sum(self._cpu_s)

    def close(self) -> None:
        """Stop the processes, and wait until they have ended.

        A spawned process that ends right after this would otherwise close their queues before they are told to stop,
        and then wait for them for ever (the benchmark runs its stages in such processes).
        """
        for executor in self._executors:
            executor.shutdown(wait=True, cancel_futures=True)


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
                     rng: np.random.Generator, *, dt_fs: float, steps_per_frame: int,
                     frames_per_draw: int) -> Iterator[NetworkFrame]:
    """The frames of `carry` from positions (R,N,3) nm, without end; velocities are drawn anew every frames_per_draw.

    masses (N,) Da: any give the same geometries.  A replica in a hole of the network goes on, perhaps as NaN.
    """
    x, masses = positions, np.asarray(masses, dtype=np.float64)
    for frame in itertools.count():
        if frame % frames_per_draw == 0:
            v = draw_velocities(len(x), masses, temperature_K, rng)
        x, v = carry(x, v, masses, dt_fs * PS_PER_FS, steps_per_frame)
        with np.errstate(all="ignore"):
            energy, forces = network.energy_and_forces(x)
        yield NetworkFrame(x, v, energy, forces)
