"""QM/MM: a QM region in an OpenMM environment, sampled exactly with one QM call per k timesteps.

Ethanol under GFN2-xTB in a droplet of flexible TIP3P; the cheap potential is learned first:

    python src/qmmm_example.py --out outputs/qmmm/ethanol.npz

Half of butane, the cut bond capped with a link atom; then plain QM/MM dynamics in NVE:

    python src/qmmm_example.py --smiles CCCC --qm-atoms 0 1 4 5 6 7 8 --waters 0 --out outputs/qmmm/butane.npz
    python src/qmmm_example.py --scheme plain --dt-fs 0.5 --steps 4000 --replicas 1 --out outputs/qmmm/nve.npz

All atoms of a PDB file, a few of them QM; a run that was cut goes on with --resume:

    python src/qmmm_example.py --pdb data/alanine_dipeptide.pdb --qm-atoms 10 11 12 13 --out outputs/qmmm/peptide.npz
"""

from pathlib import Path

from hybrid_flags import relearner
from kstep.config import BaselineConfig, load_config, parse_assignments, validate
from kstep.errors import UserError
from kstep.files import check_writable
from kstep.forces import load_qm_config
from kstep.forces.pool import physical_cores
from kstep.learning.cold_start import learn_for, sampling_of
from kstep.learning.learn_config import LearnConfig
from kstep.learning.region_target import RegionTarget
from kstep.molecules.droplet import read_pdb, solvate
from kstep.molecules.prepare import prepare_molecule
from kstep.runs.counters import describe
from kstep.runs.qmmm_network import embedded_recipe
from kstep.runs.qmmm_system import embed
from kstep.runs.run_hybrid import run_hybrid
from kstep.runs.settings import prepare_run
from kstep.schemes import PREFERRED, SCHEMES
from kstep.schemes.hybrid_config import HybridConfig
from utils import (
    add_common_arguments,
    log,
    machine,
    make_parser,
    non_negative_int,
    pick_device,
    positive_float,
    positive_int,
    provenance,
    run_script,
    setup_logging,
)

SHORTEST_FS, LONGEST_FS = 0.001, 5.0
DEFAULTS = {"waters": 20, "learn_config": "configs/learn.yaml", "learn_calls": 800}
DT_FS, HYDROGEN_DA = 1.0, 4.0
K_STEPS, K_STEPS_OF_TRUE_DYNAMICS = 50, 4  # the second where velocities follow the true potential
RESTART_STEPS = 20  # macro-steps between restart files: a QM call among charges may take a minute


def parse():
    parser = make_parser(__doc__)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--smiles", default="CCO", help="the molecule in the droplet, MMFF94 where it is not QM")
    where.add_argument("--pdb", type=Path, help="instead: all atoms of this file, amber14 and TIP3P where not QM")
    parser.add_argument("--waters", type=non_negative_int, help="of the droplet around --smiles (default: 20); 0: none")
    parser.add_argument("--qm-atoms", type=int, nargs="+", help="the QM region, from 0 (default: the whole molecule)")
    parser.add_argument("--qm-config", default="configs/qm.yaml",
                        help="YAML of the QM; its charge and spin_multiplicity are those of the capped region")
    parser.add_argument("--embedding", choices=["electrostatic", "mechanical"], default="electrostatic",
                        help="of the true potential: MM charges polarise the QM, or meet fixed charges")
    parser.add_argument("--checkpoint", help="network of the capped region, from an earlier run of this script or 06b")
    parser.add_argument("--learn", action="store_true",
                        help="first learn the network, from the true calls of this run alone; so it is without --checkpoint")
    parser.add_argument("--model-config", help="the network to learn (default: configs/model_pair_mlp.yaml), or what "
                        "--checkpoint must have been built from")
    parser.add_argument("--learn-config", help="YAML of learning (default: configs/learn.yaml)")
    parser.add_argument("--learn-calls", type=positive_int, help="QM calls that learning may take (default: 800)")
    parser.add_argument("--labels", help="past_tolerance learn: labels the network was learned from, so that it is kept")
    parser.add_argument("--scheme", choices=[name for name, kind in SCHEMES.items() if kind.traits.head != "jump"],
                        default=PREFERRED[0].name,
                        help="plain asks the QM at every step: the honest competitor")
    parser.add_argument("--thermostat", choices=["none", "langevin"], default="none",
                        help="around the schemes other than metropolis; none is NVE")
    parser.add_argument("--k-steps", type=positive_int,
                        help="timesteps per QM call, metropolis: their mean (default 50; impulse: 4, plain: 1)")
    parser.add_argument("--dt-fs", type=positive_float, help="timestep, fs (default: 1)")
    parser.add_argument("--hydrogen-mass", type=positive_float,
                        help="metropolis: mass of the sampler's hydrogens, Da (default: 4); the ensemble stays exact")
    parser.add_argument("--tune", action="store_true",
                        help="metropolis: choose what is left out of --dt-fs and --k-steps by measurement")
    parser.add_argument("--tempering", type=positive_float, nargs="+", dest="tempering_K", metavar="K",
                        help="metropolis: ladder of temperatures, K, the target first; rungs exchange configurations")
    parser.add_argument("--steps", type=positive_int, default=200, help="macro-steps = QM calls per replica")
    parser.add_argument("--burn-in-steps", type=non_negative_int, default=20, help="macro-steps before them")
    parser.add_argument("--replicas", type=positive_int, default=4, help="droplets that step together")
    parser.add_argument("--num-workers", type=positive_int, help="processes for true calls (default: all cores)")
    parser.add_argument("--resume", action="store_true", help="go on where a run that was cut left off")
    parser.add_argument("--out", type=Path, required=True, help="trajectory file to write (.npz)")
    add_common_arguments(parser, device=True, overrides=True)
    return parser.parse_args()


def check(args):
    """Refuse flags that contradict each other or that nobody would read, then fill in what was left open."""
    given = {name for name in (*DEFAULTS, "hydrogen_mass") if getattr(args, name) is not None}
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
    if args.pdb and args.qm_atoms is None:
        raise UserError("--pdb needs --qm-atoms, the atoms of the QM region")
    if args.dt_fs and not SHORTEST_FS <= args.dt_fs <= LONGEST_FS:
        raise UserError(f"a timestep of {args.dt_fs:g} fs carries no molecule; give --dt-fs from {SHORTEST_FS} to "
                        f"{LONGEST_FS:g}")
    for name in set(DEFAULTS) - given:
        setattr(args, name, DEFAULTS[name])
    check_network(args)


def check_network(args):
    """Read what the network needs now, before the surroundings take their time."""
    if not SCHEMES[args.scheme].traits.needs_network:
        return
    from kstep.models import checkpoint as checkpoints
    from kstep.models.model_config import ModelConfig

    if args.model_config:
        load_config(ModelConfig, args.model_config)
    if args.checkpoint:
        checkpoints.load(args.checkpoint)
    else:
        load_config(LearnConfig, args.learn_config)


def settings_of(args):
    """The QM's config and the run's; --set goes to the QM where that has the key."""
    given = parse_assignments(args.assignments)
    own = {key: given.pop(key) for key in set(given) & set(HybridConfig.model_fields) - set(BaselineConfig.model_fields)}
    traits = SCHEMES[args.scheme].traits
    k_steps = K_STEPS_OF_TRUE_DYNAMICS if traits.keeps_velocities and traits.ensemble == "true" else K_STEPS
    hydrogen_Da = HYDROGEN_DA if traits.sets_temperature and not own.get("hessian_masses") else None
    return load_qm_config(args.qm_config, given), validate(HybridConfig, {
        "scheme": args.scheme, "steps": args.steps, "burn_in_steps": args.burn_in_steps, "replicas": args.replicas,
        "dt_fs": args.dt_fs or (None if args.tune else DT_FS),
        "k_steps": args.k_steps or (None if args.tune or not traits.needs_network else k_steps),
        "hydrogen_mass_Da": args.hydrogen_mass or hydrogen_Da,
        "thermostat": args.thermostat, "tune": args.tune, "tempering_K": args.tempering_K, "store_forces": False,
        "checkpoint_interval": RESTART_STEPS, **own}, "settings")


def system_of(args, qm):
    """The QM region in its surroundings."""
    facts = {"waters": 0 if args.pdb else args.waters}
    how = dict(embedding=args.embedding, n_starts=args.replicas, seed=args.seed)
    if args.pdb:
        return embed(args.out.stem, read_pdb(args.pdb), args.qm_atoms, qm, facts=facts, **how)
    prepared = prepare_molecule("solute", args.smiles, seed=args.seed)
    molecule = prepared.molecule
    atoms = range(len(molecule)) if args.qm_atoms is None else args.qm_atoms
    if max(atoms) >= len(molecule):
        raise UserError(f"QM atom {max(atoms)} is not in the molecule, whose {len(molecule)} atoms are 0 to "
                        f"{len(molecule) - 1}")
    return embed(args.out.stem, solvate(prepared, args.waters), atoms, qm, smiles=args.smiles,
                 multiplicity=molecule.multiplicity, facts=facts, **how)


def main():
    args = parse()
    setup_logging(args.log_level)
    check(args)
    qm, hybrid = settings_of(args)
    check_writable(args.out)
    system = system_of(args, qm)
    device, n_workers = pick_device(args.device), args.num_workers or physical_cores()
    target = RegionTarget(molecule=system.molecule, region=system.region, spec=system.spec, method=qm.method,
                          starts_K=qm.temperature_K, inner_dt_fs=hybrid.dt_fs, about=system.facts, device=device,
                          **sampling_of(hybrid, qm))
    if SCHEMES[args.scheme].traits.needs_network and not args.checkpoint:
        args.checkpoint = learn_for(target, args.out, model_config=args.model_config, learn_config=args.learn_config,
                                    seed=args.seed, n_workers=n_workers, most_true_calls=args.learn_calls,
                                    resume=args.resume)
    run = prepare_run(system.molecule, lambda settled: system.spec, qm.method, hybrid, qm, out=args.out,
                      checkpoint=args.checkpoint, model_config=args.model_config, seed=args.seed, n_workers=n_workers,
                      device=device, resume=args.resume, recipe=embedded_recipe(system.spec, qm.method),
                      facts=system.facts)
    metadata = run_hybrid(run, provenance(), machine(), relearner(args, run, target))
    log.info("%s -> %s", describe(metadata), run.out)


if __name__ == "__main__":
    run_script(main)
