"""What happens where something lies already: nothing is replaced unasked, and what is replaced on request is kept.

`--overwrite` renames what is there to <name>.backup-1, -2 and so on; its folders keep their ends, <name>.backup-1.parts
and <name>.backup-1.learn, so that renaming all of them back restores the run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from kstep.errors import UserError

log = logging.getLogger("kstep")


def check_no_input(outs: Iterable[Path], inputs: Mapping[str, str | Path | None]) -> None:
    """UserError where a file or folder to be written is, or holds, a file that is to be read.

    inputs: by the words that name each in a message, such as '--checkpoint'; None: not given.
    """
    written = [Path(out).resolve() for out in outs]
    for words, path in inputs.items():
        if path is None:
            continue
        read = Path(path).resolve()
        for out in written:
            if out == read or out in read.parents:
                raise UserError(f"{words} {path} would be overwritten by what is written to {out.name}; choose another "
                                "output")


def check_free(path: Path, *, overwrite: bool) -> None:
    """UserError where something lies at `path`, which with `overwrite` is set aside instead."""
    if overwrite:
        set_aside(path)
    elif os.path.lexists(path):
        raise UserError(f"{path} is there already; choose another output, or --overwrite keeps it under another name")


def check_one_of(resume: bool, overwrite: bool) -> None:
    """UserError where a run is to go on and to begin anew at once."""
    if resume and overwrite:
        raise UserError("--resume goes on with what is there, and --overwrite begins anew; give one of them")


def set_aside(path: Path, *ends: str) -> Path | None:
    """Rename a file or folder, and those beside it whose names go on with one of `ends`, to a free numbered name.

    Returns the new name of `path`, None where nothing was there.
    """
    here = {end: path.with_name(path.name + end) for end in ("", *ends)}
    if not any(map(os.path.lexists, here.values())):
        return None
    number = 1
    while any(os.path.lexists(backup_of(path, number, end)) for end in here):
        number += 1
    for end, old in here.items():
        if os.path.lexists(old):
            os.rename(old, backup_of(path, number, end))
    log.info("what was there is kept as %s", backup_of(path, number))
    return backup_of(path, number)


def set_aside_within(folder: Path, names: Iterable[str]) -> Path | None:
    """Move files out of a folder that others may share, into <folder>.backup-1 or the next free one."""
    there = [name for name in names if os.path.lexists(folder / name)]
    if not there:
        return None
    number = 1
    while os.path.lexists(backup_of(folder, number)):
        number += 1
    kept = backup_of(folder, number)
    kept.mkdir()
    for name in there:
        os.rename(folder / name, kept / name)
    log.info("what was there is kept in %s", kept)
    return kept


def backup_of(path: Path, number: int, end: str = "") -> Path:
    """<name>.backup-<number><end>"""
    return path.with_name(f"{path.name}.backup-{number}{end}")
