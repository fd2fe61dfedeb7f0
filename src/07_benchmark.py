"""One molecule, every scheme, one table: what each costs and what comes out, beside plain MD.

Plain MD at 0.25, 0.5, 1 and 2 fs, a cold start (--learn), metropolis, impulse, checked and jump are
run by the numbered scripts with commands a user could type, then judged with the same metrics.
What is in --out-dir already is kept, so a benchmark goes on where it stopped.

    python src/07_benchmark.py --molecule data/raw/ethanol --qm-config configs/qm.yaml --out-dir outputs/benchmark/ethanol
"""

import time
from dataclasses import replace
from pathlib import Path

import yaml

from kstep.config import load_config, parse_assignments
from kstep.errors import UserError
from kstep.files import check_writable, write_json_compact, write_text_atomic
from kstep.forces import load_qm_config
from kstep.forces.openmm import MDConfig
from kstep.forces.pool import physical_cores
from kstep.molecules.molecule import Molecule
from kstep.study.benchmark.bars import load_targets
from kstep.study.benchmark.judgement import judge
from kstep.study.benchmark.plan import FAST, Lengths, Plan
from kstep.study.benchmark.runner import Runner, training_seconds
from kstep.study.benchmark.sections import SECTIONS, run_sections
from kstep.study.benchmark.table import as_text, sentences
from utils import (
    add_common_arguments,
    log,
    machine,
    make_parser,
    non_negative_int,
    positive_float,
    positive_int,
    provenance,
    run_script,
    setup_logging,
)


def parse():
    parser = make_parser(__doc__)
    parser.add_argument("--molecule", required=True, type=Path, help="prepared folder such as data/raw/ethanol")
    physics = parser.add_mutually_exclusive_group()
    physics.add_argument("--qm-config", type=Path, default=Path("configs/qm.yaml"), help="YAML of the QM method")
    physics.add_argument("--md-config", type=Path, help="YAML of OpenMM runs: the force field is the true physics then")
    parser.add_argument("--out-dir", type=Path, required=True, help="everything goes here; what is there is kept")
    parser.add_argument("--checkpoint", type=Path, help="network for metropolis, impulse and checked; default: one fitted "
                                                        "to every true call of the cold starts (metropolis: theirs)")
    parser.add_argument("--jump-checkpoint", type=Path, help="network with a jump head; without it jump is left out")
    parser.add_argument("--seeds", type=non_negative_int, nargs="+",
                        help="of the cold starts and the metropolis runs (default: 0 1 2, with --fast 0)")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS),
                        help="what to run; what other sections left in --out-dir is judged all the same")
    parser.add_argument("--effort", type=positive_float, default=1.0, help="scales lengths; 1 takes ethanol about 20 "
                                                                           "minutes on 2 cores")
    parser.add_argument("--fast", action="store_true", help="a minute: shows that everything runs, too short to judge")
    for flag, key, words in (("--reference-ps", "reference_ps", "plain MD at 1 fs, ps per replica"),
                             ("--fine-reference-ps", "fine_reference_ps", "plain MD at 0.5 fs, ps per replica"),
                             ("--network-ps", "network_ps", "the network's own dynamics, ps per replica")):
        parser.add_argument(flag, type=positive_float, dest=key, help=f"length of {words} (default: by --effort)")
    for flag, key, words in (("--reference-replicas", "reference_replicas", "replicas of the long plain runs"),
                             ("--proposals", "proposals", "metropolis proposals per replica after burn-in; without "
                                                "--checkpoint, by the networks of the cold starts")):
        parser.add_argument(flag, type=positive_int, dest=key, help=f"{words} (default: by --effort)")
    parser.add_argument("--targets", type=Path, help="YAML that the results are held to, such as benchmarks/targets.yaml")
    parser.add_argument("--num-workers", type=positive_int, default=physical_cores(), help="processes for true calls")
    add_common_arguments(parser, overrides=True)
    args = parser.parse_args()
    args.seeds = args.seeds or ([0] if args.fast else [0, 1, 2])
    return args


def make_plan(args):
    """(plan, config of the physics) of the command line."""
    molecule = Molecule.load(args.molecule)
    if args.molecule.name != molecule.name:
        raise UserError(f"{args.molecule} holds '{molecule.name}'; name the folder after its molecule")
    lengths = FAST if args.fast else Lengths().scaled(args.effort)
    given = {key: getattr(args, key) for key in ("reference_ps", "fine_reference_ps", "network_ps", "reference_replicas",
                                                 "proposals") if getattr(args, key) is not None}
    level = "mm" if args.md_config else "qm"
    config_path = args.md_config or args.qm_config
    changes = parse_assignments(args.assignments)
    config = load_config(MDConfig, config_path, changes) if level == "mm" else load_qm_config(config_path, changes)
    if changes:  # the numbered scripts read one file
        config_path = args.out_dir / "physics.yaml"
        write_text_atomic(config_path, yaml.safe_dump(config.model_dump(), sort_keys=False))
    plan = Plan(level, molecule.name, molecule.smiles, args.molecule, config_path, args.out_dir, replace(lengths, **given),
                args.num_workers, args.seed, config.redraw_interval_ps, config.dt_fs)
    return plan, config, molecule


def main():
    args = parse()
    setup_logging(args.log_level)
    plan, config, molecule = make_plan(args)
    for path in (args.checkpoint, args.jump_checkpoint):
        if path is not None and not path.is_file():
            raise UserError(f"{path} does not exist; train a network with 04_train.py")
    check_writable(plan.out / "benchmark.json")
    targets = load_targets(args.targets, plan.name) if args.targets else {}
    runner = Runner(Path(__file__).parent, plan.out / "logs")
    start = time.perf_counter()
    left_out = run_sections(args, plan, config, molecule, runner)
    result = judge(plan, seeds=args.seeds, training_s=training_seconds(args.checkpoint), targets=targets)
    result["notes"] = [*left_out, *runner.failures.values(), *result["notes"]]
    result.update(machine=machine(), **provenance(), commands=runner.texts, settings={
        "num_workers": plan.n_workers, "seeds": args.seeds, "lengths": vars(plan.lengths), "config": config.model_dump(),
        "checkpoint": str(args.checkpoint) if args.checkpoint else None})
    result["sentences"] = sentences(result)
    write_json_compact(plan.out / "benchmark.json", result, sort_keys=False)
    write_text_atomic(plan.out / "table.txt", as_text(result) + "\n")
    print(as_text(result))
    log.info("%.0f s -> %s, %s", time.perf_counter() - start, plan.out / "benchmark.json", plan.out / "table.txt")
    return 3 if runner.failures else 0


if __name__ == "__main__":
    run_script(main)
