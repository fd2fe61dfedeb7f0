"""Cut trajectories into k-step windows: <out-root>/dataset_k{k}.npz and train/val/test split files.

    kstep dataset --md-root data/qm --out-root data/qm --ks 8
"""

from __future__ import annotations

from pathlib import Path

from kstep.cli.flags import add_common_arguments, add_overwrite, filled, non_negative_int, positive_int


def add_flags(parser, numbered: str | None = None) -> None:
    """Flags of `kstep dataset` and of 02."""
    where = parser.add_argument_group("files")
    where.add_argument("--md-root", type=Path, default=Path("data/md"), help="folder of <name>/trajectory.npz")
    where.add_argument("--out-root", type=Path, default=Path("data/md"), help="folder for dataset_k{k}.npz")
    where.add_argument("--splits-dir", type=Path, default=Path("data/splits"), help="folder for train/val/test.json")
    where.add_argument("--molecule", action="append", dest="molecules", metavar="NAME", default=[],
                       help="only this molecule; may be repeated (default: all found)")
    add_overwrite(where)
    windows = parser.add_argument_group("windows")
    windows.add_argument("--ks", type=positive_int, nargs="+", default=[4, 8, 12],
                         help="window lengths in timesteps, one file each")
    windows.add_argument("--stride", type=positive_int,
                         help="timesteps between window starts (default: k, windows touch)")
    windows.add_argument("--max-samples-per-mol", type=positive_int, default=10000, dest="max_samples_per_molecule",
                         help="windows kept per molecule, evenly spread over its trajectory")
    windows.add_argument("--augment-rotations", type=non_negative_int, nargs="?", const=1, default=0, metavar="N",
                         dest="rotations",
                         help="add N (1 if no number is given) rotated copies of each window; the networks here are "
                              "equivariant and do not need them")
    splits = parser.add_argument_group("splits")
    splits.add_argument("--train-frac", type=float, default=0.8, dest="train_fraction",
                        help="share of the training split")
    splits.add_argument("--val-frac", type=float, default=0.1, dest="validation_fraction",
                        help="share of the validation split; the rest is test")
    splits.add_argument("--split-by", choices=["auto", "molecule", "time"], default="auto",
                        help="auto: whole molecules from three on, time blocks below")
    add_common_arguments(parser)


def run(args) -> None:
    """Make the datasets, and say what is in them."""
    from kstep.stages.datasets import DatasetSettings, make_datasets

    for made in make_datasets(filled(DatasetSettings, args, ks=tuple(dict.fromkeys(args.ks)))):
        print(f"{made.path}: {made.windows} windows of {made.jump_fs:g} fs "
              f"(lengths {', '.join(map(str, made.lengths))} timesteps; "
              + ", ".join(f"{part} {n}" for part, n in made.splits.items()) + f"), {made.true_calls} true calls")
    print(f"splits: {args.splits_dir}/train.json, val.json, test.json")
