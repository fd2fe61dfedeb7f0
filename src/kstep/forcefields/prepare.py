"""From a line of a SMILES file to a molecule with conformers, a topology and an openmm.System.

A SMILES file holds one molecule per line, `SMILES name [charge=.. multiplicity=..]`; blank
lines and everything after ` #` are ignored.  A mistake in one line never stops the others.
"""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openmm
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers, rdMolAlign
from rdkit.Chem.rdMolDescriptors import CalcMolFormula

from kstep.errors import UserError, did_you_mean
from kstep.forcefields import DEFAULT, EXAMPLES, build_system, check_force_field
from kstep.forcefields.mmff94 import mmff_properties
from kstep.molecule import Molecule
from kstep.units import ANGSTROM_PER_NM, KJ_PER_KCAL, NM_PER_ANGSTROM

log = logging.getLogger("kstep")

NONE = "none"  # conformers only, no System: enough for QM
FORCE_FIELDS = (*EXAMPLES, NONE)
SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
RESERVED_NAMES = ("metadata.json",)
DUPLICATE_RMSD_A = 0.25  # over heavy atoms and polar hydrogens
MINIMISER_ITERATIONS = 5000


@dataclass(frozen=True)
class Entry:
    """One molecule as the user wrote it; `where` names the file and line in messages."""

    name: str
    smiles: str
    charge: int | None = None  # None: the SMILES' formal charge
    multiplicity: int | None = None  # None: 1, which a radical may not be
    line: int = 0
    where: str = "--smiles"


@dataclass(frozen=True)
class Prepared:
    """What the force-field stage hands on."""

    molecule: Molecule
    rdkit: Chem.Mol  # explicit hydrogens, conformers in the order of molecule.conformers
    system: openmm.System | None  # None for force field 'none'


def check_name(name: str) -> None:
    """A name becomes a folder: letters, digits, '_', '-' and '.', not starting with '.' or '-'."""
    if not SAFE_NAME.fullmatch(name) or name in RESERVED_NAMES:
        raise UserError(f"name '{name}' cannot be a folder name here; use letters, digits, '_', '-' and '.', "
                        "and start with a letter, a digit or '_'")


def read_smiles_file(path: str | Path) -> tuple[list[Entry], list[str]]:
    """Read a SMILES file: the usable entries, and one sentence per line that is not.

    Raises UserError when the file is missing, unreadable or holds no molecule at all.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"SMILES file {path} does not exist; a literal SMILES needs --name beside it")
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError:
        raise UserError(f"SMILES file {path} is not text") from None
    entries, problems, taken = [], [], {}
    for number, line in enumerate(lines, 1):
        words = re.sub(r"(^|\s)#.*", "", line).split()  # '#' inside a word is a triple bond
        if not words:
            continue
        where = f"{path} line {number}"
        try:
            entry = parse_entry(words, number, where)
            if entry.name in taken:
                raise UserError(f"{where}: name '{entry.name}' is already used in line {taken[entry.name]}; "
                                "give every molecule its own")
        except UserError as error:
            problems.append(str(error))
            continue
        taken[entry.name] = number
        entries.append(entry)
    if not entries and not problems:
        raise UserError(f"SMILES file {path} holds no molecule; each line reads 'SMILES name'")
    return entries, problems


def parse_entry(words: list[str], line: int, where: str) -> Entry:
    """`SMILES name [charge=.. multiplicity=..]`, already split at white space."""
    if len(words) < 2:
        raise UserError(f"{where}: '{words[0]}' has no name; each line reads 'SMILES name'")
    smiles, name, *assignments = words
    try:
        check_name(name)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    numbers = {}
    for word in assignments:
        key, _, value = word.partition("=")
        if key not in ("charge", "multiplicity"):
            raise UserError(f"{where}: unexpected '{word}' after name '{name}' (names hold no spaces)"
                            f"{did_you_mean(key, ['charge', 'multiplicity'])}")
        if not re.fullmatch(r"[+-]?\d+", value):
            raise UserError(f"{where}: {key} of '{name}' must be a whole number, not '{value}'")
        numbers[key] = int(value)
    return Entry(name, smiles, line=line, where=where, **numbers)


def parse_smiles(smiles: str, charge: int | None = None, multiplicity: int | None = None) -> tuple[Chem.Mol, int, int]:
    """RDKit molecule with explicit hydrogens, its total charge and its spin multiplicity.

    Raises UserError for text that is not a SMILES, no atoms, dummy atoms, several fragments, a
    charge other than the SMILES' own, and a multiplicity that the electrons cannot have.
    """
    with rdBase.BlockLogs():
        rough = Chem.MolFromSmiles(smiles, sanitize=False)
        if rough is None:
            raise UserError(f"SMILES '{smiles}' cannot be read; check its brackets, ring numbers and symbols")
        faults = [problem.Message() for problem in Chem.DetectChemistryProblems(rough)]
        molecule = None if faults else Chem.MolFromSmiles(smiles)
    if molecule is None:
        raise UserError(f"SMILES '{smiles}' is no possible molecule: {'; '.join(faults) or 'it cannot be sanitised'}")
    if molecule.GetNumAtoms() == 0:
        raise UserError("the SMILES is empty: it has no atoms")
    if any(atom.GetAtomicNum() == 0 for atom in molecule.GetAtoms()):
        raise UserError(f"SMILES '{smiles}' has a dummy atom '*'; name every element")
    fragments = Chem.MolToSmiles(molecule).split(".")
    if len(fragments) > 1:
        raise UserError(f"SMILES '{smiles}' has {len(fragments)} fragments ({', '.join(fragments)}); "
                        "prepare one molecule without its counter-ions or solvent")
    molecule = Chem.AddHs(molecule)

    formal_charge = Chem.GetFormalCharge(molecule)
    if charge is not None and charge != formal_charge:
        raise UserError(f"charge={charge} contradicts SMILES '{smiles}', whose formal charges add up to "
                        f"{formal_charge}")
    radicals = sum(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms())
    if multiplicity is None and radicals:
        raise UserError(f"SMILES '{smiles}' is a radical ({radicals} unpaired electrons on its atoms); "
                        f"state multiplicity={radicals + 1} if that is meant")
    multiplicity = 1 if multiplicity is None else multiplicity
    electrons = sum(atom.GetAtomicNum() for atom in molecule.GetAtoms()) - formal_charge
    unpaired = multiplicity - 1
    if not 0 <= unpaired <= electrons or (electrons - unpaired) % 2:
        raise UserError(f"multiplicity={multiplicity} is impossible for the {electrons} electrons of '{smiles}' "
                        f"(charge {formal_charge}); it must be {'even' if electrons % 2 else 'odd'}, "
                        f"between {1 + electrons % 2} and {electrons + 1}")
    return molecule, formal_charge, multiplicity


def settle_stereochemistry(molecule: Chem.Mol, name: str, max_attempts: int) -> None:
    """Decide every open stereocentre in place, as a first structure has it, and say so.

    Conformers of one molecule must be one molecule: left open, RDKit would draw each centre
    anew for each conformer.  The choice does not depend on the user's seed.
    """
    if all(centre.specified != Chem.StereoSpecified.Unspecified for centre in Chem.FindPotentialStereo(molecule)):
        return
    before = Chem.MolToSmiles(Chem.RemoveHs(molecule))
    embed_conformers(molecule, 1, 0, max_attempts)
    Chem.AssignStereochemistryFrom3D(molecule)
    after = Chem.MolToSmiles(Chem.RemoveHs(molecule))
    if after != before:
        log.warning("%s: open stereochemistry was settled as %s", name, after)


def embed_conformers(molecule: Chem.Mol, n_conformers: int, seed: int, max_attempts: int) -> None:
    """Add ETKDGv3 conformers; if none embeds, try again from random coordinates."""
    parameters = rdDistGeom.ETKDGv3()
    parameters.randomSeed = seed % (2**31 - 2) + 1  # RDKit: 0 gives every conformer the same seed
    parameters.maxIterations = max_attempts
    parameters.numThreads = 1
    with rdBase.BlockLogs():
        for random_start in (False, True):
            parameters.useRandomCoords = random_start
            if len(rdDistGeom.EmbedMultipleConfs(molecule, n_conformers, parameters)):
                return
    raise UserError(f"no 3-D structure of '{Chem.MolToSmiles(Chem.RemoveHs(molecule))}' was found in {max_attempts} "
                    "attempts per conformer; check its stereochemistry and rings, or raise --max-attempts")


def minimise_with_rdkit(molecule: Chem.Mol, variant: str | None) -> np.ndarray:
    """Minimise every conformer in place with MMFF, UFF or (no parameters) not at all; kJ/mol."""
    if variant is not None:
        # On a copy of the molecule: typing kekulises it.
        typed = Chem.Mol(molecule)
        results = rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(typed, maxIters=MINIMISER_ITERATIONS,
                                                                mmffVariant=variant)
    elif rdForceFieldHelpers.UFFHasAllMoleculeParams(molecule):
        typed = Chem.Mol(molecule)
        results = rdForceFieldHelpers.UFFOptimizeMoleculeConfs(typed, maxIters=MINIMISER_ITERATIONS)
    else:
        return np.zeros(molecule.GetNumConformers())
    for relaxed, conformer in zip(typed.GetConformers(), molecule.GetConformers(), strict=True):
        conformer.SetPositions(relaxed.GetPositions())
    unfinished = sum(1 for flag, _ in results if flag)
    if unfinished:
        log.debug("%d of %d conformers stopped before their minimum", unfinished, len(results))
    return np.array([energy for _, energy in results]) * KJ_PER_KCAL


def minimise_with_openmm(molecule: Chem.Mol, system: openmm.System) -> np.ndarray:
    """Minimise every conformer in place in the System's own force field; kJ/mol."""
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference"))
    energies = []
    for conformer in molecule.GetConformers():
        context.setPositions(conformer.GetPositions() * NM_PER_ANGSTROM)
        openmm.LocalEnergyMinimizer.minimize(context, tolerance=1.0, maxIterations=MINIMISER_ITERATIONS)
        state = context.getState(energy=True, positions=True)
        conformer.SetPositions(np.asarray(state.getPositions(asNumpy=True)._value) * ANGSTROM_PER_NM)
        energies.append(state.getPotentialEnergy()._value)
    return np.array(energies)


def select_distinct(molecule: Chem.Mol, energies: np.ndarray) -> list[tuple[int, float]]:
    """Conformer ids and energies by rising energy, without those that repeat a better one.

    Hydrogens on carbon do not count, hydrogens on N, O, S do: ethanol's rotamers differ in one.
    """
    skeleton = Chem.RWMol(Chem.Mol(molecule))
    for atom in reversed(list(molecule.GetAtoms())):
        if atom.GetAtomicNum() == 1 and any(n.GetAtomicNum() == 6 for n in atom.GetNeighbors()):
            skeleton.RemoveAtom(atom.GetIdx())
    Chem.FastFindRings(skeleton)
    ids = [conformer.GetId() for conformer in molecule.GetConformers()]
    kept: list[tuple[int, float]] = []
    for index in np.argsort(energies, kind="stable"):
        new = ids[index]
        if all(rdMolAlign.GetBestRMS(Chem.Mol(skeleton), skeleton, new, old, maxMatches=1000) > DUPLICATE_RMSD_A
               for old, _ in kept):
            kept.append((new, float(energies[index])))
    return kept


def prepare_molecule(name: str, smiles: str, *, n_conformers: int = 20, seed: int = 0, max_attempts: int = 100,
                     force_field: str = DEFAULT, charge: int | None = None,
                     multiplicity: int | None = None) -> Prepared:
    """Embed, minimise, sort and thin out conformers; build the System.

    `n_conformers` are embedded (ETKDGv3), minimised in `force_field` (mmff94, mmff94s, *.offxml,
    gaff-*; 'none' minimises with whatever RDKit has and builds no System), and duplicates dropped.
    Raises UserError, one sentence without the name, for everything a user can get wrong.
    """
    check_name(name)
    if force_field != NONE:
        check_force_field(force_field)
    if n_conformers < 1 or max_attempts < 1:
        raise UserError("n_conformers and max_attempts must be at least 1")
    molecule, total_charge, spin = parse_smiles(smiles, charge, multiplicity)
    settle_stereochemistry(molecule, name, max_attempts)
    system = None
    if force_field != NONE:
        try:
            system = build_system(molecule, force_field)
        except UserError as error:
            hint = f"; --force-field {NONE} prepares it for QM" if force_field.startswith("mmff") else ""
            raise UserError(f"{error}{hint}") from None
    embed_conformers(molecule, n_conformers, seed, max_attempts)
    variant = mmff_variant(molecule, force_field)
    energies = minimise_with_rdkit(molecule, variant)
    if force_field != NONE and not force_field.startswith("mmff"):
        energies = minimise_with_openmm(molecule, system)

    kept = select_distinct(molecule, energies)
    masses = np.array([atom.GetMass() for atom in molecule.GetAtoms()])
    conformers = np.array([molecule.GetConformer(i).GetPositions() for i, _ in kept]) * NM_PER_ANGSTROM
    conformers -= np.einsum("n,cnd->cd", masses / masses.sum(), conformers)[:, None]
    if not np.isfinite(conformers).all():
        raise UserError(f"the minimised structure of '{smiles}' is not finite")
    molecule.RemoveAllConformers()
    for positions in conformers:
        conformer = Chem.Conformer(len(masses))
        conformer.SetPositions(positions * ANGSTROM_PER_NM)
        molecule.AddConformer(conformer, assignId=True)

    bonds = [(sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx())), b.GetBondTypeAsDouble()) for b in molecule.GetBonds()]
    bonds.sort()
    return Prepared(
        Molecule(
            name=name, smiles=smiles,
            numbers=np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()], dtype=np.int64),
            masses=masses,
            bonds=np.array([pair for pair, _ in bonds], dtype=np.int64).reshape(-1, 2),
            bond_orders=np.array([order for _, order in bonds], dtype=np.float64),
            conformers=conformers,
            conformer_energies=np.array([energy for _, energy in kept]),
            charge=total_charge, multiplicity=spin, force_field=force_field),
        molecule, system)


def mmff_variant(molecule: Chem.Mol, force_field: str) -> str | None:
    """The MMFF variant to minimise with first, None where RDKit has no types for this molecule."""
    variant = "MMFF94s" if force_field == "mmff94s" else "MMFF94"
    try:
        mmff_properties(Chem.Mol(molecule), variant)
    except UserError:
        return None
    return variant


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
        "n_conformers": len(molecule.conformers),
        "conformer_energies_kJ_per_mol": [round(float(e), 6) for e in molecule.conformer_energies],
    }


def update_metadata(raw: str | Path, records: dict[str, dict]) -> None:
    """Merge records, by molecule name, into <raw>/metadata.json."""
    path = Path(raw) / "metadata.json"
    known = read_metadata(raw)
    known.update(records)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, json.dumps(known, indent=1, sort_keys=True) + "\n")


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
        raise UserError(f"{path} is not a JSON object; delete it and prepare the molecules again")
    return known


def write_text_atomic(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def ensure_prepared(entry: Entry, raw: str | Path, *, seed: int = 0) -> Molecule:
    """The prepared molecule of a QM run: read from <raw>/<name>, or prepared there now.

    MMFF94 minimises it where MMFF94 has parameters; QM needs no System, so that a molecule
    without them is prepared all the same.  Raises UserError when the folder holds another
    molecule under this name.
    """
    folder = Path(raw) / entry.name
    if (folder / "molecule.npz").is_file():
        found = Molecule.load(folder)
        if describe(found.smiles, found.charge, found.multiplicity) != describe_entry(entry):
            raise UserError(f"{entry.where}: {folder} holds '{found.smiles}' (charge {found.charge}, multiplicity "
                            f"{found.multiplicity}), not '{entry.smiles}'; rename the molecule or delete the folder")
        return found
    try:
        molecule, _, _ = parse_smiles(entry.smiles, entry.charge, entry.multiplicity)
    except UserError as error:
        raise UserError(f"{entry.where}: {error}") from None
    force_field = DEFAULT if mmff_variant(molecule, DEFAULT) else NONE
    prepared = prepare_entry(entry, seed=seed, force_field=force_field)
    update_metadata(raw, {entry.name: write_prepared(prepared, raw)})
    return prepared.molecule


def describe_entry(entry: Entry) -> tuple[str, int, int]:
    try:
        _, charge, multiplicity = parse_smiles(entry.smiles, entry.charge, entry.multiplicity)
    except UserError as error:
        raise UserError(f"{entry.where}: {error}") from None
    return describe(entry.smiles, charge, multiplicity)


def describe(smiles: str, charge: int, multiplicity: int) -> tuple[str, int, int]:
    return Chem.CanonSmiles(smiles), charge, multiplicity
