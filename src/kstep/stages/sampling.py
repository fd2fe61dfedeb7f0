"""A hybrid run of one molecule: its network learned first where that is asked, then k network steps per true call."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from kstep.errors import UserError
from kstep.learning.cold_start import explored_with, learn_for, settle_cold_start, temperatures_of
from kstep.learning.earlier import Earlier, warn_beyond
from kstep.learning.learn_config import LearnConfig
from kstep.learning.target import Target
from kstep.molecules.restrained import led_to
from kstep.provenance import machine, provenance
from kstep.runs.run_hybrid import run_hybrid
from kstep.runs.settings import HybridRun, check_start, prepare_run
from kstep.schemes import SCHEMES
from kstep.schemes.hybrid_config import HybridConfig
from kstep.stages.physics import TruePhysics


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """hybrid: how k steps are made and judged, nulls and all; checkpoint: the network, where it is not learned first.

    model_config: YAML that the checkpoint must have been built from, or (a YAML, or a ModelConfig) the network to
    learn; learn_config: for that, or past_tolerance: learn, for which `labels` are what the network was trained on;
    device: auto, cpu or cuda.
    """

    hybrid: HybridConfig
    out: Path
    checkpoint: Path | None = None
    learn_config: LearnConfig = field(default_factory=LearnConfig)
    model_config: object = None
    labels: Path | None = None
    seed: int = 0
    n_workers: int | None = None
    device: str = "auto"
    resume: bool = False


@dataclass(frozen=True, kw_only=True)
class SamplingSettings(RunSettings):
    """learn: the network first, going on from `checkpoint` and its `labels` where they are given; initial_md: start
    from its frames, or one `frame` of it, instead of conformers.
    """

    physics: TruePhysics
    learn: bool = False
    initial_md: Path | None = None
    frame: int | None = None


def learn_network(settings: SamplingSettings) -> tuple[HybridConfig, Path]:
    """Learn into <out>.learn/; how to sample with the network there, and its checkpoint."""
    s, physics = settings, settings.physics
    physics.check()
    check_start(s.initial_md, s.frame)
    hybrid = settle_cold_start(s.hybrid, physics.config)
    restraints = (physics.config.restraints if hybrid.restraints is None else hybrid.restraints) or ()
    target = Target(molecule=led_to(physics.molecule, restraints), method=physics.method, device=device_of(s.device),
                    spec=replace(physics.spec(), restraints=restraints),
                    temperatures_K=temperatures_of(hybrid, physics.config), **explored_with(hybrid))
    config = s.learn_config
    if hybrid.effective_samples is not None:
        config = config.model_copy(update={"samples_wanted": hybrid.effective_samples})
    return hybrid, learn_for(target, s.out, config, model_config=s.model_config, seed=s.seed,
                             n_workers=physics.workers(s.n_workers), resume=s.resume,
                             earlier=Earlier(s.checkpoint, s.labels))


def sample(settings: SamplingSettings) -> dict:
    """Run, write settings.out, and return its metadata."""
    s, physics = settings, settings.physics
    if not s.learn:  # learning checks for itself
        physics.check()
    hybrid, checkpoint = learn_network(s) if s.learn else (s.hybrid, s.checkpoint)

    def make_spec(settled: HybridConfig):
        return physics.spec(warm_start=SCHEMES[settled.scheme].traits.warm_start)

    run = prepare_run(physics.molecule, make_spec, physics.method, hybrid, physics.config, out=s.out,
                      checkpoint=checkpoint, seed=s.seed, n_workers=physics.workers(s.n_workers),
                      device=device_of(s.device), resume=s.resume, initial_md=s.initial_md, frame=s.frame,
                      model_config=yaml_of(s.model_config))
    target = Target(molecule=run.molecule, spec=run.spec, method=run.method,
                    temperatures_K=(run.hybrid.temperature_K,))
    if run.checkpoint and not s.learn:
        warn_beyond(run.checkpoint, temperatures_of(run.hybrid, physics.config))
    earlier = None if s.learn else s.labels  # which learning has used
    return run_hybrid(run, provenance(), machine(), relearner(run, target, s.learn_config, earlier))


def device_of(wanted: str) -> str:
    """'cpu' or 'cuda' for 'auto', 'cpu' or 'cuda'."""
    if wanted == "cpu":
        return wanted  # without loading torch
    from kstep.models.device import pick_device

    return pick_device(wanted)


def yaml_of(model_config) -> Path | None:
    """The file that a checkpoint is checked against, where the model config is one."""
    return Path(model_config) if isinstance(model_config, str | Path) else None


def relearner(run: HybridRun, target: Target, config: LearnConfig, labels: Path | None):
    """What a checked run calls past its tolerances to have its network trained; None for other runs."""
    if run.hybrid.past_tolerance != "learn":
        if labels:
            raise UserError("--labels are what a network learns from; set past_tolerance: learn")
        return None
    from kstep.learning.relearning import Relearner

    return Relearner(run.checkpoint, target, config, dt_fs=run.hybrid.dt_fs, seed=run.seed, earlier=labels)
