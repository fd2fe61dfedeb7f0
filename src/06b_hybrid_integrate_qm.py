"""Hybrid dynamics with xTB as the true physics: the network makes k steps, xTB is asked once.

From nothing but a SMILES string: learn the network, freeze it, sample exactly.

    python src/06b_hybrid_integrate_qm.py --smiles "CCO" --learn --out outputs/hybrid_qm/ethanol.npz

With a network of 04_train.py:

    python src/06b_hybrid_integrate_qm.py --checkpoint outputs/checkpoints/best.pt --qm-config configs/qm.yaml \\
        --molecule data/raw/ethanol --out outputs/hybrid_qm/ethanol_k1000.npz --scheme metropolis
"""

from kstep.cli import sample
from utils import run_script

if __name__ == "__main__":
    run_script(sample, __doc__, "06b")
