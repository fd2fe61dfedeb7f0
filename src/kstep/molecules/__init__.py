"""Classical force fields: an RDKit molecule with explicit hydrogens -> openmm.System."""

from __future__ import annotations

import openmm
from rdkit import Chem

from kstep.errors import UserError, did_you_mean

DEFAULT = "mmff94"
EXAMPLES = ("mmff94", "mmff94s", "openff_unconstrained-2.2.1.offxml", "gaff-2.11")


def check_force_field(force_field: str) -> None:
    """Raise UserError (a ValueError) unless the name is one that build_system understands."""
    if not (force_field in EXAMPLES or force_field.endswith(".offxml") or force_field.startswith("gaff-")):
        raise UserError(f"unknown force field '{force_field}'{did_you_mean(force_field.lower(), EXAMPLES)}")


def build_system(molecule: Chem.Mol, force_field: str = DEFAULT) -> openmm.System:
    """Build the System of one isolated molecule, atoms in RDKit's order.

    `force_field` is mmff94, mmff94s, an OpenFF file (*.offxml) or gaff-<version>; the last two
    need openff-toolkit.  No constraints, real masses, no cutoff, no centre-of-mass remover.
    Raises UserError for an unknown name, missing parameters or a missing package.
    """
    check_force_field(force_field)
    if force_field.startswith("mmff"):
        from kstep.molecules.mmff94 import build_mmff_system

        return build_mmff_system(molecule, variant=force_field.replace("mmff", "MMFF"))

    from kstep.molecules.openff import build_gaff_system, build_openff_system

    build = build_openff_system if force_field.endswith(".offxml") else build_gaff_system
    return build(molecule, force_field)
