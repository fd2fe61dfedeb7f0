"""A trajectory, or its conformers, for other programs.

    kstep export ethanol.npz ethanol.extxyz
    kstep export ethanol.npz --to sdf pdb xtc --out-dir viewer
    kstep export ethanol.npz --conformers --to sdf
"""

from __future__ import annotations

import logging
from pathlib import Path

from kstep.cli.flags import add_common_arguments, add_overwrite
from kstep.errors import UserError

log = logging.getLogger("kstep")


def add_flags(parser, numbered: str | None = None) -> None:
    """Flags of `kstep export`."""
    from kstep.analysis.show.formats import FORMATS

    parser.add_argument("trajectory", type=Path, help="file of any run (.npz)")
    parser.add_argument("out", type=Path, nargs="?", help="file to write, in the format of its ending")
    parser.add_argument("--format", choices=list(FORMATS), help="of the file to write (default: its ending)")
    parser.add_argument("--to", nargs="+", choices=list(FORMATS), default=[], metavar="FORMAT",
                        help=f"instead of a file to write: one file in each of these formats ({', '.join(FORMATS)})")
    parser.add_argument("--out-dir", type=Path, help="where --to puts them (default: beside the run)")
    parser.add_argument("--conformers", action="store_true",
                        help="one structure for each conformer, with its population and free energy (sdf, pdb, xyz, "
                             "extxyz)")
    parser.add_argument("--all", action="store_true", help="equilibration and hot frames too (default: production)")
    parser.add_argument("--alike", action="store_true",
                        help="production frames drawn by weight, for formats that hold no weights")
    add_overwrite(parser)
    add_common_arguments(parser, seed=False)


def run(args) -> None:
    """Write the frames, and say how many."""
    from kstep.analysis.show.formats import check_export, file_of
    from kstep.front import export
    from kstep.result import Result

    if bool(args.out) == bool(args.to):
        raise UserError("give either a file to write, such as run.sdf, or formats with --to")
    if args.out and args.out_dir:
        raise UserError("--out-dir is for --to; the file to write has its folder already")
    if args.to and args.format:
        raise UserError("--format is that of one file to write; --to names the formats of its files")
    if args.conformers and (args.all or args.alike):
        raise UserError("--conformers counts all production frames under their weights; leave out --all and --alike")
    result = Result(args.trajectory, whole=args.all and not args.alike, by_weight=args.alike)
    suffix = "_conformers" if args.conformers else ""
    files = [(args.out, args.format)] if args.out else [
        (file_of(args.trajectory, name, args.out_dir, suffix), name) for name in args.to]
    found = result.populations() if args.conformers else None
    for path, name in files if found is None else ():  # all, before the first is written
        check_export(result.chosen, path, name, overwrite=args.overwrite)
    for path, name in files:
        if found is None:
            log.info("%d frames -> %s", len(result), export(result, path, format=name, overwrite=args.overwrite))
        else:
            n = len(found.conformers)
            log.info("%d conformer%s%s -> %s", n, "" if n == 1 else "s", "" if found.converged else " (not converged)",
                     export(result, path, format=name, populations=found, overwrite=args.overwrite))
