"""The cheap propagator that a jump corrects: k velocity-Verlet steps under springs frozen at the start.

With the true force F_0 held constant, k steps of velocity Verlet end at
x + v tau + F_0 tau^2 / 2m (Taylor), which leaves the molecule beyond 2 fs: an O-H stretch has
turned round by then.  The bounded propagator lets the force change as learned springs
between near atoms would change it,

    F_i(t) = F_0,i + sum_j [phi_ij(r_ij(t)) r_ij(t)/|r_ij(t)| - phi_ij(r_ij(0)) r_ij(0)/|r_ij(0)|]
             - sum_j g_ij (y_i(t) - y_j(t)),      y = x(t) - x(0)
    phi(r) = -[t + K u (1 + c u/l + d (u/l)^2) + sum_q e_q a_q (S_iq + S_jq)]
    u = s tanh((r - r_0)/s),     S_iq = sum of a_q u over the springs at atom i,  e_q = +-1

The last term couples springs that share an atom (bends and stretches of one centre are not
independent).  The parameters are read once from the geometry at the start by a small network of invariants.
The true force enters exactly, the springs only extrapolate it.  The force of a spring is
bounded, so the displacement is; springs pull both ends alike, so the total momentum is exact.
The substeps are the baseline's own timesteps, so its discretisation error is reproduced, not fought.
"""

from __future__ import annotations

import torch
from torch import nn

from kstep.models.dense import Grid, RadialBasis
from kstep.models.layers import ACTIVATIONS
from kstep.models.model_config import ModelConfig

STIFFNESS = 3.5e5  # kJ/mol/nm^2, a C-H or C-C stretch
SOFT = 3.0e4  # kJ/mol/nm^2, a bend as seen by the 1-3 distance
MORSE_LENGTH = 0.0333  # nm: 1/(1.5 a) with a = 20 / nm
COUPLING_SIGNS = (1.0, 1.0, -1.0, -1.0)  # e_q: the coupling energy sum_iq e_q S_iq^2 / 2 takes either sign
BOUND = 0.05  # nm: a spring stretched further pulls no harder


class SpringPropagator(nn.Module):
    """Springs from invariants of the starting geometry, and the k substeps under them."""

    def __init__(self, radii: torch.Tensor, config: ModelConfig):
        """`radii` (E,) nm: covalent radii of the elements, for the starting guess of the stiffness."""
        super().__init__()
        hidden, act, self.cutoff = config.hidden_dim, ACTIVATIONS[config.activation], config.spring_cutoff_nm
        self.register_buffer("radii", radii)
        self.embedding = nn.Embedding(len(radii), hidden)
        self.basis = RadialBasis(config.num_rbf, self.cutoff)
        self.receiver = nn.Linear(hidden, hidden)
        self.sender = nn.Linear(hidden, hidden, bias=False)
        self.message = nn.Linear(config.num_rbf, hidden, bias=False)
        self.update = nn.Sequential(nn.Linear(2 * hidden, hidden), act(), nn.Linear(hidden, hidden))
        self.ends = nn.Linear(hidden, hidden)
        self.between = nn.Linear(config.num_rbf + 1, hidden, bias=False)
        self.act = act()
        self.spring = nn.Sequential(nn.Linear(hidden, hidden), act(), nn.Linear(hidden, 6 + len(COUPLING_SIGNS)))
        # Couplings enter as products: from zero they would never start.
        nn.init.zeros_(self.spring[-1].weight[:6])
        nn.init.zeros_(self.spring[-1].bias)

    def parameters_at(self, grid: Grid, species, positions):
        """Springs of near pairs i < j: flat rows i, j (S,) of the atoms, lengths (S,) nm, parameters by name."""
        pairs = grid.pairs(positions, self.cutoff)
        rbf = self.basis(pairs.distance)
        h = self.embedding(species)
        m = self.act(pairs.of_receivers(self.receiver(h)) + pairs.of_senders(self.sender(h)) + self.message(rbf))
        h = h + self.update(torch.cat([h, pairs.sums(m)], -1))
        i, j, chosen = pairs.once()
        radii = self.radii[species].flatten()
        r, w = pairs.distance[chosen], pairs.weight[chosen]
        reach = r / (radii[i] + radii[j])
        features = torch.cat([rbf[chosen], (8.0 * (reach[:, None] - 1.0)).tanh()], -1)
        ends = self.ends(h).flatten(0, 1)
        q = self.spring(self.act(ends[i] + ends[j] + self.between(features)))
        q = 3.0 * torch.tanh(q / 3.0)
        guess = torch.exp(-((reach - 1.0) / 0.15).clamp(min=-1.5, max=30.0))
        springs = {
            "stiffness": w * (STIFFNESS * guess * torch.exp(q[:, 0]) + SOFT * q[:, 1]),
            "cubic": -1.0 + q[:, 2],
            "quartic": 0.6 + q[:, 3],
            "tension": w * 2.0e3 * q[:, 4],
            "isotropic": w * SOFT * q[:, 5],
            "coupling": w[:, None] * q[:, 6:],
        }
        return i, j, r, springs

    def forward(self, grid: Grid, species, positions, velocities, acceleration, inverse_mass, steps, dt):
        """Deviations from the Taylor propagator, (P,N,3) nm and (P,N,3) nm/ps.

        species (P,N) element index; acceleration = F_true/m (P,N,3); inverse_mass (P,N,1);
        steps (P,) whole timesteps; dt ps.  One step deviates by exactly zero.
        """
        i, j, r0, springs = self.parameters_at(grid, species, positions)
        shape = positions.shape
        start = positions.reshape(-1, 3)
        v, a = velocities.reshape(-1, 3), acceleration.reshape(-1, 3)
        lift = inverse_mass.reshape(-1, 1)
        unit0 = (start[i] - start[j]) / r0[:, None]
        pull0 = springs["tension"][:, None] * unit0
        separation0, v_ij, a_ij = start[i] - start[j], v[i] - v[j], a[i] - a[j]
        x = torch.zeros_like(start)  # deviation of the position
        w = torch.zeros_like(start)  # deviation of the half-step velocity
        per_atom = grid.spread(steps.to(v.dtype)).expand(shape[:2]).reshape(-1, 1)
        coupling = springs["coupling"]
        signed = coupling * (SOFT * coupling.new_tensor(COUPLING_SIGNS))
        k_max = int(steps.max())
        kept_x, kept_w = x, w
        for step in range(1, k_max):
            time = step * dt
            y = v_ij * time + a_ij * (0.5 * time * time) + x[i] - x[j]
            s = separation0 + y
            r = s.square().sum(-1).sqrt()
            u = BOUND * torch.tanh((r - r0) / BOUND)
            z = u / MORSE_LENGTH
            pull = springs["stiffness"] * u * (1.0 + z * (springs["cubic"] + z * springs["quartic"]))
            part = coupling * u[:, None]
            shared = part.new_zeros(len(start), part.shape[1]).index_add(0, i, part).index_add(0, j, part)
            pull = pull + springs["tension"] + (signed * (shared[i] + shared[j])).sum(-1)
            force = (pull / r)[:, None] * s - pull0 + springs["isotropic"][:, None] * y
            kick = torch.zeros_like(start).index_add(0, i, -force).index_add(0, j, force)
            w = w + dt * lift * kick
            x = x + dt * w
            if k_max > 2:
                going = per_atom > step
                kept_x, kept_w = torch.where(going, x, kept_x), torch.where(going, w, kept_w)
            else:
                kept_x, kept_w = x * (per_atom > step), w * (per_atom > step)
        return kept_x.view(shape), kept_w.view(shape)
