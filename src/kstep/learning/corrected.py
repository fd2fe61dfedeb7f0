"""A cheap potential plus what is known of its difference to a dear one, as a surface that a network can learn.

    U(x) = U_cheap(x) + sum_i D_i(x)                   D_i: training/difference.py, one for each rung of the ladder

It costs a call of the cheap potential alone, has forces, and is learned as any other truth is: with its own search for
holes and as many labels as it takes.  The network that comes out is of the dear method, and as fast as any.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kstep.files import sha256
from kstep.forces.pool import Pool, PoolAround, Truth
from kstep.learning.earlier import Earlier
from kstep.learning.target import Target
from kstep.training.difference import Difference
from kstep.training.labels import Labels


def sum_of(differences: tuple[Difference, ...], positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energy (S,) kJ/mol and forces (S,N,3) kJ/mol/nm of all differences at positions (S,N,3) nm."""
    energy, forces = np.zeros(len(positions)), np.zeros(positions.shape)
    for difference in differences if len(positions) else ():
        own_energy, own_forces = difference.energy_and_forces(positions)
        energy, forces = energy + own_energy, forces + own_forces
    return energy, forces


class CorrectedPool(PoolAround):
    """A pool of the cheap potential whose answers hold the differences; true calls are the cheap potential's."""

    def __init__(self, pool: Pool, differences: tuple[Difference, ...]):
        super().__init__(pool)
        self.differences = differences

    @property
    def attend(self):
        """What the pool calls while it waits."""
        return self.pool.attend

    @attend.setter
    def attend(self, call) -> None:
        """Let the pool call this instead."""
        self.pool.attend = call

    def submit(self, positions: np.ndarray, rows: np.ndarray | None = None, want_forces: bool | None = None):
        """As any pool."""
        positions = np.asarray(positions, dtype=np.float64)
        return positions, self.pool.submit(positions, rows, want_forces)

    def collect(self, ticket) -> Truth:
        """As any pool."""
        positions, inner = ticket
        truth = self.pool.collect(inner)
        self.histories = self.pool.histories
        energy, forces = np.full(len(positions), np.nan), np.full(positions.shape, np.nan)
        energy[~truth.failed], forces[~truth.failed] = sum_of(self.differences, positions[~truth.failed])
        bare = truth.bare[0] + energy, truth.bare[1] + forces
        return replace(truth, energy=truth.energy + energy, forces=truth.forces + forces, bare=bare)


@dataclass(frozen=True, kw_only=True)
class CorrectedTarget(Target):
    """spec: of the cheap potential; differences: what is added to it; method: names the sum, not the dear method."""

    differences: tuple[Difference, ...]

    @property
    def facts(self) -> dict:
        """What a resumed learning must share."""
        return {**super().facts, "differences": digest_of(self.differences)}

    def surface(self, pool: Pool) -> Pool:
        """The sum."""
        return CorrectedPool(pool, self.differences)


@dataclass(frozen=True)
class CorrectedLabels(Earlier):
    """labels: the file of those of the cheap potential, to each of which the differences are added."""

    differences: tuple[Difference, ...] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """What a resumed learning must share."""
        return {"earlier": {"labels": sha256(Path(self.labels or ""))}}

    def labels_of(self, target: Target) -> tuple[Labels, int]:
        """Labels of the sum, and the calls of the cheap potential that they cost."""
        labels, metadata = Labels.load(self.labels or "")
        energy, forces = sum_of(self.differences, labels.positions)
        found = Labels(labels.positions, labels.energies + energy, labels.forces + forces, labels.temperature_K)
        return found, int(metadata["true_calls"])


def digest_of(differences: tuple[Difference, ...]) -> str:
    """What tells the differences from others."""
    digest = hashlib.sha256()
    for difference in differences:
        for array in difference.as_arrays().values():
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
