"""QM/MM: a QM region in an OpenMM environment, sampled exactly with one QM call per k timesteps.

    kstep qmmm --out outputs/qmmm/ethanol.npz                      # ethanol in a droplet of water
    kstep qmmm --smiles CCCC --qm-atoms 0 1 4 5 6 7 8 --waters 0 --out outputs/qmmm/butane.npz
    kstep qmmm --structure my.xyz --waters 30 --out outputs/qmmm/mine.npz
    kstep qmmm --pdb data/alanine_dipeptide.pdb --qm-atoms 10 11 12 13 --out outputs/qmmm/peptide.npz
    kstep qmmm --scheme nested --network-ladder 300 400 530 --out outputs/qmmm/ladder.npz    # the solute alone is hot
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from kstep.cli.flags import (
    add_common_arguments,
    add_restraint_flag,
    add_structure,
    filled,
    non_negative_int,
    positive_int,
)
from kstep.cli.program import code_of_run, log_beside
from kstep.cli.sample import add_sampling_flags
from kstep.config import load_config, parse_assignments, validate
from kstep.errors import UserError

log = logging.getLogger("kstep")

SHORTEST_FS, LONGEST_FS = 0.001, 5.0
DEFAULTS: dict[str, Any] = {"waters": 20, "learn_config": "configs/learn.yaml", "learn_calls": 800}
DT_FS, HYDROGEN_DA = 1.0, 4.0
K_STEPS, K_STEPS_OF_TRUE_DYNAMICS = 50, 4  # the second where velocities follow the true potential
MOVES = 4  # on the network, of K_STEPS each
RESTART_STEPS = 20  # macro-steps between restart files: a QM call among charges may take a minute


def add_flags(parser, numbered: str | None = None) -> None:
    """Flags of `kstep qmmm` and of qmmm_example.py."""
    from kstep.schemes import PREFERRED, SCHEMES

    what = parser.add_argument_group("atoms and true physics")
    where = what.add_mutually_exclusive_group()
    where.add_argument("--smiles", default="CCO", help="the molecule in the droplet, MMFF94 where it is not QM")
    add_structure(what, exclusive=where)
    where.add_argument("--pdb", type=Path, help="instead: all atoms of this file, amber14 and TIP3P where not QM")
    what.add_argument("--waters", type=non_negative_int, help="of the droplet around --smiles (default: 20); 0: none")
    what.add_argument("--qm-atoms", type=int, nargs="+", help="the QM region, from 0 (default: the whole molecule)")
    what.add_argument("--qm-config", default="configs/qm.yaml",
                      help="YAML of the QM; its charge and spin_multiplicity are those of the capped region")
    what.add_argument("--embedding", choices=["electrostatic", "mechanical"], default="electrostatic",
                      help="of the true potential: MM charges polarise the QM, or meet fixed charges")
    schemes = [name for name, kind in SCHEMES.items() if not kind.traits.jumps]
    network, _, run_flags = add_sampling_flags(parser, schemes)
    network.add_argument("--learn-calls", type=positive_int, help="QM calls that learning may take (default: 800)")
    add_restraint_flag(run_flags)
    # every move of the surroundings costs a call of their force field, so that few are made per QM call
    scheme = next(kind.name for kind in PREFERRED if not kind.traits.explores)
    parser.set_defaults(scheme=scheme, thermostat="none", burn_in_steps=20, replicas=4)
    add_common_arguments(parser, device=True, overrides=True)


def check(args) -> None:
    """Refuse flags that contradict each other or that nobody would read."""
    from kstep.schemes import SCHEMES

    given = {name for name in (*DEFAULTS, "hydrogen_mass_Da") if getattr(args, name) is not None}
    traits = SCHEMES[args.scheme].traits
    if not traits.needs_network and args.k_steps not in (None, 1):
        raise UserError("plain asks the QM at every step, so k is 1; for longer steps set --dt-fs")
    if not traits.needs_network and (args.checkpoint or args.learn or args.model_config or given - {"waters"}):
        raise UserError("plain carries nothing with a network; leave out --checkpoint, --model-config, --learn, "
                        "--learn-config, --learn-calls and --hydrogen-mass")
    if traits.sets_temperature and args.thermostat != "none":
        raise UserError(f"{args.scheme} draws its own momenta; --thermostat goes with the other schemes")
    if args.checkpoint and args.learn:
        raise UserError("--learn starts from nothing; leave --checkpoint out, or run without --learn")
    if args.checkpoint and given & {"learn_config", "learn_calls"}:
        raise UserError("a network from --checkpoint learns nothing; leave out --learn-config and --learn-calls")
    if args.pdb and "waters" in given:
        raise UserError("--waters are those around --smiles; the waters of --pdb are in its file")
    if args.pdb and (args.charge, args.multiplicity) != (None, None):
        raise UserError("--charge and --multiplicity are those of the molecule of --smiles or --structure; of a region "
                        "of --pdb they are charge and spin_multiplicity of the QM config")
    if args.pdb and args.qm_atoms is None:
        raise UserError("--pdb needs --qm-atoms, the atoms of the QM region")
    if args.dt_fs and not SHORTEST_FS <= args.dt_fs <= LONGEST_FS:
        raise UserError(f"a timestep of {args.dt_fs:g} fs carries no molecule; give --dt-fs from {SHORTEST_FS} to "
                        f"{LONGEST_FS:g}")


def settings_of(args):
    """The QM's config and the run's; --set goes to the run where that has the key."""
    from kstep.forces import load_qm_config
    from kstep.runs.aim import ENDS
    from kstep.schemes import SCHEMES
    from kstep.schemes.hybrid_config import HybridConfig

    given = parse_assignments(args.assignments)
    for key in ("temperature_K", "scheduler"):
        if getattr(args, key) is not None:
            given[key] = getattr(args, key)
    if "relax_starts" in given:
        raise UserError("relax_starts is of conformers; the starts of a QM/MM run settle in the force field, at the "
                        "temperature, so leave it out")
    of_run = set(HybridConfig.model_fields) - {"temperature_K", "restraints"}  # which a run takes from the QM's config
    own = {key: given.pop(key) for key in set(given) & of_run}
    traits = SCHEMES[args.scheme].traits
    moves = args.moves or (MOVES if traits.explores and not args.tune else None)
    k_steps = (K_STEPS_OF_TRUE_DYNAMICS if traits.keeps_velocities and traits.ensemble == "true" else
               K_STEPS * (moves or 1))
    tune = args.tune or (False if traits.sets_temperature else None)
    hydrogen_Da = HYDROGEN_DA if traits.sets_temperature and not own.get("hessian_masses") else None
    return load_qm_config(args.qm_config, given), validate(HybridConfig, {
        "scheme": args.scheme, **{key: getattr(args, key) for key in ENDS},
        "burn_in_steps": args.burn_in_steps, "replicas": args.replicas,
        "dt_fs": args.dt_fs or (None if args.tune else DT_FS),
        "k_steps": args.k_steps or (None if args.tune or not traits.needs_network else k_steps),
        "hydrogen_mass_Da": args.hydrogen_mass_Da or hydrogen_Da,
        **({} if traits.sets_temperature else {"thermostat": args.thermostat}),
        "tune": tune, "tempering_K": args.tempering_K, "moves": moves,
        "network_ladder_K": args.network_ladder_K, "call_cost_s": args.call_cost_s, "store_forces": False,
        "restraints": args.restraints, "checkpoint_interval": RESTART_STEPS, **own}, "settings")


def run(args) -> int:
    """Learn where there is no network, run, and say in one line what came out."""
    from kstep.learning.learn_config import LearnConfig
    from kstep.models.model_config import ModelConfig
    from kstep.runs.counters import describe
    from kstep.stages.region_sampling import RegionSettings, sample_region

    check(args)
    qm, hybrid = settings_of(args)
    if args.model_config:
        load_config(ModelConfig, args.model_config)  # now, before the surroundings take their time
    learning = {key: default if getattr(args, key) is None else getattr(args, key) for key, default in DEFAULTS.items()}
    learning["learn_config"] = load_config(LearnConfig, learning["learn_config"])
    settings = filled(RegionSettings, args, qm=qm, hybrid=hybrid, **learning)
    with log_beside(settings.out):
        metadata = sample_region(settings)
        log.info("%s -> %s; kstep report %s makes a page of it", describe(metadata), settings.out, settings.out)
    return code_of_run(metadata)
