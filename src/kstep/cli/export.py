"""A trajectory for other programs, in the format of the ending: extxyz, xyz, traj, pdb, dcd, xtc.

    kstep export ethanol.npz ethanol.extxyz
"""

from __future__ import annotations

import logging
from pathlib import Path

from kstep.cli.flags import add_common_arguments, add_overwrite

log = logging.getLogger("kstep")


def add_flags(parser, numbered: str | None = None) -> None:
    """Flags of `kstep export`."""
    from kstep.analysis.show.formats import FORMATS

    parser.add_argument("trajectory", type=Path, help="file of any run (.npz)")
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument("--format", choices=list(FORMATS), help="(default: the extension of the file to write)")
    parser.add_argument("--all", action="store_true", help="equilibration and hot frames too (default: production)")
    parser.add_argument("--alike", action="store_true",
                        help="production frames drawn by weight, for formats that hold no weights")
    add_overwrite(parser)
    add_common_arguments(parser, seed=False)


def run(args) -> None:
    """Write the frames, and say how many."""
    from kstep.front import export
    from kstep.result import Result

    result = Result(args.trajectory, whole=args.all and not args.alike, by_weight=args.alike)
    log.info("%d frames -> %s", len(result), export(result, args.out, format=args.format, overwrite=args.overwrite))
