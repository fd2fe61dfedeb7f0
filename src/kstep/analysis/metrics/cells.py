"""How numbers and verdicts read in a table."""

from __future__ import annotations

import math

from kstep.analysis.judge.verdict import Verdict

NOT_DEFINED = "n/a"


class Cell(str):
    """Text that a verdict stands behind, which says what a reader should think of it at a glance."""

    verdict: Verdict | None

    def __new__(cls, text: str, verdict: str):
        """The text, with its verdict; '' for none."""
        cell = super().__new__(cls, text)
        cell.verdict = Verdict(verdict) if verdict else None
        return cell


def number(value, digits: int = 3) -> str:
    """A number for reading: three significant digits, 'n/a' for None."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOT_DEFINED
    if isinstance(value, int):
        return str(value)
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 1e-4):
        return f"{value:.{digits - 1}e}"
    if abs(value) >= 10 ** digits:
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def with_error(value, error, digits: int = 2) -> str:
    """'0.0042 +- 0.0007', without the error where there is none."""
    return number(value) + (f" +- {number(error, digits)}" if error is not None else "")


def to_its_error(value: float, error: float | None) -> str:
    """'61.2 +- 1.3': both with two digits of the error; the number alone where it has none."""
    if not error or not math.isfinite(error):
        return number(float(value))
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} +- {error:.{digits}f}"
