"""True evaluations of R geometries: what any pool of them promises, and what those with workers share.

    local_pool    spawned processes of this machine
    dask_pool     workers of a Dask cluster, where the spec names its scheduler; with dask_cluster and dask_seat

A worker that dies or hangs is replaced and its geometry asked again, then once more alone; a geometry that costs a
third worker is refused, a failed true call like any other.  So is a number out of any reason (`Reference`).
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kstep.errors import UserError
from kstep.forces import PhysicsSpec
from kstep.forces.evaluator import Answers, put_answers
from kstep.processes import MOST_LOST, CallTimes
from kstep.restraints import Bias

MOST_RELEASED = 1000.0  # kJ/mol and atom: no rearrangement sets more free; C=O, the strongest bond, holds 1072 for two
FIRST_ENERGIES = 101  # behind a reference


@dataclass(frozen=True)
class Truth:
    """What the true potential said of r geometries, restraints of the spec added.

    energy (r,) kJ/mol; forces (r,N,3) kJ/mol/nm, NaN where they were not asked for or there
    are none; failed (r,) bool: the SCF did not
    converge or the geometry was refused, and every number of that row is NaN; extra {name: (r,...)}: what the backend
    says besides (`Physics.extra`), empty where no row succeeded; bare: energy and forces without the
    restraints, which labels are made of.
    """

    energy: np.ndarray
    forces: np.ndarray
    failed: np.ndarray
    messages: tuple[str, ...] = ()  # (r,) why each row failed, "" where it did not
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    bare: tuple[np.ndarray, np.ndarray] = field(default=None, kw_only=True)

    def __post_init__(self):
        if self.bare is None:
            object.__setattr__(self, "bare", (self.energy, self.forces))


class Reference:
    """The energies that a pool begins with; one far below them is no energy of this molecule on this surface.

    An SCF that fell into another state can be 1e6 kJ/mol too low, and a chain that takes it never leaves it.  What a
    geometry may lie below the lower quartile of the first energies (of which some may be such states, and many may be
    clashes) is the number of atoms times what rearranging an atom can set free, 1000 kJ/mol: relative, so that it holds
    for every backend's zero.  Far above is where atoms clash, which every scheme refuses by itself.
    """

    def __init__(self, n_atoms: int):
        self.most_below = MOST_RELEASED * n_atoms
        self._first: list[float] = []
        self._level = np.nan

    def check(self, truth: Truth) -> Truth:
        """The same, rows out of any reason failed."""
        level = self._level
        if len(self._first) < FIRST_ENERGIES and not truth.failed.all():
            self._first += truth.energy[~truth.failed].tolist()
            self._level = float(np.percentile(self._first, 25))
        level = self._level if np.isnan(level) else level  # the first ones have nothing but each other
        with np.errstate(invalid="ignore"):
            low = truth.energy < level - self.most_below
        if not low.any():
            return truth
        messages = [f"the true energy is {level - energy:.3g} kJ/mol below where the run began, more than "
                    f"{self.most_below:g} that its atoms could set free: a wrong electronic state" if wrong else message
                    for energy, wrong, message in zip(truth.energy, low, truth.messages)]
        energy, forces = np.where(low, np.nan, truth.energy), np.where(low[:, None, None], np.nan, truth.forces)
        extra = {name: np.where(low.reshape(-1, *[1] * (values.ndim - 1)), np.nan, values)
                 for name, values in truth.extra.items()}
        return Truth(energy, forces, np.isnan(energy), tuple(messages), extra)


class Pool(ABC):
    """Whoever evaluates R geometries at once: `submit` a question, `collect` its answer; a context manager.

    A maker is a subclass that is built from a PhysicsSpec and says where its workers are.  It counts every answer once,
    failures included (`true_calls`), and asks a row's questions of one worker in their order, so that an SCF guess is
    the one of that row.  attend() is called while it waits, at least twice a second.
    """

    n_workers: int
    wall_s = 0.0  # seconds that an earlier process spent on answers which this one is told
    attend: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, spec: PhysicsSpec):
        self.spec, self.numbers, self.masses = spec, spec.numbers, spec.masses
        self._has_forces = spec.has_forces
        self._bias = Bias(spec.restraints) if spec.restraints else None
        self.failures: list[str] = []  # one sentence per true call that gave no number
        self.histories: dict[int, np.ndarray] = {}  # SCF guesses that the last `collect` was told, by row

    @property
    @abstractmethod
    def true_calls(self) -> int:
        """True calls of all workers that were answered so far, failures included."""

    @property
    @abstractmethod
    def cpu_s(self) -> float:
        """CPU seconds of the workers (0 where that is this process)."""

    @property
    @abstractmethod
    def call_limit_s(self) -> float:
        """Seconds after which a true call counts as hung."""

    @property
    @abstractmethod
    def call_s(self) -> float | None:
        """Seconds that a true call takes, the median of the last ones; None while nobody knows."""

    @abstractmethod
    def submit(self, positions: np.ndarray, rows: np.ndarray | None = None, want_forces: bool | None = None) -> Any:
        """Start evaluating positions (r,N,3) nm of the replicas `rows` (r,); `collect` waits for the ticket.

        want_forces: see `wants_forces`, which a maker asks.
        """

    def wants_forces(self, want_forces: bool | None) -> bool:
        """Whether a question is about forces too; None: as far as the truth has them, UserError where it has none."""
        if want_forces and not self._has_forces:
            raise UserError(f"{self.spec.method} has no forces to ask for; ask for energies alone")
        return self._has_forces if want_forces is None else want_forces

    @abstractmethod
    def collect(self, ticket) -> Truth:
        """Wait for what `submit` started."""

    @abstractmethod
    def forget(self) -> None:
        """Drop SCF guesses everywhere."""

    @abstractmethod
    def remember(self, row: int, history: np.ndarray) -> None:
        """Let a row's next SCF begin with what was in `histories`."""

    @abstractmethod
    def close(self, at_once: bool = False) -> None:
        """Stop the workers; at_once: in the middle of their work."""

    def restrained(self, positions: np.ndarray, bare: Truth) -> Truth:
        """What a backend said at positions (r,N,3) nm, the restraints of the spec added."""
        if self._bias is None:
            return bare
        bias, bias_forces = self._bias.energy_and_forces(positions)
        return replace(bare, energy=bare.energy + bias, forces=bare.forces + bias_forces)

    def evaluate(self, positions: np.ndarray, rows: np.ndarray | None = None,
                 want_forces: bool | None = None) -> Truth:
        """Energy and forces of positions (r,N,3) nm; `rows` (r,) names the replicas; want_forces: as `submit`."""
        return self.collect(self.submit(positions, rows, want_forces))

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.close(at_once=kind is not None)


class PoolAround(Pool):
    """Another pool, of whose questions or answers a subclass makes something else; the rest is handed on."""

    def __init__(self, pool: Pool):
        super().__init__(pool.spec)
        self.pool, self.n_workers, self.failures = pool, pool.n_workers, pool.failures

    @property
    def true_calls(self) -> int:
        """Of the pool."""
        return self.pool.true_calls

    @property
    def cpu_s(self) -> float:
        """Of the pool."""
        return self.pool.cpu_s

    @property
    def call_limit_s(self) -> float:
        """Of the pool."""
        return self.pool.call_limit_s

    @property
    def call_s(self) -> float | None:
        """Of the pool."""
        return self.pool.call_s

    def forget(self) -> None:
        """As any pool."""
        self.pool.forget()

    def remember(self, row: int, history: np.ndarray) -> None:
        """As any pool."""
        self.pool.remember(row, history)

    def close(self, at_once: bool = False) -> None:
        """Stop the workers."""
        self.pool.close(at_once)


@dataclass(frozen=True)
class Question:
    """A task of a worker.

    number: of the `submit` that it is a part of, and mine (r,) its places there; lost: workers that it has cost so far.
    """

    number: int
    task: str
    payload: tuple = ()
    mine: np.ndarray | None = None
    lost: int = 0

    @property
    def n_calls(self) -> int:
        """True calls that it takes."""
        return len(self.mine) if self.mine is not None else 1

    def parts(self, size: int) -> list[Question]:
        """The same, at most so many geometries at a time."""
        positions, rows, want_forces = self.payload
        pieces = [slice(first, first + size) for first in range(0, len(rows), size)]
        return [replace(self, payload=(positions[piece], rows[piece], want_forces), mine=self.mine[piece])
                for piece in pieces]

    def after_loss(self, why: str) -> tuple[list[Question], Answers | None, str]:
        """What becomes of it when its worker is lost: what to ask again, or the refusal in its place, and in words."""
        again = replace(self, lost=self.lost + 1)
        if self.task != "evaluate" or again.lost < 2:
            return [again], None, "another one takes its place, and is asked the same"
        if again.lost >= MOST_LOST and self.n_calls == 1:
            return [], Answers.refused(self.payload[0].shape, f"the true physics lost three workers at this geometry, "
                                       f"the last one {why}"), ("the geometry that it was asked about has cost three, "
                                                                "and is refused")
        return again.parts(1), None, "another one takes its place, and is asked the same, one geometry at a time"


class WorkerPool(Pool):
    """A pool of workers that answer questions one after the other; a maker says how they are asked."""

    def __init__(self, spec: PhysicsSpec):
        super().__init__(spec)
        self._reference, self._times = Reference(len(spec.numbers)), CallTimes(spec.call_limit_s)
        self._numbers = itertools.count(1)
        self._answered: dict[int, list[tuple[np.ndarray, Answers]]] = {}  # by number: places in a `submit`, and answers

    @property
    def call_limit_s(self) -> float:
        """Seconds after which a true call counts as hung."""
        return self._times.limit_for(1)

    @property
    def call_s(self) -> float | None:
        """Seconds that a true call takes, the median of the last ones."""
        return self._times.median_s

    def _take(self, number: int, mine: np.ndarray, answers: Answers) -> None:
        """Keep what was said at some places of a `submit` until it is collected."""
        for seconds in answers.seconds:
            self._times.add(seconds)
        self._answered.setdefault(number, []).append((mine, answers))

    def _truth(self, number: int, positions: np.ndarray) -> Truth:
        """What was said of all positions (r,N,3) nm of a `submit`."""
        energy = np.full(len(positions), np.nan)
        forces = np.full(positions.shape, np.nan)
        messages, extra, self.histories = np.full(len(positions), "", dtype=object), {}, {}
        for mine, answers in self._answered.pop(number, []):
            energy[mine], forces[mine], messages[mine] = answers.energy, answers.forces, answers.messages
            put_answers(extra, answers.extra, mine, len(positions))
            self.histories |= answers.histories
        truth = self._reference.check(Truth(energy, forces, np.isnan(energy), tuple(messages), extra))
        self.failures += [message for message in truth.messages if message]
        return self.restrained(positions, truth)


def asked_of(positions: np.ndarray, rows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Positions (r,N,3) as they are sent, and the replicas (r,) that they are of."""
    positions = np.asarray(positions, dtype=np.float64)
    return positions, np.arange(len(positions)) if rows is None else np.asarray(rows)


def make_pool(spec: PhysicsSpec, n_workers: int = 1, *, first: int = 0) -> Pool:
    """The pool that the spec asks for: workers of a Dask cluster, or n_workers processes of this machine.

    first: number of the Dask worker that the first row is asked of.
    """
    if spec.scheduler is not None:
        from kstep.forces.dask_pool import DaskPool

        return DaskPool(spec, first)
    from kstep.forces.local_pool import EvaluationPool

    return EvaluationPool(spec, n_workers)
