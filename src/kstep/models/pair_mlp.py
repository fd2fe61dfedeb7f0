"""`pair_mlp`: the potential energy of one molecule from its inverse distances; the fast network.

    u_p = (1/r_p - mean_p) / std_p                      one feature per pair of atoms
    E   = E_mean + E_scale (w . h_L + c . u + 1/2 sum_p q_p u_p^2),   h_l = silu(W_l h_{l-1} + b_l)

Inverse distances make E invariant under E(3) and the forces -dE/dx exactly conservative, with
neither net force nor net torque.  Every coefficient q_p is positive, while the network itself
grows at most linearly in u, so E goes up without bound when two atoms fuse: extrapolation can
raise a false wall but dig no bottomless hole.  The price is that one network knows one molecule, in
one order of its atoms; `checkpoint.check_fits` refuses any other.

The gradient is written out by hand.  Training differentiates it once more by autograd;
`FastPairMLP` runs the same formulas in numpy, in float32 and without allocations, and is what
dynamics calls.

Source: inverse-distance descriptors as in Chmiela et al., Sci. Adv. 3, e1603015 (2017).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from kstep.errors import UserError
from kstep.models.batch import MoleculeBatch
from kstep.models.config import ModelConfig


class PairMLP(nn.Module):
    """Energy network of one molecule of N atoms (P = N (N - 1) / 2 pairs).

    config: ModelConfig, of which `pair_hidden` gives the widths of the hidden layers;
    molecule: {"numbers" (N,) atomic numbers, "bonds" (B,2)}.
    """

    def __init__(self, config: ModelConfig, molecule: dict):
        super().__init__()
        if config.heads.jump or config.use_force_head or not config.heads.energy:
            raise UserError("pair_mlp has an energy head and no other; use arch egnn for the jump or force head")
        self.config = config
        numbers = np.asarray(molecule["numbers"], dtype=np.int64)
        if len(numbers) < 2:
            raise UserError("pair_mlp needs a molecule of at least two atoms")
        first, second = np.triu_indices(len(numbers), k=1)
        n_pairs = len(first)
        self.n_atoms = len(numbers)
        self.register_buffer("numbers", torch.as_tensor(numbers))
        self.register_buffer("elements", torch.as_tensor(np.unique(numbers)))
        bonds = np.array(molecule["bonds"], dtype=np.int64).reshape(-1, 2)
        self.register_buffer("bonds", torch.as_tensor(bonds))
        self.register_buffer("first", torch.as_tensor(first))
        self.register_buffer("second", torch.as_tensor(second))
        self.register_buffer("feature_mean", torch.zeros(n_pairs))
        self.register_buffer("feature_std", torch.ones(n_pairs))
        # In float64: total energies are 1e4 times larger than the differences that matter.
        self.register_buffer("energy_mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("energy_scale", torch.ones((), dtype=torch.float64))
        self.register_buffer("dt_ps", torch.zeros((), dtype=torch.float64))
        sizes = [n_pairs, *config.pair_hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))
        self.readout = nn.Parameter(torch.randn(sizes[-1]) / sizes[-1])
        self.slope = nn.Parameter(torch.zeros(n_pairs))
        # q = softplus(stiffness); sum_p q_p u_p^2 / 2 starts at about 2 spreads of the energy.
        # (A start of 0.13 for aspirin's 210 pairs cost twice the error of 0.02.)
        self.stiffness = nn.Parameter(torch.full((n_pairs,), math.log(math.expm1(4.0 / n_pairs))))

    def fit_normalisation(self, statistics: dict) -> None:
        """Fit the scales to the training split: {"positions" (S,N,3) nm, "energies" (S,) kJ/mol}."""
        if "dt_ps" in statistics:
            self.dt_ps.fill_(float(statistics["dt_ps"]))
        if "positions" not in statistics:
            return
        positions, energies = np.asarray(statistics["positions"]), np.asarray(statistics["energies"])
        d = positions[:, self.first.cpu().numpy()] - positions[:, self.second.cpu().numpy()]
        inverse = 1.0 / np.sqrt((d * d).sum(-1))
        # A floor of 0.1 % keeps a pair that hardly moves (a linear chain) from dividing by zero.
        spread = np.maximum(inverse.std(0), 1e-3 * inverse.mean(0))
        self.feature_mean.copy_(torch.as_tensor(inverse.mean(0)))
        self.feature_std.copy_(torch.as_tensor(spread))
        self.energy_mean.fill_(float(energies.mean()))
        self.energy_scale.fill_(max(float(energies.std()), 1e-3))

    def energy_and_gradient(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Energy (S,) float64 and forces (S,N,3) of positions (S,N,3), differentiable once more."""
        d = positions[:, self.first] - positions[:, self.second]
        inverse = (d * d).sum(-1).rsqrt()
        u = (inverse - self.feature_mean) / self.feature_std
        stiffness = functional.softplus(self.stiffness)
        h, slopes = u, []
        for layer in self.layers:
            z = layer(h)
            s = torch.sigmoid(z)
            h = z * s
            slopes.append(s + h * (1 - s))  # silu'(z)
        energy = h @ self.readout + u @ self.slope + 0.5 * (u * u) @ stiffness
        g = self.readout * slopes[-1]
        for layer, slope in zip(self.layers[:0:-1], slopes[-2::-1]):
            g = (g @ layer.weight) * slope
        g = g @ self.layers[0].weight + self.slope + stiffness * u
        scale = self.energy_scale.to(g.dtype)
        pair_force = ((g * scale / self.feature_std) * inverse**3)[..., None] * d
        forces = torch.zeros_like(positions)
        forces = forces.index_add(1, self.first, pair_force).index_add(1, self.second, -pair_force)
        return self.energy_mean + self.energy_scale * energy.double(), forces

    def energy_and_forces(self, batch: MoleculeBatch, create_graph: bool = False):
        """Energy (P,) kJ/mol and forces (A,3) kJ/mol/nm of a batch of this molecule."""
        positions = batch.positions.reshape(batch.n_graphs, -1, 3)
        if positions.shape[1] != self.n_atoms or len(batch.numbers) != batch.n_graphs * self.n_atoms:
            raise UserError(f"this pair_mlp knows one molecule of {self.n_atoms} atoms, "
                            f"the batch holds {len(batch.numbers)} atoms in {batch.n_graphs} molecules")
        # Centred first: single precision then resolves bonds, not distances from the origin.
        positions = (positions - positions.mean(1, keepdim=True)).to(self.feature_mean.dtype)
        with torch.set_grad_enabled(create_graph and torch.is_grad_enabled()):
            energy, forces = self.energy_and_gradient(positions)
        return energy, forces.reshape(-1, 3).to(batch.positions.dtype)

    def energy(self, batch: MoleculeBatch) -> torch.Tensor:
        """Energy (P,) kJ/mol, absolute, differentiable in positions and parameters."""
        positions = batch.positions.reshape(batch.n_graphs, self.n_atoms, 3)
        positions = (positions - positions.mean(1, keepdim=True)).to(self.feature_mean.dtype)
        return self.energy_and_gradient(positions)[0]


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
        n_pairs = len(model.first)
        incidence = np.zeros((n_pairs, model.n_atoms), dtype=np.float32)
        incidence[np.arange(n_pairs), model.first.cpu().numpy()] = 1.0
        incidence[np.arange(n_pairs), model.second.cpu().numpy()] = -1.0
        self._incidence, self._gather = incidence, np.ascontiguousarray(incidence.T)
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
        self._n_replicas = None

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
