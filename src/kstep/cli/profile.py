"""Free energies along torsions, angles and distances, with error bands from independent chains: JSON, CSV and PNG.

Restraints of a run are taken out again; several files under different restraints are windows, which MBAR joins.

    kstep profile butane.npz
    kstep profile dipeptide.npz --torsion 4-6-8-14 --torsion 6-8-14-16 --map
    kstep profile butane/window_*.npz --torsion 0-1-2-3
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from kstep.cli.flags import add_common_arguments, add_overwrite_of_result, bins, of
from kstep.files import check_writable

log = logging.getLogger("kstep")


def add_flags(parser, numbered: str | None = None) -> None:
    """Flags of `kstep profile`."""
    from kstep.analysis.measure.free_energy import BINS

    parser.add_argument("runs", type=Path, nargs="+", help="file of a run (.npz), or of several of one molecule")
    add_coordinate_flags(parser)
    parser.add_argument("--map", action="store_true", dest="as_map", help="one map of the two coordinates that are "
                        "named, or of the molecule's two rotatable torsions")
    parser.add_argument("--bins", type=bins, default=BINS, help="of each coordinate")
    parser.add_argument("--out", type=Path, help="folder to write (default: <run>_profile beside the first file)")
    add_overwrite_of_result(parser)
    add_common_arguments(parser, seed=False)


def add_coordinate_flags(parser) -> None:
    """--torsion, --angle and --distance, each a Coordinate."""
    from kstep.analysis.measure.free_energy import Coordinate

    for flag, kind, example in (("torsion", "dihedral", "0-1-2-3"), ("angle", "angle", "0-1-2"),
                                ("distance", "distance", "3-7")):
        default = "; default: all rotatable ones" if flag == "torsion" else ""
        parser.add_argument(f"--{flag}", action="append", dest="coordinates", metavar=example.upper(),
                            type=of(partial(Coordinate.of_kind, kind)),
                            help=f"{flag} of these atoms, counted from 0; may be repeated{default}")


def run(args) -> None:
    """Measure, write, and say wells and barriers."""
    from kstep.analysis.profiles import profile_files

    first = args.runs[0]
    out = args.out or first.with_name(f"{first.stem}_profile")
    check_writable(out, folder=True)
    say(profile_files(args.runs, out, args.coordinates or (), as_map=args.as_map, bins=args.bins,
                      overwrite=args.overwrite), out)


def say(found, out: Path) -> None:
    """One line for each, its warnings, and where they are."""
    from kstep.analysis.show.free_energy import file_name, in_words

    for warning in dict.fromkeys(w for one in found for w in one.warnings):
        log.warning("%s", warning)
    for one in found:
        log.info("%s -> %s/%s.{json,csv,png}", in_words(one), out, file_name(one))
