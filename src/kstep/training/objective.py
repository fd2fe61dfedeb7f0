"""The loss of a piece of a step, as one module: what is called, differentiated and kept equal in all processes."""

from __future__ import annotations

import torch
from torch import nn

from kstep.training import losses
from kstep.training.batches import Windows
from kstep.training.config import TrainConfig
from kstep.training.losses import Scales
from kstep.training.steps import Piece
from kstep.training.validation import loss_terms


class Objective(nn.Module):
    """Weighted loss of a network on pieces of the training windows."""

    def __init__(self, model: nn.Module, data: Windows, config: TrainConfig, scales: Scales):
        super().__init__()
        self.model, self.data, self.config, self.scales = model, data, config, scales

    def forward(self, piece: Piece) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The piece's part of the step's loss, and of each of its terms (detached)."""
        terms = loss_terms(self.model, self.data, piece, self.config, self.scales, training=True)
        loss = losses.total(terms, self.config)
        return loss, {name: value.detach() for name, value in terms.items()}
