"""Where a training run is heard and seen: signals in, TensorBoard and wandb out."""

from __future__ import annotations

import signal
from pathlib import Path

from kstep.errors import UserError
from kstep.training.config import TrainConfig


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


def metric_writers(config: TrainConfig, out_dir: Path) -> list:
    """Functions (metrics, step) of the loggers the user asked for."""
    writers = []
    if config.tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("tensorboard: true needs the package: pip install -e '.[tensorboard]'") from None
        board = SummaryWriter(out_dir / "tensorboard")
        writers.append(lambda metrics, step: [board.add_scalar(k, v, step) for k, v in metrics.items()])
    if config.wandb:
        try:
            import wandb
        except ImportError:
            raise UserError("wandb: true needs the package: pip install -e '.[wandb]'") from None
        run = wandb.init(project="md-kstep", dir=str(out_dir), config=config.model_dump())
        writers.append(lambda metrics, step: run.log(metrics, step=step))
    return writers
