"""A checkpoint's seal: the checksum of a zip archive in its own comment, which every zip reader passes over.

PyTorch writes its archives with a checksum of each member and reads them without looking, so that a flipped bit becomes
another weight.  The seal is over all bytes of the archive as it was before.
"""

from __future__ import annotations

import hashlib
import re

LABEL = b"kstep sha256 "
SEAL = re.compile(re.escape(LABEL) + rb"[0-9a-f]{64}\Z")
NO_COMMENT = b"\0\0"  # the last two bytes of an archive are the length of its comment
END = b"PK\x05\x06"  # begins the last 22 bytes of an archive without a comment


def sealed(archive: bytes) -> bytes:
    """A zip archive without a comment, with its checksum as one."""
    if archive[-22:-18] != END or not archive.endswith(NO_COMMENT):
        raise ValueError("only a zip archive without a comment can be sealed")
    words = LABEL + hashlib.sha256(archive).hexdigest().encode()
    return archive[:-2] + len(words).to_bytes(2, "little") + words


def opened(data: bytes) -> tuple[bytes, bool]:
    """The archive as it was before it was sealed, and whether it had been; ValueError where its bytes are others.

    What does not begin as an archive is left to its reader.
    """
    if not data.startswith(b"PK"):
        return data, False
    if data[-22:-18] == END and data.endswith(NO_COMMENT):
        return data, False
    found = SEAL.search(data)
    archive = data[:found.start() - 2] + NO_COMMENT if found else data
    if not found or sealed(archive) != data:
        raise ValueError("its checksum is not that of its content")
    return archive, True
