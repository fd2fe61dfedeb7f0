"""Ragged batches as padded grids: molecules of 3-60 atoms are cheapest as (P,N,N) pairs.

All pairs of a small molecule lie within the cutoff, so broadcasting over a grid replaces every
gather and scatter of an edge list; batches of one molecule need no copy at all.
"""

from __future__ import annotations

import torch

from kstep.models.batch import MoleculeBatch


class Grid:
    """Where each atom of a batch sits in a (P,N) grid, N the size of the largest molecule.

    mask (P,N) bool: True where there is an atom; pair_mask (P,N,N) bool: two different atoms.
    """

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


def pair_geometry(positions: torch.Tensor, pair_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors (P,N,N,3) from j to i and distances (P,N,N); masked pairs: zero vector, distance 1.

    The masked distances are replaced before the square root, whose derivative is infinite at zero.
    """
    separation = positions[:, :, None] - positions[:, None]
    square = separation.square().sum(-1).masked_fill(~pair_mask, 1.0)
    distance = square.sqrt()
    return separation / distance[..., None], distance


def envelope(distance: torch.Tensor, cutoff: float) -> torch.Tensor:
    """1 at zero, 0 at the cutoff with two vanishing derivatives: 1 - 10 u^3 + 15 u^4 - 6 u^5."""
    u = (distance / cutoff).clamp(max=1.0)
    return 1.0 - u**3 * (10.0 - u * (15.0 - 6.0 * u))


def pair_kernel(weight: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """(P,N,4,N): rows w_ij and w_ij r_ij/|r_ij|, to sum messages over neighbours j in one product."""
    rows = torch.cat([torch.ones_like(direction[..., :1]), direction], -1) * weight[..., None]
    return rows.transpose(-1, -2)


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
