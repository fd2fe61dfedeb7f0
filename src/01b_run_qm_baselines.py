"""Plain MD with xTB forces: the reference every hybrid is judged against, and the network's data.

Per molecule: equilibration, production in NVE stretches between velocity redraws, optional NVE
windows for the drift and an optional hot stretch; every replica is an independent seed from its
own conformer, in a process of its own.  Writes <out>/<name>/trajectory.npz.

    python src/01b_run_qm_baselines.py --smiles-file data/qm_molecules.smi --config configs/qm.yaml --out data/qm
"""

from kstep.cli import baseline
from utils import run_script

if __name__ == "__main__":
    run_script(baseline, __doc__, "01b")
