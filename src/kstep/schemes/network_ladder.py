"""Many moves on the network's potential and exchanges between temperatures: a proposal that costs no true call.

A ladder holds m configurations, the coldest first.  `advance` leaves

    prod_i exp(-U_net(x_i)/kT_i)

as it is and is reversible for it, which whoever judges the result by one true energy relies on.  It is

    Q B (P B)^M Q      P: a move of every rung;  B = T^n S T^n,  S: exchanges between neighbours,  T: a torsion turned;
                       Q: mirror images, where asked for

a palindrome of reversible pieces whose random numbers (length of a move, parity of an exchange, angle of a turn) are
drawn anew each time, without a look at the state: read backwards it is as likely.  "Moves, then exchanges" would not
be reversible, nor Q at the end alone where a wall tells mirror images apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kstep.dihedrals import far_side, turned
from kstep.schemes.ladder import exchange
from kstep.schemes.maxwell import draw_velocities
from kstep.schemes.state import kinetic_energy
from kstep.units import kT


@dataclass(frozen=True)
class Advance:
    """What an advance of R ladders of m rungs led to.

    positions (R,m,N,3) nm; energy (R,m) kJ/mol of the network; n_steps: timesteps of each rung; moves (R,m,3): tried,
    accepted, refused at a wall; exchanges (R,m-1,2): tried, agreed; turns (R,m,2): tried, accepted.
    """

    positions: np.ndarray
    energy: np.ndarray
    n_steps: int
    moves: np.ndarray
    exchanges: np.ndarray
    turns: np.ndarray


@dataclass(frozen=True)
class Turns:
    """Turns of torsions (D,4) about acyclic bonds: one of them, of each configuration, by an angle of the whole circle.

    sides: the atoms beyond each bond (`dihedrals.far_side`); n: turns before and after the exchanges between two
    moves; floor_kJ_per_mol: none begins or ends where the network lies below it.  A turn may lead where atoms clash and
    the network has learned nothing; where it is too low there, all configurations would gather in that hole.  A move
    that is refused for where it begins as for where it ends stays reversible.
    """

    torsions: np.ndarray
    sides: tuple[np.ndarray, ...]
    n: int
    floor_kJ_per_mol: float

    @classmethod
    def of(cls, molecule, n: int, floor_kJ_per_mol: float) -> Turns | None:
        """Those of a molecule's rotatable torsions; None where it has none, or n is 0."""
        torsions = molecule.rotatable_torsions()
        if not len(torsions) or not n:
            return None
        return cls(torsions, tuple(far_side(t, molecule.bonds, len(molecule)) for t in torsions), n, floor_kJ_per_mol)

    def propose(self, positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Positions (S,N,3) with one torsion each turned."""
        which = rng.integers(len(self.torsions), size=len(positions))
        angles = rng.uniform(-180.0, 180.0, len(positions))
        out = positions.copy()
        for d in np.unique(which):
            rows = np.flatnonzero(which == d)
            out[rows] = turned(positions[rows], self.torsions[d], self.sides[d], angles[rows])
        return out


class NetworkLadder:
    """Hybrid Monte Carlo of the network alone, on one temperature or more.

    A move: momenta drawn whole at T_i, a length drawn from 1 ... 2k - 1 timesteps, velocity Verlet, and a test on
    U_net and the kinetic energy (Duane et al., Phys. Lett. B 195, 216 (1987)), refused too where `inside` is False of
    where it ends: a wall that depends on x alone.  Exchanges offer the even and the odd pairs of a ladder in an order
    drawn for it: Swendsen & Wang, Phys. Rev. Lett. 57, 2607 (1986).  mirror: every configuration is turned into its
    mirror image half of the time, which no potential of isolated atoms can tell from it, unless that is not `inside`.

    Energies travel with the positions they were computed at, so that U_net is one number for one x: in single precision
    it differs by 1e-5 kJ/mol between batches.

    turns: torsions turned over at the price of an energy each, where a molecule is roomy enough for it.
    """

    def __init__(self, network, carry, masses: np.ndarray, dt_ps: float, temperatures_K: tuple[float, ...], *,
                 n_moves: int, move_steps: int, inside: Callable[[np.ndarray], np.ndarray] | None = None,
                 mirror: bool = False, turns: Turns | None = None):
        """masses (N,) Da: the sampler's; move_steps: mean timesteps k of a move; inside(x (S,N,3)) -> (S,) bool."""
        self.network, self.carry, self.masses, self.dt_ps = network, carry, np.asarray(masses, dtype=float), dt_ps
        self.temperatures_K, self.n_moves, self.move_steps = tuple(temperatures_K), n_moves, move_steps
        self.inside, self.mirror, self.turns = inside, mirror, turns

    @property
    def n_rungs(self) -> int:
        """How many temperatures the ladder has."""
        return len(self.temperatures_K)

    def energy(self, positions: np.ndarray) -> np.ndarray:
        """Energy (R,m) kJ/mol of the network at positions (R,m,N,3) nm."""
        with np.errstate(all="ignore"):
            energy, _ = self.network.energy_and_forces(positions.reshape(-1, *positions.shape[2:]))
        return energy.reshape(positions.shape[:2])

    def advance(self, positions: np.ndarray, energy: np.ndarray, rng: np.random.Generator) -> Advance:
        """n_moves moves of every rung of R ladders, exchanges between and around them."""
        x, u, n_steps = positions.copy(), energy.copy(), 0
        moves = np.zeros((*u.shape, 3), dtype=np.int64)
        exchanges = np.zeros((len(u), self.n_rungs - 1, 2), dtype=np.int64)
        turns = np.zeros((*u.shape, 2), dtype=np.int64)

        def between():
            self._turn(x, u, turns, rng)
            self._exchange(x, u, exchanges, rng)
            self._turn(x, u, turns, rng)

        self._reflect(x, rng)
        between()
        for _ in range(self.n_moves):
            n_steps += self._move(x, u, moves, rng)
            between()
        self._reflect(x, rng)
        return Advance(x, u, n_steps, moves, exchanges, turns)

    def _reflect(self, x: np.ndarray, rng: np.random.Generator) -> None:
        """A coin for every configuration: its mirror image, or itself; in place."""
        if not self.mirror:
            return
        chosen = rng.random(x.shape[:2]) < 0.5
        if self.inside is not None and chosen.any():
            chosen[chosen] = self.inside(-x[chosen])
        x[chosen] *= -1.0

    def _move(self, x: np.ndarray, u: np.ndarray, moves: np.ndarray, rng: np.random.Generator) -> int:
        """One move of every rung, in place; how many timesteps it had."""
        flat = x.reshape(-1, *x.shape[2:])
        temperature_K = np.tile(self.temperatures_K, len(x))
        start = draw_velocities(len(flat), self.masses, temperature_K, rng)
        log_u = np.log(rng.random(len(flat)))
        n_steps = int(rng.integers(1, 2 * self.move_steps))
        end, velocities = self.carry(flat, start, self.masses, self.dt_ps, n_steps)
        with np.errstate(all="ignore"):
            end_energy, _ = self.network.energy_and_forces(end)
            change = (end_energy + kinetic_energy(velocities, self.masses)
                      - u.ravel() - kinetic_energy(start, self.masses))
        agreed = log_u < -np.where(np.isfinite(change), change, np.inf) / kT(temperature_K)
        moves[..., 0] += 1
        if self.inside is not None and agreed.any():
            rows = np.flatnonzero(agreed)
            agreed[rows] = self.inside(end[rows])
            moves.reshape(-1, 3)[rows[~agreed[rows]], 2] += 1
        taken = agreed.reshape(u.shape)
        x[taken], u[taken] = end[agreed], end_energy[agreed]
        moves[..., 1] += taken
        return n_steps

    def _turn(self, x: np.ndarray, u: np.ndarray, turns: np.ndarray, rng: np.random.Generator) -> None:
        """Turns of every rung, in place."""
        if self.turns is None:
            return
        flat, energy, floor = x.reshape(-1, *x.shape[2:]), u.reshape(-1), self.turns.floor_kJ_per_mol
        beta = 1.0 / kT(np.tile(self.temperatures_K, len(x)))
        for _ in range(self.turns.n):
            end = self.turns.propose(flat, rng)
            log_u = np.log(rng.random(len(flat)))
            with np.errstate(all="ignore"):
                end_energy, _ = self.network.energy_and_forces(end)
                agreed = (log_u < -beta * (end_energy - energy)) & (end_energy >= floor) & (energy >= floor)
            if self.inside is not None and agreed.any():
                rows = np.flatnonzero(agreed)
                agreed[rows] = self.inside(end[rows])
            flat[agreed], energy[agreed] = end[agreed], end_energy[agreed]
            turns.reshape(-1, 2)[:, 0] += 1
            turns.reshape(-1, 2)[:, 1] += agreed

    def _exchange(self, x: np.ndarray, u: np.ndarray, exchanges: np.ndarray, rng: np.random.Generator) -> None:
        """Even and odd pairs, in an order drawn for each ladder; in place."""
        if self.n_rungs == 1:
            return
        beta = 1.0 / kT(np.array(self.temperatures_K))
        first = rng.integers(2, size=len(u))
        for parity in (first, 1 - first):
            order, swapped = exchange(u, beta, parity, rng)
            u[:] = np.take_along_axis(u, order, axis=1)
            x[:] = np.take_along_axis(x, order[..., None, None], axis=1)
            exchanges[..., 0] += swapped >= 0
            exchanges[..., 1] += swapped == 1
