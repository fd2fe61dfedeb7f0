"""Give the first layer of `pair_mlp` better coordinates while it is trained.

The P = N (N - 1) / 2 distances of a molecule move together: a few directions of feature space
carry nearly all the variance, while stiff motions, on which the energy depends most, carry almost
none, and gradient descent sees the first at once and the others hardly ever.  With the covariance
C = Q diag(l) Q^T of the features u, training moves V where the network uses

    W = V T,   T = s Q diag(l)^(-power/2) Q^T,   s such that <|T u|^2> = P

so that power 0 changes nothing and power 1 whitens.  Half way is best: for 1200 labels of aspirin
and 4000 steps it takes a quarter off the energy error, and the network's form stays as it is.

Only the directions of largest variance have an l of their own, and all others that of the last of these.  To stretch
those further costs a product with P x P numbers in every step, and gains nothing: 1800 labels of ibuprofen and 3500
steps leave an energy error of 1.04 +- 0.05 kT without and of 1.19 +- 0.01 kT with it, in a fifth less time; of aspirin,
900 labels and 3000 steps, 0.53 +- 0.02 and 0.51 +- 0.01 kT (five fits each, four).
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import parametrize

FLOOR = 1e-4  # of the largest variance: directions below it are noise
DIRECTIONS = 50  # of largest variance, that are told apart


class Mixing(nn.Module):
    """T = b I + A diag(c) A^T of features (.., P), as torch.nn.utils.parametrize wants it: weight = V T.

    axes A (P,D), orthonormal; along (D,): by how much each is stretched; beyond: everything at right angles to them.
    """

    def __init__(self, axes: torch.Tensor, along: torch.Tensor, beyond: float):
        super().__init__()
        self.register_buffer("axes", axes)
        self.register_buffer("along", along)
        self.beyond = beyond

    def forward(self, moved: torch.Tensor) -> torch.Tensor:
        """V T of V (H,P), `moved`."""
        return self.beyond * moved + (moved @ self.axes * (self.along - self.beyond)) @ self.axes.T

    def inverse(self) -> Mixing:
        """T^-1."""
        return Mixing(self.axes, 1.0 / self.along, 1.0 / self.beyond)


def mixing(features: torch.Tensor, power: float) -> Mixing:
    """T, float32, of features u (S,P)."""
    u = features.double()
    variance, axes = torch.linalg.eigh(u.T @ u / len(u))  # in ascending order
    told_apart = slice(max(0, len(variance) - DIRECTIONS), None)
    floored = variance.clamp(min=max(FLOOR * float(variance.max()), float(variance[told_apart][0])))
    stretch = floored ** (-0.5 * power)
    stretch = stretch / (stretch**2 * floored).mean().sqrt()
    return Mixing(axes[:, told_apart].float(), stretch[told_apart].float(), float(stretch[0]))


@contextmanager
def whitened(layer: nn.Linear, features: torch.Tensor, power: float, *, fresh: bool):
    """Inside, `layer` learns V of W = V T for its inputs u (S,P); after, it holds W again.

    fresh: the layer was just initialised, so its random numbers are taken for V (spread evenly in
    the new coordinates); otherwise W is kept and V follows.
    """
    mix = mixing(features, power)
    if not fresh:
        with torch.no_grad():
            layer.weight.copy_(mix.inverse()(layer.weight))
    parametrize.register_parametrization(layer, "weight", mix, unsafe=True)
    try:
        yield
    finally:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
