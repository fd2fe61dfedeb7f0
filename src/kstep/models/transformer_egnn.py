"""The transferable network with attention in the place of messages: `arch: transformer_egnn`.

Heads, units, propagator and normalisation are the EGNN's.  What differs is a round of the network
(attention.py) and what it is told of the bonds (bond_graph.py), which the EGNN does not see.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from kstep.errors import UserError
from kstep.models.attention import AttentionLayer
from kstep.models.batch import MoleculeBatch
from kstep.models.bond_graph import BondGraphEncoding, bond_graph
from kstep.models.egnn import EGNN, covalent_radii_nm
from kstep.models.model_config import ModelConfig


class TransformerEGNN(EGNN):
    """Energy, forces and jumps of any molecule made of `config.elements`, given its bonds.

    Raises UserError where the heads do not divide hidden_dim and vector_dim.
    """

    ways: ClassVar[tuple[str, ...]] = ("eager", "graphs", "compiled")  # on lists attention pays from 4 cells per pair

    def __init__(self, config: ModelConfig):
        for key in ("hidden_dim", "vector_dim"):
            if getattr(config, key) % config.attention_heads:
                raise UserError(f"model: {key} {getattr(config, key)} does not split into attention_heads "
                                f"{config.attention_heads}; choose a multiple of it")
        super().__init__(config)

    def layout(self, batch: MoleculeBatch, sparse: bool | None = None):
        """The EGNN's, and the bond graph on its grid."""
        grid, species = super().layout(batch, sparse)
        grid.bond_graph = bond_graph(batch, grid, self.config.max_bond_distance)
        return grid, species

    def _make_layer(self, edge_dim: int) -> nn.Module:
        c = self.config
        return AttentionLayer(c.hidden_dim, c.vector_dim, edge_dim, c.activation, heads=c.attention_heads,
                              feedforward_dim=c.feedforward_dim, dropout=c.dropout)

    def _make_encoding(self) -> nn.Module:
        return BondGraphEncoding(self.elements, covalent_radii_nm(self.elements), self.config.hidden_dim,
                                 self.config.max_bond_distance)
