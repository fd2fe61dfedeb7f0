"""What a run is made of between two true calls: its physics, and what happens to it in a macro-step."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np


@dataclass(frozen=True)
class State:
    """The physics: R replicas of one molecule at the same macro-step; every array owns its memory.

    positions (R,N,3) nm; velocities (R,N,3) nm/ps; energy (R,) kJ/mol and forces (R,N,3)
    kJ/mol/nm of the true potential at `positions`; step: baseline timesteps since the start.

    network_energy (R,) kJ/mol and network_forces (R,N,3) kJ/mol/nm: the network's at `positions`, for
    schemes that set them against the true ones; empty, or NaN in a row, where it was not asked.

    rungs (R,m-1,N,3) nm and rung_energy (R,m-1) kJ/mol: configurations above `positions` on a ladder of m temperatures
    that the network alone has, and its energies there; stay (R,): macro-steps since a proposal was taken; all empty
    for schemes without.  Where such a ladder heats some of p parts of a network, network_energy (R,p) and rung_energy
    (R,m-1,p) are of the parts; where a cheaper truth delays the question, there is a column more (schemes.delayed).

    dipole (R,3) e nm about the centre of mass, where the true potential says it; else empty.
    """

    positions: np.ndarray
    velocities: np.ndarray
    energy: np.ndarray
    forces: np.ndarray
    step: int = 0
    network_energy: np.ndarray = field(default_factory=lambda: np.zeros(0))
    network_forces: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 3)))
    rungs: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0, 3)))
    rung_energy: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    stay: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    dipole: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))

    @property
    def n_replicas(self) -> int:
        """R replicas."""
        return len(self.positions)

    def part(self, rows: slice) -> State:
        """The same state with some of its replicas alone."""
        return replace(self, **{name: value[rows].copy() for name, value in per_replica(self).items()})


@dataclass(frozen=True)
class Info:
    """What happens to each of R replicas in one macro-step; made anew for each.

    pending (R,): timesteps still to cover; attempts (R,): true calls spent; failures (R,): those of
    them that were refused; inner_steps (R,): network timesteps; accepted (R,) bool; delta_H (R,)
    kJ/mol: H(proposal) - H(start) of a scheme that tests it, NaN elsewhere; energy_start (R,) kJ/mol:
    true total energy at its start; swapped (R,): the replica took the configuration of its neighbour
    in temperature (1), kept its own (0) or was not asked (-1).

    Of moves on the network alone, whose m rungs no true call sees: moves (R,m,3): tried, accepted, and refused at a
    wall; exchanges (R,m-1,2) and turns (R,m,2): tried and agreed; stay (R,): macro-steps since a proposal was taken.
    Empty otherwise.

    delayed (R,2): how often a cheaper truth was asked about such moves, and took them.  Empty without one.

    Where the true energy is set against the network's: gap (R,2) kJ/mol, U_true - U_net where the proposal began (NaN
    at a start) and where it ended; weight (R,) of the frame that the macro-step ends with.  Empty otherwise.
    """

    pending: np.ndarray
    attempts: np.ndarray
    failures: np.ndarray
    inner_steps: np.ndarray
    accepted: np.ndarray
    delta_H: np.ndarray
    energy_start: np.ndarray
    swapped: np.ndarray
    moves: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 3), dtype=np.int64))
    exchanges: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 2), dtype=np.int64))
    turns: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 2), dtype=np.int64))
    delayed: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))
    stay: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    gap: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    weight: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def begin(cls, state: State, k_steps: int, masses: np.ndarray) -> Info:
        """A macro-step of k_steps timesteps that begins at `state`; masses (N,) Da of its velocities."""
        n = state.n_replicas
        attempts, failures, inner_steps = np.zeros((3, n), dtype=np.int64)
        return cls(np.full(n, k_steps, dtype=np.int64), attempts, failures, inner_steps, np.ones(n, dtype=bool),
                   delta_H=np.full(n, np.nan), swapped=np.full(n, -1, dtype=np.int8),
                   energy_start=state.energy + kinetic_energy(state.velocities, masses))


def per_replica(whole: State | Info) -> dict[str, Any]:
    """The arrays (R,...) of a State or an Info, by name."""
    return {f.name: getattr(whole, f.name) for f in fields(whole) if f.name != "step"}


T = TypeVar("T", State, Info)


def join(parts: list[T]) -> T:
    """The parts of one State or Info, which are at the same step, put together again."""
    if len(parts) == 1:
        return parts[0]
    whole: dict[str, Any] = {name: np.concatenate([getattr(p, name) for p in parts]) for name in per_replica(parts[0])}
    return replace(parts[0], **whole)


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


def said_besides(state: State, truth) -> dict[str, np.ndarray]:
    """What the true potential said of r proposals besides energy and forces, (r,...) by name, if the state has it."""
    if not len(state.dipole):
        return {}
    return {"dipole": truth.extra.get("dipole", np.full((len(truth.energy), 3), np.nan))}


def has_moved(positions: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Whether (R,) any atom of positions (R,N,3) is elsewhere than it was `before`."""
    return (positions != before).any(axis=(1, 2))


def put(array: np.ndarray, rows: np.ndarray, values: np.ndarray | float) -> np.ndarray:
    """A copy of `array` with `values` at `rows`."""
    out = array.copy()
    out[rows] = values
    return out


def put_rows(whole: T, rows: np.ndarray, **values: Any) -> T:
    """A State or an Info with new values of the arrays named, at `rows` alone."""
    changed: dict[str, Any] = {name: put(getattr(whole, name), rows, value) for name, value in values.items()}
    return replace(whole, **changed)
