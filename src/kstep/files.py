"""Files that are whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`: renamed to it when the block ends well, removed when it fails.

    A rename is atomic on POSIX, so a killed run leaves the last good file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | Path, *, folder: bool = False) -> None:
    """Raise OSError now when `path` (a file, or a folder) cannot be written, not after hours of work.

    Makes the folder.
    """
    path = Path(path)
    home = path if folder else path.parent
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
        if not folder and path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
    except OSError as error:
        raise OSError(error.errno, f"cannot be written ({error.strerror})", str(path)) from None


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write a text file whole."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json_atomic(path: str | Path, data) -> None:
    """Write JSON whole, keys sorted."""
    write_text_atomic(path, json.dumps(data, indent=1, sort_keys=True) + "\n")


def sha256(path: str | Path) -> str:
    """Hash of a file's content."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
