"""One molecule, every scheme, one table: what each costs and what comes out, beside plain MD.

What is in --out-dir already is kept, so a benchmark goes on where it stopped.

    kstep benchmark data/raw/ethanol --qm-config qm --out-dir outputs/benchmark/ethanol
"""

from __future__ import annotations

import logging
import time
from dataclasses import fields, replace
from pathlib import Path

import yaml

from kstep.cli.flags import (
    add_common_arguments,
    add_physics,
    filled,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    solvent_of,
)
from kstep.cli.program import log_beside
from kstep.config import find_config, load_config, parse_assignments
from kstep.errors import UserError
from kstep.files import write_text_atomic
from kstep.outputs import settle_result
from kstep.processes import physical_cores

log = logging.getLogger("kstep")


def add_flags(parser, numbered: str | None = None) -> None:
    """Flags of `kstep benchmark`, or of 07."""
    from kstep.study.benchmark.sections import SECTIONS

    what = add_physics(parser, numbered)
    what.add_argument("--out-dir", type=Path, required=True, help="everything goes here; what is there is kept")
    networks = parser.add_argument_group("networks")
    networks.add_argument("--checkpoint", type=Path,
                          help="network of the exact samplers, impulse and checked; default: one fitted to every true "
                               "call of the cold starts (samplers: theirs)")
    networks.add_argument("--jump-checkpoint", type=Path, help="network with a jump head; without it jump is left out")
    lengths = parser.add_argument_group("what is run, and how long")
    lengths.add_argument("--seeds", type=non_negative_int, nargs="+",
                         help="of the cold starts and the exact samplers (default: 0 1 2, with --fast 0)")
    lengths.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS),
                         help="what to run; what other sections left in --out-dir is judged all the same")
    lengths.add_argument("--effort", type=positive_float, default=1.0, help="scales lengths; 1 takes ethanol about 20 "
                                                                            "minutes on 2 cores")
    lengths.add_argument("--fast", action="store_true", help="a minute: shows that everything runs, too short to judge")
    for flag, words in (("--reference-ps", "plain MD at 1 fs, ps per replica"),
                        ("--fine-reference-ps", "plain MD at 0.5 fs, ps per replica"),
                        ("--timed-ps", "the plain MD that prices a true call, ps per replica and timestep"),
                        ("--timed-window-ps", "each NVE stretch of it, which shows its drift and spectrum, ps"),
                        ("--network-ps", "the network's own dynamics, ps per replica")):
        lengths.add_argument(flag, type=positive_float, help=f"length of {words} (default: by --effort)")
    for flag, words in (("--reference-replicas", "replicas of the long plain runs"),
                        ("--proposals", "proposals per replica of the exact samplers; without --checkpoint, the cold "
                                        "starts are prolonged")):
        lengths.add_argument(flag, type=positive_int, help=f"{words} (default: by --effort)")
    lengths.add_argument("--dear-call-s", type=non_negative_float,
                         help="seconds of a true call that a sampler learns and is tuned for besides this machine's; "
                              "0: for this machine's alone (default: 60, with --fast 0)")
    lengths.add_argument("--targets", type=Path,
                         help="YAML that the results are held to, such as benchmarks/targets.yaml")
    lengths.add_argument("--num-workers", type=positive_int, default=physical_cores(), help="processes for true calls")
    add_common_arguments(parser, overrides=True)


def load(args):
    """The settings of the benchmark."""
    from kstep.forces import load_qm_config
    from kstep.forces.openmm import MDConfig
    from kstep.stages.physics import open_physics
    from kstep.study.benchmark.bars import load_targets
    from kstep.study.benchmark.plan import DEAR_CALL_S, FAST, Lengths, Plan
    from kstep.study.benchmark.sections import BenchmarkSettings

    path, changes = args.md_config or args.qm_config, {**parse_assignments(args.assignments), **solvent_of(args)}
    config = load_config(MDConfig, path, changes) if args.md_config else load_qm_config(path, changes)
    physics = open_physics(args.molecule, config, name=args.name, seed=args.seed, structure=args.structure,
                           charge=args.charge, multiplicity=args.multiplicity, keep=args.out_dir / "molecule")
    if physics.folder.name != physics.molecule.name:
        raise UserError(f"{args.molecule} holds '{physics.molecule.name}'; name the folder after its molecule")
    if changes:  # the commands of the record read one file
        source, path = find_config(path), args.out_dir / "physics.yaml"
        text = yaml.safe_dump(config.model_dump(), sort_keys=False)
        settle_result(path, lambda there: there.read_text() == text, {str(source): source}, overwrite=None)
        write_text_atomic(path, text)
    lengths = FAST if args.fast else Lengths().scaled(args.effort)
    given = {f.name: value for f in fields(Lengths) if (value := getattr(args, f.name, None)) is not None}
    dear_call_s = args.dear_call_s if args.dear_call_s is not None else 0.0 if args.fast else DEAR_CALL_S
    plan = Plan(physics, path, args.out_dir, replace(lengths, **given), args.num_workers, args.seed,
                dear_call_s or None)
    return filled(BenchmarkSettings, args, plan=plan, seeds=tuple(args.seeds or ([0] if args.fast else [0, 1, 2])),
                  prolongs=args.proposals is not None,
                  targets=load_targets(args.targets, plan.name) if args.targets else {})


def run(args) -> int:
    """Run and judge, and print the table; 3 where a run left no file."""
    from kstep.study.benchmark.sections import benchmark
    from kstep.study.benchmark.table import as_text

    start, settings = time.perf_counter(), load(args)
    with log_beside(args.out_dir / "benchmark"):
        result, failures = benchmark(settings)
        print(as_text(result))
        log.info("%.0f s -> %s, %s", time.perf_counter() - start, args.out_dir / "benchmark.json",
                 args.out_dir / "table.txt")
    return 3 if failures else 0
