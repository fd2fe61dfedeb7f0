"""Hybrid dynamics with an OpenMM force field as the true physics: k network steps, one true call.

    python src/06_hybrid_integrate.py --checkpoint outputs/checkpoints/best.pt --md-config configs/md.yaml \\
        --molecule data/raw/aspirin --out outputs/hybrid/aspirin_k8.npz --scheme jump
"""

from kstep.cli import sample
from utils import run_script

if __name__ == "__main__":
    run_script(sample, __doc__, "06")
