"""Geometries that a network's own dynamics visits: they cost no true call."""

from __future__ import annotations

import logging

import numpy as np

from kstep.dynamics.carry import Carrier
from kstep.dynamics.maxwell import draw_velocities
from kstep.errors import UserError
from kstep.units import PS_PER_FS, kT

log = logging.getLogger("kstep")

REPLICAS = 32
HYDROGEN_MASS_DA = 4.0  # any masses give the same geometries; these allow the timestep
TIMESTEP_FS = 1.0
SPACING_STEPS = 20  # between frames: bonds and angles have turned round
FRAMES_PER_DRAW = 5  # then velocities are drawn anew


def calls_for(n_frames: int) -> int:
    """Force evaluations, of REPLICAS molecules each, that n_frames take."""
    return -(-n_frames // (REPLICAS * FRAMES_PER_DRAW)) * FRAMES_PER_DRAW * (SPACING_STEPS + 1)


def explore(network, start: np.ndarray, numbers, masses, temperature_K: float, n_frames: int,
            rng: np.random.Generator) -> np.ndarray:
    """About n_frames geometries (F,N,3) nm of velocity Verlet under the network's force at temperature_K.

    start (S,N,3): geometries the network was trained on, from which replicas begin.  A replica
    whose energy leaves the range of `start` by more than twice the heat of all atoms, 3N kT, has
    fallen into a hole of the network: its stretch is thrown away and it begins anew elsewhere.
    Raises UserError when most stretches end so.
    """
    masses = np.where(np.asarray(numbers) == 1, HYDROGEN_MASS_DA, masses)
    carry, dt_ps = Carrier(network), TIMESTEP_FS * PS_PER_FS
    known = np.concatenate([network.energy_and_forces(part)[0] for part in np.array_split(start, -(-len(start) // REPLICAS))])
    heat = 3.0 * len(masses) * kT(temperature_K)
    low, high = known.min() - heat, known.max() + heat
    n_replicas = min(REPLICAS, n_frames)
    n_draws = -(-n_frames // (n_replicas * FRAMES_PER_DRAW))
    x = start[rng.integers(len(start), size=n_replicas)]
    kept, lost = [], 0
    for _ in range(n_draws):
        v, stretch, sound = draw_velocities(n_replicas, masses, temperature_K, rng), [], np.ones(n_replicas, dtype=bool)
        for _ in range(FRAMES_PER_DRAW):
            x, v = carry(x, v, masses, dt_ps, SPACING_STEPS)
            with np.errstate(all="ignore"):
                energy = network.energy_and_forces(x)[0]
            sound &= (energy > low) & (energy < high)  # NaN is not
            stretch.append(x)
        kept += [frames[sound] for frames in stretch]
        lost += int((~sound).sum())
        x[~sound] = start[rng.integers(len(start), size=int((~sound).sum()))]
    if 2 * lost > n_replicas * n_draws:
        raise UserError(f"the network's dynamics at {temperature_K:g} K leaves what it was trained on in {lost} of "
                        f"{n_replicas * n_draws} stretches; lower distill_temperature_K, or train it longer")
    log.info("%d geometries at %g K from %d stretches of the network's dynamics, %d of them thrown away",
             sum(map(len, kept)), temperature_K, n_replicas * n_draws, lost)
    return np.concatenate(kept)[:n_frames]
