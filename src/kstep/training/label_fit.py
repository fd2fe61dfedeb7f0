"""Fit a network to labels of one molecule: a given number of passes on one CPU thread, as self-learning needs them.

    loss = sum_s w_s [lambda_E (dE_s / spread of E)^2 + lambda_F <(dF_s / rms of F)^2>] / sum_s w_s

over random batches whose equivalent atoms change places anew each time they are seen
(equivalent_atoms.py); w_s plays down labels far above thermal energies (`Labels.weights`),
which also stay out of every normalisation.  AdamW under warm-up and half a cosine, on a first layer
in better coordinates (whitening.py); the averaged weights are what comes out.  The same labels
and seed give the same bits.

The whole fit lies in memory and is over in seconds: no epochs with validation, no files, nothing to resume.
That is window_training.py, for datasets of windows, many molecules, jumps, GPUs and several processes.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from kstep.errors import UserError
from kstep.models import build_model, checkpoint as checkpoints, names_of
from kstep.models.model_config import ModelConfig
from kstep.molecules.molecule import Molecule
from kstep.training.equivalent_atoms import exchange_equivalent
from kstep.training.labels import Labels
from kstep.training.losses import Scales
from kstep.training.optimiser import MovingAverage, adamw, descend, learning_rate
from kstep.training.train_config import FitConfig
from kstep.training.whitening import whitened
from kstep.units import PS_PER_FS, kT

FEWEST_LABELS = 10  # below that no spread means anything
RELABELLINGS = 300  # of the shortest distances: two methyls have nine of them, or eighteen
COPIES = 4  # of each label, relabelled, that the scales and the covariance of the features are taken from


@dataclass
class Fit:
    """checkpoint: what checkpoints.save takes; errors: of the validation labels (see `judge`), {} without.

    steps; cpu_s of this process; played_down: labels of weight below 1.
    """

    checkpoint: dict
    errors: dict
    steps: int
    cpu_s: float
    played_down: int


def fit(model_config: ModelConfig, molecule: Molecule, labels: Labels, config: FitConfig, *, method: str,
        true_calls: int, dt_fs: float, temperature_K: float, seed: int, validation: Labels | None = None,
        start: dict | None = None, passes: float | None = None) -> Fit:
    """Train a network on labels, or go on training one.

    true_calls, method, dt_fs, temperature_K: what the checkpoint says of itself; passes: over the
    labels, instead of config.fit_passes; start: the state_dict of an earlier fit, whose normalisation is kept too, so
    that training goes on from the very function it left.  Raises UserError for too few labels, another
    architecture, or a loss that is not finite.
    """
    if not model_config.network_class.fits_labels:
        raise UserError(f"labels are fitted with arch {names_of('fits_labels')}, the model config says "
                        f"{model_config.arch}")
    weights = labels.weights(config.fit_outlier_kT)
    usual = weights == 1.0
    if usual.sum() < FEWEST_LABELS:
        far, height = int((~usual).sum()), float(np.ptp(labels.energies)) if len(labels) else 0.0
        cause = (f"; with {far} others they are spread over {height:.0f} kJ/mol, as where the molecule falls apart on "
                 "this method, starts far from its minima (relax_starts), or is held far from them (learn without the "
                 "restraint: such a network serves with one)") if far else ""
        raise UserError(f"{int(usual.sum())} labels at thermal energies are too few to fit a network; "
                        f"{FEWEST_LABELS} are the least{cause}")
    began = time.process_time()
    steps = max(1, round((passes or config.fit_passes) * len(labels) / config.fit_batch_size))
    rng = np.random.default_rng([seed, len(labels)])
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(model_config, {"numbers": molecule.numbers, "bonds": molecule.bonds})
        seen = np.concatenate([_relabelled(labels.positions[usual], molecule, config, rng) for _ in range(COPIES)])
        if start is None:
            # Equivalent atoms get the same scales, as they will change places.
            model.fit_normalisation({"positions": seen, "energies": labels.energies[usual],
                                     "dt_ps": dt_fs * PS_PER_FS})
        else:
            _continue(model, start)
            model.contact.zero_()  # of the labels there were then
        force_rms = float(np.sqrt(np.square(labels.forces[usual]).mean()))
        scales = Scales(energy=float(model.energy_scale), force=max(force_rms, 1e-3))
        with whitened(model.layers[0], model.features(_single(seen))[0], config.fit_whitening, fresh=start is None):
            _optimise(model, molecule, labels, weights, config, scales, steps, rng)
        model.eval()
        orders = exchange_equivalent(molecule.numbers, molecule.bonds, rng, RELABELLINGS)
        model.close_in(labels.positions[usual], orders)
    checkpoint = checkpoints.packed(model, {
        "k_steps": 1, "dt_fs": float(dt_fs), "spans": [1], "units": checkpoints.UNITS,
        "molecule": {key: torch.as_tensor(getattr(molecule, key)) for key in ("numbers", "masses", "bonds")},
        "molecules": [molecule.name], "temperature_K": float(temperature_K), "method": method,
        "lowest_energy_kJ_per_mol": float(labels.energies[usual].min()),
        "data_sha256": labels.sha256(), "true_calls_training": int(true_calls)})
    errors = judge(model, validation, temperature_K) if validation is not None and len(validation) else {}
    checkpoint["metrics"] = errors
    return Fit(checkpoint, errors, steps, time.process_time() - began, int((~usual).sum()))


def judge(model, labels: Labels, temperature_K: float) -> dict:
    """Errors of a network on labels it has not seen.

    energy_std_kJ_per_mol (the mean error is of no consequence), force_rmse_kJ_per_mol_nm, and the
    acceptance the network would have at temperature_K if the labels were samples there.
    """
    with torch.no_grad():
        energy, forces = model.energy_and_gradient(_single(labels.positions))
    de = energy.numpy() - labels.energies
    return {"energy_std_kJ_per_mol": float(de.std()),
            "force_rmse_kJ_per_mol_nm": float(np.sqrt(np.square(forces.numpy() - labels.forces).mean())),
            "expected_acceptance": expected_acceptance(de, temperature_K)}


def expected_acceptance(energy_errors: np.ndarray, temperature_K: float) -> float:
    """Acceptance of long, exactly integrated trajectories, from d = E_network - E_true of true samples (S,).

        A = sum_ij w_j min(1, exp[(d_j - d_i) / kT]) / S,   w_j ~ exp(-d_j / kT)

    i: where a chain is, a sample of the truth; j: where the network's dynamics leads, a sample of
    the network's own ensemble, which the weights w make of the same geometries.
    """
    d = np.asarray(energy_errors, dtype=float) / kT(temperature_K)
    d = d - d.min()
    w = np.exp(-d)
    ratio = np.exp(np.minimum(0.0, d[None, :] - d[:, None]))
    return float((ratio @ w).mean() / w.sum())


@contextmanager
def _one_thread():
    """These matrices are too small to share between threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _single(positions: np.ndarray) -> torch.Tensor:
    """Positions (S,N,3) centred in float64, then float32: a bond keeps seven digits."""
    return torch.as_tensor(positions - positions.mean(1, keepdims=True), dtype=torch.float32)


def _relabelled(positions, molecule: Molecule, config: FitConfig, rng):
    if not config.fit_exchange_hydrogens:
        return positions
    order = exchange_equivalent(molecule.numbers, molecule.bonds, rng, len(positions))
    return np.take_along_axis(positions, order[..., None], 1)


def _continue(model, start: dict) -> None:
    try:
        model.load_state_dict(start)
    except RuntimeError:
        raise UserError("the weights to start from are of another model config or molecule") from None


def _batches(n: int, config: FitConfig, molecule: Molecule, rng):
    """Rows (s,) of the n labels and the order (s,N) of each one's atoms, pass after pass without end."""
    size = min(config.fit_batch_size, n)
    rows, orders = np.zeros(0, dtype=np.int64), np.zeros((0, len(molecule)), dtype=np.int64)
    while True:
        while len(rows) < size:
            rows = np.concatenate([rows, rng.permutation(n)])
            if config.fit_exchange_hydrogens:
                orders = np.concatenate([orders, exchange_equivalent(molecule.numbers, molecule.bonds, rng, n)])
            else:
                orders = np.concatenate([orders, np.tile(np.arange(len(molecule)), (n, 1))])
        yield torch.as_tensor(rows[:size]), torch.as_tensor(orders[:size])
        rows, orders = rows[size:], orders[size:]


def _optimise(model, molecule, labels: Labels, weights, config: FitConfig, scales: Scales, steps: int, rng) -> None:
    """Minimise the loss in place; the model ends with its averaged weights."""
    parameters = list(model.parameters())
    optimiser = adamw(parameters, lr=config.fit_lr, weight_decay=config.fit_weight_decay, beta2=config.fit_beta2)
    average = MovingAverage(parameters, config.fit_ema_decay)
    positions, forces = _single(labels.positions), torch.as_tensor(labels.forces, dtype=torch.float32)
    energies = torch.as_tensor(labels.energies)
    weights = torch.as_tensor(weights, dtype=torch.float32)
    mean_weight = float(weights.mean())
    batches = _batches(len(labels), config, molecule, rng)
    model.train()
    for step in range(steps):
        rows, order = next(batches)
        x, f = (torch.take_along_dim(a[rows], order[..., None], 1) for a in (positions, forces))
        w = weights[rows] / mean_weight
        energy, force = model.energy_and_gradient(x)
        de = ((energy - energies[rows]) / scales.energy).float()
        df = ((force - f) / scales.force).square().mean((1, 2))
        loss = (w * (config.fit_lambda_energy * de.square() + config.fit_lambda_force * df)).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        rate = learning_rate(step, steps, config.fit_lr, config.fit_warmup_ratio)
        descend(optimiser, parameters, average, step, rate, config.fit_grad_clip, way_out="lower fit_lr")
    average.keep()
