"""Where a training run is heard and seen: signals in; JSON lines, TensorBoard and wandb out.

metrics.jsonl holds one object a line, each with its "kind", and is only ever appended to:

    start        time, arch, parameters, total_steps, step, batch_size, train_windows, val_windows, device, world_size
    train        epoch, step, total_steps, lr, wall_s, samples_per_s, peak_memory_MB, train_loss, train_<term>:
                 means since the last such row
    validation   epoch, step, total_steps, lr, wall_s, val_loss, errors in physical units, best
    checkpoint   step, wall_s, file
    end          step, wall_s, reason

A resumed training starts with another "start" row, whose step is above 0.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from kstep.errors import UserError
from kstep.files import naming
from kstep.processes import most_memory_MB
from kstep.training.train_config import TrainConfig

SHOWN = ("train", "validation")  # kinds of rows that TensorBoard and wandb draw


class StopRequest:
    """Set by Ctrl-C or SIGTERM: the step in progress ends, the checkpoint is written."""

    def __init__(self):
        self.asked = False

    def __enter__(self):
        self._old = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._ask)
        except ValueError:  # not the main thread: nobody sends us signals there
            pass
        return self

    def _ask(self, *_):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)


class MetricsLog:
    """metrics.jsonl of a run and the loggers the config asks for; silent where `speaks` is False.

    fresh: a new training, whose log replaces an older one.
    """

    def __init__(self, out_dir: Path, config: TrainConfig, *, fresh: bool, speaks: bool = True):
        self.path, self.speaks = out_dir / "metrics.jsonl", speaks
        self._writers, self._close = [], []
        if not speaks:
            return
        if fresh:
            self.path.unlink(missing_ok=True)
        elif self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):  # a full disk cut its last row
            with naming(self.path), open(self.path, "a") as handle:
                handle.write("\n")
        if config.tensorboard:
            self._open_tensorboard(out_dir)
        if config.wandb:
            self._open_wandb(out_dir, config)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_) -> None:
        for close in self._close:
            close()

    def row(self, kind: str, **values) -> None:
        """Append one row."""
        if not self.speaks:
            return
        with naming(self.path), open(self.path, "a") as handle:
            handle.write(json.dumps({"kind": kind, **values}) + "\n")
        if kind in SHOWN:
            numbers = {key: value for key, value in values.items() if key not in ("step", "total_steps", "best")}
            for write in self._writers:
                write(numbers, values["step"])

    def _open_tensorboard(self, out_dir: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("tensorboard: true needs the package: pip install -e '.[tensorboard]'") from None
        board = SummaryWriter(out_dir / "tensorboard")

        def write(numbers, step):
            for name, value in numbers.items():
                board.add_scalar(name, value, step)

        self._writers.append(write)
        self._close.append(board.close)

    def _open_wandb(self, out_dir: Path, config: TrainConfig) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError("wandb: true needs the package: pip install -e '.[wandb]'") from None
        run = wandb.init(project="md-kstep", dir=str(out_dir), config=config.model_dump())
        self._writers.append(lambda numbers, step: run.log(numbers, step=step))
        self._close.append(run.finish)


def peak_memory_MB(device: torch.device) -> float:
    """Largest memory so far: of PyTorch on the GPU, else of this process, in 10^6 bytes."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return round(most_memory_MB(), 1)


def progress_bar(total: int, done: int, shown: bool) -> tqdm:
    """Optimiser steps with the time left; a log file needs no animation."""
    return tqdm(total=total, initial=done, unit="step", disable=not shown, dynamic_ncols=True,
                mininterval=0.5 if sys.stderr.isatty() else 20.0)
