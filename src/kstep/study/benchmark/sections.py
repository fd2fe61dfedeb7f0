"""The sections of a benchmark: which runs are made, with which network, and what is left out."""

from __future__ import annotations

import logging
from pathlib import Path

from kstep.files import write_json_atomic, write_text_atomic
from kstep.forces import physics_spec
from kstep.study.benchmark import network_reference as network_dynamics
from kstep.study.benchmark.judgement import sampler_path
from kstep.study.benchmark.refit import cold_starts, refit
from kstep.study.benchmark.runner import check_same_network

SECTIONS = ("plain", "learn", "refit", "metropolis", "impulse", "checked", "jump", "network")

log = logging.getLogger("kstep")


def run_network(plan, config, molecule, checkpoint, start):
    """The price of one inner step, and the network's own dynamics from where a metropolis run ended."""
    method = molecule.force_field if plan.level == "mm" else config.method
    write_json_atomic(plan.out / "inner_step.json", network_dynamics.inner_step_us(molecule, checkpoint, method))
    if plan.network_path.exists():
        check_same_network(plan.network_path, checkpoint)
        log.info("kept: %s", plan.network_path)
        return
    spec = physics_spec(molecule, config, system_xml=Path(plan.molecule) / "system.xml")
    network_dynamics.run(plan.network_path, molecule, spec, checkpoint, network_dynamics.last_frames(start), method=method,
                         temperature_K=config.temperature_K, length_ps=plan.lengths.network_ps, redraw_ps=plan.redraw_ps,
                         seed=plan.seed, n_workers=plan.n_workers)


def run_sections(args, plan, config, molecule, runner) -> list[str]:
    """Run what was asked for; returns sentences about what was left out."""
    left_out = []
    if "plain" in args.sections:
        write_text_atomic(plan.smiles_file, f"{molecule.smiles} {molecule.name}\n")
        for command in plan.references() + plan.timed():
            runner.run(command)
    if "learn" in args.sections:
        for seed in args.seeds:
            runner.run(plan.learn(seed))
    checkpoint = args.checkpoint or plan.refit_checkpoint
    if "refit" in args.sections and not checkpoint.is_file():
        learned = cold_starts([plan.path("learn", f"seed_{seed}") for seed in args.seeds])
        if learned:
            refit(learned, molecule, checkpoint, args.seed)
    if not checkpoint.is_file():
        left_out.append("metropolis, impulse, checked and network are left out: there is no network; run the sections learn "
                        "and refit, or give --checkpoint")
    else:
        if "metropolis" in args.sections and (args.checkpoint or args.proposals):  # else cold starts have produced
            for seed in args.seeds:
                sampler = args.checkpoint or plan.learned_checkpoint(seed)
                if sampler.is_file():
                    runner.run(plan.metropolis(sampler, seed), sampler)
        for scheme in ("impulse", "checked"):
            if scheme in args.sections:
                for command in plan.dynamics(scheme, checkpoint):
                    runner.run(command, checkpoint)
        start = sampler_path(plan, args.seeds[0])
        if "network" in args.sections and start.is_file():
            # the network that learned from its own rejected proposals: nanoseconds find every hole of another
            sampler = args.checkpoint or plan.learned_checkpoint(args.seeds[0])
            run_network(plan, config, molecule, sampler, start)
    if args.jump_checkpoint and "jump" in args.sections:
        for command in plan.dynamics("jump", args.jump_checkpoint):
            runner.run(command, args.jump_checkpoint)
    elif not plan.path("jump", "nvt").exists():
        left_out.append("jump is left out: train a network with a jump head (04_train.py with configs/model.yaml) and give it "
                        "as --jump-checkpoint")
    return left_out
