"""True physics that dies, hangs, is slow or says nonsense, on demand: for tests and the soak.

A geometry whose first atom lies beyond x = 5 nm is poisoned; `spec.settings["fault"]` says with what.
"""

import errno
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kstep.forces import PhysicsSpec
from kstep.forces.base import Physics

POISONED_NM = 5.0


class Springs(Physics):
    """U = k/2 sum |x - x0|^2 about a grid of atoms; with warm_start it depends on the slot's last geometry, by 1e-6."""

    def __init__(self, numbers, masses, *, fault="", notes="", slow_s=0.0, warm_start=False, once=""):
        super().__init__(numbers, masses)
        self._closest_nm[:] = 0.0
        self.fault, self.notes, self.slow_s, self.once, self._warm_start = fault, notes, slow_s, once, warm_start
        self.rest = np.arange(len(self.numbers))[:, None] * np.array([0.2, 0.0, 0.0])

    def _compute(self, positions, slot):
        if self.notes:
            with open(self.notes, "a") as handle:
                handle.write(f"{slot} {os.getpid()}\n")
        time.sleep(self.slow_s)
        if positions[0, 0] > POISONED_NM and self._is_due():
            if self.fault == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "hang":
                time.sleep(1000)
            if self.fault == "full disk":
                raise OSError(errno.ENOSPC, "cannot be written (no space)", "/scratch")
            if self.fault == "bug":
                raise KeyError("a bug")
            energy = {"low": -1e6, "nan": np.nan, "inf": np.inf}.get(self.fault, 0.0)
            return energy, np.full_like(positions, np.nan if self.fault == "nan forces" else 0.0)
        apart = positions - self.rest
        self._said = {"dipole": apart.sum(axis=0)}
        past = self._last.get(slot, np.zeros(1))
        if self._warm_start:
            self._last[slot] = 0.5 * past + apart.sum(axis=0)[:1]
        return 500.0 * float((apart**2).sum()) + 1e-6 * float(past[0]), -1000.0 * apart

    def _is_due(self):
        """With `once`, a file: a fault happens until the file is there."""
        return not self.once or _is_first(Path(self.once))


def _is_first(mark):
    """Whether no other process has made this file; two may come here in the same instant.  Always where none can."""
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    except FileNotFoundError:
        pass
    return True


@dataclass(frozen=True)
class FaultySpec(PhysicsSpec):
    """The recipe of Springs."""

    has_forces = True

    def build(self):
        settings = dict(self.settings)
        while_loading, mark = settings.pop("while_loading", None), Path(settings.get("once", ""))
        if while_loading is not None and _is_first(mark):
            os.kill(os.getpid(), while_loading)
        return Springs(self.numbers, self.masses, **settings)


def springs(n_atoms=3, **settings):
    how = {key: settings.pop(key) for key in ("threads", "call_limit_s", "scheduler") if key in settings}
    return FaultySpec("springs", np.ones(n_atoms, dtype=int), np.full(n_atoms, 12.0), settings, "springs", **how)
