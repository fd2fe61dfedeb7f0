"""The training loop: AdamW under warm-up and cosine, averaged weights, best.pt and last.pt.

The order of the windows depends on (seed, epoch) alone, so a run that was stopped anywhere and
resumed takes the very steps it would have taken: on a CPU the weights come out bit-equal.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from kstep.errors import UserError
from kstep.models import checkpoint as checkpoints
from kstep.training import resume as resuming
from kstep.training.average import Average
from kstep.training.batches import Windows
from kstep.training.config import TrainConfig
from kstep.training.objective import Objective
from kstep.training.optimiser import adamw, learning_rate
from kstep.training.reporting import StopRequest, metric_writers
from kstep.training.start import packed
from kstep.training.steps import drawn, steps_per_epoch
from kstep.training.validation import validate

SAVE_INTERVAL_S = 20.0  # between writes of last.pt


@dataclass
class Outcome:
    """best: validation metrics of best.pt; reason: why training ended; steps, epochs, wall_s."""

    best: dict
    reason: str
    steps: int
    epochs: int
    wall_s: float
    interrupted: bool = False


def train(model: torch.nn.Module, data: Windows, train_windows, val_windows, config: TrainConfig, scales, *,
          out_dir: str | Path, facts: dict, seed: int = 0, max_steps: int | None = None,
          resume: dict | None = None, progress: bool = True, should_stop=None) -> Outcome:
    """Train until the schedule ends, patience or time runs out, or someone presses Ctrl-C.

    facts: what the checkpoint says besides weights (see kstep/models/checkpoint.py); max_steps
    shortens the schedule; resume: last.pt as loaded; should_stop(step): another reason to stop.
    Writes best.pt, last.pt and metrics.jsonl to out_dir.
    """
    return Trainer(model, data, train_windows, val_windows, config, scales, out_dir=Path(out_dir), facts=facts,
                   seed=seed, max_steps=max_steps, resume=resume).run(progress=progress, should_stop=should_stop)


class Trainer:
    """A network, what it learns from, and how far it has come; see `train`."""

    def __init__(self, model, data, train_windows, val_windows, config, scales, *, out_dir, facts, seed, max_steps,
                 resume):
        self.model, self.data, self.config, self.scales = model, data, config, scales
        self.out_dir, self.facts, self.seed = out_dir, facts, seed
        out_dir.mkdir(parents=True, exist_ok=True)
        device = torch.device(data.device)
        if device.type == "cpu":
            torch.set_num_threads(config.threads or len(os.sched_getaffinity(0)))
        self.autocast = (torch.autocast("cuda", dtype=torch.bfloat16) if config.amp and device.type == "cuda"
                         else nullcontext())
        self.train_windows = torch.as_tensor(train_windows, device=device)
        self.val_windows = evenly(torch.as_tensor(val_windows, device=device), config.validation_samples)
        self.total = config.max_epochs * steps_per_epoch(len(train_windows), config)
        self.total = min(self.total, max_steps) if max_steps else self.total
        # Only a network bound to labelled atoms has anything to learn from relabelled ones.
        self.exchange = config.exchange_hydrogens and model.config.arch == "pair_mlp"

        self.objective = Objective(model, data, config, scales)
        self.weights = [w for w in model.parameters() if w.requires_grad]
        self.optimiser = adamw(self.weights, lr=config.lr, weight_decay=config.weight_decay, beta2=config.beta2)
        self.average = Average(self.weights, config.ema_decay)
        self.at = resuming.Progress()
        self.metrics_file = out_dir / "metrics.jsonl"
        if resume is None:
            self.metrics_file.unlink(missing_ok=True)
        else:
            self.at = resuming.restore(resume, model, self.optimiser, self.weights, self.average)
        self.writers = metric_writers(config, out_dir)
        self.began = self.saved = time.monotonic()
        self.before_s = self.at.elapsed_s

    def run(self, *, progress: bool, should_stop=None) -> Outcome:
        """The loop: epochs of optimiser steps, a validation after each."""
        reason = None
        with StopRequest() as stop, self.bar(progress) as bar:
            while self.at.step < self.total and not reason:
                epoch = drawn(self.data, self.train_windows, self.seed, self.at.epoch, self.config, self.exchange)
                while self.at.taken < len(epoch) and self.at.step < self.total and not reason:
                    self.take(epoch.pieces(self.at.taken))
                    bar.update()
                    reason = self.why_stop(stop, should_stop)
                    if time.monotonic() - self.saved > SAVE_INTERVAL_S:
                        self.save_last()
                if self.at.taken >= len(epoch) or self.at.step >= self.total:
                    bar.set_postfix(headline(self.end_epoch()), refresh=False)
                    if self.config.patience and self.at.waited >= self.config.patience:
                        reason = reason or f"no better validation for {self.config.patience} epochs"
            self.save_last()
            if self.at.best is None:
                # Stopped within the first epoch: an unvalidated network beats none, and says so.
                self.save("best.pt", {"metrics": {}})
        self.model.eval()
        return Outcome(best=self.at.best or {}, reason=reason or "the schedule is through", steps=self.at.step,
                       epochs=self.at.epoch, wall_s=self.wall_s(), interrupted=reason == "interrupted")

    def take(self, pieces) -> None:
        """One optimiser step."""
        self.model.train()
        for entry in self.optimiser.param_groups:
            entry["lr"] = learning_rate(self.at.step, self.total, self.config.lr, self.config.warmup_ratio)
        self.optimiser.zero_grad(set_to_none=True)
        # What dropout draws depends on the step alone, as the order of the windows does.
        torch.manual_seed(int(np.random.SeedSequence([self.seed, self.at.step]).generate_state(1)[0]))
        for piece in pieces:
            with self.autocast:
                loss, terms = self.objective(piece)
            loss.backward()
            for name, value in {**terms, "loss": loss.detach()}.items():
                self.at.sums[name] += float(value)
        self.at.summed += 1
        norm = torch.nn.utils.clip_grad_norm_(self.weights, self.config.grad_clip)
        if not torch.isfinite(norm):
            raise UserError(f"the loss is not finite at step {self.at.step}; lower lr or look for "
                            "broken frames in the dataset")
        self.optimiser.step()
        self.average.update(self.at.step)
        self.at.step += 1
        self.at.taken += 1

    def why_stop(self, stop: StopRequest, should_stop) -> str | None:
        """Why training ends after this step although its schedule is not through, or None."""
        minutes = self.config.max_minutes
        if stop.asked:
            return "interrupted"
        if minutes and time.monotonic() - self.began > 60 * minutes:
            return f"max_minutes {minutes:g} is over, with {self.at.step} of {self.total} steps done"
        if should_stop and should_stop(self.at.step):
            return "stopped by the caller"
        return None

    def end_epoch(self) -> dict:
        """Validate the averaged weights, keep them where they are the best so far, write a row of the log."""
        self.model.eval()
        with self.average.applied():
            metrics = validate(self.model, self.data, self.val_windows, self.config, self.scales)
        better = self.at.best is None or metrics["val_loss"] < self.at.best["val_loss"]
        if better and math.isfinite(metrics["val_loss"]):
            self.at.best, self.at.waited = {**metrics, "epoch": self.at.epoch}, 0
            self.save("best.pt", {"metrics": metrics})
        else:
            self.at.waited += 1
        n = max(1, self.at.summed)
        row = {"epoch": self.at.epoch, "step": self.at.step, "lr": self.optimiser.param_groups[0]["lr"],
               "wall_s": round(self.wall_s(), 3),
               **{f"train_{name}": value / n for name, value in self.at.sums.items()}, **metrics}
        self.at.sums.clear()
        self.at.summed = 0
        with open(self.metrics_file, "a") as handle:
            handle.write(json.dumps(row) + "\n")
        for write in self.writers:
            write(row, self.at.step)
        self.at.epoch, self.at.taken = self.at.epoch + 1, 0
        return metrics

    def save(self, name: str, more: dict) -> None:
        """Write the averaged network and what else is given."""
        with self.average.applied():
            checkpoints.save(self.out_dir / name, {**packed(self.model, self.facts), **more})

    def save_last(self) -> None:
        self.at.elapsed_s = self.wall_s()
        self.save("last.pt", {"training": resuming.training_state(self.at, self.optimiser, self.weights, self.average)})
        self.saved = time.monotonic()

    def wall_s(self) -> float:
        """Wall time of this session and those it resumes."""
        return self.before_s + time.monotonic() - self.began

    def bar(self, progress: bool) -> tqdm:
        return tqdm(total=self.total, initial=self.at.step, unit="step", disable=not progress, dynamic_ncols=True,
                    mininterval=0.5 if sys.stderr.isatty() else 20.0)  # a log file needs no animation


def evenly(windows: torch.Tensor, most: int) -> torch.Tensor:
    """At most so many of the windows, evenly spaced: the same ones at every validation."""
    if len(windows) <= most:
        return windows
    return windows[torch.linspace(0, len(windows) - 1, most, device=windows.device).long()]


def headline(metrics: dict) -> dict:
    """What the progress bar shows of a validation."""
    shown = [key for key in ("energy_rmse_kJ_per_mol", "dx_rmse_nm") if key in metrics] or ["val_loss"]
    return {key: f"{metrics[key]:.3g}" for key in shown}
