"""Build a network from YAML: its size, its symmetries, its speed.

  python src/03_model.py --model-config configs/model.yaml

Prints the parameters of each block, checks that rotations, reflections, translations and
permutations of the atoms change nothing they should not (float64; exit code 1 when a deviation
exceeds 1e-8), and times every way to compute the forces (kstep/models/execution.py), or one jump, for
ethanol (9 atoms) and aspirin (21) at batch 1 and 64.
"""

from kstep.cli import model
from utils import run_script

if __name__ == "__main__":
    run_script(model, __doc__, "03")
