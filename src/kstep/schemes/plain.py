"""Plain velocity Verlet with the true force at every step: the honest competitor."""

from __future__ import annotations

import numpy as np

from kstep.schemes.arrival import arrive
from kstep.schemes.state import Info, Proposal, State


class Plain:
    """Half a kick and a drift before the true call, half a kick after it.

        v_1/2 = v_0 + dt/2 F(x_0)/m;   x_1 = x_0 + dt v_1/2;   v_1 = v_1/2 + dt/2 F(x_1)/m
    """

    name = "plain"
    k_steps = 1
    is_thermostatted = False

    def __init__(self, masses: np.ndarray, dt_ps: float):
        self.masses = np.asarray(masses, dtype=np.float64)
        self.dt_ps = dt_ps

    def propose(self, state: State, info: Info, rng: np.random.Generator) -> Proposal:
        """One timestep for every pending replica."""
        rows = np.flatnonzero(info.pending)
        velocities = state.velocities[rows] + 0.5 * self.dt_ps * state.forces[rows] / self.masses[:, None]
        positions = state.positions[rows] + self.dt_ps * velocities
        return Proposal(rows, positions, velocities, np.ones(len(rows), dtype=np.int64))

    def settle(self, state: State, info: Info, proposal: Proposal, truth,
               rng: np.random.Generator) -> tuple[State, Info]:
        """Close the step with the true force; a step without one cannot go on."""
        kick = 0.5 * self.dt_ps * truth.forces / self.masses[:, None]
        return arrive(self.name, state, info, proposal, truth, proposal.velocities + kick,
                      way_out="use a smaller dt_fs or check the start geometry")
