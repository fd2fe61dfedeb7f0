"""`pair_mlp` as dynamics calls it: the formulas of pair_mlp.py, without allocations and with few passes over memory.

Its matrix products take a good half of the time (benchmarks/inner_loop.py has both limits); the rest are passes over
all pairs, so what counts is how few there are and what lies where:

- Arrays over pairs and atoms have the replica last, (P,R) and (3,N,R): a pass runs over contiguous memory.  The hidden
  layers have it first, (R,H), where the matrix product is as fast for 8 replicas as for 100.
- Pairs are ordered by offset: s = 1 ... N/2, and for each the atoms i and i + s (mod N).  The differences of all pairs
  are then one subtraction of an array from itself, shifted, and the forces two sums over s; products with the incidence
  matrix would be 2 P N operations each, for a result that has 2 P terms.
- The scales of features and energy are multiplied into the weights once.
- Replicas are taken in blocks whose arrays stay in the second-level cache.
- NumPy and torch work on the same memory, which begins on a cache line: NumPy's calls cost less, torch has faster
  products of thin matrices, silu and its derivative in one pass, and broadcasts a column at full speed.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from kstep.errors import UserError
from kstep.models.pair_mlp import PairMLP

BLOCK_BYTES = 2_000_000  # arrays of one block of replicas: the second-level cache of a server's core
CACHE_LINE = 64  # bytes
KEPT_BLOCKS = 4  # sizes whose arrays are kept; a run has two or three

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
        self._slope = scale * per_spread * double(model.slope)[order]
        self._single_slope = self._slope.float()
        self._stiffness = (scale * per_spread**2 * functional.softplus(double(model.stiffness))[order]).float()[:, None]
        self._readout = scale * double(model.readout)
        self._energy_mean = float(model.energy_mean)
        self._blocks: dict[int, _Block] = {}

    def energy_and_forces(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energy (R,) kJ/mol and forces (R,N,3) kJ/mol/nm at positions x (R,N,3) nm, all float64."""
        if x.ndim != 3 or x.shape[1:] != (self.n_atoms, 3):
            raise UserError(f"this pair_mlp knows a molecule of {self.n_atoms} atoms, got positions {x.shape}")
        energy, forces = self.replica_last(x.T)
        return energy, np.ascontiguousarray(forces.T)

    def replica_last(self, x: np.ndarray, energy: bool = True) -> tuple[np.ndarray | None, np.ndarray]:
        """Energy (R,), or None where it is not wanted, and forces (3,N,R) at positions x (3,N,R)."""
        energies, forces = np.empty(x.shape[2]), np.empty(x.shape)
        with np.errstate(all="ignore"):  # a proposal that blew up is NaN, and is rejected as such
            for rows in self._split(x.shape[2]):
                block = self._block(rows.stop - rows.start)
                self._features(block, x[:, :, rows])
                self._hidden_layers(block)
                if energy:
                    energies[rows] = self._energy(block)
                self._slopes(block)
                forces[:, :, rows] = block.sum_over_atoms()
        return (energies if energy else None), forces

    def _split(self, n_replicas: int) -> list[slice]:
        """Blocks of about the same size."""
        most = max(1, BLOCK_BYTES // _Block.floats_of(1, self.n_atoms, self._widths) // 4)
        ends = np.linspace(0, n_replicas, -(-n_replicas // most) + 1).astype(int)
        return [slice(a, b) for a, b in zip(ends[:-1], ends[1:])]

    def _block(self, n_rows: int) -> _Block:
        if n_rows not in self._blocks:
            if len(self._blocks) == KEPT_BLOCKS:
                self._blocks.clear()
            self._blocks[n_rows] = _Block(n_rows, self.n_atoms, self._widths, self._readout)
        return self._blocks[n_rows]

    def _features(self, block: _Block, x: np.ndarray) -> None:
        """Inverse distances, and how far they are from their mean."""
        block.set_differences(x)
        d, square, work = block.pair_differences, block.inverse.numpy(), block.work.numpy()
        np.multiply(d[0], d[0], out=square)
        for component in d[1:]:
            np.multiply(component, component, out=work)
            square += work
        torch.rsqrt(block.inverse, out=block.inverse)
        torch.sub(block.inverse, self._mean, out=block.features)
        torch.mul(block.features, self._stiffness, out=block.pull)

    def _hidden_layers(self, block: _Block) -> None:
        below = block.features.T
        for (bias, weight), h, a in zip(self._up, block.hidden, block.layers):
            torch.addmm(bias, below, weight, out=h)
            below = silu(h, out=a)

    def _energy(self, block: _Block) -> np.ndarray:
        """w . h + c . u + 1/2 q . u^2, summed in float64: it is asked for once in many steps."""
        linear = 0.5 * block.pull.double() + self._slope[:, None]
        energy = block.layers[-1].double() @ self._readout + (linear * block.features).sum(0)
        return self._energy_mean + energy.numpy()

    def _slopes(self, block: _Block) -> None:
        """block.pull becomes the force of each pair over its distance vector: dE/d(1/r) / r^3."""
        hidden, layers = block.hidden, block.layers
        silu_backward(block.readout, hidden[-1], grad_input=layers[-1])
        for i in range(len(layers) - 1, 0, -1):
            torch.mm(layers[i], self._down[i], out=layers[i - 1])
            silu_backward(layers[i - 1], hidden[i - 1], grad_input=layers[i - 1])
        torch.addmm(self._single_slope, layers[0], self._down[0], out=block.slopes)
        pull, inverse = block.pull.numpy(), block.inverse.numpy()
        pull += block.slopes.numpy().T
        for _ in range(3):
            pull *= inverse


class _Block:
    """The arrays of one block of R replicas, S = N/2 offsets, and the sums over pairs that need no network.

    inverse, features, pull, work (P,R): 1/r; 1/r - mean; what becomes the pair's force over its vector; anything.
    slopes (R,P): in the memory of work.  hidden, layers: lists of (R,H), before and after silu.
    """

    def __init__(self, n_rows: int, n_atoms: int, widths: list[int], readout: torch.Tensor):
        n_offsets, n_pairs, ring = n_atoms // 2, n_atoms * (n_atoms - 1) // 2, n_atoms + n_atoms // 2
        self.n_atoms, self.n_offsets = n_atoms, n_offsets
        atoms, lap = n_atoms * n_rows, ring * n_rows  # floats of all atoms of one component, and of those beyond too

        def offsets(array, length, step, start):
            """(3,S,length) in an array (3, ...): offset s begins start + s step further on."""
            return array.as_strided((3, n_offsets, length), (array.stride(0), step, 1), start)

        # The first S atoms follow upon the last once more, so that i + s never has to turn round.
        self.ring = zeros(3, ring, n_rows)
        self._here, self._there = offsets(self.ring, atoms, 0, 0), offsets(self.ring, atoms, n_rows, n_rows)
        self._differences = zeros(3, n_offsets, atoms)
        self.pair_differences = self._differences.view(3, -1, n_rows)[:, :n_pairs].numpy()
        self.inverse, self.features, self.work = (zeros(n_pairs, n_rows) for _ in range(3))
        self.slopes = self.work.view(n_rows, n_pairs)
        # For an even N the places of the last offset are twice as many as its pairs: the others stay zero.
        self._pulls = zeros(n_offsets, atoms)
        self.pull = self._pulls.view(-1, n_rows)[:n_pairs]
        # Each offset has zeros after its N pair forces: read with a stride one atom shorter, it is shifted by s.
        forces = zeros(3, (n_offsets + 1) * lap)
        self._pair_forces = offsets(forces, atoms, lap, lap)
        self._shifted = offsets(forces, lap, lap - n_rows, lap - n_rows)
        self._first, self._second = zeros(3, n_atoms, n_rows), zeros(3, ring, n_rows)
        self.hidden, self.layers = ([zeros(n_rows, width) for width in widths] for _ in range(2))
        self.readout = readout.float().expand(n_rows, -1).contiguous()

    @staticmethod
    def floats_of(n_rows: int, n_atoms: int, widths: list[int]) -> int:
        """How many numbers it holds."""
        n_offsets = n_atoms // 2
        ring, places = n_atoms + n_offsets, n_atoms * n_offsets
        return n_rows * (7 * ring + 7 * places + 3 * n_offsets * ring + 3 * n_atoms + 2 * sum(widths) + widths[-1])

    def set_differences(self, x: np.ndarray) -> None:
        """Distance vectors of all pairs at positions x (3,N,R)."""
        # Centred in float64 before rounding: the error of a bond length is then 1e-8 nm anywhere.
        ring = self.ring.numpy()
        centre = np.add.reduce(x, 1, keepdims=True)
        centre *= 1.0 / self.n_atoms
        np.subtract(x, centre, out=ring[:, :self.n_atoms], casting="same_kind")
        ring[:, self.n_atoms:] = ring[:, :self.n_offsets]
        torch.sub(self._here, self._there, out=self._differences)

    def sum_over_atoms(self) -> np.ndarray:
        """Forces (3,N,R) from those of the pairs: on the first atom of each, and back on the second."""
        torch.mul(self._differences, self._pulls, out=self._pair_forces)
        torch.sum(self._pair_forces, 1, out=self._first.view(3, -1))
        torch.sum(self._shifted, 1, out=self._second.view(3, -1))
        forces, second = self._first.numpy(), self._second.numpy()
        forces -= second[:, :self.n_atoms]
        forces[:, :self.n_offsets] -= second[:, self.n_atoms:]
        return forces


def zeros(*shape: int) -> torch.Tensor:
    """float32 that begins on a cache line, without which every pass takes up to twice as long."""
    n_floats, line = int(np.prod(shape)), CACHE_LINE // 4
    memory = np.zeros(n_floats + line, dtype=np.float32)
    start = -memory.ctypes.data // 4 % line
    return torch.from_numpy(memory[start:start + n_floats]).view(shape)
