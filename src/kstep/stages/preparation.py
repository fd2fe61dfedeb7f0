"""Every molecule of a SMILES file prepared: a line that is wrong does not stop the others."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kstep.config import HOW_IT_WORKS, ChargedConfig
from kstep.errors import UserError
from kstep.files import check_writable, sha256
from kstep.fingerprint import as_written, check_same
from kstep.molecules import DEFAULT, check_force_field
from kstep.molecules.molecule import Molecule, check_name
from kstep.molecules.perception import Structure
from kstep.molecules.prepare import (
    NONE,
    Prepared,
    check_not_another,
    prepare_entry,
    prepare_structure,
    read_metadata,
    update_metadata,
    write_prepared,
)
from kstep.molecules.smiles import Entry, read_smiles_file
from kstep.molecules.structure_file import is_structure_file, read_structure
from kstep.outputs import set_aside
from kstep.provenance import provenance
from kstep.runs.starts import settle_starts
from kstep.shipped import find_molecules
from kstep.stages.physics import TruePhysics

log = logging.getLogger("kstep")
DEFAULT_FILE = "data/molecules.smi"
KEEP = "use another --out-dir, or --overwrite makes it anew, and keeps what is there under another name"


@dataclass(frozen=True)
class PreparationSettings:
    """smiles: file of lines 'SMILES name [charge=.. multiplicity=..]', or with `name` one SMILES, or a structure file.

    structure: a structure file, of the SMILES where there is one; molecules: only these of the file of SMILES (empty:
    all); charge, multiplicity: of a literal SMILES or a structure, a file of SMILES states them per line; qm: config of
    the method that conformers are relaxed and judged on, whose energies they then have (None: those of the force
    field); n_workers: processes for its true calls (None: all cores); overwrite: keep what is there under another name.
    """

    smiles: str
    out: Path
    name: str | None = None
    structure: Path | None = None
    charge: int | None = None
    multiplicity: int | None = None
    molecules: tuple[str, ...] = ()
    force_field: str = DEFAULT
    n_conformers: int = 20
    max_attempts: int = 100
    seed: int = 0
    qm: ChargedConfig | None = None
    n_workers: int | None = None
    overwrite: bool = False

    def asked_of(self, source: Entry | Structure) -> dict[str, Any]:
        """All that decides what is prepared."""
        how: dict[str, Any] = {"force_field": self.force_field, "seed": self.seed}
        if isinstance(source, Structure):
            how |= {"structure": sha256(self.structure or self.smiles), "charge": source.charge,
                    "multiplicity": source.multiplicity}
        else:
            how |= {"smiles": source.smiles, "charge": source.charge, "multiplicity": source.multiplicity,
                    "n_conformers": self.n_conformers, "max_attempts": self.max_attempts}
        return as_written(how | {"qm": self.qm and self.qm.model_dump(exclude=HOW_IT_WORKS)})

    def sources(self) -> tuple[Sequence[Entry | Structure], list[str]]:
        """What to prepare, and one sentence per line of the file that cannot be."""
        own = is_structure_file(self.smiles)
        if own or self.structure is not None:
            if self.molecules or (own and self.structure is not None):
                raise UserError("one structure file is one molecule; it goes with no --molecule and no other file")
            named = None if own or self.smiles == DEFAULT_FILE else self.smiles
            return [read_structure(self.structure or self.smiles, smiles=named, charge=self.charge,
                                   multiplicity=self.multiplicity)], []
        if self.name is not None:
            if self.molecules:
                raise UserError("--molecule picks a line of a file; with --name, --smiles is a single SMILES")
            check_name(self.name)
            return [Entry(self.name, self.smiles, self.charge, self.multiplicity)], []
        for flag in ("charge", "multiplicity"):
            if getattr(self, flag) is not None:
                raise UserError(f"--{flag} belongs to a literal SMILES with --name, or to --structure; a file of "
                                "SMILES states it per line")
        return read_smiles_file(find_molecules(self.smiles), list(self.molecules))


def prepare_all(settings: PreparationSettings) -> tuple[list[str], list[str]]:
    """Write <out>/<name>/{molecule.npz, structure.pdb, system.xml} and <out>/metadata.json, merged with what is there.

    A molecule that was prepared alike is kept; another preparation under its name is never replaced unasked.  Returns
    the names of what was prepared, and a sentence for each molecule that could not be.
    """
    if settings.force_field != NONE:
        check_force_field(settings.force_field)
    sources, problems = settings.sources()
    read_metadata(settings.out)  # a broken one is found before the work, not after
    check_writable(settings.out, folder=True)
    versions, done = provenance(), []
    for source in tqdm(sources, unit="molecule", desc="preparing", disable=None):
        try:
            asked = settings.asked_of(source)
            if _is_there(settings, settings.name or source.name, asked):
                done.append(settings.name or source.name)
                continue
            prepared, of_starts = _relaxed(_prepare(source, settings), settings)
            check_not_another(prepared, settings.out, KEEP)
        except UserError as error:
            problems.append(str(error))
            continue
        record = write_prepared(prepared, settings.out) | of_starts | {"asked": asked, "seed": settings.seed} | versions
        name, energies = prepared.molecule.name, prepared.molecule.conformer_energies
        update_metadata(settings.out, {name: record})
        done.append(name)
        given = isinstance(source, Structure) and settings.qm is None
        over = "as given" if given else f"over {energies[-1] - energies[0]:.1f} kJ/mol"
        log.info("%-16s %3d atoms, %2d conformers %s -> %s", name, len(prepared.molecule), len(energies), over,
                 settings.out / name)
    return done, problems


def _is_there(settings: PreparationSettings, name: str, asked: dict[str, Any]) -> bool:
    """Whether this very preparation is there; what is there is set aside with `overwrite`, UserError where it is known
    to be another."""
    check_name(name)
    folder = settings.out / name
    if settings.overwrite:
        set_aside(folder)
    written = read_metadata(settings.out).get(name)
    if not (folder / "molecule.npz").is_file() or not isinstance(written, dict) or "asked" not in written:
        return False  # of an earlier version, or of plain MD: it is compared when this one is made
    check_same(f"{folder} was prepared", written["asked"], asked, KEEP)
    has_system = Molecule.load(folder).force_field != NONE
    if not all((folder / file).is_file() for file in ("structure.pdb", *(["system.xml"] if has_system else []))):
        return False
    log.info("%s is there already; --overwrite makes it anew", folder)
    return True


def _prepare(source: Entry | Structure, settings: PreparationSettings) -> Prepared:
    if isinstance(source, Structure):
        return prepare_structure(source, settings.name, force_field=settings.force_field)
    return prepare_entry(source, n_conformers=settings.n_conformers, seed=settings.seed,
                         max_attempts=settings.max_attempts, force_field=settings.force_field)


def _relaxed(prepared: Prepared, settings: PreparationSettings) -> tuple[Prepared, dict[str, Any]]:
    """Conformers relaxed and judged on the QM method, where there is one; what metadata.json says of that."""
    if settings.qm is None:
        return prepared, {}
    physics = TruePhysics(prepared.molecule, settings.qm)
    physics.check()
    starts = settle_starts(prepared.molecule, physics.spec(warm_start=False),
                           n_workers=physics.workers(settings.n_workers), wanted=len(prepared.molecule.conformers))
    return prepared.with_conformers(starts.molecule), {"starts": starts.record}
