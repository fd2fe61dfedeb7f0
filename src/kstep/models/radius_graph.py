"""Ragged batches as one row of atoms (1,A) and a list of the pairs within a cutoff (1,E), by PyTorch Geometric.

The operations are those of dense.py, on atoms that stand one after another as if the batch were a single molecule
whose parts never meet.  What lies beyond the cutoff weighs nothing there either, so that both give the same sums,
in another order.  Worth it where most cells of a grid are empty: molecules much larger than the cutoff, and
batches of molecules of different size (benchmarks/ragged.py).
"""

from __future__ import annotations

import torch
from torch_geometric.utils import dense_to_sparse, scatter

from kstep.models.batch import MoleculeBatch
from kstep.models.dense import Grid, envelope


class RadiusGraph:
    """In the place of a `Grid`, whose operations it has on atoms (1,A); grid: where near pairs are looked up."""

    def __init__(self, batch: MoleculeBatch, grid: Grid):
        self.grid, self.graph, self.n_graphs = grid, batch.graph, batch.n_graphs
        self.mask = torch.ones_like(batch.graph, dtype=torch.bool)[None]

    def pad(self, values: torch.Tensor) -> torch.Tensor:
        """(A,...) -> (1,A,...)."""
        return values[None]

    def unpad(self, values: torch.Tensor) -> torch.Tensor:
        """(1,A,...) -> (A,...)."""
        return values[0]

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Values (P,...) of molecules for their atoms, (1,A,...)."""
        return values.index_select(0, self.graph)[None]

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """Sums over the atoms of each molecule, (1,A,...) -> (P,...)."""
        values = values[0].long() if values.dtype == torch.bool else values[0]
        return scatter(values, self.graph, 0, self.n_graphs)

    def pairs(self, positions: torch.Tensor, cutoff: float) -> NearPairs:
        """The pairs within the cutoff at positions (1,A,3) nm."""
        (i, j), _ = dense_to_sparse(self.grid.near(positions[0], cutoff), self.grid.mask)
        return NearPairs(positions[0], i, j, cutoff)


class NearPairs:
    """Ordered pairs (i,j), in the place of `AllPairs`: distance (1,E) nm, direction (1,E,3), weight (1,E)."""

    def __init__(self, positions: torch.Tensor, i: torch.Tensor, j: torch.Tensor, cutoff: float):
        self.i, self.j, self.n_atoms = i, j, len(positions)
        separation = positions.index_select(0, i) - positions.index_select(0, j)
        distance = separation.square().sum(-1).sqrt()
        self.direction, self.distance = (separation / distance[:, None])[None], distance[None]
        self.weight = envelope(self.distance, cutoff)

    def of_receivers(self, values: torch.Tensor) -> torch.Tensor:
        """What each pair reads of atom i: (1,A,...) -> (1,E,...)."""
        return values[0].index_select(0, self.i)[None]

    def of_senders(self, values: torch.Tensor) -> torch.Tensor:
        """What each pair reads of atom j: (1,A,...) -> (1,E,...)."""
        return values[0].index_select(0, self.j)[None]

    def once(self) -> tuple:
        """Pairs i < j of nonzero weight: rows i, j (S,) of the atoms, and where such a pair stands."""
        chosen = torch.nonzero((self.weight[0] > 0) & (self.i < self.j))[:, 0]
        return self.i[chosen], self.j[chosen], (0, chosen)

    def sums(self, messages: torch.Tensor) -> torch.Tensor:
        """sum_j w_ij m_ij: (1,E,H) -> (1,A,H)."""
        return self._sum((messages * self.weight[..., None])[0])[None]

    def moments(self, m, A, B=None, V=None) -> tuple[torch.Tensor, torch.Tensor]:
        """sum_j w_ij m_ij (1,A,H), and sum_j w_ij (r_ij/|r_ij| A m_ij + V_j B m_ij) (1,A,3,C) of m (1,E,H)."""
        m = (m * self.weight[..., None])[0]
        terms = self.direction[0, :, :, None] * (m @ A.t())[:, None]
        if V is not None:
            terms = terms + self.of_senders(V)[0] * (m @ B.t())[:, None]
        return self._sum(m)[None], self._sum(terms)[None]

    def _sum(self, messages):
        """Over the pairs of each i, (E,...) -> (A,...)."""
        return scatter(messages.flatten(1), self.i, 0, self.n_atoms).unflatten(1, messages.shape[1:])
