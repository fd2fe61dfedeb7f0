"""The SMILES file: one molecule per line, `SMILES name [charge=.. multiplicity=..]`.

Blank lines and everything after ` #` are ignored.  A mistake in one line never stops the others.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rdkit import Chem, rdBase

from kstep.config import shown
from kstep.errors import UserError, did_you_mean
from kstep.molecules.molecule import Molecule, check_name

log = logging.getLogger("kstep")

# neutral atoms and molecules whose ground state is a triplet (Huber, Herzberg, Constants of Diatomic Molecules, 1979):
# atoms of groups 14 and 16, diatomics of group 16, B2, the hydrides NH and PH, methylene; sorted atomic numbers
_GROUP_16 = (8, 16, 34, 52)
TRIPLETS = ({(6,), (14,), *((z,) for z in _GROUP_16)} | {(a, b) for a in _GROUP_16 for b in _GROUP_16 if a <= b}
            | {(5, 5), (1, 7), (1, 15), (1, 1, 6)})


@dataclass(frozen=True)
class Entry:
    """One molecule as the user wrote it; `where` names the file and line in messages."""

    name: str
    smiles: str
    charge: int | None = None  # None: the SMILES' formal charge
    multiplicity: int | None = None  # None: 1, which a radical may not be
    line: int = 0
    where: str = "--smiles"


def read_smiles_file(path: str | Path, names: list[str] | None = None) -> tuple[list[Entry], list[str]]:
    """Read a SMILES file: the usable entries, and one sentence per line that is not.

    names: only these entries, and then no complaint about other lines.  Raises UserError when
    the file is missing, unreadable or holds no molecule at all, or not one of `names`.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"SMILES file {path} does not exist; a literal SMILES needs --name beside it")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # editors of Windows begin a file with a mark
    except UnicodeDecodeError:
        raise UserError(f"SMILES file {path} is not UTF-8 text") from None
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
    for name in names or ():
        if name not in taken:
            raise UserError(f"molecule '{name}' is not in {path}{did_you_mean(name, taken)}")
    return ([entry for entry in entries if entry.name in names], []) if names else (entries, problems)


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
        if not re.fullmatch(r"[+-]?\d{1,9}", value):
            raise UserError(f"{where}: {key} of '{name}' must be a whole number, not {shown(value)}")
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
    check_multiplicity(n_electrons(molecule, formal_charge), multiplicity, f"'{smiles}' (charge {formal_charge})")
    return molecule, formal_charge, multiplicity


def n_electrons(molecule: Chem.Mol, charge: int) -> int:
    """How many electrons the atoms have at a total charge."""
    return sum(atom.GetAtomicNum() for atom in molecule.GetAtoms()) - charge


def check_multiplicity(electrons: int, multiplicity: int, what: str) -> None:
    """Refuse a spin multiplicity that so many electrons cannot have."""
    unpaired = multiplicity - 1
    if not 0 <= unpaired <= electrons or (electrons - unpaired) % 2:
        raise UserError(f"multiplicity={multiplicity} is impossible for the {electrons} electrons of {what}; it must "
                        f"be {'even' if electrons % 2 else 'odd'}, between {1 + electrons % 2} and {electrons + 1}")


def warn_of_triplet(name: str, numbers: np.ndarray, charge: int, multiplicity: int) -> None:
    """One line of warning where a singlet is asked for and the ground state is a triplet."""
    if charge == 0 and multiplicity == 1 and tuple(sorted(int(z) for z in numbers)) in TRIPLETS:
        log.warning("%s is computed as a singlet, and its ground state is a triplet; --multiplicity 3 asks for that",
                    name)


def rdkit_of(molecule: Molecule) -> Chem.Mol | None:
    """The SMILES of a molecule with all hydrogens, its atoms in the molecule's order.

    A SMILES may be that of the molecule's first atoms alone (a solute in its droplet).  None where there is no SMILES,
    or it has other atoms or bonds (an old file, one made by hand).
    """
    with rdBase.BlockLogs():
        named = Chem.MolFromSmiles(molecule.smiles) if molecule.smiles else None
    if named is None:
        return None
    named = Chem.AddHs(named)
    n, order = named.GetNumAtoms(), molecule.smiles_order
    if n > len(molecule) or (n < len(molecule) and molecule.region is None):
        return None
    if order is not None:
        if sorted(order.tolist()) != list(range(n)):
            return None
        named = Chem.RenumberAtoms(named, np.argsort(order).tolist())
    bonds = {frozenset((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())) for bond in named.GetBonds()}
    there = {frozenset(map(int, pair)) for pair in molecule.bonds if min(pair) < n}
    same = [atom.GetAtomicNum() for atom in named.GetAtoms()] == molecule.numbers[:n].tolist() and bonds == there
    return named if same else None
