"""Hybrid dynamics with xTB as the true physics: the network makes k steps, xTB is asked once.

From nothing but a SMILES string: learn the network, freeze it, sample exactly.

    python src/06b_hybrid_integrate_qm.py --smiles "CCO" --learn --out outputs/hybrid_qm/ethanol.npz

With a network of 04_train.py:

    python src/06b_hybrid_integrate_qm.py --checkpoint outputs/checkpoints/best.pt --qm-config configs/qm.yaml \\
        --molecule data/raw/ethanol --out outputs/hybrid_qm/ethanol_k1000.npz --scheme metropolis
"""

from hybrid_flags import add_hybrid_arguments, cold_start, hybrid_overrides, relearner
from kstep.config import load_config
from kstep.forces import check_spec, load_qm_config, physics_spec
from kstep.molecules.prepare import find_molecule
from kstep.runs.counters import describe
from kstep.runs.run_hybrid import run_hybrid
from kstep.runs.settings import prepare_run
from kstep.schemes import SCHEMES
from kstep.schemes.hybrid_config import HybridConfig
from utils import log, machine, make_parser, pick_device, provenance, run_script, setup_logging


def main():
    parser = make_parser(__doc__)
    add_hybrid_arguments(parser, physics_config="--qm-config", physics_default="configs/qm.yaml")
    args = parser.parse_args()
    setup_logging(args.log_level)
    baseline = load_qm_config(args.physics_config)
    hybrid = load_config(HybridConfig, args.hybrid_config, hybrid_overrides(args))
    molecule, _ = find_molecule(args)
    check_spec(physics_spec(molecule, baseline, warm_start=False), molecule)

    def make_spec(settled):
        return physics_spec(molecule, baseline, warm_start=SCHEMES[settled.scheme].traits.warm_start)

    device = pick_device(args.device)
    if args.learn:
        hybrid = cold_start(args, molecule, physics_spec(molecule, baseline, warm_start=True), baseline.method, hybrid,
                            baseline, device)
    run = prepare_run(molecule, make_spec, baseline.method, hybrid, baseline, out=args.out, checkpoint=args.checkpoint,
                      model_config=args.model_config, seed=args.seed, n_workers=args.num_workers, device=device,
                      resume=args.resume, initial_md=args.initial_md, frame=args.frame)
    metadata = run_hybrid(run, provenance(), machine(), relearner(args, run))
    log.info("%s -> %s", describe(metadata), run.out)


if __name__ == "__main__":
    run_script(main)
