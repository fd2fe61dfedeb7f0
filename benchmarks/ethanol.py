"""Ethanol, GFN2-xTB: the windows on which models.py and peers.py train, and equal budgets of CPU time for 04_train.py.

Training and validation: four replicas of plain MD, the last blocks of time of each for validation.  Test: two more
replicas from other seeds, which nothing is trained on or chosen by.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from kstep.files import write_json_atomic
from kstep.models import checkpoint as checkpoints
from kstep.schemas import load_dataset
from kstep.training.batches import Windows
from kstep.training.losses import Scales
from kstep.training.train_config import TrainConfig
from kstep.training.validation_error import validate
from running import ROOT, here, sh

WORK = ROOT / "outputs" / "ethanol"
DT_FS, KS, STRIDE, WINDOWS = 0.25, (8, 16, 80), 8, 4000
PARTS = (("train", 0, 4, 2.5, 0.5), ("test", 100, 2, 1.0, 0))  # first replica, replicas, ps at 300 K, ps at 450 K
MD = {"dt_fs": DT_FS, "equilibration_ps": 0.5, "redraw_interval_ps": 0.5}
SHARE = 5  # a learning rate is tried with a fifth of the budget
PROBES = (1, 30, 130)  # optimiser steps; the first loads everything, what lies between the others prices a step


def data() -> dict:
    """Paths of molecule, trajectories and splits; datasets are files dataset_k*.npz of the folders train and test."""
    smiles = WORK / "ethanol.smi"
    WORK.mkdir(parents=True, exist_ok=True)
    smiles.write_text("CCO ethanol\n")
    out = {"molecule": WORK / "raw" / "ethanol",
           "splits": [WORK / "train" / "splits" / f"{part}.json" for part in ("train", "val")]}
    sh(out["molecule"], "src/00_prep_mols.py", "--smiles", smiles, "--out-dir", WORK / "raw")
    for part, first, replicas, length, hot in PARTS:
        folder = WORK / part
        out[part] = folder / "ethanol" / "trajectory.npz"
        settings = MD | {"length_ps": length, "hot_length_ps": hot}
        sh(out[part], "src/01b_run_qm_baselines.py", "--smiles-file", smiles, "--raw", WORK / "raw", "--out", folder,
           "--first-replica", first, "--replicas", replicas, "--num-workers", 1, "--resume",
           *(word for pair in settings.items() for word in ("--set", "=".join(map(str, pair)))))
        sh(dataset(part, KS[-1]), "src/02_make_dataset.py", "--md-root", folder, "--out-root", folder, "--splits-dir",
           folder / "splits", "--ks", *KS, "--stride", STRIDE, "--max-samples-per-mol", WINDOWS, "--split-by", "time")
    return out


def dataset(part: str, k: int) -> Path:
    return WORK / part / f"dataset_k{k}.npz"


@dataclass(frozen=True)
class Training:
    """A run of 04_train.py: its folder, files, seed, and rates to choose from by the validation loss."""

    out: Path
    dataset: Path
    model_config: Path
    train_config: str
    splits: list
    lrs: tuple[float, ...]
    seed: int = 0

    def run(self, out: Path, steps: int, lr: float) -> dict:
        """training.json of `steps` steps at rate lr, and the CPU seconds it took."""
        spent = out / "cpu.json"
        cpu_s = here(spent, "src/04_train.py", "--dataset", self.dataset, "--model-config", self.model_config,
                     "--train-config", self.train_config, "--splits", *self.splits, "--max-steps", steps, "--seed",
                     self.seed, "--out-dir", out, "--set", f"lr={lr}", "--set", "max_epochs=100000", "--log-level",
                     "warning")
        if not spent.exists():
            write_json_atomic(spent, {"cpu_s": cpu_s})
        return {**json.loads((out / "training.json").read_text()), **json.loads(spent.read_text()), "lr": lr}

    def within(self, budget_s: float) -> dict:
        """Train with a budget of CPU seconds, the learning rate chosen by short runs; last.pt is what to judge."""
        _, few, many = (self.run(self.out / f"probe_{n}", n, self.lrs[0])["cpu_s"] for n in PROBES)
        price_s = (many - few) / (PROBES[2] - PROBES[1])
        tried = {lr: self.run(self.out / f"lr_{lr}", max(1, int(budget_s / SHARE / price_s)), lr) for lr in self.lrs}
        lr = min(tried, key=lambda rate: tried[rate]["best"]["val_loss"])
        return self.run(self.out / "final", max(1, int(budget_s / price_s)), lr) | {"cpu_s_per_step": price_s}


def errors(checkpoint: Path, windows: Path) -> dict:
    """Errors of a network on every window of a dataset (kstep/training/validation.py), all of them unseen."""
    arrays, metadata = load_dataset(windows)
    model = checkpoints.model_from(checkpoints.load(checkpoint), checkpoint)
    torch.set_num_threads(1)
    every = torch.arange(len(arrays["k_steps"]))
    return validate(model, Windows(arrays, metadata), every, TrainConfig(), Scales(energy=1.0, force=1.0))
