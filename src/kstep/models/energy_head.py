"""The energy head of the transferable networks: rounds of messages, then a sum of atomic energies."""

from __future__ import annotations

from torch import nn

from kstep.models.dense import Grid, RadialBasis
from kstep.models.layers import ACTIVATIONS
from kstep.models.model_config import ModelConfig


class EnergyHead(nn.Module):
    """Sum of atomic energies from scalar channels; vector channels carry angles between layers."""

    def __init__(self, n_elements: int, config: ModelConfig, make_layer, encoding: nn.Module | None = None):
        """make_layer(edge_dim): one round of messages; encoding: of the bond graph (bond_graph.py), or None."""
        super().__init__()
        hidden, act = config.hidden_dim, ACTIVATIONS[config.activation]
        self.cutoff = config.cutoff_nm
        self.vector_dim = config.vector_dim
        self.basis = RadialBasis(config.num_rbf, config.cutoff_nm)
        self.embedding = nn.Embedding(n_elements, hidden)
        self.encoding = encoding
        edge_dim = config.num_rbf + (encoding.pair_dim if encoding else 0)
        self.layers = nn.ModuleList(make_layer(edge_dim) for _ in range(config.num_layers))
        self.readout = nn.Sequential(nn.Linear(hidden, hidden), act(), nn.Linear(hidden, 1))
        nn.init.zeros_(self.readout[-1].bias)
        self.force = nn.Linear(config.vector_dim, 1, bias=False) if config.use_force_head else None

    def forward(self, grid: Grid, species, positions):
        """Energies per molecule (P,) and the force head's vectors (P,N,3) or None, in network units."""
        pairs = grid.pairs(positions, self.cutoff)
        edges = self.basis(pairs.distance)
        h = self.embedding(species)
        if self.encoding is not None:
            h, edges = self.encoding(grid, species, h, edges)
        V = None
        for layer in self.layers:
            h, V = layer(h, V, edges, pairs)
        energy = grid.sums(self.readout(h)[..., 0] * grid.mask)
        if self.force is None:
            return energy, None
        force = self.force(V)[..., 0] * grid.mask[..., None]
        mean = grid.spread(grid.sums(force) / grid.sums(grid.mask)[:, None])
        return energy, (force - mean) * grid.mask[..., None]
