"""From a SMILES, or one's own structure, to what every later stage starts from: conformers, topology, openmm.System."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from rdkit import Chem
from rdkit.Chem.rdMolDescriptors import CalcMolFormula

from kstep.dihedrals import dihedrals_deg, wrap_deg
from kstep.errors import UserError
from kstep.files import write_json_atomic, write_text_atomic
from kstep.hands import numbered_alike
from kstep.molecules import DEFAULT, EXAMPLES, build_system, check_force_field
from kstep.molecules.conformers import (
    embed_conformers,
    locked_torsions,
    minimise_with_openmm,
    minimise_with_rdkit,
    mmff_variant,
    of_every_side,
    select_distinct,
    settle_stereochemistry,
    turned_over,
)
from kstep.molecules.geometry_faults import FORCE_FIELD_WINDOW_KJ, Judged, causes_of, judge
from kstep.molecules.mmff94 import guessed_parameters
from kstep.molecules.molecule import Molecule, check_name
from kstep.molecules.perception import Structure, add_conformers, smiles_of
from kstep.molecules.smiles import Entry, parse_smiles, rdkit_of
from kstep.units import ANGSTROM_PER_NM, NM_PER_ANGSTROM

NOBODY = np.zeros((0, 0), dtype=bool)
NONE = "none"  # conformers only, no System: enough for QM
FORCE_FIELDS = (*EXAMPLES, NONE)
EMBEDDINGS = 4  # how often what was dropped is embedded anew
LATER_SEED = 1_000_003  # between them
ALIKE = 1e-3  # nm, kJ/mol: between two preparations that are the same

log = logging.getLogger("kstep")


@dataclass(frozen=True)
class Prepared:
    """What the force-field stage hands on."""

    molecule: Molecule
    rdkit: Chem.Mol  # explicit hydrogens, conformers in the order of molecule.conformers
    system: openmm.System | None  # None for force field 'none'
    dropped: list[dict[str, Any]] = field(default_factory=list)  # embedded structures that are no molecule, and why
    guesses: list[str] = field(default_factory=list)  # angles and torsions whose parameters the force field lacks

    def with_conformers(self, molecule: Molecule) -> Prepared:
        """The same with the conformers of `molecule`, whose centre of mass is moved to the origin."""
        masses = molecule.masses
        centred = molecule.conformers - np.einsum("n,cnd->cd", masses / masses.sum(), molecule.conformers)[:, None]
        rdkit = Chem.Mol(self.rdkit)
        add_conformers(rdkit, centred * ANGSTROM_PER_NM)
        return replace(self, molecule=replace(molecule, conformers=centred), rdkit=rdkit)


def prepare_molecule(name: str, smiles: str, *, n_conformers: int = 20, seed: int = 0, max_attempts: int = 100,
                     force_field: str = DEFAULT, charge: int | None = None,
                     multiplicity: int | None = None) -> Prepared:
    """Embed, minimise, sort and thin out conformers; build the System.

    `n_conformers` are embedded with ETKDGv3 and as many without its preferences, minimised in `force_field` (mmff94,
    mmff94s, *.offxml, gaff-*; 'none' minimises with whatever RDKit has and builds no System), and so are some with what
    all have alike turned over (`conformers.locked_torsions`); duplicates are dropped, and the n_conformers lowest kept,
    one of every side among them.
    Raises UserError, one sentence without the name, for everything a user can get wrong.
    """
    check_name(name)
    if force_field != NONE:
        check_force_field(force_field)
    if n_conformers < 1 or max_attempts < 1:
        raise UserError("n_conformers and max_attempts must be at least 1")
    molecule, total_charge, spin = parse_smiles(smiles, charge, multiplicity)
    settle_stereochemistry(molecule, name, max_attempts)
    system, guesses = _system(molecule, name, force_field)
    bare = _molecule_of(molecule, name=name, smiles=smiles,
                        masses=np.array([atom.GetMass() for atom in molecule.GetAtoms()]),
                        conformers=np.zeros((0, molecule.GetNumAtoms(), 3)), conformer_energies=np.zeros(0),
                        charge=total_charge, multiplicity=spin, force_field=force_field)

    def minimise(embedded: Chem.Mol) -> np.ndarray:
        energies = minimise_with_rdkit(embedded, mmff_variant(molecule, force_field))
        if system is not None and not force_field.startswith("mmff"):
            energies = minimise_with_openmm(embedded, system)
        return energies

    energies, dropped = _sound_conformers(molecule, bare, minimise, n_conformers, seed, max_attempts)
    energies, far = _turn_over(molecule, bare, minimise, energies) if n_conformers > 1 else (energies, NOBODY)
    kept = of_every_side(select_distinct(molecule, energies), far, n_conformers)
    conformers = np.array([molecule.GetConformer(i).GetPositions() for i, _ in kept]) * NM_PER_ANGSTROM
    found = replace(bare, conformers=conformers, conformer_energies=np.array([energy for _, energy in kept]))
    return Prepared(found, molecule, system, dropped, guesses).with_conformers(_numbered_alike(found))


def prepare_structure(structure: Structure, name: str | None = None, *, force_field: str | None = None) -> Prepared:
    """A user's own structures: each geometry a conformer as it is, in their order; the System built for these atoms.

    Equivalent atoms of later geometries are numbered as in the first (`hands.numbered_alike`).

    force_field None: MMFF94 where that has parameters, else none.  Energies of conformers are 0: none is preferred.
    Raises UserError for a geometry that is another molecule than the first, by `species.Species`.
    """
    name = name or structure.name
    check_name(name)
    molecule = Chem.Mol(structure.rdkit)
    if force_field is None:
        force_field = _known_force_field(molecule)
    system, guesses = _system(molecule, name, force_field)
    smiles, order = smiles_of(molecule)
    positions = np.array([conformer.GetPositions() for conformer in molecule.GetConformers()]) * NM_PER_ANGSTROM
    found = _molecule_of(molecule, name=name, smiles=smiles, masses=structure.masses, conformers=positions,
                         conformer_energies=np.zeros(len(positions)), charge=structure.charge,
                         multiplicity=structure.multiplicity, force_field=force_field, smiles_order=order)
    prepared = Prepared(found, molecule, system, guesses=guesses).with_conformers(_numbered_alike(found))
    species = prepared.molecule.species()
    if not species.stereo.known:
        raise UserError(f"the bonds of {structure.where} have no SMILES that RDKit reads back ('{smiles}')")
    for n, geometry in enumerate(prepared.molecule.conformers, 1):
        if changes := species.changes(geometry):
            of = f"geometry {n} is another molecule than the first" if n > 1 else "its geometry is not of its bonds"
            raise UserError(f"{structure.where}: {of} ({changes[0]}); atoms are counted from 0")
    return prepared


def _system(rdkit: Chem.Mol, name: str, force_field: str) -> tuple[openmm.System | None, list[str]]:
    """The System of a force field, and angles and torsions that it guesses the parameters of."""
    if force_field == NONE:
        return None, []
    try:
        guesses = _check_guesses(rdkit, name, force_field)
        return build_system(rdkit, force_field), guesses
    except UserError as error:
        hint = f"; --force-field {NONE} prepares it for QM" if force_field.startswith("mmff") else ""
        raise UserError(f"{error}{hint}") from None


def _molecule_of(rdkit: Chem.Mol, **known) -> Molecule:
    """The Molecule with RDKit's atoms and bonds; known: its other fields."""
    bonds = [(sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx())), b.GetBondTypeAsDouble()) for b in rdkit.GetBonds()]
    bonds.sort()
    return Molecule(numbers=np.array([atom.GetAtomicNum() for atom in rdkit.GetAtoms()], dtype=np.int64),
                    bonds=np.array([pair for pair, _ in bonds], dtype=np.int64).reshape(-1, 2),
                    bond_orders=np.array([order for _, order in bonds], dtype=np.float64), **known)


def _numbered_alike(molecule: Molecule) -> Molecule:
    """The same with equivalent atoms of all conformers numbered as in the first."""
    m = molecule
    return replace(m, conformers=numbered_alike(m.conformers, m.numbers, m.bonds, m.masses))


def _check_guesses(molecule: Chem.Mol, name: str, force_field: str) -> list[str]:
    """Angles and torsions whose parameters are guesses, said aloud; UserError where a bond's are, which are wrong."""
    if not force_field.startswith("mmff"):
        return []
    label = force_field.replace("mmff", "MMFF")
    guesses = guessed_parameters(molecule, label)
    if guesses.bonds:
        raise UserError(f"{label} has no parameters for the bond {guesses.bonds[0]} of {name}, and RDKit's guess is "
                        "that of a single bond")
    found = guesses.angles + guesses.torsions
    if found:
        log.warning("%s: %s has no parameters for %d angles and %d torsions (%s%s); rules guess them", name, label,
                    len(guesses.angles), len(guesses.torsions), ", ".join(found[:3]), ", ..." if len(found) > 3 else "")
    return found


def _sound_conformers(molecule: Chem.Mol, bare: Molecule, minimise: Callable[[Chem.Mol], np.ndarray],
                      n_conformers: int, seed: int, max_attempts: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Embed and minimise n_conformers and more, in place; their energies (C,) kJ/mol, and what was dropped as no
    molecule.

    What is dropped is embedded anew, from random coordinates, which turn fewer ring atoms inside out.
    """
    positions, energies, dropped = np.zeros((0, len(bare), 3)), np.zeros(0), []
    sound = Judged(np.zeros(0, dtype=int), [])
    for attempt in range(EMBEDDINGS):
        missing = n_conformers - len(sound.kept)
        embed_conformers(molecule, missing, seed + attempt * LATER_SEED, max_attempts, from_random=attempt > 0)
        energies = np.concatenate([energies, minimise(molecule)])
        if not np.isfinite(energies).all():
            raise UserError(f"the minimised structure of '{bare.smiles}' is not finite")
        new = np.array([conformer.GetPositions() for conformer in molecule.GetConformers()]) * NM_PER_ANGSTROM
        positions = np.concatenate([positions, new])
        sound = judge(bare, positions, energies, FORCE_FIELD_WINDOW_KJ)
        dropped += sound.dropped
        positions, energies = positions[np.sort(sound.kept)], energies[np.sort(sound.kept)]
        if not sound.dropped or len(sound.kept) >= n_conformers:
            break
    if not len(positions):
        raise UserError(f"no structure of '{bare.smiles}' that was embedded is the molecule ({causes_of(dropped)}); "
                        "raise --n-conformers or --max-attempts, or check its SMILES")
    add_conformers(molecule, positions * ANGSTROM_PER_NM)
    return energies, dropped


def _turn_over(molecule: Chem.Mol, bare: Molecule, minimise: Callable[[Chem.Mol], np.ndarray],
               energies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add, in place, conformers whose locked torsions are turned over, where these are the molecule.

    The energies (C,) kJ/mol of all; far (L,C): which have a torsion on the side that no embedded one has.
    """
    positions = np.array([conformer.GetPositions() for conformer in molecule.GetConformers()]) * NM_PER_ANGSTROM
    torsions, middle = locked_torsions(bare, positions)
    if len(torsions):
        more = Chem.Mol(molecule)
        add_conformers(more, turned_over(bare, positions[np.argsort(energies, kind="stable")],
                                         torsions) * ANGSTROM_PER_NM)
        own = minimise(more)
        new = np.array([conformer.GetPositions() for conformer in more.GetConformers()]) * NM_PER_ANGSTROM
        positions, both = np.concatenate([positions, new]), np.concatenate([energies, own])
        sound = judge(bare, positions, np.where(np.isfinite(both), both, np.inf), FORCE_FIELD_WINDOW_KJ).kept
        rows = np.unique(np.concatenate([np.arange(len(energies)), sound]))
        positions, energies = positions[rows], both[rows]
        add_conformers(molecule, positions * ANGSTROM_PER_NM)
    return energies, np.abs(wrap_deg(dihedrals_deg(positions, torsions) - middle)).T > 90.0


def prepare_entry(entry: Entry, **options) -> Prepared:
    """prepare_molecule for a line of a SMILES file, whose mistakes name that line."""
    try:
        return prepare_molecule(entry.name, entry.smiles, charge=entry.charge, multiplicity=entry.multiplicity,
                                **options)
    except UserError as error:
        raise UserError(f"{entry.where}: {error}") from None


def write_prepared(prepared: Prepared, raw: str | Path) -> dict:
    """Write <raw>/<name>/{molecule.npz, structure.pdb, system.xml}; return its metadata record."""
    molecule = prepared.molecule
    folder = Path(raw) / molecule.name
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomic(folder / "structure.pdb", Chem.MolToPDBBlock(prepared.rdkit, confId=0))
    if prepared.system is None:
        (folder / "system.xml").unlink(missing_ok=True)  # another force field's must not linger
    else:
        write_text_atomic(folder / "system.xml", openmm.XmlSerializer.serialize(prepared.system))
    molecule.save(folder / "molecule.npz")
    return {
        "smiles": molecule.smiles,
        "isomeric_smiles": Chem.MolToSmiles(Chem.RemoveHs(prepared.rdkit)),
        "formula": CalcMolFormula(prepared.rdkit),
        "n_atoms": len(molecule),
        "charge": molecule.charge,
        "multiplicity": molecule.multiplicity,
        "force_field": molecule.force_field,
        "relaxed_on": molecule.relaxed_on or None,
        "n_conformers": len(molecule.conformers),
        "conformer_energies_kJ_per_mol": [round(float(e), 6) for e in molecule.conformer_energies],
        **({"embedded_and_dropped": [each["cause"] for each in prepared.dropped]} if prepared.dropped else {}),
        **({"guessed_parameters": prepared.guesses} if prepared.guesses else {}),
    }


def check_not_another(prepared: Prepared, raw: str | Path, way_out: str) -> None:
    """UserError, which ends with `way_out`, where <raw>/<name> holds another preparation than this one."""
    molecule, folder = prepared.molecule, Path(raw) / prepared.molecule.name
    if not (folder / "molecule.npz").is_file():
        return
    there = vars(Molecule.load(folder))
    differ = [key for key, value in vars(molecule).items() if not _alike(value, there[key])]
    system = folder / "system.xml"
    if (system.read_text() if system.is_file() else None) != system_xml_of(prepared):
        differ.append("system.xml")
    if differ:
        raise UserError(f"{folder} holds another preparation of '{molecule.name}', whose {', '.join(differ)} "
                        f"{'differs' if len(differ) == 1 else 'differ'}; {way_out}")


def _alike(one: Any, other: Any) -> bool:
    """Equal; real numbers, which another number of threads rounds otherwise, nearly."""
    a, b = np.ravel(one), np.ravel(other)  # no bonds at all may be stored in either of two shapes
    return np.array_equal(a, b) or (a.shape == b.shape and a.dtype.kind == b.dtype.kind == "f"
                                    and np.allclose(a, b, atol=ALIKE))


def update_metadata(raw: str | Path, records: dict[str, dict]) -> None:
    """Merge records, by molecule name, into <raw>/metadata.json."""
    path = Path(raw) / "metadata.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: nothing guards there
            fcntl.flock(folder, fcntl.LOCK_EX)  # programs that prepare side by side must not lose each other's records
        known = read_metadata(raw)
        known.update(records)
        write_json_atomic(path, known)
    finally:
        os.close(folder)


def read_metadata(raw: str | Path) -> dict[str, dict]:
    """What <raw>/metadata.json holds, {} if there is none."""
    path = Path(raw) / "metadata.json"
    if not path.exists():
        return {}
    try:
        known = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        known = None
    if not isinstance(known, dict):
        raise UserError(f"{path} is not a JSON object; move it away and prepare the molecules again")
    return known


def ensure_prepared(entry: Entry, raw: str | Path, *, seed: int = 0) -> Molecule:
    """The prepared molecule of a QM run: read from <raw>/<name>, or prepared there now.

    MMFF94 minimises it where MMFF94 has parameters; QM needs no System, so that a molecule
    without them is prepared all the same.  Raises UserError when the folder holds another
    molecule under this name.
    """
    if (Path(raw) / entry.name / "molecule.npz").is_file():
        return read_prepared(entry, raw)
    molecule, _, _ = _parsed(entry)
    prepared = prepare_entry(entry, seed=seed, force_field=_known_force_field(molecule))
    update_metadata(raw, {entry.name: write_prepared(prepared, raw)})
    return prepared.molecule


def read_prepared(entry: Entry, raw: str | Path) -> Molecule:
    """The molecule in <raw>/<name>; UserError where it is another one than the entry."""
    _, charge, multiplicity = _parsed(entry)
    folder = Path(raw) / entry.name
    found = Molecule.load(folder)
    if ((Chem.CanonSmiles(found.smiles), found.charge, found.multiplicity)
            != (Chem.CanonSmiles(entry.smiles), charge, multiplicity)):
        raise UserError(f"{entry.where}: {folder} holds '{found.smiles}' (charge {found.charge}, multiplicity "
                        f"{found.multiplicity}), not '{entry.smiles}'; rename the molecule or take another folder")
    return found


def _parsed(entry: Entry) -> tuple[Chem.Mol, int, int]:
    try:
        return parse_smiles(entry.smiles, entry.charge, entry.multiplicity)
    except UserError as error:
        raise UserError(f"{entry.where}: {error}") from None


def prepare_smiles(smiles: str, name: str | None = None, *, force_field: str | None = None, charge: int | None = None,
                   multiplicity: int | None = None, **options) -> Prepared:
    """A SMILES prepared as `prepare_molecule` does, called by its formula without a name.

    force_field None: MMFF94 where that has parameters, else none.
    """
    parsed, _, _ = parse_smiles(smiles, charge, multiplicity)
    if name is None:
        name = re.sub(r"[^A-Za-z0-9-]", "_", CalcMolFormula(parsed))
    return prepare_entry(Entry(name, smiles, charge, multiplicity),
                         force_field=force_field or _known_force_field(parsed), **options)


def molecule_from_smiles(smiles: str, name: str | None = None, **options) -> tuple[Molecule, str | None]:
    """The molecule of `prepare_smiles`, and its OpenMM System as XML or None."""
    prepared = prepare_smiles(smiles, name, **options)
    return prepared.molecule, system_xml_of(prepared)


def system_xml_of(prepared: Prepared) -> str | None:
    """Its OpenMM System as XML, where it has one."""
    return openmm.XmlSerializer.serialize(prepared.system) if prepared.system is not None else None


def system_xml_for(molecule: Molecule) -> str | None:
    """The OpenMM System of a molecule in memory as XML, in its force field or MMFF94; None where there is none."""
    rdkit = rdkit_of(molecule)
    if rdkit is None:
        raise UserError(f"molecule {molecule.name} has no SMILES with its atoms and bonds, so no force field can be "
                        "built for it; give its SMILES or its structure file")
    force_field = _known_force_field(rdkit) if molecule.force_field == NONE else molecule.force_field
    return openmm.XmlSerializer.serialize(build_system(rdkit, force_field)) if force_field != NONE else None


def _known_force_field(parsed: Chem.Mol) -> str:
    return DEFAULT if mmff_variant(parsed, DEFAULT) else NONE
