"""The scheme of a run, from its settings."""

from __future__ import annotations

import numpy as np

from kstep.runs.sampler import ladder_of
from kstep.runs.settings import HybridRun
from kstep.schemes import Checked, Impulse, Jump, Metropolis, Plain
from kstep.schemes.jump import JumpLimits
from kstep.schemes.projection import StretchAndBendProjection
from kstep.units import PS_PER_FS


def build_scheme(run: HybridRun, network, carry, masses):
    """The scheme object of a run; masses (N,) Da are the sampler's (metropolis)."""
    hybrid, molecule = run.hybrid, run.molecule
    dt_ps = hybrid.dt_fs * PS_PER_FS
    if hybrid.scheme == "plain":
        return Plain(molecule.masses, dt_ps)
    if hybrid.scheme == "metropolis":
        return Metropolis(carry, masses, dt_ps, hybrid.k_steps, hybrid.temperature_K, length_law=hybrid.length_law,
                          ladder=ladder_of(hybrid), needs_forces=run.keeps_forces)
    if hybrid.scheme == "impulse":
        project = StretchAndBendProjection(molecule.bonds, molecule.masses) if hybrid.project_residual else None
        return Impulse(network, carry, molecule.masses, dt_ps, hybrid.k_steps, project)
    if hybrid.scheme == "checked":
        return Checked(network, carry, molecule.masses, dt_ps, hybrid.k_steps)
    first = molecule.conformers[0]
    lengths = np.linalg.norm(first[molecule.bonds[:, 0]] - first[molecule.bonds[:, 1]], axis=-1)
    limits = JumpLimits(hybrid.max_disp_nm, lengths + hybrid.max_bond_stretch_nm,
                        hybrid.max_energy_jump_kJ_per_mol, hybrid.max_attempts)
    return Jump(network, molecule.masses, molecule.bonds, dt_ps, hybrid.k_steps, limits, hybrid.energy_rescale)
