"""The sections of a benchmark: which runs are made, with which network, and what is left out."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from kstep.errors import UserError
from kstep.files import check_writable, write_json_atomic, write_json_compact, write_text_atomic
from kstep.provenance import machine, provenance
from kstep.study.benchmark import network_reference as network_dynamics
from kstep.study.benchmark.judgement import judge, sampler_path
from kstep.study.benchmark.plan import Plan
from kstep.study.benchmark.refit import cold_starts, refit
from kstep.study.benchmark.runner import Runner, check_same_network, training_seconds
from kstep.study.benchmark.table import as_text, sentences

SECTIONS = ("plain", "learn", "refit", "metropolis", "impulse", "checked", "jump", "network")

log = logging.getLogger("kstep")


@dataclass(frozen=True)
class BenchmarkSettings:
    """checkpoint: network for metropolis, impulse and checked (None: fitted to every true call of the cold starts,
    metropolis: theirs); jump_checkpoint: one with a jump head; seeds: of the cold starts and the metropolis runs;
    sections: of SECTIONS; prolongs: whether metropolis goes on with the networks of the cold starts, which have
    produced; targets: what the results are held to (bars.load_targets).
    """

    plan: Plan
    seeds: tuple[int, ...] = (0, 1, 2)
    sections: tuple[str, ...] = SECTIONS
    checkpoint: Path | None = None
    jump_checkpoint: Path | None = None
    prolongs: bool = False
    targets: dict = field(default_factory=dict)


def benchmark(settings: BenchmarkSettings) -> tuple[dict, list[str]]:
    """Run what is asked for and judge what lies in plan.out: writes benchmark.json and table.txt there.

    Returns the result and a sentence for each run that left no file.
    """
    plan, checkpoint = settings.plan, settings.checkpoint
    for path in (checkpoint, settings.jump_checkpoint):
        if path is not None and not path.is_file():
            raise UserError(f"{path} does not exist; train a network with 04_train.py")
    check_writable(plan.out / "benchmark.json")
    runner = Runner(plan.out / "logs")
    left_out = run_sections(settings, runner)
    failures = list(runner.failures.values())
    result = judge(plan, seeds=list(settings.seeds), training_s=training_seconds(checkpoint),
                   targets=settings.targets)
    result["notes"] = [*left_out, *failures, *result["notes"]]
    result.update(machine=machine(), **provenance(), commands=runner.texts, settings={
        "num_workers": plan.n_workers, "seeds": list(settings.seeds), "lengths": vars(plan.lengths),
        "config": plan.physics.config.model_dump(), "checkpoint": str(checkpoint) if checkpoint else None})
    result["sentences"] = sentences(result)
    write_json_compact(plan.out / "benchmark.json", result, sort_keys=False)
    write_text_atomic(plan.out / "table.txt", as_text(result) + "\n")
    return result, failures


def run_network(plan: Plan, checkpoint: Path, start: Path) -> None:
    """The price of one inner step, and the network's own dynamics from where a metropolis run ended."""
    physics = plan.physics
    write_json_atomic(plan.out / "inner_step.json",
                      network_dynamics.inner_step_us(physics.molecule, checkpoint, physics.method))
    if plan.network_path.exists():
        check_same_network(plan.network_path, checkpoint)
        log.info("kept: %s", plan.network_path)
        return
    network_dynamics.run(plan.network_path, physics.molecule, physics.spec(warm_start=False), checkpoint,
                         network_dynamics.last_frames(start), method=physics.method,
                         temperature_K=physics.config.temperature_K, length_ps=plan.lengths.network_ps,
                         redraw_ps=physics.config.redraw_interval_ps, seed=plan.seed, n_workers=plan.n_workers)


def run_sections(settings: BenchmarkSettings, runner: Runner) -> list[str]:
    """Run what was asked for; returns sentences about what was left out."""
    plan, sections, left_out = settings.plan, settings.sections, []
    if "plain" in sections:
        for call in plan.references() + plan.timed():
            runner.run(call)
    if "learn" in sections:
        for seed in settings.seeds:
            runner.run(plan.learn(seed))
    checkpoint = settings.checkpoint or plan.refit_checkpoint
    if "refit" in sections and not checkpoint.is_file():
        learned = cold_starts([plan.path("learn", f"seed_{seed}") for seed in settings.seeds])
        if learned:
            refit(learned, plan.physics.molecule, checkpoint, plan.seed)
    if not checkpoint.is_file():
        left_out.append("metropolis, impulse, checked and network are left out: there is no network; run the sections "
                        "learn and refit, or give --checkpoint")
    else:
        if "metropolis" in sections and (settings.checkpoint or settings.prolongs):
            for seed in settings.seeds:
                sampler = settings.checkpoint or plan.learned_checkpoint(seed)
                if sampler.is_file():
                    runner.run(plan.metropolis(sampler, seed), sampler)
        for scheme in ("impulse", "checked"):
            if scheme in sections:
                for call in plan.dynamics(scheme, checkpoint):
                    runner.run(call, checkpoint)
        start = sampler_path(plan, settings.seeds[0])
        if "network" in sections and start.is_file():
            # the network that learned from its own rejected proposals: nanoseconds find every hole of another
            sampler = settings.checkpoint or plan.learned_checkpoint(settings.seeds[0])
            run_network(plan, sampler, start)
    if settings.jump_checkpoint and "jump" in sections:
        for call in plan.dynamics("jump", settings.jump_checkpoint):
            runner.run(call, settings.jump_checkpoint)
    elif not plan.path("jump", "nvt").exists():
        left_out.append("jump is left out: train a network with a jump head (04_train.py with configs/model.yaml) and "
                        "give it as --jump-checkpoint")
    return left_out
