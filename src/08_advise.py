"""Is md-kstep worth it here?  Times one true call and one inner step, predicts both bills, gives a verdict.

    python src/08_advise.py --molecule data/raw/ethanol --qm-config configs/qm.yaml --samples 10000
    python src/08_advise.py --molecule data/raw/ethanol --checkpoint outputs/checkpoints/best.pt --out advice.json
    python src/08_advise.py --molecule data/raw/aspirin --md-config configs/md.yaml

With a checkpoint a short pilot run is made (or read: --pilot) and the prediction is meant to hold within 30 %;
before anything is trained it rests on measured costs, classical dynamics and earlier cold starts, and is meant to
hold within a factor of 2 (a torsion's time within 10: barriers of force fields differ).  "do not bother" is an answer.
"""

from kstep.cli import advise
from utils import run_script

if __name__ == "__main__":
    run_script(advise, __doc__, "08")
