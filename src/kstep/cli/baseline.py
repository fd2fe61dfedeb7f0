"""Plain MD: the reference every hybrid is judged against, and the data of a network.

The config says by whom: OpenMM (configs/md.yaml), xTB (qm.yaml), PySCF (qm_pyscf.yaml), any ASE calculator
(qm_ase.yaml).  Writes <out>/<name>/trajectory.npz.

    kstep baseline CCO --name ethanol --config qm
    kstep baseline data/raw/aspirin --config md
    kstep baseline --smiles-file data/qm_molecules.smi --config qm
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

from kstep.cli.flags import (
    add_common_arguments,
    add_overwrite,
    add_restraint_flag,
    add_scheduler,
    add_solvent,
    add_structure,
    filled,
    non_negative_int,
    positive_int,
    solvent_of,
)
from kstep.cli.program import log_beside
from kstep.config import load_config, parse_assignments
from kstep.errors import UserError

log = logging.getLogger("kstep")

DEFAULTS = {None: ("configs/qm.yaml", None), "01": ("configs/md.yaml", "data/md"),  # --config, --out
            "01b": ("configs/qm.yaml", "data/qm"), "01c": ("configs/qm_pyscf.yaml", "data/qm_dft")}
OUT = {"openmm": "data/md", "pyscf": "data/qm_dft"}  # by backend; others data/qm


def add_flags(parser, numbered: str | None = None) -> None:
    """Flags of `kstep baseline`, or of 01, 01b or 01c."""
    config, out = DEFAULTS[numbered]
    which = parser.add_argument_group("molecules")
    if numbered is None:
        which.add_argument("subject", nargs="?", metavar="MOLECULE",
                           help="a SMILES, a prepared folder, or a structure file")
    which.add_argument("--name", help="name of the molecule of a SMILES (default: its formula) or of a structure file "
                                      "(default: the file's)")
    add_structure(which)
    if numbered == "01":
        which.add_argument("--molecule", dest="subject", type=Path,
                           help="prepared folder such as data/raw/aspirin, or a structure file")
    else:
        which.add_argument("--smiles-file", default=numbered and "data/qm_molecules.smi", help="lines of 'SMILES name'")
        which.add_argument("--molecule", action="append", metavar="NAME", dest="names",
                           help="run only this molecule of the file; may be repeated (default: all)")
        which.add_argument("--raw", default="data/raw", type=Path,
                           help="folder of prepared molecules; what is missing is prepared")
    run_flags = parser.add_argument_group("run")
    run_flags.add_argument("--config", default=config, help="YAML of temperature (K), dt_fs, lengths (ps), method ...")
    run_flags.add_argument("--out", default=out, type=Path, help="folder for <name>/trajectory.npz" + (
        "" if out else " (default: data/md, data/qm or data/qm_dft, by the config)"))
    run_flags.add_argument("--replicas", type=positive_int,
                           help="independent seeds per molecule (default: the config's)")
    run_flags.add_argument("--first-replica", type=non_negative_int, default=0,
                           help="number of the first replica: another number gives other seeds and conformers")
    if numbered != "01":
        add_solvent(run_flags)
        run_flags.add_argument("--num-workers", type=positive_int, dest="n_workers",
                               help="replicas run at once, one process and one thread each (default: all cores; with "
                                    "--scheduler eight times as many, which wait)")
        add_scheduler(run_flags)
    if numbered in (None, "01"):
        run_flags.add_argument("--store-forces", action=argparse.BooleanOptionalAction, default=True,
                               help="OpenMM: keep forces in the file (training needs them)")
    add_restraint_flag(run_flags)
    run_flags.add_argument("--resume", action="store_true",
                           help="continue unfinished molecules from their last checkpoint (finished ones are kept)")
    add_overwrite(run_flags)
    add_common_arguments(parser, overrides=True)


def load(args, numbered: str | None):
    """The config of the run."""
    from kstep.forces import load_qm_config
    from kstep.forces.openmm import MDConfig
    from kstep.stages.physics import load_physics

    changes = {**parse_assignments(args.assignments), **solvent_of(args)}
    for key in ("replicas", "temperature_K", "restraints", "scheduler"):
        if (value := getattr(args, key, None)) is not None:  # a flag left out unsets no --set
            changes[key] = value
    if numbered == "01":
        return load_config(MDConfig, args.config, changes)
    config = load_physics(args.config, changes) if numbered is None else load_qm_config(args.config, changes)
    if numbered == "01c" and config.backend != "pyscf":
        raise UserError(f"{args.config} has backend {config.backend}; run it with 01b_run_qm_baselines.py, or set "
                        "backend: pyscf")
    return config


def run(args) -> int:
    """Run every molecule, and say which failed."""
    from kstep.stages.physics import check_lengths, open_physics
    from kstep.stages.plain_md import PlainMDSettings, physics_of_file, run_plain_md

    start, config, problems = time.perf_counter(), load(args, args.numbered), []
    out = args.out or Path(OUT.get(getattr(config, "backend", "openmm"), "data/qm"))
    subject = getattr(args, "subject", None)
    if args.structure is None and (args.numbered in ("01b", "01c") or (getattr(args, "smiles_file", None))):
        if given := [flag for flag in ("name", "charge", "multiplicity") if getattr(args, flag) is not None]:
            raise UserError(f"--{given[0]} belongs to one molecule; a file of SMILES states name, charge= and "
                            "multiplicity= in each line")
        found, problems = physics_of_file(args.smiles_file, args.names, config, args.raw, args.seed)
    elif subject is None and args.structure is None:
        raise UserError("say which molecule: a SMILES, a prepared folder, --structure, or --smiles-file")
    else:
        if getattr(args, "names", None):
            raise UserError("--molecule picks a molecule of --smiles-file; --structure is a molecule by itself")
        found = [open_physics(subject, config, name=args.name, seed=args.seed, structure=args.structure,
                              charge=args.charge, multiplicity=args.multiplicity)]
        found[0].check()
    check_lengths(config, args.config)
    targets = tuple((physics, out / physics.molecule.name / "trajectory.npz") for physics in found)
    with log_beside(out / "plain_md"):
        done, failed = run_plain_md(filled(PlainMDSettings, args, targets=targets))
        problems += failed
        log.info("%d of %d molecules in %.0f s -> %s", len(done), len(found), time.perf_counter() - start, out)
        for problem in problems:
            log.error("%s", problem)
    return 2 if problems else 0
