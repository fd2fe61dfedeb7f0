"""A ragged batch of molecules as tensors: what every network reads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass
class MoleculeBatch:
    """P molecules with A atoms in all; units nm, ps, Da, kJ/mol.

    numbers (A,) int64; masses (A,); positions (A,3); graph (A,) int64: the molecule of each
    atom, ascending; n_graphs P; velocities, forces (A,3) and tau_ps (P,) only for the jump
    head; bonds (B,2) int64, atom numbers in the batch; layout: `model.layout(batch)` of a batch
    that is evaluated again and again with other positions.
    """

    numbers: torch.Tensor
    masses: torch.Tensor
    positions: torch.Tensor
    graph: torch.Tensor
    n_graphs: int
    bonds: torch.Tensor
    velocities: torch.Tensor | None = None
    forces: torch.Tensor | None = None
    tau_ps: torch.Tensor | None = None
    layout: tuple | None = None

    def to(self, device=None, dtype=None) -> MoleculeBatch:
        """Move all tensors; `dtype` applies to the floating ones."""
        moved = {}
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                moved[name] = value.to(device=device, dtype=dtype if value.is_floating_point() else None)
        return replace(self, **moved)

    @property
    def atoms_per_graph(self) -> torch.Tensor:
        """(P,) int64."""
        return torch.bincount(self.graph, minlength=self.n_graphs)


def replicate(numbers, masses, bonds, n_replicas: int, *, dtype=torch.float64, device="cpu") -> MoleculeBatch:
    """The constant part of a batch of R replicas of one molecule (positions are zeros)."""
    numbers = torch.as_tensor(numbers, dtype=torch.int64, device=device)
    masses = torch.as_tensor(masses, dtype=dtype, device=device)
    bonds = torch.as_tensor(bonds, dtype=torch.int64, device=device).reshape(-1, 2)
    n_atoms = len(numbers)
    shift = torch.arange(n_replicas, device=device) * n_atoms
    return MoleculeBatch(
        numbers=numbers.repeat(n_replicas), masses=masses.repeat(n_replicas),
        positions=torch.zeros(n_replicas * n_atoms, 3, dtype=dtype, device=device),
        graph=torch.arange(n_replicas, device=device).repeat_interleave(n_atoms), n_graphs=n_replicas,
        bonds=(bonds[None] + shift[:, None, None]).reshape(-1, 2))
