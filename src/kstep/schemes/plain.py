"""Plain velocity Verlet with the true force at every step: the honest competitor."""

from __future__ import annotations

import numpy as np

from kstep.errors import UserError
from kstep.scheme_traits import SchemeTraits
from kstep.schemes.arrival import arrive
from kstep.schemes.base import Scheme
from kstep.schemes.state import Info, Proposal, State
from kstep.units import PS_PER_FS


class Plain(Scheme):
    """Half a kick and a drift before the true call, half a kick after it.

        v_1/2 = v_0 + dt/2 F(x_0)/m;   x_1 = x_0 + dt v_1/2;   v_1 = v_1/2 + dt/2 F(x_1)/m
    """

    name = "plain"
    traits = SchemeTraits(head=None)

    def __init__(self, masses: np.ndarray, dt_ps: float):
        super().__init__(None, None, masses, dt_ps, 1)

    @classmethod
    def settle_defaults(cls, config, checkpoint, baseline) -> dict:
        """One timestep of the baseline."""
        if config.k_steps not in (None, 1):
            raise UserError("plain asks the true force at every step, so k is 1; for longer steps set dt_fs")
        return super().settle_defaults(config, checkpoint, baseline)

    @classmethod
    def build(cls, config, molecule, *, network, carry, masses, needs_forces) -> Plain:
        """It needs no network."""
        return cls(molecule.masses, config.dt_fs * PS_PER_FS)

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
