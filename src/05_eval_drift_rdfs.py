"""Stage 05: judge MM hybrid runs against their plain baseline.

Every metric (bond and angle errors, RDF, drift, temperature, effective samples, ...) is
printed beside its noise floor and its controls, and written to metrics.json, PNG plots and
one self-contained report.html.

    python src/05_eval_drift_rdfs.py --baseline data/md --hybrid-runs outputs/hybrid --out-dir outputs/eval
"""

from __future__ import annotations

from utils import add_evaluation_arguments, make_parser, run_script, setup_logging


def main() -> int:
    parser = make_parser(__doc__)
    add_evaluation_arguments(parser, level="MM", runs_flag="--hybrid-runs", baseline="data/md",
                             runs="outputs/hybrid", out_dir="outputs/eval")
    args = parser.parse_args()
    setup_logging(args.log_level)

    from kstep.analysis.evaluate import evaluate_and_print

    return evaluate_and_print(args.baseline, args.runs, args.out_dir, rdf_maximum_nm=args.rdf_max,
                              rdf_bins=args.rdf_bins, seed=args.seed, title="MM hybrid runs against plain MD")


if __name__ == "__main__":
    run_script(main)
