"""From geometries of atoms to a molecule: its bonds, charges, stereochemistry and SMILES.

Bonds that are not known are perceived by RDKit from the first geometry and the total charge (xyz2mol: Kim and Kim,
Bull. Korean Chem. Soc. 36, 1769 (2015)), or are those of a SMILES.  Stereochemistry is read from the geometry.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from ase.data import covalent_radii
from rdkit import Chem
from rdkit.Chem import rdDetermineBonds
from rdkit.Chem.rdMolDescriptors import CalcMolFormula

from kstep.errors import UserError
from kstep.files import SAFE_NAME
from kstep.molecules.smiles import check_multiplicity, log, n_electrons, parse_smiles

CLOSEST = 0.5  # times the sum of covalent radii: nearer than that, atoms are on top of each other or not in angstrom
ORDERS_TRIED = 8  # RDKit's search finds a nitro group in some orders of the atoms, and not in others
MOST_BOND_ORDERS = 100_000  # tried before perception gives up
WAYS_OUT = "give the right --charge, an sdf file, which says its bonds, or the SMILES beside --structure"


@dataclass(frozen=True)
class Structure:
    """rdkit: explicit hydrogens, conformers in A, in the order of the source; masses (N,) Da; name: a proposal."""

    rdkit: Chem.Mol
    masses: np.ndarray
    charge: int
    multiplicity: int
    name: str
    where: str


@dataclass(frozen=True)
class Geometries:
    """What was read: atoms with conformers, bonds where `has_bonds`; masses (N,) Da, charge and multiplicity where the
    source states them."""

    atoms: Chem.Mol
    where: str
    has_bonds: bool = False
    masses: np.ndarray | None = None
    charge: int | None = None
    multiplicity: int | None = None


def add_conformers(atoms: Chem.Mol, positions: Iterable[np.ndarray]) -> None:
    """Geometries (N,3) A as conformers of their number, in place of those that are there."""
    atoms.RemoveAllConformers()
    for frame in positions:
        conformer = Chem.Conformer(atoms.GetNumAtoms())
        conformer.SetPositions(np.ascontiguousarray(frame, dtype=np.float64))
        atoms.AddConformer(conformer, assignId=True)


def settle(found: Geometries, stem: str | None, smiles: str | None, charge: int | None,
            multiplicity: int | None) -> Structure:
    """The molecule of what was read; stem: of its file; the rest as in `structure_file.read_structure`.

    Raises UserError for several molecules, atoms on top of each other, bonds that nothing fits, and contradictions.
    """
    where = found.where
    charge = _agreed("charge", charge, found.charge, where)
    multiplicity = _agreed("multiplicity", multiplicity, found.multiplicity, where)
    _check_positions(found)
    skeleton = _skeleton(found)
    if (pieces := len(Chem.GetMolFrags(skeleton))) > 1:
        raise UserError(f"{where} holds {pieces} molecules that no bond connects; give one alone, in angstrom")
    if smiles is not None:
        molecule, multiplicity = _laid_on(found, skeleton, smiles, charge, multiplicity)
    else:
        molecule = _sanitised(found) if found.has_bonds else _perceived(found, charge or 0, multiplicity)
        unpaired = sum(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms())
        if multiplicity is None and unpaired:
            log.warning("%s: its bonds leave %d unpaired electron%s, so its multiplicity is taken as %d; "
                        "--multiplicity and --charge say otherwise", where, unpaired, "s"[unpaired == 1:], unpaired + 1)
        multiplicity = 1 + unpaired if multiplicity is None else multiplicity
    charge = Chem.GetFormalCharge(molecule)
    check_multiplicity(n_electrons(molecule, charge), multiplicity, f"{where} (charge {charge:+d})")
    masses = found.masses
    if masses is None:
        masses = np.array([atom.GetMass() for atom in molecule.GetAtoms()])
    name = stem if stem and SAFE_NAME.fullmatch(stem) else re.sub(r"[^A-Za-z0-9-]", "_", CalcMolFormula(molecule))
    return Structure(molecule, masses, charge, multiplicity, name, where)


def _agreed(what: str, wanted: int | None, stated: int | None, where: str) -> int | None:
    if None not in (wanted, stated) and wanted != stated:
        raise UserError(f"{what} {wanted} contradicts {where}, which states {what} {stated}")
    return stated if wanted is None else wanted


def _check_positions(found: Geometries) -> None:
    radii = covalent_radii[[atom.GetAtomicNum() for atom in found.atoms.GetAtoms()]]
    closest = CLOSEST * (radii[:, None] + radii)
    for n, conformer in enumerate(found.atoms.GetConformers(), 1):
        x = conformer.GetPositions()
        if not np.isfinite(x).all():
            raise UserError(f"{found.where}: geometry {n} holds NaN or infinity")
        distance = np.linalg.norm(x[:, None] - x, axis=-1) + np.diag(np.full(len(x), np.inf))
        if (distance < closest).any():
            i, j = np.argwhere(distance < closest)[0]
            raise UserError(f"{found.where}: atoms {i} and {j} of geometry {n} are {distance[i, j]:.3g} A apart; "
                            "coordinates must be in angstrom, and no atom be there twice")


def _sanitised(found: Geometries) -> Chem.Mol:
    """The molecule whose bonds the file says, with its stereochemistry; all its hydrogens must be there."""
    faults = [problem.Message() for problem in Chem.DetectChemistryProblems(found.atoms)]
    if faults:
        raise UserError(f"{found.where} is no possible molecule: {'; '.join(faults)}")
    molecule = Chem.Mol(found.atoms)
    Chem.SanitizeMol(molecule)
    lacking = {atom.GetIdx(): atom.GetTotalNumHs() for atom in molecule.GetAtoms() if atom.GetTotalNumHs()}
    if lacking:
        atom, count = next(iter(lacking.items()))
        raise UserError(f"{found.where} lacks {sum(lacking.values())} hydrogens (atom {atom}, "
                        f"{molecule.GetAtomWithIdx(atom).GetSymbol()}, wants {count}); add them all, and mark radicals "
                        "as such")
    Chem.AssignStereochemistryFrom3D(molecule, 0)
    return molecule


def _perceived(found: Geometries, charge: int, multiplicity: int | None) -> Chem.Mol:
    """The molecule whose bonds and stereochemistry the first geometry shows: charges where they fit, else radicals."""
    if found.atoms.GetNumAtoms() == 1:
        atom = Chem.RWMol(found.atoms)
        atom.GetAtomWithIdx(0).SetFormalCharge(charge)
        atom.GetAtomWithIdx(0).SetNoImplicit(True)
        Chem.SanitizeMol(atom)
        return Chem.Mol(atom)
    n, random = found.atoms.GetNumAtoms(), np.random.default_rng(0)
    orders = [np.arange(n), *(random.permutation(n) for _ in range(ORDERS_TRIED))]
    for charged, order in itertools.product((True, False), orders):
        molecule = Chem.RWMol(Chem.RenumberAtoms(found.atoms, order.tolist()))
        try:
            rdDetermineBonds.DetermineBonds(molecule, charge=charge, allowChargedFragments=charged, embedChiral=False,
                                            maxIterations=MOST_BOND_ORDERS)
            _uncharge_oxides(molecule)
            Chem.SanitizeMol(molecule)
        except (ValueError, RuntimeError):
            continue
        unpaired = sum(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms())
        most = (2 if charged else 1) if multiplicity is None else multiplicity - 1  # 2: a carbene
        if unpaired <= most and not any(atom.GetTotalNumHs() for atom in molecule.GetAtoms()):
            whole = Chem.RenumberAtoms(molecule.GetMol(), np.argsort(order).tolist())
            Chem.AssignStereochemistryFrom3D(whole, 0)
            return whole
    raise UserError(f"{found.where}: no bonds between its atoms make a molecule of charge {charge:+d}; {WAYS_OUT}")


def _uncharge_oxides(molecule: Chem.RWMol) -> None:
    """S+-O- and P+-O- become the double bonds that SMILES and force fields write."""
    for bond in molecule.GetBonds():
        for centre, oxygen in ((bond.GetBeginAtom(), bond.GetEndAtom()), (bond.GetEndAtom(), bond.GetBeginAtom())):
            if (centre.GetAtomicNum() in (15, 16) and oxygen.GetAtomicNum() == 8 and centre.GetFormalCharge() > 0
                    and oxygen.GetFormalCharge() == -1 and bond.GetBondType() == Chem.BondType.SINGLE):
                bond.SetBondType(Chem.BondType.DOUBLE)
                centre.SetFormalCharge(centre.GetFormalCharge() - 1)
                oxygen.SetFormalCharge(0)


def _skeleton(found: Geometries) -> Chem.Mol:
    """Elements and bonds alone: those of the source, or of atoms near enough to each other."""
    atoms = Chem.RWMol(found.atoms)
    if not found.has_bonds and atoms.GetNumAtoms() > 1:
        rdDetermineBonds.DetermineConnectivity(atoms)
    return _bare(atoms)


def _laid_on(found: Geometries, bare: Chem.Mol, smiles: str, charge: int | None,
             multiplicity: int | None) -> tuple[Chem.Mol, int]:
    """The SMILES' molecule on the file's atoms, and its multiplicity; the geometry must have its bonds and stereo."""
    named, _, multiplicity = parse_smiles(smiles, charge, multiplicity)
    wanted = _bare(named)
    match = bare.GetSubstructMatch(wanted) if bare.GetNumBonds() == wanted.GetNumBonds() else ()
    if len(match) != bare.GetNumAtoms():
        raise UserError(f"{found.where} is no geometry of '{smiles}': its atoms or bonds are others")
    molecule = Chem.RenumberAtoms(named, np.argsort(match).tolist())
    isotopes = [atom.GetIsotope() for atom in found.atoms.GetAtoms()]
    if any(isotopes) or found.masses is not None:
        for atom, isotope in zip(molecule.GetAtoms(), isotopes):
            atom.SetIsotope(isotope)
    add_conformers(molecule, [conformer.GetPositions() for conformer in found.atoms.GetConformers()])
    Chem.AssignStereochemistryFrom3D(molecule, 0)
    if not molecule.HasSubstructMatch(named, useChirality=True):
        raise UserError(f"{found.where} is no geometry of '{smiles}': its stereochemistry or isotopes are others, "
                        f"{Chem.MolToSmiles(Chem.RemoveHs(molecule))}")
    return molecule, multiplicity


def _bare(molecule: Chem.Mol) -> Chem.Mol:
    """Elements and bonds alone."""
    bare = Chem.RWMol()
    for atom in molecule.GetAtoms():
        bare.AddAtom(Chem.Atom(atom.GetAtomicNum()))
    for bond in molecule.GetBonds():
        bare.AddBond(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), Chem.BondType.SINGLE)
    return bare.GetMol()


def smiles_of(molecule: Chem.Mol) -> tuple[str, np.ndarray]:
    """Isomeric SMILES of a molecule with explicit hydrogens, and its `smiles_order` (N,), see `Molecule`."""
    marked = Chem.Mol(molecule)
    for atom in marked.GetAtoms():
        atom.SetIntProp("own", atom.GetIdx())
    short = Chem.RemoveHs(marked)
    smiles = Chem.MolToSmiles(short)
    order = [short.GetAtomWithIdx(i).GetIntProp("own") for i in json.loads(short.GetProp("_smilesAtomOutputOrder"))]
    named = Chem.AddHs(Chem.MolFromSmiles(smiles))
    for atom in list(named.GetAtoms())[len(order):]:  # hydrogens that the SMILES only counts
        owner = marked.GetAtomWithIdx(order[atom.GetNeighbors()[0].GetIdx()])
        order.append(next(other.GetIdx() for other in owner.GetNeighbors()
                          if other.GetAtomicNum() == 1 and other.GetIdx() not in order))
    return smiles, np.array(order, dtype=np.int64)
