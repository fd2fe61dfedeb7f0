"""The workers of a Dask cluster that have a seat: who there is, who has gone, and who cannot be asked.

A worker that is used gets a seat (`dask_seat`): the backend, built once and kept in that worker's memory for as long as
this client holds it.  Workers come and go; one whose versions or threads are not those of this process is not asked,
and said to be so.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import pickle
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import kstep
from kstep.errors import PhysicsError, UserError
from kstep.forces import BACKENDS, PhysicsSpec, plugged_in
from kstep.forces.dask_seat import at_it_s, take_seat, token_of, versions_of
from kstep.processes import SLICE_S, START_S

CONNECT_S = 30.0  # for the scheduler to answer
LOOKS_APART_S = 2.0  # between two looks at which workers there are
REPLY_S = 10.0  # for what a worker's event loop answers beside its work
SAYS_APART_S = 60.0  # between two lines about waiting for workers
FAREWELL_S = 2.0
MOST_TRIES = 3  # to take a seat at one worker

log = logging.getLogger("kstep")


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


@dataclass(frozen=True)
class Seated:
    """A worker's seat, a Future, and the token that tells it from one that Dask has built in its place."""

    seat: Any
    token: str


@dataclass(frozen=True)
class Gone:
    """A worker that is lost, and in words how; is_its_own_doing: by what it was at, as far as anybody knows."""

    address: str
    why: str
    is_its_own_doing: bool


class Cluster:
    """Seats at the workers of the cluster whose scheduler a spec names; attend() is called while it waits.

    UserError for a scheduler that does not answer and for workers that cannot compute the spec; PhysicsError where the
    scheduler is lost.
    """

    def __init__(self, spec: PhysicsSpec, attend: Callable[[], None]):
        backend = spec.backend if spec.backend in {*BACKENDS, *plugged_in()} else ""
        self.scheduler, self._attend = spec.scheduler, attend
        self._seat_for = backend, versions_of(backend), pickle.dumps(replace(spec, scheduler=None))
        self.seated: dict[str, Seated] = {}
        self._seating: dict[str, tuple[Any, Any]] = {}  # Futures of seats that are being taken, and of their tokens
        self.barred: dict[str, str] = {}  # workers that are not asked, and why
        self._tries: Counter[str] = Counter()  # to take a seat, that failed
        self._looked = self._said = -np.inf
        self.client = connect(spec.scheduler)

    @property
    def is_seating(self) -> bool:
        """Whether a worker is loading what it needs."""
        return bool(self._seating)

    # waiting ---------------------------------------------------------------------------------------

    def until(self, work: Awaitable, limit_s: float = np.inf, watch=lambda: False) -> Any:
        """What `work` returns in the client's event loop; attend() is called meanwhile.

        TimeoutError after limit_s, or as soon as watch() is true: it is asked every half second.
        """
        future = asyncio.run_coroutine_threadsafe(_awaited(work), self.client.loop.asyncio_loop)
        end = time.monotonic() + limit_s
        try:
            while not concurrent.futures.wait([future], timeout=SLICE_S).done:
                self._attend()
                if time.monotonic() > end or watch():
                    raise TimeoutError
            return future.result()
        finally:
            future.cancel()

    def say_waiting(self) -> None:
        """That there is no worker, once a minute."""
        if not self.seated and not self._seating and time.monotonic() - self._said > SAYS_APART_S:
            self._said = time.monotonic()
            log.warning("the scheduler at %s has no worker; waiting for one", self.scheduler)

    def await_workers(self) -> None:
        """Until there are seats, and all workers of now have theirs or have been waited for long enough."""
        began = time.monotonic()
        while not self.seated or (self._seating and time.monotonic() - began < START_S):
            self.look(may_refuse=True)
            if not self.seated or self._seating:
                self.say_waiting()
                time.sleep(0.02)
                self._attend()

    # who there is ----------------------------------------------------------------------------------

    def look(self, *, may_refuse: bool = False, at_once: bool = False) -> list[Gone]:
        """Who has gone since the last look; whoever has come gets a seat.

        may_refuse: a worker that cannot be asked is the user's mistake, not one to be left out.
        at_once: however short the last look is ago.
        """
        gone: list[Gone] = []
        apart_s = 0.2 if self._seating or not self.seated else LOOKS_APART_S
        if at_once or time.monotonic() - self._looked > apart_s:
            gone = self._see_who_is_there()
            self._looked = time.monotonic()
        ready = {}
        for address, (seat, token) in list(self._seating.items()):
            if token.status == "finished":
                ready[address] = token
            elif seat.status not in ("pending", "finished"):
                del self._seating[address]
                self._tries[address] += 1
                if seat.status == "error" and (  # else it is gone again, or Dask failed
                        isinstance(seat.exception(), UserError) or self._tries[address] == MOST_TRIES):
                    self._bar(address, _sentence(seat.exception()), may_refuse and not self.seated)
            elif token.status != "pending":
                del self._seating[address]  # gone between the two, or a copy of it is
        if ready:
            self._seat(ready)
        return gone

    def _seat(self, ready: dict[str, Any]) -> None:
        try:
            tokens = self.until(self.client.gather(list(ready.values()), asynchronous=True), REPLY_S)
        except (OSError, concurrent.futures.CancelledError):  # one is gone again: seen at the next look
            return
        for address, token in zip(ready, tokens):
            self.seated[address] = Seated(self._seating.pop(address)[0], token)

    def _see_who_is_there(self) -> list[Gone]:
        self.check()
        try:
            threads = self.until(self.client.nthreads(asynchronous=True), REPLY_S)
        except OSError:  # TimeoutError is one; the client tries for a while to reach its scheduler again
            return []
        gone = []
        for address, seated in self.seated.items():
            if seated.seat.status == "cancelled":  # the scheduler was out of reach, or began anew
                gone.append(Gone(address, "has lost its backend", False))
            elif address not in threads or seated.seat.status != "finished":
                # a seat goes with its worker, and Dask may say so before it says that the worker is gone
                gone.append(Gone(address, "has left the cluster", True))
        for one in gone:
            del self.seated[one.address]
        for address in self._seating.keys() - threads.keys():
            del self._seating[address]
        for address in sorted(threads.keys() - self.seated.keys() - self._seating.keys() - self.barred.keys()):
            if threads[address] != 1:
                self._bar(address, f"it has {threads[address]} threads; start workers with --nthreads 1",
                          not self.seated)
            else:
                seat = self.submit(address, take_seat, *self._seat_for)
                self._seating[address] = seat, self.submit(address, token_of, seat)
        return gone

    def check(self) -> None:
        """PhysicsError where the scheduler is gone for good."""
        if self.client.status in ("closed", "closing"):
            raise PhysicsError(f"the Dask scheduler at {self.scheduler} is gone; --resume goes on with the run "
                               "once another is there")

    def _bar(self, address: str, why: str, refuse: bool) -> None:
        sentence = f"the Dask worker {address} cannot be asked: {why}"
        self.barred[address] = why
        if refuse:
            raise UserError(sentence)
        log.warning("%s", sentence)

    # what is done with them ------------------------------------------------------------------------

    def submit(self, address: str, function, *arguments):
        """A Future of function(*arguments) at that worker and no other."""
        return self.client.submit(function, *arguments, workers=[address], allow_other_workers=False, pure=False,
                                  fifo_timeout=0)

    def seconds_at_it(self, address: str) -> float | None:
        """How long a worker has been at its question; None: at none.  TimeoutError where it does not say."""
        found = self.until(self.client.run(at_it_s, self.seated[address].seat.key, workers=[address],
                                           on_error="return", asynchronous=True), REPLY_S).get(address)
        return found if isinstance(found, float) else None

    def leave(self, address: str, why: str | None = None) -> None:
        """Give a seat back; the worker gets another at the next look, unless there is a reason why not."""
        del self.seated[address]
        if why is not None:
            self.barred[address] = why

    def restart(self, address: str) -> None:
        """Tell the nanny of a worker, where it has one, to start another in its place."""
        try:
            self.until(asyncio.to_thread(self.client.restart_workers, [address], timeout=REPLY_S,
                                         raise_for_error=False), REPLY_S + SLICE_S)
        except (ValueError, OSError) as error:  # without a nanny, or one that is not there either
            log.warning("the Dask worker %s could not be started again (%s)", address, error or "no answer")

    def close(self) -> None:
        """Give the seats back; workers are the cluster's, and end the call that they are in the middle of."""
        self.seated, self._seating = {}, {}
        self.client.close(timeout=FAREWELL_S)


async def _awaited(work: Awaitable) -> Any:
    return await work


def _sentence(error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return (f"it fails to begin ({said}); every worker, and the scheduler, needs kstep {kstep.__version__} and what "
            "the backend needs")
