"""The chains of a round: the network's ladders between two questions to the truth, and what the answers say of them.

d = E_true - E_network is all the same, but for a constant and a narrow spread, wherever the network is right.  A chain
whose d is far from the median of its rung, or which left the ground that labels cover, sits in a hole: its answer is a
label like any other, and it goes back to where the network was sound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kstep.importance import effective_share
from kstep.runs.network_dynamics import NetworkFrame
from kstep.schemes.network_ladder import Advance, NetworkLadder
from kstep.schemes.state import Proposal, State
from kstep.units import kT


def half_range(values: np.ndarray) -> float:
    """Half the 16-84 % range of the finite ones of values (S,): a spread that a few outliers leave as it is."""
    values = values[np.isfinite(values)]
    return 0.5 * float(np.subtract(*np.percentile(values, [84.13, 15.87]))) if len(values) else np.inf


def spread_worth(d_kT: np.ndarray) -> float:
    """Spread in kT of a Gaussian d that would be worth as little as the finite ones of d_kT (S,) are.

    Weights exp(-d) of the network's ensemble are worth exp(-s^2) of its states where d is Gaussian.  A conformer that
    the network puts 5 kT too high, one state in two hundred, is no part of the middle of d, and holds half of all
    weight: the larger of `half_range` and sqrt(-ln share) sees it.  What S states can show ends at sqrt(ln S).
    """
    d_kT = d_kT[np.isfinite(d_kT)]
    if not len(d_kT):
        return np.inf
    share = effective_share(np.exp(d_kT.min() - d_kT))
    return max(half_range(d_kT), float(np.sqrt(-np.log(min(share, 1.0)))))


@dataclass(frozen=True)
class Judgement:
    """What a hole is: |d - median of its rung| > hole_kT kT, or no number."""

    rungs_K: tuple[float, ...]
    hole_kT: float

    def sound(self, d: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """(L,m) bool for d (L,m) kJ/mol on m rungs, against the medians of seen (S,m)."""
        with np.errstate(invalid="ignore"):
            median = np.nanmedian(np.where(np.isfinite(seen), seen, np.nan), axis=0) if np.isfinite(seen).any() else 0.0
            return np.abs(d - median) < self.hole_kT * kT(np.array(self.rungs_K))


@dataclass(frozen=True)
class _Flight:
    """Some ladders between their moves and the truth: where they were led, and which of their rows were asked about."""

    part: slice
    led: Advance
    asked: np.ndarray
    ticket: object


class Chains:
    """Ladders of the network that wander and are asked about; `state` is where they stand, with the truth there."""

    def __init__(self, ladder: NetworkLadder, state: State, judgement: Judgement,
                 known: Callable[[NetworkFrame], np.ndarray], rng: np.random.Generator):
        """state: R rows, the rungs of a ladder neighbours, the coldest first; known(frame) -> (r,) bool: the ground
        that labels cover."""
        self.ladder, self.judgement, self.known, self.rng = ladder, judgement, known, rng
        m, atoms = ladder.n_rungs, state.positions.shape[1:]
        self.x, self.forces = state.positions.reshape(-1, m, *atoms).copy(), state.forces.reshape(-1, m, *atoms).copy()
        self.energy, self.u = state.energy.reshape(-1, m).copy(), ladder.energy(self.x)
        d = self.energy - ladder.total(self.u)
        self.sound = judgement.sound(d, d)
        self.seen_d: list[np.ndarray] = []  # (l,m) of each answer
        self.counts = np.ones(len(self.x), dtype=bool)  # whether a ladder's states are those of the network's ensemble
        self.moves = np.zeros(2, dtype=np.int64)  # tried, accepted

    def ask_apart(self, draw: Callable[[np.ndarray, np.random.Generator], np.ndarray], pool, observe, *,
                  begin_there: bool) -> None:
        """The truth at geometries that are drawn from every second ladder's, as observe sees it.

        No move of the network leads there: one that puts a wall around them leads away, and its own questions never
        show the wall.  begin_there: these ladders go on from them.  They are no part of the network's ensemble, and
        what is asked of such a ladder says nothing of its spread.
        """
        ladders = np.arange(1, len(self.x), 2)
        rows = (ladders[:, None] * self.ladder.n_rungs + np.arange(self.ladder.n_rungs)).ravel()
        positions = draw(self.x[ladders].reshape(-1, *self.x.shape[2:]), self.rng)
        truth = pool.evaluate(positions, rows)
        observe(Proposal(rows, positions, np.zeros_like(positions), np.zeros_like(rows)), truth)
        if not begin_there:
            return
        for array, values in ((self.x, positions), (self.energy, truth.energy), (self.forces, truth.forces)):
            array[ladders] = values.reshape(array[ladders].shape)
        self.u[ladders] = self.ladder.energy(self.x[ladders])
        self.sound[ladders], self.counts[ladders] = False, False

    @property
    def state(self) -> State:
        """Where the chains stand."""
        flat = (self.x.reshape(-1, *self.x.shape[2:]).copy(), self.forces.reshape(-1, *self.x.shape[2:]).copy())
        return State(flat[0], np.zeros_like(flat[0]), self.energy.ravel().copy(), flat[1])

    def ask(self, pool, n_questions: int, observe, n_parts: int = 1) -> None:
        """Move and ask n_questions times; observe(proposal, truth) sees what is asked.

        n_parts 2: the network moves one half of the ladders while the truth is at work on the other.
        """
        parts = [slice(rows[0], rows[-1] + 1) for rows in np.array_split(np.arange(len(self.x)), n_parts) if len(rows)]
        flights = [self._launch(part, pool) for part in parts]
        for question in range(n_questions):
            for i, part in enumerate(parts):
                self._land(flights[i], pool, observe)
                if question < n_questions - 1:
                    flights[i] = self._launch(part, pool)

    def _launch(self, part: slice, pool) -> _Flight:
        """Moves of some ladders; the truth is asked about the chains that went anywhere."""
        led = self.ladder.advance(self.x[part], self.u[part], self.rng)
        asked = (led.positions != self.x[part]).any((2, 3)).ravel()
        rows = np.flatnonzero(asked)
        positions = led.positions.reshape(-1, *self.x.shape[2:])[rows]
        ticket = pool.submit(positions, rows + part.start * self.ladder.n_rungs)
        return _Flight(part, led, asked, ticket)

    def _land(self, flight: _Flight, pool, observe) -> None:
        """Take in what the truth says: where the network is sound the chains are there, elsewhere they go back."""
        part, led, asked = flight.part, flight.led, flight.asked
        truth = pool.collect(flight.ticket)
        positions, rows = led.positions.reshape(-1, *self.x.shape[2:]), np.flatnonzero(asked)
        observe(Proposal(rows + part.start * self.ladder.n_rungs, positions[rows], np.zeros_like(positions[rows]),
                         np.full(len(rows), led.n_steps)), truth)
        energy, forces = self.energy[part].ravel().copy(), self.forces[part].reshape(positions.shape).copy()
        energy[rows], forces[rows] = truth.energy, truth.forces
        of_network = self.ladder.total(led.energy)
        energy = energy.reshape(of_network.shape)
        d = energy - of_network
        self.seen_d.append(d[self.counts[part]])
        self.moves += led.moves[..., :2].sum((0, 1))
        frame = NetworkFrame(positions, np.zeros_like(positions), of_network.ravel(), np.zeros_like(positions))
        sound = (self.judgement.sound(d, np.concatenate([*self.seen_d[:-1], d]))
                 & self.known(frame).reshape(energy.shape))
        took = sound[..., None, None]
        self.x[part] = np.where(took, led.positions, self.x[part])
        self.u[part] = np.where(sound.reshape(*sound.shape, *[1] * (self.u.ndim - 2)), led.energy, self.u[part])
        self.energy[part] = np.where(sound, energy, self.energy[part])
        self.forces[part] = np.where(took, forces.reshape(led.positions.shape), self.forces[part])
        self.sound[part] |= sound
        self._rescue(part)

    def _rescue(self, part: slice) -> None:
        """Chains that stand where the network is not sound, since they began there, go to a sound one of their rung."""
        for ladder, rung in np.argwhere(~self.sound[part]):
            good = np.flatnonzero(self.sound[:, rung])
            if len(good):
                other = self.rng.choice(good)
                for array in (self.x, self.u, self.energy, self.forces, self.sound):
                    array[part.start + ladder, rung] = array[other, rung]

    def seen(self) -> dict:
        """What the answers showed, as `progress.Seen` keeps it."""
        d = np.concatenate(self.seen_d)
        in_kT = d / kT(np.array(self.judgement.rungs_K))
        return {"states": d.size, "spread_kT": [spread_worth(column) for column in in_kT.T],
                "holes": [int(n) for n in (~self.judgement.sound(d, d)).sum(axis=0)],
                "inner_acceptance": float(self.moves[1] / self.moves[0])}
