"""Umbrella sampling from one command: windows of a restraint along a coordinate, each a run of `kstep sample`, all with
one network, joined by MBAR into a free energy.

    kstep umbrella CCCC --restrain dihedral:0-1-2-3 --windows 13 --k 100 --learn --out butane
    kstep umbrella data/raw/salt --restrain distance:0-9 --from 0.25 --to 0.6 --windows 12 --k 5000 --learn --out salt

Writes <out>/window_00.npz ..., and <out>/<coordinate>.json, .csv and .png.
"""

from __future__ import annotations

import logging

from kstep.cli import profile, sample
from kstep.cli.flags import bins, finite_float, positive_float, positive_int
from kstep.cli.program import code_of_run, log_beside
from kstep.errors import UserError
from kstep.restraints import Restraint, parse_coordinate, parse_restraint

log = logging.getLogger("kstep")


def add_flags(parser, numbered: str | None = None) -> None:
    """Flags of `kstep umbrella`: its windows, and those of `kstep sample`."""
    from kstep.analysis.measure.free_energy import BINS

    windows = parser.add_argument_group("windows along the --restrain that has neither centre nor k")
    windows.add_argument("--windows", type=positive_int, default=13, help="how many, evenly spaced")
    windows.add_argument("--k", type=positive_float, required=True,
                         help="strength of each: kJ/mol/rad^2, of a distance kJ/mol/nm^2; neighbours must overlap")
    windows.add_argument("--from", type=finite_float, dest="start", help="first centre, deg or nm (default: all round)")
    windows.add_argument("--to", type=finite_float, dest="end", help="last centre, deg or nm")
    windows.add_argument("--bins", type=bins, default=BINS, help="of the free energy")
    sample.add_flags(parser, numbered, restraint=_window_or_restraint)


def _window_or_restraint(text: str):
    """A Restraint, or kind and atoms of the coordinate that windows go along."""
    return parse_coordinate(text) if text.count(":") == 1 else parse_restraint(text)


def run(args) -> int:
    """Run the windows, join them, and say wells and barriers."""
    from kstep.analysis.measure.free_energy import Coordinate
    from kstep.analysis.profiles import profile_files
    from kstep.stages.umbrella import UmbrellaSettings, run_windows, windows_along

    along = [one for one in args.restraints or () if not isinstance(one, Restraint)]
    if len(along) != 1:
        raise UserError("windows go along one coordinate: give one --restrain with kind and atoms alone, such as "
                        "dihedral:0-1-2-3")
    (kind, atoms), = along
    args.restraints = [one for one in args.restraints if isinstance(one, Restraint)] or None
    windows = windows_along(kind, atoms, args.windows, args.k, args.start, args.end)
    sampling = sample.load(args)
    with log_beside(args.out / "umbrella"):
        paths, records = run_windows(UmbrellaSettings(sampling=sampling, windows=windows))
        profile.say(profile_files(paths, args.out, [Coordinate(kind, atoms)], bins=args.bins,
                                  overwrite=args.overwrite), args.out)
    return max(map(code_of_run, records))
