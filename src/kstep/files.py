"""Files that are whole or not there: written under a temporary name, then renamed; and folders that one run holds."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import platform
import re
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kstep.errors import UserError

SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
LONGEST_NAME = 100  # file systems end at 255, and files add to it
RESERVED_NAMES = {"metadata.json", "con", "prn", "aux", "nul"}  # ours, and what Windows cannot copy
MOST_EXPANDED, SMALL_BYTES = 20, 2**24  # of an archive to what it unpacks to, beyond what no memory minds
HOST = re.sub(r"[^A-Za-z0-9-]", "_", platform.node())[:40]  # in names of temporary files
SIGNIFICANT_DIGITS = 5  # of a published float: below the error of anything that is measured here


@contextmanager
def replacing(path: str | Path, *, keep_previous: bool = False) -> Iterator[Path]:
    """A temporary path beside `path`: renamed to it when the block ends well, removed when it fails.

    A rename is atomic on POSIX, so a killed run leaves the last good file; it is on the disk before it has its name, so
    that a machine which loses its power does.  What a killed process of this machine has left of it is removed.
    keep_previous: the file that was there before becomes `previous_of` it.  OSError names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_orphans(path)
    temporary = path.with_name(_temporary_name(path, os.getpid()))
    try:
        with naming(path, temporary):
            yield temporary
            _on_disk(temporary)
            if keep_previous and path.exists():
                os.replace(path, previous_of(path))
            os.replace(temporary, path)
        with suppress(OSError):  # a file system that cannot do this to a folder keeps its names some other way
            _on_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_name(path: Path, process: int | str) -> str:
    return f".{path.name}.{HOST}.{process}.tmp"


def _remove_orphans(path: Path) -> None:
    """Remove temporary files of `path` whose process, of this machine, is gone."""
    before, _, after = _temporary_name(path, "*").rpartition("*")
    for name in os.listdir(path.parent):
        if name.startswith(before) and name.endswith(after):
            process = name[len(before):-len(after)]
            if process.isdecimal() and not _is_alive(int(process)):
                path.with_name(name).unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # another user's; no number of a process
    return True


def previous_of(path: str | Path) -> Path:
    """Where the last but one generation of a file lies."""
    path = Path(path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def is_kept(path: str | Path) -> bool:
    """Whether a file of which the last two generations are kept is there in one of them."""
    return Path(path).is_file() or previous_of(path).is_file()


def _on_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def naming(path: str | Path, temporary: Path | None = None) -> Iterator[None]:
    """An OSError of the block that names no file, as of a full disk, or its temporary one, names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(path), str(temporary)):
            raise
        raise OSError(error.errno, f"cannot be written ({error.strerror})", str(path)) from None


class Claim:
    """A folder that this process alone writes into while it lives, or until `release`; it is made if need be.

    Two runs into one place would mix what they write.  UserError, which calls the place `what`, where another process
    holds it.
    """

    def __init__(self, folder: Path, what: str | Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._handle: int | None = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._handle)
            raise UserError(f"another run is writing {what}; wait for it, or choose another output") from None
        except OSError:
            pass  # a file system without locks: nothing guards there

    def release(self) -> None:
        """Let go of the folder, which is removed when nothing is in it."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        with suppress(OSError):
            self.folder.rmdir()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def check_name(name: Any) -> None:
    """A name becomes a folder: letters, digits, '_', '-' and '.', not starting with '.' or '-'."""
    if not isinstance(name, str) or not SAFE_NAME.fullmatch(name) or name.lower() in RESERVED_NAMES:
        raise UserError(f"name {name!r} cannot be a folder name here; use letters, digits, '_', '-' and '.', "
                        "and start with a letter, a digit or '_'")
    if len(name) > LONGEST_NAME:
        raise UserError(f"name {name[:20] + '...'!r} has {len(name)} characters; {LONGEST_NAME} are the most")


def check_unpacked(archive: zipfile.ZipFile, n_bytes: int) -> None:
    """ValueError where an archive of n_bytes unpacks to much more than it can hold: numbers hardly shrink.

    kstep writes none that shrinks at all.  No reader unpacks more of a member than its entry says.
    """
    unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > MOST_EXPANDED * n_bytes + SMALL_BYTES:
        raise ValueError(f"its {n_bytes} bytes say that they unpack to {unpacked}")


def check_names_a_file(path: Path) -> Path:
    """The path; UserError where it is a folder by its mere spelling, such as an empty text, '.' or '..'."""
    if path.name in ("", ".."):
        raise UserError(f"output '{path}' is a folder; give the name of a file to write")
    return path


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
