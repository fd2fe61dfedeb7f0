"""What every stage of a batch has: its settings, the molecules it is over, and the commands and files of a task.

A task is a molecule, or `all`.  Its commands are run in order; one whose files are whole is skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import ClassVar

from kstep.cli.batch.settings import FOLDER, MOLECULES, NAMES, PART, PATH, SWITCH, TEXT, WHOLE, setting
from kstep.errors import UserError
from kstep.files import check_name
from kstep.molecules.smiles import Entry, read_smiles_file
from kstep.molecules.structure_file import is_structure_file
from kstep.shipped import find_config, find_molecules
from kstep.study import batch as judging
from kstep.study.batch import Found, found


@dataclass(frozen=True)
class Command:
    """A kstep command and the files that it makes, which `judge` judges.

    ends: exit codes after which they count; tells: whether what they say is told of the task; needs: what an earlier
    stage makes.
    """

    words: list[str]
    makes: tuple[Path, ...]
    judge: Callable[[Path], str]
    ends: tuple[int, ...] = (0,)
    tells: bool = True
    needs: Path | None = None

    def found(self, *, set_aside: bool = False) -> tuple[Found, str]:
        """What is there of it."""
        return found(self.makes, self.judge, set_aside=set_aside)


@dataclass(frozen=True)
class Source:
    """Where a molecule comes from: a line of a SMILES file, or a structure file."""

    name: str
    entry: Entry | None = None
    structure: Path | None = None


@dataclass
class Stage:
    """What every stage has.  Paths are relative to the folder that the batch is started in.

    script: what its logs are called, after the script that is its face; sources: the chosen molecules, by name.
    """

    script: ClassVar[str]

    out_dir: Path = setting(PATH, "outputs/qm", "folder of everything the batch makes")
    smiles_file: Path = setting(MOLECULES, "data/qm_molecules.smi", "lines of 'SMILES name [charge= multiplicity=]'")
    structure: Path | None = setting(FOLDER, None, "folder of structure files (.xyz .sdf .pdb ...) instead, each a "
                                     "molecule with the name of its file")
    molecules: tuple[str, ...] = setting(NAMES, None, "names of these to take, separated by blanks", "all")
    part: tuple[int, int] | None = setting(PART, None, "N/M: every M-th molecule, from the N-th on, as for a job array",
                                           "all")
    max_jobs: int = setting(WHOLE, "1", "tasks at a time on this machine")
    scheduler: str | None = setting(TEXT, None, "a running Dask scheduler, tcp://... or its scheduler file, whose "
                                    "workers take a task for each of their threads instead")
    threads_per_job: int = setting(WHOLE, "1", "cores of one job: the true calls of its replicas side by side, each "
                                   "with one thread, and torch's threads in training")
    dry_run: bool = setting(SWITCH, "0", "print what would be run, run nothing")
    sources: dict[str, Source] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Fill in what depends on other settings; UserError for what contradicts itself."""

    def read_sources(self) -> list[str]:
        """Read which molecules there are; a sentence for each line or file that is none."""
        sources, problems = self._structures() if self.structure is not None else self._lines()
        number, parts = self.part or (1, 1)
        self.sources = {source.name: source for source in sources[number - 1::parts]}
        return problems if number == 1 else []  # said once

    def _lines(self) -> tuple[list[Source], list[str]]:
        path = find_molecules(self.smiles_file)
        entries, problems = read_smiles_file(path, list(self.molecules or ()))
        return [Source(entry.name, entry=entry) for entry in entries], problems

    def _structures(self) -> tuple[list[Source], list[str]]:
        sources, problems = {}, []
        for path in sorted(filter(is_structure_file, self.structure.iterdir())):
            try:
                check_name(path.stem)
                if path.stem in sources:
                    raise UserError(f"{sources[path.stem].structure.name} has the same name; give each its own")
                sources[path.stem] = Source(path.stem, structure=path)
            except UserError as error:
                problems.append(f"{path}: {error}")
        if not sources and not problems:
            raise UserError(f"{self.structure} holds no structure file (.xyz .extxyz .sdf .mol .pdb)")
        for name in self.molecules or ():
            if name not in sources:
                raise UserError(f"molecule '{name}' is no structure file in {self.structure}")
        chosen = [source for name, source in sources.items() if not self.molecules or name in self.molecules]
        return chosen, [] if self.molecules else problems

    def tasks(self) -> tuple[list[str], dict[str, str]]:
        """The tasks, and a sentence for each molecule that cannot be one."""
        return list(self.sources), {}

    def commands(self, task: str) -> list[Command]:
        """How a task is made."""
        raise NotImplementedError

    def afterwards(self) -> str:
        """Make what is over all tasks; what to print of it."""
        return ""

    def placed(self, folder: Path) -> None:
        """Take every path from `folder`, for workers that stand elsewhere."""
        for each in fields(self):
            if isinstance(value := getattr(self, each.name), Path) and not _is_shipped(value):
                setattr(self, each.name, folder / value)

    def at(self, *parts: str) -> Path:
        """A path below out_dir."""
        return self.out_dir.joinpath(*parts)

    def made_before(self, path: Path, script: str) -> None:
        """UserError where what an earlier stage makes is not there; a dry run takes it for granted."""
        if not self.dry_run and not path.is_file():
            raise UserError(f"{path} does not exist; run {script}.sh first")

    def preparing(self, task: str) -> Command:
        """The command that prepares a molecule."""
        source = self.sources[task]
        words = ["prepare", *([str(find_molecules(self.smiles_file)), "--molecule", task] if source.structure is None
                              else ["--structure", str(source.structure), "--name", task])]
        return Command([*words, "--force-field", "none", "--out-dir", str(self.at("raw"))],
                    (self.at("raw", task, "molecule.npz"),),
                    partial(judging.judge_prepared, entry=source.entry, structure=source.structure), tells=False)


def _is_shipped(path: Path) -> bool:
    return not path.is_file() and (find_config(path).is_file() or find_molecules(path).is_file())
