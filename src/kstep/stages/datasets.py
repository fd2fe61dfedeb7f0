"""Trajectories cut into k-step windows, and split into what trains, validates and tests."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from kstep.errors import UserError
from kstep.files import check_writable, write_json_atomic
from kstep.provenance import provenance
from kstep.schemas import save_dataset
from kstep.training.dataset import build_dataset, find_trajectories
from kstep.training.splits import make_splits, select
from kstep.training.windows import N_BLOCKS

log = logging.getLogger("kstep")


@dataclass(frozen=True)
class DatasetSettings:
    """md_root: folder of <name>/trajectory.npz; ks: window lengths in timesteps, one file each.

    molecules: only these (empty: all found); stride: timesteps between window starts (None: k); split_by: auto,
    molecule or time; rotations: copies of each window, rotated.
    """

    md_root: Path
    out_root: Path
    splits_dir: Path
    ks: tuple[int, ...] = (4, 8, 12)
    molecules: tuple[str, ...] = ()
    stride: int | None = None
    max_samples_per_molecule: int = 10_000
    train_fraction: float = 0.8
    validation_fraction: float = 0.1
    split_by: str = "auto"
    rotations: int = 0
    seed: int = 0


@dataclass(frozen=True)
class MadeDataset:
    """A dataset file: its windows, their jump (fs) and lengths (timesteps), the size of each split, its true calls."""

    path: Path
    windows: int
    jump_fs: float
    lengths: tuple[int, ...]
    splits: dict[str, int]
    true_calls: int


def make_datasets(settings: DatasetSettings) -> list[MadeDataset]:
    """Write <out_root>/dataset_k{k}.npz for every k, and train.json, val.json and test.json."""
    paths = find_trajectories(settings.md_root, list(settings.molecules) or None)
    splits = make_splits(list(paths), N_BLOCKS, train_frac=settings.train_fraction,
                         val_frac=settings.validation_fraction, by=settings.split_by, seed=settings.seed)
    outs = {k: settings.out_root / f"dataset_k{k}.npz" for k in settings.ks}
    for out in outs.values():
        check_writable(out)
    check_writable(settings.splits_dir, folder=True)
    made = []
    for k, out in outs.items():
        arrays, metadata = build_dataset(paths, k, stride=settings.stride, rotations=settings.rotations,
                                         seed=settings.seed, max_samples=settings.max_samples_per_molecule)
        counts = {part: len(select(arrays, metadata, split)) for part, split in splits.items()}
        for part, n in counts.items():
            if n == 0 and part != "test":
                raise UserError(f"the {part} split of {out} is empty; record a longer trajectory or change "
                                "--train-frac and --val-frac")
        save_dataset(out, arrays, {**metadata, **provenance()})
        for name, reasons in metadata["dropped"].items():
            for reason, n in reasons.items():
                log.info("k=%d %s: dropped %d %s", k, name, n, reason)
        lengths = tuple(sorted(set(arrays["k_steps"].tolist()), reverse=True))
        made.append(MadeDataset(out, len(arrays["frame"]), metadata["jump_fs"], lengths, counts,
                                metadata["true_calls"]))
    for part, split in splits.items():
        write_json_atomic(settings.splits_dir / f"{part}.json", split)
    return made
