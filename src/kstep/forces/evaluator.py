"""A backend at work in one process, whichever that is: what it is asked, and what it says."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, field

import numpy as np

from kstep.errors import PhysicsError, UserError
from kstep.forces import PhysicsSpec

# between two looks at a replica's SCF guess, which cost milliseconds: the first, doubled each time, and the longest
FIRST_HISTORY_S, HISTORY_S = 0.1, 5.0


@dataclass
class Answers:
    """What one process says of some rows: arrays as in Truth, histories {row: SCF guess after it}, seconds of each."""

    energy: np.ndarray
    forces: np.ndarray
    messages: list[str]
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    histories: dict[int, np.ndarray] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    @classmethod
    def refused(cls, shape: tuple[int, ...], message: str) -> Answers:
        """No number for positions of that shape (r,N,3)."""
        return cls(np.full(shape[0], np.nan), np.full(shape, np.nan), [message] * shape[0])

    @classmethod
    def joined(cls, parts: list[Answers]) -> Answers:
        """Those of several questions, in their order."""
        n, extra, first = sum(len(part.energy) for part in parts), {}, 0
        for part in parts:
            put_answers(extra, part.extra, np.arange(first, first + len(part.energy)), n)
            first += len(part.energy)
        return cls(np.concatenate([part.energy for part in parts]), np.concatenate([part.forces for part in parts]),
                   [message for part in parts for message in part.messages], extra,
                   {row: history for part in parts for row, history in part.histories.items()})


class Evaluator:
    """A backend at work in one process."""

    def __init__(self, spec: PhysicsSpec):
        self.physics, self._keeps_history = spec.build(), spec.keeps_history
        self._due: dict[int, tuple[float, float]] = {}  # when a row's history is told, and then apart

    def __call__(self, positions: np.ndarray, rows: np.ndarray, want_forces: bool) -> Answers:
        physics, found = self.physics, Answers.refused(positions.shape, "")
        for i, row in enumerate(map(int, rows)):
            began = time.perf_counter()
            found.histories.pop(row, None)  # of an earlier place in the same batch
            try:
                if want_forces:
                    found.energy[i], found.forces[i] = physics.energy_and_forces(positions[i], slot=row)
                else:
                    found.energy[i] = physics.energy(positions[i], slot=row)
                put_answers(found.extra, physics.extra(), i, len(rows))
            except PhysicsError as error:
                found.messages[i] = str(error)
            now = time.perf_counter()
            found.seconds.append(now - began)
            due, apart_s = self._due.get(row, (now, FIRST_HISTORY_S))
            if self._keeps_history and now >= due:
                found.histories[row] = physics.history(row)
                self._due[row] = now + min(apart_s, HISTORY_S), 2 * apart_s
        return found

    def forget(self) -> None:
        """Drop SCF guesses, and when they are told next."""
        self.physics.forget()
        self._due.clear()


def to_report(error: Exception) -> Exception:
    """What a worker tells of a failure: what is a sentence already (of a setting, of a disk), or a bug's traceback."""
    return error if isinstance(error, UserError | OSError) else RuntimeError(traceback.format_exc())


def put_answers(extra: dict, answers: dict, rows, n_rows: int) -> None:
    """Write `answers` of `rows`, one or an array of n_rows, into `extra`, where what nobody answered is NaN."""
    for name, values in answers.items():
        if name not in extra:
            extra[name] = np.full((n_rows, *np.shape(values)[np.ndim(rows):]), np.nan)
        extra[name][rows] = values
