"""A backend at work in a Dask worker, and what it says; `dask_pool` asks it.

A question carries the seat's token: where Dask has built a seat anew, at another worker or in the process that took the
place (and the port) of a dead one, the SCF guesses of its rows are gone, and whoever asks is told so.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import platform
import time
import uuid
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np

import kstep
from kstep.errors import UserError
from kstep.forces import PhysicsSpec, find_backend
from kstep.forces.evaluator import Answers, Evaluator, to_report
from kstep.processes import THREAD_VARIABLES, one_thread


class Seat:
    """A backend, built once; where Dask moves it, it is built anew, and is another seat, without SCF guesses."""

    def __init__(self, spec: PhysicsSpec, cpu_s: float = 0.0):
        self.spec, self.cpu_s, self.token = spec, cpu_s, uuid.uuid4().hex  # cpu_s: that nobody was told of yet
        self.evaluator = Evaluator(spec)
        self.began: float | None = None

    def __reduce__(self):
        return Seat, (self.spec,)


@dataclass
class Reply:
    """Of question number `sent` of a pool: true calls and CPU seconds that it took; error: `to_report`.

    is_other: the seat is not the one that was meant, and was not asked.
    """

    sent: int
    answers: Answers | None
    calls: int
    cpu_s: float
    error: Exception | None = None
    is_other: bool = False


def versions_of(backend: str) -> dict[str, str]:
    """What a client and its workers must have in common, as far as it is installed."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2]), "kstep": kstep.__version__}
    for name in find_backend(backend).packages if backend else ():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def take_seat(backend: str, wanted: dict[str, str], recipe: bytes) -> Seat:
    """A seat in this worker; UserError where it could not say what the client would."""
    began = time.process_time()
    here = versions_of(backend)
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


def token_of(seat: Seat) -> str:
    """What a question to this seat carries."""
    return seat.token


def answer(seat: Seat, token: str, sent: int, task: str, guesses: dict[int, np.ndarray], payload: tuple,
           before: Reply | None) -> Reply:
    """Of a question; guesses {row: history} are what the next SCF of a row begins with.

    before: the answer to the one before it, where Dask is to know that one before this begins.
    """
    if seat.token != token:
        return Reply(sent, None, 0, 0.0, is_other=True)
    physics, cpu, answers, error = seat.evaluator.physics, time.process_time(), None, None
    calls, seat.began = physics.true_calls, time.monotonic()
    try:
        for row, history in guesses.items():
            physics.remember(row, history)
        if task == "evaluate":
            answers = seat.evaluator(*payload)
        else:
            seat.evaluator.forget()
    except Exception as failure:  # told to the client, which raises it; what Dask itself reports is about Dask
        error = to_report(failure)
    finally:
        seat.began = None
    cpu_s, seat.cpu_s = seat.cpu_s + time.process_time() - cpu, 0.0
    return Reply(sent, answers, physics.true_calls - calls, cpu_s, error)


def at_it_s(key: str, dask_worker) -> float | None:
    """Seconds that a seat has been at its question; None: at none, as others have work there too."""
    seat = dask_worker.data.get(key)
    return time.monotonic() - seat.began if seat is not None and seat.began is not None else None
