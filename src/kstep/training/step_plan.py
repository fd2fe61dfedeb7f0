"""Which windows each optimiser step learns from, and how a step is cut into pieces.

A step is `grad_accum` batches of `batch_size` windows, each shared by the processes.  All that is
drawn depends on (seed, epoch) alone, so that a resumed training, or one of several processes,
draws what the others drew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from kstep.training.batches import Windows
from kstep.training.distributed import Group
from kstep.training.rotations import turns_of_epoch


@dataclass
class Piece:
    """Windows (S,) that are evaluated at once.

    at_end: the energy head sees their end frames; labels (S,N): hydrogen labellings or None; turns (S,3,3):
    rotations or None; shares: part of the step's windows, atoms, bonds, angles and torsions that these hold.
    """

    windows: torch.Tensor
    at_end: bool = False
    labels: torch.Tensor | None = None
    turns: torch.Tensor | None = None
    shares: dict[str, float] | None = None  # None: the piece is the whole


@dataclass
class Epoch:
    """One pass over the training windows, as `drawn` has put them in order."""

    data: Windows
    windows: torch.Tensor
    at_end: np.ndarray
    labels: torch.Tensor | None
    turns: torch.Tensor | None
    batch_size: int
    step_size: int
    group: Group

    def __len__(self) -> int:
        return len(self.at_end)

    def size(self, step: int) -> int:
        """Windows of one optimiser step, over all processes."""
        return min((step + 1) * self.step_size, len(self.windows)) - step * self.step_size

    def pieces(self, step: int) -> list[Piece]:
        """What this process evaluates of one optimiser step: its share of each batch."""
        end = min((step + 1) * self.step_size, len(self.windows))
        whole = self.windows[step * self.step_size:end]
        starts = range(step * self.step_size, end, self.batch_size)
        out = []
        for start in starts:
            rows = torch.arange(start, min(start + self.batch_size, end))[self.group.rank::self.group.size]
            shares = None
            if len(starts) * self.group.size > 1:
                shares = shares_of(self.data, self.windows[rows], whole)
            if len(rows) == 0:  # a last batch smaller than the number of processes: go along, without weight
                rows = torch.tensor([start])
            labels, turns = (None if given is None else given[rows] for given in (self.labels, self.turns))
            out.append(Piece(self.windows[rows], bool(self.at_end[step]), labels, turns, shares))
        return out


def shares_of(data: Windows, part: torch.Tensor, whole: torch.Tensor) -> dict[str, float]:
    """What part of each kind of thing that losses average over lies in `part` of the windows.

    Means over the parts, weighed so, add up to the mean over the whole, however ragged the molecules.
    """
    own, all_of = data.counts(part), data.counts(whole)
    return {kind: own[kind] / max(1, all_of[kind]) for kind in own}


def steps_per_epoch(n_windows: int, config) -> int:
    """Optimiser steps over n windows; the last may see fewer than batch_size x grad_accum."""
    return -(-n_windows // (config.batch_size * config.grad_accum))


def drawn(data: Windows, windows: torch.Tensor, seed: int, epoch: int, config, exchange: bool,
          group: Group) -> Epoch:
    """The order of an epoch; exchange: also a hydrogen labelling for every window."""
    rng = np.random.default_rng([seed, epoch])
    order = torch.as_tensor(rng.permutation(len(windows)), device=windows.device)
    labels = None
    if exchange:
        labels = torch.as_tensor(data.exchange_equivalent(int(data.molecule[windows[0]]), rng, len(windows)),
                                 device=windows.device)
    at_end = rng.random(steps_per_epoch(len(windows), config)) < 0.5
    step_size = config.batch_size * config.grad_accum
    turns = turns_of_epoch(config.random_rotate_mode, len(windows), step_size, seed, epoch)
    if turns is not None:
        turns = torch.as_tensor(turns, device=windows.device)
    return Epoch(data, windows[order], at_end, labels, turns, config.batch_size, step_size, group)
