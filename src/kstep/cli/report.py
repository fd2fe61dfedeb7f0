"""One run as a page: conformers in 3D, populations, torsions, convergence, cost; plain MD beside it where there is any.

    kstep report propanol.npz
    kstep report propanol.npz --baseline data/qm/propanol/trajectory.npz --out propanol.html

The page is one HTML file that needs no network.  It judges nothing by itself: without --baseline it says what the run
holds, and whether its chains agree.
"""

from __future__ import annotations

import logging
from pathlib import Path

from kstep.cli.flags import add_common_arguments, add_overwrite_of_result

log = logging.getLogger("kstep")


def add_flags(parser, numbered: str | None = None) -> None:
    """Flags of `kstep report`."""
    parser.add_argument("trajectory", type=Path, help="file of any run (.npz)")
    parser.add_argument("--baseline", type=Path, help="plain MD of the same molecule and method to stand beside it: a "
                        "file, or a folder of them")
    parser.add_argument("--out", type=Path, help="HTML file to write (default: <run>_report.html beside the run)")
    add_overwrite_of_result(parser)
    add_common_arguments(parser)


def run(args) -> None:
    """Write the page, and say the answer in one line."""
    from kstep.analysis.show.report import report_path, write_report
    from kstep.analysis.show.report.sections import answer

    found = write_report(args.trajectory, args.out, baseline=args.baseline, seed=args.seed, overwrite=args.overwrite)
    for problem in found.problems:
        log.warning("%s", problem)
    log.info("%s -> %s", answer(found)["words"], args.out or report_path(args.trajectory))
