"""The transferable network: E(3)-equivariant message passing with an energy head and a jump head."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from kstep.errors import UserError
from kstep.models.batch import MoleculeBatch
from kstep.models.dense import Grid
from kstep.models.energy_head import EnergyHead
from kstep.models.jump_head import JumpHead
from kstep.models.layers import EquivariantLayer
from kstep.models.model_config import ModelConfig
from kstep.units import NM_PER_ANGSTROM

if TYPE_CHECKING:
    from kstep.models.radius_graph import RadiusGraph

ENERGY_LENGTH = 0.02  # nm: force_rms times this is the energy scale per atom


class EGNN(nn.Module):
    """Energy, forces and jumps of any molecule made of `config.elements`.

    See kstep/models/__init__.py for what each method and capability promises.
    """

    bound_to_one_molecule, fits_labels, bears_bfloat16 = False, False, True
    ways: ClassVar[tuple[str, ...]] = ("eager", "sparse", "graphs", "compiled")

    def __init__(self, config: ModelConfig):
        super().__init__()
        if not (config.heads.energy or config.heads.jump):
            raise UserError("model: heads.energy and heads.jump are both false; a network needs one of them")
        self.config = config
        elements = torch.tensor(sorted(set(config.elements)), dtype=torch.int64)
        n = len(elements)
        self.register_buffer("elements", elements)
        index = torch.full((119,), -1, dtype=torch.int64)
        index[elements] = torch.arange(n)
        self.register_buffer("element_index", index, persistent=False)
        # kJ/mol, kJ/mol/nm, ps, nm, nm/ps; until fit_normalisation
        for name, value in {"reference_energy": [0.0] * n, "energy_scale": 20.0, "force_scale": 1000.0, "dt_ps": 0.0005,
                            "tau_ps": [0.004], "dx_rms": [[0.001] * n], "dv_rms": [[0.5] * n]}.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))
        self.energy_head = None
        if config.heads.energy:
            self.energy_head = EnergyHead(n, config, self._make_layer, self._make_encoding())
        self.jump_head = None
        if config.heads.jump:
            self.jump_head = JumpHead(covalent_radii_nm(elements), config, self._make_layer, self._make_encoding())

    # what another architecture of the same heads replaces -----------------------------------

    def _make_layer(self, edge_dim: int) -> nn.Module:
        """One round of messages (h, V, edges, pairs) -> (h, V), as `EquivariantLayer` has it."""
        return EquivariantLayer(self.config.hidden_dim, self.config.vector_dim, edge_dim, self.config.activation)

    def _make_encoding(self) -> nn.Module | None:
        """What a head adds to atoms and pairs beside their elements and distances."""
        return None

    # energy ------------------------------------------------------------------------------

    def energy(self, batch: MoleculeBatch) -> torch.Tensor:
        """(P,) kJ/mol: reference energies plus the learned part."""
        return self._energy_of(batch, batch.positions)

    def energy_and_forces(self, batch: MoleculeBatch, create_graph: bool = False):
        """(P,) kJ/mol and (A,3) kJ/mol/nm, F = -dE/dx."""
        with torch.enable_grad():
            positions = batch.positions.detach().requires_grad_(True)
            energy = self._energy_of(batch, positions)
            (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=create_graph)
        return (energy if create_graph else energy.detach()), -gradient

    def direct_forces(self, batch: MoleculeBatch) -> torch.Tensor:
        """(A,3) kJ/mol/nm from the force head: fast, without net force, not conservative."""
        self._require(self.energy_head is not None and self.energy_head.force is not None, "force head",
                      "use_force_head: true and heads.energy: true")
        grid, species, positions = self._grid(batch, batch.positions)
        _, force = self.energy_head(grid, species, positions)
        return grid.unpad(force).to(batch.positions.dtype) * self.force_scale.to(batch.positions.dtype)

    def _energy_of(self, batch, positions):
        self._require(self.energy_head is not None, "energy head", "heads.energy: true")
        grid, species, local = self._grid(batch, positions)
        learned, _ = self.energy_head(grid, species, local)
        reference = grid.sums(self.reference_energy[species] * grid.mask)
        return (reference + learned.to(reference.dtype) * self.energy_scale).to(batch.positions.dtype)

    # jump --------------------------------------------------------------------------------

    def propagate(self, batch: MoleculeBatch):
        """x_k (A,3) nm and v_{k-1/2} (A,3) nm/ps of the cheap propagator alone."""
        grid, inputs = self._jump_inputs(batch)
        species, x, v, f, m, tau = inputs
        m = m.masked_fill(~grid.mask, 1.0)
        dx, dv = self.jump_head.deviations(grid, species, x, v, f / m[..., None], m, tau, self.dt_ps)
        return self._beyond_taylor(batch, grid.unpad(dx), grid.unpad(dv))

    def jump(self, batch: MoleculeBatch, delta_scale: float = 1.0):
        """x_k (A,3) nm and v_{k-1/2} (A,3) nm/ps; `delta_scale` scales the learned correction."""
        if delta_scale == 0.0:
            return self.propagate(batch)
        grid, inputs = self._jump_inputs(batch)
        species, x, v, f, m, tau = inputs
        scale_x, scale_v = self.jump_scales(batch.numbers, batch.tau_ps[batch.graph])
        scale_x, scale_v = (grid.pad(s.to(x.dtype)).masked_fill(~grid.mask[..., None], 1.0)
                            for s in (scale_x, scale_v))
        spring_dx, spring_dv, dx, dv = self.jump_head(
            grid, species, x, v, f, m, tau, self.dt_ps, self.force_scale.to(x.dtype), scale_x, scale_v)
        return self._beyond_taylor(batch, grid.unpad(spring_dx + delta_scale * dx),
                                   grid.unpad(spring_dv + delta_scale * dv))

    def jump_scales(self, numbers: torch.Tensor, tau_ps: torch.Tensor):
        """RMS remainders (A,1) nm and (A,1) nm/ps; between the fitted taus a power law in tau."""
        species = self._species(numbers)
        tau = tau_ps.to(self.tau_ps.dtype).clamp(self.tau_ps[0], self.tau_ps[-1])
        if len(self.tau_ps) == 1:
            return self.dx_rms[0, species][:, None], self.dv_rms[0, species][:, None]
        right = torch.searchsorted(self.tau_ps, tau).clamp(1, len(self.tau_ps) - 1)
        low, high = self.tau_ps[right - 1], self.tau_ps[right]
        part = (tau / low).log() / (high / low).log()

        def between(table):
            logs = table.log()
            return torch.lerp(logs[right - 1, species], logs[right, species], part).exp()[:, None]

        return between(self.dx_rms), between(self.dv_rms)

    def _jump_inputs(self, batch):
        self._require(self.jump_head is not None, "jump head", "heads.jump: true")
        if batch.velocities is None or batch.forces is None or batch.tau_ps is None:
            raise UserError("a jump needs velocities, forces and tau_ps in the batch")
        grid, species, x = self._grid(batch, batch.positions)
        v, f, m = (grid.pad(q.to(x.dtype)) for q in (batch.velocities, batch.forces, batch.masses))
        return grid, (species, x, v, f, m, batch.tau_ps.to(x.dtype))

    def _beyond_taylor(self, batch, dx, dv):
        # Added in the batch's own precision: float32 weights must not round float64 positions.
        tau = batch.tau_ps[batch.graph][:, None]
        acceleration = batch.forces / batch.masses[:, None]
        dt = self.dt_ps.to(tau.dtype)
        x = batch.positions + batch.velocities * tau + acceleration * (0.5 * tau * tau)
        v = batch.velocities + acceleration * (tau - 0.5 * dt)
        return x + dx.to(x.dtype), v + dv.to(v.dtype)

    # shared ------------------------------------------------------------------------------

    def fit_normalisation(self, statistics: dict) -> None:
        """Set scales from statistics of the training split; keys as in kstep/models/__init__.py."""
        known = {"elements", "reference_energy", "energy_rms", "force_rms", "dt_ps", "tau_ps", "dx_rms", "dv_rms"}
        for key in statistics:
            if key not in known:
                raise ValueError(f"unknown statistic '{key}'; known: {', '.join(sorted(known))}")
        rows = self._species(torch.as_tensor(statistics.get("elements", self.elements.cpu()), dtype=torch.int64))
        buffers = {}
        if "reference_energy" in statistics:
            reference = self.reference_energy.clone()
            reference[rows] = self._tensor(statistics["reference_energy"])
            buffers["reference_energy"] = reference
        if "force_rms" in statistics:
            buffers["force_scale"] = self._tensor(statistics["force_rms"])
            buffers["energy_scale"] = self._tensor(statistics["force_rms"]) * ENERGY_LENGTH
        if "energy_rms" in statistics:
            buffers["energy_scale"] = self._tensor(statistics["energy_rms"])
        if "dt_ps" in statistics:
            buffers["dt_ps"] = self._tensor(statistics["dt_ps"])
        if "tau_ps" in statistics:
            tau, order = self._tensor(statistics["tau_ps"]).reshape(-1).sort()
            buffers["tau_ps"] = tau
            for name in ("dx_rms", "dv_rms"):
                fitted = self._tensor(statistics[name]).reshape(len(tau), -1)[order].clamp(min=1e-9)
                # An element that training never saw moves like the average one.
                table = fitted.mean(1, keepdim=True).repeat(1, len(self.elements))
                table[:, rows] = fitted
                buffers[name] = table
        self.set_normalisation(buffers)

    def set_normalisation(self, buffers: dict) -> None:
        """Replace buffers by name; shapes may change with the number of taus."""
        for name, value in buffers.items():
            old = getattr(self, name)
            setattr(self, name, torch.as_tensor(value).to(device=old.device, dtype=old.dtype).clone())

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        # The tables grow with the number of taus, which only the checkpoint knows.
        for name in ("tau_ps", "dx_rms", "dv_rms"):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=self.tau_ps.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn, recurse=True):
        # Energies of -4e5 kJ/mol and times need float64 whatever the weights are cast to.
        super()._apply(fn, recurse)
        for name in ("reference_energy", "energy_scale", "force_scale", "dt_ps", "tau_ps", "dx_rms", "dv_rms"):
            setattr(self, name, getattr(self, name).to(torch.float64))
        return self

    def _tensor(self, value):
        return torch.as_tensor(value, dtype=torch.float64, device=self.elements.device)

    def _species(self, numbers):
        species = self.element_index[numbers.to(self.element_index.device)]
        if (species < 0).any():
            strange = sorted(set(numbers[species < 0].tolist()))
            raise UserError(f"the network knows the elements {self.elements.tolist()}, not {strange}; "
                            "add them to 'elements' in the model's YAML and train again")
        return species

    def layout(self, batch: MoleculeBatch, sparse: bool | None = None) -> tuple[Grid | RadiusGraph, torch.Tensor]:
        """Where the atoms of a batch sit and which elements they are: all that positions do not change.

        sparse: whether pairs are listed (radius_graph.py) or lie on a grid; None: as the positions make it faster.
        """
        grid = Grid(batch)
        if sparse is None and "sparse" in self.ways:
            sparse = grid.mostly_empty(batch.positions, self.config.cutoff_nm)
        if sparse:
            from kstep.models.radius_graph import RadiusGraph  # torch_geometric takes seconds to load

            grid = RadiusGraph(batch, grid)
        return grid, grid.pad(self._species(batch.numbers))

    def _grid(self, batch, positions):
        grid, species = batch.layout or self.layout(batch)
        padded = grid.pad(positions)
        # Centred before the cast to the weights' precision: a molecule far from the origin loses no digits.
        centre = grid.sums(padded.detach()) / grid.sums(grid.mask)[:, None]
        local = (padded - grid.spread(centre)) * grid.mask[..., None]
        dtype = next(self.parameters()).dtype
        return grid, species, local.to(dtype)

    @staticmethod
    def _require(there: bool, what: str, how: str) -> None:
        if not there:
            raise UserError(f"this network has no {what}; build and train it with {how}")


def covalent_radii_nm(elements: torch.Tensor) -> torch.Tensor:
    """(E,) nm, Cordero et al., Dalton Trans. 2008, as ASE tabulates them."""
    from ase.data import covalent_radii

    return torch.tensor(covalent_radii[elements.cpu().numpy()] * NM_PER_ANGSTROM, dtype=torch.float32)
