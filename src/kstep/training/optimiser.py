"""AdamW, its learning rate, and the averaged weights that are validated and stored, as every training uses them."""

from __future__ import annotations

import math
from contextlib import contextmanager

import torch

from kstep.errors import UserError


def adamw(weights: list[torch.Tensor], *, lr: float, weight_decay: float, beta2: float) -> torch.optim.AdamW:
    """AdamW whose decay acts on matrices; biases and scales have no reason to be small."""
    groups = [{"params": [w for w in weights if w.ndim > 1], "weight_decay": weight_decay},
              {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=(0.9, beta2), fused=True)


def learning_rate(step: int, total: int, peak: float, warmup_ratio: float) -> float:
    """Linear warm-up over `warmup_ratio` of the steps, then half a cosine down to zero."""
    warm = max(1, round(warmup_ratio * total))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, total - warm))))


class MovingAverage:
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


def descend(optimiser: torch.optim.AdamW, weights: list[torch.Tensor], average: MovingAverage, step: int, rate: float,
            grad_clip: float, *, way_out: str) -> None:
    """Step `step` down the gradients there are, of a norm of at most grad_clip; UserError where they are not finite."""
    if not torch.isfinite(torch.nn.utils.clip_grad_norm_(weights, grad_clip)):
        raise UserError(f"the loss is not finite at step {step}; {way_out}")
    for entry in optimiser.param_groups:
        entry["lr"] = rate
    optimiser.step()
    average.update(step)
