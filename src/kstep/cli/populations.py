"""The conformers of a run: populations, free energies and entropy, each with its error.

    kstep populations ethanol.npz
    kstep populations run1.npz run2.npz --temperature 350 --relax --out populations.json
"""

from __future__ import annotations

import logging
from pathlib import Path

from kstep.cli.flags import add_common_arguments, add_overwrite_of_result, positive_float, share
from kstep.errors import UserError
from kstep.outputs import check_no_input, json_with, settle_result

log = logging.getLogger("kstep")


def add_flags(parser, numbered: str | None = None) -> None:
    """Flags of `kstep populations`."""
    from kstep.analysis.measure.populations import SMALLEST

    add_runs(parser)
    parser.add_argument("--smallest", type=share, default=SMALLEST,
                        help="population of a conformer that is listed; rarer ones are summed up")
    parser.add_argument("--relax", action="store_true",
                        help="relax a representative of each on the run's true physics: true calls, which are counted")
    parser.add_argument("--config", help="--relax: YAML of that physics, as it was given to the run (default: "
                        "configs/qm.yaml)")
    parser.add_argument("--out", type=Path, help="JSON file to write as well")
    add_overwrite_of_result(parser)
    add_common_arguments(parser, seed=False)


def add_runs(parser) -> None:
    """The runs that something is averaged over, and the temperature."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="run", help="file of any run (.npz); several are joined")
    parser.add_argument("--temperature", type=positive_float, dest="temperature_K", metavar="K",
                        help="where other than the runs' own: frames are reweighted, rungs of --tempering by MBAR")


def check_out(args, is_ours, **inputs) -> None:
    """UserError where --out is one of the runs or other inputs, or nothing that this command wrote before."""
    if args.out is not None:
        for path in args.runs:
            check_no_input([args.out], {"the run": path})
        settle_result(args.out, is_ours, inputs, overwrite=args.overwrite)


def run(args) -> None:
    """Print the table, write the JSON file."""
    from kstep.config import find_config
    from kstep.files import write_json_atomic
    from kstep.front import populations

    if args.config is not None and not args.relax:
        raise UserError("--config is the physics of --relax, which is not asked for; leave one out or add the other")
    inputs = {} if args.config is None else {"--config": find_config(args.config)}
    check_out(args, json_with("conformers", "never_crossed"), **inputs)
    found = populations(args.runs, temperature_K=args.temperature_K, smallest=args.smallest,
                        relax=(args.config or "configs/qm.yaml") if args.relax else None)
    print(found)
    if args.out is not None:
        write_json_atomic(args.out, found.as_dict())
        log.info("populations -> %s", args.out)
