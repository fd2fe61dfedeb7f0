"""One more network from true calls that are paid for already: labels of the cold starts, and what they then sampled.

A cold start stops learning as soon as metropolis does not need more.  impulse and checked live off
the force alone, and the production of the cold starts holds thousands of true forces.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from kstep.errors import UserError
from kstep.schemas import load_trajectory

PASSES = 80.0  # over all labels
WEIGHT_DECAY = 0.02  # ten times the labels of a cold start need a tenth of its restraint

log = logging.getLogger("kstep")


def refit(runs: list[Path], molecule, out: Path, seed: int) -> None:
    """Fit to the labels and the accepted production frames of finished --learn runs; write checkpoint `out`.

    A rejected proposal repeats the frame before it, and its own truth is not in the file.
    """
    from kstep.learning.learn_config import LearnConfig
    from kstep.models import checkpoint as checkpoints
    from kstep.models.model_config import ModelConfig
    from kstep.training.label_fit import fit
    from kstep.training.labels import Labels

    labels, calls, cpu_s = Labels.empty(len(molecule)), 0, 0.0
    for run in runs:
        own, about = Labels.load(Path(f"{run}.learn") / "labels.npz")
        trajectory = load_trajectory(run)
        frames = trajectory.frames_of("train")
        frames = frames[trajectory.accepted[frames]]
        labels.append(own.positions, own.energies, own.forces, own.temperature_K)
        labels.append(trajectory.pos[frames], trajectory.Epot[frames], trajectory.forces[frames],
                      trajectory.metadata["temperature_K"])
        calls += about["true_calls"] + trajectory.metadata["true_calls"]
        cpu_s += (trajectory.metadata["cpu_s_training"] or 0.0) + trajectory.metadata["cpu_s"]
    if not len(labels):
        raise UserError("there is no cold start to learn more from; run the section learn")
    first = checkpoints.load(Path(f"{runs[0]}.learn") / "network.pt")
    done = fit(ModelConfig(**first["config"]), molecule, labels, LearnConfig(fit_weight_decay=WEIGHT_DECAY),
               method=first["method"], true_calls=calls,
               dt_fs=first["dt_fs"], temperature_K=first["temperature_K"], seed=seed, passes=PASSES)
    done.checkpoint["cpu_s_training"] = cpu_s + done.cpu_s
    checkpoints.save(out, done.checkpoint)
    log.info("%s: fitted to %d labels in %.0f s of CPU; %d true calls in all", out, len(labels), done.cpu_s, calls)


def cold_starts(paths: list[Path]) -> list[Path]:
    """Those of the runs that are there."""
    return [path for path in paths if path.is_file() and np.all([(Path(f"{path}.learn") / name).is_file()
                                                                 for name in ("labels.npz", "network.pt")])]
