"""Conformers led to where restraints want them, so that no run has to fall there from far up."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdForceFieldHelpers

from kstep.dihedrals import far_side, turned
from kstep.errors import UserError
from kstep.molecules.conformers import MINIMISER_ITERATIONS, mmff_variant
from kstep.molecules.mmff94 import mmff_properties
from kstep.molecules.molecule import Molecule
from kstep.molecules.perception import add_conformers
from kstep.molecules.smiles import parse_smiles
from kstep.restraints import Bias, Restraint, values_of
from kstep.topology import neighbours, reachable
from kstep.units import ANGSTROM_PER_NM, KJ_PER_KCAL, NM_PER_ANGSTROM

STIFFNESS = {"distance": 1000.0, "angle": 1.0, "dihedral": 1.0}  # kcal/mol per A^2 or deg^2, of this minimisation alone
FAR_KJ_PER_MOL = 50.0  # of W, from which on a start is said to be far off

log = logging.getLogger("kstep")


def led_to(molecule: Molecule, restraints: Sequence[Restraint]) -> Molecule:
    """The molecule, its conformers where the restraints are least, best first; itself without restraints.

    Dihedrals about acyclic bonds are turned there, then MMFF94 (or UFF) with RDKit's constraints relaxes the rest.  A
    molecule that neither knows is left as it was turned.  Starts that still are far from a restraint are said aloud.
    """
    if not restraints:
        return molecule
    x = np.array(molecule.conformers, dtype=np.float64)
    for restraint in restraints:
        if restraint.kind == "dihedral":
            x = _turned_to(x, restraint, molecule)
    x, energies = _relaxed(x, restraints, molecule)
    order = np.argsort(energies, kind="stable")
    worst = float(Bias(restraints).energy(x).max())
    if worst > FAR_KJ_PER_MOL:
        log.warning("%s: a start still is %.0f kJ/mol up its restraints, which may not fit together or the molecule",
                    molecule.name, worst)
    return replace(molecule, conformers=x[order], conformer_energies=energies[order])


def _turned_to(x: np.ndarray, restraint: Restraint, molecule: Molecule) -> np.ndarray:
    """Positions (C,N,3) with the dihedral at its centre where its middle bond is one of the molecule, and acyclic."""
    first, j, k, last = restraint.atoms
    table = neighbours(len(molecule), molecule.bonds)
    if k not in table[j] or j in reachable(k, table, (j, k)):
        return x
    side = far_side(restraint.atoms, molecule.bonds, len(molecule))
    if last not in side or first in side:
        return x
    return turned(x, restraint.atoms, side, restraint.centre - values_of("dihedral", restraint.atoms, x))


def _relaxed(x: np.ndarray, restraints: Sequence[Restraint], molecule: Molecule) -> tuple[np.ndarray, np.ndarray]:
    """Positions (C,N,3) minimised at the restraints, and their force-field energies (C,) in kJ/mol without these."""
    mol = _of_its_smiles(molecule)
    with rdBase.BlockLogs():
        variant = mmff_variant(mol, "mmff94") if mol is not None else None
        if mol is None or (variant is None and not rdForceFieldHelpers.UFFHasAllMoleculeParams(mol)):
            return x, np.array(molecule.conformer_energies, dtype=np.float64)
        out, energies = np.empty_like(x), np.empty(len(x))
        for n, positions in enumerate(x):
            add_conformers(mol, [positions * ANGSTROM_PER_NM])
            typed = Chem.Mol(mol)  # typing kekulises it
            free = _force_field(typed, variant)
            field = _force_field(typed, variant)
            for restraint in restraints:
                _constrain(field, restraint, variant)
            field.Initialize()
            field.Minimize(maxIts=MINIMISER_ITERATIONS)
            out[n] = typed.GetConformer().GetPositions() * NM_PER_ANGSTROM
            free.Initialize()
            energies[n] = free.CalcEnergy(list((out[n] * ANGSTROM_PER_NM).ravel())) * KJ_PER_KCAL
    return out, energies


def _of_its_smiles(molecule: Molecule) -> Chem.Mol | None:
    """RDKit's molecule with the same atoms in the same order; None where the SMILES gives no such one."""
    try:
        mol = parse_smiles(molecule.smiles, molecule.charge, molecule.multiplicity)[0]
    except UserError:  # of a molecule that came without one
        return None
    numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    bonds = {frozenset((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())) for bond in mol.GetBonds()}
    same = numbers == molecule.numbers.tolist() and bonds == {frozenset(map(int, bond)) for bond in molecule.bonds}
    return mol if same else None


def _force_field(mol: Chem.Mol, variant: str | None):
    if variant is None:
        return rdForceFieldHelpers.UFFGetMoleculeForceField(mol)
    return rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, mmff_properties(mol, variant))


def _constrain(field, restraint: Restraint, variant: str | None) -> None:
    """RDKit's constraint of the same kind, from the centre to the centre, at the atoms' own numbers."""
    centre = restraint.centre * (ANGSTROM_PER_NM if restraint.kind == "distance" else 1.0)
    what = {"distance": "Distance", "angle": "Angle", "dihedral": "Torsion"}[restraint.kind]
    add = getattr(field, f"{'UFF' if variant is None else 'MMFF'}Add{what}Constraint")
    add(*restraint.atoms, False, centre, centre, STIFFNESS[restraint.kind])
