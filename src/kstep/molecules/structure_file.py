"""A user's own structures -> a molecule with its geometries: xyz, extxyz, pdb, sdf and mol files, and ase.Atoms.

Atoms keep their order, and each frame, model or record is a geometry.  An sdf or mol file says its bonds; those of the
others are perceived by RDKit from the first geometry and the total charge (xyz2mol: Kim and Kim, Bull. Korean Chem.
Soc. 36, 1769 (2015)), or, where the SMILES is given too, are those of the SMILES.  Stereochemistry is read from the
geometry.  Isotopes are those of the file: D and T, the isotopes of sdf, the masses of extxyz and Atoms.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.data import covalent_radii
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds
from rdkit.Chem.rdMolDescriptors import CalcMolFormula

from kstep.errors import UserError, did_you_mean
from kstep.molecules.molecule import SAFE_NAME
from kstep.molecules.smiles import check_multiplicity, log, n_electrons, parse_smiles

CLOSEST = 0.5  # times the sum of covalent radii: nearer than that, atoms are on top of each other or not in angstrom
ORDERS_TRIED = 8  # RDKit's search finds a nitro group in some orders of the atoms, and not in others
MOST_BOND_ORDERS = 100_000  # tried before perception gives up
SAME_MASS_DA = 0.02
HYDROGENS = {"D": 2, "T": 3}
TABLE = Chem.GetPeriodicTable()
WAYS_OUT = "give the right --charge, an sdf file, which says its bonds, or the SMILES beside --structure"
PERIODIC = "is periodic, and molecules here stand alone; set pbc to F F F"


@dataclass(frozen=True)
class Structure:
    """rdkit: explicit hydrogens, conformers in A, in the file's order; masses (N,) Da; name: a proposal; where: file."""

    rdkit: Chem.Mol
    masses: np.ndarray
    charge: int
    multiplicity: int
    name: str
    where: str


@dataclass(frozen=True)
class _Geometries:
    """What was read: atoms with conformers, bonds where `has_bonds`; masses (N,) Da, charge and multiplicity where the
    source states them."""

    atoms: Chem.Mol
    where: str
    has_bonds: bool = False
    masses: np.ndarray | None = None
    charge: int | None = None
    multiplicity: int | None = None


def is_structure_file(path: str | Path) -> bool:
    """Whether a name ends as that of a structure file does."""
    return Path(path).suffix.lower() in READERS


def read_structure(path: str | Path, *, smiles: str | None = None, charge: int | None = None,
                   multiplicity: int | None = None) -> Structure:
    """The molecule of a structure file, with all its geometries.

    smiles: what it is, atoms in any order; charge, multiplicity: None takes those that the file states, else 0 and one
    more than its unpaired electrons.  Raises UserError, one sentence that names the file, for whatever is no molecule
    or contradicts itself.
    """
    path = Path(path)
    if not is_structure_file(path):
        raise UserError(f"{path} is no structure file by its name{did_you_mean(path.suffix.lower(), READERS)}")
    if not path.is_file():
        raise UserError(f"structure file {path} {'is not a file' if path.exists() else 'does not exist'}")
    with rdBase.BlockLogs():
        found = READERS[path.suffix.lower()](path)
        return _settle(found, path.stem, smiles, charge, multiplicity)


def structure_of(atoms: ase.Atoms | Sequence[ase.Atoms], *, charge: int | None = None,
                 multiplicity: int | None = None) -> Structure:
    """The molecule of an ase.Atoms, or of a list of them, each a geometry; see `read_structure`.

    Charge and multiplicity are info["charge"] and info["multiplicity"] (or info["spin"]), else what initial charges and
    magnetic moments add up to, where they are set.
    """
    frames = [atoms] if isinstance(atoms, ase.Atoms) else list(atoms)
    if not frames or not all(isinstance(frame, ase.Atoms) for frame in frames):
        raise UserError("a list of structures must hold ase.Atoms, one or more of them")
    with rdBase.BlockLogs():
        return _settle(_of_atoms(frames, "the Atoms"), None, None, charge, multiplicity)


# what each kind of file holds


def _read_xyz(path: Path) -> _Geometries:
    """xyz and extxyz: ASE reads each frame; D and T are hydrogens of their mass."""
    from ase.io import read

    lines = _text(path).splitlines()
    frames, row = [], 0
    while row < len(lines):
        if not lines[row].strip():
            row += 1
            continue
        where = f"{path} frame {len(frames) + 1}"
        count = lines[row].strip()
        if not count.isdigit() or not 0 < int(count) <= len(lines) - row - 2:
            raise UserError(f"{where} (line {row + 1}): '{count[:30]}' is not the number of the atoms that follow a "
                            "comment line")
        block = [line.split() for line in lines[row + 2:row + 2 + int(count)]]
        symbols = [words[0].capitalize() if words else "" for words in block]
        text = "\n".join([count, lines[row + 1], *(" ".join(["H" if symbol in HYDROGENS else symbol, *words[1:]])
                                                   for symbol, words in zip(symbols, block))])
        try:
            atoms = read(io.StringIO(text + "\n"), format="extxyz")
        except Exception as error:  # ASE has one for every kind of damage
            raise UserError(f"{where} (line {row + 1}) cannot be read ({type(error).__name__}: {error}); each line "
                            "reads 'symbol x y z', in angstrom") from None
        heavy = {i: TABLE.GetMassForIsotope(1, HYDROGENS[symbol]) for i, symbol in enumerate(symbols)
                 if symbol in HYDROGENS}
        if heavy:
            masses = atoms.get_masses()
            masses[list(heavy)] = list(heavy.values())
            atoms.set_masses(masses)
        atoms.info.update(_said(lines[row + 1]))
        frames.append(atoms)
        row += 2 + int(count)
    if not frames:
        raise UserError(f"{path} holds no atoms")
    return _of_atoms(frames, str(path))


def _said(comment: str) -> dict[str, int]:
    """Charge and multiplicity that a comment line states, with '=' or ':'."""
    found = re.findall(r"\b(charge|multiplicity|spin)\b\s*[=:]\s*\"?([+-]?\d+)(?![\d.]*[1-9])", comment, re.IGNORECASE)
    return {key.lower(): int(value) for key, value in found}


def _of_atoms(frames: list[ase.Atoms], where: str) -> _Geometries:
    first, masses = frames[0], None
    if any(frame.pbc.any() for frame in frames):
        raise UserError(f"{where} {PERIODIC}")
    if not len(first):
        raise UserError(f"{where} holds no atoms")
    if first.numbers.min() < 1:
        raise UserError(f"{where} has an atom of no element (X)")
    for n, frame in enumerate(frames[1:], 2):
        if not np.array_equal(frame.numbers, first.numbers) or not np.allclose(frame.get_masses(), first.get_masses()):
            raise UserError(f"{where}: frame {n} has other atoms than the first, or the same in another order; "
                            "geometries of one file are those of one molecule")
        if _electrons_of(frame, where) != _electrons_of(first, where):
            raise UserError(f"{where}: frame {n} states another charge or multiplicity than the first")
    atoms = Chem.RWMol()
    for number in first.numbers:
        atoms.AddAtom(Chem.Atom(int(number)))
    if first.has("masses"):
        masses = np.asarray(first.get_masses(), dtype=np.float64)
        if not (np.isfinite(masses).all() and masses.min() > 0):
            raise UserError(f"{where}: masses must be above 0")
        for atom, mass in zip(atoms.GetAtoms(), masses):
            atom.SetIsotope(_isotope_of(atom.GetAtomicNum(), mass))
    _add_conformers(atoms, [frame.positions for frame in frames])
    charge, multiplicity = _electrons_of(first, where)
    return _Geometries(atoms, where, masses=masses, charge=charge, multiplicity=multiplicity)


def _electrons_of(atoms: ase.Atoms, where: str) -> tuple[int | None, int | None]:
    """Charge and multiplicity that an Atoms states, None where it does not."""
    info, charges, moments = atoms.info, atoms.get_initial_charges(), atoms.get_initial_magnetic_moments()
    charge = info.get("charge", charges.sum() if charges.any() else None)
    spin = info.get("multiplicity", info.get("spin", abs(moments.sum()) + 1 if moments.any() else None))
    return _whole(charge, "charge", where), _whole(spin, "multiplicity", where)


def _whole(value: Any, what: str, where: str) -> int | None:
    if value is None:
        return None
    try:
        number = float(value)
        near = round(number)
    except (TypeError, ValueError, OverflowError):
        number, near = 0.0, 1
    if abs(number - near) > 1e-3:
        raise UserError(f"{where}: its {what} {value} is no whole number; give --{what}")
    return near


def _isotope_of(number: int, mass: float) -> int:
    """The isotope of an element that has this mass, 0 for none or for the element as it occurs."""
    nominal = round(mass)
    if abs(mass - TABLE.GetAtomicWeight(number)) < SAME_MASS_DA or not 0 < nominal < 400:
        return 0
    return nominal if abs(mass - TABLE.GetMassForIsotope(number, nominal)) < SAME_MASS_DA else 0


def _read_pdb(path: Path) -> _Geometries:
    """Atoms, models and formal charges; few programs write the bonds and none their orders, so both are perceived."""
    text = _text(path)
    models = [len(re.findall(r"^(?:ATOM  |HETATM)", model, re.MULTILINE)) for model in re.split(r"^MODEL", text,
                                                                                         flags=re.MULTILINE)]
    models = [count for count in models if count]
    if len(set(models)) > 1:
        raise UserError(f"{path}: its models have {', '.join(map(str, models))} atoms; they must be of one molecule")
    try:
        read = Chem.MolFromPDBBlock(text, sanitize=False, removeHs=False, proximityBonding=False)
    except RuntimeError:  # a line that RDKit cannot make sense of
        read = None
    if read is None or read.GetNumAtoms() == 0:
        raise UserError(f"{path} is not a PDB file that RDKit can read: it has no atoms, or a damaged line")
    if read.GetNumAtoms() != models[0] or read.GetNumConformers() != len(models):
        raise UserError(f"{path}: {sum(models)} atoms are listed and {read.GetNumAtoms() * read.GetNumConformers()} can "
                        "be read; does it have alternate locations, or damaged lines?")
    atoms = Chem.RWMol()
    for atom in read.GetAtoms():
        bare = Chem.Atom(atom.GetAtomicNum())
        bare.SetIsotope(atom.GetIsotope())
        atoms.AddAtom(bare)
    _add_conformers(atoms, [conformer.GetPositions() for conformer in read.GetConformers()])
    return _Geometries(atoms, str(path), charge=Chem.GetFormalCharge(read) or None)


def _read_sdf(path: Path) -> _Geometries:
    """The records of an sdf file, or the one of a mol file."""
    supplier = Chem.SDMolSupplier()
    supplier.SetData(_text(path), sanitize=False, removeHs=False)
    records = list(supplier)
    if not records:
        raise UserError(f"{path} holds no molecule")
    for n, record in enumerate(records, 1):
        if record is None or record.GetNumAtoms() == 0 or record.GetNumConformers() != 1:
            raise UserError(f"{path}: record {n} is damaged or empty")
        if _atoms_and_bonds(record) != _atoms_and_bonds(records[0]):
            raise UserError(f"{path}: record {n} has other atoms or bonds than the first, or the same in another order; "
                            "give each molecule a file of its own")
    first = Chem.RWMol(records[0])
    positions = [record.GetConformer().GetPositions() for record in records]
    _add_conformers(first, positions)
    if not np.any([frame[:, 2] for frame in positions]) and any(atom.GetDegree() >= 4 for atom in first.GetAtoms()):
        raise UserError(f"{path} is a drawing in the plane; give a 3-D structure, or the SMILES, whose geometries are "
                        "made here")
    return _Geometries(first, str(path), has_bonds=True, charge=Chem.GetFormalCharge(first))


def _atoms_and_bonds(record: Chem.Mol):
    return ([(a.GetAtomicNum(), a.GetIsotope(), a.GetFormalCharge()) for a in record.GetAtoms()],
            {frozenset((b.GetBeginAtomIdx(), b.GetEndAtomIdx())) for b in record.GetBonds()})


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"structure file {path} is not UTF-8 text") from None


def _add_conformers(atoms: Chem.Mol, positions: Sequence[np.ndarray]) -> None:
    """Geometries (N,3) A as conformers of their number, in place of those that are there."""
    atoms.RemoveAllConformers()
    for frame in positions:
        conformer = Chem.Conformer(atoms.GetNumAtoms())
        conformer.SetPositions(np.ascontiguousarray(frame, dtype=np.float64))
        atoms.AddConformer(conformer, assignId=True)


READERS: dict[str, Callable[[Path], _Geometries]] = {
    ".xyz": _read_xyz, ".extxyz": _read_xyz, ".sdf": _read_sdf, ".mol": _read_sdf, ".pdb": _read_pdb}


# from atoms and geometries to a molecule


def _settle(found: _Geometries, stem: str | None, smiles: str | None, charge: int | None,
            multiplicity: int | None) -> Structure:
    where = found.where
    charge = _agreed("charge", charge, found.charge, where)
    multiplicity = _agreed("multiplicity", multiplicity, found.multiplicity, where)
    _check_positions(found)
    if smiles is not None:
        molecule, multiplicity = _laid_on(found, smiles, charge, multiplicity)
    else:
        molecule = _sanitised(found) if found.has_bonds else _perceived(found, charge or 0, multiplicity)
        unpaired = sum(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms())
        if multiplicity is None and unpaired:
            log.warning("%s: its bonds leave %d electrons unpaired, so its multiplicity is taken as %d; --multiplicity "
                        "and --charge say otherwise", where, unpaired, unpaired + 1)
        multiplicity = 1 + unpaired if multiplicity is None else multiplicity
    if len(Chem.GetMolFrags(molecule)) > 1:
        raise UserError(f"{where} holds {len(Chem.GetMolFrags(molecule))} molecules that no bond connects; give one "
                        "alone, in angstrom")
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


def _check_positions(found: _Geometries) -> None:
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


def _sanitised(found: _Geometries) -> Chem.Mol:
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


def _perceived(found: _Geometries, charge: int, multiplicity: int | None) -> Chem.Mol:
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


def _laid_on(found: _Geometries, smiles: str, charge: int | None, multiplicity: int | None) -> tuple[Chem.Mol, int]:
    """The SMILES' molecule on the file's atoms, and its multiplicity; the geometry must have its bonds and stereo."""
    named, _, multiplicity = parse_smiles(smiles, charge, multiplicity)
    skeleton = Chem.RWMol(found.atoms)
    if not found.has_bonds and skeleton.GetNumAtoms() > 1:
        rdDetermineBonds.DetermineConnectivity(skeleton)
    bare, wanted = _bare(skeleton), _bare(named)
    match = bare.GetSubstructMatch(wanted) if bare.GetNumBonds() == wanted.GetNumBonds() else ()
    if len(match) != bare.GetNumAtoms():
        raise UserError(f"{found.where} is no geometry of '{smiles}': its atoms or bonds are others")
    molecule = Chem.RenumberAtoms(named, np.argsort(match).tolist())
    isotopes = [atom.GetIsotope() for atom in found.atoms.GetAtoms()]
    if any(isotopes) or found.masses is not None:
        for atom, isotope in zip(molecule.GetAtoms(), isotopes):
            atom.SetIsotope(isotope)
    _add_conformers(molecule, [conformer.GetPositions() for conformer in found.atoms.GetConformers()])
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
    """Isomeric SMILES of a molecule with explicit hydrogens; and (N,) the atom here of each atom that RDKit finds in it,
    hydrogens added."""
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
