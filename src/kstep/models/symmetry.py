"""What a network must not notice: where the molecule is, how it is turned, how its atoms are listed."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from kstep.models.batch import MoleculeBatch


def shake(model: nn.Module, generator: torch.Generator, size: float = 0.05) -> None:
    """Add noise to every weight, since heads start at zero and zero is symmetric whatever the code."""
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(size * noise.to(parameter))


def random_orthogonal(generator: torch.Generator, determinant: int) -> torch.Tensor:
    """A random rotation (determinant 1) or rotation-reflection (-1), (3,3) float64."""
    q, r = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    q = q * torch.sign(torch.diagonal(r))
    if torch.linalg.det(q) * determinant < 0:
        q = torch.cat([-q[:, :1], q[:, 1:]], 1)
    return q


def predictions(model: nn.Module, batch: MoleculeBatch) -> dict[str, tuple[str, torch.Tensor]]:
    """Everything the model's heads say: name -> (scalar | vector | point, values)."""
    out = {}
    if model.config.heads.energy:
        energy, forces = model.energy_and_forces(batch)
        out["energy (kJ/mol)"] = ("scalar", energy)
        out["forces (kJ/mol/nm)"] = ("vector", forces)
        if model.config.use_force_head:
            out["direct forces (kJ/mol/nm)"] = ("vector", model.direct_forces(batch))
    if model.config.heads.jump:
        x, v = model.jump(batch)
        out["jump positions (nm)"] = ("point", x)
        out["jump velocities (nm/ps)"] = ("vector", v)
    return {name: (kind, values.detach()) for name, (kind, values) in out.items()}


def permute_atoms(batch: MoleculeBatch, generator: torch.Generator) -> tuple[MoleculeBatch, torch.Tensor]:
    """Shuffle the atoms within each molecule; row a of the result is old row order[a]."""
    keys = batch.graph + torch.rand(len(batch.graph), generator=generator, dtype=torch.float64) * 0.999
    order = torch.argsort(keys)
    new_row = torch.argsort(order)
    moved = {name: getattr(batch, name)[order] for name in ("numbers", "masses", "positions", "velocities", "forces")
             if getattr(batch, name) is not None}
    return replace(batch, bonds=new_row[batch.bonds], **moved), order


def symmetry_errors(model: nn.Module, batch: MoleculeBatch, generator: torch.Generator,
                    permutation: bool = True) -> dict[str, dict[str, float]]:
    """Largest deviation of each prediction under each operation, in the prediction's own unit.

    The batch should be float64 and so should the model: the deviation is then rounding, or a bug.
    """
    plain = predictions(model, batch)
    errors: dict[str, dict[str, float]] = {}
    operations = {
        "rotation": (random_orthogonal(generator, 1), torch.zeros(3, dtype=torch.float64)),
        "reflection": (random_orthogonal(generator, -1), torch.zeros(3, dtype=torch.float64)),
        "translation": (torch.eye(3, dtype=torch.float64), torch.randn(3, generator=generator, dtype=torch.float64)),
    }
    for name, (turn, shift) in operations.items():
        def rotate(a, turn=turn):
            return None if a is None else a @ turn.T

        moved = replace(batch, positions=rotate(batch.positions) + shift, velocities=rotate(batch.velocities),
                        forces=rotate(batch.forces))
        errors[name] = {}
        for what, (kind, values) in predictions(model, moved).items():
            expected = plain[what][1]
            if kind != "scalar":
                expected = rotate(expected) + (shift if kind == "point" else 0.0)
            errors[name][what] = float((values - expected).abs().max())
    if permutation:
        shuffled, order = permute_atoms(batch, generator)
        errors["permutation"] = {
            what: float((values - (plain[what][1] if kind == "scalar" else plain[what][1][order])).abs().max())
            for what, (kind, values) in predictions(model, shuffled).items()
        }
    return errors
