"""QM/MM: a QM region in an OpenMM environment, sampled exactly with one QM call per k timesteps.

Ethanol under GFN2-xTB in a droplet of flexible TIP3P; the cheap potential is learned first:

    python src/qmmm_example.py --out outputs/qmmm/ethanol.npz

Half of butane, the cut bond capped with a link atom; then plain QM/MM dynamics in NVE:

    python src/qmmm_example.py --smiles CCCC --qm-atoms 0 1 4 5 6 7 8 --waters 0 --out outputs/qmmm/butane.npz
    python src/qmmm_example.py --scheme plain --dt-fs 0.5 --steps 4000 --replicas 1 --out outputs/qmmm/nve.npz

All atoms of a PDB file, a few of them QM; a run that was cut goes on with --resume:

    python src/qmmm_example.py --pdb data/alanine_dipeptide.pdb --qm-atoms 10 11 12 13 --out outputs/qmmm/peptide.npz
"""

from kstep.cli import qmmm
from utils import run_script

if __name__ == "__main__":
    run_script(qmmm, __doc__, "qmmm_example")
