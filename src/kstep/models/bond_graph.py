"""Where an atom stands in its molecule: a positional encoding that does not know the atom's number.

Of a pair: the bonds on the shortest path between the atoms, counted up to a cap, and whether the
pair is a bond of a ring.  Of an atom: the size of the smallest ring it belongs to, and what the
periodic table says of its element.  All of it is a function of bonds and elements, so that
relabelling the atoms relabels the encoding, and none of it depends on positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from kstep.models.batch import MoleculeBatch
from kstep.models.dense import Grid

LARGEST_RING = 8  # atoms; a bond of a larger ring differs little from one of a chain
NOBLE_GASES = (0, 2, 10, 18, 36, 54, 86, 118)


@dataclass
class BondGraph:
    """distance (P,N,N) int64: bonds between two atoms, cap + 1 beyond the cap or where no path is;
    ring_bond (P,N,N) bool; ring_size (P,N) int64: of the smallest ring through an atom, 0 for none;
    pairs (P,N,N,cap+2) float32: distance 1 to cap + 1 as one-hot, ring_bond.
    """

    distance: torch.Tensor
    ring_bond: torch.Tensor
    ring_size: torch.Tensor
    pairs: torch.Tensor


def bond_graph(batch: MoleculeBatch, grid: Grid, cap: int) -> BondGraph:
    """Shortest paths of at most `cap` bonds and rings of at most LARGEST_RING atoms, on the padded grid."""
    n_graphs, size = grid.shape
    bonds = batch.bonds if grid.slot is None else grid.slot[batch.bonds]
    i, j = bonds[:, 0] % size, bonds[:, 1] % size
    p = bonds[:, 0] // size
    bonded = torch.zeros(n_graphs, size, size, device=bonds.device)
    bonded[p, i, j] = bonded[p, j, i] = 1.0

    distance = torch.full((n_graphs, size, size), cap + 1, device=bonds.device)
    reached = torch.eye(size, device=bonds.device).expand(n_graphs, -1, -1)
    distance = distance.masked_fill(reached > 0, 0)
    for length in range(1, cap + 1):
        reached = (reached @ bonded > 0).to(bonded.dtype)
        distance = torch.where((reached > 0) & (distance > length), length, distance)

    # The smallest ring through a bond is the bond and the shortest way round it.
    row = torch.arange(len(bonds), device=bonds.device)
    front = functional.one_hot(i, size).to(bonded.dtype)
    ring = torch.zeros_like(i)
    for length in range(1, LARGEST_RING):
        step = (front[:, None] @ bonded[p])[:, 0]
        step[row, j] -= front[row, i]  # not by the bond itself
        front = (step > 0).to(bonded.dtype)
        ring = torch.where((ring == 0) & (front[row, j] > 0), length + 1, ring)
    ring_bond = torch.zeros(n_graphs, size, size, dtype=torch.bool, device=bonds.device)
    ring_bond[p, i, j] = ring_bond[p, j, i] = ring > 0
    none = LARGEST_RING + 1
    smallest = torch.full((n_graphs * size,), none, device=bonds.device)
    smallest = smallest.scatter_reduce(0, bonds.t().reshape(-1), ring.masked_fill(ring == 0, none).repeat(2), "amin")
    ring_size = smallest.masked_fill(smallest == none, 0).view(n_graphs, size)
    paths = distance[..., None] == torch.arange(1, cap + 2, device=bonds.device)
    return BondGraph(distance, ring_bond, ring_size, torch.cat([paths, ring_bond[..., None]], -1).float())


class BondGraphEncoding(nn.Module):
    """Adds rings and elements to the scalars of atoms, and paths to the features of pairs.

    h_i <- h_i + ring embedding(size of i's ring) + M (radius, period, outer electrons)
    e_ij <- (e_ij, one_hot(bonds from i to j), is a ring bond), which the layers map linearly
    """

    def __init__(self, elements: torch.Tensor, radii_nm: torch.Tensor, hidden_dim: int, cap: int):
        """elements (E,) atomic numbers; radii_nm (E,) covalent; cap: bonds that are still counted."""
        super().__init__()
        self.pair_dim = cap + 2
        period = torch.tensor([sum(z > gas for gas in NOBLE_GASES) for z in elements.tolist()])
        core = torch.tensor([max(gas for gas in NOBLE_GASES if gas < z) for z in elements.tolist()])
        table = torch.stack([10.0 * radii_nm, 0.3 * period, 0.1 * (elements - core)], 1).to(radii_nm.dtype)
        self.register_buffer("table", table, persistent=False)
        self.element = nn.Linear(table.shape[1], hidden_dim, bias=False)
        self.ring = nn.Embedding(LARGEST_RING + 1, hidden_dim)

    def forward(self, grid: Grid, species, h, edges):
        """species (P,N) element index, h (P,N,H), edges (P,N,N,K) -> h (P,N,H), edges (P,N,N,K+cap+2)."""
        graph = grid.bond_graph
        h = h + self.ring(graph.ring_size) + self.element(self.table[species])
        return h, torch.cat([edges, graph.pairs.to(edges.dtype)], -1)
