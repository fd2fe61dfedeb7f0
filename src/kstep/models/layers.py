"""One equivariant message-passing layer with scalar and vector channels."""

from __future__ import annotations

import torch
from torch import nn

ACTIVATIONS = {"silu": nn.SiLU, "gelu": nn.GELU, "softplus": nn.Softplus}


class EquivariantLayer(nn.Module):
    """Scalars h_i (P,N,H) and vectors V_i (P,N,3,C) exchange messages over pairs.

    m_ij = act(A h_i + B h_j + D e_ij)            first edge layer split into node terms
    h_i <- h_i + mlp(h_i, sum_j w_ij m_ij, |V_i|)
    V_i <- V_i + gate(h_i) (sum_j w_ij (a_ij r_ij/|r_ij| + b_ij (V_j - V_i)) + V_i M)

    with a, b linear in m_ij and w_ij the cutoff envelope.  Coefficients are invariants and multiply
    vectors, so rotations and reflections act on V alone (Schuett et al., ICML 2021, PaiNN, for
    vector channels; Satorras et al., ICML 2021, for the messages).
    """

    def __init__(self, hidden_dim: int, vector_dim: int, edge_dim: int, activation: str):
        super().__init__()
        act = ACTIVATIONS[activation]
        self.vector_dim = vector_dim
        self.receiver = nn.Linear(hidden_dim, hidden_dim)
        self.sender = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.edge = nn.Linear(edge_dim, hidden_dim, bias=False)
        self.act = act()
        self.coefficients = nn.Linear(hidden_dim, 2 * vector_dim, bias=False)
        self.mix = nn.Linear(vector_dim, 2 * vector_dim, bias=False)
        self.update = nn.Sequential(
            nn.Linear(2 * hidden_dim + vector_dim, hidden_dim), act(),
            nn.Linear(hidden_dim, hidden_dim + vector_dim),
        )

    def forward(self, h, V, edges, pairs):
        """h (P,N,H), V (P,N,3,C) or None for zeros, edges (P,N,N,K) features of pairs (dense.py, radius_graph.py)."""
        m = self.act(pairs.of_receivers(self.receiver(h)) + pairs.of_senders(self.sender(h)) + self.edge(edges))
        along, between = self.coefficients.weight.split(self.vector_dim)
        total, gathered = pairs.moments(m, along, between, V)
        seen = gathered
        if V is not None:
            gathered = gathered - V * torch.matmul(total, between.t())[:, :, None]
            kept, seen = self.mix(V).split(self.vector_dim, -1)
            seen = seen + gathered
        size = (seen.square().sum(2) + 1e-2).sqrt()  # smooth at zero
        dh, gate = self.update(torch.cat([h, total, size], -1)).split([h.shape[-1], self.vector_dim], -1)
        moved = gathered * (1.0 + gate[:, :, None])
        return h + dh, moved if V is None else V + kept + moved
