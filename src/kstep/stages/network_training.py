"""A network trained on a dataset of windows: best.pt, last.pt, metrics.jsonl and training.json in one folder."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kstep.errors import UserError
from kstep.files import check_writable, read_json, write_json_atomic
from kstep.learning.teacher_labels import labels_of_teacher
from kstep.models import build_model, checkpoint as checkpoints
from kstep.models.model_config import ModelConfig
from kstep.schemas import load_dataset
from kstep.training import distillation as distill, losses, normalisation as normalise
from kstep.training.batches import Windows
from kstep.training.distributed import Group
from kstep.training.initial_weights import (
    check_dynamics,
    check_same_data,
    facts_of,
    facts_of_transfer,
    freeze,
    transfer,
)
from kstep.training.splits import select
from kstep.training.train_config import TrainConfig
from kstep.training.validation_error import validate
from kstep.training.window_training import train

ALONE = Group()

log = logging.getLogger("kstep")


@dataclass(frozen=True)
class TrainingSettings:
    """splits: files that name the windows to train and to validate on; pretrained: checkpoint to start from;
    teacher: energy network to learn from without any true call; frozen: parameters kept as they are, by the first
    letters of their names or as a number of rounds of messages; max_steps: of the optimiser.
    """

    dataset: Path
    model_config: ModelConfig
    config: TrainConfig
    splits: tuple[Path, Path]
    out_dir: Path
    resume: bool = False
    pretrained: Path | None = None
    teacher: Path | None = None
    frozen: tuple[str, ...] = ()
    max_steps: int | None = None
    seed: int = 0
    progress: bool = True


@dataclass(frozen=True)
class Trained:
    """How a training ended: validation of the best weights, of a teacher on the same windows, why it stopped."""

    best: dict[str, float]
    teacher: dict[str, float]
    steps: int
    wall_s: float
    reason: str
    interrupted: bool


def train_network(settings: TrainingSettings, group: Group = ALONE, device: str = "cpu") -> Trained:
    """Train on `device` as one process of `group`; the first of them writes the files."""
    s = settings
    losses.check_weights(s.config, s.model_config.heads)
    arrays, metadata = load_dataset(s.dataset)
    check_dynamics(metadata, s.model_config.heads, s.dataset)
    train_windows, val_windows = _split(s, arrays, metadata)
    for name in ("best.pt", "last.pt"):
        check_writable(s.out_dir / name)
    facts = facts_of(arrays, metadata, train_windows, s.dataset, s.model_config)
    if s.teacher:
        teacher = checkpoints.load(s.teacher)
        chosen = np.concatenate([train_windows, val_windows])
        molecule = distill.check_teacher(teacher, s.teacher, s.model_config, arrays, chosen, s.out_dir)
        facts = distill.facts_of_student(facts, teacher, s.teacher, s.config)
        with group.first_alone():  # the others read what it has written
            arrays, train_windows, val_windows = distill.once(
                s.out_dir, facts, metadata, s.resume or not group.is_first,
                lambda: labels_of_teacher(s.teacher, arrays, metadata, train_windows, val_windows, molecule, s.config,
                                          seed=s.seed, device=device))

    torch.manual_seed(s.seed)
    model = build_model(s.model_config, Windows.molecule_of(int(arrays["molecule_id"][train_windows[0]]), arrays))
    data = Windows(arrays, metadata, device)
    model.to(device)
    on_device = torch.as_tensor(train_windows, device=device)
    normalise.fit(model, data, on_device)
    resume, facts = _initial_weights(s, model, data, on_device, facts, device)
    freeze(model, list(s.frozen))

    size = sum(p.numel() for p in model.parameters())
    log.info("%s, %d parameters; %d windows to train, %d to validate; %s", s.model_config.arch, size,
             len(train_windows), len(val_windows), device)
    outcome = train(model, data, train_windows, val_windows, s.config, normalise.scales(data, on_device),
                    out_dir=s.out_dir, facts=facts, seed=s.seed, max_steps=s.max_steps, resume=resume,
                    progress=s.progress, group=group)
    errors = {}
    if s.teacher and group.is_first:
        judged = torch.as_tensor(val_windows, device=device)
        errors = validate(checkpoints.model_from(teacher, s.teacher, device), data, judged, s.config,
                          normalise.scales(data, on_device))
    if group.is_first and not outcome.interrupted:  # quickstart.sh takes this file for a finished training
        write_json_atomic(s.out_dir / "training.json", {
            "best": outcome.best, "reason": outcome.reason, "steps": outcome.steps, "epochs": outcome.epochs,
            "wall_s": outcome.wall_s, "device": device, "parameters": size,
            "true_calls_training": facts["true_calls_training"], "teacher": errors})
    return Trained(outcome.best, errors, outcome.steps, outcome.wall_s, outcome.reason, outcome.interrupted)


def _split(s: TrainingSettings, arrays, metadata) -> tuple[np.ndarray, np.ndarray]:
    """Windows to train and to validate on, none of them in both."""
    train_windows, val_windows = (select(arrays, metadata, read_json(path), str(path)) for path in s.splits)
    if not len(train_windows) or not len(val_windows):
        raise UserError(f"a split of {s.dataset} is empty: {len(train_windows)} windows to train, "
                        f"{len(val_windows)} to validate")
    if np.intersect1d(train_windows, val_windows).size:
        raise UserError(f"{s.splits[0]} and {s.splits[1]} share windows; run 02_make_dataset.py again")
    return train_windows, val_windows


def _initial_weights(s: TrainingSettings, model, data, on_device, facts: dict, device: str) -> tuple[dict | None, dict]:
    """What a resumed training goes on from (else None), and the facts of the network.

    Pretrained weights go into `model`.
    """
    if s.resume:
        path = s.out_dir / "last.pt"
        resume = checkpoints.load(path, device)
        check_same_data(resume, facts, path, exactly=True)
        if resume["config"] != s.model_config.model_dump():
            raise UserError(f"{path} was trained with another model config; train without --resume")
        return resume, facts | {key: resume[key] for key in ("pretrained", "true_calls_training") if key in resume}
    if s.pretrained:
        checkpoint = checkpoints.load(s.pretrained, device)
        check_same_data(checkpoint, facts, s.pretrained, exactly=False)
        transfer(model, checkpoint, s.pretrained, data, on_device)
        facts = facts_of_transfer(facts, checkpoint, s.pretrained)
    return None, facts
