"""The heart of `pair_mlp`, with every derivative written by hand: features -> energy and its slope.

    z_l = W_l h_{l-1} + b_l,   h_0 = u,   h_l = silu(z_l)
    e(u) = w . h_L + c . u + 1/2 q . u^2                              g(u) = de/du

Forces are a linear map of g, so a force loss needs the weight derivative of g . t for the
direction t = d loss / dg.  But g . t is the derivative of e along t: carrying the tangents
h_l' = silu'(z_l) W_l h_{l-1}' forward from h_0' = t and then going back once gives it, in six
matrix products per layer.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable


class EnergyAndSlope(torch.autograd.Function):
    """(e (S,), g (S,P)) of features u (S,P) and weights w (H,), c (P,), q (P,), W_1, b_1, ... W_L, b_L."""

    @staticmethod
    def forward(ctx, u, readout, linear, stiffness, *layers):
        """Energies (S,) and slopes dE/du (S,P) of features u (S,P); layers: weight and bias of each, in turn."""
        weights, biases = layers[0::2], layers[1::2]
        h, hidden, gates, slopes = u, [u], [], []
        for weight, bias in zip(weights, biases):
            z = torch.addmm(bias, h, weight.T)
            gate = torch.sigmoid(z)
            h = z * gate
            hidden.append(h)
            gates.append(gate)
            slopes.append(torch.addcmul(gate, h, 1 - gate))  # silu'(z)
        energy = h @ readout + u @ linear + 0.5 * (u * u) @ stiffness
        back = [readout * slopes[-1]]  # de/dz_l, last layer first
        for weight, slope in zip(weights[:0:-1], slopes[-2::-1]):
            back.append((back[-1] @ weight) * slope)
        back.reverse()
        pull = torch.addcmul(linear, stiffness, u)
        slope_of_energy = torch.addmm(pull, back[0], weights[0])
        ctx.save_for_backward(u, readout, linear, stiffness, *layers)
        ctx.kept = hidden, gates, slopes, back, pull
        return energy, slope_of_energy

    @staticmethod
    @once_differentiable
    def backward(ctx, by_energy, along):
        """Adjoints of everything for adjoints by_energy (S,) of e and along (S,P) of g."""
        u, readout, _linear, stiffness, *layers = ctx.saved_tensors
        hidden, gates, slopes, back, pull = ctx.kept
        weights, n_layers = layers[0::2], len(layers) // 2
        tangents, raw_tangents = [along], []
        for weight, slope in zip(weights, slopes):
            raw_tangents.append(tangents[-1] @ weight.T)
            tangents.append(slope * raw_tangents[-1])
        by_readout = by_energy @ hidden[-1] + tangents[-1].sum(0)
        by_linear = by_energy @ u + along.sum(0)
        by_stiffness = 0.5 * (by_energy @ (u * u)) + (u * along).sum(0)
        by_layers: list = [None] * len(layers)
        by_hidden, of_hidden = by_energy[:, None] * readout, readout  # adjoint of h_l; de/dh_l
        for n in range(n_layers - 1, -1, -1):
            gate, h = gates[n], hidden[n + 1]
            bend = (1 - gate) * (2 * gate + (1 - 2 * gate) * h)  # silu''(z)
            by_z = by_hidden * slopes[n] + of_hidden * raw_tangents[n] * bend
            by_layers[2 * n] = torch.addmm(by_z.T @ hidden[n], back[n].T, tangents[n])
            by_layers[2 * n + 1] = by_z.sum(0)
            if n:
                by_hidden, of_hidden = by_z @ weights[n], back[n] @ weights[n]
        by_u = None
        if ctx.needs_input_grad[0]:
            by_u = by_z @ weights[0] + by_energy[:, None] * pull + stiffness * along
        return by_u, by_readout, by_linear, by_stiffness, *by_layers
