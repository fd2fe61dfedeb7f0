"""Files that are whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kstep.errors import UserError

SIGNIFICANT_DIGITS = 5  # of a published float: below the error of anything that is measured here


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


def write_json_atomic(path: str | Path, data: Any) -> None:
    """Write JSON whole, keys sorted."""
    write_text_atomic(path, json.dumps(data, indent=1, sort_keys=True) + "\n")


def rounded(data: Any, digits: int = SIGNIFICANT_DIGITS) -> Any:
    """JSON-like data with every float to `digits` significant digits; whole numbers, texts and flags stay.

    Fewer digits of the result are those of the float itself, so that no printed figure moves.  Numbers of NumPy become
    Python's; what is not finite becomes None, since JSON has neither NaN nor infinity.
    """
    if hasattr(data, "item"):
        data = data.item()
    if isinstance(data, float):
        if not math.isfinite(data):
            return None
        near = float(f"{data:.{digits}g}")
        if any(f"{near:.{n}g}" != f"{data:.{n}g}" for n in range(1, digits)):  # it made a tie: 2.83348 -> 2.8335
            unit = 10.0 ** (math.floor(math.log10(abs(near))) - digits + 1)
            near = float(f"{near + math.copysign(unit, data - near):.{digits}g}")
        return near
    if isinstance(data, dict):
        return {key: rounded(value, digits) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [rounded(value, digits) for value in data]
    return data


def write_json_compact(path: str | Path, data: dict, *, levels: int = 2, sort_keys: bool = True) -> None:
    """Write a record whole: floats to five digits, a line for each entry of the upper levels."""
    def text(value: Any, levels: int) -> str:
        if not (levels and isinstance(value, dict) and value):
            return json.dumps(value, separators=(",", ":"), sort_keys=sort_keys)
        entries = (f"{json.dumps(str(key))}: {text(value[key], levels - 1)}"
                   for key in (sorted(value) if sort_keys else value))
        return "{\n" + ",\n".join(entries) + "\n}"

    write_text_atomic(path, text(rounded(data), levels) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON; a missing or broken file is a UserError."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the stage that writes it first") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a JSON file") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path} is not valid JSON; run the stage that writes it again") from None


def sha256(path: str | Path) -> str:
    """Hash of a file's content."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
