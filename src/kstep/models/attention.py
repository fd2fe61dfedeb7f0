"""One equivariant transformer layer: attention among atoms, between scalars and vectors, feed-forward.

Scalars h_i (P,N,H) are the latent features, vectors V_i (P,N,3,C) the spatial ones; both are split
into heads.  Layers are residual and normalised first ("pre-norm"):

attention          a_ij = softmax_j(q(h_i) . k(h_j) / sqrt(d) + b(e_ij)),   m_ij = a_ij v(h_j) * f(e_ij)
                   h_i <- h_i + A sum_j m_ij,    V_i <- V_i + B sum_j m_ij r_ij/|r_ij|
cross-attention    c_ij = softmax_j(sum_c q_c(h_i) <Q V_i, K V_j>_c / sqrt(d) + <D V_i, w_ij r_ij/|r_ij|> + b'(e_ij))
                   h_i <- h_i + A' sum_j c_ij v'(h_j),    V_i <- V_i + B' sum_j c_ij V_j
feed-forward       (dh, g) = mlp(h_i, |V_i|),    h_i <- h_i + dh,    V_i <- V_i + g * (M V_i)

In the cross-attention latent queries read spatial keys, inner products of vectors, that is the angles
and torsions of the molecule, and bring home values of both kinds.  Every coefficient is invariant
and multiplies vectors, so rotations and reflections act on V alone.

The softmax fades at the cutoff: with the envelope w_ij (dense.py),

    softmax_j(s_ij) = w_ij exp(s_ij) / (1 + sum_k w_ik exp(s_ik))

so that a neighbour that leaves takes its share of the numerator and of the denominator along, and
the 1, a neighbour with nothing to say, keeps the last one's share from staying at 1 until it is gone.

Sources: Vaswani et al., NeurIPS 2017; Thoelke and De Fabritiis, ICLR 2022 (distance filters on the
values); Schuett et al., ICML 2021 (vector channels).
"""

from __future__ import annotations

import torch
from torch import nn

from kstep.models.layers import ACTIVATIONS


def fading_softmax(scores: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(P,n,N,N): exp(s_ij) / (1 + sum_k w_ik exp(s_ik)), of which w_ij times as much is the attention.

    scores (P,n,N,N), weight (P,N,N) >= 0; the largest score is taken out first, lest exp overflow.
    """
    weight = weight[:, None]
    scores = scores.masked_fill(weight <= 0, 0.0)
    top = scores.detach().amax(-1, keepdim=True).clamp(min=0.0)
    share = (scores - top).exp()
    return share / ((-top).exp() + (weight * share).sum(-1, keepdim=True))


class VectorDropout(nn.Module):
    """Drops whole vectors (P,N,3,C), never single components, which would break equivariance."""

    def __init__(self, rate: float):
        super().__init__()
        self.dropout = nn.Dropout(rate)

    def forward(self, V):
        """V (P,N,3,C), whole vectors dropped while training."""
        if not self.training or self.dropout.p == 0.0:
            return V
        return V * self.dropout(torch.ones_like(V[:, :, :1]))


class AttentionLayer(nn.Module):
    """(h, V, edges, pairs) -> (h, V), in the place of `EquivariantLayer`, for pairs on a grid."""

    def __init__(self, hidden_dim: int, vector_dim: int, edge_dim: int, activation: str, *, heads: int,
                 feedforward_dim: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.norm_self, self.norm_cross, self.norm_forward = (nn.LayerNorm(hidden_dim) for _ in range(3))
        self.dropout, self.vector_dropout = nn.Dropout(dropout), VectorDropout(dropout)
        self.bias = nn.Linear(edge_dim, 2 * heads, bias=False)
        self.filter = nn.Linear(edge_dim, hidden_dim)
        self.query_key_value = nn.Linear(hidden_dim, 3 * hidden_dim)
        self.out = nn.Linear(hidden_dim, hidden_dim)
        self.out_vector = nn.Linear(hidden_dim, vector_dim, bias=False)
        self.cross_latent = nn.Linear(hidden_dim, vector_dim + hidden_dim)
        self.cross_spatial = nn.Linear(vector_dim, 3 * vector_dim + heads, bias=False)
        self.cross_out = nn.Linear(hidden_dim, hidden_dim)
        self.cross_out_vector = nn.Linear(vector_dim, vector_dim, bias=False)
        self.mix = nn.Linear(vector_dim, 2 * vector_dim, bias=False)
        self.forward_in = nn.Linear(hidden_dim + vector_dim, feedforward_dim)
        self.act = ACTIVATIONS[activation]()
        self.forward_out = nn.Linear(feedforward_dim, hidden_dim + vector_dim)

    def forward(self, h, V, edges, pairs):
        """h (P,N,H), V (P,N,3,C) or None for zeros, edges (P,N,N,K) features of pairs."""
        weight, kernel = pairs.weight, pairs.kernel
        bias, cross_bias = self.bias(edges).permute(0, 3, 1, 2).chunk(2, 1)
        dh, dV = self.attention(self.norm_self(h), edges, weight, kernel, bias)
        h = h + self.dropout(dh)
        V = self.vector_dropout(dV) if V is None else V + self.vector_dropout(dV)
        dh, dV = self.cross_attention(self.norm_cross(h), V, weight, kernel, cross_bias)
        h, V = h + self.dropout(dh), V + self.vector_dropout(dV)
        dh, dV = self.feed_forward(self.norm_forward(h), V)
        return h + self.dropout(dh), V + self.vector_dropout(dV)

    def attention(self, h, edges, weight, kernel, bias):
        """Scalars h (P,N,H) ask scalars: changes of h and V."""
        q, k, v = self.query_key_value(h).chunk(3, -1)
        q, k = self._split(q), self._split(k)
        share = fading_softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias, weight)
        message = (v[:, None] * self.filter(edges)).unflatten(-1, (self.heads, -1))
        message = (message * share.permute(0, 2, 3, 1)[..., None]).flatten(-2)
        moments = kernel @ message  # (P,N,4,N) (P,N,N,H)
        return self.out(moments[:, :, 0]), self.out_vector(moments[:, :, 1:])

    def cross_attention(self, h, V, weight, kernel, bias):
        """Scalars ask vectors: h (P,N,H), V (P,N,3,C) -> changes of both."""
        n_vectors = V.shape[-1]
        unit = V / (V.square().sum(2).mean(-1) + 1e-2).sqrt()[..., None, None]  # smooth at zero
        query, value = self.cross_latent(h).split([n_vectors, h.shape[-1]], -1)
        q, k, own, along = self.cross_spatial(unit).split([n_vectors] * 3 + [self.heads], -1)
        q, k = self._split_vectors(q * query[:, :, None]), self._split_vectors(k)
        scores = q @ k.transpose(-1, -2) / (n_vectors // self.heads) ** 0.5
        scores = scores + (along.transpose(-1, -2) @ kernel[:, :, 1:]).transpose(1, 2)  # (P,N,n,3) (P,N,3,N)
        share = fading_softmax(scores + bias, weight) * weight[:, None]
        latent = (share @ self._split(value)).transpose(1, 2).flatten(2)
        spatial = (share @ self._split_vectors(own)).unflatten(-1, (3, -1)).permute(0, 2, 3, 1, 4).flatten(3)
        return self.cross_out(latent), self.cross_out_vector(spatial)

    def feed_forward(self, h, V):
        """Each atom by itself: changes of h (P,N,H) and V (P,N,3,C)."""
        seen, kept = self.mix(V).chunk(2, -1)
        size = (seen.square().sum(2) + 1e-2).sqrt()
        hidden = self.dropout(self.act(self.forward_in(torch.cat([h, size], -1))))
        dh, gate = self.forward_out(hidden).split([h.shape[-1], V.shape[-1]], -1)
        return dh, kept * gate[:, :, None]

    def _split(self, h):
        """(P,N,H) -> (P,n,N,H/n)."""
        return h.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _split_vectors(self, V):
        """(P,N,3,C) -> (P,n,N,3C/n), components and channels of a head together."""
        return V.unflatten(-1, (self.heads, -1)).permute(0, 3, 1, 2, 4).flatten(3)
