"""Plain MD with DFT or Hartree-Fock forces by PySCF, on a GPU where GPU4PySCF finds one; otherwise as 01b.

    python src/01c_run_pyscf_baselines.py --smiles-file data/qm_molecules.smi --molecule methanol \\
        --config configs/qm_pyscf.yaml --out data/qm_dft
"""

from kstep.cli import baseline
from utils import run_script

if __name__ == "__main__":
    run_script(baseline, __doc__, "01c")
