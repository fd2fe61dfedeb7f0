"""SMILES, or structure file -> conformers, topology and OpenMM System: what every later stage starts from.

    kstep prepare CCO --name ethanol
    kstep prepare --structure conformers.xyz
    kstep prepare data/molecules.smi --out-dir data/raw
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

from kstep.cli.flags import (
    add_common_arguments,
    add_overwrite,
    add_scheduler,
    add_structure,
    add_subject,
    filled,
    positive_int,
)
from kstep.cli.program import log_beside
from kstep.config import parse_assignments
from kstep.errors import UserError


def add_flags(parser, numbered: str | None = None) -> None:
    """Flags of `kstep prepare`, or of 00."""
    from kstep.molecules import DEFAULT
    from kstep.molecules.prepare import FORCE_FIELDS, NONE
    from kstep.stages.preparation import DEFAULT_FILE

    which = parser.add_argument_group("molecules")
    add_subject(which, "smiles", numbered, default=DEFAULT_FILE,
                help="file of lines 'SMILES name [charge=.. multiplicity=..]', or one SMILES with --name")
    which.add_argument("--name", help="the molecule's name; --smiles is then a SMILES, not a file")
    add_structure(which, temperature=False)
    which.add_argument("--molecule", action="append", dest="molecules", metavar="NAME", default=[],
                       help="prepare only this molecule of the file; may be repeated (default: all)")
    which.add_argument("--out-dir", default="data/raw", type=Path, dest="out",
                       help="folder for <name>/ and metadata.json")
    add_overwrite(which)
    how = parser.add_argument_group("structures")
    how.add_argument("--force-field", default=DEFAULT,
                     help=f"one of {', '.join(FORCE_FIELDS)} or another *.offxml / gaff-<version>; '{NONE}' "
                          "writes no system.xml, enough for QM of molecules without parameters")
    how.add_argument("--n-conformers", type=positive_int, default=20,
                     help="conformers kept per molecule at most; twice as many are embedded")
    how.add_argument("--max-attempts", type=positive_int, default=100, help="embedding attempts per conformer")
    how.add_argument("--qm-config", type=Path,
                     help="YAML of a QM method: relax conformers on it, drop what is no molecule there, and keep its "
                          "energies; runs with this method start from them as they are")
    how.add_argument("--num-workers", type=positive_int, dest="n_workers",
                     help="processes for its true calls (default: all cores)")
    add_scheduler(how)
    add_common_arguments(parser, overrides=True)


def run(args) -> int:
    """Prepare, and say what was and what could not be."""
    from kstep.forces import load_qm_config
    from kstep.stages.preparation import PreparationSettings, prepare_all

    changes = parse_assignments(args.assignments)
    if changes and args.qm_config is None:
        raise UserError("--set changes keys of --qm-config, and there is none")
    if args.scheduler is not None:
        if args.qm_config is None:
            raise UserError("--scheduler makes the true calls of --qm-config, and there is none")
        changes["scheduler"] = args.scheduler
    qm = load_qm_config(args.qm_config, changes) if args.qm_config is not None else None
    settings = filled(PreparationSettings, args, qm=qm)
    with log_beside(args.out / "preparation") if qm is not None else nullcontext():  # true calls may take long
        done, problems = prepare_all(settings)
    print(f"prepared {len(done)} of {len(done) + len(problems)} molecules ({args.force_field}) in {args.out}")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2 if problems else 0
