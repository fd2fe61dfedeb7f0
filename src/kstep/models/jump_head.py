"""The jump head: position after k timesteps and velocity half a step before, in one call.

    x_k       = x + v tau + F tau^2 / 2m         + springs + learned dx
    v_{k-1/2} = v + F (tau - dt/2) / m           + springs + learned dv

F is the true force.  The first column is the Taylor propagator, the second what the bounded
propagator adds (propagator.py), the third an equivariant network's guess at what is still
missing, from invariants and vectors of (x, v, F) and of where the propagator lands.  The learned
part is scaled per element and per tau, bounded by `max_disp_nm` per atom, and has its
mass-weighted mean removed: the centre of mass moves exactly as without it.

Vector channels in the manner of PaiNN (Schuett et al., ICML 2021) start from v, F and the
propagator's landing, so a response linear in v and F, which is most of a short jump, needs no
depth; a message that could only point along x_i - x_j would have to build it up.

Recipe that trained best per second of CPU: loss = <|dx| / rms> + <|dv| / rms> over atoms (norms,
not squares: 15 % lower error at equal steps), rms from `jump_scales`; AdamW, lr 1e-2, betas
(0.9, 0.99), weight decay 1e-5, 100 warm-up steps then a cosine to zero, gradient norm clipped at
1, batches of 32 molecules (64 and more learn slower per second), EMA 0.995, float32.
"""

from __future__ import annotations

import torch
from torch import nn

from kstep.models.dense import Grid, RadialBasis
from kstep.models.layers import ACTIVATIONS
from kstep.models.model_config import ModelConfig
from kstep.models.propagator import SpringPropagator
from kstep.units import kT

TAYLOR_LIMIT_PS = 0.002  # `auto` trusts the Taylor propagator up to here
N_INVARIANTS = 6  # per pair, beside the radial basis
N_VECTORS = 6  # per atom, fed to the vector channels


class JumpHead(nn.Module):
    """Equivariant network for the remainder beyond the cheap propagator."""

    def __init__(self, radii: torch.Tensor, config: ModelConfig, make_layer, encoding: nn.Module | None = None):
        """radii (E,) nm: of the elements, as `SpringPropagator` takes them; make_layer, encoding: as `EnergyHead`."""
        super().__init__()
        hidden, act = config.hidden_dim, ACTIVATIONS[config.activation]
        self.cutoff, self.max_disp, self.mode = config.cutoff_nm, config.max_disp_nm, config.propagator
        self.springs = None if self.mode == "taylor" else SpringPropagator(radii, config)
        self.basis = RadialBasis(config.num_rbf, config.cutoff_nm)
        self.embedding = nn.Embedding(len(radii), hidden)
        self.start = nn.Sequential(nn.Linear(N_VECTORS + 4, hidden), act(), nn.Linear(hidden, hidden))
        self.vectors = nn.Linear(N_VECTORS, config.vector_dim, bias=False)
        self.encoding = encoding
        edge_dim = config.num_rbf + N_INVARIANTS + (encoding.pair_dim if encoding else 0)
        self.layers = nn.ModuleList(make_layer(edge_dim) for _ in range(config.num_layers))
        self.readout = nn.Sequential(nn.Linear(hidden, hidden), act(), nn.Linear(hidden, 2 * config.vector_dim))
        self.out = nn.Linear(config.vector_dim, 2, bias=False)
        nn.init.zeros_(self.out.weight)  # an untrained model is its propagator

    def deviations(self, grid: Grid, species, positions, velocities, acceleration, masses, tau, dt):
        """Spring deviations from Taylor, (P,N,3) twice; zeros where `propagator` says Taylor."""
        use = self.springs is not None and (self.mode == "bounded" or bool((tau > TAYLOR_LIMIT_PS + 1e-7).any()))
        if not use:
            return torch.zeros_like(positions), torch.zeros_like(positions)
        inverse_mass = torch.where(grid.mask, 1.0 / masses, 0.0)[..., None]
        dx, dv = self.springs(grid, species, positions, velocities, acceleration, inverse_mass, torch.round(tau / dt),
                              float(dt))
        if self.mode == "auto":
            far = grid.spread(tau > TAYLOR_LIMIT_PS + 1e-7)[..., None]
            dx, dv = dx * far, dv * far
        return dx, dv

    def forward(self, grid: Grid, species, positions, velocities, forces, masses, tau, dt, force_scale,
                dx_scale, dv_scale):
        """Deviation from the Taylor propagator and the learned remainder: four (P,N,3) tensors.

        All as the grid has them: species, masses (P,N); positions, velocities, forces (P,N,3);
        tau (P,); dx_scale, dv_scale (P,N,1).  Returns spring dx, dv, learned dx, dv (nm, nm/ps).
        """
        mask = grid.mask[..., None].to(positions.dtype)
        masses = masses.masked_fill(~grid.mask, 1.0)
        acceleration = forces / masses[..., None]
        spring_dx, spring_dv = self.deviations(grid, species, positions, velocities, acceleration, masses, tau, dt)

        t = grid.spread(tau)[..., None]
        thermal = (kT(300.0) / masses).sqrt()[..., None]  # nm/ps; a unit, not a temperature
        move = velocities * t + acceleration * (0.5 * t * t) + spring_dx
        turn = acceleration * t + spring_dv
        V = torch.stack([velocities / thermal, forces / force_scale, move / (thermal * t), turn / thermal,
                         spring_dx / dx_scale, spring_dv / dv_scale], -1) * mask[..., None]
        V = V / (1.0 + V.square().sum(2, keepdim=True) / 900.0).sqrt()  # far outside: bounded inputs
        clock = torch.cat([t * 100.0, t.log() + 5.5, (t * 500.0).sin(), (t * 500.0).cos()], -1)
        h = self.embedding(species) + self.start(
            torch.cat([(V.square().sum(2) + 1e-2).sqrt(), clock.expand(*V.shape[:2], 4)], -1))
        V = self.vectors(V)

        pairs = grid.pairs(positions, self.cutoff)
        edges = torch.cat([self.basis(pairs.distance),
                           self.pair_invariants(pairs, velocities, acceleration, move, turn, t)], -1)
        if self.encoding is not None:
            h, edges = self.encoding(grid, species, h, edges)
        for layer in self.layers:
            h, V = layer(h, V, edges, pairs)
        gate_x, gate_v = self.readout(h).chunk(2, -1)
        gates = torch.stack([gate_x, gate_v], 2)  # (P,N,2,C)
        out = torch.einsum("pnxc,pnoc,oc->pnxo", V, 1.0 + gates, self.out.weight)
        dx = self.bounded(out[..., 0] * dx_scale, self.max_disp)
        dv = self.bounded(out[..., 1] * dv_scale, self.max_disp / t)
        share = (masses[..., None] * mask) / grid.spread(grid.sums(masses[..., None] * mask))
        dx = (dx - grid.spread(grid.sums(share * dx))) * mask
        dv = (dv - grid.spread(grid.sums(share * dv))) * mask
        return spring_dx, spring_dv, dx, dv

    def pair_invariants(self, pairs, velocities, acceleration, move, turn, t):
        """(P,N,N,6): how the pair's distance changes, to first order and where the propagator lands."""
        direction, distance, t = pairs.direction, pairs.distance, pairs.of_receivers(t)

        def difference(vector):
            return pairs.of_receivers(vector) - pairs.of_senders(vector)

        v, a, y, w = (difference(vector) for vector in (velocities, acceleration, move, turn))
        along_v = (v * direction).sum(-1, keepdim=True)
        along_a = (a * direction).sum(-1, keepdim=True)
        end = direction * distance[..., None] + y
        stretch = (end.square().sum(-1, keepdim=True) + 1e-8).sqrt() - distance[..., None]
        along_w = (w * direction).sum(-1, keepdim=True)
        return torch.cat([torch.tanh(along_v / 3.0), torch.tanh(along_a * t / 3.0), torch.tanh(stretch / 0.01),
                          torch.tanh(stretch / 0.05), torch.tanh(along_w / 3.0),
                          torch.tanh(v.square().sum(-1, keepdim=True) / 10.0)], -1)

    @staticmethod
    def bounded(vector, limit):
        """Shorten a vector smoothly so that its norm stays below `limit`."""
        return vector / (1.0 + (vector / limit).square().sum(-1, keepdim=True)).sqrt()
