"""Plain MD with DFT or Hartree-Fock forces by PySCF, on a GPU where GPU4PySCF finds one; otherwise as 01b.

    python src/01c_run_pyscf_baselines.py --smiles-file data/qm_molecules.smi --molecule methanol \\
        --config configs/qm_pyscf.yaml --out data/qm_dft
"""

from kstep.errors import UserError
from kstep.forces import load_qm_config
from qm_baselines import add_baseline_arguments, baseline_overrides, run_baselines
from utils import make_parser, run_script, setup_logging


def main():
    parser = make_parser(__doc__)
    add_baseline_arguments(parser, config="configs/qm_pyscf.yaml", out="data/qm_dft")
    args = parser.parse_args()
    setup_logging(args.log_level)
    config = load_qm_config(args.config, baseline_overrides(args))
    if config.backend != "pyscf":
        raise UserError(f"{args.config} has backend {config.backend}; run it with 01b_run_qm_baselines.py, or set "
                        "backend: pyscf")
    return run_baselines(args, config)


if __name__ == "__main__":
    run_script(main)
