"""`pair_mlp` as dynamics calls it: the formulas of pair_mlp.py, without allocations and with few passes over memory.

Its matrix products take a good half of the time (benchmarks/inner_loop.py has both limits); the rest are passes over
all pairs, so what counts is how few there are and what lies where:

- Arrays over pairs and atoms have the replica last, (P,R) and (3,N,R): a pass runs over contiguous memory.  The hidden
  layers have it first, (R,H), where the matrix product is as fast for 8 replicas as for 100.
- Pairs are ordered by offset: s = 1 ... N/2, and for each the atoms i and i + s (mod N).  The differences of all pairs
  are then one subtraction of an array from itself, shifted, and the forces two sums over s; products with the incidence
  matrix would be 2 P N operations each, for a result that has 2 P terms.
- The scales of features and energy are multiplied into the weights once.
- Replicas are taken in blocks whose arrays a core's caches can hold.
- NumPy and torch work on the same memory, which begins on a cache line: NumPy's calls cost less, torch has faster
  products of thin matrices, silu and its derivative in one pass, and broadcasts a column at full speed.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch.nn import functional

from kstep.errors import UserError
from kstep.models.pair_mlp import CONTACT_KJ, PairMLP

BLOCK_BYTES = 4_000_000  # of one block: least time at 10 to 60 atoms, on a core with 2 MB of second-level cache
CACHE_LINE = 64  # bytes

silu, silu_backward = torch.ops.aten.silu.out, torch.ops.aten.silu_backward.grad_input


def pairs_by_offset(n_atoms: int) -> np.ndarray:
    """Where the pairs (i, i + s mod N), s = 1 ... N/2, stand among those of `triu_indices`: (P,), each once."""
    place = np.zeros((n_atoms, n_atoms), dtype=np.int64)
    first, second = np.triu_indices(n_atoms, k=1)
    place[first, second] = place[second, first] = np.arange(len(first))
    atoms = np.arange(n_atoms)
    by_offset = [place[atoms, (atoms + s) % n_atoms] for s in range(1, n_atoms // 2 + 1)]
    return np.concatenate(by_offset)[:len(first)]  # half way round, an even ring meets each pair twice


class FastPairMLP:
    """The hot path: energy and forces of R replicas, float32 inside, float64 outside."""

    def __init__(self, model: PairMLP):
        def double(tensor):
            return tensor.detach().cpu().double()

        order, scale = pairs_by_offset(model.n_atoms), float(model.energy_scale)
        per_spread = 1.0 / double(model.feature_std)[order]
        weights = [double(layer.weight) for layer in model.layers]  # (H_l, H_{l-1})
        weights[0] = weights[0][:, order] * per_spread
        self.n_atoms = model.n_atoms
        self._widths = [len(weight) for weight in weights]
        self._up = [(double(layer.bias).float(), weight.T.contiguous().float())
                    for layer, weight in zip(model.layers, weights)]
        self._down = [weight.float() for weight in weights]
        self._mean = double(model.feature_mean)[order].float()[:, None]
        self._contact = double(model.contact)[order].float()[:, None]
        self._inverse_contact = 1.0 / self._contact
        self._slope = scale * per_spread * double(model.slope)[order]
        self._single_slope = self._slope.float()
        self._stiffness = (scale * per_spread**2 * functional.softplus(double(model.stiffness))[order]).float()[:, None]
        self._readout = scale * double(model.readout)
        self._energy_mean = float(model.energy_mean)
        self._n_replicas, self._blocks = 0, []

    def energy_and_forces(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energy (R,) kJ/mol and forces (R,N,3) kJ/mol/nm at positions x (R,N,3) nm, all float64."""
        energy, forces = self.replica_last(x.T)
        return energy, np.ascontiguousarray(forces.T)

    def replica_last(self, x: np.ndarray, with_energy: bool = True) -> tuple[np.ndarray | None, np.ndarray]:
        """Energy (R,), or None where it is not wanted, and forces (3,N,R) at positions x (3,N,R)."""
        if x.ndim != 3 or x.shape[:2] != (3, self.n_atoms):
            raise UserError(f"this pair_mlp knows a molecule of {self.n_atoms} atoms, got positions {x.T.shape}")
        n_replicas = x.shape[2]
        if n_replicas != self._n_replicas:
            self._allocate(n_replicas)
        energies, forces = np.empty(n_replicas) if with_energy else None, np.empty(x.shape)
        with np.errstate(all="ignore"):  # a proposal that blew up is NaN, and is rejected as such
            for rows, block in self._blocks:
                self._features(block, x[:, :, rows])
                self._hidden_layers(block)
                if with_energy:
                    energies[rows] = self._energy(block)
                self._pair_forces(block)
                forces[:, :, rows] = block.sum_over_atoms()
        return energies, forces

    def _allocate(self, n_replicas: int) -> None:
        """Blocks of about the same size, of which those of equal size share their arrays."""
        one = _Block(1, self.n_atoms, self._readout, self._widths)
        ends = np.linspace(0, n_replicas, max(1, round(n_replicas * one.n_bytes / BLOCK_BYTES)) + 1).astype(int)
        arrays = {n: _Block(n, self.n_atoms, self._readout, self._widths) for n in set(np.diff(ends).tolist())}
        self._blocks = [(slice(a, b), arrays[b - a]) for a, b in pairwise(ends.tolist())]
        self._n_replicas = n_replicas

    def _features(self, block: _Block, x: np.ndarray) -> None:
        """Inverse distances from their mean, and the pull of the quadratic term."""
        block.set_positions(x)
        torch.sub(block.inverse, self._mean, out=block.features)
        torch.mul(block.features, self._stiffness, out=block.pull)
        block.clashes = bool(torch.gt(block.inverse, self._inverse_contact, out=block.closer).any())

    def _hidden_layers(self, block: _Block) -> None:
        below = block.features_row
        for (bias, weight), h, a in zip(self._up, block.hidden, block.layers):
            torch.addmm(bias, below, weight, out=h)
            below = silu(h, out=a)

    def _energy(self, block: _Block) -> np.ndarray:
        """w . h + c . u + 1/2 q . u^2, summed in float64: it is asked for once in many steps."""
        linear = 0.5 * block.pull.double() + self._slope[:, None]
        energy = block.layers[-1].double() @ self._readout + (linear * block.features).sum(0)
        if block.clashes:
            energy += CONTACT_KJ * self._beyond(block).double().square().sum(0)
        return self._energy_mean + energy.numpy()

    def _beyond(self, block: _Block) -> torch.Tensor:
        """contact / r - 1 (P,R) of the pairs that are closer than their contact, 0 of the others."""
        return (block.inverse * self._contact - 1.0).clamp_min_(0.0)

    def _pair_forces(self, block: _Block) -> None:
        """block.pull becomes the force of each pair over its distance vector: dE/d(1/r) / r^3."""
        hidden, layers = block.hidden, block.layers
        silu_backward(block.readout, hidden[-1], grad_input=layers[-1])
        for i in range(len(layers) - 1, 0, -1):
            torch.mm(layers[i], self._down[i], out=layers[i - 1])
            silu_backward(layers[i - 1], hidden[i - 1], grad_input=layers[i - 1])
        torch.addmm(self._single_slope, layers[0], self._down[0], out=block.slopes)
        pull, inverse = block.pull_np, block.inverse_np
        pull += block.slopes_np
        if block.clashes:  # seldom: a pass over all pairs is saved
            pull += (self._beyond(block) * (2.0 * CONTACT_KJ * self._contact)).numpy()
        pull *= inverse
        pull *= inverse
        pull *= inverse


class _Block:
    """The arrays of one block of R replicas, and the sums over pairs that need no network.

    The N atoms make a ring, on which S = N/2 offsets have a place for each atom (S N of them): all pairs once, but for
    an even N, where the last offset meets its N/2 pairs twice.  The places left over take no part: their pull is zero.

    inverse, features, pull (P,R): 1/r; 1/r - mean; what becomes the force of a pair over its distance vector; slopes
    (R,P): what the network adds to it; closer (P,R) bool, clashes: pairs within their contact, and whether any is;
    hidden, layers: lists of (R,H), before and after silu.  Views are made once, and so is what ends in _np, the same
    memory as NumPy sees it: to make one costs as much as a small pass.
    """

    def __init__(self, n_rows: int, n_atoms: int, readout: torch.Tensor, widths: list[int]):
        n_offsets, n_pairs = n_atoms // 2, n_atoms * (n_atoms - 1) // 2
        n_ring = n_atoms + n_offsets  # the first S atoms follow upon the last once more: i + s never has to turn round
        atoms, ring = n_atoms * n_rows, n_ring * n_rows  # floats of one component
        self._arrays: list[torch.Tensor] = []

        def zeros(*shape):
            self._arrays.append(aligned_zeros(*shape))
            return self._arrays[-1]

        def offsets(array, length, step, start):
            """(3,S,length) of an array (3,...): what belongs to offset s begins step further on than that of s - 1."""
            return array.as_strided((3, n_offsets, length), (array.stride(0), step, 1), start)

        positions = zeros(3, n_ring, n_rows)
        self._here, self._there = offsets(positions, atoms, 0, 0), offsets(positions, atoms, n_rows, n_rows)
        self._atoms, self._again = positions[:, :n_atoms].numpy(), positions[:, n_atoms:].numpy()
        self._begin = self._atoms[:, :n_offsets]

        # Zeros follow the vectors of each offset: read at a pace one atom shorter, those of s are shifted by s atoms.
        vectors = zeros(3, (n_offsets + 1) * ring)
        self._vectors = offsets(vectors, atoms, ring, ring)
        self._components = list(self._vectors)
        self._shifted = offsets(vectors, ring, ring - n_rows, ring - n_rows)
        self._first, self._second = zeros(3, atoms), zeros(3, ring)
        self._forces, second = (a.view(3, -1, n_rows).numpy() for a in (self._first, self._second))
        self._forces_on_begin = self._forces[:, :n_offsets]
        self._on_second, self._on_again = second[:, :n_atoms], second[:, n_atoms:]

        self._inverses, self._pulls = zeros(n_offsets, atoms), zeros(n_offsets, atoms)  # of all places
        self.inverse, self.pull = (a.view(-1, n_rows)[:n_pairs] for a in (self._inverses, self._pulls))
        self.features, self.slopes = zeros(n_pairs, n_rows), zeros(n_rows, n_pairs)
        self.closer, self.clashes = torch.zeros(n_pairs, n_rows, dtype=torch.bool), False
        self.features_row = self.features.T
        self.inverse_np, self.pull_np, self.slopes_np = self.inverse.numpy(), self.pull.numpy(), self.slopes.T.numpy()
        self.hidden, self.layers = ([zeros(n_rows, width) for width in widths] for _ in range(2))
        self.readout = readout.float().expand(n_rows, -1).contiguous()

    @property
    def n_bytes(self) -> int:
        """Memory of all arrays."""
        return sum(4 * array.numel() for array in self._arrays)

    def set_positions(self, x: np.ndarray) -> None:
        """Distance vectors and inverse distances of all pairs at positions x (3,N,R)."""
        # Centred in float64 before rounding: the error of a bond length is then 1e-8 nm anywhere.
        centre = np.add.reduce(x, 1, keepdims=True)
        centre /= x.shape[1]
        np.subtract(x, centre, out=self._atoms, casting="same_kind")
        self._again[:] = self._begin
        torch.sub(self._here, self._there, out=self._vectors)
        dx, dy, dz = self._components
        torch.mul(dx, dx, out=self._inverses)
        self._inverses.addcmul_(dy, dy).addcmul_(dz, dz).rsqrt_()

    def sum_over_atoms(self) -> np.ndarray:
        """Forces (3,N,R) from those of the pairs: on the first atom of each, and back on the second."""
        self._vectors.mul_(self._pulls)
        torch.sum(self._vectors, 1, out=self._first)
        torch.sum(self._shifted, 1, out=self._second)
        self._forces -= self._on_second
        self._forces_on_begin -= self._on_again
        return self._forces


def aligned_zeros(*shape: int) -> torch.Tensor:
    """float32 that begins on a cache line, without which every pass takes up to twice as long."""
    n_floats, line = int(np.prod(shape)), CACHE_LINE // 4
    memory = np.zeros(n_floats + line, dtype=np.float32)
    start = -memory.ctypes.data // 4 % line
    return torch.from_numpy(memory[start:start + n_floats]).view(shape)
