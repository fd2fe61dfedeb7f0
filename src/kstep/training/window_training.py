"""Train any network on windows of one or many molecules: epochs, each validated, with checkpoints and a log.

AdamW under warm-up and cosine; the averaged weights are validated and stored.

The order of the windows depends on (seed, epoch) alone, so a run that was stopped anywhere and
resumed takes the very steps it would have taken: on a CPU the weights come out bit-equal.
Several processes take each step together (distributed.py).  Self-learning fits its network to the labels
of its one molecule elsewhere, in seconds and without files: label_fit.py.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kstep.errors import UserError
from kstep.models import checkpoint as checkpoints
from kstep.processes import physical_cores
from kstep.training import losses, training_state as resuming
from kstep.training.batches import Windows
from kstep.training.distributed import ALONE, Group
from kstep.training.normalisation import sample
from kstep.training.objective import Objective
from kstep.training.optimiser import MovingAverage, adamw, descend, learning_rate
from kstep.training.step_plan import drawn, steps_per_epoch
from kstep.training.train_config import TrainConfig
from kstep.training.training_log import MetricsLog, StopRequest, peak_memory_MB, progress_bar
from kstep.training.validation_error import headline, validate

SAVE_INTERVAL_S = 20.0  # between writes of last.pt
THROUGH = "the schedule is through"
INTERRUPTED = "interrupted"


@dataclass
class TrainingResult:
    """best: validation metrics of best.pt; reason: why training ended; steps, epochs, wall_s."""

    best: dict
    reason: str
    steps: int
    epochs: int
    wall_s: float
    interrupted: bool = False


def train(model: torch.nn.Module, data: Windows, train_windows, val_windows, config: TrainConfig, scales, *,
          out_dir: str | Path, facts: dict, seed: int = 0, max_steps: int | None = None,
          resume: dict | None = None, progress: bool = True, should_stop=None, group: Group = ALONE) -> TrainingResult:
    """Train until the schedule ends, patience or time runs out, or someone presses Ctrl-C.

    facts: what the checkpoint says besides weights (see kstep/models/checkpoint.py); max_steps
    shortens the schedule; resume: last.pt as loaded; should_stop(step): another reason to stop; group:
    the processes that train together.  Writes best.pt, last.pt, step_<n>.pt and metrics.jsonl to out_dir.
    """
    return Trainer(model, data, train_windows, val_windows, config, scales, out_dir=Path(out_dir), facts=facts,
                   seed=seed, max_steps=max_steps, resume=resume, group=group).run(progress, should_stop)


class Trainer:
    """A network, what it learns from, and how far it has come; see `train`."""

    def __init__(self, model, data, train_windows, val_windows, config, scales, *, out_dir, facts, seed, max_steps,
                 resume, group):
        self.model, self.data, self.config, self.scales = model, data, config, scales
        self.out_dir, self.facts, self.seed, self.group = out_dir, facts, seed, group
        if config.batch_size < group.size:
            raise UserError(f"batch_size {config.batch_size} cannot be shared by {group.size} processes")
        out_dir.mkdir(parents=True, exist_ok=True)
        self.device = torch.device(data.device)
        if self.device.type == "cpu":
            torch.set_num_threads(config.threads or physical_cores())
        self.train_windows = torch.as_tensor(train_windows, device=self.device)
        self.val_windows = sample(torch.as_tensor(val_windows, device=self.device), config.validation_samples)
        self.total = config.max_epochs * steps_per_epoch(len(train_windows), config)
        self.total = min(self.total, max_steps) if max_steps else self.total
        # Only a network bound to labelled atoms has anything to learn from relabelled ones.
        self.exchange = config.exchange_hydrogens and model.bound_to_one_molecule

        self.loss = Objective(model, data, config, scales)
        self.learned = [w for w in self.loss.parameters() if w.requires_grad]  # uncertainties of terms among them
        self.weights = [w for w in model.parameters() if w.requires_grad]
        self.optimiser = adamw(self.learned, lr=config.lr, weight_decay=config.weight_decay, beta2=config.beta2)
        self.average = MovingAverage(self.weights, config.ema_decay)
        self.at = resuming.Progress()
        if resume is not None:
            self.at = resuming.restore(resume, model, self.optimiser, self.learned, self.average)
            if not group.is_first:
                self.at.sums.clear()  # the first process goes on with the sum over all
        self.objective = group.wrap(self.loss)
        self.log = MetricsLog(out_dir, config, fresh=resume is None, speaks=group.is_first)
        self.began = self.saved = self.lap = time.monotonic()
        self.before_s, self.lap_windows = self.at.elapsed_s, 0

    def run(self, progress: bool, should_stop=None) -> TrainingResult:
        """The loop: epochs of optimiser steps, a validation after each."""
        reason = None
        bar = progress_bar(self.total, self.at.step, progress and self.group.is_first)
        with StopRequest() as stop, self.log, bar:
            self._announce()
            if not self.at.step:  # before any network, so that whatever a kill leaves can be gone on with
                self._save_last()
            while self.at.step < self.total and not reason:
                epoch = drawn(self.data, self.train_windows, self.seed, self.at.epoch, self.config, self.exchange,
                              self.group)
                while self.at.taken < len(epoch) and self.at.step < self.total and not reason:
                    self._take(epoch.pieces(self.at.taken))
                    self.lap_windows += epoch.size(self.at.taken - 1)
                    bar.update()
                    if self.at.step % self.config.log_interval_steps == 0 or self.at.step == self.total:
                        self._report()
                    every = self.config.checkpoint_interval_steps
                    if every and self.at.step % every == 0:
                        self._save(f"step_{self.at.step}.pt", {"metrics": {}})
                    reason, save_due = self._agree(stop, should_stop)
                    if save_due:
                        self._save_last()
                if self.at.taken >= len(epoch) or self.at.step >= self.total:
                    bar.set_postfix(headline(self._end_epoch()), refresh=False)
                    if self.config.patience and self.at.waited >= self.config.patience:
                        reason = reason or f"no better validation for {self.config.patience} epochs"
            self._save_last()
            if self.at.best is None:
                # Stopped within the first epoch: an unvalidated network beats none, and says so.
                self._save("best.pt", {"metrics": {}})
            reason = reason or THROUGH
            self.log.row("end", step=self.at.step, wall_s=self._wall_s(), reason=reason)
        self.model.eval()
        return TrainingResult(best=self.at.best or {}, reason=reason, steps=self.at.step, epochs=self.at.epoch,
                       wall_s=self._wall_s(), interrupted=reason == INTERRUPTED)

    def _take(self, pieces) -> None:
        """One optimiser step."""
        self.model.train()
        self.optimiser.zero_grad(set_to_none=True)
        self._seed_dropout()
        for number, piece in enumerate(pieces, 1):
            with self.group.apart(self.objective, last=number == len(pieces)):
                with self._autocast():
                    loss, terms = self.objective(piece, self.at.step / self.total)
                (loss * self.group.size).backward()  # the exchange takes the mean of the gradients
            for name, value in {**terms, "loss": loss.detach()}.items():
                self.at.sums[name] += value.double()  # read when a row is due: a GPU need not wait for each
        rate = learning_rate(self.at.step, self.total, self.config.lr, self.config.warmup_ratio)
        descend(self.optimiser, self.learned, self.average, self.at.step, rate, self.config.grad_clip,
                way_out="lower lr or look for broken frames in the dataset")
        self.at.summed += 1
        self.at.step += 1
        self.at.taken += 1

    def _seed_dropout(self) -> None:
        """What dropout draws depends on the step alone, as the order of the windows does."""
        if getattr(self.model.config, "dropout", 0.0):
            seed = [self.seed, self.at.step] + [self.group.rank] * (not self.group.is_first)
            torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))

    def _autocast(self):
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.config.amp else nullcontext()

    def _agree(self, stop: StopRequest, should_stop) -> tuple[str | None, bool]:
        """Why training ends after this step although its schedule is not through, or None; is last.pt due?"""
        minutes, now = self.config.max_minutes, time.monotonic()
        asked = [stop.asked, bool(minutes) and now - self.began > 60 * minutes,
                 bool(should_stop) and should_stop(self.at.step), now - self.saved > SAVE_INTERVAL_S]
        *asked, save_due = self.group.most([float(value) for value in asked])
        reasons = (INTERRUPTED, f"max_minutes {minutes} is over, with {self.at.step} of {self.total} steps done",
                   "stopped by the caller")
        return next((reason for reason, wanted in zip(reasons, asked) if wanted), None), bool(save_due)

    def _end_epoch(self) -> dict:
        """Validate the averaged weights, and keep them where they are the best so far."""
        with self._off_the_clock():
            self.model.eval()
            metrics = None
            if self.group.is_first:
                with self.average.applied():
                    metrics = validate(self.model, self.data, self.val_windows, self.config, self.scales)
            metrics = self.group.told(metrics)
        best = math.isfinite(metrics["val_loss"]) and (self.at.best is None
                                                       or metrics["val_loss"] < self.at.best["val_loss"])
        self.at.waited = 0 if best else self.at.waited + 1
        self.log.row("validation", **self._place(), **metrics, best=best)
        if best:
            self.at.best = {**metrics, "epoch": self.at.epoch}
            self._save("best.pt", {"metrics": metrics})
        self.at.epoch, self.at.taken = self.at.epoch + 1, 0
        return metrics

    def _announce(self) -> None:
        self.log.row("start", time=time.time(), arch=self.model.config.arch,
                     parameters=sum(p.numel() for p in self.model.parameters()), total_steps=self.total,
                     step=self.at.step, batch_size=self.config.batch_size, train_windows=len(self.train_windows),
                     val_windows=len(self.val_windows), device=str(self.device), world_size=self.group.size)

    def _report(self) -> None:
        """The row of the steps since the last one."""
        sums, n = self._sums(), max(1, self.at.summed)
        self.log.row("train", **self._place(),
                     samples_per_s=round(self.lap_windows / max(1e-9, time.monotonic() - self.lap), 2),
                     peak_memory_MB=peak_memory_MB(self.device),
                     **{f"train_{name}": value / n for name, value in sums.items()}, **self.loss.uncertainties())
        self.at.sums.clear()
        self.at.summed, self.lap_windows, self.lap = 0, 0, time.monotonic()

    def _sums(self) -> dict[str, float]:
        """The sums of the loss and its terms, over all processes."""
        names = ["loss", *losses.AVERAGED_OVER]
        values = self.group.total([float(self.at.sums.get(name, 0.0)) for name in names])
        return {name: value for name, value in zip(names, values) if value or name in self.at.sums}

    def _place(self) -> dict:
        return {"epoch": self.at.epoch, "step": self.at.step, "total_steps": self.total,
                "lr": self.optimiser.param_groups[0]["lr"], "wall_s": self._wall_s()}

    def _save(self, name: str, more: dict) -> None:
        """Write the averaged network and what else is given."""
        if self.group.is_first:
            with self._off_the_clock(), self.average.applied():
                checkpoints.save(self.out_dir / name, {**checkpoints.packed(self.model, self.facts), **more},
                                 keep_previous="training" in more)
            self.log.row("checkpoint", step=self.at.step, wall_s=self._wall_s(), file=name)

    def _save_last(self) -> None:
        sums = self._sums()
        self.at.sums.clear()
        if self.group.is_first:
            self.at.sums.update(sums)
        self.at.elapsed_s, self.saved = self._wall_s(), time.monotonic()
        self._save("last.pt", {"training": resuming.training_state(self.at, self.optimiser, self.learned,
                                                                   self.average)})

    @contextmanager
    def _off_the_clock(self):
        """What is done inside does not count in samples per second."""
        since = time.monotonic()
        yield
        self.lap += time.monotonic() - since

    def _wall_s(self) -> float:
        """Wall time of this session and those it resumes."""
        return round(self.before_s + time.monotonic() - self.began, 3)
