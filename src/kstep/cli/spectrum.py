"""The infrared spectrum of dynamics, and its peaks with their errors, beside plain MD's.

From dipoles that xTB, PySCF and ASE runs keep, and velocities that follow the dynamics: plain MD, or --scheme impulse
or checked with --thermostat none.  Absolute, in km/mol, with the harmonic quantum correction.

    kstep spectrum methanol.npz --baseline data/qm/methanol/trajectory.npz --out methanol.json methanol.png
"""

from __future__ import annotations

import logging
from pathlib import Path

from kstep.cli.flags import add_common_arguments, add_overwrite_of_result, positive_float

log = logging.getLogger("kstep")


def add_flags(parser, numbered: str | None = None) -> None:
    """Flags of `kstep spectrum`."""
    parser.add_argument("trajectory", type=Path, help="run that keeps velocities (.npz)")
    parser.add_argument("--baseline", type=Path, help="plain MD of the same molecule and method (.npz)")
    parser.add_argument("--out", type=Path, nargs="+", default=[],
                        help="files to write: .json (everything), .csv (curves), .png (picture)")
    parser.add_argument("--window-ps", type=positive_float,
                        help="length of the stretches that are transformed (default: the longest, 2 ps at most); "
                             "longer resolves more and is noisier")
    add_overwrite_of_result(parser)
    add_common_arguments(parser, seed=False)


def run(args) -> None:
    """Print the peaks, and write the files."""
    from kstep.analysis.show import spectrum as show
    from kstep.front import load
    from kstep.outputs import settle_result

    for path in args.out:
        ours = show.OURS[show.check_ending(path)]
        settle_result(path, ours, {"the run": args.trajectory, "--baseline": args.baseline}, overwrite=args.overwrite)
    found = load(args.trajectory).spectrum(args.baseline, window_ps=args.window_ps)
    print(show.as_text(found))
    for path in args.out:
        log.info("-> %s", show.write(found, path))
