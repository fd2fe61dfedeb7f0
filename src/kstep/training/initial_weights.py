"""Where a training starts: what its checkpoint will say of the data, and weights from an earlier one."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from kstep.errors import UserError, did_you_mean
from kstep.files import sha256
from kstep.models import checkpoint as checkpoints
from kstep.models.model_config import ModelConfig
from kstep.training.batches import Windows
from kstep.training.normalisation import fitted_references, sample


def facts_of(arrays: dict, metadata: dict, train_windows: np.ndarray, dataset: Path, model_config: ModelConfig) -> dict:
    """What a checkpoint says about its data (kstep/models/checkpoint.py lists the keys)."""
    trained = np.unique(arrays["molecule_id"][train_windows])
    molecules = [Windows.molecule_of(m, arrays) for m in trained]
    own = molecules[0] if model_config.network_class.bound_to_one_molecule else None
    temperature, _ = Counter(arrays["temperature_K"][train_windows].tolist()).most_common(1)[0]
    return {
        "k_steps": int(metadata["k_steps"]), "dt_fs": float(arrays["dt_fs"]),
        "spans": sorted(set(arrays["k_steps"][train_windows].tolist()), reverse=True),
        "units": checkpoints.UNITS,
        "elements": sorted({int(z) for m in molecules for z in m["numbers"]}),
        "molecule": own and {key: torch.as_tensor(value) for key, value in own.items()},
        "molecules": [metadata["molecules"][m]["name"] for m in trained],
        "lowest_energy_kJ_per_mol": float(arrays["epot_t"][train_windows].min()) if own else None,
        "temperature_K": float(temperature), "method": metadata["method"],
        "data_sha256": sha256(dataset), "true_calls_training": int(metadata["true_calls"]),
    }


def check_dynamics(metadata: dict, heads, path) -> None:
    """Refuse a jump head on a file of labels (geometries without velocities, and nothing that joins them), and labels
    that say too little without what came with them (`Labels.extra`)."""
    if metadata.get("extra"):
        raise UserError(f"{path} holds labels of a QM region in the field of its environment, which only the learner "
                        "of qmmm_example.py can divide; train on labels of a molecule alone")
    if heads.jump and not metadata.get("dynamics", True):
        raise UserError(f"{path} holds labels without dynamics, from which no jump can be learned; "
                        "train an energy head alone (heads: {energy: true, jump: false})")


def check_same_data(checkpoint: dict, facts: dict, path, *, exactly: bool) -> None:
    """Refuse to go on from a checkpoint of another k, dt or (to resume) another dataset."""
    for key, words in (("k_steps", "k ="), ("dt_fs", "dt_fs")):
        if checkpoint[key] != facts[key] and (exactly or "jump" in checkpoints.heads_of(checkpoint)):
            raise UserError(f"{path} was trained at {words} {checkpoint[key]}, the dataset has {words} {facts[key]}")
    if exactly and checkpoint["data_sha256"] != facts["data_sha256"]:
        raise UserError(f"{path} was trained on another dataset; train without --resume")


def transfer(model: torch.nn.Module, checkpoint: dict, path, data: Windows, windows: torch.Tensor) -> None:
    """Start from a pretrained network: its weights and its scales, with reference energies of the new method.

    Weights act on inputs in the units of their own normalisation and answer in them, so those buffers
    come along: the network starts as the very function it was.  Only its zero of energy is refitted,
    per element (pair_mlp: in all), to what the pretrained network misses of the training windows.
    (Scales of the new data instead, MMFF94 -> GFN2-xTB for ethanol, 40 and 160 windows: force errors within 4 %
    of these after training, a little above for pair_mlp, a little below for the EGNN.)
    """
    own, given = model.state_dict(), checkpoint["state_dict"]
    grows = {"tau_ps", "dx_rms", "dv_rms"}  # with the number of lengths of a jump
    fits = checkpoint["config"]["arch"] == model.config.arch and set(own) == set(given) and all(
        own[name].shape == given[name].shape for name in own if name not in grows)
    if not fits or not torch.equal(own["elements"].cpu(), given["elements"].cpu()):
        raise UserError(f"{path} holds weights of another architecture or size; use its model config")
    if model.bound_to_one_molecule and any(not torch.equal(own[name].cpu(), given[name].cpu())
                                           for name in ("numbers", "bonds")):
        raise UserError(f"{path} was trained on another molecule or atom order, and {model.config.arch} knows only "
                        "that one")
    dt_ps = own["dt_ps"].clone()
    model.load_state_dict(given)
    model.dt_ps.copy_(dt_ps)
    if model.config.heads.energy:
        refit_reference(model, data, windows)


def refit_reference(model: torch.nn.Module, data: Windows, windows: torch.Tensor) -> None:
    """Shift the zero of energy to the training windows, whatever the network says beyond it."""
    chosen = sample(windows)
    batch, targets = data.batch(chosen)
    predicted = [model.energy_and_forces(data.batch(rows)[0])[0].detach() for rows in chosen.split(256)]
    missing = targets.energy - torch.cat(predicted)
    if model.bound_to_one_molecule:
        model.energy_mean.add_(missing.mean())
        return
    elements, shift, _ = fitted_references(batch, missing)
    rows = torch.searchsorted(model.elements, torch.as_tensor(elements, device=model.elements.device))
    model.reference_energy[rows] += torch.as_tensor(shift, device=model.elements.device)


def facts_of_transfer(facts: dict, checkpoint: dict, path: Path) -> dict:
    """What the checkpoint says of the network it started from: which, and what its labels cost.

    True calls of the same method on other data are on the new network's bill too.
    """
    calls = int(checkpoint["true_calls_training"])
    same = checkpoint["method"] == facts["method"] and checkpoint["data_sha256"] != facts["data_sha256"]
    return {**facts, "true_calls_training": facts["true_calls_training"] + calls * same,
            "pretrained": {"sha256": sha256(path), "method": checkpoint["method"], "true_calls_training": calls}}


def freeze(model: torch.nn.Module, layers: list[str]) -> None:
    """Train only what --freeze-layers leaves: a number N freezes what acts before round N, words are prefixes of names.

    N counts rounds of messages (pair_mlp: hidden layers) of every head; the embeddings and input maps before
    them are frozen too, the springs of the jump head's propagator are not.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen = set()
    for word in layers:
        chosen = _before_round(int(word), names) if word.isdigit() else [n for n in names if n.startswith(word)]
        if not chosen:
            raise UserError(f"--freeze-layers {word}: no parameter starts so{did_you_mean(word, names)}")
        frozen.update(chosen)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if len(frozen) == len(names):
        raise UserError("--freeze-layers leaves nothing to train")


def _before_round(n: int, names: list[str]) -> list[str]:
    """Names of the parameters that act before round n."""
    rounds = 1 + max(int(found[1]) for name in names if (found := re.search(r"\blayers\.(\d+)\.", name)))
    if n > rounds:
        raise UserError(f"--freeze-layers {n}: the network has {rounds} rounds")
    start = re.compile(r"^(\w+_head\.)?(embedding|encoding|start|vectors)\.")
    return [name for name in names if start.match(name)
            or ((found := re.search(r"^(?:\w+_head\.)?layers\.(\d+)\.", name)) and int(found[1]) < n)]
