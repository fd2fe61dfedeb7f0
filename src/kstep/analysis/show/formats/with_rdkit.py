"""Trajectories as RDKit's molecules: bond orders, formal charges and stereochemistry; and the SDF that it writes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from kstep.analysis.show.formats.with_ase import written_weights
from kstep.errors import UserError
from kstep.schemas import Trajectory
from kstep.units import ANGSTROM_PER_NM

WITHOUT_ORDERS = "write xyz, extxyz or pdb, which need no bond orders"


def to_rdkit(trajectory: Trajectory):
    """The molecule of a trajectory as a Chem.Mol without conformers: its atoms in the file's order, explicit hydrogens.

    Bond orders, formal charges, isotopes and stereochemistry are those of the SMILES, laid on the bonds of the file;
    molecules beside that one (the water of a droplet), and those of a file without SMILES, get the bond orders that
    their valences ask for.  Raises UserError where there are none, and where formal charges are not the run's charge.
    """
    from rdkit import Chem

    known, parts = trajectory.metadata, []
    pieces = Chem.GetMolFrags(_bare(trajectory.atom_types, trajectory.bonds), asMols=True, sanitizeFrags=False,
                              fragsMolAtomMapping=parts)
    template = _template(known.get("smiles"))
    named = [None if template is None else _laid_on(piece, template) for piece in pieces]
    if template is not None and not any(named):
        raise UserError(f"the bonds of '{known.get('molecule')}' are not those of its SMILES {known['smiles']}; "
                        f"{WITHOUT_ORDERS}")
    charge = known.get("charge") or 0
    rest = charge if template is None and len(pieces) == 1 else 0  # of each molecule that no SMILES names
    ordered = [_by_valence(piece, rest, known) if placed is None else Chem.RenumberAtoms(template, placed)
               for piece, placed in zip(pieces, named)]
    molecule = Chem.RenumberAtoms(reduce(Chem.CombineMols, ordered), np.argsort(np.concatenate(parts)).tolist())
    if known.get("charge") is not None and len(pieces) == 1 and Chem.GetFormalCharge(molecule) != charge:
        raise UserError(f"the formal charges of {known.get('smiles')} sum to {Chem.GetFormalCharge(molecule)}, but the "
                        f"run's charge is {charge}; {WITHOUT_ORDERS}")
    Chem.SanitizeMol(molecule)
    return molecule


def _bare(numbers, bonds):
    """Atoms and single bonds, nothing perceived."""
    from rdkit import Chem

    out = Chem.RWMol()
    for number in numbers:
        atom = Chem.Atom(int(number))
        atom.SetNoImplicit(True)
        out.AddAtom(atom)
    for i, j in bonds:
        out.AddBond(int(i), int(j), Chem.BondType.SINGLE)
    out.UpdatePropertyCache(strict=False)
    return out.GetMol()


def _template(smiles: str | None):
    """The molecule of a SMILES with explicit hydrogens; None without one."""
    from rdkit import Chem, rdBase

    if not smiles:
        return None
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        raise UserError(f"the run's SMILES '{smiles}' cannot be read by RDKit; {WITHOUT_ORDERS}")
    return Chem.AddHs(molecule)


def _by_valence(piece, charge: int, metadata: dict[str, Any]):
    """The piece with the bond orders and formal charges that its bonds and its charge ask for."""
    from rdkit import rdBase
    from rdkit.Chem import rdDetermineBonds

    try:
        with rdBase.BlockLogs():
            rdDetermineBonds.DetermineBondOrders(piece, charge=charge, embedChiral=False)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"no bond orders fit {metadata.get('molecule')}'s bonds at a charge of {charge} "
                        f"({str(error).strip().splitlines()[0]}); {WITHOUT_ORDERS}") from None
    return piece


def _laid_on(piece, template) -> list[int] | None:
    """The template's atom at each atom of the piece; None where elements or bonds differ.  Its own order is first."""

    bonds = [{frozenset((b.GetBeginAtomIdx(), b.GetEndAtomIdx())) for b in m.GetBonds()} for m in (piece, template)]
    numbers = [[a.GetAtomicNum() for a in m.GetAtoms()] for m in (piece, template)]
    if numbers[0] == numbers[1] and bonds[0] == bonds[1]:
        return list(range(len(numbers[0])))
    if sorted(numbers[0]) != sorted(numbers[1]) or len(bonds[0]) != len(bonds[1]):
        return None
    bare = _bare(numbers[1], [sorted(b) for b in bonds[1]])
    return list(bare.GetSubstructMatch(piece)) or None


def with_positions(molecule, positions: np.ndarray):
    """A copy with one conformer, positions (N,3) nm, and the stereochemistry that they show."""
    from rdkit import Chem

    out = Chem.Mol(molecule)
    out.RemoveAllConformers()
    conformer = Chem.Conformer(len(positions))
    conformer.Set3D(True)
    conformer.SetPositions(np.ascontiguousarray(positions * ANGSTROM_PER_NM, dtype=np.float64))
    out.AddConformer(conformer)
    Chem.AssignStereochemistryFrom3D(out)
    return out


def write_molecules(molecules: Iterator, path: Path) -> None:
    """An SDF of molecules with one conformer and properties."""
    from rdkit import Chem

    with open(path, "w") as handle:
        writer = Chem.SDWriter(handle)
        writer.SetKekulize(True)
        for molecule in molecules:
            writer.write(molecule)
        writer.close()


def name_and_properties(molecule, name: str, properties: dict[str, Any]):
    """The molecule with its name and its SD properties; a float with as many digits as it needs."""
    molecule.SetProp("_Name", name)
    for key, value in properties.items():
        molecule.SetProp(key, repr(value) if isinstance(value, float) else str(value))
    return molecule


def write_sdf(trajectory: Trajectory, path: Path) -> None:
    """An SDF of all frames, replica after replica: energy, replica, step, time, weight and box in its properties."""
    t = trajectory
    molecule, weights = to_rdkit(t), written_weights(t)

    def frames():
        for frame in np.lexsort((t.step, t.replica)):
            about: dict[str, Any] = {"energy_kJ_per_mol": float(t.Epot[frame]), "replica": int(t.replica[frame]),
                                     "step": int(t.step[frame]), "time_ps": float(t.time_ps[frame])}
            if t.is_weighted:
                about["weight"] = float(weights[frame])
            if len(t.box):
                about["box_A"] = " ".join(f"{x:.6f}" for x in (t.box[frame] * ANGSTROM_PER_NM).ravel())
            shown = with_positions(molecule, t.pos[frame])
            yield name_and_properties(shown, str(t.metadata.get("molecule", "")), about)

    write_molecules(frames(), path)
