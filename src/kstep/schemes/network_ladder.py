"""Many moves on the network's potential and exchanges between temperatures: a proposal that costs no true call.

A ladder holds m configurations, the coldest first.  `advance` leaves

    prod_i exp(-u_i(x_i)),   u_i(x) = U_net(x)/kT_i

as it is and is reversible for it, which whoever judges the result by one true energy relies on.  It is

    Q B (P B)^M Q      P: a move of every rung;  B = T^n S T^n,  S: exchanges between neighbours,  T: a torsion turned;
                       Q: mirror images, where asked for

a palindrome of reversible pieces whose random numbers (length of a move, parity of an exchange, angle of a turn) are
drawn anew each time, without a look at the state: read backwards it is as likely.  "Moves, then exchanges" would not
be reversible, nor Q at the end alone where a wall tells mirror images apart.

A network may be a sum of parts of which the rungs heat some alone (solute tempering): a ladder over hundreds of solvent
atoms would never exchange.  Part k on rung i is at T_ik = T_i^h_k T_1^(1-h_k), with h_k = 1 for what is heated whole
and 0 for what stays as it is on the coldest rung:

    u_i(x) = sum_k U_k(x)/kT_ik

Liu, Kim, Friesner & Berne, PNAS 102, 13749 (2005); h = 1/2: Wang, Friesner & Berne, J. Phys. Chem. B 115, 9431 (2011).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from kstep.dihedrals import far_side, turned
from kstep.schemes.ladder import exchange
from kstep.schemes.maxwell import draw_velocities
from kstep.schemes.state import kinetic_energy
from kstep.units import kT

PER_TORSION = 2  # turns of each


@dataclass(frozen=True)
class Advance:
    """What an advance of R ladders of m rungs led to.

    positions (R,m,N,3) nm; energy (R,m) kJ/mol of the network, (R,m,p) where the ladder heats some of its p parts (see
    `NetworkLadder.total`); n_steps: timesteps of each rung; moves (R,m,3): tried, accepted, refused at a wall;
    exchanges (R,m-1,2): tried, agreed; turns (R,m,2): tried, accepted; delayed (R,2): steps that a cheaper truth was
    asked about, and took; empty where there is none.
    """

    positions: np.ndarray
    energy: np.ndarray
    n_steps: int
    moves: np.ndarray
    exchanges: np.ndarray
    turns: np.ndarray
    delayed: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))


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
        """Those of a molecule's rotatable torsions, n at most; None where it has none, or n is 0.

        A third of them is accepted where a molecule is small: more than two of each torsion would cost more than the
        move beside them, and bring nothing.
        """
        torsions = molecule.rotatable_torsions()
        if not len(torsions) or not n:
            return None
        return cls(torsions, tuple(far_side(t, molecule.bonds, len(molecule)) for t in torsions),
                   min(n, PER_TORSION * len(torsions)), floor_kJ_per_mol)

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

    A move: momenta drawn whole at the rung's temperature T (that of its coolest part), a length drawn from 1 ... 2k - 1
    timesteps, velocity Verlet under the forces of kT u_i, and a test on u_i and the kinetic energy (Duane et al., Phys.
    Lett. B 195, 216 (1987)), refused too where `inside` is False of where it ends: a wall that depends on x alone.
    Exchanges offer the even and the odd pairs of a ladder in an order drawn for it: Swendsen & Wang, Phys. Rev. Lett.
    57, 2607 (1986).  mirror: every configuration is turned into its mirror image half of the time, which no potential
    of isolated atoms can tell from it, unless that is not `inside`.

    Energies travel with the positions they were computed at, so that U_net is one number for one x: in single precision
    it differs by 1e-5 kJ/mol between batches.

    turns: torsions turned over at the price of an energy each, where a molecule is roomy enough for it.

    A network of parts says so with `heated` (p,), the h above, `energy_parts(x (S,N,3)) -> (S,p)` kJ/mol and
    `forces(x, scale (S,p))`, each part's times its scale.
    """

    def __init__(self, network, carry, masses: np.ndarray, dt_ps: float, temperatures_K: tuple[float, ...], *,
                 n_moves: int, move_steps: int, inside: Callable[[np.ndarray], np.ndarray] | None = None,
                 mirror: bool = False, turns: Turns | None = None):
        """masses (N,) Da: the sampler's; move_steps: mean timesteps k of a move; inside(x (S,N,3)) -> (S,) bool."""
        self.network, self.carry, self.masses, self.dt_ps = network, carry, np.asarray(masses, dtype=float), dt_ps
        self.temperatures_K, self.n_moves, self.move_steps = tuple(temperatures_K), n_moves, move_steps
        self.inside, self.mirror, self.turns = inside, mirror, turns
        self.in_parts = hasattr(network, "heated") and self.n_rungs > 1
        heated = np.array(network.heated if self.in_parts else (1.0,))
        rungs_K = np.array(self.temperatures_K)[:, None]
        part_K = rungs_K**heated * rungs_K[0] ** (1.0 - heated)
        self.beta = 1.0 / kT(part_K)  # (m,p) mol/kJ
        self.momenta_K = part_K.min(axis=1)
        self.scale = self.momenta_K[:, None] / part_K  # (m,p) of forces

    @property
    def n_rungs(self) -> int:
        """How many temperatures the ladder has."""
        return len(self.temperatures_K)

    def energy(self, positions: np.ndarray) -> np.ndarray:
        """Energy (R,m) kJ/mol of the network, or (R,m,p) of its parts, at positions (R,m,N,3) nm."""
        parts = self._parts(positions.reshape(-1, *positions.shape[2:]))
        return parts.reshape(*positions.shape[:2], -1) if self.in_parts else parts.reshape(positions.shape[:2])

    def total(self, energy: np.ndarray) -> np.ndarray:
        """Energy (...) kJ/mol of the network, of what `energy` and `advance` give for (...) configurations."""
        return energy.sum(axis=-1) if self.in_parts else energy

    def _parts(self, positions: np.ndarray) -> np.ndarray:
        """Energy (S,p) kJ/mol at positions (S,N,3)."""
        with np.errstate(all="ignore"):
            if self.in_parts:
                return self.network.energy_parts(positions)
            return self.network.energy_and_forces(positions)[0][:, None]

    def _parts_of(self, u: np.ndarray) -> np.ndarray:
        """A view (S,p) of the energies of R ladders."""
        return u.reshape(-1, self.beta.shape[1])

    def advance(self, positions: np.ndarray, energy: np.ndarray, rng: np.random.Generator) -> Advance:
        """n_moves moves of every rung of R ladders, exchanges between and around them."""
        x, u, n_steps = positions.copy(), energy.copy(), 0
        moves = np.zeros((*u.shape[:2], 3), dtype=np.int64)
        exchanges = np.zeros((len(u), self.n_rungs - 1, 2), dtype=np.int64)
        turns = np.zeros((*u.shape[:2], 2), dtype=np.int64)

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
        flat, energy, beta = x.reshape(-1, *x.shape[2:]), self._parts_of(u), np.tile(self.beta, (len(x), 1))
        momenta_K = np.tile(self.momenta_K, len(x))
        start = draw_velocities(len(flat), self.masses, momenta_K, rng)
        log_u = np.log(rng.random(len(flat)))
        n_steps = int(rng.integers(1, 2 * self.move_steps))
        scale = (np.tile(self.scale, (len(x), 1)),) if self.in_parts else ()
        end, velocities = self.carry(flat, start, self.masses, self.dt_ps, n_steps, *scale)
        end_energy = self._parts(end)
        with np.errstate(all="ignore"):
            kinetic = kinetic_energy(velocities, self.masses) - kinetic_energy(start, self.masses)
            change = (beta * (end_energy - energy)).sum(axis=1) + kinetic / kT(momenta_K)
        agreed = log_u < -np.where(np.isfinite(change), change, np.inf)
        moves[..., 0] += 1
        if self.inside is not None and agreed.any():
            rows = np.flatnonzero(agreed)
            agreed[rows] = self.inside(end[rows])
            moves.reshape(-1, 3)[rows[~agreed[rows]], 2] += 1
        flat[agreed], energy[agreed] = end[agreed], end_energy[agreed]
        moves[..., 1] += agreed.reshape(moves.shape[:2])
        return n_steps

    def _turn(self, x: np.ndarray, u: np.ndarray, turns: np.ndarray, rng: np.random.Generator) -> None:
        """Turns of every rung, in place."""
        if self.turns is None:
            return
        flat, energy, beta = x.reshape(-1, *x.shape[2:]), self._parts_of(u), np.tile(self.beta, (len(x), 1))
        floor = self.turns.floor_kJ_per_mol
        for _ in range(self.turns.n):
            end = self.turns.propose(flat, rng)
            log_u = np.log(rng.random(len(flat)))
            end_energy = self._parts(end)
            with np.errstate(all="ignore"):
                agreed = ((log_u < -(beta * (end_energy - energy)).sum(axis=1)) & (end_energy.sum(axis=1) >= floor)
                          & (energy.sum(axis=1) >= floor))
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
        energy, first = u.reshape(len(u), self.n_rungs, -1), rng.integers(2, size=len(u))
        for parity in (first, 1 - first):
            order, swapped = exchange(np.einsum("ik,ljk->lij", self.beta, energy), parity, rng)
            energy[:] = np.take_along_axis(energy, order[..., None], axis=1)
            x[:] = np.take_along_axis(x, order[..., None, None], axis=1)
            exchanges[..., 0] += swapped >= 0
            exchanges[..., 1] += swapped == 1
