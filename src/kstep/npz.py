"""A .npz file: written whole or not at all, and read as what it is, the word of whoever made it.

What its headers say is held against its bytes before an array is read; nothing in it is unpickled.  A file that holds
known arrays is held against a table {key: (dtype, shape)}, where a letter in a shape is one number throughout the file,
"M+1" is one more than M, and "T|0" may be 0 instead.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import numpy as np

from kstep.errors import UserError
from kstep.files import check_unpacked, replacing

Fields = dict[str, tuple[str, tuple]]  # dtype and shape that each array must have


def write_npz(path: str | Path, arrays: dict[str, Any], *, keep_previous: bool = False) -> None:
    """Write arrays to `path`, whole or not at all; keep_previous: see `files.replacing`."""
    with replacing(path, keep_previous=keep_previous) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, **arrays)


Layout = dict[str, tuple[np.dtype, tuple[int, ...]]]  # dtype and shape of each array of a file
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _layout_of(archive: zipfile.ZipFile) -> Layout:
    """What the headers of an npz file say, each held against the bytes behind it; ValueError where they lie."""
    found: Layout = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        with archive.open(member) as handle:
            version = np.lib.format.read_magic(handle)
            if version not in _HEADERS or name == member.filename or name in found:
                raise ValueError(f"'{member.filename}' is no array of an npz file")
            shape, _, dtype = _HEADERS[version](handle)
            behind = member.file_size - handle.tell()
        if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != behind:
            raise ValueError(f"array '{name}' is said to be {dtype} of shape {shape}, and has {behind} bytes")
        found[name] = dtype, shape
    return found


def read_npz(path: str | Path, *, check: Callable[[Layout], None] = lambda layout: None,
             only: Set[str] | None = None, within: bytes | None = None) -> dict[str, np.ndarray]:
    """All arrays of an npz file, or only some; a missing, truncated or pickled file is a UserError.

    within: of a whole npz file that the one at `path` holds, instead.

    What the file says of its sizes is held against the file, and then given to `check`, before any array is read.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; run the stage that writes it first")
    try:
        with open(path, "rb") if within is None else io.BytesIO(within) as handle:
            if handle.read(2) != b"PK":
                raise ValueError("no zip header")
            with zipfile.ZipFile(handle) as members:
                check_unpacked(members, handle.seek(0, io.SEEK_END))
                layout = _layout_of(members)
            check(layout)
            handle.seek(0)
            with np.load(handle, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files if only is None or key in only}
    except UserError:
        raise
    except (ValueError, OSError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk or its rights, not the content
            raise UserError(f"{path} cannot be read ({error.strerror})") from None
        raise UserError(
            f"{path} is truncated or not an npz file ({error}); run the stage that writes it again"
        ) from None


def check_arrays(path: str | Path, kind: str, arrays: dict[str, np.ndarray], known: Fields,
                 may_hold_nan: Set[str] = frozenset()) -> None:
    """UserError where dtypes, shapes or numbers are not those of a `kind` of file; may_hold_nan: keys that may."""
    check_layout(path, kind, {key: (array.dtype, array.shape) for key, array in arrays.items()}, known)
    for key, (dtype, _) in known.items():
        if np.dtype(dtype).kind == "f" and key not in may_hold_nan and not np.isfinite(arrays[key]).all():
            first = np.argwhere(~np.isfinite(arrays[key]))[0]
            where = f"frame {int(first[0])}" if len(first) else "its only entry"
            raise UserError(f"{path}: '{key}' holds NaN or infinity (first in {where})")


def check_layout(path: str | Path, kind: str, layout: Layout, known: Fields) -> None:
    """The same of dtypes and shapes alone, before anything is read."""
    sizes: dict[str, int] = {}
    for key, (dtype, shape) in known.items():
        if key not in layout:
            raise UserError(f"{path} is not a {kind} file: array '{key}' is missing")
        own_dtype, own_shape = layout[key]
        wanted = np.dtype(dtype)
        if own_dtype.kind != wanted.kind and not (wanted.kind == "f" and own_dtype.kind in "iu"):
            raise UserError(f"{path}: '{key}' has dtype {own_dtype}, expected {wanted}")
        if len(own_shape) != len(shape):
            raise UserError(f"{path}: '{key}' has {len(own_shape)} dimensions, expected {len(shape)}")
        for size, symbol in zip(own_shape, shape):
            if isinstance(symbol, int):
                fits = size == symbol
            else:
                name = symbol.removesuffix("|0").removesuffix("+1")
                if symbol.endswith("|0") and size == 0:
                    continue
                size -= symbol.endswith("+1")
                fits = sizes.setdefault(name, size) == size
            if not fits:
                raise UserError(f"{path}: '{key}' has shape {own_shape}, expected {shape}")
