"""The averaged weights that are validated and stored."""

from __future__ import annotations

from contextlib import contextmanager

import torch


class Average:
    """Exponential moving average of the trainable weights."""

    def __init__(self, weights: list[torch.Tensor], decay: float):
        self.live, self.decay = weights, decay
        self.mean = [w.detach().clone() for w in weights]

    def update(self, step: int) -> None:
        """Take in the live weights after optimiser step `step` (from 0)."""
        # Short memory at first: the average must forget the random start.
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.mean, [w.detach() for w in self.live], 1 - decay)

    @contextmanager
    def applied(self):
        """The model carries the averaged weights inside this block."""
        kept = [w.detach().clone() for w in self.live]
        self._fill(self.mean)
        try:
            yield
        finally:
            self._fill(kept)

    def keep(self) -> None:
        """The model carries the averaged weights from now on."""
        self._fill(self.mean)

    def _fill(self, values) -> None:
        with torch.no_grad():
            for weight, value in zip(self.live, values):
                weight.copy_(value)
