"""Stage 05: judge MM hybrid runs against their plain baseline.

Every metric (bond and angle errors, RDF, drift, temperature, effective samples, ...) is
printed beside its noise floor and its controls, and written to metrics.json, PNG plots and
one self-contained report.html.

    python src/05_eval_drift_rdfs.py --baseline data/md --hybrid-runs outputs/hybrid --out-dir outputs/eval
"""

from kstep.cli import evaluate
from utils import run_script

if __name__ == "__main__":
    run_script(evaluate, __doc__, "05")
