"""What a run is made of between two true calls."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import numpy as np


@dataclass(frozen=True)
class State:
    """R replicas of one molecule at the same macro-step; every array owns its memory.

    positions (R,N,3) nm; velocities (R,N,3) nm/ps; energy (R,) kJ/mol and forces (R,N,3)
    kJ/mol/nm of the true potential at `positions`; step: baseline timesteps since the start.

    The rest describes the current macro-step of each replica: `pending` (R,) timesteps still
    to cover, `attempts` (R,) true calls spent, `failures` (R,) of them refused, `inner_steps`
    (R,) network timesteps, `accepted` (R,), `delta_H` (R,) kJ/mol of a Metropolis proposal,
    `energy_start` (R,) true total energy at its start, `swapped` (R,) whether the replica took the
    configuration of its neighbour in temperature (1), refused it (0) or was not asked (-1).

    `network_energy` (R,) and `network_forces` (R,N,3) are the network's at `positions`, for schemes
    that set them against the true ones; empty, or NaN in a row, where it was not asked.
    """

    positions: np.ndarray
    velocities: np.ndarray
    energy: np.ndarray
    forces: np.ndarray
    step: int = 0
    pending: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    attempts: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    failures: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    inner_steps: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    accepted: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    delta_H: np.ndarray = field(default_factory=lambda: np.zeros(0))
    energy_start: np.ndarray = field(default_factory=lambda: np.zeros(0))
    swapped: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int8))
    network_energy: np.ndarray = field(default_factory=lambda: np.zeros(0))
    network_forces: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 3)))

    @property
    def n_replicas(self) -> int:
        """R replicas."""
        return len(self.positions)

    def begin_macro_step(self, k_steps: int, masses: np.ndarray) -> State:
        """The same state with its macro-step bookkeeping reset to `k_steps` pending timesteps."""
        n = self.n_replicas
        return replace(
            self,
            pending=np.full(n, k_steps, dtype=np.int64),
            attempts=np.zeros(n, dtype=np.int64),
            failures=np.zeros(n, dtype=np.int64),
            inner_steps=np.zeros(n, dtype=np.int64),
            accepted=np.ones(n, dtype=bool),
            delta_H=np.full(n, np.nan),
            energy_start=self.energy + kinetic_energy(self.velocities, masses),
            swapped=np.full(n, -1, dtype=np.int8),
        )

    def part(self, rows: slice) -> State:
        """The same state with some of its replicas alone."""
        return replace(self, **{name: getattr(self, name)[rows].copy() for name in PER_REPLICA})

    @staticmethod
    def join(parts: list[State]) -> State:
        """The parts of one state, which are at the same step, put together again."""
        if len(parts) == 1:
            return parts[0]
        return replace(parts[0], **{name: np.concatenate([getattr(p, name) for p in parts]) for name in PER_REPLICA})


PER_REPLICA = tuple(f.name for f in fields(State) if f.name != "step")


@dataclass(frozen=True)
class Proposal:
    """Where a scheme wants the true potential evaluated.

    rows (r,): the replicas concerned; positions (r,N,3) nm; velocities (r,N,3) nm/ps, complete
    up to what the true force will add; span (r,) timesteps covered; `extra`: whatever the
    scheme needs again when it settles.
    """

    rows: np.ndarray
    positions: np.ndarray
    velocities: np.ndarray
    span: np.ndarray
    extra: dict = field(default_factory=dict)


def kinetic_energy(velocities: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """sum_i m_i v_i^2 / 2 in kJ/mol; velocities (...,N,3) nm/ps, masses (N,) Da."""
    return 0.5 * np.einsum("...ni,...ni,n->...", velocities, velocities, masses)


def put(array: np.ndarray, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A copy of `array` with `values` at `rows`."""
    out = array.copy()
    out[rows] = values
    return out
