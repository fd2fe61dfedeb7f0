"""Is md-kstep worth it here?  Times one true call and one inner step, predicts both bills, gives a verdict.

    kstep advise data/raw/ethanol --samples 10000
    kstep advise data/raw/aspirin --md-config md
"""

from __future__ import annotations

import logging
from pathlib import Path

from kstep.cli.flags import (
    add_common_arguments,
    add_overwrite_of_result,
    add_physics,
    filled,
    positive_float,
    positive_int,
    solvent_of,
)
from kstep.config import find_config, load_config, parse_assignments
from kstep.files import write_json_atomic
from kstep.outputs import json_with, settle_result

log = logging.getLogger("kstep")


def add_flags(parser, numbered: str | None = None) -> None:
    """Flags of `kstep advise`, or of 08."""
    what = add_physics(parser, numbered)
    what.add_argument("--num-workers", type=positive_int, dest="n_workers",
                      help="processes for true calls (default: all cores)")
    asked = parser.add_argument_group("what is asked")
    asked.add_argument("--samples", type=positive_float, default=10_000, help="effective samples wanted")
    asked.add_argument("--plain-dt-fs", type=positive_float, default=1.0, help="timestep of plain MD, fs")
    asked.add_argument("--check", nargs="+", type=Path, default=[], dest="checks", metavar="RUN",
                       help="finished runs (.npz, of an exact sampler or plain) to hold the prediction against")
    asked.add_argument("--most-cpu", type=positive_float, default=60.0, dest="most_cpu_s",
                       help="about the CPU seconds for plain dynamics, and for chains, without true calls")
    asked.add_argument("--out", type=Path, help="write everything to this JSON file")
    add_overwrite_of_result(asked)
    sampler = parser.add_argument_group("sampler")
    sampler.add_argument("--checkpoint", type=Path,
                         help="network from 04_train.py or --learn; without it, before any training")
    sampler.add_argument("--pilot", type=Path,
                         help="run of the sampler with that checkpoint (06, 06b); without it, one is made")
    sampler.add_argument("--pilot-steps", type=positive_int, default=80, help="macro-steps of the pilot run")
    sampler.add_argument("--hybrid-config", default="configs/hybrid.yaml",
                         help="YAML of the sampler, which its key scheme names")
    sampler.add_argument("--model-config", default="configs/model_pair_mlp.yaml",
                         help="network that would be trained; times the inner step when there is no checkpoint")
    sampler.add_argument("--replicas", type=positive_int, default=64, help="chains of the sampler")
    add_common_arguments(parser, device=True, overrides=True)


def run(args) -> None:
    """Measure, predict, and say it."""
    from kstep.forces import load_qm_config
    from kstep.forces.openmm import MDConfig
    from kstep.models.model_config import ModelConfig
    from kstep.schemes.hybrid_config import HybridConfig
    from kstep.stages.physics import open_physics
    from kstep.study.advice.advice import advise
    from kstep.study.advice.survey import AdviceSettings

    if args.out:
        inputs = {"--checkpoint": args.checkpoint, "--pilot": args.pilot, "--qm-config": find_config(args.qm_config),
                  "--md-config": args.md_config, "--hybrid-config": find_config(args.hybrid_config),
                  **{f"--check {path}": path for path in args.checks}}
        settle_result(args.out, json_with("forecast", "cpu_s_per_ps"), inputs, overwrite=args.overwrite)
    overrides = {"tune": True, "replicas": args.replicas, "steps": args.pilot_steps}
    hybrid = load_config(HybridConfig, args.hybrid_config, {**overrides, **parse_assignments(args.assignments)})
    solvent = solvent_of(args)
    config = (load_config(MDConfig, args.md_config, solvent) if args.md_config else
              load_qm_config(args.qm_config, solvent))
    device = "cpu"
    if args.checkpoint:
        from kstep.models.device import pick_device

        device = pick_device(args.device)
    physics = open_physics(args.molecule, config, name=args.name, seed=args.seed, structure=args.structure,
                           charge=args.charge, multiplicity=args.multiplicity)
    advice = advise(filled(AdviceSettings, args, physics=physics, hybrid=hybrid,
                           model_config=load_config(ModelConfig, args.model_config), device=device))
    for sentence in advice.sentences():
        print(sentence)
    if args.out:
        write_json_atomic(args.out, advice.as_dict())
        log.info("-> %s", args.out)
