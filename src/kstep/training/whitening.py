"""Give the first layer of `pair_mlp` better coordinates while it is trained.

The P = N (N - 1) / 2 distances of a molecule move together: a few directions of feature space
carry nearly all the variance, while stiff motions, on which the energy depends most, carry almost
none, and gradient descent sees the first at once and the others hardly ever.  With the covariance
C = Q diag(l) Q^T of the features u, training moves V where the network uses

    W = V T,   T = s Q diag(l)^(-power/2) Q^T,   s such that <|T u|^2> = P

so that power 0 changes nothing and power 1 whitens.  Half way is best: for 1200 labels of aspirin
and 4000 steps it takes a quarter off the energy error, and the network's form stays as it is.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import parametrize

FLOOR = 1e-4  # of the largest variance: directions below it are noise


class _Mixed(nn.Module):
    """weight = V T, as torch.nn.utils.parametrize wants it."""

    def __init__(self, mix: torch.Tensor):
        super().__init__()
        self.register_buffer("mix", mix)

    def forward(self, moved: torch.Tensor) -> torch.Tensor:
        return moved @ self.mix


def mixing(features: torch.Tensor, power: float) -> tuple[torch.Tensor, torch.Tensor]:
    """T and its inverse (P,P), float32, of features u (S,P)."""
    u = features.double()
    variance, axes = torch.linalg.eigh(u.T @ u / len(u))
    floored = variance.clamp(min=FLOOR * float(variance.max()))
    stretch = floored ** (-0.5 * power)
    stretch = stretch / (stretch**2 * floored).mean().sqrt()
    return (axes * stretch @ axes.T).float(), (axes / stretch @ axes.T).float()


@contextmanager
def whitened(layer: nn.Linear, features: torch.Tensor, power: float, *, fresh: bool):
    """Inside, `layer` learns V of W = V T for its inputs u (S,P); after, it holds W again.

    fresh: the layer was just initialised, so its random numbers are taken for V (spread evenly in
    the new coordinates); otherwise W is kept and V follows.
    """
    mix, unmix = mixing(features, power)
    if not fresh:
        with torch.no_grad():
            layer.weight.copy_(layer.weight @ unmix)
    parametrize.register_parametrization(layer, "weight", _Mixed(mix), unsafe=True)
    try:
        yield
    finally:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
