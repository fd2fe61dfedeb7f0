"""The pool of a Dask cluster: the same questions, answered by workers of any number of machines.

    dask scheduler --scheduler-file scheduler.json
    dask worker --scheduler-file scheduler.json --nthreads 1 --nworkers 64     # on every machine
    kstep sample CCO --learn --scheduler scheduler.json --out ethanol.npz

A worker that is used gets a seat: the backend, built once and kept in that worker's memory for as long as this client
holds it.  Questions go to a seat in their order, bound to that worker, so that the SCF guesses of a replica are where
it is asked.  A question holds as many geometries as make what the scheduler spends on it small.

Workers come and go.  Rows of one that is lost move to others, with the last SCF guess that is known, and what it had
not answered is asked again; an answer counts when it is here, so that none counts twice.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import heapq
import itertools
import logging
import math
import multiprocessing
import os
import pickle
import platform
import time
import traceback
from collections import Counter, deque
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import kstep
from kstep.errors import PhysicsError, UserError
from kstep.forces import BACKENDS, PhysicsSpec, find_backend, plugged_in
from kstep.forces.evaluator import Answers, Evaluator
from kstep.forces.pool import Question, Truth, WorkerPool, asked_of
from kstep.processes import SLICE_S, START_S, THREAD_VARIABLES, one_thread

CONNECT_S = 30.0  # for the scheduler to answer
LOOKS_APART_S = 2.0  # between two looks at which workers there are
REPLY_S = 10.0  # for what a worker's event loop answers beside its work
SAYS_APART_S = 60.0  # between two lines about waiting for workers
TASK_S = 0.1  # of work in a question, where calls are shorter
OVERHEAD_S = 0.002  # of the scheduler per task, as benchmarks/growth.py measures it
LEAST_WORK = 2.0  # times the overhead of one task for every worker: what the scheduler can keep busy
FAREWELL_S = 2.0
MOST_TRIES = 3  # to take a seat at one worker
BROKEN = ("error", "cancelled", "lost")  # of a Future

log = logging.getLogger("kstep")


def calls_per_task(call_s: float | None, n_workers: int) -> int:
    """Geometries in a question, of calls of call_s seconds (None: not known yet): 0.1 s of work, or one call.

    A scheduler that spends t per task keeps W workers busy where a task takes W t or longer; twice that is asked for.
    """
    if call_s is None:
        return 1
    return max(1, math.ceil(max(TASK_S, LEAST_WORK * OVERHEAD_S * n_workers) / max(call_s, 1e-6)))


# in a worker ---------------------------------------------------------------------------------------


class Seat:
    """A backend at work in a Dask worker; where Dask moves it, it is built anew, and begins without SCF guesses."""

    def __init__(self, spec: PhysicsSpec, cpu_s: float = 0.0):
        self.spec, self.cpu_s = spec, cpu_s  # cpu_s: that nobody was told of yet
        self.evaluator = Evaluator(spec)
        self.began: float | None = None

    def __reduce__(self):
        return Seat, (self.spec,)


@dataclass
class _Reply:
    """Of question number `sent` of this pool: true calls and CPU seconds that it took; error: a traceback, of a bug."""

    sent: int
    answers: Answers | None
    calls: int
    cpu_s: float
    error: str = ""


def _versions(backend: str) -> dict[str, str]:
    """What a client and its workers must have in common, as far as it is installed."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2]), "kstep": kstep.__version__}
    for name in find_backend(backend).packages if backend else ():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def _take_seat(backend: str, wanted: dict[str, str], recipe: bytes) -> Seat:
    """A seat in this worker; UserError where it could not say what the client would."""
    began = time.process_time()
    here = _versions(backend)
    for name, theirs in wanted.items():
        if here[name] != theirs:
            raise UserError(f"it has {name} {here[name]}, and this process {theirs}; give both the same")
    spec: PhysicsSpec = pickle.loads(recipe)
    if THREAD_VARIABLES[0] not in os.environ and spec.threads == 1:
        one_thread()
    threads = os.environ.get(THREAD_VARIABLES[0])
    if threads != str(spec.threads) or (spec.threads > 1 and multiprocessing.parent_process() is None):
        raise UserError(f"threads: {spec.threads} needs workers that a nanny starts with {THREAD_VARIABLES[0]}="
                        f"{spec.threads}, and there it is {threads or 'not set'}")
    seat = Seat(spec)
    seat.cpu_s = time.process_time() - began
    return seat


def _answer(seat: Seat, sent: int, task: str, guesses: dict[int, np.ndarray], payload: tuple) -> _Reply:
    """Of a question; guesses {row: history} are what the next SCF of a row begins with."""
    physics, cpu, answers, error = seat.evaluator.physics, time.process_time(), None, ""
    calls, seat.began = physics.true_calls, time.monotonic()
    try:
        for row, history in guesses.items():
            physics.remember(row, history)
        if task == "evaluate":
            answers = seat.evaluator(*payload)
        else:
            seat.evaluator.forget()
    except Exception:  # reported to the client, which raises it; what Dask itself reports is about Dask
        error = traceback.format_exc()
    finally:
        seat.began = None
    cpu_s, seat.cpu_s = seat.cpu_s + time.process_time() - cpu, 0.0
    return _Reply(sent, answers, physics.true_calls - calls, cpu_s, error)


def _at_it_s(key: str, dask_worker) -> float | None:
    """Seconds that a seat has been at its question; None: at none, as others have work there too."""
    seat = dask_worker.data.get(key)
    return time.monotonic() - seat.began if seat is not None and seat.began is not None else None


# here ----------------------------------------------------------------------------------------------


def connect(scheduler: str):
    """A client of the scheduler at tcp://host:port, or of a scheduler file; UserError where there is none."""
    try:
        from distributed import Client
    except ImportError:
        raise UserError("--scheduler needs Dask; pip install 'kstep[dask]'") from None
    where: dict[str, Any] = {"address": scheduler}
    if "://" not in scheduler:
        if not Path(scheduler).is_file():
            raise UserError(f"scheduler file {scheduler} does not exist; start one with dask scheduler "
                            f"--scheduler-file {scheduler}, or give its address, tcp://host:port")
        where = {"scheduler_file": scheduler}
    try:
        return Client(**where, timeout=CONNECT_S, set_as_default=False, name="kstep")
    except (OSError, ValueError, KeyError, TypeError) as error:  # TimeoutError is an OSError
        said = " ".join(str(error).split()) or "no answer"
        raise UserError(f"no Dask scheduler answers at {scheduler} ({said}); start one with dask scheduler, or leave "
                        "--scheduler out") from None


@dataclass
class _Worker:
    """A Dask worker that has a seat: what it was sent and has not answered, and when it was last heard of."""

    seat: Any  # a Future
    waiting: deque[tuple[int, Question, Any]] = field(default_factory=deque)  # place in what was sent, question, Future
    done: int = 0  # of those
    heard: float = 0.0


class DaskPool(WorkerPool):
    """The pool of the Dask cluster whose scheduler the spec names.

    Rows are dealt out over all its workers, beginning with worker number `first`, so that many small pools do not all
    ask the same one.  Without workers it waits, and says so.  UserError for a scheduler that does not answer and for
    workers that cannot compute the spec; PhysicsError where the scheduler is lost.
    """

    def __init__(self, spec: PhysicsSpec, first: int = 0):
        super().__init__(spec)
        self._first, self._recipe = first, pickle.dumps(replace(spec, scheduler=None))
        backend = spec.backend if spec.backend in {*BACKENDS, *plugged_in()} else ""
        self._seat_for = backend, _versions(backend), self._recipe
        self._calls, self._cpu_s = 0, 0.0
        self._workers: dict[str, _Worker] = {}
        self._seating: dict[str, Any] = {}  # Futures of seats that are being taken
        self._barred: dict[str, str] = {}  # workers that are not asked, and why
        self._tries: Counter[str] = Counter()  # to take a seat, that failed
        self._of_row: dict[int, str] = {}
        self._guesses: dict[int, np.ndarray] = {}  # the last SCF guess of each row that is known here
        self._owed: set[int] = set()  # rows whose worker does not know it
        self._homeless: list[Question] = []  # while there is no worker
        self._open: Counter[int] = Counter()  # questions not answered yet, by the number of their `submit`
        self._sent, self._looked, self._said = itertools.count(1), -np.inf, -np.inf
        self._client = connect(spec.scheduler)
        try:
            self._await_workers()
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

    # waiting ---------------------------------------------------------------------------------------

    def _until(self, work: Awaitable, limit_s: float = np.inf, watch=lambda: False) -> Any:
        """What `work` returns in the client's event loop; attend() is called meanwhile.

        TimeoutError after limit_s, or as soon as watch() is true: it is asked every half second.
        """
        future = asyncio.run_coroutine_threadsafe(_awaited(work), self._client.loop.asyncio_loop)
        end = time.monotonic() + limit_s
        try:
            while not concurrent.futures.wait([future], timeout=SLICE_S).done:
                self.attend()
                if time.monotonic() > end or watch():
                    raise TimeoutError
            return future.result()
        finally:
            future.cancel()

    def _await_workers(self) -> None:
        """Until there are seats, and all workers of now have theirs or have been waited for long enough."""
        began = time.monotonic()
        while not self._workers or (self._seating and time.monotonic() - began < START_S):
            self._look(may_refuse=True)
            if not self._workers or self._seating:
                self._say_waiting()
                time.sleep(0.02)
                self.attend()

    def _say_waiting(self) -> None:
        if not self._workers and not self._seating and time.monotonic() - self._said > SAYS_APART_S:
            self._said = time.monotonic()
            log.warning("the scheduler at %s has no worker; waiting for one", self.spec.scheduler)

    # who there is ----------------------------------------------------------------------------------

    def _look(self, *, may_refuse: bool = False) -> None:
        """See which workers have come and gone; may_refuse: one that cannot be asked is the user's mistake."""
        if time.monotonic() - self._looked > (0.2 if self._seating or not self._workers else LOOKS_APART_S):
            self._see_who_is_there()
            self._looked = time.monotonic()
        for address, seat in list(self._seating.items()):
            if seat.status == "finished":
                self._workers[address] = _Worker(self._seating.pop(address), heard=time.monotonic())
                self._even_out()
            elif seat.status != "pending":
                del self._seating[address]
                self._tries[address] += 1
                if seat.status == "error" and (  # else it is gone again, or Dask failed
                        isinstance(seat.exception(), UserError) or self._tries[address] == MOST_TRIES):
                    self._bar(address, _sentence(seat.exception()), may_refuse and not self._workers)
        if self._workers and self._homeless:
            homeless, self._homeless = self._homeless, []
            for question in homeless:
                self._send(question)

    def _see_who_is_there(self) -> None:
        self._check_client()
        try:
            threads = self._until(self._client.nthreads(asynchronous=True), REPLY_S)
        except OSError:  # TimeoutError is one; the client tries for a while to reach its scheduler again
            return
        for address, worker in list(self._workers.items()):
            if address not in threads:
                self._lose(address, "has left the cluster")
            elif worker.seat.status != "finished":  # as after the scheduler was out of reach; it takes another
                self._lose(address, "has lost its backend", blame=False)
        for address in self._seating.keys() - threads.keys():
            del self._seating[address]
        for address in sorted(threads.keys() - self._workers.keys() - self._seating.keys() - self._barred.keys()):
            if threads[address] != 1:
                self._bar(address, f"it has {threads[address]} threads; start workers with --nthreads 1",
                          not self._workers)
            else:
                self._seating[address] = self._submit(address, _take_seat, *self._seat_for)

    def _check_client(self) -> None:
        if self._client.status in ("closed", "closing"):
            raise PhysicsError(f"the Dask scheduler at {self.spec.scheduler} is gone; --resume goes on with the run "
                               "once another is there")

    def _bar(self, address: str, why: str, refuse: bool) -> None:
        sentence = f"the Dask worker {address} cannot be asked: {why}"
        self._barred[address] = why
        if refuse:
            raise UserError(sentence)
        log.warning("%s", sentence)

    def _submit(self, address: str, function, *arguments):
        return self._client.submit(function, *arguments, workers=[address], allow_other_workers=False, pure=False,
                                   fifo_timeout=0)

    def _lose(self, address: str, why: str, *, blame: bool = True) -> None:
        """What a lost worker was asked goes to others; blame: the question that it was at with care."""
        lost = self._workers.pop(address)
        self._of_row = {row: place for row, place in self._of_row.items() if place != address}
        self._owed |= self._guesses.keys() - self._of_row.keys()
        unfinished = (number for number, _, future in lost.waiting if future.status != "finished")
        at = next(unfinished, None) if blame else None
        for number, question, _ in lost.waiting:
            self._ask_again(question, f"at {address} {why}" if number == at else None)
        if at is None:
            log.warning("a worker of the true physics at %s %s; others take its place", address, why)

    def _ask_again(self, question: Question, why: str | None) -> None:
        """A question that has no answer; why: its worker was lost, in words, or None where that was not its doing."""
        self._open[question.number] -= 1
        again = [question]
        if why is not None:
            again, refusal, words = question.after_loss(why)
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
        worker, sent = self._workers[address], next(self._sent)
        if not worker.waiting:
            worker.heard = time.monotonic()
        future = self._submit(address, _answer, worker.seat, sent, question.task, guesses, question.payload)
        worker.waiting.append((sent, question, future))

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
            futures = [future for worker in self._workers.values()
                       for _, question, future in worker.waiting if question.number == number]
            if not futures:  # no worker is left
                self._look()
                self._say_waiting()
                time.sleep(SLICE_S / 10)
                self.attend()
                continue
            try:
                replies = self._until(self._client.gather(futures, errors="skip", asynchronous=True),
                                      watch=self._is_something_wrong)
            except (OSError, RuntimeError, concurrent.futures.CancelledError) as error:  # TimeoutError is an OSError
                if isinstance(error, RuntimeError) and self._client.status == "running":
                    raise
                self._check_client()
                replies = []
            self._heed(replies)
        del self._open[number]

    def _heed(self, replies: list[_Reply]) -> None:
        """Take what was answered, and ask again what broke."""
        said, broken = {reply.sent: reply for reply in replies}, []
        for worker in self._workers.values():
            left: deque[tuple[int, Question, Any]] = deque()
            for sent, question, future in worker.waiting:
                if sent in said:
                    self._settle(question, said[sent])
                elif future.status in BROKEN:
                    broken.append((question, _why_broken(future)))
                else:
                    left.append((sent, question, future))
            if len(left) < len(worker.waiting):
                worker.heard = time.monotonic()
            worker.waiting, worker.done = left, sum(future.status == "finished" for _, _, future in left)
        if broken:  # first see whether their workers are there
            self._looked = -np.inf
            self._look()
        for question, why in broken:
            self._ask_again(question, why)

    def _settle(self, question: Question, reply: _Reply) -> None:
        if reply.error:
            raise RuntimeError(f"a Dask worker failed: {reply.error}")
        self._calls, self._cpu_s = self._calls + reply.calls, self._cpu_s + reply.cpu_s
        self._open[question.number] -= 1
        if reply.answers is not None:
            self._take(question.number, question.mine, reply.answers)

    def _is_something_wrong(self) -> bool:
        """While answers are waited for: whether a worker is lost or hangs, or a question has broken."""
        before = set(self._workers)
        self._look()
        for address, worker in list(self._workers.items()):
            done = sum(future.status == "finished" for _, _, future in worker.waiting)
            if done != worker.done:
                worker.done, worker.heard = done, time.monotonic()
            at = next((question for _, question, future in worker.waiting if future.status == "pending"), None)
            if at is not None and (silent_s := self._hangs(worker, address, self._times.limit_for(at.n_calls))):
                self._give_up(address, silent_s)
        return not before <= self._workers.keys() or any(
            future.status in BROKEN for worker in self._workers.values() for _, _, future in worker.waiting)

    def _hangs(self, worker: _Worker, address: str, limit_s: float) -> float:
        """Seconds that a worker has been at its question, where they are more than it may take; otherwise 0.

        What the worker says of itself counts: it may have had another client's work to do, or this process slept.
        """
        silent_s = time.monotonic() - worker.heard
        if silent_s <= limit_s:
            return 0.0
        try:
            at_it_s = self._until(self._client.run(_at_it_s, worker.seat.key, workers=[address], on_error="return",
                                                   asynchronous=True), REPLY_S).get(address)
        except TimeoutError:
            return silent_s
        if isinstance(at_it_s, float) and at_it_s > limit_s:
            return at_it_s
        worker.heard = time.monotonic() - (at_it_s if isinstance(at_it_s, float) else 0.0)
        return 0.0

    def _give_up(self, address: str, silent_s: float) -> None:
        """A worker that hangs is not asked any more; its nanny, where it has one, is told to start another."""
        self._barred[address] = "it hung"
        self._lose(address, f"answered nothing for {silent_s:.0f} s")
        try:
            self._until(asyncio.to_thread(self._client.restart_workers, [address], timeout=REPLY_S,
                                          raise_for_error=False), REPLY_S + SLICE_S)
        except (ValueError, OSError) as error:  # without a nanny, or one that is not there either
            log.warning("the Dask worker %s could not be started again (%s)", address, error or "no answer")

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
        self._workers, self._seating, self._homeless = {}, {}, []
        self._client.close(timeout=FAREWELL_S)


async def _awaited(work: Awaitable) -> Any:
    return await work


def _sentence(error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return (f"it fails to begin ({said}); every worker, and the scheduler, needs kstep {kstep.__version__} and what "
            "the backend needs")


def _why_broken(future) -> str | None:
    """Why a question was not answered, in words, where Dask says so; None: its seat is gone, which is not its doing."""
    return " ".join(f"reports {future.exception()!r}".split()) if future.status == "error" else None
