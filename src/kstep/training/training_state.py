"""What last.pt holds beside a network, so that a training goes on as if it had never stopped."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, fields

import torch

from kstep.errors import UserError


@dataclass
class Progress:
    """How far a training has come.

    epoch; taken: optimiser steps of this epoch; step: of all; best: metrics of best.pt; waited: epochs since then;
    elapsed_s: wall time of the sessions so far; sums, summed: of the loss terms since the
    last row of the log, and how many steps they hold.
    """

    epoch: int = 0
    taken: int = 0
    step: int = 0
    best: dict | None = None
    waited: int = 0
    elapsed_s: float = 0.0
    sums: dict = field(default_factory=lambda: defaultdict(float))
    summed: int = 0

    def packed(self) -> dict:
        """As plain numbers."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {**values, "sums": {name: float(value) for name, value in self.sums.items()}}


def training_state(progress: Progress, optimiser, weights: list[torch.Tensor], average) -> dict:
    """The entry `training` of last.pt."""
    return {**progress.packed(), "optimiser": optimiser.state_dict(),
            "weights": [w.detach().clone() for w in weights], "average": average.mean}


def restore(checkpoint: dict, model, optimiser, weights: list[torch.Tensor], average) -> Progress:
    """Put model, optimiser and average where last.pt left them; UserError where it does not fit.

    weights: all that is optimised, the log variances of `uncertainty_weighting` too.
    """
    training = checkpoint.get("training")
    if not training:
        raise UserError("this checkpoint cannot be resumed: only last.pt holds the state of training")
    missing = [entry.name for entry in fields(Progress) if entry.name not in training]
    if missing:
        raise UserError("last.pt was written by an earlier version of 04_train.py; train without --resume, or start "
                        "from it with --pretrained")
    try:
        model.load_state_dict(checkpoint["state_dict"])
        optimiser.load_state_dict(training["optimiser"])
        with torch.no_grad():
            for weight, kept in zip(weights, training["weights"], strict=True):
                weight.copy_(kept)
    except (RuntimeError, ValueError):
        raise UserError("last.pt belongs to another model, other frozen layers or another uncertainty_weighting; "
                        "train without --resume") from None
    average.mean = [m.to(w.device).clone() for m, w in zip(training["average"], average.live)]
    values = {entry.name: training[entry.name] for entry in fields(Progress)}
    return Progress(**{**values, "sums": defaultdict(float, values["sums"])})
