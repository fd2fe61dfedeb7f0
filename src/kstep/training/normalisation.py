"""Statistics of the training split, as the normalisation contract of kstep/models asks for them."""

from __future__ import annotations

import numpy as np
import torch

from kstep.errors import UserError
from kstep.training.batches import Windows
from kstep.training.losses import Scales
from kstep.units import PS_PER_FS

SAMPLES = 5000  # windows that statistics are taken from


def sample(windows: torch.Tensor, n: int = SAMPLES) -> torch.Tensor:
    """At most n of the windows, evenly spaced: the same ones whenever it is asked."""
    if len(windows) <= n:
        return windows
    return windows[torch.linspace(0, len(windows) - 1, n, device=windows.device).long()]


def fitted_references(batch, energies: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Elements (E,), their energies (E,) kJ/mol by least squares on (P,), and the residual (P,).

    For one molecule the least-squares solution of smallest norm reproduces the mean energy.
    """
    elements = torch.unique(batch.numbers)
    column = torch.searchsorted(elements, batch.numbers)
    counts = torch.zeros(batch.n_graphs, len(elements), dtype=torch.float64, device=energies.device)
    counts.index_put_((batch.graph, column), torch.ones_like(batch.masses), accumulate=True)
    counts, energies = counts.cpu().numpy(), energies.cpu().numpy()
    reference = np.linalg.lstsq(counts, energies, rcond=None)[0]
    return elements.cpu().numpy(), reference, energies - counts @ reference


def reference_energies(data: Windows, train: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`fitted_references` of the energies of the training windows."""
    batch, targets = data.batch(sample(train))
    return fitted_references(batch, targets.energy)


def scales(data: Windows, train: torch.Tensor) -> Scales:
    """Spread of the energies and rms force of the training split, which the loss divides by."""
    residual = reference_energies(data, train)[2]
    forces = data.batch(sample(train))[1].forces
    return Scales(energy=max(float(residual.std()), 1e-3), force=max(float(forces.square().mean().sqrt()), 1e-3))


def fit(model, data: Windows, train: torch.Tensor) -> None:
    """Set the model's normalisation buffers from the training windows."""
    chosen = sample(train)
    batch, targets = data.batch(chosen)
    dt_ps = data.dt_fs * PS_PER_FS
    if model.bound_to_one_molecule:
        if len(torch.unique(data.molecule[train])) != 1:
            raise UserError(f"{model.config.arch} learns one molecule, the training split holds several; "
                            "pick one with 02_make_dataset.py --molecule NAME, or train arch egnn")
        # Equivalent atoms get the same scales, as they will change places.
        labels = data.exchange_equivalent(int(data.molecule[chosen[0]]), np.random.default_rng(0), len(chosen))
        batch, targets = data.batch(chosen, labels=torch.as_tensor(labels, device=data.device))
        positions = batch.positions.reshape(len(chosen), -1, 3)
        model.fit_normalisation({"positions": positions.cpu().numpy(), "dt_ps": dt_ps,
                                 "energies": targets.energy.cpu().numpy()})
        return
    elements, reference, _ = reference_energies(data, train)
    unknown = sorted(set(elements.tolist()) - set(model.elements.tolist()))
    if unknown:
        raise UserError(f"the data hold elements {unknown} that 'elements' of the model config lacks")
    model.fit_normalisation({"elements": elements, "reference_energy": reference, "dt_ps": dt_ps,
                             "force_rms": float(targets.forces.square().mean().sqrt())})
    if not model.config.heads.jump:
        return
    lengths = torch.unique(data.k_steps[train])
    dx_rms, dv_rms = [], []
    for k in lengths:
        batch, targets = data.batch(sample(train[data.k_steps[train] == k], 2000))
        with torch.no_grad():
            x_k, v_half = model.propagate(batch)
        missed = [(targets.x_k - x_k).square().mean(1), (targets.v_half - v_half).square().mean(1)]
        own = [batch.numbers == int(z) for z in elements]
        for rms, square in zip((dx_rms, dv_rms), missed):
            rms.append([float(square[of].mean().sqrt()) if of.any() else float(square.mean().sqrt()) for of in own])
    model.fit_normalisation({"elements": elements, "tau_ps": lengths.cpu().numpy() * dt_ps,
                             "dx_rms": np.array(dx_rms), "dv_rms": np.array(dv_rms)})
