"""Hybrid dynamics with an OpenMM force field as the true physics: k network steps, one true call.

    python src/06_hybrid_integrate.py --checkpoint outputs/checkpoints/best.pt --md-config configs/md.yaml \\
        --molecule data/raw/aspirin --out outputs/hybrid/aspirin_k8.npz --scheme jump
"""

from pathlib import Path

from hybrid_flags import add_hybrid_arguments, cold_start, hybrid_overrides, relearner
from kstep.config import load_config
from kstep.forces import physics_spec
from kstep.forces.openmm import MDConfig
from kstep.molecules.prepare import find_molecule
from kstep.runs.counters import describe
from kstep.runs.run_hybrid import run_hybrid
from kstep.runs.settings import prepare_run
from kstep.schemes.hybrid_config import HybridConfig
from utils import log, machine, make_parser, pick_device, provenance, run_script, setup_logging


def main():
    parser = make_parser(__doc__)
    add_hybrid_arguments(parser, physics_config="--md-config", physics_default="configs/md.yaml")
    args = parser.parse_args()
    setup_logging(args.log_level)
    baseline = load_config(MDConfig, args.physics_config)
    hybrid = load_config(HybridConfig, args.hybrid_config, hybrid_overrides(args))
    molecule, system_xml = find_molecule(args)
    spec = physics_spec(molecule, baseline,
                        system_xml=system_xml if args.smiles else Path(args.molecule) / "system.xml")
    # an MM call costs microseconds, less than sending it to a worker
    args.num_workers = args.num_workers or 1
    device = pick_device(args.device)
    if args.learn:
        hybrid = cold_start(args, molecule, spec, molecule.force_field, hybrid, baseline, device)
    run = prepare_run(molecule, lambda settled: spec, molecule.force_field, hybrid, baseline, out=args.out, checkpoint=args.checkpoint,
                      model_config=args.model_config, seed=args.seed, n_workers=args.num_workers, device=device,
                      resume=args.resume, initial_md=args.initial_md, frame=args.frame)
    metadata = run_hybrid(run, provenance(), machine(), relearner(args, run))
    log.info("%s -> %s", describe(metadata), run.out)


if __name__ == "__main__":
    run_script(main)
