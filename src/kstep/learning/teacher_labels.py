"""A network labels what another one learns: the frames of a dataset, and what its own dynamics visits."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from kstep.runs import network_geometries as explore

log = logging.getLogger("kstep")


def labels_of_teacher(teacher: Path, arrays: dict, metadata: dict, train_windows: np.ndarray, val_windows: np.ndarray,
                      molecule: int, config, *, seed: int, device: str) -> tuple[dict, np.ndarray, np.ndarray]:
    """The labels of checkpoint `teacher` in the place of the true ones: (arrays, train windows, val windows).

    molecule: number of the one molecule of the windows; config: the keys distill_* of a TrainConfig.
    """
    from kstep.models import checkpoint as checkpoints, execution as inner
    from kstep.models.network import Network
    from kstep.training import distillation as distill
    from kstep.training.batches import Windows

    own = Windows.molecule_of(molecule, arrays)
    frames = distill.frames_of(arrays, train_windows)

    def load(way):
        return Network.load(teacher, **own, device=device, method=metadata["method"], inner=way, rows=explore.REPLICAS)

    choice, network = inner.choose(load, np.resize(frames, (explore.REPLICAS, *frames.shape[1:])),
                                   inner.possible_ways(checkpoints.load(teacher)["config"]["arch"], device),
                                   n_steps=explore.calls_for(config.distill_frames))
    log.info("teacher %s: %s", teacher, choice)
    if config.distill_frames:
        visited = explore.explore(network, frames, own["numbers"], own["masses"], own["bonds"],
                                  config.distill_temperature_K, config.distill_frames, np.random.default_rng(seed))
        frames = np.concatenate([frames, visited])
    return distill.distilled(arrays, val_windows, molecule, network, frames, config.distill_temperature_K)
