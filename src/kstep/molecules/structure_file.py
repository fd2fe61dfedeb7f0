"""A user's own structures -> a molecule with its geometries: xyz, extxyz, pdb, sdf and mol files, and ase.Atoms.

Atoms keep their order, and each frame, model or record is a geometry.  An sdf or mol file says its bonds; those of the
others are for `perception`.  Isotopes are those of the file: D and T, the isotopes of sdf, the masses of extxyz and
Atoms.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ase
import numpy as np
from rdkit import Chem, rdBase

from kstep.errors import UserError, did_you_mean
from kstep.molecules.perception import Geometries, Structure, add_conformers, settle

SAME_MASS_DA = 0.02
HYDROGENS = {"D": 2, "T": 3}
TABLE = Chem.GetPeriodicTable()
PERIODIC = "is periodic, and molecules here stand alone; set pbc to F F F"


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
        return settle(found, path.stem, smiles, charge, multiplicity)


def structure_of(atoms: ase.Atoms | Sequence[ase.Atoms], *, charge: int | None = None,
                 multiplicity: int | None = None) -> Structure:
    """The molecule of an ase.Atoms, or of a list of them, each a geometry; see `read_structure`.

    Charge and multiplicity are info["charge"] and info["multiplicity"] (or info["spin"]), else what initial charges and
    magnetic moments add up to, where they are set.
    """
    frames = [atoms] if isinstance(atoms, ase.Atoms) else list(atoms) if isinstance(atoms, Sequence) else []
    if not frames or not all(isinstance(frame, ase.Atoms) for frame in frames):
        raise UserError("a molecule is a SMILES, a prepared folder, a structure file, a Molecule, an ase.Atoms or a "
                        f"list of them, and not this {type(atoms).__name__}")
    with rdBase.BlockLogs():
        return settle(_of_atoms(frames, "the Atoms"), None, None, charge, multiplicity)


def _read_xyz(path: Path) -> Geometries:
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
        if not re.fullmatch("[0-9]{1,9}", count) or not 0 < int(count) <= len(lines) - row - 2:
            raise UserError(f"{where} (line {row + 1}): '{count[:30]}' is not the number of the atoms that follow a "
                            "comment line")
        block = [line.split() for line in lines[row + 2:row + 2 + int(count)]]
        symbols = [words[0].capitalize() if words else "" for words in block]
        text = "\n".join([count, lines[row + 1], *(" ".join(["H" if symbol in HYDROGENS else symbol, *words[1:]])
                                                   for symbol, words in zip(symbols, block))])
        try:
            atoms: Any = read(io.StringIO(text + "\n"), format="extxyz")
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


def _of_atoms(frames: list[ase.Atoms], where: str) -> Geometries:
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
    add_conformers(atoms, [frame.positions for frame in frames])
    charge, multiplicity = _electrons_of(first, where)
    return Geometries(atoms, where, masses=masses, charge=charge, multiplicity=multiplicity)


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


def _read_pdb(path: Path) -> Geometries:
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
        raise UserError(f"{path}: {sum(models)} atoms are listed and {read.GetNumAtoms() * read.GetNumConformers()} "
                        "can be read; does it have alternate locations, or damaged lines?")
    atoms = Chem.RWMol()
    for atom in read.GetAtoms():
        bare = Chem.Atom(atom.GetAtomicNum())
        bare.SetIsotope(atom.GetIsotope())
        atoms.AddAtom(bare)
    add_conformers(atoms, [conformer.GetPositions() for conformer in read.GetConformers()])
    return Geometries(atoms, str(path), charge=Chem.GetFormalCharge(read) or None)


def _read_sdf(path: Path) -> Geometries:
    """The records of an sdf file, or the one of a mol file."""
    supplier = Chem.SDMolSupplier()
    supplier.SetData(_text(path), sanitize=False, removeHs=False)
    records = list(supplier)
    if not _text(path).strip():
        raise UserError(f"{path} holds no molecule")
    for n, record in enumerate(records, 1):
        if record is None or record.GetNumAtoms() == 0 or record.GetNumConformers() != 1:
            raise UserError(f"{path}: record {n} is damaged or empty")
        if _atoms_and_bonds(record) != _atoms_and_bonds(records[0]):
            raise UserError(f"{path}: record {n} has other atoms or bonds than the first, or the same in another "
                            "order; give each molecule a file of its own")
    first = Chem.RWMol(records[0])
    positions = [record.GetConformer().GetPositions() for record in records]
    add_conformers(first, positions)
    if not np.any([frame[:, 2] for frame in positions]) and any(atom.GetDegree() >= 4 for atom in first.GetAtoms()):
        raise UserError(f"{path} is a drawing in the plane; give a 3-D structure, or the SMILES, whose geometries are "
                        "made here")
    return Geometries(first, str(path), has_bonds=True, charge=Chem.GetFormalCharge(first))


def _atoms_and_bonds(record: Chem.Mol):
    return ([(a.GetAtomicNum(), a.GetIsotope(), a.GetFormalCharge()) for a in record.GetAtoms()],
            {frozenset((b.GetBeginAtomIdx(), b.GetEndAtomIdx())) for b in record.GetBonds()})


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # editors of Windows begin a file with a mark
    except UnicodeDecodeError:
        raise UserError(f"structure file {path} is not UTF-8 text") from None


READERS: dict[str, Callable[[Path], Geometries]] = {
    ".xyz": _read_xyz, ".extxyz": _read_xyz, ".sdf": _read_sdf, ".mol": _read_sdf, ".pdb": _read_pdb}
