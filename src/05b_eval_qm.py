"""Stage 05b: judge QM hybrid runs against their plain baseline, with the metrics of stage 05.

    python src/05b_eval_qm.py --baseline data/qm --hybrid outputs/hybrid_qm --out-dir outputs/eval_qm
"""

from __future__ import annotations

from utils import add_evaluation_arguments, make_parser, run_script, setup_logging


def main() -> int:
    parser = make_parser(__doc__)
    add_evaluation_arguments(parser, level="QM", runs_flag="--hybrid", baseline="data/qm",
                             runs="outputs/hybrid_qm", out_dir="outputs/eval_qm")
    args = parser.parse_args()
    setup_logging(args.log_level)

    from kstep.analysis.evaluate import evaluate_and_print

    return evaluate_and_print(args.baseline, args.runs, args.out_dir, rdf_maximum_nm=args.rdf_max,
                              rdf_bins=args.rdf_bins, seed=args.seed, title="QM hybrid runs against plain MD")


if __name__ == "__main__":
    run_script(main)
