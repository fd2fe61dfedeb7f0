"""The pool of this machine.

Workers are spawned, never forked (a fork after a calculation deadlocks in the maths
libraries), and each sees OMP_NUM_THREADS=1: two threads per true call are many times slower
than one.  Replica r always goes to worker r mod W, so a backend's SCF guess of a replica
stays where that replica is.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from multiprocessing.connection import wait

import numpy as np

from kstep.errors import PhysicsError, UserError
from kstep.forces import PhysicsSpec
from kstep.forces.evaluator import Evaluator, to_report
from kstep.forces.pool import Question, Truth, WorkerPool, asked_of
from kstep.processes import (
    MOST_LOST,
    SLICE_S,
    START_S,
    CallTimes,
    Worker,
    WorkerLost,
    end_all,
    exit_with_parent,
    loading,
)

log = logging.getLogger("kstep")


def _serve(connection, spec: PhysicsSpec) -> None:
    """Of a worker process: answer (number, task, ...) with (number, kind, ...)."""
    exit_with_parent()
    try:
        with loading():
            evaluate = Evaluator(spec)
    except Exception as error:  # reported to the parent, which raises it
        connection.send((0, "error", to_report(error)))
        return
    try:
        connection.send((0, "ready"))
    except OSError:  # the parent is gone
        return
    tasks: queue.SimpleQueue = queue.SimpleQueue()

    def listen():
        # A thread of its own, so that a task sent while an answer is being written blocks neither side.
        try:
            while True:
                tasks.put(connection.recv())
        except (EOFError, OSError):
            tasks.put((0, "stop"))

    threading.Thread(target=listen, daemon=True).start()
    while True:
        number, task, *payload = tasks.get()
        try:
            if task == "evaluate":
                answers = evaluate(*payload)
                connection.send((number, "truth", answers, evaluate.physics.true_calls, time.process_time()))
            elif task == "remember":
                evaluate.physics.remember(*payload)
            elif task == "forget":
                evaluate.forget()
                connection.send((number, "ready"))
            else:
                return
        except Exception as error:
            connection.send((number, "error", to_report(error)))


class EvaluationPool(WorkerPool):
    """The pool of this machine: spawned processes; with one worker, this process.

    A single worker is a process all the same where the spec gives a true call more than one thread or a time limit,
    neither of which this process could keep.
    """

    def __init__(self, spec: PhysicsSpec, n_workers: int = 1):
        if n_workers < 1:
            raise UserError(f"{n_workers} workers cannot evaluate anything; use --num-workers 1 or more")
        super().__init__(spec)
        self.n_workers = n_workers
        in_process = n_workers == 1 and spec.threads == 1 and spec.call_limit_s is None
        self._local = Evaluator(spec) if in_process else None
        self._put_off: dict[int, tuple[np.ndarray, bool]] = {}  # questions to this process: rows, whether of forces
        self._loads = CallTimes(first_s=START_S)
        self._calls, self._cpu_s = [0] * n_workers, [0.0] * n_workers
        self._of_earlier = [(0, 0.0)] * n_workers  # true calls and CPU seconds of the workers that each one replaced
        self._waiting: list[deque[Question]] = [deque() for _ in range(n_workers)]  # sent, and not answered yet
        self._workers: list[Worker] = []
        if self._local is None:
            try:
                for _ in range(n_workers):
                    self._workers.append(self._start())
                self._await_ready(range(n_workers))
            except BaseException:  # told to end while they load: nobody else knows of them yet
                self.close(at_once=True)
                raise

    def _start(self) -> Worker:
        return Worker(_serve, (self.spec,), self.spec.threads)

    def _await_ready(self, numbers: Iterable[int]) -> None:
        """Wait until workers have loaded what they need; one that is lost on the way is replaced, twice at most."""
        loading, lost, began = dict.fromkeys(numbers, 0.0), Counter[int](), time.monotonic()
        while loading:
            pipes = {number: self._workers[number].pipe for number in loading}
            before = time.monotonic()
            heard = wait(list(pipes.values()), SLICE_S)
            self.attend()
            passed = min(time.monotonic() - before, 2 * SLICE_S)  # while this process is stopped, none passes
            for number, pipe in pipes.items():
                loading[number] += passed
                if pipe not in heard and loading[number] < self._loads.limit_for():
                    continue
                try:
                    _, kind, *payload = self._workers[number].receive(0.0)
                except WorkerLost as why:
                    lost[number] += 1
                    self._workers[number].kill()
                    if lost[number] == MOST_LOST:
                        self.close(at_once=True)
                        raise PhysicsError(f"a worker of the true physics {why} before it could begin, the third one; "
                                           "see the lines above") from None
                    log.warning("a worker of the true physics %s before it could begin; another one takes its place",
                                why if pipe in heard else f"was silent for {loading[number]:.0f} s")
                    self._workers[number], loading[number] = self._start(), 0.0
                    continue
                if kind == "error":
                    self.close(at_once=True)
                    raise payload[0]
                self._loads.add(time.monotonic() - began)
                del loading[number]

    def _ask(self, worker: int, question: Question) -> None:
        self._waiting[worker].append(question)
        self._send(worker, question)

    def _send(self, worker: int, question: Question) -> None:
        self._workers[worker].send((question.number, question.task, *question.payload))

    def _await(self, number: int) -> None:
        """Until all workers have answered the questions of that number."""
        for worker in range(len(self._workers)):
            while any(question.number == number for question in self._waiting[worker]):
                self._take_next(worker)

    def _take_next(self, worker: int) -> None:
        """The next message of a worker, which may be that it is lost."""
        question = self._waiting[worker][0]
        try:
            number, kind, *payload = self._workers[worker].receive(
                self._times.limit_for(question.n_calls), self.attend)
        except WorkerLost as why:
            self._replace(worker, str(why))
            return
        if kind == "error":
            self.close(at_once=True)
            raise payload[0]
        assert number == question.number
        self._waiting[worker].popleft()
        if kind == "truth":
            answers, calls, cpu_s = payload
            earlier_calls, earlier_cpu_s = self._of_earlier[worker]
            self._calls[worker], self._cpu_s[worker] = earlier_calls + calls, earlier_cpu_s + cpu_s
            self._take(number, question.mine, answers)

    def _replace(self, worker: int, why: str) -> None:
        """A new worker in the place of a lost one, which is asked what the other was, the first question with care."""
        self._workers[worker].kill()
        first, *others = self._waiting[worker]
        again, refusal, words = first.after_loss(why)
        log.warning("a worker of the true physics %s; %s", why, words)
        if refusal is not None:
            self._calls[worker] += 1
            self._take(first.number, first.mine, refusal)
        self._of_earlier[worker] = self._calls[worker], self._cpu_s[worker]
        self._waiting[worker] = deque([*again, *others])
        self._workers[worker] = self._start()
        self._await_ready([worker])
        for question in self._waiting[worker]:
            self._send(worker, question)

    @property
    def true_calls(self) -> int:
        """True calls of all workers that were answered so far, failures included."""
        return self._local.physics.true_calls if self._local is not None else sum(self._calls)

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the workers (0 with one worker: that is this process)."""
        return sum(self._cpu_s)

    def submit(self, positions: np.ndarray, rows: np.ndarray | None = None, want_forces: bool | None = None):
        """Start evaluating positions (r,N,3) of the replicas `rows` (r,); `collect` waits for it."""
        (positions, rows), want_forces = asked_of(positions, rows), self.wants_forces(want_forces)
        number = next(self._numbers)
        if self._local is not None:  # which works when it is waited for
            self._put_off[number] = rows, want_forces
            return positions, number
        for worker in range(self.n_workers):
            mine = np.flatnonzero(rows % self.n_workers == worker)
            if len(mine):
                self._ask(worker, Question(number, "evaluate", (positions[mine], rows[mine], want_forces), mine))
        return positions, number

    def collect(self, ticket) -> Truth:
        """Wait for what `submit` started."""
        positions, number = ticket
        if self._local is not None:
            self.attend()
            rows, want_forces = self._put_off.pop(number)
            self._take(number, np.arange(len(rows)), self._local(positions, rows, want_forces))
        self._await(number)
        return self._truth(number, positions)

    def forget(self) -> None:
        """Drop SCF guesses everywhere."""
        if self._local is not None:
            self._local.forget()
        number = next(self._numbers)
        for worker in range(len(self._workers)):
            self._ask(worker, Question(number, "forget"))
        self._await(number)

    def remember(self, row: int, history: np.ndarray) -> None:
        """Let a row's next SCF begin with what was in `histories`."""
        if self._local is not None:
            self._local.physics.remember(row, history)
        else:
            self._workers[row % self.n_workers].send((0, "remember", row, history))

    def close(self, at_once: bool = False) -> None:
        """Stop the workers; at_once: in the middle of their work."""
        end_all(self._workers, (0, "stop"), patience_s=0.0 if at_once else 2.0)
        self._workers, self._waiting = [], [deque() for _ in range(self.n_workers)]
