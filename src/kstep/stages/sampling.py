"""A hybrid run of one molecule: its network learned first where that is asked, then k network steps per true call."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from kstep.errors import UserError
from kstep.forces import PhysicsSpec
from kstep.learning.cold_start import (
    explored_with,
    learn_for,
    learned_at,
    model_to_learn,
    settle_cold_start,
    temperatures_of,
)
from kstep.learning.earlier import Earlier, warn_beyond
from kstep.learning.learn_config import LearnConfig
from kstep.learning.target import Target
from kstep.learning.truth_ladder import LABELS, Rung, check_base, check_rungs, climb, rung_folder
from kstep.molecules.restrained import led_to
from kstep.outputs import check_no_input, check_one_of, set_aside
from kstep.provenance import machine, provenance
from kstep.restraints import check_restraints
from kstep.runs.recorder import BEGIN_ANEW, parts_of
from kstep.runs.rehearsal import Rehearsal
from kstep.runs.run_hybrid import run_hybrid
from kstep.runs.settings import (
    HybridRun,
    check_before_learning,
    check_start,
    frames_of,
    prepare_run,
    restraints_of,
)
from kstep.runs.starts import Starts, judged_starts, kept_starts, settle_starts, unrelaxed_starts
from kstep.schemes import SCHEMES
from kstep.schemes.hybrid_config import HybridConfig
from kstep.stages.physics import TruePhysics


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """hybrid: how k steps are made and judged, nulls and all; checkpoint: the network, where it is not learned first.

    model_config: YAML that the checkpoint must have been built from, or (a YAML, or a ModelConfig) the network to
    learn; learn_config: for that, or past_tolerance: learn, for which `labels` are what the network was trained on;
    device: auto, cpu or cuda; resume: go on with what is there; overwrite: begin anew, and keep what is there under
    another name.
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
    overwrite: bool = False

    def going_on(self) -> Self:
        """The same run, which goes on with what an interrupted one left."""
        return replace(self, resume=True)

    def settle_output(self, inputs: dict[str, Path | None], *, learns: bool, runs: bool = True,
                      more: list[Path] | None = None) -> None:
        """UserError for an output that is an input, or that is finished where its network would be learned first.

        With `overwrite` what is there is set aside.  inputs: by name, besides the checkpoint and the labels; more:
        folders that learning writes besides, the last of which holds the network of the run.
        """
        check_one_of(self.resume, self.overwrite)
        folders = [learned_at(self.out), *(more or [])]
        folder = folders[-1]
        check_no_input([*([self.out, parts_of(self.out)] if runs else []), *(folders if learns else [])],
                       {"--checkpoint": self.checkpoint, "--labels": self.labels} | inputs)
        if self.overwrite and runs:
            set_aside(self.out, ".parts", ".starts",
                      *([each.name.removeprefix(self.out.name) for each in folders] if learns else []))
        elif self.overwrite:
            for each in folders:  # a rung that was left would be gone on with, or refuse
                set_aside(each)
        elif learns and runs and not self.resume and self.out.is_file() and not folder.is_dir():
            raise UserError(f"{self.out} is there already, and {folder}, with which it would be made, is not; choose "
                            f"another output, or {BEGIN_ANEW}")


@dataclass(frozen=True, kw_only=True)
class SamplingSettings(RunSettings):
    """learn: the network first, going on from `checkpoint` and its `labels` where they are given; via: cheaper physics
    of the same molecule, the cheapest first, of which it is learned, and then each one's difference to the next
    (learning.truth_ladder), where `checkpoint` and `labels` are those of the cheapest; teacher: instead, the one method
    whose labels alone make the network, and nothing is asked of `physics` before it samples; initial_md: start from its
    frames, or one `frame` of it, instead of conformers; delay_with: a cheaper truth of the same molecule that judges
    proposals before `physics` is asked (schemes.delayed); propose_with: a cheap method of the same molecule that makes
    them, in the place of a network (runs.proposal_potential).
    """

    physics: TruePhysics
    learn: bool = False
    via: tuple[TruePhysics, ...] = ()
    teacher: TruePhysics | None = None
    initial_md: Path | None = None
    frame: int | None = None
    delay_with: TruePhysics | None = None
    propose_with: TruePhysics | None = None

    @property
    def relax_on(self) -> PhysicsSpec | None:
        """What starts are relaxed on in the place of the truth: the cheapest of a ladder, what proposes in the place of
        a network, or the one that judges before a truth without forces; None: the truth, if it can."""
        if self.below:
            return self.rungs[0].spec
        if self.propose_with is not None:
            return self.propose
        return self.delay if self.delay and self.delay.has_forces and not self.physics.spec().has_forces else None

    @property
    def delay(self) -> PhysicsSpec | None:
        """The recipe of the cheaper truth, each SCF of which starts cold."""
        return None if self.delay_with is None else self.delay_with.spec(warm_start=False)

    @property
    def propose(self) -> PhysicsSpec | None:
        """That of what proposes, which depends on the geometry alone too."""
        return None if self.propose_with is None else self.propose_with.spec(warm_start=False)

    @property
    def learns(self) -> bool:
        """Whether a network is learned first."""
        return self.learn or bool(self.below)

    @property
    def below(self) -> tuple[TruePhysics, ...]:
        """The methods below the truth that its network is learned of, the cheapest first."""
        return self.via if self.teacher is None else (self.teacher,)

    @property
    def rungs(self) -> list[Rung]:
        """The ladder of truth, the cheapest method first."""
        return [Rung(each.spec(warm_start=False), each.method) for each in (*self.below, self.physics)]


def _settle_output(s: SamplingSettings, *, runs: bool) -> None:
    folder = s.physics.folder
    inputs: dict[str, Path | None] = {"--initial-md": s.initial_md}
    if folder is not None:
        inputs |= {"the prepared molecule": folder / "molecule.npz", "its force field": folder / "system.xml"}
    s.settle_output(inputs, learns=s.learns or not runs, runs=runs, more=learned_folders(s)[1:])


def with_starts(settings: SamplingSettings, must_hold: bool,
                relax_on: PhysicsSpec | None = None) -> tuple[SamplingSettings, Starts | None]:
    """The settings with a molecule whose conformers are starts, relaxed on the true potential, and what is to be said
    of them; None where conformers are taken as they are: nothing starts from them, or relax_starts is off.

    must_hold: whether there are walls around the molecule; relax_on: a cheaper potential to relax them on, without
    which those of a truth that has no forces are only judged.
    """
    s, physics = settings, settings.physics
    if s.initial_md is not None and not s.learns:
        return s, None
    if physics.is_mm:
        starts = judged_starts(physics.molecule)
    elif not physics.config.relax_starts:
        return s, None
    elif relax_on is None and not physics.spec().has_forces:
        starts = unrelaxed_starts(physics.molecule, physics.spec())
    else:
        # the same command again asks no truth again
        there = s.resume or s.out.is_file() or any(folder.is_dir() for folder in learned_folders(s))
        starts = settle_starts(
            physics.molecule, relax_on or physics.spec(warm_start=False), n_workers=physics.workers(s.n_workers),
            wanted=max(s.hybrid.replicas or 0, s.learn_config.learn_replicas), keep=kept_starts(s.out), resume=there,
            must_hold=must_hold)
    return replace(s, physics=replace(physics, molecule=starts.molecule)), starts


def learn_alone(settings: SamplingSettings) -> Path:
    """Learn into <out>.learn/, for no run in particular; the checkpoint, whose cost holds that of its starts."""
    _check_learning(settings)
    _settle_output(settings, runs=False)
    settings, starts = with_starts(settings, settings.hybrid.keep_species, settings.relax_on)
    return learn_network(settings, starts.spent if starts is not None else {})[1]


def _check_learning(s: SamplingSettings) -> HybridConfig:
    """How to sample with the network that is to be learned; UserError for what contradicts itself."""
    s.physics.check()
    if len(s.physics.molecule) < 2:
        raise UserError(f"{s.physics.molecule.name} is a single atom, whose energy is one number: there is no network "
                        "to learn; --scheme plain computes it")
    if s.propose_with is not None:
        raise UserError("--propose-with takes the place of a network, so that nothing is learned; leave --learn, "
                        "--via and --teacher out, or --propose-with")
    if s.below:
        _check_ladder(s)
    else:
        s.physics.spec().require_forces("learning a network of it", "learn with --via a cheaper method that has them")
        Earlier(s.checkpoint, s.labels).check(s.physics.molecule)
    check_start(s.initial_md, s.frame)
    hybrid = settle_cold_start(s.hybrid, s.physics.config)
    check_restraints(restraints_of(hybrid, s.physics.config), len(s.physics.molecule))
    return hybrid


def _check_ladder(s: SamplingSettings) -> None:
    """UserError for rungs that make no ladder, and for a network to begin with that is none of the first."""
    if s.via and s.teacher is not None:
        raise UserError("--teacher learns from one method alone, and --via differences between several too; leave one "
                        "of them out")
    for each in s.below:
        each.check()
    check_rungs(s.rungs)
    if (s.checkpoint is None) != (s.labels is None):
        raise UserError("with --via or --teacher a network of the cheapest method goes with the labels that it was "
                        "fitted to: give both --checkpoint and --labels, or neither, to learn one")
    if s.checkpoint is not None and s.labels is not None:
        check_base(s.physics.molecule, s.rungs[0], s.checkpoint, s.labels)


def learn_network(settings: SamplingSettings,
                  starts_spent: dict[str, float] | None = None) -> tuple[HybridConfig, Path]:
    """Learn into <out>.learn/; how to sample with the network there, and its checkpoint.

    starts_spent: what its starts have cost, where no run counts that.
    """
    s, physics, hybrid = settings, settings.physics, _check_learning(settings)
    restraints = restraints_of(hybrid, physics.config)
    target = Target(molecule=led_to(physics.molecule, restraints), method=physics.method, device=device_of(s.device),
                    spec=replace(physics.spec(), restraints=restraints), starts_spent=starts_spent or {},
                    temperatures_K=temperatures_of(hybrid, physics.config), **explored_with(hybrid))
    config = s.learn_config
    if hybrid.effective_samples is not None:
        config = config.model_copy(update={"samples_wanted": hybrid.effective_samples})
    if s.below:
        return hybrid, _climbed(s, target, config)
    return hybrid, learn_for(target, s.out, config, model_config=s.model_config, seed=s.seed,
                             n_workers=physics.workers(s.n_workers), resume=s.resume,
                             earlier=Earlier(s.checkpoint, s.labels))


def _climbed(s: SamplingSettings, target: Target, config: LearnConfig) -> Path:
    """The network of a ladder of truth; target: of the dear truth."""
    how: dict[str, Any] = dict(seed=s.seed, n_workers=s.physics.workers(s.n_workers), resume=s.resume)
    rungs = s.rungs
    rungs[0] = replace(rungs[0], spec=replace(rungs[0].spec, restraints=target.spec.restraints))
    model = model_to_learn(s.model_config)
    if s.checkpoint is None:
        bottom = replace(target, spec=rungs[0].spec, method=rungs[0].method, call_cost_s=None)
        base = learn_for(bottom, s.out, config, model_config=model, **how)
        labels, target = base.with_name(LABELS), replace(target, starts_spent={})  # which that has paid for
    else:
        assert s.labels is not None  # see _check_ladder
        base, labels = s.checkpoint, s.labels
    return climb(target, rungs, base, labels, s.out, model, config, taught=s.teacher is not None, **how)


def learned_folders(s: SamplingSettings) -> list[Path]:
    """Folders that learning writes."""
    return [learned_at(s.out), *(rung_folder(s.out, number) for number in range(1, len(s.below) + 1))]


def sample(settings: SamplingSettings) -> dict:
    """Run, write settings.out, and return its metadata."""
    for cheaper in filter(None, (settings.delay_with, settings.propose_with)):
        cheaper.check()
    if settings.learns:  # what contradicts itself is refused before any true call
        hybrid = _check_learning(settings)
        check_before_learning(hybrid, settings.physics.config, settings.physics.spec(), settings.delay)
        if settings.initial_md is not None:
            frames_of(settings.physics.molecule, settings.initial_md, settings.frame, 1)
        must_hold = hybrid.keep_species
    else:
        settings.physics.check()
        must_hold = _run_of(settings, settings.hybrid, settings.checkpoint, None).keeps_species
    _settle_output(settings, runs=True)
    s, starts = with_starts(settings, must_hold, settings.relax_on)
    physics, spent = s.physics, {}
    if s.below and starts is not None:  # calls of the cheapest rung are on its bill, not on that of the run
        spent, starts = starts.spent, replace(starts, spent={})
    elif settings.relax_on is not None and starts is not None:  # its calls stand beside its name, in the record
        starts = replace(starts, spent={key: cost for key, cost in starts.spent.items() if key != "true_calls"})
    run = _run_of(s, *(learn_network(s, spent) if s.learns else (s.hybrid, s.checkpoint)), starts)
    target = Target(molecule=run.molecule, spec=run.spec, method=run.method,
                    temperatures_K=(run.hybrid.temperature_K,))
    if run.checkpoint and not s.learns:
        warn_beyond(run.checkpoint, temperatures_of(run.hybrid, physics.config))
    earlier = None if s.learns else s.labels  # which learning has used
    return run_hybrid(run, provenance(), machine(), relearner(run, target, s.learn_config, earlier),
                      _rehearsal(s, run, target))


def _rehearsal(s: SamplingSettings, run: HybridRun, target: Target) -> Rehearsal | None:
    """How a run goes on learning whose network was learned for it, of the true physics itself."""
    labels = learned_at(s.out) / LABELS
    if not s.learn or s.below or not s.learn_config.least_share or run.checkpoint is None or not labels.is_file():
        return None
    from kstep.learning.relearning import Relearner

    relearn = Relearner(run.checkpoint, target, s.learn_config, dt_fs=s.learn_config.inner_dt_fs, seed=run.seed,
                        earlier=labels, fresh=True)
    return Rehearsal(relearn, s.learn_config.least_share, len(relearn.earlier), s.learn_config.max_true_calls)


def _run_of(s: SamplingSettings, hybrid: HybridConfig, checkpoint: Path | None, starts: Starts | None) -> HybridRun:
    physics = s.physics

    def make_spec(settled: HybridConfig):
        return physics.spec(warm_start=SCHEMES[settled.scheme].traits.warm_start)

    proposes = checkpoint is not None or s.propose is not None
    device = device_of(s.device if proposes or s.device != "auto" else "cpu")
    return prepare_run(physics.molecule, make_spec, physics.method, hybrid, physics.config, out=s.out,
                       checkpoint=checkpoint, seed=s.seed, n_workers=physics.workers(s.n_workers), device=device,
                       resume=s.resume, initial_md=s.initial_md, frame=s.frame,
                       model_config=yaml_of(s.model_config), starts=starts, delay=s.delay, propose=s.propose)


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
