"""Trajectories cut into k-step windows, and split into what trains, validates and tests."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from kstep.errors import UserError
from kstep.files import check_writable, read_json, sha256, write_json_atomic
from kstep.fingerprint import as_written, check_same
from kstep.outputs import check_no_input, set_aside
from kstep.provenance import provenance
from kstep.schemas import load_dataset, read_metadata, save_dataset
from kstep.training.dataset import build_dataset, find_trajectories
from kstep.training.splits import make_splits, select
from kstep.training.windows import N_BLOCKS

KEEP = "--overwrite makes it anew, and keeps what is there under another name"

log = logging.getLogger("kstep")


@dataclass(frozen=True)
class DatasetSettings:
    """md_root: folder of <name>/trajectory.npz; ks: window lengths in timesteps, one file each.

    molecules: only these (empty: all found); stride: timesteps between window starts (None: k); split_by: auto,
    molecule or time; rotations: copies of each window, rotated; overwrite: keep what is there under another name.
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
    overwrite: bool = False


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
    """Write <out_root>/dataset_k{k}.npz for every k, and train.json, val.json and test.json.

    What is there is never replaced unasked: a dataset of the same trajectories and settings is the result.
    """
    paths = find_trajectories(settings.md_root, list(settings.molecules) or None)
    splits = make_splits(list(paths), N_BLOCKS, train_frac=settings.train_fraction,
                         val_frac=settings.validation_fraction, by=settings.split_by, seed=settings.seed)
    outs = {k: settings.out_root / f"dataset_k{k}.npz" for k in settings.ks}
    for out in outs.values():
        check_writable(out)
    check_writable(settings.splits_dir, folder=True)
    split_files = {settings.splits_dir / f"{part}.json": split for part, split in splits.items()}
    check_no_input([*outs.values(), *split_files], {f"the trajectory of {name}": path for name, path in paths.items()})
    fingerprint = _fingerprint(settings, paths)
    finished = [k for k, out in outs.items() if _is_made(out, fingerprint, settings.overwrite)]
    for path, split in split_files.items():
        if settings.overwrite:
            set_aside(path)
        elif path.exists() and read_json(path) != as_written(split):
            raise UserError(f"{path} is there already and is another split; use another --splits-dir, or {KEEP}")
    made = []
    for k, out in outs.items():
        if k in finished:
            arrays, metadata = load_dataset(out)
        else:
            arrays, metadata = build_dataset(paths, k, stride=settings.stride, rotations=settings.rotations,
                                             seed=settings.seed, max_samples=settings.max_samples_per_molecule)
        counts = {part: len(select(arrays, metadata, split)) for part, split in splits.items()}
        for part, n in counts.items():
            if n == 0 and part != "test":
                raise UserError(f"the {part} split of {out} is empty; record a longer trajectory or change "
                                "--train-frac and --val-frac")
        if k not in finished:
            save_dataset(out, arrays, {**metadata, "fingerprint": fingerprint, **provenance()})
        for name, reasons in metadata["dropped"].items():
            for reason, n in reasons.items():
                log.info("k=%d %s: dropped %d %s", k, name, n, reason)
        lengths = tuple(sorted(set(arrays["k_steps"].tolist()), reverse=True))
        made.append(MadeDataset(out, len(arrays["frame"]), metadata["jump_fs"], lengths, counts,
                                metadata["true_calls"]))
    for path, split in split_files.items():
        write_json_atomic(path, split)
    return made


def _fingerprint(settings: DatasetSettings, paths: dict[str, Path]) -> dict:
    """All that decides what is in a dataset of k, besides k."""
    return as_written({
        "trajectories": {name: sha256(path) for name, path in paths.items()}, "stride": settings.stride,
        "max_samples_per_molecule": settings.max_samples_per_molecule, "rotations": settings.rotations,
        "seed": settings.seed})


def _is_made(path: Path, fingerprint: dict, overwrite: bool) -> bool:
    """Whether the dataset is there; what is there is set aside with `overwrite`, UserError where it is another one."""
    if overwrite:
        set_aside(path)
    if not path.exists():
        return False
    written = read_metadata(path).get("fingerprint", {})
    check_same(f"{path} was made", written, fingerprint, f"use another --out-root, or {KEEP}")
    log.info("%s is there already; %s", path, KEEP)
    return True
