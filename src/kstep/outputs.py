"""What happens where something lies already: nothing is replaced unasked, and what is replaced on request is kept.

`--overwrite` renames what is there to <name>.backup-1, -2 and so on; its folders keep their ends, <name>.backup-1.parts
and <name>.backup-1.learn, so that renaming all of them back restores the run.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from kstep.errors import UserError
from kstep.files import Claim, check_writable

MARK = "md-kstep"  # what our pictures and pages say they were made by
HEAD_BYTES = 1000  # in which they say it

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


def settle_result(path: Path, is_ours: Callable[[Path], bool], inputs: Mapping[str, str | Path | None] | None = None, *,
                  overwrite: bool | None = False) -> None:
    """Before a result is worked out that is cheap to make again: UserError where that would replace an input, or what
    no earlier run of the same command wrote; its own earlier result gives way.

    is_ours: tells that of a file that can be read; overwrite: what is there is kept under another name instead (None:
    the command has no such flag).
    OSError where `path` cannot be written.
    """
    check_writable(path)
    check_no_input([path], inputs or {})
    if overwrite:
        set_aside(path)
    elif os.path.lexists(path) and not _recognised(path, is_ours):
        keep = ", or --overwrite keeps it under another name" if overwrite is not None else ""
        raise UserError(f"{path} is there already, and this command did not write it; choose another output{keep}")


def _recognised(path: Path, is_ours: Callable[[Path], bool]) -> bool:
    try:
        return is_ours(path)
    except (OSError, ValueError):
        return False


def json_with(*keys: str, of_each: bool = False) -> Callable[[Path], bool]:
    """Tells a JSON file that holds these keys; of_each: each of its entries does."""
    def is_ours(path: Path) -> bool:
        found = json.loads(path.read_text(encoding="utf-8"))
        entries = list(found.values()) if of_each and isinstance(found, dict) else [found]
        return bool(entries) and all(isinstance(entry, dict) and entry.keys() >= set(keys) for entry in entries)

    return is_ours


def begins_with(text: str) -> Callable[[Path], bool]:
    """Tells a text file by its first words."""
    def is_ours(path: Path) -> bool:
        with open(path, "rb") as handle:
            return handle.read(len(text.encode())) == text.encode()

    return is_ours


def marked(path: Path) -> bool:
    """Whether a picture or a page says that it was made here."""
    with open(path, "rb") as handle:
        return MARK.encode() in handle.read(HEAD_BYTES)


def check_one_of(resume: bool, overwrite: bool) -> None:
    """UserError where a run is to go on and to begin anew at once."""
    if resume and overwrite:
        raise UserError("--resume goes on with what is there, and --overwrite begins anew; give one of them")


def set_aside(path: Path, *ends: str) -> Path | None:
    """Rename a file or folder, and those beside it whose names go on with one of `ends`, to a free numbered name.

    Returns the new name of `path`, None where nothing was there.  UserError where another process writes into one of
    the folders, whose parts would go on under the old name and mix with those of who comes now.
    """
    here = {end: path.with_name(path.name + end) for end in ("", *ends)}
    if not any(map(os.path.lexists, here.values())):
        return None
    number = 1
    while any(os.path.lexists(backup_of(path, number, end)) for end in here):
        number += 1
    with ExitStack() as claims:
        for old in filter(Path.is_dir, here.values()):
            claims.enter_context(Claim(old, path))
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
