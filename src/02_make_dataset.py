"""Cut trajectories into k-step windows: <out-root>/dataset_k{k}.npz and train/val/test split files.

Reads <md-root>/<name>/trajectory.npz of every molecule.  k counts timesteps of the baseline.
Windows lie inside one segment of plain NVE dynamics (role train or hot) and inside one time
block, so no window crosses a velocity redraw or a split.  Besides windows of k timesteps a
dataset holds some of k/2 and k/4, which the jump scheme needs when it retries.

    python src/02_make_dataset.py --md-root data/qm --out-root data/qm --splits-dir data/splits --ks 8
"""

from __future__ import annotations

from pathlib import Path

from kstep.errors import UserError
from kstep.files import check_writable
from kstep.schemas import save_dataset
from kstep.training.dataset import build_dataset, find_trajectories
from kstep.training.splits import make_splits, select
from kstep.training.windows import N_BLOCKS
from utils import (
    add_common_arguments,
    log,
    make_parser,
    non_negative_int,
    positive_int,
    provenance,
    run_script,
    setup_logging,
    write_json_atomic,
)


def parse():
    parser = make_parser(__doc__)
    parser.add_argument("--md-root", type=Path, default=Path("data/md"), help="folder of <name>/trajectory.npz")
    parser.add_argument("--out-root", type=Path, default=Path("data/md"), help="folder for dataset_k{k}.npz")
    parser.add_argument("--splits-dir", type=Path, default=Path("data/splits"), help="folder for train/val/test.json")
    parser.add_argument("--ks", type=positive_int, nargs="+", default=[4, 8, 12], help="window lengths in timesteps, one file each")
    parser.add_argument("--molecule", action="append", dest="molecules", metavar="NAME",
                        help="only this molecule; may be repeated (default: all found)")
    parser.add_argument("--stride", type=positive_int,
                        help="timesteps between window starts (default: k, windows touch)")
    parser.add_argument("--max-samples-per-mol", type=positive_int, default=10000,
                        help="windows kept per molecule, evenly spread over its trajectory")
    parser.add_argument("--train-frac", type=float, default=0.8, help="share of the training split")
    parser.add_argument("--val-frac", type=float, default=0.1, help="share of the validation split; the rest is test")
    parser.add_argument("--split-by", choices=["auto", "molecule", "time"], default="auto",
                        help="auto: whole molecules from three on, time blocks below")
    parser.add_argument("--augment-rotations", type=non_negative_int, nargs="?", const=1, default=0, metavar="N",
                        help="add N (1 if no number is given) rotated copies of each window; the networks here are "
                             "equivariant and do not need them")
    add_common_arguments(parser)
    return parser.parse_args()


def main():
    args = parse()
    setup_logging(args.log_level)
    paths = find_trajectories(args.md_root, args.molecules)
    splits = make_splits(list(paths), N_BLOCKS, train_frac=args.train_frac, val_frac=args.val_frac,
                         by=args.split_by, seed=args.seed)
    for k in dict.fromkeys(args.ks):
        check_writable(args.out_root / f"dataset_k{k}.npz")
    check_writable(args.splits_dir, folder=True)
    for k in dict.fromkeys(args.ks):
        arrays, metadata = build_dataset(paths, k, stride=args.stride, max_samples=args.max_samples_per_mol,
                                         rotations=args.augment_rotations, seed=args.seed)
        out = args.out_root / f"dataset_k{k}.npz"
        counts = {part: len(select(arrays, metadata, split)) for part, split in splits.items()}
        for part, n in counts.items():
            if n == 0 and part != "test":
                raise UserError(f"the {part} split of {out} is empty; record a longer trajectory or change "
                                "--train-frac and --val-frac")
        save_dataset(out, arrays, {**metadata, **provenance()})
        for name, reasons in metadata["dropped"].items():
            for reason, n in reasons.items():
                log.info("k=%d %s: dropped %d %s", k, name, n, reason)
        lengths = sorted(set(arrays["k_steps"].tolist()), reverse=True)
        print(f"{out}: {len(arrays['frame'])} windows of {metadata['jump_fs']:g} fs "
              f"(lengths {', '.join(map(str, lengths))} timesteps; "
              + ", ".join(f"{part} {n}" for part, n in counts.items())
              + f"), {metadata['true_calls']} true calls")
    for part, split in splits.items():
        write_json_atomic(args.splits_dir / f"{part}.json", split)
    print(f"splits: {args.splits_dir}/train.json, val.json, test.json")


if __name__ == "__main__":
    run_script(main)
