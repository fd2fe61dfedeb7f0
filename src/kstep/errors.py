"""Errors a user can act on: one sentence that says what is wrong, where, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the input; scripts print its one sentence and exit with code 2."""


class PhysicsError(RuntimeError):
    """The true physics has no number for this geometry (SCF not converged, atoms fused)."""


def sentence_of(error: Exception) -> str:
    """What a failure says to a user: a UserError's sentence, or that of a disk or a memory that gives no more."""
    if isinstance(error, UserError | PhysicsError):
        return str(error)
    name = getattr(error, "filename", None)
    where = f"{name}: " if name else ""
    if isinstance(error, FileExistsError):  # by whoever makes the folders of an output
        return f"{where}a file is there, where a folder is needed; choose another output"
    return f"{where}{getattr(error, 'strerror', None) or error or 'not enough memory'}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known word, or the list of known words."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known)}" if len(known) <= 30 else ""
