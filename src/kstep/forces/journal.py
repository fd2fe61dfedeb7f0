"""True calls that were answered since the last restart file, on disk: a run that is cut asks for none of them twice.

A run is a function of its settings and seed and of the answers it gets.  So one that goes on from its last restart file
asks what it asked before; here it is told what it was told before, from memory, until it comes to where it was cut.
When that is written, and how often, changes no number, and the loops know nothing of it.

    <parts>/calls_<restart>_<n>.npz     answers after restart file number `restart`, in their order

They are written every ten seconds, when a run is ended, and at SIGUSR1; those before the last restart file but one are
removed when a new one is there.  What takes longer to answer is asked in pieces, so that a kill costs ten seconds there
too, or one call.  An SCF that begins at the last one of its replica has to have that guess back too: of
such a backend a replica's answers are written up to the last one whose guess was told (`Pool.histories`).
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kstep import interruption, npz
from kstep.errors import UserError
from kstep.forces.evaluator import put_answers
from kstep.forces.pool import Pool, PoolAround, Truth, asked_of
from kstep.progress import LINES_APART_S

FLUSH_S = 10.0  # between two writings, and of work in one question where calls are known to be long
NAME = re.compile(r"calls_(\d+)_(\d+)\.npz")
EXTRA, HISTORY = "extra_", "history_"  # before names of `Truth.extra`, and before numbers of rows

log = logging.getLogger("kstep")


@dataclass(frozen=True)
class _Answer:
    """Of one row: what Truth says of it, and the CPU seconds it took."""

    energy: float
    forces: np.ndarray
    message: str
    extra: dict[str, Any]
    cpu_s: float


@dataclass(frozen=True)
class _Ticket:
    """Rows (r,) that were asked together at positions (r,N,3) nm, what was said, SCF guesses, CPU seconds of each."""

    rows: np.ndarray
    positions: np.ndarray
    want_forces: bool
    truth: Truth
    histories: dict[int, np.ndarray]
    cpu_s: float

    def part(self, mask: np.ndarray) -> _Ticket:
        """Some of the rows; the guesses are those of all."""
        t = self.truth
        truth = Truth(t.energy[mask], t.forces[mask], t.failed[mask],
                      tuple(message for message, there in zip(t.messages, mask) if there),
                      {name: values[mask] for name, values in t.extra.items()})
        histories = {row: history for row, history in self.histories.items() if row in self.rows[mask]}
        return replace(self, rows=self.rows[mask], positions=self.positions[mask], truth=truth, histories=histories)

    @staticmethod
    def arrays(tickets: list[_Ticket]) -> dict[str, np.ndarray]:
        """All of them, row below row, as they are written."""
        columns = [{"row": t.rows, "positions": t.positions, "energy": t.truth.energy, "forces": t.truth.forces,
                    "want_forces": np.full(len(t.rows), t.want_forces), "cpu_s": np.full(len(t.rows), t.cpu_s)}
                   for t in tickets]
        extra: dict[str, np.ndarray] = {}
        borders = np.cumsum([0, *(len(t.rows) for t in tickets)])
        for t, first, end in zip(tickets, borders, borders[1:]):
            put_answers(extra, t.truth.extra, np.arange(first, end), int(borders[-1]))
        return {**{name: np.concatenate([column[name] for column in columns]) for name in columns[0]},
                **{EXTRA + name: values for name, values in extra.items()}}


def _bare(truth: Truth) -> Truth:
    """Without restraints, which are no part of the surface."""
    return Truth(*truth.bare, truth.failed, truth.messages, truth.extra)


def _key(row: int, positions: np.ndarray, want_forces: bool) -> tuple:
    return row, np.ascontiguousarray(positions, dtype=np.float64).tobytes(), want_forces


class JournaledPool(PoolAround):
    """Another pool whose answers are kept in `folder`, beside the restart files of a run that writes into its parent.

    `begin` says after which restart file answers come; before that nothing is kept.  true_calls and cpu_s count what is
    told from memory as if it had been computed now, wall_s is what the earlier part of the run took for it.  An SCF
    guess that is given with an answer from memory is of after any `forget` before it.
    """

    def __init__(self, pool: Pool, folder: Path):
        super().__init__(pool)
        self.folder, self.wall_s = Path(folder), 0.0
        pool.attend = self._attend
        self._exit = interruption.ExitFile([self.folder.parent])
        self._told_calls, self._told_cpu_s = 0, 0.0
        self._restart: int | None = None
        self._known: dict[tuple, deque[_Answer]] = {}
        self._left: dict[int, int] = {}  # answers in memory, by row
        self._guess: dict[int, np.ndarray] = {}  # after the last of them
        self._restarts_requested = interruption.restarts_requested()
        self._reset()

    def _reset(self) -> None:
        self._new: list[_Ticket] = []  # answered, and not on disk
        self._n_files, self._began, self._flushed = 0, time.perf_counter(), time.monotonic()
        self._earlier_wall_s = 0.0

    # what is on disk --------------------------------------------------------------------------

    def begin(self, restart: int, *, fresh: bool = False) -> None:
        """From here on answers come after restart file number `restart`; fresh: what is there is another run's."""
        found = sorted((int(match[1]), int(match[2]), path) for path in self.folder.glob("calls_*_*.npz")
                       if (match := NAME.fullmatch(path.name)))
        earlier = [number for number, _, _ in found if number < restart]
        for number, _, path in found:
            if fresh or number < max(earlier, default=0):  # that of the restart file before stays, as that file does
                path.unlink(missing_ok=True)
        self._restart = restart
        self._known, self._left, self._guess = {}, {}, {}
        self._reset()
        if not fresh:
            self._read([path for number, _, path in found if number == restart])

    def _read(self, paths: list[Path]) -> None:
        for number, path in enumerate(paths):
            try:
                arrays = npz.read_npz(path)
                text = json.loads(str(arrays["text"]))
                if text["surface"] != self.spec.surface:
                    raise UserError("another energy surface")
                answers = self._answers_in(arrays, text["messages"])
            except (UserError, KeyError, ValueError, IndexError) as error:
                log.warning("true calls from %s on are made again: %s", path, error)
                for other in paths[number:]:
                    other.unlink(missing_ok=True)
                break
            for (row, *key), answer in answers:
                self._known.setdefault((row, *key), deque()).append(answer)
                self._left[row] = self._left.get(row, 0) + 1
            self._guess |= {int(name.removeprefix(HISTORY)): history for name, history in arrays.items()
                            if name.startswith(HISTORY)}
            self._n_files, self._earlier_wall_s = self._n_files + 1, float(text["wall_s"])
        if self._left:
            self.wall_s += self._earlier_wall_s
            log.info("%d true calls after the last restart file are known already", sum(self._left.values()))

    @staticmethod
    def _answers_in(arrays: dict[str, np.ndarray], messages: list[str]) -> list[tuple[tuple, _Answer]]:
        extra = {name.removeprefix(EXTRA): values for name, values in arrays.items() if name.startswith(EXTRA)}
        return [(_key(int(row), arrays["positions"][i], bool(arrays["want_forces"][i])),
                 _Answer(float(arrays["energy"][i]), arrays["forces"][i], str(messages[i]),
                         {name: values[i] for name, values in extra.items()}, float(arrays["cpu_s"][i])))
                for i, row in enumerate(arrays["row"])]

    def flush(self) -> None:
        """Write down what was answered since the last time."""
        self._flushed = time.monotonic()
        if self._restart is None or not self._new:
            return
        last = {row: number for number, ticket in enumerate(self._new) for row in ticket.histories}
        may_be = [np.array([not self.spec.keeps_history or number <= last.get(row, -1) for row in ticket.rows.tolist()])
                  for number, ticket in enumerate(self._new)]
        kept = [ticket.part(mask) for ticket, mask in zip(self._new, may_be) if mask.any()]
        rest = [ticket.part(~mask) for ticket, mask in zip(self._new, may_be) if not mask.all()]
        if kept:
            histories = {row: history for ticket in self._new for row, history in ticket.histories.items()}
            self.folder.mkdir(parents=True, exist_ok=True)
            npz.write_npz(self.folder / f"calls_{self._restart:08d}_{self._n_files:05d}.npz", {
                **_Ticket.arrays(kept), **{f"{HISTORY}{row}": history for row, history in histories.items()},
                "text": np.array(json.dumps({
                    "surface": self.spec.surface, "messages": [m for ticket in kept for m in ticket.truth.messages],
                    "wall_s": self._earlier_wall_s + time.perf_counter() - self._began}))})
            # only now: a flush that is cut short is made again, into the same file
            self._new, self._n_files = rest, self._n_files + 1

    def end(self) -> None:
        """The run is whole on disk: nothing of this is needed any more."""
        self._restart, self._new = None, []
        for path in self.folder.glob("calls_*_*.npz"):
            path.unlink(missing_ok=True)

    # a pool -----------------------------------------------------------------------------------

    @property
    def true_calls(self) -> int:
        """Of this run, told or computed."""
        return self.pool.true_calls + self._told_calls

    @property
    def cpu_s(self) -> float:
        """Of the workers, and of what is told."""
        return self.pool.cpu_s + self._told_cpu_s

    def _attend(self) -> None:
        """While waiting, and between two questions: what others ask for, and what is due."""
        self._exit.check()
        requested = interruption.restarts_requested()
        if requested != self._restarts_requested or time.monotonic() - self._flushed > FLUSH_S:
            self.flush()
        if requested != self._restarts_requested:
            self._restarts_requested = requested
            log.info("restart files written, as SIGUSR1 asks")

    def submit(self, positions: np.ndarray, rows: np.ndarray | None = None, want_forces: bool | None = None):
        """As any pool; what is known is not asked again."""
        self._attend()
        want_forces = self.wants_forces(want_forces)
        positions, rows = asked_of(positions, rows)
        told = [self._told(row, x, want_forces) for row, x in zip(rows.tolist(), positions)] if self._known else []
        asked = np.array([i for i, a in enumerate(told) if a is None], dtype=int) if told else np.arange(len(rows))
        pieces = [(piece, self.pool.submit(positions[piece], rows[piece], want_forces))
                  for piece in self._pieces(asked)]
        return positions, rows, want_forces, told, pieces

    def _pieces(self, asked: np.ndarray) -> list[np.ndarray]:
        """The places (r,) of what is asked, in pieces that take no longer than what is at stake between two writings.

        All at once while nobody knows what a call takes: the first energies are each other's measure (`Reference`).
        """
        size = max(1, len(asked))
        if self.pool.call_s is not None:
            size = max(1, self.pool.n_workers) * max(1, int(FLUSH_S / max(self.pool.call_s, 1e-6)))
        return [asked[first:first + size] for first in range(0, len(asked), size)]

    def _told(self, row: int, positions: np.ndarray, want_forces: bool) -> _Answer | None:
        """The answer in memory; with the last one of a row its SCF guess goes to the worker."""
        key = _key(row, positions, want_forces)
        answers = self._known.get(key)
        if not answers:
            return None
        answer = answers.popleft()
        if not answers:
            del self._known[key]
        self._left[row] -= 1
        self._told_calls, self._told_cpu_s = self._told_calls + 1, self._told_cpu_s + answer.cpu_s
        if not self._left[row] and row in self._guess:
            self.pool.remember(row, self._guess.pop(row))
        return answer

    def collect(self, ticket) -> Truth:
        """As any pool."""
        positions, rows, want_forces, told, pieces = ticket
        energy, forces = np.full(len(rows), np.nan), np.full(positions.shape, np.nan)
        messages, extra = np.full(len(rows), "", dtype=object), {}
        self.histories, said = {}, time.monotonic()
        for number, (piece, inner) in enumerate(pieces):
            self._attend()
            if time.monotonic() - said > LINES_APART_S:
                said = time.monotonic()
                log.info("%d of %d true calls are answered, %.2g s each", sum(len(done) for done, _ in pieces[:number]),
                         sum(len(each) for each, _ in pieces), self.pool.call_s)
            before = self._spent_s()
            truth = _bare(self.pool.collect(inner))
            self.histories |= self.pool.histories
            energy[piece], forces[piece], messages[piece] = truth.energy, truth.forces, truth.messages
            put_answers(extra, truth.extra, piece, len(rows))
            if self._restart is not None:
                self._new.append(_Ticket(rows[piece], positions[piece], want_forces, truth, self.pool.histories,
                                         (self._spent_s() - before) / len(piece)))
        for i, answer in enumerate(told):
            if answer is not None:
                energy[i], forces[i], messages[i] = answer.energy, answer.forces, answer.message
                put_answers(extra, answer.extra, i, len(rows))
                self.failures += [answer.message] if answer.message else []
        return self.restrained(positions, Truth(energy, forces, np.isnan(energy), tuple(messages), extra))

    def _spent_s(self) -> float:
        """CPU seconds of this process and of the workers."""
        return time.process_time() + self.pool.cpu_s

    def close(self, at_once: bool = False) -> None:
        """Write down what was answered, even if a second Ctrl-C comes meanwhile, and stop the workers."""
        try:
            try:
                self.flush()
            except KeyboardInterrupt:
                self.flush()
                raise
        finally:
            self.pool.close(at_once)
