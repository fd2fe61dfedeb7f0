"""Delayed acceptance: a cheaper truth judges what the network proposes, and only what it takes reaches the dear one.

With U_0 the network's energy, U_1 a cheaper truth's and U_2 the truth's, each step of the network's ladder is accepted
with

    a_1 = min(1, exp(-[(U_1 - U_0)(y) - (U_1 - U_0)(x)]/kT)),

or goes back whole: a kernel that is reversible for exp(-U_1/kT), as `nested` is with one truth.  So is the same number
of such steps in a row, which is all that whoever judges the result on U_2 - U_1 relies on.  n = 1 is delayed
acceptance as Christen & Fox, J. Comput. Graph. Stat. 14, 795 (2005) have it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kstep.schemes.network_ladder import Advance, NetworkLadder
from kstep.schemes.state import has_moved, put
from kstep.units import kT


class DelayedLadder:
    """A NetworkLadder whose coldest rung follows a cheaper truth: the same questions, other answers.

    Its energies have one column more than the network's, the last: U_1 - U_0 where it was asked, on the coldest rung,
    so that `total` there is U_1; 0 on the others, which follow the network still.  A start has inf: the first step of
    all is taken as it is, as in `nested`.
    """

    in_parts = True
    network: Any
    carry: Any
    masses: np.ndarray
    dt_ps: float
    temperatures_K: tuple[float, ...]
    n_rungs: int
    inside: Callable[[np.ndarray], np.ndarray] | None

    def __init__(self, ladder: NetworkLadder | DelayedLadder, pool, n_steps: int):
        """ladder: the network's, or one that a still cheaper truth judges; pool: of the cheaper truth, an energy of
        which depends on x alone; n_steps: to a call of the dear one.
        """
        self.ladder, self.pool, self.n_steps = ladder, pool, n_steps
        self.network, self.carry, self.masses, self.dt_ps = ladder.network, ladder.carry, ladder.masses, ladder.dt_ps
        self.temperatures_K, self.n_rungs, self.inside = ladder.temperatures_K, ladder.n_rungs, ladder.inside

    def energy(self, positions: np.ndarray) -> np.ndarray:
        """Energies (R,m,p+1) kJ/mol of starts (R,m,N,3) nm."""
        gap = np.zeros(positions.shape[:2])
        gap[:, 0] = np.inf
        return self._with(self.ladder.energy(positions), gap)

    def total(self, energy: np.ndarray) -> np.ndarray:
        """Energy (...) kJ/mol of what the configurations (...) follow; energy (...,p+1)."""
        return self.ladder.total(self._networks(energy)) + energy[..., -1]

    def advance(self, positions: np.ndarray, energy: np.ndarray, rng: np.random.Generator) -> Advance:
        """n_steps of the network's ladder (R,m,N,3), each judged on the cheaper truth; counts are of all of them."""
        x, u, gap, beta = positions, self._networks(energy), energy[:, 0, -1], 1.0 / kT(self.temperatures_K[0])
        asked, led_all = np.zeros((len(x), 2), dtype=np.int64), []
        for _ in range(self.n_steps):
            # the dice are cast here, before the answer is known
            log_u = np.log(rng.random(len(x)))
            led = self.ladder.advance(x, u, rng)
            moved = has_moved(led.positions[:, 0], x[:, 0])
            new = self._gap(led, gap, moved)
            with np.errstate(invalid="ignore"):
                accepted = log_u < -beta * (new - gap)
            accepted |= ~moved  # elsewhere than on the coldest rung something may have
            asked += np.stack([moved, moved & accepted], axis=1)
            x, u, gap = (np.where(accepted.reshape(-1, *[1] * (old.ndim - 1)), now, old)
                         for now, old in ((led.positions, x), (led.energy, u), (new, gap)))
            led_all.append(led)
        gaps = np.zeros(x.shape[:2])
        gaps[:, 0] = gap
        moves, exchanges, turns = (np.sum([getattr(led, name) for led in led_all], axis=0)
                                   for name in ("moves", "exchanges", "turns"))
        return Advance(x, self._with(u, gaps), sum(led.n_steps for led in led_all), moves, exchanges, turns, asked)

    def _gap(self, led: Advance, gap: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """U_1 - U_0 (R,) kJ/mol where the coldest rung has been led to, inf where there is no number."""
        rows = np.flatnonzero(moved)
        truth = self.pool.evaluate(led.positions[rows, 0], rows, want_forces=False)
        with np.errstate(all="ignore"):
            found = truth.energy - self.ladder.total(led.energy[rows, 0])
        return put(gap, rows, np.where(np.isfinite(found), found, np.inf))

    def _networks(self, energy: np.ndarray) -> np.ndarray:
        """What of energies (...,p+1) is the network's, as it gives them."""
        return energy[..., :-1] if self.ladder.in_parts else energy[..., 0]

    def _with(self, energy: np.ndarray, gap: np.ndarray) -> np.ndarray:
        """Energies of the network and the column beside them."""
        parts = energy if self.ladder.in_parts else energy[..., None]
        return np.concatenate([parts, gap[..., None]], axis=-1)
