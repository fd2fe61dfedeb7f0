"""Geometries that a network's own dynamics visits: they cost no true call."""

from __future__ import annotations

import logging
from itertools import islice

import numpy as np

from kstep.errors import UserError
from kstep.runs.network_dynamics import Carrier, NetworkFrame, network_dynamics
from kstep.units import kT

log = logging.getLogger("kstep")

REPLICAS = 32
HYDROGEN_MASS_DA = 4.0  # any masses give the same geometries; these allow the timestep
TIMESTEP_FS = 1.0
SPACING_STEPS = 20  # between frames: bonds and angles have turned round
FRAMES_PER_DRAW = 5  # then velocities are drawn anew
BOND_MARGIN = 0.15  # of a length, beyond what training showed


def calls_for(n_frames: int) -> int:
    """Force evaluations, of REPLICAS molecules each, that n_frames take."""
    return -(-n_frames // (REPLICAS * FRAMES_PER_DRAW)) * FRAMES_PER_DRAW * (SPACING_STEPS + 1)


class KnownGround:
    """Whether geometries still resemble those a network was trained on; where not, it has dug a hole.

    Energy: within the range of `start` (S,N,3) nm, widened by twice the heat of all atoms, 3N kT.
    Bonds: within BOND_MARGIN of the shortest and longest of each; other pairs: not that much
    closer than the closest of all.
    """

    def __init__(self, network, start, bonds, temperature_K):
        energy = np.concatenate([network.energy_and_forces(part)[0]
                                 for part in np.array_split(start, -(-len(start) // REPLICAS))])
        heat = 3.0 * start.shape[1] * kT(temperature_K)
        self.energy = energy.min() - heat, energy.max() + heat
        first, second = np.triu_indices(start.shape[1], k=1)
        bonded = {tuple(sorted(map(int, bond))) for bond in np.asarray(bonds).reshape(-1, 2)}
        self.pairs = first, second
        self.is_bond = np.array([pair in bonded for pair in zip(first, second)])
        lengths = self._lengths(start)
        shortest = np.where(self.is_bond, lengths.min(0), lengths[:, ~self.is_bond].min(initial=np.inf))
        self.least = shortest * (1 - BOND_MARGIN)
        self.most = np.where(self.is_bond, lengths.max(0) * (1 + BOND_MARGIN), np.inf)

    def _lengths(self, x):
        return np.linalg.norm(x[:, self.pairs[0]] - x[:, self.pairs[1]], axis=-1)

    def holds(self, frame: NetworkFrame) -> np.ndarray:
        """(R,) bool for the replicas of a frame; NaN is not known."""
        with np.errstate(all="ignore"):
            lengths = self._lengths(frame.positions)
            return ((frame.energy > self.energy[0]) & (frame.energy < self.energy[1])
                    & ((lengths > self.least) & (lengths < self.most)).all(1))


def explore(network, start: np.ndarray, numbers, masses, bonds, temperature_K: float, n_frames: int,
            rng: np.random.Generator) -> np.ndarray:
    """About n_frames geometries (F,N,3) nm of velocity Verlet under the network's force at temperature_K.

    start (S,N,3): geometries the network was trained on, from which replicas begin.  A stretch
    that leaves known ground is thrown away and its replica begins anew elsewhere.  Raises UserError
    when most stretches end so.
    """
    masses = np.where(np.asarray(numbers) == 1, HYDROGEN_MASS_DA, masses)
    carry, known = Carrier(network), KnownGround(network, start, bonds, temperature_K)
    n_replicas = min(REPLICAS, n_frames)
    n_draws = -(-n_frames // (n_replicas * FRAMES_PER_DRAW))
    x = start[rng.integers(len(start), size=n_replicas)]
    kept, lost = [], 0
    for _ in range(n_draws):
        frames = network_dynamics(network, carry, x, masses, temperature_K, rng, dt_fs=TIMESTEP_FS,
                                  steps_per_frame=SPACING_STEPS, frames_per_draw=FRAMES_PER_DRAW)
        stretch = list(islice(frames, FRAMES_PER_DRAW))
        sound = np.all([known.holds(frame) for frame in stretch], axis=0)
        kept += [frame.positions[sound] for frame in stretch]
        lost += int((~sound).sum())
        x = stretch[-1].positions.copy()
        x[~sound] = start[rng.integers(len(start), size=int((~sound).sum()))]
    if 2 * lost > n_replicas * n_draws:
        raise UserError(f"the network's dynamics at {temperature_K:g} K leaves what it was trained on in {lost} of "
                        f"{n_replicas * n_draws} stretches; lower distill_temperature_K, or train it longer")
    log.info("%d geometries at %g K from %d stretches of the network's dynamics, %d of them thrown away",
             sum(map(len, kept)), temperature_K, n_replicas * n_draws, lost)
    return np.concatenate(kept)[:n_frames]
