"""The sections of a benchmark: which runs are made, with which network, and what is left out."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from kstep.errors import UserError
from kstep.files import read_json, write_json_atomic, write_json_compact, write_text_atomic
from kstep.fingerprint import as_written, check_same
from kstep.outputs import json_with, settle_result
from kstep.provenance import machine, provenance
from kstep.schemes import CONTROL, SAMPLERS, SCHEMES
from kstep.study.benchmark import network_reference as network_dynamics
from kstep.study.benchmark.judgement import judge, sampler_path
from kstep.study.benchmark.plan import DYNAMICS, EXACT, Plan, Variant
from kstep.study.benchmark.refit import cold_starts, refit
from kstep.study.benchmark.runner import Runner, check_same_network, training_seconds
from kstep.study.benchmark.table import as_text, sentences

SECTIONS = (CONTROL.name, "learn", "refit", *(kind.name for kind in SAMPLERS), *DYNAMICS, "network")

log = logging.getLogger("kstep")


@dataclass(frozen=True)
class BenchmarkSettings:
    """checkpoint: network of the samplers, impulse and checked (None: fitted to every true call of the cold starts,
    samplers: theirs); jump_checkpoint: one with a jump head; seeds: of the cold starts and the samplers; sections: of
    SECTIONS; prolongs: whether the sampler of the cold starts, which have produced, goes on with their networks;
    targets: what the results are held to (bars.load_targets).
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
    plan.physics.spec().require_forces("plain MD, with which a benchmark compares,", "choose a method that has them")
    _check_own(plan)
    runner = Runner(plan.out / "logs")
    left_out = run_sections(settings, runner)
    failures = list(runner.failures.values())
    result = judge(plan, seeds=list(settings.seeds), training_s=training_seconds(checkpoint),
                   targets=settings.targets)
    result["notes"] = [*left_out, *failures, *runner.kept, *result["notes"]]
    result.update(machine=machine(), **provenance(), commands=runner.texts, settings={
        "num_workers": plan.n_workers, "seeds": list(settings.seeds), "lengths": vars(plan.lengths),
        "config": plan.physics.config.model_dump(), "checkpoint": str(checkpoint) if checkpoint else None})
    result["sentences"] = sentences(result)
    write_json_compact(plan.out / "benchmark.json", result, sort_keys=False)
    write_text_atomic(plan.out / "table.txt", as_text(result) + "\n")
    return result, failures


def _check_own(plan: Plan) -> None:
    """UserError where what lies in plan.out is another's, or of another physics than this."""
    settle_result(plan.out / "benchmark.json", json_with("sentences", "commands"), overwrite=None)
    settle_result(plan.out / "table.txt", lambda path: path.with_name("benchmark.json").is_file(), overwrite=None)
    physics, record = plan.physics, plan.out / "physics.json"
    asked = as_written({"physics": physics.spec().fingerprint, "temperature_K": physics.config.temperature_K})
    if record.is_file():
        check_same(f"{plan.out} was begun", read_json(record), asked, "choose another --out-dir")
    write_json_atomic(record, asked)


def run_network(plan: Plan, checkpoint: Path, start: Path) -> None:
    """The price of one inner step, and the network's own dynamics from where an exact sampler ended."""
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
    plan, sections, seeds, left_out = settings.plan, settings.sections, settings.seeds, []

    def sampler(seed: int) -> Path:
        return settings.checkpoint or plan.learned_checkpoint(seed)

    def produced(variant: Variant, seed: int) -> bool:
        return sampler_path(plan, variant, seed) == plan.path("learn", f"seed_{seed}")

    if CONTROL.name in sections:
        for call in plan.references() + plan.timed():
            runner.run(call)
    if "learn" in sections:
        for seed in seeds:
            runner.run(plan.learn(seed))
    checkpoint = settings.checkpoint or plan.refit_checkpoint
    if "refit" in sections and not checkpoint.is_file():
        learned = cold_starts([plan.path("learn", f"seed_{seed}") for seed in seeds])
        if learned:
            refit(learned, plan.physics.molecule, checkpoint, plan.seed)
    there = checkpoint.is_file()
    for variant in plan.variants:
        for seed in seeds if variant.scheme in sections else ():
            if variant.call_cost_s is not None and settings.checkpoint is None:  # a dear call has a network of its own
                runner.run(plan.sampler(variant, None, seed))
            elif sampler(seed).is_file() and (settings.checkpoint or settings.prolongs or not produced(variant, seed)):
                runner.run(plan.sampler(variant, sampler(seed), seed), sampler(seed))
    lacking = []
    for scheme in DYNAMICS:
        jumps = SCHEMES[scheme].traits.jumps
        network = settings.jump_checkpoint if jumps else checkpoint if there else None
        if network and scheme in sections:
            for call in plan.dynamics(scheme, network):
                runner.run(call, network)
        elif jumps and not plan.path(scheme, "nvt").exists():
            left_out.append(f"{scheme} is left out: train a network with a jump head (04_train.py with "
                            "configs/model.yaml) and give it as --jump-checkpoint")
        elif not jumps and not network:
            lacking.append(scheme)
    sampled = sampler(seeds[0]).is_file()
    lacking += [] if sampled else [EXACT, "network"]
    if lacking:
        left_out.insert(0, f"{', '.join(lacking)}: left out for want of a network; run the sections learn and refit, "
                           "or give --checkpoint")
    start = next((path for variant in plan.variants if (path := sampler_path(plan, variant, seeds[0])).is_file()), None)
    if "network" in sections and sampled and start:
        # the network that learned from its own rejected proposals: nanoseconds find every hole of another
        run_network(plan, sampler(seeds[0]), start)
    return left_out
