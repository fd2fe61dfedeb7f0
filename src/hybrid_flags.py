"""The command line of a hybrid run: what 06 and 06b share."""

from __future__ import annotations

import argparse
from kstep.config import load_config, parse_assignments
from kstep.errors import UserError
from kstep.forces.pool import physical_cores
from kstep.learning.cold_start import learn_for, sampling_of, settle_cold_start
from kstep.learning.learn_config import LearnConfig
from kstep.learning.relearning import Relearner
from kstep.learning.target import Target
from kstep.runs.settings import check_start
from kstep.schemes import SCHEMES
from utils import add_common_arguments, non_negative_float, non_negative_int, positive_float, positive_int


def add_hybrid_arguments(parser: argparse.ArgumentParser, *, physics_config: str, physics_default: str) -> None:
    """Flags that the MM and the QM hybrid script have in common; unset ones leave the YAML's value."""
    parser.add_argument("--checkpoint", help="network from 04_train.py; not needed for --scheme plain or --learn")
    parser.add_argument(physics_config, default=physics_default, dest="physics_config",
                        help="YAML of the true physics and the baseline temperature (K) and dt_fs")
    parser.add_argument("--molecule", help="prepared folder such as data/raw/ethanol")
    parser.add_argument("--smiles", help="instead of --molecule: a SMILES string, prepared on the spot")
    parser.add_argument("--name", help="name of the molecule of --smiles (default: that of the output file)")
    parser.add_argument("--learn", action="store_true",
                        help="metropolis: first learn the network, from the true calls of this run alone")
    parser.add_argument("--out", required=True, help="trajectory file to write (.npz)")
    parser.add_argument("--hybrid-config", default="configs/hybrid.yaml", help="YAML of everything below")
    parser.add_argument("--model-config", help="check that the checkpoint was built from this model YAML; with "
                        "--learn: the network to learn (default: configs/model_pair_mlp.yaml)")
    parser.add_argument("--scheme", choices=tuple(SCHEMES),
                        help="how k steps are made and judged")
    parser.add_argument("--k-steps", type=positive_int, help="baseline timesteps per true call")
    parser.add_argument("--dt-fs", type=positive_float, help="timestep, fs")
    parser.add_argument("--steps", type=positive_int, help="macro-steps = true calls per replica")
    parser.add_argument("--burn-in-steps", type=non_negative_int, help="macro-steps before them, never judged")
    parser.add_argument("--replicas", type=positive_int, help="chains that step together")
    parser.add_argument("--hydrogen-mass", type=positive_float, dest="hydrogen_mass_Da",
                        help="metropolis: mass of the sampler's hydrogens, Da; the ensemble stays exact")
    parser.add_argument("--tempering", type=positive_float, nargs="+", dest="tempering_K", metavar="K",
                        help="metropolis: ladder of temperatures, K, the target first; rungs exchange configurations")
    parser.add_argument("--tune", action="store_true", default=None,
                        help="metropolis: choose the timestep and the length by measurement before production")
    parser.add_argument("--thermostat", choices=["none", "langevin"], help="around all but metropolis; none is NVE")
    parser.add_argument("--project-residual", action="store_const", const=True,
                        help="impulse: kicks change no bond length or angle distance; longer k, no exact ensemble")
    parser.add_argument("--delta-scale", type=non_negative_float, help="scales the learned correction; 0: no network")
    parser.add_argument("--max-attempts", type=positive_int, help="jumps tried before plain steps take over")
    parser.add_argument("--initial-md", help="start from frames of this trajectory.npz instead of conformers")
    parser.add_argument("--frame", type=int, help="start every replica from this frame of --initial-md")
    parser.add_argument("--labels", help="past_tolerance learn: dataset the network was trained on, so that it is kept")
    parser.add_argument("--learn-config", default="configs/learn.yaml",
                        help="YAML of learning: with --learn, or past_tolerance learn")
    parser.add_argument("--num-workers", type=positive_int, help="processes for true calls (default: all cores)")
    parser.add_argument("--resume", action="store_true", help="continue from the last restart file")
    add_common_arguments(parser, device=True, overrides=True)


def cold_start(args, molecule, spec, method, hybrid, baseline, device):
    """--learn: how to sample, with args.checkpoint the network that was learned for it."""
    if args.checkpoint:
        raise UserError("--learn starts from nothing; leave --checkpoint out, or run without --learn")
    check_start(args.initial_md, args.frame)
    hybrid = settle_cold_start(hybrid)
    target = Target(molecule=molecule, spec=spec, method=method, device=device, **sampling_of(hybrid, baseline))
    args.checkpoint = learn_for(target, args.out, model_config=args.model_config, learn_config=args.learn_config,
                                seed=args.seed, n_workers=args.num_workers or physical_cores(), resume=args.resume)
    return hybrid


def relearner(args, run, target=None):
    """What a checked run calls past its tolerances to have its network trained; None for other runs.

    target: what the run is of, None: a molecule.
    """
    if run.hybrid.past_tolerance != "learn":
        if args.labels:
            raise UserError("--labels are what a network learns from; set past_tolerance: learn")
        return None
    target = target or Target(molecule=run.molecule, spec=run.spec, method=run.method, length_fs=0.0,
                              temperatures_K=(run.hybrid.temperature_K,))
    return Relearner(run.checkpoint, target, load_config(LearnConfig, args.learn_config), dt_fs=run.hybrid.dt_fs,
                     seed=run.seed, earlier=args.labels)


def hybrid_overrides(args) -> dict:
    """The flags of `add_hybrid_arguments` that are keys of a HybridConfig."""
    keys = ("scheme", "k_steps", "dt_fs", "steps", "burn_in_steps", "replicas", "thermostat", "delta_scale",
            "max_attempts", "hydrogen_mass_Da", "tempering_K", "tune", "project_residual")
    given = {k: getattr(args, k) for k in keys if getattr(args, k) is not None}  # a flag left out unsets no --set
    return {**parse_assignments(args.assignments), **given}
