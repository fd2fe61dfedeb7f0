"""What a learning writes down: what each round saw, and where it stands, so that a cut one goes on from there.

All that a cut learning goes on from is one file, written whole, so that no kill leaves labels of one round with the
chains of another; the one before it stands in where it is damaged.  labels.npz is for others, and read from learnings
of before alone.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kstep.errors import UserError
from kstep.files import naming, write_text_atomic
from kstep.fingerprint import as_written
from kstep.learning.ending import LEFT_BY_LAST, LENGTHS, acceptance
from kstep.runs.recorder import BEGIN_ANEW, read_restart, write_restart
from kstep.schemes.state import State
from kstep.training.labels import EXTRA, FIELDS, Labels

LABELS = "labels_"  # before the names of the labels' arrays in a restart file

log = logging.getLogger("kstep")


@dataclass(frozen=True)
class Seen:
    """What chains showed between two fits: how many states were asked about, and d = E_true - E_network there.

    spread_kT: of d on each rung, the coldest first, at states the network had not learned from (chains.spread_worth);
    holes: states of each rung with d far from its median; inner_acceptance: of the network's own moves.
    """

    states: int
    spread_kT: list[float]
    holes: list[int]
    inner_acceptance: float


@dataclass
class Progress:
    """Where the loop stands; written after every round, so that a cut run goes on from there.

    rounds: (labels fitted, spread in kT at the coldest rung, states it was measured on) of each; call_s, overhead,
    moves: CPU seconds of a true call, and in such calls what fit and chains cost per label, and the network's moves on
    a whole ladder between two calls; left, longest: share of a round's spread that the last fit leaves, and how long it
    may be; searched, found: states looked at for holes before the network was to be frozen, and holes among them;
    earlier_calls: what labels of an earlier learning cost.
    """

    round: int = 0
    rounds: list = field(default_factory=list)
    call_s: float = 0.0
    overhead: float = 0.0
    moves: float = 0.0
    left: float = LEFT_BY_LAST
    longest: int = LENGTHS[-1]
    searched: int = 0
    found: int = 0
    earlier_calls: int = 0
    true_calls: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    done: bool = False


class Meter:
    """CPU and wall seconds since it was made, of this process and of what works for it."""

    def __init__(self) -> None:
        self._began, self._workers = (time.perf_counter(), time.process_time()), []

    def of(self, *workers: Callable[[], float]) -> None:
        """Count the CPU seconds that each of these says, too."""
        self._workers += workers

    @property
    def cpu_s(self) -> float:
        """CPU seconds so far."""
        return time.process_time() - self._began[1] + sum(worker() for worker in self._workers)

    @property
    def wall_s(self) -> float:
        """Seconds of the clock so far."""
        return time.perf_counter() - self._began[0]


class Record:
    """rounds.jsonl and chains.npz in a learning's folder; `fingerprint` is what a resumed one must share."""

    def __init__(self, folder: Path, fingerprint: dict):
        self.folder, self.rounds, self.chains = folder, folder / "rounds.jsonl", folder / "chains.npz"
        self.fingerprint = as_written(fingerprint)
        self.rows: list[dict] = []

    def check_asked(self, what: str, state: State | None, resume: bool) -> None:
        """UserError where there is something to go on with, and nobody asked for that."""
        if state is not None and not resume:
            raise UserError(f"{self.folder} holds a {what} that has not finished; --resume goes on with it, "
                            f"{BEGIN_ANEW}")

    def keep(self, state: State, rng: np.random.Generator, progress: dict, arrays: dict[str, np.ndarray]) -> None:
        """Write all that a cut one goes on from, rows too, whole."""
        write_restart(self.chains, state, rng, self.fingerprint, progress, rows=self.rows, beside=arrays)

    def kept(self) -> tuple[State, np.random.Generator, dict[str, Any], dict[str, np.ndarray]] | None:
        """What `keep` wrote last, None when nothing was; UserError when it belongs to other settings.

        Rows on rounds that a killed learning wrote after that are taken back, since it makes these rounds again.
        """
        saved = read_restart(self.chains, self.fingerprint, "learned")
        if saved is None:
            return None
        state, rng, text, arrays = saved
        if "rows" in text:
            self.rows = text["rows"]
            self.write_rows()
        return state, rng, text["progress"], arrays

    def write_rows(self) -> None:
        """rounds.jsonl as the rows are."""
        write_text_atomic(self.rounds, "".join(json.dumps(row) + "\n" for row in self.rows))

    def check_free(self, names: tuple[str, ...]) -> None:
        """UserError where the folder holds files of these names, or rounds, and no restart file to go on from."""
        found = [name for name in (*names, self.rounds.name) if (self.folder / name).exists()]
        if found:
            raise UserError(f"{self.folder} holds {found[0]}, and no restart file of a learning to go on from; choose "
                            f"another output, or {BEGIN_ANEW}")


class Rounds(Record):
    """Of the learning of a network: its rounds, labels and `Progress`."""

    def add(self, what: str, progress: Progress, seen: Seen, cost: dict, *, labels: int, ladder_K: list[float],
            failed_true_calls: int) -> None:
        """One more row on a round; cost: true_calls_training, cpu_s_training, wall_s_training so far."""
        row = {"what": what, "round": progress.round, "ladder_K": ladder_K, "labels": labels,
               "failed_true_calls": failed_true_calls, **asdict(seen), **cost}
        self.rows.append(row)
        with naming(self.rounds), open(self.rounds, "a") as handle:
            handle.write(json.dumps(row) + "\n")
        log.info("%s %d: E_true - E_network spreads by %.2f kT at %g K (independent proposals: acceptance %.2f), %d of "
                 "%d states up to %g K in holes; %d true calls, %.0f s of CPU", what, progress.round, seen.spread_kT[0],
                 ladder_K[0], acceptance(seen.spread_kT[0]), sum(seen.holes), seen.states, ladder_K[-1],
                 row["true_calls_training"], row["cpu_s_training"])

    def save(self, state: State, rng: np.random.Generator, progress: Progress, cost: dict, labels: Labels) -> None:
        """Chains, generator, labels and progress, with what was spent so far (see `add`)."""
        kept = {**asdict(progress), "true_calls": cost["true_calls_training"] - progress.earlier_calls,
                "cpu_s": cost["cpu_s_training"], "wall_s": cost["wall_s_training"]}
        arrays = {name: getattr(labels, name) for name in FIELDS} | {
            EXTRA + name: values for name, values in labels.extra.items()}
        self.keep(state, rng, kept, {LABELS + name: values for name, values in arrays.items()})

    def restore(self) -> tuple[State, np.random.Generator, Progress, Labels] | None:
        """What was saved last (see `kept`)."""
        saved = self.kept()
        if saved is None:
            return None
        state, rng, progress, arrays = saved
        arrays = {name.removeprefix(LABELS): values for name, values in arrays.items() if name.startswith(LABELS)}
        if arrays:
            labels = Labels(**{name: arrays.pop(name) for name in FIELDS},
                            extra={name.removeprefix(EXTRA): values for name, values in arrays.items()})
        else:
            labels, _ = Labels.load(self.folder / "labels.npz")
        return state, rng, Progress(**progress), labels
