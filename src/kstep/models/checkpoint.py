"""Checkpoints: plain tensors, numbers and text, written atomically, sealed, read without unpickling code.

    state_dict           weights (averaged over the end of training) and normalisation buffers
    config               the ModelConfig as a mapping (arch, heads, sizes)
    normalisation        the buffers of state_dict alone, to read without building the model
    k_steps, dt_fs       timesteps of the longest window and length of a timestep
    spans                window lengths in the training data, timesteps, longest first
    units                "nm ps Da kJ/mol"
    elements             atomic numbers the network knows
    molecule             {"numbers", "bonds", "masses"} of the one molecule, or None
    temperature_K, method, data_sha256, true_calls_training
    pretrained           {"sha256", "method", "true_calls_training"} of the network it started from, if any
    ladder_K, d_spread_kT, acceptance_expected, holes: of one that learned by itself (kstep/learning/learner.py)
    true_calls_training_by_method, rungs, cpu_s_per_true_call: of one that was learned via a cheaper method
                         (kstep/learning/truth_ladder.py)
    fingerprint          of a training of 04: what a resumed one must share (kstep/fingerprint.py)
    training             optimiser, raw weights, epoch and so on; only in last.pt, for --resume
"""

from __future__ import annotations

import io
import logging
import pickle
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import torch

from kstep.config import load_config, validate
from kstep.errors import UserError
from kstep.files import check_unpacked, previous_of, replacing
from kstep.models import build_model
from kstep.models.model_config import ModelConfig
from kstep.models.seal import opened, sealed

UNITS = "nm ps Da kJ/mol"
REQUIRED = ("state_dict", "config", "normalisation", "k_steps", "dt_fs", "spans", "units", "elements",
            "molecule", "temperature_K", "method", "data_sha256", "true_calls_training")

log = logging.getLogger("kstep")


def packed(model, facts: dict) -> dict:
    """The checkpoint of a model: weights, buffers and facts."""
    state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    buffers = {name for name, _ in model.named_buffers()}
    return {"state_dict": state, "normalisation": {n: v for n, v in state.items() if n in buffers},
            "config": model.config.model_dump(), "elements": model.elements.tolist(), **facts}


def save(path: str | Path, checkpoint: dict, *, keep_previous: bool = False) -> None:
    """Write a checkpoint, whole or not at all, with the checksum of its content (kstep.models.seal).

    keep_previous: see `files.replacing`.
    """
    missing = [key for key in REQUIRED if key not in checkpoint]
    if missing:
        raise ValueError(f"checkpoint lacks {', '.join(missing)}")
    archive = io.BytesIO()  # PyTorch's own writing says of a full disk that a position is unexpected
    torch.save(checkpoint, archive)
    with replacing(path, keep_previous=keep_previous) as temporary:
        temporary.write_bytes(sealed(archive.getvalue()))


def load(path: str | Path, device: str = "cpu") -> dict:
    """Read a checkpoint; one that is missing, truncated, damaged or something else is a UserError.

    One without a checksum, as earlier versions wrote them, is read with a warning.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; train one with 04_train.py")
    try:
        archive, has_checksum = opened(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); put back a copy of it, or train again") from None
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as members:  # older formats of PyTorch are pickles, and none of ours
            check_unpacked(members, len(archive))
        checkpoint = torch.load(io.BytesIO(archive), map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError, pickle.UnpicklingError,
            zipfile.BadZipFile):
        raise UserError(f"{path} is truncated or not a checkpoint of 04_train.py") from None
    if not isinstance(checkpoint, dict) or any(key not in checkpoint for key in REQUIRED):
        raise UserError(f"{path} is not a checkpoint of 04_train.py")
    if checkpoint["units"] != UNITS:
        raise UserError(f"{path} is in units '{checkpoint['units']}', md-kstep uses '{UNITS}'")
    _check_facts(checkpoint, path)
    if not has_checksum:
        _say_unsealed(path)
    return checkpoint


def load_last_whole(path: str | Path, device: str = "cpu") -> dict:
    """`load`, or where that file is damaged, said aloud, the one before it (`files.previous_of`)."""
    try:
        return load(path, device)
    except UserError as error:
        if not previous_of(path).is_file():
            raise
        log.warning("%s; going on from the one before it", error)
        return load(previous_of(path), device)


@cache
def _say_unsealed(path: Path) -> None:
    """Once for each file, which a run reads several times."""
    log.warning("%s holds no checksum, as those of earlier versions: whether it is damaged cannot be told", path)


def _check_facts(checkpoint: dict, path) -> None:
    """Types and values of what runs rely on, and weights that are numbers."""
    if not isinstance(checkpoint["config"], dict) or not isinstance(checkpoint["state_dict"], dict):
        raise UserError(f"{path} is not a checkpoint of 04_train.py")
    checkpoint["config"].pop("pair_features", None)  # a key of the first checkpoints that never had a choice
    checkpoint["config"] = config_of(checkpoint, path).model_dump()
    whole = [checkpoint["k_steps"], *(checkpoint["spans"] if isinstance(checkpoint["spans"], list) else [None])]
    if not all(isinstance(k, int) and k >= 1 for k in whole):
        raise UserError(f"{path}: k_steps and spans must be whole numbers >= 1; train again")
    if not isinstance(checkpoint["dt_fs"], float) or not 0 < checkpoint["dt_fs"] < float("inf"):
        raise UserError(f"{path}: dt_fs = {checkpoint['dt_fs']!r} is not a number above 0; train again")
    for name, value in checkpoint["state_dict"].items():
        if not torch.isfinite(value).all():
            raise UserError(f"{path}: its weights hold NaN or infinity ('{name}'); train again")


def config_of(checkpoint: dict, path: str | Path = "checkpoint") -> ModelConfig:
    """The config of a checkpoint's network, which says its heads and its class."""
    return validate(ModelConfig, dict(checkpoint["config"]), f"{path}, model config")


def heads_of(checkpoint: dict) -> set[str]:
    """Names of the heads that a checkpoint's network has: energy, jump."""
    return {name for name, there in config_of(checkpoint).heads if there}


def model_from(checkpoint: dict, path: str | Path = "checkpoint", device: str = "cpu") -> torch.nn.Module:
    """The trained network of a checkpoint, in eval mode."""
    model = build_model(config_of(checkpoint, path), molecule_arrays(checkpoint["molecule"]))
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError:
        raise UserError(f"{path}: its weights do not fit its model config; train again") from None
    return model.to(device).eval()


def molecule_arrays(molecule: dict | None) -> dict | None:
    """The checkpoint's molecule as numpy arrays."""
    if molecule is None:
        return None
    return {"numbers": np.asarray(molecule["numbers"], dtype=np.int64),
            "masses": np.asarray(molecule["masses"], dtype=np.float64),
            "bonds": np.asarray(molecule["bonds"], dtype=np.int64).reshape(-1, 2)}


def check_config(checkpoint: dict, path, model_config: str | Path) -> None:
    """Refuse a checkpoint whose network is not the one of the model YAML."""
    wanted = load_config(ModelConfig, model_config).model_dump()
    own = config_of(checkpoint, path).model_dump()
    different = [key for key in wanted if wanted[key] != own[key]]
    if different:
        raise UserError(f"{path} was not built from {model_config}: {', '.join(different)} differ")


def check_fits(checkpoint: dict, path, numbers, bonds, *, dt_fs: float | None = None,
               k_steps: int | None = None, method: str | None = None) -> None:
    """Refuse a checkpoint for other elements, another molecule or method, another k or dt."""
    unknown = sorted(set(map(int, numbers)) - set(map(int, checkpoint["elements"])))
    if unknown:
        raise UserError(f"{path} was trained on elements {sorted(map(int, checkpoint['elements']))}, "
                        f"the molecule also holds {unknown}")
    molecule = molecule_arrays(checkpoint["molecule"])
    if molecule is not None and config_of(checkpoint, path).network_class.bound_to_one_molecule:
        given = {tuple(sorted(map(int, b))) for b in np.asarray(bonds).reshape(-1, 2)}
        own = {tuple(sorted(map(int, b))) for b in molecule["bonds"]}
        if not np.array_equal(molecule["numbers"], numbers) or given != own:
            raise UserError(f"{path} was trained on another molecule or atom order, and {checkpoint['config']['arch']} "
                            "knows only that one")
    if method is not None and checkpoint["method"] and method != checkpoint["method"]:
        raise UserError(f"{path} was trained on {checkpoint['method']}, this run uses {method}")
    if dt_fs is not None and abs(dt_fs - checkpoint["dt_fs"]) > 1e-9:
        raise UserError(f"{path} was trained at dt {checkpoint['dt_fs']} fs, this run uses {dt_fs} fs")
    if k_steps is not None and k_steps not in checkpoint["spans"]:
        spans = ", ".join(str(k) for k in checkpoint["spans"])
        raise UserError(f"{path} was trained on jumps of {spans} timesteps, not on k = {k_steps}")
