"""Stage 05b: judge QM hybrid runs against their plain baseline, with the metrics of stage 05.

    python src/05b_eval_qm.py --baseline data/qm --hybrid outputs/hybrid_qm --out-dir outputs/eval_qm
"""

from __future__ import annotations

from pathlib import Path

from utils import add_common_arguments, make_parser, positive_float, positive_int, run_script, setup_logging


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--baseline", type=Path, default=Path("data/qm"),
                        help="folder (or one file) of plain QM trajectories; data/qm/<name>/*.npz")
    parser.add_argument("--hybrid", type=Path, default=Path("outputs/hybrid_qm"),
                        help="folder (or one file) of hybrid trajectories; plain ones in it are controls")
    parser.add_argument("--out-dir", type=Path, default=Path("outputs/eval_qm"),
                        help="where metrics.json, plots/ and report.html go")
    parser.add_argument("--rdf-max", type=positive_float, default=1.0, help="longest atom-atom distance, nm")
    parser.add_argument("--rdf-bins", type=positive_int, default=200, help="bins of the distance histogram")
    add_common_arguments(parser)
    args = parser.parse_args()
    setup_logging(args.log_level)

    from kstep.analysis.evaluate import evaluate_and_print

    return evaluate_and_print(args.baseline, args.hybrid, args.out_dir, rdf_maximum_nm=args.rdf_max,
                              rdf_bins=args.rdf_bins, seed=args.seed, title="QM hybrid runs against plain MD")


if __name__ == "__main__":
    run_script(main)
