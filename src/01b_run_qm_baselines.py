"""Plain MD with xTB forces: the reference every hybrid is judged against, and the network's data.

Per molecule: equilibration, production in NVE stretches between velocity redraws, optional NVE
windows for the drift and an optional hot stretch; every replica is an independent seed from its
own conformer, in a process of its own.  Writes <out>/<name>/trajectory.npz.

    python src/01b_run_qm_baselines.py --smiles-file data/qm_molecules.smi --config configs/qm.yaml --out data/qm
"""

from kstep.forces import load_qm_config
from qm_baselines import add_baseline_arguments, baseline_overrides, run_baselines
from utils import make_parser, run_script, setup_logging


def main():
    parser = make_parser(__doc__)
    add_baseline_arguments(parser, config="configs/qm.yaml", out="data/qm")
    args = parser.parse_args()
    setup_logging(args.log_level)
    return run_baselines(args, load_qm_config(args.config, baseline_overrides(args)))


if __name__ == "__main__":
    run_script(main)
