"""One network call carries the molecule k timesteps; the true force closes the last half-kick."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from kstep.config import Count, Positive
from kstep.errors import UserError
from kstep.scheme_traits import SchemeTraits
from kstep.schemes.base import RunConfig, Scheme
from kstep.schemes.plain import Plain
from kstep.schemes.state import Info, Proposal, State, kinetic_energy, put_rows
from kstep.units import PS_PER_FS


@dataclass(frozen=True)
class JumpLimits:
    """When a jump is refused; see configs/hybrid.yaml.

    max_disp_nm: farthest an atom may move; max_bond_nm (B,): longest each bond may get;
    max_energy_jump: largest change of the true total energy, kJ/mol; max_attempts: jumps tried
    before the stretch is done by plain dynamics.
    """

    max_disp_nm: float
    max_bond_nm: np.ndarray
    max_energy_jump: float
    max_attempts: int


class JumpConfig(RunConfig):
    """The keys of jump."""

    max_attempts: Count = Field(3, description="jumps tried before plain steps take over")
    max_disp_nm: Positive = Field(0.1, description="farthest an atom may move in a jump")
    max_bond_stretch_nm: Positive = Field(0.05, description="how far a bond may exceed its length at the start")
    max_energy_jump_kJ_per_mol: Positive = Field(20.0, description="largest change of the true total energy in a jump")
    energy_rescale: bool = Field(False, description="velocities rescaled to the old total energy, which hides drift")


class Jump(Scheme):
    """From (x_0, v_0, F_true(x_0)) the network gives x_k and v_{k-1/2}; then one true call and

        v_k = v_{k-1/2} + dt/2 F_true(x_k)/m

    with dt the baseline timestep; k = 1 without a learned correction is `plain`.  A refused jump
    is tried again over half the time, then half again; after `max_attempts` the rest of the
    macro-step is done by plain steps.  Every attempt is a true call.  The map is neither
    reversible nor conservative: no ensemble is promised.
    """

    name = "jump"
    traits = SchemeTraits(head="jump", ensemble="none", counters={
        "refused_jumps": "jumps refused", "plain_steps": "timesteps done by plain dynamics"})
    Config = JumpConfig

    def __init__(self, network, masses: np.ndarray, bonds: np.ndarray, dt_ps: float, k_steps: int,
                 limits: JumpLimits, energy_rescale: bool = False):
        if k_steps not in network.spans:
            raise ValueError(f"the network jumps {network.spans} timesteps, not {k_steps}")
        super().__init__(network, None, masses, dt_ps, k_steps)
        self.bonds = np.asarray(bonds, dtype=np.int64).reshape(-1, 2)
        self.limits, self.energy_rescale = limits, energy_rescale
        self.spans = sorted((s for s in network.spans if s <= k_steps), reverse=True)
        self._plain = Plain(masses, dt_ps)

    @classmethod
    def settle_defaults(cls, config, checkpoint, baseline) -> dict:
        """The timestep and length that the network was trained for."""
        k_steps, dt_fs = config.k_steps or checkpoint["k_steps"], config.dt_fs or checkpoint["dt_fs"]
        if abs(dt_fs - checkpoint["dt_fs"]) > 1e-9:
            raise UserError(f"the checkpoint jumps timesteps of {checkpoint['dt_fs']} fs, not {dt_fs} fs")
        if k_steps not in checkpoint["spans"]:
            raise UserError(f"the checkpoint jumps k = {checkpoint['k_steps']} timesteps, not {k_steps}; "
                            f"use --k-steps {checkpoint['k_steps']} or train on dataset_k{k_steps}.npz")
        return {"k_steps": k_steps, "dt_fs": dt_fs}

    @classmethod
    def build(cls, config, molecule, *, network, carry, masses, needs_forces) -> Jump:
        """Its limits, from the first conformer."""
        first = molecule.conformers[0]
        lengths = np.linalg.norm(first[molecule.bonds[:, 0]] - first[molecule.bonds[:, 1]], axis=-1)
        limits = JumpLimits(config.max_disp_nm, lengths + config.max_bond_stretch_nm,
                            config.max_energy_jump_kJ_per_mol, config.max_attempts)
        return cls(network, molecule.masses, molecule.bonds, config.dt_fs * PS_PER_FS, config.k_steps, limits,
                   config.energy_rescale)

    def count(self, info: Info) -> dict:
        """Jumps refused, and timesteps that plain dynamics did."""
        return {"refused_jumps": int(info.failures.sum()), "plain_steps": int((self.k_steps - info.inner_steps).sum())}

    @classmethod
    def progress(cls, sums: dict) -> str:
        """Refused so far."""
        return f"refused {sums['refused_jumps']}"

    def _spans_to_try(self, info: Info, rows: np.ndarray) -> np.ndarray:
        """Timesteps of the next jump of each replica; 0 where plain dynamics must do it."""
        wanted = self.k_steps >> info.failures[rows]
        span = np.zeros(len(rows), dtype=np.int64)
        for length in self.spans:  # longest first: take the longest trained span that fits
            fits = (span == 0) & (length <= wanted) & (length <= info.pending[rows])
            span[fits] = length
        span[info.failures[rows] >= self.limits.max_attempts] = 0
        return span

    def propose(self, state: State, info: Info, rng: np.random.Generator) -> Proposal:
        """A jump, or a plain step where jumping was given up, for every pending replica."""
        plain = self._plain.propose(state, info, rng)
        rows = plain.rows
        span = self._spans_to_try(info, rows)
        positions, velocities = plain.positions, plain.velocities
        jumping = span > 0
        if jumping.any():
            chosen = rows[jumping]
            positions[jumping], velocities[jumping] = self.network.jump(
                state.positions[chosen], state.velocities[chosen], state.forces[chosen], span[jumping])
        return Proposal(rows, positions, velocities, np.where(jumping, span, 1), {"jumping": jumping})

    def _refused(self, state: State, proposal: Proposal, truth, velocities) -> np.ndarray:
        rows, limits = proposal.rows, self.limits
        with np.errstate(invalid="ignore", over="ignore"):
            moved = np.linalg.norm(proposal.positions - state.positions[rows], axis=-1).max(axis=-1)
            length = np.linalg.norm(
                proposal.positions[:, self.bonds[:, 0]] - proposal.positions[:, self.bonds[:, 1]], axis=-1)
            before = state.energy[rows] + kinetic_energy(state.velocities[rows], self.masses)
            after = truth.energy + kinetic_energy(velocities, self.masses)
            fine = ((moved <= limits.max_disp_nm) & (length <= limits.max_bond_nm).all(axis=-1)
                    & (np.abs(after - before) <= limits.max_energy_jump))
        return ~fine | truth.failed  # NaN compares false, so it is refused

    def settle(self, state: State, info: Info, proposal: Proposal, truth,
               rng: np.random.Generator) -> tuple[State, Info]:
        """Close the last half-kick where the landing is sound; leave the rest to a shorter retry."""
        jumping = proposal.extra["jumping"]
        velocities = proposal.velocities + 0.5 * self.dt_ps * truth.forces / self.masses[:, None]
        refused = jumping & self._refused(state, proposal, truth, velocities)
        if self.energy_rescale:
            velocities = self._rescale(info, proposal, truth, velocities, jumping & ~refused)
        done, rows = ~refused, proposal.rows
        state, info = self._plain.settle(
            state, info, Proposal(rows[done], proposal.positions[done], proposal.velocities[done], proposal.span[done]),
            _rows_of(truth, done), rng)
        back, jumped = rows[refused], rows[done & jumping]
        info = put_rows(info, back, attempts=info.attempts[back] + 1, failures=info.failures[back] + 1, accepted=False)
        info = put_rows(info, jumped, inner_steps=info.inner_steps[jumped] + proposal.span[done & jumping])
        return put_rows(state, rows[done], velocities=velocities[done]), info

    def _rescale(self, info, proposal, truth, velocities, chosen):
        """Scale velocities back to the true total energy at the start of the macro-step."""
        kinetic = kinetic_energy(velocities, self.masses)
        wanted = info.energy_start[proposal.rows] - truth.energy
        factor = np.ones(len(kinetic))
        possible = chosen & (wanted > 0) & (kinetic > 0)
        factor[possible] = np.sqrt(wanted[possible] / kinetic[possible])
        return velocities * factor[:, None, None]


def _rows_of(truth, chosen):
    """The answers of some rows of a Truth."""
    messages = tuple(np.array(truth.messages, dtype=object)[chosen]) if truth.messages else ()
    return type(truth)(truth.energy[chosen], truth.forces[chosen], truth.failed[chosen], messages,
                       {name: values[chosen] for name, values in truth.extra.items()})
