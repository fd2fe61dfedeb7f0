"""QM/MM: a QM region in an OpenMM environment, sampled exactly with one QM call per k timesteps.

Ethanol under GFN2-xTB in a droplet of flexible TIP3P; the cheap potential is learned first:

    python src/qmmm_example.py --out outputs/qmmm/ethanol.npz

Half of butane, the cut bond capped with a link atom; then plain QM/MM dynamics in NVE:

    python src/qmmm_example.py --smiles CCCC --qm-atoms 0 1 4 5 6 7 8 --waters 0 --out outputs/qmmm/butane.npz
    python src/qmmm_example.py --scheme plain --dt-fs 0.5 --steps 4000 --replicas 1 --out outputs/qmmm/nve.npz

All atoms of a PDB file, a few of them QM; a run that was cut goes on with --resume:

    python src/qmmm_example.py --pdb data/alanine_dipeptide.pdb --qm-atoms 10 11 12 13 --out outputs/qmmm/peptide.npz
"""

from dataclasses import replace
from pathlib import Path

from hybrid_flags import relearner
from kstep.config import HybridConfig, load_config, load_qm_config, parse_assignments
from kstep.errors import UserError
from kstep.files import check_writable
from kstep.forces.pool import physical_cores
from kstep.learning.cold_start import learn_for, sampling_of
from kstep.learning.learn_config import LearnConfig
from kstep.learning.region_target import RegionTarget
from kstep.molecules.droplet import read_pdb, solvate
from kstep.molecules.prepare import prepare_molecule
from kstep.runs.counters import describe
from kstep.runs.qmmm_system import embed
from kstep.runs.run_hybrid import run_hybrid
from kstep.runs.settings import prepare_run
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
DEFAULTS = {"waters": 20, "learn_config": "configs/learn.yaml", "learn_calls": 800, "hydrogen_mass": 4.0}
DEFAULT_DT_FS, DEFAULT_K = 1.0, {"metropolis": 50, "checked": 50, "impulse": 4, "plain": 1}


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
    parser.add_argument("--checkpoint", help="network of the capped region, from an earlier run of this script or 06b "
                        "(default: one is learned)")
    parser.add_argument("--model-config", help="the network to learn (default: configs/model_pair_mlp.yaml), or what "
                        "--checkpoint must have been built from")
    parser.add_argument("--learn-config", help="YAML of learning (default: configs/learn.yaml)")
    parser.add_argument("--learn-calls", type=positive_int, help="QM calls that learning may take (default: 800)")
    parser.add_argument("--scheme", choices=["metropolis", "impulse", "checked", "plain"], default="metropolis",
                        help="plain asks the QM at every step: the honest competitor")
    parser.add_argument("--thermostat", choices=["none", "langevin"], default="none",
                        help="around the schemes other than metropolis; none is NVE")
    parser.add_argument("--k-steps", type=positive_int,
                        help="timesteps per QM call, metropolis: their mean (default 50; impulse: 4, plain: 1)")
    parser.add_argument("--dt-fs", type=positive_float, default=1.0, help="timestep, fs")
    parser.add_argument("--hydrogen-mass", type=positive_float,
                        help="metropolis: mass of the sampler's hydrogens, Da (default: 4); the ensemble stays exact")
    parser.add_argument("--steps", type=positive_int, default=200, help="macro-steps = QM calls per replica")
    parser.add_argument("--burn-in-steps", type=non_negative_int, default=20, help="macro-steps before them")
    parser.add_argument("--replicas", type=positive_int, default=4, help="droplets that step together")
    parser.add_argument("--resume", action="store_true", help="go on where a run that was cut left off")
    parser.add_argument("--out", type=Path, required=True, help="trajectory file to write (.npz)")
    add_common_arguments(parser, device=True, overrides=True)
    return parser.parse_args()


def check(args):
    """Refuse flags that contradict each other or that nobody would read, then fill in what was left open."""
    given = {name for name in DEFAULTS if getattr(args, name) is not None}
    if args.scheme == "plain" and args.k_steps not in (None, 1):
        raise UserError("plain asks the QM at every step, so k is 1; for longer steps set --dt-fs")
    if args.scheme == "plain" and (args.checkpoint or args.model_config or given - {"waters"}):
        raise UserError("plain carries nothing with a network; leave out --checkpoint, --model-config, --learn-config, "
                        "--learn-calls and --hydrogen-mass")
    if args.scheme == "metropolis" and args.thermostat != "none":
        raise UserError("metropolis draws its own momenta; --thermostat goes with the other schemes")
    if args.checkpoint and given & {"learn_config", "learn_calls"}:
        raise UserError("a network from --checkpoint learns nothing; leave out --learn-config and --learn-calls")
    if args.pdb and "waters" in given:
        raise UserError("--waters are those around --smiles; the waters of --pdb are in its file")
    if args.pdb and args.qm_atoms is None:
        raise UserError("--pdb needs --qm-atoms, the atoms of the QM region")
    if not SHORTEST_FS <= args.dt_fs <= LONGEST_FS:
        raise UserError(f"a timestep of {args.dt_fs:g} fs carries no molecule; give --dt-fs from {SHORTEST_FS} to "
                        f"{LONGEST_FS:g}")
    for name in set(DEFAULTS) - given:
        setattr(args, name, DEFAULTS[name])
    check_network(args)


def check_network(args):
    """Read what the network needs now, before the surroundings take their time."""
    if args.scheme == "plain":
        return
    from kstep.learning.learn_config import LearnConfig
    from kstep.models import checkpoint as checkpoints
    from kstep.models.model_config import ModelConfig

    if args.model_config:
        load_config(ModelConfig, args.model_config)
    if args.checkpoint:
        checkpoints.load(args.checkpoint)
    else:
        load_config(LearnConfig, args.learn_config)


def surroundings_of(args):
    """The system, its QM atoms, and their charge and multiplicity."""
    if args.pdb:
        system = read_pdb(args.pdb)
        return system, args.qm_atoms, system.charge_of(args.qm_atoms), 1
    prepared = prepare_molecule("solute", args.smiles, seed=args.seed)
    molecule = prepared.molecule
    atoms = range(len(molecule)) if args.qm_atoms is None else args.qm_atoms
    if max(atoms) >= len(molecule):
        raise UserError(f"QM atom {max(atoms)} is not in the molecule, whose {len(molecule)} atoms are 0 to "
                        f"{len(molecule) - 1}")
    system = solvate(prepared, args.waters)
    return system, atoms, system.charge_of(atoms), molecule.multiplicity


def main():
    args = parse()
    setup_logging(args.log_level)
    check(args)
    qm = load_qm_config(args.qm_config, parse_assignments(args.assignments))
    check_writable(args.out)
    system, atoms, charge, multiplicity = surroundings_of(args)
    spec = qmmm_spec(system, atoms, qm, charge=charge, multiplicity=multiplicity, embedding=args.embedding)
    physics = spec.build()
    log.info("%d atoms, %d of them QM, %d link atoms; %s by %s, %s embedding", len(system.numbers), len(atoms),
             len(physics.region.hosts), qm.method, spec.settings["engine"], args.embedding)
    starts = settle(system, qm.temperature_K, SETTLE_PS, args.seed, args.replicas)
    run = EmbeddedRun(spec, starts, system.masses, system.bonds, qm.temperature_K, args.steps, args.burn_in_steps,
                      args.out, args.seed, args.thermostat == "langevin", args.resume)
    facts = {"molecule": args.out.stem, "smiles": "" if args.pdb else args.smiles, "method": qm.method,
             "backend": "qmmm", "qm_atoms": [int(a) for a in atoms], "link_hosts": physics.region.hosts.tolist(),
             "embedding": args.embedding, "waters": 0 if args.pdb else args.waters}
    background = {"machine": machine(), **provenance()}
    if args.scheme == "plain":
        metadata = run_embedded(run, Plain(system.masses, args.dt_fs * PS_PER_FS), facts, background)
        log.info("%d QM calls, %.1f s -> %s", metadata["true_calls"], metadata["wall_s"], args.out)
        return
    from kstep.learning.qmmm import cheap_potential

    is_exact, dt_ps = args.scheme == "metropolis", args.dt_fs * PS_PER_FS
    masses = np.where(system.numbers == 1, args.hydrogen_mass, system.masses)
    capped = capped_molecule("region", physics.region, system.numbers, system.masses, system.bonds, starts,
                             spec.settings["charge"], spec.settings["multiplicity"])
    k_steps = args.k_steps or (4 if args.scheme == "impulse" else 50)
    carry, cost = cheap_potential(args, spec, physics, capped, starts, masses, qm, k_steps, pick_device(args.device))
    if is_exact:
        scheme = Metropolis(carry, masses, dt_ps, k_steps, qm.temperature_K, length_law="uniform")
    else:
        kind = {"impulse": Impulse, "checked": Checked}[args.scheme]
        scheme = kind(carry.network, carry, system.masses, dt_ps, k_steps)
    metadata = run_embedded(run, scheme, {**facts, **cost}, background)
    log.info("%s: %.0f fs per QM call, %d QM calls and %d for learning, %.1f s -> %s",
             f"acceptance {metadata['acceptance']:.3f}" if is_exact else
             f"E_true - E_cheap spread {metadata['certificate']['spread_kJ_per_mol']:.2f} kJ/mol",
             metadata["jump_fs"], metadata["true_calls"], metadata["true_calls_training"], metadata["wall_s"], args.out)


if __name__ == "__main__":
    run_script(main)
