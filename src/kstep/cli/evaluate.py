"""Judge hybrid runs against their plain baseline: metrics.json, plots/ and report.html.

    kstep evaluate outputs/hybrid_qm --baseline data/qm --out-dir outputs/eval_qm
"""

from __future__ import annotations

from pathlib import Path

from kstep.cli.flags import add_common_arguments, bins, positive_float

FACES = {None: ("Hybrid", "runs", "data/qm", "outputs/hybrid_qm", "outputs/eval_qm"),
         "05": ("MM hybrid", "--hybrid-runs", "data/md", "outputs/hybrid", "outputs/eval"),
         "05b": ("QM hybrid", "--hybrid", "data/qm", "outputs/hybrid_qm", "outputs/eval_qm")}


def add_flags(parser, numbered: str | None = None) -> None:
    """Flags of `kstep evaluate`, or of 05 or 05b."""
    _, flag, baseline, runs, out_dir = FACES[numbered]
    where = parser.add_argument_group("files")
    where.add_argument("--baseline", type=Path, default=Path(baseline),
                       help=f"folder (or one file) of plain trajectories; {baseline}/<name>/*.npz")
    which = {"dest": "runs"} if numbered else {"nargs": "?"}
    where.add_argument(flag, type=Path, default=Path(runs), **which,
                       help="folder (or one file) of hybrid trajectories; plain ones in it are controls")
    where.add_argument("--out-dir", type=Path, default=Path(out_dir),
                       help="where metrics.json, plots/ and report.html go")
    pairs = parser.add_argument_group("distance histogram")
    pairs.add_argument("--rdf-max", type=positive_float, default=1.0, help="longest atom-atom distance, nm")
    pairs.add_argument("--rdf-bins", type=bins, default=200, help="bins of the distance histogram")
    add_common_arguments(parser)


def run(args) -> int:
    """Judge, print the table, and say where the report is."""
    from kstep.analysis.evaluate import evaluate_and_print

    return evaluate_and_print(args.baseline, args.runs, args.out_dir, rdf_maximum_nm=args.rdf_max,
                              rdf_bins=args.rdf_bins, seed=args.seed,
                              title=f"{FACES[args.numbered][0]} runs against plain MD")
