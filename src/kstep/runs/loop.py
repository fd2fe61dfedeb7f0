"""The one time loop.

Replicas may travel in two half-batches: while the true physics works on one half, the network
carries the other, so that neither waits for the other.  Which half draws its random numbers when
is fixed, so a run repeats exactly.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from kstep.errors import UserError
from kstep.schemes.state import Info, Proposal, State, join


def question(needs_forces: bool) -> dict[str, bool]:
    """What a pool is asked besides positions: energies alone are asked for by name, since most pools say all."""
    return {} if needs_forces else {"want_forces": False}


def initial_state(pool, positions: np.ndarray, velocities: np.ndarray, observe=None, *,
                  needs_forces: bool = True) -> State:
    """A State from positions (R,N,3) and velocities (R,N,3): one true call per replica, which `observe` sees.

    needs_forces: whether what goes on from it does, or has them stored.
    """
    truth = pool.evaluate(positions, **question(needs_forces))
    if observe is not None:
        everyone = np.arange(len(positions))
        observe(Proposal(everyone, positions, velocities, np.zeros_like(everyone)), truth)
    if truth.failed.any():
        raise UserError(f"the true physics refuses the start geometry of replica "
                        f"{int(np.argmax(truth.failed))}: {truth.messages[int(np.argmax(truth.failed))]}")
    said = {"dipole": truth.extra["dipole"]} if "dipole" in truth.extra else {}
    return State(np.array(positions, dtype=np.float64), np.array(velocities, dtype=np.float64),
                 truth.energy, truth.forces, **said)


@dataclass
class Clock:
    """Where the wall time of the loop went: seconds in the network, and waiting for the true physics."""

    network_s: float = 0.0
    waiting_s: float = 0.0


@dataclass(frozen=True)
class _Flight:
    """Some replicas between their proposal and its true energies; `first`: number of the first of them."""

    first: int
    state: State
    info: Info
    proposal: Proposal
    ticket: object


class _Loop:
    """What every step of a run has in common."""

    def __init__(self, scheme, pool, rng, thermostat, observe, clock):
        self.scheme, self.pool, self.rng, self.thermostat = scheme, pool, rng, thermostat
        self.observe, self.clock = observe, clock or Clock()
        # an observer learns from forces
        self.question = question(observe is not None or getattr(scheme, "needs_forces", True))

    def launch(self, state: State, first: int) -> _Flight:
        """Begin a macro-step of some replicas: propose, and put the question to the physics."""
        if self.thermostat is not None:
            state = self.thermostat.half_step(state, self._duration_ps, self.rng)
        return self._ask(state, Info.begin(state, self.scheme.k_steps, self.scheme.masses), first)

    def land(self, flight: _Flight) -> tuple[State, Info]:
        """Wait for the answer and settle; what is still pending is proposed again."""
        state, info = self._settle(flight)
        while info.pending.any():
            state, info = self._settle(self._ask(state, info, flight.first))
        if self.thermostat is not None:
            state = self.thermostat.half_step(state, self._duration_ps, self.rng)
        return replace(state, step=state.step + self.scheme.k_steps), info

    @property
    def _duration_ps(self) -> float:
        return self.scheme.k_steps * self.scheme.dt_ps

    def _ask(self, state, info, first):
        start = time.perf_counter()
        proposal = self.scheme.propose(state, info, self.rng)
        self.clock.network_s += time.perf_counter() - start
        ticket = self.pool.submit(proposal.positions, proposal.rows + first, **self.question)
        return _Flight(first, state, info, proposal, ticket)

    def _settle(self, flight):
        start = time.perf_counter()
        truth = self.pool.collect(flight.ticket)
        self.clock.waiting_s += time.perf_counter() - start
        if self.observe is not None:
            self.observe(flight.proposal, truth)
        return self.scheme.settle(flight.state, flight.info, flight.proposal, truth, self.rng)


def macro_steps(scheme, pool, state: State, rng: np.random.Generator, n_macro_steps: int, *, thermostat=None,
                n_parts: int = 1, pause: Callable[[int], bool] = lambda done: False, observe=None,
                clock: Clock | None = None) -> Iterator[tuple[State, Info]]:
    """Yield the state after each of n_macro_steps of `scheme.k_steps` timesteps, and what happened in it.

    n_parts: 1, or 2 half-batches in flight, cut where `scheme.group` replicas stay together;
    pause(done): True where the generator must be at rest after macro-step `done` (a restart
    file, a change of network), so that nothing is in flight while the caller has the state;
    observe(proposal, truth) sees every true call, of rejected proposals too.
    """
    loop = _Loop(scheme, pool, rng, thermostat, observe, clock)
    group = getattr(scheme, "group", 1)
    n_groups = state.n_replicas // group
    borders = [group * b for b in np.linspace(0, n_groups, min(n_parts, n_groups) + 1).astype(int)]
    rows = [slice(a, b) for a, b in itertools.pairwise(borders)]
    parts: list[State] = [state.part(r) for r in rows]
    infos: list[Info] = []
    flights = None
    for done in range(1, n_macro_steps + 1):
        if flights is None:
            flights = [loop.launch(part, r.start) for part, r in zip(parts, rows)]
        rest = done == n_macro_steps or pause(done)
        infos = []
        for i, r in enumerate(rows):
            parts[i], info = loop.land(flights[i])
            infos.append(info)
            if not rest:  # this half goes on while the physics of the other is still at work
                flights[i] = loop.launch(parts[i], r.start)
        if rest:
            flights = None
        yield join(parts), join(infos)


def macro_step(scheme, pool, state: State, rng: np.random.Generator, thermostat=None) -> tuple[State, Info]:
    """Carry every replica `scheme.k_steps` timesteps forward."""
    return next(macro_steps(scheme, pool, state, rng, 1, thermostat=thermostat))


def run(scheme, pool, state: State, rng: np.random.Generator, n_macro_steps: int, *, n_parts: int = 1,
        thermostat=None, observe=None, reporters: Iterable[Callable[[State, Info], None]] = ()) -> State:
    """Run n_macro_steps and hand each state, with what happened before it, to every reporter; the last state."""
    reporters = list(reporters)
    for state, info in macro_steps(scheme, pool, state, rng, n_macro_steps, thermostat=thermostat, n_parts=n_parts,
                                   observe=observe):
        for report in reporters:
            report(state, info)
    return state
