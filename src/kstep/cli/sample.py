"""Hybrid dynamics: the network makes k steps, the true physics is asked once.

From nothing but a SMILES string: learn the network, freeze it, sample exactly.

    kstep sample CCO --learn --out ethanol.npz
    kstep sample data/raw/aspirin --config md --checkpoint outputs/checkpoints/best.pt --out aspirin.npz
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from kstep.cli.flags import (
    add_common_arguments,
    add_overwrite,
    add_restraint_flag,
    add_scheduler,
    add_solvent,
    add_structure,
    filled,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    solvent_of,
)
from kstep.cli.program import code_of_run, log_beside
from kstep.config import load_config, parse_assignments
from kstep.errors import UserError
from kstep.restraints import parse_restraint

log = logging.getLogger("kstep")

CONFIG = {None: ("--config", "configs/qm.yaml"), "06": ("--md-config", "configs/md.yaml"),
          "06b": ("--qm-config", "configs/qm.yaml")}
# flags that are keys of the hybrid config: unset ones leave the YAML's value
KEYS = ("scheme", "k_steps", "dt_fs", "temperature_K", "steps", "effective_samples", "population_error",
        "max_true_calls", "max_hours", "burn_in_steps", "replicas", "thermostat", "delta_scale", "max_attempts",
        "hydrogen_mass_Da", "tempering_K", "moves", "network_ladder_K", "call_cost_s", "delayed_steps", "tune",
        "project_residual", "restraints")


def add_flags(parser, numbered: str | None = None, restraint=parse_restraint) -> None:
    """Flags of `kstep sample`, or of 06 or 06b; restraint: what reads --restrain."""
    from kstep.schemes import SCHEMES

    flag, default = CONFIG[numbered]
    what = parser.add_argument_group("molecule and true physics")
    if numbered is None:
        what.add_argument("molecule", metavar="MOLECULE", nargs="?",
                          help="a SMILES, a prepared folder such as data/raw/ethanol, or a structure file")
        named = "its formula"
    else:
        what.add_argument("--molecule", help="prepared folder such as data/raw/ethanol, or a structure file")
        what.add_argument("--smiles", help="instead of --molecule: a SMILES string, prepared on the spot")
        named = "that of the output file"
    what.add_argument("--name", help=f"name of the molecule of a SMILES (default: {named}) or of a structure file "
                                     "(default: the file's)")
    add_structure(what)
    what.add_argument(flag, default=default, dest="physics_config",
                      help="YAML of the true physics and the baseline temperature (K) and dt_fs")
    if numbered != "06":
        add_solvent(what)
        what.add_argument("--via", action="append", default=[], metavar="CONFIG", type=Path,
                          help="learn the network of this cheaper method first, then only the difference to the next "
                               "one, from few calls: such as configs/qm.yaml for CCSD(T); may be repeated, the "
                               "cheapest first")
        what.add_argument("--teacher", metavar="CONFIG", type=Path,
                          help="learn the network from this cheaper method's labels alone: --via without a call of the "
                               "true one, for methods that nearly agree, such as configs/qm_aimnet2.yaml for DFT")
        what.add_argument("--delay-with", type=Path, metavar="CONFIG",
                          help="YAML of a cheaper method, which judges each proposal before the true one is asked")
        what.add_argument("--propose-with", type=Path, metavar="CONFIG",
                          help="YAML of a cheap method that proposes in the place of a network, at a call a timestep: "
                               "for true calls of a minute or more, such as configs/qm.yaml or configs/qm_aimnet2.yaml")
    _, scheme, run_flags = add_sampling_flags(parser, tuple(SCHEMES))
    if numbered != "06":
        scheme.add_argument("--delayed-steps", type=positive_int, help="nested: steps judged by the method of "
                            "--delay-with per call of the dear one (default: 1)")
    scheme.add_argument("--hybrid-config", default="configs/hybrid.yaml", help="YAML of everything here")
    scheme.add_argument("--project-residual", action="store_const", const=True,
                        help="impulse: kicks change no bond length or angle distance; longer k, no exact ensemble")
    scheme.add_argument("--delta-scale", type=non_negative_float, help="scales the learned correction; 0: no network")
    scheme.add_argument("--max-attempts", type=positive_int, help="jumps tried before plain steps take over")
    run_flags.add_argument("--initial-md", type=Path,
                           help="start from frames of this trajectory.npz instead of conformers")
    add_restraint_flag(run_flags, restraint)
    run_flags.add_argument("--frame", type=int, help="start every replica from this frame of --initial-md")
    parser.set_defaults(learn_config="configs/learn.yaml")
    add_common_arguments(parser, device=True, overrides=True)


def add_sampling_flags(parser, schemes: Sequence[str]):
    """Flags of any hybrid run, of a molecule or a QM/MM system; returns the groups network, scheme and run."""
    network = parser.add_argument_group("network")
    network.add_argument("--checkpoint", type=Path,
                         help="network from 04_train.py or --learn; not needed for --scheme plain; with --learn: one "
                              "of another temperature, solvent or method, to begin with")
    network.add_argument("--learn", action="store_true",
                         help="metropolis: first learn the network, from the true calls of this run alone")
    network.add_argument("--model-config", type=Path, help="check that the checkpoint was built from this model YAML; "
                         "with --learn: the network to learn (default: configs/model_pair_mlp.yaml)")
    network.add_argument("--learn-config", help="YAML of learning: with --learn, or past_tolerance learn (default: "
                                                "configs/learn.yaml)")
    network.add_argument("--labels", type=Path,
                         help="--learn, or past_tolerance learn: labels of earlier true calls, to be learned too")
    scheme = parser.add_argument_group("scheme")
    scheme.add_argument("--scheme", choices=schemes,
                        help="how k steps are made and judged; plain asks the truth at every step: the competitor")
    scheme.add_argument("--k-steps", type=positive_int, help="timesteps per true call, metropolis: their mean")
    scheme.add_argument("--dt-fs", type=positive_float, help="timestep, fs")
    scheme.add_argument("--thermostat", choices=["none", "langevin"], help="around all but metropolis; none is NVE")
    scheme.add_argument("--hydrogen-mass", type=positive_float, dest="hydrogen_mass_Da",
                        help="metropolis: mass of the sampler's hydrogens, Da; the ensemble stays exact")
    scheme.add_argument("--moves", type=positive_int, help="nested: moves on the network per true call")
    scheme.add_argument("--network-ladder", type=positive_float, nargs="+", dest="network_ladder_K", metavar="K",
                        help="nested: ladder of temperatures on the network alone, K, the target first; one: none")
    scheme.add_argument("--call-cost-s", type=non_negative_float,
                        help="nested: seconds of a true call that tuning reckons with, instead of what it measures")
    scheme.add_argument("--tempering", type=positive_float, nargs="+", dest="tempering_K", metavar="K",
                        help="metropolis: ladder of temperatures, K, the target first, each of which asks the truth")
    scheme.add_argument("--tune", action="store_true", default=None,
                        help="choose timestep, length, moves and ladder by measurement before production")
    run_flags = parser.add_argument_group("run")
    run_flags.add_argument("--out", type=Path, required=True, help="trajectory file to write (.npz)")
    run_flags.add_argument("--steps", type=positive_int, help="macro-steps = true calls per replica, a fixed length "
                           "(default: until 200 effective samples and populations to 0.02, where the scheme samples "
                           "the true ensemble)")
    run_flags.add_argument("--effective-samples", type=positive_int,
                           help="run until the slowest torsion and the energy have so many, and chains agree")
    run_flags.add_argument("--population-error", type=positive_float,
                           help="run until no conformer's population has a larger standard error, such as 0.01")
    run_flags.add_argument("--max-true-calls", type=positive_int, help="of such a run, learning apart (default: 20000 "
                           "without --max-hours); one that ends short of its aim ends with exit code 4")
    run_flags.add_argument("--max-hours", type=positive_float, help="of such a run, learning apart")
    run_flags.add_argument("--burn-in-steps", type=non_negative_int, help="macro-steps before them, never judged")
    run_flags.add_argument("--replicas", type=positive_int, help="chains that step together")
    run_flags.add_argument("--num-workers", type=positive_int, dest="n_workers",
                           help="processes for true calls, and for the network (default: all cores)")
    add_scheduler(run_flags)
    run_flags.add_argument("--resume", action="store_true", help="continue from the last restart file; a finished run, "
                           "with more --steps or a larger aim")
    add_overwrite(run_flags)
    return network, scheme, run_flags


def load(args):
    """The settings of the run."""
    from kstep.forces import load_qm_config
    from kstep.forces.openmm import MDConfig
    from kstep.learning.learn_config import LearnConfig
    from kstep.schemes.hybrid_config import HybridConfig
    from kstep.stages.physics import load_physics, solvated
    from kstep.stages.sampling import SamplingSettings

    changes = {"temperature_K": args.temperature_K, "scheduler": args.scheduler}
    if args.numbered == "06":
        config = load_config(MDConfig, args.physics_config, changes)
    else:
        config = (load_physics if args.numbered is None else load_qm_config)(args.physics_config,
                                                                             {**changes, **solvent_of(args)})
    # a flag that is left out unsets no --set
    given = {key: getattr(args, key) for key in KEYS if getattr(args, key, None) is not None}
    hybrid = load_config(HybridConfig, args.hybrid_config, {**parse_assignments(args.assignments), **given})
    physics = open_subject(args, config)
    below = {**changes, **solvent_of(args)}
    beside = {key: physics.on(solvated(load_physics(path), args.solvent)) for key in ("delay_with", "propose_with")
              if (path := getattr(args, key, None))}
    via = tuple(physics.on(load_physics(path, below)) for path in getattr(args, "via", []))
    if getattr(args, "teacher", None):
        beside["teacher"] = physics.on(load_physics(args.teacher, below))
    return filled(SamplingSettings, args, physics=physics, via=via, hybrid=hybrid,
                  learn_config=load_config(LearnConfig, args.learn_config), **beside)


def open_subject(args, config):
    """The true physics of the molecule that the flags name."""
    from kstep.molecules.molecule import check_name
    from kstep.molecules.structure_file import is_structure_file
    from kstep.stages.physics import open_physics

    own = dict(seed=args.seed, structure=args.structure, charge=args.charge, multiplicity=args.multiplicity)
    if args.numbered is None:
        return open_physics(args.molecule, config, name=args.name, **own)
    if (args.molecule is None) == (args.smiles is None and args.structure is None):
        raise UserError("give either --molecule, a folder of 00_prep_mols.py, or --smiles, a SMILES string, or "
                        "--structure, a structure file")
    if args.molecule is not None:
        if args.name is not None and not is_structure_file(args.molecule):
            raise UserError("--name names the molecule of --smiles; one of --molecule has its name already")
        return open_physics(Path(args.molecule), config, name=args.name, **own)
    if args.structure is not None:
        return open_physics(args.smiles, config, name=args.name, **own)
    if args.name is None:
        try:
            check_name(args.out.stem)
        except UserError as error:
            raise UserError(f"--out {args.out} also names the molecule, and {error}; or give the molecule's own as "
                            "--name") from None
    return open_physics(args.smiles, config, name=args.name or args.out.stem, **own)


def run(args) -> int:
    """Learn where that is asked, run, and say in one line what came out."""
    from kstep.runs.counters import describe
    from kstep.stages.sampling import sample

    settings = load(args)
    with log_beside(settings.out):
        metadata = sample(settings)
        log.info("%s -> %s; kstep report %s makes a page of it", describe(metadata), settings.out, settings.out)
    return code_of_run(metadata)
