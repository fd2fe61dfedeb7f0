"""Direct predictors as the literature has them, written from their papers, to stand beside our jump head.

    EGNN   Satorras, Hoogeboom, Welling, ICML 2021, equations 3, 5, 6 and 7: a network of its own for each horizon
    EGNO   Xu et al., ICML 2024: the state repeated at P times, and before each of the same layers a convolution along
           time, which multiplies the lowest Fourier modes by learned complex weights (vectors: x and v mix as wholes)

    m_ij = phi_e(h_i, h_j, |x_i - x_j|^2, a_ij)
    v_i' = phi_v(h_i) v_i [+ phi_f(h_i) f_i] + mean_j (x_i - x_j) phi_x(m_ij)
    x_i' = x_i + v_i'
    h_i' = h_i + phi_h(h_i, sum_j m_ij)

Dense tensors: S windows of one molecule of N atoms.  x in Angstrom from the centroid; v is the displacement v tau and f
(where it is given, which the papers do not) F tau^2 / 2m, both in Angstrom: the answer to a force-free molecule is
phi_v = 1.  a_ij: whether i and j are bonded, or share a neighbour.
"""

from __future__ import annotations

import math

import torch
from torch import nn


def perceptron(size_in: int, hidden: int, size_out: int, last: nn.Module | None = None) -> nn.Sequential:
    """Two layers with SiLU between them."""
    return nn.Sequential(nn.Linear(size_in, hidden), nn.SiLU(), nn.Linear(hidden, size_out), *([last] if last else []))


class Layer(nn.Module):
    """One EGNN layer with velocities."""

    def __init__(self, hidden: int, edge_dim: int, with_force: bool):
        super().__init__()
        # phi_e's first layer, split into terms of i, of j and of the pair, so that no long pair vector is built
        self.of_i, self.of_j = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden, bias=False)
        self.of_pair = nn.Linear(1 + edge_dim, hidden, bias=False)
        self.edge = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.along = perceptron(hidden, hidden, 1)
        self.speed = perceptron(hidden, hidden, 1)
        self.push = perceptron(hidden, hidden, 1) if with_force else None
        self.node = perceptron(2 * hidden, hidden, hidden)
        # A fresh network starts near x + v (1/2 + 1/4 + ...), where a short horizon is: not in the papers, and to
        # the peers' advantage.
        for last, bias in ((self.along[-1], 0.0), (self.speed[-1], 0.5)):
            nn.init.zeros_(last.weight)
            nn.init.constant_(last.bias, bias)

    def forward(self, h, x, v, f, edges, others):
        """h (S,N,H); x, v, f (S,N,3); edges (N,N,E); others (N,N): 1 off the diagonal."""
        n = h.shape[1]
        apart = x[:, :, None] - x[:, None]
        pair = torch.cat([apart.square().sum(-1, keepdim=True), edges.expand(len(h), -1, -1, -1)], -1)
        message = self.of_i(h)[:, :, None] + self.of_j(h)[:, None] + self.of_pair(pair)
        message = self.edge(message) * others[..., None]
        v = self.speed(h) * v + (apart * self.along(message) * others[..., None]).sum(2) / (n - 1)
        if self.push is not None:
            v = v + self.push(h) * f
        return h + self.node(torch.cat([h, message.sum(2)], -1)), x + v, v


class TimeConvolution(nn.Module):
    """Along the first axis (P times): y = x + act(irfft(W rfft(x))), W complex, of the lowest modes alone."""

    def __init__(self, channels: int, modes: int, activation: nn.Module | None):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, modes, 2) / (10 * channels))
        self.activation = activation or nn.Identity()

    def forward(self, x):
        """x (P, ..., channels)."""
        modes = min(self.weight.shape[2], len(x) // 2 + 1)
        spectrum = torch.fft.rfft(x, dim=0)[:modes]
        mixed = torch.einsum("m...i,iom->m...o", spectrum, torch.view_as_complex(self.weight)[..., :modes])
        return x + self.activation(torch.fft.irfft(mixed, n=len(x), dim=0))


class Predictor(nn.Module):
    """P future positions (P,S,N,3) and displacements per horizon of S windows; P = 1 is EGNN, more is EGNO."""

    def __init__(self, n_elements: int, *, n_times: int = 1, hidden: int = 32, layers: int = 4, modes: int = 2,
                 with_force: bool = False, time_dim: int = 32):
        super().__init__()
        self.n_times, self.time_dim = n_times, time_dim if n_times > 1 else 0
        self.embedding = nn.Linear(n_elements + 1 + with_force + self.time_dim, hidden)
        self.layers = nn.ModuleList(Layer(hidden, 2, with_force) for _ in range(layers))
        several = n_times > 1
        self.over_h = nn.ModuleList(TimeConvolution(hidden, modes, nn.LeakyReLU()) for _ in self.layers if several)
        self.over_xv = nn.ModuleList(TimeConvolution(2, modes, None) for _ in self.layers if several)
        self.with_force = with_force

    def forward(self, elements, x, v, f, edges):
        """elements (N,E) one-hot; x, v, f (S,N,3); edges (N,N,2)."""
        P, (S, N, _) = self.n_times, x.shape
        lengths = [a.norm(dim=-1, keepdim=True) for a in ((v, f) if self.with_force else (v,))]
        h = torch.cat([elements.expand(S, N, -1), *lengths], -1)
        if self.time_dim:
            h = torch.cat([h.expand(P, S, N, -1), self.clock(x)[:, None, None].expand(P, S, N, -1)], -1)
        h = self.embedding(h).reshape(P * S, N, -1)
        x, v, f = (a.expand(P, S, N, 3).reshape(P * S, N, 3) for a in (x, v, f))
        others = 1.0 - torch.eye(N, dtype=x.dtype)
        for i, layer in enumerate(self.layers):
            if self.over_h:
                h = self.over_h[i](h.reshape(P, S, N, -1)).reshape(P * S, N, -1)
                both = self.over_xv[i](torch.stack([x, v], -1).reshape(P, S, N, 3, 2)).reshape(P * S, N, 3, 2)
                x, v = both[..., 0], both[..., 1]
            h, x, v = layer(h, x, v, f, edges, others)
        return x.reshape(P, S, N, 3), v.reshape(P, S, N, 3)

    def clock(self, like):
        """Sines and cosines of the number of the time (P, time_dim)."""
        half = self.time_dim // 2
        rates = torch.exp(torch.arange(half, dtype=like.dtype) * (-math.log(1e4) / (half - 1)))
        angle = torch.arange(self.n_times, dtype=like.dtype)[:, None] * rates
        return torch.cat([angle.sin(), angle.cos()], -1)
