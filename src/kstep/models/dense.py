"""Ragged batches as padded grids (P,N) with all pairs of each molecule, (P,N,N): cheapest for small molecules.

All pairs of a small molecule lie within the cutoff, so broadcasting over a grid replaces every
gather and scatter of an edge list; batches of one molecule need no copy at all.  Where most of the
cells hold no pair, radius_graph.py offers the same operations on a list of the pairs there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kstep.models.batch import MoleculeBatch

if TYPE_CHECKING:
    from kstep.models.bond_graph import BondGraph

CELLS_PER_PAIR = 2.5  # of a grid, above which a list of pairs is clearly faster on a CPU (benchmarks/ragged.py)


class Grid:
    """Where each atom of a batch sits in a (P,N) grid, N the size of the largest molecule.

    mask (P,N) bool: True where there is an atom; pair_mask (P,N,N) bool: two different atoms.
    """

    bond_graph: BondGraph  # of a network that reads the bonds

    def __init__(self, batch: MoleculeBatch):
        n_graphs, n_atoms = batch.n_graphs, len(batch.numbers)
        counts = batch.atoms_per_graph
        size = int(counts.max()) if n_graphs else 0
        self.shape = (n_graphs, size)
        if n_graphs * size == n_atoms:
            self.slot = None
            self.mask = counts.new_ones(self.shape, dtype=torch.bool)
        else:
            first = counts.cumsum(0) - counts
            atom = torch.arange(n_atoms, device=counts.device)
            self.slot = batch.graph * size + atom - first[batch.graph]
            self.mask = counts.new_zeros(n_graphs * size, dtype=torch.bool)
            self.mask[self.slot] = True
            self.mask = self.mask.view(self.shape)
        other = ~torch.eye(size, dtype=torch.bool, device=counts.device)
        self.pair_mask = self.mask[:, :, None] & self.mask[:, None, :] & other

    def pad(self, values: torch.Tensor) -> torch.Tensor:
        """(A,...) -> (P,N,...), zeros where there is no atom."""
        if self.slot is None:
            return values.reshape(*self.shape, *values.shape[1:])
        grid = values.new_zeros(self.shape[0] * self.shape[1], *values.shape[1:])
        return grid.index_copy(0, self.slot, values).view(*self.shape, *values.shape[1:])

    def unpad(self, grid: torch.Tensor) -> torch.Tensor:
        """(P,N,...) -> (A,...)."""
        flat = grid.reshape(-1, *grid.shape[2:])
        return flat if self.slot is None else flat[self.slot]

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Values (P,...) of molecules for their atoms, (P,1,...)."""
        return values[:, None]

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """Sums over the atoms of each molecule, (P,N,...) -> (P,...)."""
        return values.sum(1)

    def near(self, positions: torch.Tensor, cutoff: float) -> torch.Tensor:
        """Which cells hold a pair within the cutoff, (P,N,N) bool, at positions (A,3)."""
        x = self.pad(positions.detach())
        return ((x[:, :, None] - x[:, None]).square().sum(-1) < cutoff**2) & self.pair_mask

    def mostly_empty(self, positions: torch.Tensor, cutoff: float) -> bool:
        """Whether a list of the near pairs is worth its gathers and scatters; measured on the CPU alone."""
        near = self.near(positions, cutoff)
        return not near.is_cuda and near.numel() > CELLS_PER_PAIR * int(near.sum())

    def pairs(self, positions: torch.Tensor, cutoff: float) -> AllPairs:
        """The pairs at positions (P,N,3) nm."""
        return AllPairs(positions, self.pair_mask, cutoff)


class AllPairs:
    """Ordered pairs (i,j) on a grid: distance (P,N,N) nm, direction (P,N,N,3) from j to i, weight w (P,N,N).

    weight: the cutoff envelope; kernel (P,N,4,N): rows w_ij and w_ij r_ij/|r_ij|, to sum over j in one product.  Where
    there is no pair, distance is 1 and all else zero.
    """

    def __init__(self, positions: torch.Tensor, pair_mask: torch.Tensor, cutoff: float):
        separation = positions[:, :, None] - positions[:, None]
        # Replaced before the square root, whose derivative is infinite at zero.
        self.distance = separation.square().sum(-1).masked_fill(~pair_mask, 1.0).sqrt()
        self.direction = separation / self.distance[..., None]
        self.weight = envelope(self.distance, cutoff) * pair_mask
        rows = torch.cat([torch.ones_like(self.direction[..., :1]), self.direction], -1) * self.weight[..., None]
        self.kernel = rows.transpose(-1, -2)

    def of_receivers(self, values: torch.Tensor) -> torch.Tensor:
        """What each pair reads of atom i: (P,N,...) -> (P,N,1,...)."""
        return values[:, :, None]

    def of_senders(self, values: torch.Tensor) -> torch.Tensor:
        """What each pair reads of atom j: (P,N,...) -> (P,1,N,...)."""
        return values[:, None]

    def once(self) -> tuple:
        """Pairs i < j of nonzero weight: flat rows i, j (S,) of the atoms, and where such a pair stands."""
        size = self.weight.shape[-1]
        upper = torch.ones(size, size, dtype=torch.bool, device=self.weight.device).triu(1)
        p, i, j = torch.nonzero((self.weight > 0) & upper, as_tuple=True)
        return p * size + i, p * size + j, (p, i, j)

    def sums(self, messages: torch.Tensor) -> torch.Tensor:
        """sum_j w_ij m_ij: (P,N,N,H) -> (P,N,H)."""
        return (messages * self.weight[..., None]).sum(2)

    def moments(self, m, A, B=None, V=None) -> tuple[torch.Tensor, torch.Tensor]:
        """sum_j w_ij m_ij (P,N,H), and sum_j w_ij (r_ij/|r_ij| A m_ij + V_j B m_ij) (P,N,3,C).

        m (P,N,N,H); A, B (C,H); V (P,N,3,C), or None for zeros.  Summed before A, which then acts on N atoms instead
        of N^2 pairs.
        """
        moments = torch.matmul(self.kernel, m)  # (P,N,4,N) (P,N,N,H)
        gathered = torch.matmul(moments[:, :, 1:], A.t())
        if V is not None:
            b = torch.matmul(B, m.flatten(1, 2).transpose(1, 2)).unflatten(2, self.weight.shape[1:])  # (P,C,N,N)
            gathered = gathered + torch.matmul(b * self.weight[:, None], V.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return moments[:, :, 0], gathered


def envelope(distance: torch.Tensor, cutoff: float) -> torch.Tensor:
    """1 at zero, 0 at the cutoff with two vanishing derivatives: 1 - 10 u^3 + 15 u^4 - 6 u^5."""
    u = (distance / cutoff).clamp(max=1.0)
    return 1.0 - u**3 * (10.0 - u * (15.0 - 6.0 * u))


class RadialBasis(torch.nn.Module):
    """Gaussians in exp(-r/0.1 nm), dense where bonds are (Unke and Meuwly, JCTC 2019, eq. 9)."""

    def __init__(self, n_basis: int, cutoff: float):
        super().__init__()
        self.length = 0.1  # nm
        far, near = float(torch.exp(torch.tensor(-cutoff / self.length))), 0.5
        self.register_buffer("centre", torch.linspace(far, near, n_basis))
        self.inverse_width = max(n_basis - 1, 1) / (near - far)

    def forward(self, distance: torch.Tensor) -> torch.Tensor:
        """(...) -> (..., n_basis)."""
        z = torch.exp(-distance[..., None] / self.length) - self.centre
        return torch.exp(-(z * self.inverse_width).square())
