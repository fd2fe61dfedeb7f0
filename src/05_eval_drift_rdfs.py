"""Stage 05: judge MM hybrid runs against their plain baseline.

Every metric (bond and angle errors, RDF, drift, temperature, effective samples, ...) is
printed beside its noise floor and its controls, and written to metrics.json, PNG plots and
one self-contained report.html.

    python src/05_eval_drift_rdfs.py --baseline data/md --hybrid-runs outputs/hybrid --out-dir outputs/eval
"""

from __future__ import annotations

from pathlib import Path

from utils import add_common_arguments, make_parser, positive_float, positive_int, run_script, setup_logging


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--baseline", type=Path, default=Path("data/md"),
                        help="folder (or one file) of plain MD trajectories; data/md/<name>/*.npz")
    parser.add_argument("--hybrid-runs", type=Path, default=Path("outputs/hybrid"),
                        help="folder (or one file) of hybrid trajectories; plain ones in it are controls")
    parser.add_argument("--out-dir", type=Path, default=Path("outputs/eval"),
                        help="where metrics.json, plots/ and report.html go")
    parser.add_argument("--rdf-max", type=positive_float, default=1.0, help="longest atom-atom distance, nm")
    parser.add_argument("--rdf-bins", type=positive_int, default=200, help="bins of the distance histogram")
    add_common_arguments(parser)
    args = parser.parse_args()
    setup_logging(args.log_level)

    from kstep.analysis.evaluate import evaluate_and_print

    return evaluate_and_print(args.baseline, args.hybrid_runs, args.out_dir, rdf_maximum_nm=args.rdf_max,
                              rdf_bins=args.rdf_bins, seed=args.seed, title="MM hybrid runs against plain MD")


if __name__ == "__main__":
    run_script(main)
