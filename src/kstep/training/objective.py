"""The loss of a piece of a step, as one module: what is called, differentiated and kept equal in all processes.

    loss = sum_t lambda_t ramp_t L_t,  or with uncertainty_weighting
    loss = sum_t ramp_t (exp(-s_t) lambda_t L_t + s_t)

where s_t = log sigma_t^2 is learned beside the weights: a term that stays large counts less.  At the
optimum s_t = log(lambda_t L_t), so the lambdas then only say where the weighting starts
(Kendall, Gal and Cipolla, CVPR 2018, eq. 7, times two).  ramp_t lets structural terms in slowly.
"""

from __future__ import annotations

import torch
from torch import nn

from kstep.errors import UserError
from kstep.training import losses
from kstep.training.batches import Windows
from kstep.training.losses import Scales
from kstep.training.step_plan import Piece
from kstep.training.train_config import TrainConfig


class Objective(nn.Module):
    """Weighted loss of a network on pieces of the training windows."""

    def __init__(self, model: nn.Module, data: Windows, config: TrainConfig, scales: Scales):
        super().__init__()
        if config.amp and not model.bears_bfloat16:
            raise UserError(f"amp: true rounds to three digits, and {model.config.arch} lives on distances; set amp: "
                            "false")
        self.model, self.data, self.config, self.scales = model, data, config, scales
        self.weights = losses.weights(config)
        self.log_variances = None
        if config.uncertainty_weighting:
            self.uncertain = losses.live(config, model.config)
            self.log_variances = nn.Parameter(torch.zeros(len(self.uncertain), device=data.device))

    def forward(self, piece: Piece, progress: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The piece's part of the step's loss, and of each of its terms (detached).

        progress: share of all steps that is done.
        """
        terms = losses.loss_terms(self.model, self.data, piece, self.config, self.scales, training=True)
        weighed = {name: self.weights[name] * value for name, value in terms.items()}
        if self.log_variances is not None:
            weighed = {name: torch.exp(-s) * weighed[name] + self._part(piece, name) * s
                       for name, s in zip(self.uncertain, self.log_variances) if name in weighed}
        loss = sum(losses.ramp(name, progress, self.config) * value for name, value in weighed.items())
        return loss, {name: value.detach() for name, value in terms.items()}

    @staticmethod
    def _part(piece: Piece, name: str) -> float:
        """Part of the step's s_t that a piece carries, so that its pieces carry it once."""
        return 1.0 if piece.shares is None else piece.shares[losses.AVERAGED_OVER[name]]

    def uncertainties(self) -> dict[str, float]:
        """What the log shows of the weighting: log_variance_<term>, {} without it."""
        if self.log_variances is None:
            return {}
        return {f"log_variance_{name}": s for name, s in zip(self.uncertain, self.log_variances.tolist())}
