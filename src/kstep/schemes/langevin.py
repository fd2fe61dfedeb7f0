"""Langevin thermostat as half-steps around any scheme (the O of O-scheme-O)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from kstep.schemes.maxwell import draw_velocities, remove_centre_of_mass_velocity
from kstep.schemes.state import State


@dataclass(frozen=True)
class LangevinThermostat:
    """Ornstein-Uhlenbeck half-steps on the velocities before and after a macro-step.

        v <- c v + sqrt(1 - c^2) sqrt(kT/m) xi,   c = exp(-friction * duration / 2)

    The noise has no centre-of-mass component, so 3N - 3 degrees of freedom are thermalised.
    OBABO: Bussi & Parrinello, Phys. Rev. E 75, 056707 (2007), eq. 13.
    """

    temperature_K: float
    friction_per_ps: float
    masses: np.ndarray

    def half_step(self, state: State, duration_ps: float, rng: np.random.Generator) -> State:
        """Half of the thermostat's action for a macro-step of `duration_ps`."""
        c = math.exp(-0.5 * self.friction_per_ps * duration_ps)
        noise = draw_velocities(state.n_replicas, self.masses, self.temperature_K, rng)
        velocities = c * state.velocities + math.sqrt(1.0 - c * c) * noise
        return replace(state, velocities=remove_centre_of_mass_velocity(velocities, self.masses))
