"""Plain MD with OpenMM at its native speed: baseline, reference and training data for MM.

Per replica: equilibration, production in NVE stretches between velocity redraws, optional NVE
windows for the drift and an optional hot stretch.  Positions and velocities belong to the same
instant (a velocity-Verlet integrator, not leapfrog).  Writes <out>/<name>/trajectory.npz.

    python src/01_run_md_baselines.py --molecule data/raw/aspirin --config configs/md.yaml --out data/md
"""

from kstep.cli import baseline
from utils import run_script

if __name__ == "__main__":
    run_script(baseline, __doc__, "01")
