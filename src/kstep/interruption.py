"""How a run is asked to end, or to write down where it stands.

    Ctrl-C       ends now; what was answered so far is in the restart files      exit code 130
    SIGTERM      the same: `kill`, a batch system whose time is over             exit code 143
    SIGUSR1      writes the restart files and goes on: a batch system's warning
    a file EXIT  in the folder of the output: ends softly                        exit code 4, as one short of its aim
    its starter  is gone, which said that it holds standard input open           as by SIGTERM

The first two and the last are exceptions in the main thread, so that what holds workers and files lets go of them in
order; SIGUSR1 is a request, which whoever waits for the true physics sees.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

EXIT = "EXIT"
ENDS_WITH_STDIN = "KSTEP_ENDS_WITH_STDIN"  # set by a starter that holds it open as long as it lives
GRACE_S = 60.0  # to end in order, before it ends at once
UNHEARD_S = 5.0  # after SIGTERM, by when whoever still looks for a file EXIT has not heard of it
LOOKS_APART_S = 1.0  # between two looks for the file, which may lie on a slow file system


class Stopped(KeyboardInterrupt):
    """A run was asked to end, and ends as by Ctrl-C; `code` is the exit code, `words` say by what."""

    code = 130
    words = "interrupted"


class Terminated(Stopped):
    """By SIGTERM."""

    code = 143
    words = "ended by SIGTERM"


class EndedSoftly(Stopped):
    """By a file EXIT."""

    code = 4

    def __init__(self, path: Path):
        super().__init__()
        self.words = f"ended by {path}"


P = ParamSpec("P")
R = TypeVar("R")

_requests = 0
_unbroken = 0  # calls of the main thread that are not to be broken into
_late: KeyboardInterrupt | None = None  # what came meanwhile
_ended_at: float | None = None  # when SIGTERM came, until that is known to have ended something


def restarts_requested() -> int:
    """How often SIGUSR1 has asked for restart files so far."""
    return _requests


def _end_by(error: KeyboardInterrupt) -> None:
    """Of a signal's handler: raise now, or where what must not be broken into is over."""
    global _late
    if not _unbroken:
        raise error
    _late = error


def unbroken(call: Callable[P, R]) -> Callable[P, R]:
    """`call`, at whose end Ctrl-C and SIGTERM are raised that come while it runs.

    For short calls of a library that clears its objects away in Python: what is raised in there reaches nobody.
    """
    @functools.wraps(call)
    def whole(*args: P.args, **kwargs: P.kwargs) -> R:
        global _unbroken, _late
        if threading.current_thread() is not threading.main_thread():
            return call(*args, **kwargs)
        _unbroken += 1
        try:
            return call(*args, **kwargs)
        finally:
            _unbroken -= 1
            if _late is not None and not _unbroken:
                late, _late = _late, None
                raise late

    return whole


@contextlib.contextmanager
def signals_heeded() -> Iterator[None]:
    """SIGTERM raises Terminated, once, Ctrl-C KeyboardInterrupt, neither in the middle of what is `unbroken`, and
    SIGUSR1 is counted; nothing changes outside the main thread.

    All three signals are let in, also where a starter that keeps them for itself has handed down that they are blocked.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number, frame):
        global _ended_at
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut short what the first one began
        _ended_at = time.monotonic()
        _end_by(Terminated())

    def interrupt(number, frame):
        _end_by(KeyboardInterrupt())

    def count(number, frame):
        global _requests
        _requests += 1

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, end), signal.SIGUSR1: signal.signal(signal.SIGUSR1, count)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else somebody wants it ignored
        before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, *before})
    _end_with_starter()
    try:
        yield
    finally:
        global _ended_at
        _ended_at = None
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with_starter() -> None:
    """End as by SIGTERM when whoever started this program is gone, however it died, where it said so."""
    if os.environ.pop(ENDS_WITH_STDIN, None) is None:
        return

    def watch():
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os._exit(Terminated.code)

    threading.Thread(target=watch, daemon=True).start()


class ExitFile:
    """The file EXIT in any of some folders; one that was there before is of another run, until it is touched again."""

    def __init__(self, folders: Iterable[Path]):
        self._before = {Path(folder) / EXIT: _touched(Path(folder) / EXIT) for folder in folders}
        self._looked = time.monotonic()

    def check(self) -> None:
        """Raise EndedSoftly where it is there; looks once a second.

        And Terminated where SIGTERM came a while ago and this program still goes on: an exception that is raised while
        Python clears an object away reaches nobody.
        """
        global _ended_at
        now = time.monotonic()
        if _ended_at is not None and now - _ended_at > UNHEARD_S:
            _ended_at = None
            raise Terminated
        if now - self._looked < LOOKS_APART_S:
            return
        self._looked = now
        for path, before in self._before.items():
            if _touched(path) not in (None, before):
                raise EndedSoftly(path)


def _touched(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
