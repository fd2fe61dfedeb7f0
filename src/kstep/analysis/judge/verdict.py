"""What a number, a torsion or a run can be found to be: values, whose words are what files and tables show."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """What is said of one number; `tone` is True for good news, False for bad, None for neither."""

    WITHIN_FLOOR = "within floor"
    ABOVE_FLOOR = "above floor"
    NO_FLOOR = "no floor"
    REFERENCE = "reference"
    RIGHT = "right"
    OFF = "off by more than 3 standard errors"
    HOLDS = "holds"
    VIOLATED = "violated"
    NOT_DECIDED = "not decided (error above 0.03)"
    WITHIN_TOLERANCE = "within tolerance"
    PAST_TOLERANCE = "past tolerance"
    NO_TOLERANCE = "no tolerance"
    NO_DRIFT = "no drift seen"
    DRIFTS = "drifts"
    BLEW_UP = "blew up"
    NO_INTERVAL = "one window: no interval"
    MAXWELL = "Maxwell"
    NOT_MAXWELL = "not Maxwell"
    CONVERGED = "converged"
    NOT_CONVERGED = "not converged"
    NOTHING_TO_CONVERGE = "no torsion with rotamers"

    @property
    def tone(self) -> bool | None:
        """What a reader should make of it at a glance."""
        return True if self in _GOOD else False if self in _BAD else None


_GOOD = {Verdict.WITHIN_FLOOR, Verdict.RIGHT, Verdict.HOLDS, Verdict.WITHIN_TOLERANCE, Verdict.NO_DRIFT,
         Verdict.MAXWELL, Verdict.CONVERGED}
_BAD = {Verdict.ABOVE_FLOOR, Verdict.OFF, Verdict.VIOLATED, Verdict.PAST_TOLERANCE, Verdict.DRIFTS, Verdict.BLEW_UP,
        Verdict.NOT_MAXWELL, Verdict.NOT_CONVERGED}


class TorsionState(StrEnum):
    """What a run has seen of a torsion."""

    ONE_ROTAMER = "one rotamer in the reference"
    CROSSED = "crossed"
    NEVER_CROSSED = "never crossed"


class Role(StrEnum):
    """What a run is for: a hybrid is judged; the others are what it is judged by."""

    HYBRID = "hybrid"
    PLAIN = "plain"  # any scheme that needs no network
    NO_NETWORK = "no network"  # a hybrid whose network was switched off
    BASELINE = "baseline"


class Outcome(StrEnum):
    """How a run compares with plain MD at the same number of true calls."""

    WON = "won"
    LOST = "lost"
    IS_CONTROL = "is itself a control"
    NO_FRAMES = "no production frames"
    NO_CONTROL = "no plain control with known true calls"
