"""Stage 05b: judge QM hybrid runs against their plain baseline, with the metrics of stage 05.

    python src/05b_eval_qm.py --baseline data/qm --hybrid outputs/hybrid_qm --out-dir outputs/eval_qm
"""

from kstep.cli import evaluate
from utils import run_script

if __name__ == "__main__":
    run_script(evaluate, __doc__, "05b")
