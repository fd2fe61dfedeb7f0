"""Where a training starts: what its checkpoint will say of the data, and weights from an earlier one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch

from kstep.errors import UserError, did_you_mean
from kstep.files import sha256
from kstep.models import checkpoint as checkpoints
from kstep.training.batches import Windows


def facts_of(arrays: dict, metadata: dict, train_windows: np.ndarray, dataset: Path, arch: str) -> dict:
    """What a checkpoint says about its data (kstep/models/checkpoint.py lists the keys)."""
    trained = np.unique(arrays["molecule_id"][train_windows])
    molecules = [Windows.molecule_of(m, arrays) for m in trained]
    own = molecules[0] if arch == "pair_mlp" else None
    temperature, _ = Counter(arrays["temperature_K"][train_windows].tolist()).most_common(1)[0]
    return {
        "k_steps": int(metadata["k_steps"]), "dt_fs": float(arrays["dt_fs"]),
        "spans": sorted(set(arrays["k_steps"][train_windows].tolist()), reverse=True),
        "units": checkpoints.UNITS,
        "elements": sorted({int(z) for m in molecules for z in m["numbers"]}),
        "molecule": own and {key: torch.as_tensor(value) for key, value in own.items()},
        "molecules": [metadata["molecules"][m]["name"] for m in trained],
        "temperature_K": float(temperature), "method": metadata["method"],
        "data_sha256": sha256(dataset), "true_calls_training": int(metadata["true_calls"]),
    }


def check_dynamics(metadata: dict, heads, path) -> None:
    """Refuse a jump head on a file of labels: geometries without velocities, and nothing that joins them."""
    if heads.jump and not metadata.get("dynamics", True):
        raise UserError(f"{path} holds labels without dynamics, from which no jump can be learned; "
                        "train an energy head alone (heads: {energy: true, jump: false})")


def check_same_data(checkpoint: dict, facts: dict, path, *, exactly: bool) -> None:
    """Refuse to go on from a checkpoint of another k, dt or (to resume) another dataset."""
    for key, words in (("k_steps", "k ="), ("dt_fs", "dt_fs")):
        if checkpoint[key] != facts[key] and (exactly or checkpoint["config"]["heads"]["jump"]):
            raise UserError(f"{path} was trained at {words} {checkpoint[key]}, the dataset has {words} {facts[key]}")
    if exactly and checkpoint["data_sha256"] != facts["data_sha256"]:
        raise UserError(f"{path} was trained on another dataset; train without --resume")


def copy_weights(model: torch.nn.Module, checkpoint: dict, path) -> None:
    """Copy pretrained weights; the normalisation stays the one of the new data."""
    own = dict(model.named_parameters())
    given = {name: value for name, value in checkpoint["state_dict"].items() if name in own}
    if set(given) != set(own) or any(given[name].shape != own[name].shape for name in own):
        raise UserError(f"{path} holds weights of another architecture or size; use its model config")
    with torch.no_grad():
        for name, value in given.items():
            own[name].copy_(value)


def freeze(model: torch.nn.Module, prefixes: list[str]) -> None:
    """Train only the parameters whose names start with none of `prefixes`."""
    names = [name for name, _ in model.named_parameters()]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            raise UserError(f"--freeze-layers {prefix}: no parameter starts so{did_you_mean(prefix, names)}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(prefixes)) if prefixes else True)
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("--freeze-layers leaves nothing to train")


def packed(model, facts: dict) -> dict:
    """The checkpoint of a model: weights, buffers and facts."""
    state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    buffers = {name for name, _ in model.named_buffers()}
    return {"state_dict": state, "normalisation": {n: v for n, v in state.items() if n in buffers},
            "config": model.config.model_dump(), "elements": model.elements.tolist(), **facts}
