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
        beta = 1.0 / kT(np.array(self.temperatures_K))
        reduced = beta[:, None] * state.energy.reshape(-1, 1, self.n_rungs)
        parity = np.full(len(reduced), turn)
        order, swapped = exchange(reduced, parity, rng)
        rows = (np.arange(len(reduced))[:, None] * self.n_rungs + order).ravel()
        swapped = np.concatenate([swapped, np.full((len(reduced), 1), -1, dtype=np.int8)], axis=1)
        return replace(state, positions=state.positions[rows], energy=state.energy[rows],
                       forces=state.forces[rows], dipole=state.dipole[rows] if len(state.dipole) else state.dipole
                       ), swapped.ravel()


def exchange(reduced: np.ndarray, parity: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Offer every second pair of neighbours of L ladders an exchange of their configurations, agreed to with

        min(1, exp[u_i(x_i) + u_j(x_j) - u_i(x_j) - u_j(x_i)]),   u_i the reduced energy of rung i.

    reduced (L,m,m): [l,i,j] is u_i of the configuration on rung j, E_j/kT_i on a ladder of temperatures; parity (L,):
    even or odd says which pairs of a ladder.  Returns order (L,m), the rung whose configuration each takes, and swapped
    (L,m-1): 1 where a pair agreed, 0 where it did not, -1 where it was not asked.  Sugita, Kitao & Okamoto, J. Chem.
    Phys. 113, 6042 (2000), eq. 15.
    """
    n_ladders, n_rungs = reduced.shape[:2]
    order = np.tile(np.arange(n_rungs), (n_ladders, 1))
    swapped = np.full((n_ladders, n_rungs - 1), -1, dtype=np.int8)
    ladder, lower = np.nonzero(np.arange(n_rungs - 1) % 2 == parity[:, None] % 2)
    upper = lower + 1
    # differences of one rung's energies first: they are small where the energies themselves are not
    log_ratio = ((reduced[ladder, lower, lower] - reduced[ladder, lower, upper])
                 + (reduced[ladder, upper, upper] - reduced[ladder, upper, lower]))
    agreed = np.log(rng.random(len(lower))) < log_ratio
    swapped[ladder, lower] = agreed
    ladder, lower = ladder[agreed], lower[agreed]
    order[ladder, lower], order[ladder, lower + 1] = lower + 1, lower
    return order, swapped


def rungs_between(low_K: float, high_K: float, n_atoms: int, agreement: float = 0.28) -> tuple[float, ...]:
    """Temperatures from low_K to high_K at one ratio, such that neighbours agree to about that share of exchanges.

    The 3N - 6 modes of a molecule are taken as harmonic.  Energies of neighbours at a ratio r then differ so that the
    mean of the log acceptance is -mu, mu = (3N - 6) (r - 1)^2 / 2r, its variance 2 mu, and the share that agrees is
    erfc(sqrt(mu)/2), as for any two Gaussian energies.
    """
    if high_K <= low_K:
        return (float(low_K),)
    from scipy.special import erfcinv  # here, since every program knows this module, and SciPy takes half a second
    half_modes = 0.5 * max(1, 3 * n_atoms - 6)
    mu = (2.0 * erfcinv(agreement)) ** 2
    ratio = 1.0 + 0.5 * (mu / half_modes) + np.sqrt(mu / half_modes + 0.25 * (mu / half_modes) ** 2)
    steps = max(1, round(np.log(high_K / low_K) / np.log(ratio)))
    return tuple(float(t) for t in np.round(np.geomspace(low_K, high_K, steps + 1), 1))


def ladder_of(config) -> TemperatureLadder:
    """The rungs of a run with this HybridConfig: one at its temperature, or those of tempering_K."""
    return TemperatureLadder(tuple(config.tempering_K or (config.temperature_K,)))
