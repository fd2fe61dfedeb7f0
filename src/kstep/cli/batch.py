"""What the batch scripts ask: which molecules there are, which results are whole, what they say.

    kstep batch inputs --smiles-file data/qm_molecules.smi --qm-config configs/qm.yaml
    kstep batch plain-flags --hybrid-config configs/hybrid.yaml  # what it must lose for plain MD
    kstep batch trajectory --of water outputs/qm/md/water/trajectory.npz

Answers are lines of words between tabs, which scripts/batch.sh reads.
"""

from __future__ import annotations

from pathlib import Path

from kstep.cli.flags import filled, positive_int

JUDGED = ("trajectory", "hybrid", "dataset", "network", "report")


def add_flags(parser, numbered: str | None = None) -> None:
    """Flags of `kstep batch`."""
    parser.add_argument("what", choices=["inputs", "plain-flags", *JUDGED, "table"], help="what is asked")
    parser.add_argument("--of", nargs="+", action="append", default=[], metavar="TASK FILE",
                        help="a task and the files it ends in; may be repeated")
    parser.add_argument("--set-aside", action="store_true", help="rename a broken file to <file>.broken")
    parser.add_argument("--smiles-file", help="lines of 'SMILES name'")
    parser.add_argument("--molecules", nargs="+", help="only these molecules of the file")
    parser.add_argument("--qm-config", help="YAML that the baselines must have been made with")
    parser.add_argument("--hybrid-config", help="YAML that the hybrids must have been made with")
    parser.add_argument("--steps", type=positive_int, help="macro-steps that they must hold")
    parser.add_argument("--checkpoint", help="network that they must have used; {molecule} stands for the task")
    parser.add_argument("--md-root", type=Path, help="folder of the trajectories that datasets are made from")
    parser.add_argument("--member", action="append", dest="members", default=[],
                        help="molecule of the dataset of task all; may be repeated")
    parser.add_argument("--split-by", help="how datasets must have been split")
    parser.add_argument("--dataset", help="dataset a network must have learned; {molecule} stands for the task")
    parser.add_argument("--model-config", help="YAML that networks must have been built from")
    parser.add_argument("--runs-root", type=Path, help="folder of the runs that reports judge")
    parser.add_argument("--report-root", type=Path, help="folder of <molecule>/metrics.json, for the table")
    parser.set_defaults(log_level="warning")


def run(args) -> None:
    """Print the answers."""
    from kstep.study import batch

    if args.what == "inputs":
        for line in batch.inputs(args.smiles_file, args.molecules, args.qm_config):
            print("\t".join(line))
    elif args.what == "plain-flags":
        for word in batch.plain_flags(args.hybrid_config):
            print(word)
    elif args.what == "table":
        print(f"\n{batch.table(args.report_root)}\n\nwrote {args.report_root / 'table.txt'}")
    wanted = filled(batch.Wanted, args)
    for task, *files in args.of:
        answer = batch.answer(args.what, task, files, wanted, set_aside=args.set_aside)
        print("\t".join([task, *answer]).replace("\n", " "))
