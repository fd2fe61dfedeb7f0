"""Every molecule of a SMILES file prepared: a line that is wrong does not stop the others."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from kstep.errors import UserError
from kstep.files import check_writable
from kstep.molecules import DEFAULT, check_force_field
from kstep.molecules.molecule import check_name
from kstep.molecules.prepare import NONE, prepare_entry, read_metadata, update_metadata, write_prepared
from kstep.molecules.smiles import Entry, read_smiles_file
from kstep.progress import progress_bar
from kstep.provenance import provenance
from kstep.shipped import find_molecules

log = logging.getLogger("kstep")


@dataclass(frozen=True)
class PreparationSettings:
    """smiles: file of lines 'SMILES name [charge=.. multiplicity=..]', or with `name` one SMILES.

    molecules: only these of the file (empty: all); multiplicity: of a literal SMILES, a file states it per line.
    """

    smiles: str
    out: Path
    name: str | None = None
    multiplicity: int | None = None
    molecules: tuple[str, ...] = ()
    force_field: str = DEFAULT
    n_conformers: int = 20
    max_attempts: int = 100
    seed: int = 0

    def entries(self) -> tuple[list[Entry], list[str]]:
        """What to prepare, and one sentence per line of the file that cannot be."""
        if self.name is not None:
            if self.molecules:
                raise UserError("--molecule picks a line of a file; with --name, --smiles is a single SMILES")
            check_name(self.name)
            return [Entry(self.name, self.smiles, multiplicity=self.multiplicity)], []
        if self.multiplicity is not None:
            raise UserError("--multiplicity belongs to a literal SMILES with --name; a file states it per line")
        return read_smiles_file(find_molecules(self.smiles), list(self.molecules))


def prepare_all(settings: PreparationSettings) -> tuple[list[str], list[str]]:
    """Write <out>/<name>/{molecule.npz, structure.pdb, system.xml} and <out>/metadata.json, merged with what is there.

    Returns the names of what was prepared, and a sentence for each molecule that could not be.
    """
    if settings.force_field != NONE:
        check_force_field(settings.force_field)
    entries, problems = settings.entries()
    read_metadata(settings.out)  # a broken one is found before the work, not after
    check_writable(settings.out, folder=True)
    versions, done = provenance(), []
    for entry in progress_bar(iterable=entries, unit="molecule", desc="preparing"):
        try:
            prepared = prepare_entry(entry, n_conformers=settings.n_conformers, seed=settings.seed,
                                     max_attempts=settings.max_attempts, force_field=settings.force_field)
        except UserError as error:
            problems.append(str(error))
            continue
        record = write_prepared(prepared, settings.out) | {"seed": settings.seed, **versions}
        update_metadata(settings.out, {entry.name: record})
        done.append(entry.name)
        energies = prepared.molecule.conformer_energies
        log.info("%-16s %3d atoms, %2d conformers over %.1f kJ/mol -> %s", entry.name, len(prepared.molecule),
                 len(energies), energies[-1] - energies[0], settings.out / entry.name)
    return done, problems
