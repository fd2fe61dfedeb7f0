"""The pool of a Dask cluster: the same questions, answered by workers of any number of machines.

    dask scheduler --scheduler-file scheduler.json
    dask worker --scheduler-file scheduler.json --nthreads 1 --nworkers 64     # on every machine
    kstep sample CCO --learn --scheduler scheduler.json --out ethanol.npz

Every worker has a seat (`dask_cluster`, `dask_seat`).  Questions go to a seat in their order, bound to that worker, so
that the SCF guesses of a replica are where it is asked.  A question holds as many geometries as make what the scheduler
spends on it small.

Workers come and go.  Rows of one that is lost move to others, with the last SCF guess that is known, and what it had
not answered is asked again; an answer counts when it is here, so that none counts twice.
"""

from __future__ import annotations

import concurrent.futures
import heapq
import itertools
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kstep.forces import PhysicsSpec
from kstep.forces.dask_cluster import Cluster, Gone
from kstep.forces.dask_seat import Reply, answer
from kstep.forces.pool import Question, Truth, WorkerPool, asked_of
from kstep.processes import SLICE_S

TASK_S = 0.1  # of work in a question, where calls are shorter
OVERHEAD_S = 0.002  # of the scheduler per task, as benchmarks/growth.py measures it
LEAST_WORK = 2.0  # times the overhead of one task for every worker: what the scheduler can keep busy
BROKEN = ("error", "cancelled", "lost")  # of a Future

log = logging.getLogger("kstep")


def calls_per_task(call_s: float | None, n_workers: int) -> int:
    """Geometries in a question, of calls of call_s seconds (None: not known yet): 0.1 s of work, or one call.

    A scheduler that spends t per task keeps W workers busy where a task takes W t or longer; twice that is asked for.
    """
    if call_s is None:
        return 1
    return max(1, math.ceil(max(TASK_S, LEAST_WORK * OVERHEAD_S * n_workers) / max(call_s, 1e-6)))


@dataclass(frozen=True)
class _Sent:
    """What a worker was sent, number `place` of this pool; in_turn: it begins when Dask knows the answer before it."""

    place: int
    question: Question
    future: Any
    in_turn: bool


@dataclass
class _Worker:
    """What a Dask worker was sent and has not answered, and when it was last heard of."""

    waiting: deque[_Sent] = field(default_factory=deque)
    done: int = 0  # of those
    heard: float = field(default_factory=time.monotonic)


class DaskPool(WorkerPool):
    """The pool of the Dask cluster whose scheduler the spec names.

    Rows are dealt out over all its workers, beginning with worker number `first`, so that many small pools do not all
    ask the same one.  Without workers it waits, and says so.  UserError for a scheduler that does not answer and for
    workers that cannot compute the spec; PhysicsError where the scheduler is lost.
    """

    def __init__(self, spec: PhysicsSpec, first: int = 0):
        super().__init__(spec)
        self._first = first
        self._calls, self._cpu_s = 0, 0.0
        self._workers: dict[str, _Worker] = {}  # those that have a seat
        self._of_row: dict[int, str] = {}
        self._guesses: dict[int, np.ndarray] = {}  # the last SCF guess of each row that is known here
        self._owed: set[int] = set()  # rows whose worker does not know it
        self._homeless: list[Question] = []  # while there is no worker
        self._open: Counter[int] = Counter()  # questions not answered yet, by the number of their `submit`
        self._sent = itertools.count(1)
        self._cluster = Cluster(spec, lambda: self.attend())
        try:
            self._cluster.await_workers()
            self._look()
        except BaseException:
            self.close(at_once=True)
            raise

    @property
    def n_workers(self) -> int:  # type: ignore[override]
        """Workers that have a seat now."""
        return len(self._workers)

    @property
    def true_calls(self) -> int:
        """True calls that were answered so far, failures included."""
        return self._calls

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the workers for what they answered."""
        return self._cpu_s

    # who there is ----------------------------------------------------------------------------------

    def _look(self, *, at_once: bool = False) -> None:
        """See which workers have come and gone, and ask what nobody could be asked."""
        self._lose(self._cluster.look(at_once=at_once))
        for address in sorted(self._cluster.seated.keys() - self._workers.keys()):
            self._workers[address] = _Worker()
            self._even_out()
        if self._workers and self._homeless:
            homeless, self._homeless = self._homeless, []
            for question in homeless:
                self._send(question)

    def _lose(self, all_gone: list[Gone]) -> None:
        """What lost workers were asked goes to others; what one may have been at, with care."""
        lost = [(gone, self._workers.pop(gone.address).waiting) for gone in all_gone]
        self._of_row = {row: address for row, address in self._of_row.items() if address in self._workers}
        self._owed |= self._guesses.keys() - self._of_row.keys()
        for gone, waiting in lost:
            suspects = _may_have_been_at(waiting) if gone.is_its_own_doing else []
            if not suspects:
                log.warning("a worker of the true physics at %s %s; others take its place", gone.address, gone.why)
            for sent in waiting:
                self._ask_again(sent.question, f"at {gone.address} {gone.why}" if sent in suspects else None,
                                aloud=sent in suspects[:1])

    def _ask_again(self, question: Question, why: str | None, aloud: bool = True) -> None:
        """A question that has no answer; why: its worker was lost, in words, or None where that was not its doing."""
        self._open[question.number] -= 1
        again = [question]
        if why is not None:
            again, refusal, words = question.after_loss(why)
            if aloud:
                log.warning("a worker of the true physics %s; %s", why, words)
            if refusal is not None:
                self._calls += 1
                self._take(question.number, question.mine, refusal)
        for each in again:
            self._ask(each)

    # asking ----------------------------------------------------------------------------------------

    def _deal(self, rows: np.ndarray) -> list[str]:
        """The worker of each row; a new row goes to the one with the fewest."""
        missing = [row for row in rows.tolist() if row not in self._of_row]
        if missing:
            counts, order = Counter(self._of_row.values()), sorted(self._workers)
            heap = [(counts[address], (n - self._first) % len(order), address) for n, address in enumerate(order)]
            heapq.heapify(heap)
            for row in missing:
                count, place, address = heap[0]
                self._of_row[row] = address
                heapq.heapreplace(heap, (count + 1, place, address))
        return [self._of_row[row] for row in rows.tolist()]

    def _even_out(self) -> None:
        """Take rows from workers that have more than their share, now that there is another."""
        most, counts = math.ceil(len(self._of_row) / len(self._workers)), Counter(self._of_row.values())
        for row, address in list(self._of_row.items()):
            if counts[address] > most:
                counts[address] -= 1
                del self._of_row[row]
        self._owed |= self._guesses.keys() - self._of_row.keys()

    def _ask(self, question: Question) -> None:
        self._open[question.number] += 1
        if self._workers:
            self._send(question)
        else:
            self._homeless.append(question)

    def _send(self, question: Question) -> None:
        """To the worker of its rows, and those of its rows to that worker; "forget" has none, and is for any."""
        guesses = {}
        if question.task == "evaluate":
            rows = question.payload[1]
            address = self._deal(rows[:1])[0]
            self._of_row.update(dict.fromkeys(rows.tolist(), address))
            guesses = {row: self._guesses[row] for row in rows.tolist() if row in self._owed}
            self._owed -= guesses.keys()
        else:
            address = next(iter(self._workers))
        self._send_to(address, question, guesses)

    def _send_to(self, address: str, question: Question, guesses: dict[int, np.ndarray]) -> None:
        """One that may have cost a worker begins, and all behind it do, when the answer before is known.

        Without that, what a worker said in its last milliseconds may be lost with it, and the wrong one be to blame;
        for all of them it would cost the way to the scheduler and back.
        """
        worker, seated = self._workers[address], self._cluster.seated[address]
        last = worker.waiting[-1] if worker.waiting else None
        if last is None:
            worker.heard = time.monotonic()
        in_turn = question.lost > 0 or (last is not None and last.in_turn)
        place, before = next(self._sent), last.future if last is not None and in_turn else None
        future = self._cluster.submit(address, answer, seated.seat, seated.token, place, question.task, guesses,
                                      question.payload, before)
        worker.waiting.append(_Sent(place, question, future, in_turn))

    def submit(self, positions: np.ndarray, rows: np.ndarray | None = None, want_forces: bool | None = None):
        """Start evaluating positions (r,N,3) of the replicas `rows` (r,); `collect` waits for it."""
        (positions, rows), want_forces = asked_of(positions, rows), self.wants_forces(want_forces)
        number = next(self._numbers)
        self._look()
        size = calls_per_task(self._times.median_s, len(self._workers))
        if self._workers:
            places = np.array(self._deal(rows))
            groups = [np.flatnonzero(places == address) for address in dict.fromkeys(places.tolist())]
        else:
            groups = list(np.arange(len(rows))[:, None])
        for mine in groups:
            for question in Question(number, "evaluate", (positions[mine], rows[mine], want_forces), mine).parts(size):
                self._ask(question)
        return positions, number

    def collect(self, ticket) -> Truth:
        """Wait for what `submit` started."""
        positions, number = ticket
        self._await(number)
        truth = self._truth(number, positions)
        self._guesses |= self.histories
        return truth

    def _await(self, number: int) -> None:
        """Until all questions of a number are answered."""
        while self._open[number] > 0:
            futures = [sent.future for worker in self._workers.values()
                       for sent in worker.waiting if sent.question.number == number]
            if not futures:  # no worker is left
                self._look()
                self._cluster.say_waiting()
                time.sleep(SLICE_S / 10)
                self.attend()
                continue
            try:
                replies = self._cluster.until(
                    self._cluster.client.gather(futures, errors="skip", asynchronous=True),
                    watch=self._is_something_wrong)
            except (OSError, RuntimeError, concurrent.futures.CancelledError) as error:  # TimeoutError is an OSError
                if isinstance(error, RuntimeError) and self._cluster.client.status == "running":
                    raise
                self._cluster.check()
                replies = []
            self._heed(replies)
        del self._open[number]

    def _heed(self, replies: list[Reply]) -> None:
        """Take what was answered, and ask again what broke or went to a seat that is not there any more."""
        said, broken, anew = {reply.sent: reply for reply in replies}, [], []
        for address, worker in self._workers.items():
            left: deque[_Sent] = deque()
            of_worker: list[tuple[Question, str | None]] = []
            for sent in worker.waiting:
                reply = said.get(sent.place)
                if reply is not None and not reply.is_other:
                    self._settle(sent.question, reply, address)
                elif reply is not None:
                    of_worker.append((sent.question, f"at {address} was started anew"))
                    anew.append(address)
                elif sent.future.status in BROKEN:
                    of_worker.append((sent.question, _why_broken(sent.future)))
                else:
                    left.append(sent)
            if len(left) < len(worker.waiting):
                worker.heard = time.monotonic()
            worker.waiting, worker.done = left, sum(sent.future.status == "finished" for sent in left)
            first = next((question for question, why in of_worker if why is not None), None)  # and by it, all others
            broken += [(question, why if question is first else None) for question, why in of_worker]
        for address in dict.fromkeys(anew):
            self._cluster.leave(address)
            self._lose([Gone(address, "was started anew", False)])
        if broken:  # first see whether their workers are there
            self._look(at_once=True)
        for question, why in broken:
            self._ask_again(question, why)

    def _settle(self, question: Question, reply: Reply, address: str) -> None:
        if reply.error is not None:
            log.error("the Dask worker at %s failed", address)
            raise reply.error
        self._calls, self._cpu_s = self._calls + reply.calls, self._cpu_s + reply.cpu_s
        self._open[question.number] -= 1
        if reply.answers is not None:
            self._take(question.number, question.mine, reply.answers)

    def _is_something_wrong(self) -> bool:
        """While answers are waited for: whether a worker is lost or hangs, or a question has broken."""
        before = set(self._workers)
        self._look()
        for address, worker in list(self._workers.items()):
            done = sum(sent.future.status == "finished" for sent in worker.waiting)
            if done != worker.done:
                worker.done, worker.heard = done, time.monotonic()
            at = next((sent.question for sent in worker.waiting if sent.future.status == "pending"), None)
            if at is not None and (silent_s := self._hangs(worker, address, self._times.limit_for(at.n_calls))):
                self._cluster.leave(address, "it hung")
                self._lose([Gone(address, f"answered nothing for {silent_s:.0f} s", True)])
                self._cluster.restart(address)
        return not before <= self._workers.keys() or any(
            sent.future.status in BROKEN for worker in self._workers.values() for sent in worker.waiting)

    def _hangs(self, worker: _Worker, address: str, limit_s: float) -> float:
        """Seconds that a worker has been at its question, where they are more than it may take; otherwise 0.

        What the worker says of itself counts: it may have had another client's work to do, or this process slept.
        """
        silent_s = time.monotonic() - worker.heard
        if silent_s <= limit_s:
            return 0.0
        try:
            at_it_s = self._cluster.seconds_at_it(address)
        except TimeoutError:
            return silent_s
        if at_it_s is not None and at_it_s > limit_s:
            return at_it_s
        worker.heard = time.monotonic() - (at_it_s or 0.0)
        return 0.0

    def forget(self) -> None:
        """Drop SCF guesses everywhere."""
        self._guesses.clear()
        self._owed.clear()
        number = next(self._numbers)
        for address in list(self._workers):
            self._open[number] += 1
            self._send_to(address, Question(number, "forget"), {})
        self._await(number)

    def remember(self, row: int, history: np.ndarray) -> None:
        """Let a row's next SCF begin with what was in `histories`."""
        self._guesses[row] = history
        self._owed.add(row)

    def close(self, at_once: bool = False) -> None:
        """Give the seats back; workers are the cluster's, and end the call that they are in the middle of."""
        self._workers, self._homeless = {}, []
        self._cluster.close()


def _may_have_been_at(waiting: Iterable[_Sent]) -> list[_Sent]:
    """What a lost worker may have been at, of what it was sent: that which was not answered, in its turn.

    What Dask knows to be answered is not, though the answer went with the worker; what it may have answered in its last
    milliseconds, without a word of it being heard, is.
    """
    unanswered = [sent for sent in waiting if sent.future.status == "pending"]
    return unanswered[:1] if unanswered and unanswered[0].in_turn else [s for s in unanswered if not s.in_turn]


def _why_broken(future) -> str | None:
    """Why a question was not answered, in words, where Dask says so; None: its seat is gone, which is not its doing."""
    return " ".join(f"reports {future.exception()!r}".split()) if future.status == "error" else None
