"""The network's own dynamics; the truth at the end of each macro-step is recorded, not applied."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field

from kstep.config import Positive
from kstep.errors import UserError
from kstep.scheme_traits import SchemeTraits
from kstep.schemes.arrival import arrive
from kstep.schemes.base import RunConfig, Scheme
from kstep.schemes.state import Info, Proposal, State, put_rows


class CheckedConfig(RunConfig):
    """The keys of checked."""

    max_energy_spread_kJ_per_mol: Positive | None = Field(None, description="tolerance of the spread of E_true - E_ML")
    max_force_rmse_kJ_per_mol_A: Positive | None = Field(None, description="tolerance of the network's force error")
    past_tolerance: Literal["stop", "learn"] = Field("stop", description="what happens past a tolerance")


class Checked(Scheme):
    """k velocity-Verlet steps on the network's conservative force; energy and force of the true
    potential at the end stand beside the network's and change nothing.

    The ensemble is the network's.  How far that is from the true one is what the certificate says
    (kstep.runs.certificate): mean and spread of E_true - E_ML, and the force error.
    """

    name = "checked"
    traits = SchemeTraits(head="energy", ensemble="network")
    Config = CheckedConfig
    default_fs = 16.0

    @classmethod
    def settle_defaults(cls, config, checkpoint, baseline) -> dict:
        """16 fs; something that moves it, and something to learn past."""
        if config.past_tolerance == "learn" and not (config.max_energy_spread_kJ_per_mol
                                                     or config.max_force_rmse_kJ_per_mol_A):
            raise UserError("past_tolerance: learn needs a tolerance; set max_energy_spread_kJ_per_mol or "
                            "max_force_rmse_kJ_per_mol_A")
        if config.delta_scale == 0:
            raise UserError("checked moves by the network's force alone, so delta_scale 0 leaves it none; use impulse "
                            "for a run without a network")
        return super().settle_defaults(config, checkpoint, baseline)

    @classmethod
    def caveats(cls, config) -> list[str]:
        """Its ensemble."""
        return ["checked follows the network's force, so its ensemble is the network's; E_true - E_ML and the "
                "force error say how near that is to the true one"]

    def propose(self, state: State, info: Info, rng: np.random.Generator) -> Proposal:
        """k timesteps of the network's dynamics for every pending replica."""
        rows = np.flatnonzero(info.pending)
        positions, velocities = self.carry(state.positions[rows], state.velocities[rows], self.masses, self.dt_ps,
                                           self.k_steps)
        return land(self.network, rows, positions, velocities, info.pending[rows])

    def settle(self, state: State, info: Info, proposal: Proposal, truth,
               rng: np.random.Generator) -> tuple[State, Info]:
        """Record the truth beside the network's energy and force."""
        return arrive_beside(self.name, state, info, proposal, truth, proposal.velocities)


def land(network, rows, positions, velocities, span) -> Proposal:
    """A proposal that carries the network's own energy and force at its end."""
    energy, forces = network.energy_and_forces(positions)
    return Proposal(rows, positions, velocities, span, {"network_energy": energy, "network_forces": forces})


def arrive_beside(name: str, state: State, info: Info, proposal: Proposal, truth,
                  velocities: np.ndarray) -> tuple[State, Info]:
    """The end of a macro-step, with the network's energy and force there beside the true ones."""
    rows = proposal.rows
    arrived, info = arrive(name, state, info, proposal, truth, velocities,
                           way_out="use fewer --k-steps, or a network trained on more of what the molecule does")
    arrived = replace(arrived, network_energy=_or_unknown(state.network_energy, state.energy),
                      network_forces=_or_unknown(state.network_forces, state.forces))
    return (put_rows(arrived, rows, **proposal.extra),
            put_rows(info, rows, inner_steps=info.inner_steps[rows] + proposal.span))


def known_network_forces(network, state: State, rows: np.ndarray) -> np.ndarray:
    """The network's forces at the positions of `rows`, asked for only where the state lacks them."""
    forces = _or_unknown(state.network_forces, state.forces)[rows]
    unknown = np.isnan(forces).any(axis=(1, 2))
    if unknown.any():
        forces[unknown] = network.energy_and_forces(state.positions[rows[unknown]])[1]
    return forces


def _or_unknown(array: np.ndarray, like: np.ndarray) -> np.ndarray:
    return array if array.shape == like.shape else np.full(like.shape, np.nan)
