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
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from kstep.errors import UserError
from kstep.models import checkpoint as checkpoints
from kstep.training import losses
from kstep.training.average import Average
from kstep.training.batches import Windows
from kstep.training.config import TrainConfig
from kstep.training.optimiser import adamw, learning_rate
from kstep.training.reporting import StopRequest, metric_writers
from kstep.training.start import packed
from kstep.training.validation import loss_terms, validate

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


def _epoch_order(data: Windows, windows: torch.Tensor, seed: int, epoch: int, batch_size: int, exchange: bool):
    """The batches of an epoch: window numbers, whether the energy head sees their end frames, labels."""
    rng = np.random.default_rng([seed, epoch])
    order = torch.as_tensor(rng.permutation(len(windows)), device=windows.device)
    batches = torch.split(windows[order], batch_size)
    labels = [None] * len(batches)
    if exchange:
        drawn = data.exchange_hydrogens(int(data.molecule[windows[0]]), rng, len(windows))
        labels = torch.split(torch.as_tensor(drawn, device=windows.device), batch_size)
    at_end = rng.random(len(batches)) < 0.5
    return list(zip(batches, at_end, labels))


def train(model: torch.nn.Module, data: Windows, train_windows, val_windows, config: TrainConfig, scales, *,
          out_dir: str | Path, facts: dict, seed: int = 0, max_steps: int | None = None,
          resume: dict | None = None, progress: bool = True, should_stop=None) -> Outcome:
    """Train until the schedule ends, patience or time runs out, or someone presses Ctrl-C.

    facts: what the checkpoint says besides weights (see kstep/models/checkpoint.py); max_steps
    shortens the schedule; resume: last.pt as loaded; should_stop(step): another reason to stop.
    Writes best.pt, last.pt and metrics.jsonl to out_dir.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    device = torch.device(data.device)
    if device.type == "cpu":
        torch.set_num_threads(config.threads or len(os.sched_getaffinity(0)))
    train_windows = torch.as_tensor(train_windows, device=device)
    val_windows = torch.as_tensor(val_windows, device=device)
    if len(val_windows) > config.validation_samples:
        val_windows = val_windows[torch.linspace(0, len(val_windows) - 1, config.validation_samples,
                                                 device=device).long()]
    weights = [w for w in model.parameters() if w.requires_grad]
    optimiser = adamw(weights, lr=config.lr, weight_decay=config.weight_decay, beta2=config.beta2)
    average = Average(weights, config.ema_decay)
    batches_per_epoch = math.ceil(len(train_windows) / config.batch_size)
    steps_per_epoch = math.ceil(batches_per_epoch / config.grad_accum)
    total = config.max_epochs * steps_per_epoch
    total = min(total, max_steps) if max_steps else total
    # Only a network bound to labelled atoms has anything to learn from relabelled ones.
    exchange = config.exchange_hydrogens and model.config.arch == "pair_mlp"
    autocast = (torch.autocast("cuda", dtype=torch.bfloat16) if config.amp and device.type == "cuda"
                else nullcontext())

    state = {"epoch": 0, "batch": 0, "step": 0, "best": None, "waited": 0, "elapsed_s": 0.0, "sums": {}}
    if resume is not None:
        _restore(resume, model, optimiser, average, state, weights)
    sums = defaultdict(float, state["sums"])
    started = time.monotonic() - state["elapsed_s"]
    saved_at = session_started = time.monotonic()
    writers = metric_writers(config, out_dir)
    metrics_file = out_dir / "metrics.jsonl"
    if resume is None:
        metrics_file.unlink(missing_ok=True)

    def late():
        return config.max_minutes and time.monotonic() - session_started > 60 * config.max_minutes

    def save_last():
        state["elapsed_s"], state["sums"] = time.monotonic() - started, dict(sums)
        training = {**state, "seed": seed, "total_steps": total, "optimiser": optimiser.state_dict(),
                    "weights": [w.detach().clone() for w in weights], "average": average.mean,
                    "config": config.model_dump()}
        with average.applied():
            checkpoints.save(out_dir / "last.pt", {**packed(model, facts), "training": training})

    def end_of_epoch():
        model.eval()
        with average.applied():
            metrics = validate(model, data, val_windows, config, scales)
            better = state["best"] is None or metrics["val_loss"] < state["best"]["val_loss"]
            if better and math.isfinite(metrics["val_loss"]):
                state["best"], state["waited"] = {**metrics, "epoch": state["epoch"]}, 0
                checkpoints.save(out_dir / "best.pt", {**packed(model, facts), "metrics": metrics})
            else:
                state["waited"] += 1
        model.train()
        n = max(1.0, sums.pop("batches", 1.0))
        row = {"epoch": state["epoch"], "step": state["step"], "lr": optimiser.param_groups[0]["lr"],
               "wall_s": round(time.monotonic() - started, 3),
               **{f"train_{name}": value / n for name, value in sums.items()}, **metrics}
        sums.clear()
        with open(metrics_file, "a") as handle:
            handle.write(json.dumps(row) + "\n")
        for write in writers:
            write(row, state["step"])
        return metrics

    model.train()
    reason = "the schedule is through"
    bar = tqdm(total=total, initial=state["step"], unit="step", disable=not progress, dynamic_ncols=True,
               mininterval=0.5 if sys.stderr.isatty() else 20.0)  # a log file needs no animation
    with StopRequest() as stop, bar:
        while state["step"] < total:
            batches = _epoch_order(data, train_windows, seed, state["epoch"], config.batch_size, exchange)
            while state["batch"] < len(batches) and state["step"] < total:
                group = range(state["batch"], min(state["batch"] + config.grad_accum, len(batches)))
                for entry in optimiser.param_groups:
                    entry["lr"] = learning_rate(state["step"], total, config.lr, config.warmup_ratio)
                optimiser.zero_grad(set_to_none=True)
                # What dropout draws depends on the step alone, as the order of the windows does.
                torch.manual_seed(int(np.random.SeedSequence([seed, state["step"]]).generate_state(1)[0]))
                for b in group:
                    with autocast:
                        terms = loss_terms(model, data, *batches[b], config, scales, training=True)
                        loss = losses.total(terms, config) / len(group)
                    loss.backward()
                    for name, value in terms.items():
                        sums[name] += float(value.detach())
                    sums["loss"] += float(loss.detach()) * len(group)
                    sums["batches"] += 1
                norm = torch.nn.utils.clip_grad_norm_(weights, config.grad_clip)
                if not torch.isfinite(norm):
                    raise UserError(f"the loss is not finite at step {state['step']}; lower lr or look for "
                                    "broken frames in the dataset")
                optimiser.step()
                average.update(state["step"])
                state["step"] += 1
                state["batch"] += len(group)
                bar.update()
                if stop.asked or late() or (should_stop and should_stop(state["step"])):
                    break
            if state["batch"] >= len(batches) or state["step"] >= total:
                metrics = end_of_epoch()
                state["epoch"], state["batch"] = state["epoch"] + 1, 0
                bar.set_postfix({key: f"{metrics[key]:.3g}" for key in ("energy_rmse_kJ_per_mol", "dx_rmse_nm")
                                 if key in metrics} or {"val_loss": f"{metrics['val_loss']:.3g}"}, refresh=False)
                if config.patience and state["waited"] >= config.patience:
                    reason = f"no better validation for {config.patience} epochs"
                    break
            if stop.asked:
                reason = "interrupted"
                break
            if late():
                reason = f"max_minutes {config.max_minutes:g} is over, with {state['step']} of {total} steps done"
                break
            if should_stop and should_stop(state["step"]):
                reason = "stopped by the caller"
                break
            if time.monotonic() - saved_at > SAVE_INTERVAL_S:
                save_last()
                saved_at = time.monotonic()
        save_last()
        if not (out_dir / "best.pt").exists() or state["best"] is None:
            # Stopped within the first epoch: an unvalidated network beats none, and says so.
            with average.applied():
                checkpoints.save(out_dir / "best.pt", {**packed(model, facts), "metrics": {}})
    model.eval()
    return Outcome(best=state["best"] or {}, reason=reason, steps=state["step"], epochs=state["epoch"],
                   wall_s=time.monotonic() - started, interrupted=stop.asked)


def _restore(checkpoint: dict, model, optimiser, average: Average, state: dict, weights) -> None:
    training = checkpoint.get("training")
    if not training:
        raise UserError("this checkpoint cannot be resumed: only last.pt holds the state of training")
    try:
        model.load_state_dict(checkpoint["state_dict"])
        optimiser.load_state_dict(training["optimiser"])
        with torch.no_grad():
            for weight, kept in zip(weights, training["weights"], strict=True):
                weight.copy_(kept)
    except (RuntimeError, ValueError):
        raise UserError("last.pt belongs to another model or other frozen layers; train without --resume") from None
    average.mean = [m.to(w.device).clone() for m, w in zip(training["average"], weights)]
    state.update({key: training[key] for key in state})
