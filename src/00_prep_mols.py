"""SMILES -> conformers, topology and OpenMM System: what every later stage starts from.

Per molecule: ETKDGv3 conformers, minimised, duplicates dropped, best first; and the System of the
force field.  Writes <out-dir>/<name>/{molecule.npz, structure.pdb, system.xml} and
<out-dir>/metadata.json (merged with what is there).  A line that is wrong does not stop the
others; it is listed at the end, and the exit code is then 2.

    python src/00_prep_mols.py --smiles data/molecules.smi --out-dir data/raw
    python src/00_prep_mols.py --smiles "CC(=O)Oc1ccccc1C(=O)O" --name aspirin
"""

from kstep.cli import prepare
from utils import run_script

if __name__ == "__main__":
    run_script(prepare, __doc__, "00")
