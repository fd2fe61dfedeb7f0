"""`pair_mlp` as dynamics calls it: the formulas of pair_mlp.py in numpy, without allocations."""

from __future__ import annotations

import numpy as np
from torch.nn import functional

from kstep.errors import UserError
from kstep.models.pair_mlp import PairMLP


class FastPairMLP:
    """The hot path: energy and forces of R replicas in numpy, float32 inside, float64 outside.

    Arrays lie with the replica as last axis, (3, P, R) and (H, R): every elementwise step then
    runs over contiguous memory, and the differences of all pairs and the sum of pair forces
    over atoms are matrix products with the incidence matrix B (P,N), B[p,i] = 1, B[p,j] = -1.
    Buffers are kept between calls, so a call allocates nothing but its result.
    """

    def __init__(self, model: PairMLP):
        def single(tensor):
            return np.ascontiguousarray(tensor.detach().cpu().numpy(), dtype=np.float32)

        self.n_atoms = model.n_atoms
        self._incidence, self._gather = single(model.incidence), single(model.incidence.T)
        self._mean = single(model.feature_mean)[:, None]
        self._inverse_std = 1.0 / single(model.feature_std)[:, None]
        self._weights = [single(layer.weight) for layer in model.layers]
        self._transposed = [np.ascontiguousarray(w.T) for w in self._weights]
        self._biases = [single(layer.bias)[:, None] for layer in model.layers]
        self._readout = single(model.readout)[:, None]
        self._slope = single(model.slope)[:, None]
        self._stiffness = single(functional.softplus(model.stiffness))[:, None]
        self._energy_mean = float(model.energy_mean)
        self._energy_scale = float(model.energy_scale)
        self._force_scale = self._inverse_std * np.float32(self._energy_scale)
        self._n_replicas = 0

    def _allocate(self, n_replicas: int) -> None:
        pairs, widths = len(self._mean), [len(w) for w in self._weights]

        def empty(*shape):
            return np.empty((*shape, n_replicas), dtype=np.float32)

        self._x = empty(3, self.n_atoms)
        self._d, self._square = empty(3, pairs), empty(3, pairs)
        self._inverse, self._u, self._pull, self._g_pairs = (empty(pairs) for _ in range(4))
        self._h, self._slopes, self._work, self._g = ([empty(w) for w in widths] for _ in range(4))
        self._forces = empty(3, self.n_atoms)
        self._n_replicas = n_replicas

    def energy_and_forces(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energy (R,) kJ/mol and forces (R,N,3) kJ/mol/nm at positions x (R,N,3) nm, all float64."""
        if x.ndim != 3 or x.shape[1:] != (self.n_atoms, 3):
            raise UserError(f"this pair_mlp knows a molecule of {self.n_atoms} atoms, got positions {x.shape}")
        if len(x) != self._n_replicas:
            self._allocate(len(x))
        with np.errstate(all="ignore"):  # a proposal that blew up is NaN, and is rejected as such
            return self._evaluate(x)

    def _evaluate(self, x):
        # Centred in float64 before rounding: the error of a bond length is then 1e-8 nm anywhere.
        rows = x.transpose(2, 1, 0)
        np.subtract(rows, rows.mean(1, keepdims=True), out=self._x, casting="same_kind")
        d, square, inverse, u = self._d, self._square, self._inverse, self._u
        np.matmul(self._incidence, self._x, out=d)
        np.multiply(d, d, out=square)
        np.add(square[0], square[1], out=inverse)
        inverse += square[2]
        np.sqrt(inverse, out=inverse)
        np.reciprocal(inverse, out=inverse)
        np.subtract(inverse, self._mean, out=u)
        u *= self._inverse_std

        below = u
        for weight, bias, h, slope, s in zip(self._weights, self._biases, self._h, self._slopes, self._work):
            np.matmul(weight, below, out=h)
            h += bias
            np.negative(h, out=s)
            np.exp(s, out=s)
            s += 1
            np.reciprocal(s, out=s)
            h *= s
            np.subtract(1, s, out=slope)  # silu' = s + h (1 - s)
            slope *= h
            slope += s
            below = h
        np.multiply(self._stiffness, u, out=self._pull)
        self._pull += self._slope  # dE/du of the linear and quadratic terms
        energy = self._readout[:, 0] @ below
        energy += self._half_product(self._pull, u)

        g = np.multiply(self._readout, self._slopes[-1], out=self._slopes[-1])
        for weight, slope, out in zip(self._transposed[:0:-1], self._slopes[-2::-1], self._g[-2::-1]):
            g = np.matmul(weight, g, out=out)
            g *= slope
        np.matmul(self._transposed[0], g, out=self._g_pairs)
        pair = self._g_pairs
        pair += self._pull
        pair *= self._force_scale
        for _ in range(3):
            pair *= inverse
        np.multiply(d, pair, out=square)
        np.matmul(self._gather, square, out=self._forces)
        return (self._energy_mean + self._energy_scale * energy.astype(np.float64),
                np.array(self._forces.transpose(2, 1, 0), dtype=np.float64, order="C"))

    def _half_product(self, pull, u):
        """c . u + 1/2 q . u^2 from pull = c + q u, as 1/2 (pull + c) . u."""
        np.add(pull, self._slope, out=self._g_pairs)
        self._g_pairs *= u
        return 0.5 * self._g_pairs.sum(0)
