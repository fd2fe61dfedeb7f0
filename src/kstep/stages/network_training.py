"""A network trained on a dataset of windows: best.pt, last.pt, metrics.jsonl and training.json in one folder."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch

from kstep.errors import UserError
from kstep.files import Claim, check_writable, is_kept, previous_of, read_json, sha256, write_json_atomic
from kstep.fingerprint import as_written, changes, check_same, digest
from kstep.learning.teacher_labels import labels_of_teacher
from kstep.models import build_model, checkpoint as checkpoints
from kstep.models.model_config import ModelConfig
from kstep.outputs import check_no_input, check_one_of, set_aside_within
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
RECORD = "training.json"  # of a finished training
LAST = "last.pt"
KEPT = ("best.pt", LAST, previous_of(LAST).name, RECORD)
MADE_AGAIN = ("distilled.npz", "metrics.jsonl")
# how long a training is, and what it says meanwhile: no part of what a resumed one must share
LENGTH = {"max_epochs", "patience", "max_minutes"}
NEWS = {"threads", "log_interval_steps", "checkpoint_interval_steps", "wandb", "tensorboard"}
BEGIN_ANEW = "--overwrite begins anew, and keeps what is there in another folder"

log = logging.getLogger("kstep")


@dataclass(frozen=True)
class TrainingSettings:
    """splits: files that name the windows to train and to validate on; pretrained: checkpoint to start from;
    teacher: energy network to learn from without any true call; frozen: parameters kept as they are, by the first
    letters of their names or as a number of rounds of messages; max_steps: of the optimiser; overwrite: begin anew, and
    move what is in out_dir to another folder.
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
    overwrite: bool = False

    def going_on(self) -> Self:
        """The same training, which goes on with what an interrupted one left."""
        return replace(self, resume=is_kept(self.out_dir / LAST))


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
    """Train on `device` as one process of `group`; the first of them writes the files.

    What is in out_dir is never replaced unasked: a finished training of the same settings is the result.
    """
    s = settings
    check_one_of(s.resume, s.overwrite)
    losses.check_weights(s.config, s.model_config.heads)
    arrays, metadata = load_dataset(s.dataset)
    check_dynamics(metadata, s.model_config.heads, s.dataset)
    train_windows, val_windows = _split(s, arrays, metadata)
    for name in ("best.pt", "last.pt"):
        check_writable(s.out_dir / name)
    facts = facts_of(arrays, metadata, train_windows, s.dataset, s.model_config)
    fingerprint = _fingerprint(s, facts, train_windows, val_windows)
    with group.first_alone():
        finished = _finished(s, fingerprint)
    if finished is not None:
        return finished
    with Claim(s.out_dir, s.out_dir) if group.is_first else nullcontext():
        return _train(s, group, device, arrays, metadata, train_windows, val_windows,
                      {**facts, "fingerprint": fingerprint})


def _train(s: TrainingSettings, group: Group, device: str, arrays, metadata, train_windows, val_windows,
           facts: dict) -> Trained:
    if s.teacher:
        teacher = checkpoints.load(s.teacher)
        chosen = np.concatenate([train_windows, val_windows])
        molecule = distill.check_teacher(teacher, s.teacher, s.model_config, arrays, chosen)
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
        write_json_atomic(s.out_dir / RECORD, {
            "fingerprint": facts["fingerprint"], "length": _length(s),
            "best": outcome.best, "reason": outcome.reason, "steps": outcome.steps, "epochs": outcome.epochs,
            "wall_s": outcome.wall_s, "device": device, "parameters": size,
            "true_calls_training": facts["true_calls_training"], "teacher": errors})
    return Trained(outcome.best, errors, outcome.steps, outcome.wall_s, outcome.reason, outcome.interrupted)


def _fingerprint(s: TrainingSettings, facts: dict, train_windows, val_windows) -> dict:
    """What a resumed training must share: all that decides which weights come out of so many steps."""
    splits = {"train": train_windows, "val": val_windows}
    return as_written({
        "train": s.config.model_dump(exclude=LENGTH | NEWS), "model": s.model_config.model_dump(), "seed": s.seed,
        "data_sha256": facts["data_sha256"], "frozen": list(s.frozen),
        "splits": {part: digest(np.asarray(windows, dtype="i8").tobytes()) for part, windows in splits.items()},
        "pretrained": _sha256(s.pretrained), "teacher": _sha256(s.teacher)})


def _sha256(checkpoint: Path | None) -> str | None:
    if checkpoint is not None and not checkpoint.is_file():
        raise UserError(f"checkpoint {checkpoint} does not exist; train one with 04_train.py")
    return None if checkpoint is None else sha256(checkpoint)


def _length(s: TrainingSettings) -> dict:
    return as_written({**s.config.model_dump(include=LENGTH), "max_steps": s.max_steps})


def _finished(s: TrainingSettings, fingerprint: dict) -> Trained | None:
    """The training that is in out_dir, where it is the one that is asked for; what is there may be set aside first.

    UserError where something else is, which `s` neither resumes nor may set aside, or that `s` is to read.
    """
    written = [*KEPT, *sorted(path.name for path in s.out_dir.glob("step_*.pt")), *MADE_AGAIN]
    check_no_input([s.out_dir / name for name in written], {
        "--pretrained": s.pretrained, "--teacher": s.teacher, "the dataset": s.dataset})
    if s.overwrite:
        set_aside_within(s.out_dir, written)
    there = [name for name in written if name not in MADE_AGAIN and (s.out_dir / name).exists()]
    if not there or s.resume:
        return None
    record = read_json(s.out_dir / RECORD) if RECORD in there else {}
    if not isinstance(record, dict) or "fingerprint" not in record:
        words = f"; --resume goes on with it, {BEGIN_ANEW}" if is_kept(s.out_dir / LAST) else (
            f" of a training that left no {LAST} to go on from; {BEGIN_ANEW}")
        raise UserError(f"{s.out_dir} holds {there[0]}{words}")
    check_same(f"{s.out_dir} holds a network trained", record["fingerprint"], fingerprint,
               f"use another --out-dir, or {BEGIN_ANEW}")
    if changes({"length": record.get("length")}, {"length": _length(s)}):
        raise UserError(f"{s.out_dir} holds a finished training of another length; --resume goes on with it, "
                        f"{BEGIN_ANEW}")
    log.info("%s holds this very training, finished; --resume with more epochs or steps goes on with it, %s", s.out_dir,
             BEGIN_ANEW)
    return Trained(record["best"], record["teacher"], record["steps"], record["wall_s"], record["reason"], False)


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
    """What a resumed training goes on from (else None: where nothing is, it begins), and the facts of the network.

    Pretrained weights go into `model`.
    """
    path = s.out_dir / LAST
    if s.resume and not is_kept(path):
        if left := [name for name in KEPT if (s.out_dir / name).exists()]:
            raise UserError(f"{s.out_dir} holds {left[0]} of a training that left no {LAST} to go on from; "
                            f"{BEGIN_ANEW}")
    elif s.resume:
        resume = checkpoints.load_last_whole(path, device)
        check_same_data(resume, facts, path, exactly=True)
        if resume["config"] != s.model_config.model_dump():
            raise UserError(f"{path} was trained with another model config; use another --out-dir, or {BEGIN_ANEW}")
        asked = {key: value for key, value in facts["fingerprint"].items() if key != "pretrained" or s.pretrained}
        check_same(f"{path} was trained", resume.get("fingerprint", {}), asked, f"use the same ones, or {BEGIN_ANEW}")
        facts = facts | {"fingerprint": facts["fingerprint"] | {
            "pretrained": resume.get("fingerprint", {}).get("pretrained")}}
        return resume, facts | {key: resume[key] for key in ("pretrained", "true_calls_training") if key in resume}
    if s.pretrained:
        checkpoint = checkpoints.load(s.pretrained, device)
        check_same_data(checkpoint, facts, s.pretrained, exactly=False)
        transfer(model, checkpoint, s.pretrained, data, on_device)
        facts = facts_of_transfer(facts, checkpoint, s.pretrained)
    return None, facts
