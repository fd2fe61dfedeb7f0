"""A truth that takes its time and uses no core: for what a cluster of more workers than cores would do."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from kstep.forces import PhysicsSpec
from kstep.forces.base import Physics


class Sleeping(Physics):
    """U = 0 after call_s seconds."""

    def __init__(self, numbers, masses, call_s: float):
        super().__init__(numbers, masses)
        self._closest_nm[:] = 0.0
        self.call_s = call_s

    def _compute(self, positions, slot):
        time.sleep(self.call_s)
        return 0.0, np.zeros_like(positions)


@dataclass(frozen=True)
class SleepingSpec(PhysicsSpec):
    """The recipe of Sleeping."""

    has_forces = True

    def build(self) -> Sleeping:
        """In whichever process."""
        return Sleeping(self.numbers, self.masses, **self.settings)


def sleeping(call_s: float, scheduler: str, n_atoms: int = 20) -> SleepingSpec:
    """A spec of n_atoms whose calls take call_s seconds, asked of a Dask cluster."""
    return SleepingSpec("sleeping", np.ones(n_atoms, dtype=int), np.full(n_atoms, 12.0), {"call_s": call_s}, "none",
                        scheduler=scheduler)
