"""Loss and errors of a network over the validation windows."""

from __future__ import annotations

import math
from collections import defaultdict

import torch

from kstep.training import losses
from kstep.training.batches import Windows
from kstep.training.step_plan import Piece, shares_of
from kstep.training.train_config import TrainConfig


def validate(model, data: Windows, windows: torch.Tensor, config: TrainConfig, scales) -> dict:
    """Loss and errors over the fixed validation windows, in physical units.

    energy_rmse_kJ_per_mol (of differences: each molecule's mean error is taken out),
    force_rmse_kJ_per_mol_nm, and for the longest jump dx_rmse_nm, dv_rmse_nm_per_ps beside what
    the propagator alone gives.
    """
    heads = model.config.heads
    loss, de, owner = 0.0, [], []
    longest = int(data.k_steps.max())
    square = defaultdict(float)
    counted = defaultdict(int)

    def add(name, values):
        square[name] += float(values.square().sum())
        counted[name] += values.numel()

    for chosen in torch.split(windows, max(config.batch_size, 64)):
        with torch.no_grad():
            piece = Piece(chosen, shares=shares_of(data, chosen, windows))
            loss += float(losses.total(losses.loss_terms(model, data, piece, config, scales, training=False), config))
        batch, targets = data.batch(chosen, structure=False)
        if heads.energy:
            energy, forces = model.energy_and_forces(batch)
            de.append(energy - targets.energy)
            owner.append(data.molecule[chosen])
            add("force_rmse_kJ_per_mol_nm", forces - targets.forces)
        chosen = chosen[data.k_steps[chosen] == longest]
        if heads.jump and len(chosen):
            batch, targets = data.batch(chosen, structure=False)
            with torch.no_grad():
                for name, (x_k, v_half) in (("", model.jump(batch)), ("propagator_", model.propagate(batch))):
                    add(f"{name}dx_rmse_nm", x_k - targets.x_k)
                    add(f"{name}dv_rmse_nm_per_ps", v_half - targets.v_half)
    metrics = {"val_loss": loss}
    if heads.energy:
        de, owner = torch.cat(de), torch.cat(owner)
        for m in torch.unique(owner):
            de[owner == m] -= de[owner == m].mean()
        metrics["energy_rmse_kJ_per_mol"] = float(de.square().mean().sqrt())
    metrics.update({name: math.sqrt(square[name] / counted[name]) for name in square})
    return metrics


def headline(metrics: dict) -> dict:
    """What the progress bar shows of a validation."""
    shown = [key for key in ("energy_rmse_kJ_per_mol", "dx_rmse_nm") if key in metrics] or ["val_loss"]
    return {key: f"{metrics[key]:.3g}" for key in shown}
