"""Parallel tempering: replicas at a ladder of temperatures exchange their configurations exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kstep.schemes.state import State
from kstep.units import kT


@dataclass(frozen=True)
class TemperatureLadder:
    """Rungs at temperatures_K, the target first; replica r stands on rung r mod n_rungs.

    Neighbouring rungs i and j of one ladder exchange configurations with

        min(1, exp[(1/kT_i - 1/kT_j) (U_i - U_j)]),   U the true potential,

    which leaves the Boltzmann distribution of every rung as it is: Swendsen & Wang, Phys. Rev. Lett.
    57, 2607 (1986); Earl & Deem, PCCP 7, 3910 (2005), eq. 4.  Even pairs (0-1, 2-3) and odd pairs
    (1-2, ...) take turns.  Positions, energy and forces move; momenta belong to the rung.
    """

    temperatures_K: tuple[float, ...]

    @property
    def n_rungs(self) -> int:
        """How many temperatures the ladder has."""
        return len(self.temperatures_K)

    def of(self, n_replicas: int) -> np.ndarray:
        """Temperature (R,) in K of each replica."""
        return np.resize(np.asarray(self.temperatures_K, dtype=np.float64), n_replicas)

    def swap(self, state: State, turn: int, rng: np.random.Generator) -> tuple[State, np.ndarray]:
        """Offer every second pair of neighbours an exchange; `turn` even or odd says which pairs.

        Beside the state: (R,) 1 where the lower rung of a pair took the upper's configuration, 0 where it
        kept its own, -1 where it was not asked.
        """
        swapped = np.full(state.n_replicas, -1, dtype=np.int8)
        rung = np.arange(state.n_replicas) % self.n_rungs
        lower = np.flatnonzero((rung % 2 == turn % 2) & (rung < self.n_rungs - 1))
        if not len(lower):
            return state, swapped
        beta = 1.0 / kT(self.of(state.n_replicas))
        upper = lower + 1
        log_ratio = (beta[lower] - beta[upper]) * (state.energy[lower] - state.energy[upper])
        agreed = np.log(rng.random(len(lower))) < log_ratio
        order = np.arange(state.n_replicas)
        order[lower[agreed]], order[upper[agreed]] = upper[agreed], lower[agreed]
        swapped[lower] = agreed
        return replace(state, positions=state.positions[order], energy=state.energy[order],
                       forces=state.forces[order]), swapped


def ladder_of(config) -> TemperatureLadder:
    """The rungs of a run with this HybridConfig: one at its temperature, or those of tempering_K."""
    return TemperatureLadder(tuple(config.tempering_K or (config.temperature_K,)))
