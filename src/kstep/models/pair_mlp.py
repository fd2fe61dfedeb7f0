"""`pair_mlp`: the potential energy of one molecule from its inverse distances; the fast network.

    u_p = (1/r_p - mean_p) / std_p                      one feature per pair of atoms
    E   = E_mean + E_scale (w . h_L + c . u + 1/2 sum_p q_p u_p^2),   h_l = silu(W_l h_{l-1} + b_l)

Inverse distances make E invariant under E(3) and the forces -dE/dx exactly conservative, with
neither net force nor net torque.  Every coefficient q_p is positive, while the network itself
grows at most linearly in u, so E goes up without bound when two atoms fuse: extrapolation can
raise a false wall but dig no bottomless hole.  It can dig a deep one where atoms clash, since no label lies there, and
dynamics or a torsion turned over leads there; so a fit ends by adding

    W = K sum_p max(0, contact_p / r_p - 1)^2

whose distance `contact_p` no label comes near (`close_in`): it is zero wherever the network was taught.

The price is that one network knows one molecule, in one order of its atoms; `checkpoint.check_fits` refuses any other.

The gradient is written out by hand, and so is the derivative of both that training needs
(pair_mlp_gradient.py); `FastPairMLP` (pair_mlp_numpy.py) runs the same formulas in float32, without
allocations and with its pairs in another order, and is what dynamics calls.

Source: inverse-distance descriptors as in Chmiela et al., Sci. Adv. 3, e1603015 (2017).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from kstep.errors import UserError
from kstep.models.batch import MoleculeBatch
from kstep.models.model_config import ModelConfig
from kstep.models.pair_mlp_gradient import EnergyAndSlope
from kstep.topology import bonds_between

CONTACT_KJ = 2e4  # K: 5 % beyond, an atom is pushed back with 50 kJ/mol
# of atoms one, two, three and more bonds apart, beyond the shortest distance in all labels: the less holds them there,
# the further a sample goes beyond
CONTACT_MARGINS = np.array([1.05, 1.10, 1.15, 1.15])
FARTHEST_BONDS = 4  # pairs further apart than this meet alike


class PairMLP(nn.Module):
    """Energy network of one molecule of N atoms (P = N (N - 1) / 2 pairs).

    config: ModelConfig, of which `pair_hidden` gives the widths of the hidden layers;
    molecule: {"numbers" (N,) atomic numbers, "bonds" (B,2)}.
    """

    bound_to_one_molecule, fits_labels = True, True
    bears_bfloat16 = False  # three digits of a distance are no bond length
    ways: ClassVar[tuple[str, ...]] = ("numpy", "eager", "graphs", "compiled")

    def __init__(self, config: ModelConfig, molecule: dict | None):
        super().__init__()
        if molecule is None:
            raise UserError("pair_mlp is bound to one molecule: build it with that molecule's numbers and bonds")
        if config.heads.jump or config.use_force_head or not config.heads.energy:
            raise UserError("pair_mlp has an energy head and no other; use arch egnn for the jump or force head")
        self.config = config
        numbers = np.asarray(molecule["numbers"], dtype=np.int64)
        if len(numbers) < 2:
            raise UserError("pair_mlp needs a molecule of at least two atoms")
        first, second = np.triu_indices(len(numbers), k=1)
        n_pairs = len(first)
        self.n_atoms = len(numbers)
        bonds = np.array(molecule["bonds"], dtype=np.int64).reshape(-1, 2)
        for name, array in {"numbers": numbers, "elements": np.unique(numbers), "bonds": bonds, "first": first,
                            "second": second}.items():
            self.register_buffer(name, torch.as_tensor(array))
        # B (P,N): +1 for the first atom of a pair, -1 for the second; B x are all distance vectors.
        incidence = torch.zeros(n_pairs, len(numbers))
        incidence[torch.arange(n_pairs), self.first] = 1.0
        incidence[torch.arange(n_pairs), self.second] = -1.0
        self.register_buffer("incidence", incidence, persistent=False)
        self.register_buffer("feature_mean", torch.zeros(n_pairs))
        self.register_buffer("feature_std", torch.ones(n_pairs))
        self.register_buffer("contact", torch.zeros(n_pairs))  # nm
        # In float64: total energies are 1e4 times larger than the differences that matter.
        for name, value in {"energy_mean": 0.0, "energy_scale": 1.0, "dt_ps": 0.0}.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))
        sizes = [n_pairs, *config.pair_hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.readout = nn.Parameter(torch.randn(sizes[-1]) / sizes[-1])
        self.slope = nn.Parameter(torch.zeros(n_pairs))
        # q = softplus(stiffness); sum_p q_p u_p^2 / 2 starts at about 2 spreads of the energy.
        # (A start of 0.13 for aspirin's 210 pairs cost twice the error of 0.02.)
        self.stiffness = nn.Parameter(torch.full((n_pairs,), math.log(math.expm1(4.0 / n_pairs))))

    def fit_normalisation(self, statistics: dict) -> None:
        """Fit the scales to the training split: {"positions" (S,N,3) nm, "energies" (S,) kJ/mol}."""
        if "dt_ps" in statistics:
            self.dt_ps.fill_(float(statistics["dt_ps"]))
        if "positions" not in statistics:
            return
        positions, energies = np.asarray(statistics["positions"]), np.asarray(statistics["energies"])
        d = positions[:, self.first.cpu().numpy()] - positions[:, self.second.cpu().numpy()]
        inverse = 1.0 / np.sqrt((d * d).sum(-1))
        # A floor of 0.1 % keeps a pair that hardly moves (a linear chain) from dividing by zero.
        spread = np.maximum(inverse.std(0), 1e-3 * inverse.mean(0))
        self.feature_mean.copy_(torch.as_tensor(inverse.mean(0)))
        self.feature_std.copy_(torch.as_tensor(spread))
        self.energy_mean.fill_(float(energies.mean()))
        self.energy_scale.fill_(max(float(energies.std()), 1e-3))

    def close_in(self, positions: np.ndarray, orders: np.ndarray) -> None:
        """Let W begin where atoms clash: positions (S,N,3) nm, the labels; orders (G,N): relabellings of their atoms.

        A pair clashes where it is closer, by CONTACT_MARGINS, than in any label; a pair of three bonds or more, than
        any pair of these elements that is as many bonds apart, four or more being alike.  For what is far apart in all
        labels may still meet in a conformer that they do not show, and there the network must be asked, not a wall.
        (160 ps of ethanol at 300 K bring hydrogens of a CH2 5.5 % closer than 480 labels do, and those of two groups
        6 %; with 1.05 for all, the kicks of `impulse`, which take back a wall that the truth lacks, broke there.)
        """
        first, second = self.first.cpu().numpy(), self.second.cpu().numpy()
        table = np.zeros((self.n_atoms, self.n_atoms))
        closest = np.linalg.norm(positions[:, first] - positions[:, second], axis=-1).min(axis=0)
        table[first, second] = table[second, first] = closest
        closest = np.min([table[order][:, order][first, second] for order in orders], axis=0)
        numbers = np.sort(self.numbers.cpu().numpy()[np.stack([first, second], axis=1)], axis=1)
        apart = bonds_between(self.n_atoms, self.bonds.cpu().numpy(), FARTHEST_BONDS)[first, second]
        kinds = np.column_stack([numbers, apart])
        for kind in np.unique(kinds[apart > 2], axis=0):
            alike = (kinds == kind).all(axis=1)
            closest[alike] = closest[alike].min()
        self.contact.copy_(torch.as_tensor(closest / CONTACT_MARGINS[apart - 1]))

    def layout(self, batch: MoleculeBatch, sparse: bool = False) -> None:
        """Nothing: pairs have fixed places."""

    def features(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """u (S,P), inverse distances (S,P) and distance vectors (S,3,P) of positions (S,N,3)."""
        # The component before the pair, so that both sums over atoms are one flat matrix product.
        d = positions.transpose(1, 2).contiguous() @ self.incidence.to(positions.dtype).T
        inverse = (d * d).sum(1).rsqrt()
        return (inverse - self.feature_mean) / self.feature_std, inverse, d

    def energy_and_gradient(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Energy (S,) float64 and forces (S,N,3) of positions (S,N,3), differentiable once more."""
        u, inverse, d = self.features(positions)
        weights = [tensor for layer in self.layers for tensor in (layer.weight, layer.bias)]
        energy, g = EnergyAndSlope.apply(u, self.readout, self.slope, functional.softplus(self.stiffness), *weights)
        scale, beyond = self.energy_scale.to(g.dtype), (self.contact * inverse - 1.0).relu()
        slope = g * (scale / self.feature_std) + beyond * (2.0 * CONTACT_KJ * self.contact)
        pair_force = (slope * inverse**3)[:, None, :] * d
        forces = (pair_force @ self.incidence.to(d.dtype)).transpose(1, 2)
        wall = CONTACT_KJ * beyond.double().square().sum(1)
        return self.energy_mean + self.energy_scale * energy.double() + wall, forces

    def _load_from_state_dict(self, state, prefix, *others):
        """A network that is older than contacts has none."""
        state.setdefault(f"{prefix}contact", torch.zeros_like(self.contact))
        super()._load_from_state_dict(state, prefix, *others)

    def energy_and_forces(self, batch: MoleculeBatch, create_graph: bool = False):
        """Energy (P,) kJ/mol and forces (A,3) kJ/mol/nm of a batch of this molecule."""
        with torch.set_grad_enabled(create_graph and torch.is_grad_enabled()):
            energy, forces = self.energy_and_gradient(self._local(batch))
        return energy, forces.reshape(-1, 3).to(batch.positions.dtype)

    def energy(self, batch: MoleculeBatch) -> torch.Tensor:
        """Energy (P,) kJ/mol, absolute, differentiable in positions and parameters."""
        return self.energy_and_gradient(self._local(batch))[0]

    def _local(self, batch: MoleculeBatch) -> torch.Tensor:
        """Positions (P,N,3), centred first: single precision then resolves bonds, not distances from the origin."""
        positions = batch.positions.reshape(batch.n_graphs, -1, 3)
        if positions.shape[1] != self.n_atoms or len(batch.numbers) != batch.n_graphs * self.n_atoms:
            raise UserError(f"this pair_mlp knows one molecule of {self.n_atoms} atoms, "
                            f"the batch holds {len(batch.numbers)} atoms in {batch.n_graphs} molecules")
        return (positions - positions.mean(1, keepdim=True)).to(self.feature_mean.dtype)
