"""Many cheap steps on the network's force between two kicks with what it lacks (r-RESPA)."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from kstep.scheme_traits import SchemeTraits
from kstep.schemes.base import RunConfig, Scheme
from kstep.schemes.checked import arrive_beside, known_network_forces, land
from kstep.schemes.projection import StretchAndBendProjection
from kstep.schemes.state import Info, Proposal, State
from kstep.units import PS_PER_FS


class ImpulseConfig(RunConfig):
    """The keys of impulse."""

    project_residual: bool = Field(False, description="kicks that change no bond length or angle distance")


class Impulse(Scheme):
    """Half a kick with the residual force, k velocity-Verlet steps with the network's, half a kick.

        v <- v + (k dt/2) [F_true(x_0) - F_ML(x_0)] / m
        (x, v) <- k velocity-Verlet steps of dt on F_ML
        v <- v + (k dt/2) [F_true(x_k) - F_ML(x_k)] / m

    A symmetric product of maps that each preserve volume: time-reversible and symplectic for any
    conservative network.  With k = 1, or without residual, it is velocity Verlet on the true force.
    Tuckerman, Berne, Martyna, J. Chem. Phys. 97, 1990 (1992), eq. 2.21.

    `project`, if given, takes (residual (R,N,3), positions (R,N,3)) and returns what of it is
    applied; a kick that is no gradient keeps the map reversible, but not symplectic.
    """

    name = "impulse"
    traits = SchemeTraits(head="energy", warm_start=False)
    Config = ImpulseConfig
    default_fs = 2.0

    def __init__(self, network, carry, masses: np.ndarray, dt_ps: float, k_steps: int, project=None):
        super().__init__(network, carry, masses, dt_ps, k_steps)
        self.project = project

    @classmethod
    def build(cls, config, molecule, *, network, carry, masses, needs_forces) -> Impulse:
        """With or without the projection."""
        project = StretchAndBendProjection(molecule.bonds, molecule.masses) if config.project_residual else None
        return cls(network, carry, molecule.masses, config.dt_fs * PS_PER_FS, config.k_steps, project)

    @classmethod
    def caveats(cls, config) -> list[str]:
        """A projected kick is no gradient."""
        return ["the kicks were projected off bond lengths and angle distances: the map is reversible but not "
                "symplectic, and the run samples neither the true potential nor the network's exactly"
                ] if config.project_residual else []

    def _half_kick(self, true_forces, network_forces, positions) -> np.ndarray:
        residual = true_forces - network_forces
        if self.project is not None:
            residual = self.project(residual, positions)
        return 0.5 * self.k_steps * self.dt_ps * residual / self.masses[:, None]

    def propose(self, state: State, info: Info, rng: np.random.Generator) -> Proposal:
        """The opening kick and k timesteps of the network's dynamics for every pending replica."""
        rows = np.flatnonzero(info.pending)
        positions = state.positions[rows]
        network_forces = known_network_forces(self.network, state, rows)
        velocities = state.velocities[rows] + self._half_kick(state.forces[rows], network_forces, positions)
        positions, velocities = self.carry(positions, velocities, self.masses, self.dt_ps, self.k_steps)
        return land(self.network, rows, positions, velocities, info.pending[rows])

    def settle(self, state: State, info: Info, proposal: Proposal, truth,
               rng: np.random.Generator) -> tuple[State, Info]:
        """The closing kick."""
        kick = 0.0
        if not truth.failed.any():
            kick = self._half_kick(truth.forces, proposal.extra["network_forces"], proposal.positions)
        return arrive_beside(self.name, state, info, proposal, truth, proposal.velocities + kick)
