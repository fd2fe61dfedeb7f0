"""Cut trajectories into k-step windows: <out-root>/dataset_k{k}.npz and train/val/test split files.

Reads <md-root>/<name>/trajectory.npz of every molecule.  k counts timesteps of the baseline.
Windows lie inside one segment of plain NVE dynamics (role train or hot) and inside one time
block, so no window crosses a velocity redraw or a split.  Besides windows of k timesteps a
dataset holds some of k/2 and k/4, which the jump scheme needs when it retries.

    python src/02_make_dataset.py --md-root data/qm --out-root data/qm --splits-dir data/splits --ks 8
"""

from kstep.cli import dataset
from utils import run_script

if __name__ == "__main__":
    run_script(dataset, __doc__, "02")
