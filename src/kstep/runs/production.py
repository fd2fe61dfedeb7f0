"""The macro-steps of a run: begun or resumed, burnt in, counted, recorded, and cut where a restart file is due."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np

from kstep.errors import PhysicsError, UserError
from kstep.files import write_json_atomic
from kstep.progress import progress_bar
from kstep.runs.accounting import Account
from kstep.runs.aim import Aim, judged_after
from kstep.runs.counters import Tally
from kstep.runs.coverage import SpeciesWatch, TorsionWatch
from kstep.runs.loop import initial_state, macro_steps
from kstep.runs.recorder import TrajectoryWriter, facts_of_run, kept_file
from kstep.runs.rehearsal import FEWEST_FRAMES, Rehearsal
from kstep.runs.run_network import RunNetwork, n_halves
from kstep.runs.settings import HybridRun, start_positions
from kstep.runs.tolerance import Tolerances, learn_from, much_is_new
from kstep.schemas import Trajectory
from kstep.schemes import SCHEMES
from kstep.schemes.base import Scheme
from kstep.schemes.ladder import ladder_of
from kstep.schemes.langevin import LangevinThermostat
from kstep.schemes.maxwell import degrees_of_freedom, draw_velocities
from kstep.schemes.state import State

log = logging.getLogger("kstep")

STEPS_PER_NEWS = 10  # macro-steps between two lines of the progress bar, where nobody knows how many there will be


class Production:
    """A run on its way: `done` of `total` macro-steps, production beginning after `burn_in_end`.

    total: None for a run that has an `aim` instead (runs.aim), and ends where that `is_over`;
    broken: the PhysicsError that ended it early, or None; stopped: the tolerance that did, in words, or None;
    run: as given, with the checkpoint of the network that learned last.
    """

    def __init__(self, run: HybridRun, scheme: Scheme, pool, writer: TrajectoryWriter, network: RunNetwork,
                 tolerances: Tolerances, account: Account, rehearsal: Rehearsal | None = None):
        hybrid = run.hybrid
        self.run, self.scheme, self.pool, self.writer = run, scheme, pool, writer
        self.network, self.tolerances, self.account, self.rehearsal = network, tolerances, account, rehearsal
        self.ladder = ladder_of(hybrid)
        self.thermostat = None
        if hybrid.thermostat == "langevin" and not scheme.traits.sets_temperature:
            self.thermostat = LangevinThermostat(hybrid.temperature_K, hybrid.friction_per_ps, scheme.masses)
        self.ensemble = "NVT" if self.thermostat is not None or scheme.traits.sets_temperature else "NVE"
        self.done, self.burn_in_end = 0, hybrid.burn_in_steps
        self.total, self.aim, self.is_over = None, None, False
        self.judged_at: int | None = None  # macro-steps after which the aim last took stock
        if hybrid.steps is not None:
            self.total = hybrid.burn_in_steps + hybrid.steps
        else:
            self.aim = Aim(hybrid)
        self.gaps: list = []
        # dynamics that no wall keeps within the molecule is watched
        self.species = SpeciesWatch(run.molecule) if scheme.inside is None else None
        self.segments: list[int] | None = None
        self.broken: PhysicsError | None = None
        self.stopped: str | None = None

    @property
    def freeze_at(self) -> int:
        """After which macro-step a scheme settles what it does, so that the rest of burn-in is of that; 0: never."""
        burn_in = self.run.hybrid.burn_in_steps
        return self.burn_in_end - burn_in + burn_in // 2 if self.scheme.freezes else 0

    def begin(self, positions: np.ndarray | None, settled: dict) -> None:
        """Go on from the restart file of a resumed run, or begin at positions (R,N,3), None: the run's own.

        settled: what was measured for this run, {name: report or nothing}, kept where a resumed run reads it.
        """
        saved = self.writer.resume() if self.run.resume else None
        if saved is None:
            self._start(start_positions(self.run) if positions is None else positions, settled)
        else:
            self._resume(*saved)
        if self.total is not None and self.done > self.total:
            raise UserError(f"{self.run.out} is already at macro-step {self.done}; ask for more --steps to continue it")
        if self.done == self.burn_in_end and self.segments is None:
            self._begin_production()
        if saved is not None:
            self._decide()

    def _start(self, positions: np.ndarray, settled: dict) -> None:
        hybrid = self.run.hybrid
        self.rng = np.random.default_rng(self.run.seed)
        velocities = draw_velocities(hybrid.replicas, self.scheme.masses, self.ladder.of(hybrid.replicas), self.rng)
        self.writer.start_over()
        self.pool.begin(0, fresh=not self.run.resume)
        for name, report in settled.items():  # before the starts are asked for, whose calls it decides
            if report:
                write_json_atomic(kept_file(self.run.out, f"{name}.json"), report)
        self.state = initial_state(self.pool, positions, velocities, needs_forces=self.scheme.needs_forces)
        self.tally = Tally(self.scheme)
        self.coverage = TorsionWatch(self.run.molecule)
        self._watch_species()
        if hybrid.burn_in_steps:
            self.segments = self._open_segments("equil")

    def _resume(self, state, rng, progress: dict) -> None:
        self.state, self.rng = state, rng
        self.done, self.burn_in_end, self.segments = progress["done"], progress["burn_in_end"], progress["segments"]
        self.tally = Tally(self.scheme, progress["tally"])
        self.coverage = TorsionWatch(self.run.molecule, progress["rotamers_seen"])
        if self.species is not None:
            self.species.go_on(progress.get("species"))
        self.account.go_on(progress["spent"])
        self.pool.begin(self.done)
        self.tolerances.restore(self.writer.parts, progress.get("recorded"))
        if progress["learned"]:
            self._go_on_with(Path(progress["learned"]))
        self.gaps, self.scheme.frozen = progress.get("gaps", []), progress.get("frozen")

    def _watch_species(self) -> None:
        if self.species is not None:
            self.species.see(self.state.positions, self.state.step * self.scheme.dt_ps,
                             np.arange(self.run.hybrid.replicas))

    def go(self) -> None:
        """All macro-steps that are left, or fewer where the physics fails or a tolerance is left."""
        first, total = self.done, self.total
        steps = self._steps()
        every = max(1, total // 50) if total is not None else STEPS_PER_NEWS
        desc = f"{self.run.molecule.name} {self.scheme.name}"
        with progress_bar(total=total, initial=first, unit="step", desc=desc) as bar:
            while self.done != total and not self.stopped and not self.is_over:
                scheme = self.scheme
                try:
                    self.state, self.info = next(steps)
                except PhysicsError as error:
                    if self.done < max(self.burn_in_end + 1, self.run.hybrid.save_interval_steps):
                        raise  # nothing to keep
                    self.broken = error
                    break
                self.done += 1
                self._take_in()
                if self.scheme is not scheme:
                    steps = self._steps()
                bar.update()
                if self.done % every == 0 and not self.stopped:
                    bar.set_postfix_str(self._progress())

    def _steps(self):
        """The macro-steps from here on, at rest wherever something is written, judged or exchanged."""
        first = self.done
        return macro_steps(
            self.scheme, self.pool, self.state, self.rng, self.total - first if self.total is not None else sys.maxsize,
            thermostat=self.thermostat, n_parts=n_halves(self.run), clock=self.account.clock,
            observe=self.tolerances.observe if self.tolerances.learns else None,
            pause=lambda n: (self.tolerances.is_on or first + n in (self.freeze_at, self.burn_in_end)
                             or self._restart_file_is_due(first + n)))

    def _take_in(self) -> None:
        """One macro-step more: count it, record it, learn from it, write the restart file."""
        hybrid, violation = self.run.hybrid, None
        self._freeze()
        if self.done > self.burn_in_end:
            self.tally.add(self.state, self.info)
            self.coverage.see(self.state.positions[:: self.ladder.n_rungs])
            violation = self.tolerances.violation(self.tally)
        self.stopped = None if self.tolerances.learns else violation
        if self.done % hybrid.save_interval_steps == 0 or self.stopped:  # what it stopped at is worth keeping
            self.writer.add(self.state, hybrid.dt_fs, np.arange(hybrid.replicas), self.segments, self.info)
            self._watch_species()
        if violation and not self.stopped:
            self._learn(violation)
        if self.done == self.burn_in_end and self.done != self.total:
            self._begin_production()
        if self._restart_file_is_due(self.done):
            self._write_restart_file()
            self._decide()

    def _freeze(self) -> None:
        """What the scheme settles by the first half of burn-in, of which the frames so far know nothing yet."""
        if self.done <= self.freeze_at:
            self.gaps += self.info.gap.tolist()
        if self.done == self.freeze_at:
            self.scheme.freeze(np.array(self.gaps).reshape(-1, 2))
            self.gaps = []

    def _learn(self, violation: str) -> None:
        """What went before a change of network belongs to another one: burn-in, and a new one after it."""
        learned = self.tolerances.learn(violation, self.done, self.run.checkpoint, self.tally)
        if learned is not None:
            self._begin_anew_with(learned)

    def _rehearse(self, frames: Trajectory) -> None:
        """Where the weights of production say little, what the run has asked is learned, if there is enough of it."""
        rows = frames.frames_of("train")
        words = self.rehearsal.shortfall(frames.weight[rows]) if frames.is_judged_by_weight else None
        if words is None:
            return
        n_truths = int(frames.accepted.sum())
        if (self.rehearsal.n_labels + n_truths > self.rehearsal.most_labels
                or not much_is_new(n_truths, self.tally, self.rehearsal.n_labels)):
            return
        if not self._pays_for(self._steps_to_weigh_anew()):  # burn-in is no result; a larger budget goes on from here
            self.aim.is_spent = self.is_over = True
            return
        learned = learn_from(self.writer.recorded_truths(), words, self.done, self.run.checkpoint, self.run.out,
                             self.tally, self.rehearsal.learn, self.rehearsal.n_labels)
        if learned is None:
            return
        log.info("%s: the network has learned the true calls of this run too, and production begins anew", words)
        self._begin_anew_with(learned)
        of_truth = {name: getattr(self.state, name) for name in ("energy", "forces", "step", "dipole")}
        self.state = State(self.state.positions, self.state.velocities, **of_truth)  # the network's own are another's
        self.aim.known, self.judged_at = None, None
        self._write_restart_file()

    def _begin_anew_with(self, learned: Path) -> None:
        self._go_on_with(learned)
        self.writer.call_burn_in(self.segments)
        self.burn_in_end = self.done + self.run.hybrid.burn_in_steps
        self.segments = self._open_segments("equil")

    def _go_on_with(self, learned: Path) -> None:
        """Another network, and a scheme made of it, which has settled nothing yet."""
        self.run = self.network.go_on_with(learned, self.run)
        self.scheme = SCHEMES[self.run.hybrid.scheme].build(
            self.run.hybrid, self.run.molecule, network=self.network.network, carry=self.network.carry,
            masses=self.scheme.masses, needs_forces=self.run.keeps_forces)
        self.tally.scheme = self.scheme

    def _begin_production(self) -> None:
        self.account.begin_production()
        self.segments = self._open_segments("train" if self.ensemble == "NVT" else "drift")

    def _open_segments(self, role: str) -> list[int]:
        """One segment per replica; what a rung above the target samples is not the target's ensemble."""
        target_K, n_dof = self.ladder.temperatures_K[0], degrees_of_freedom(len(self.run.molecule))
        return [self.writer.open_segment(r, role if temperature_K == target_K or role == "equil" else "hot",
                                         self.ensemble, temperature_K, n_dof)
                for r, temperature_K in enumerate(self.ladder.of(self.run.hybrid.replicas))]

    def _restart_file_is_due(self, done: int) -> bool:
        """Where a run may end, and be gone on with as if it had not."""
        return done % self.run.hybrid.checkpoint_interval == 0 or (
            self.aim is not None and self.aim.is_judged(done - self.burn_in_end))

    def _decide(self) -> None:
        """At rest: whether the run has reached its aim, or cannot pay for the way to its next rest."""
        if self.aim is None:
            return
        self.aim.is_spent = not self._pays_for(self._next_rest() - self.done)
        if self.aim.is_spent or self.aim.is_judged(self.done - self.burn_in_end):
            frames = self.writer.recorded_frames(self.facts())
            self.judge(frames)
            self.is_over = self.aim.is_spent or self.aim.shortfall() is None
            if not self.is_over and self.rehearsal is not None:
                self._rehearse(frames)

    def _pays_for(self, steps: int) -> bool:
        """Whether the budget of the aim allows so many macro-steps more."""
        spent = self.account.so_far()
        seconds = spent["wall_s"] * (1.0 + steps / max(self.done, 1))
        return self.aim.pays_for(spent["true_calls"] + steps * self.run.hybrid.replicas, seconds)

    def _steps_to_weigh_anew(self) -> int:
        """Macro-steps that another network takes until its weights can be judged: burn-in, and production."""
        hybrid = self.run.hybrid
        return hybrid.burn_in_steps - (-FEWEST_FRAMES // hybrid.replicas) * hybrid.save_interval_steps

    def judge(self, frames: Trajectory) -> None:
        """Let the aim take stock of all frames so far, once, whoever asks."""
        if self.aim is not None and self.judged_at != self.done:
            self.aim.judge(frames)
            self.judged_at = self.done

    def facts(self) -> dict:
        """What is known of the run beside its frames, for its metadata."""
        run = self.run
        return {**facts_of_run(run.molecule, self.scheme, run.hybrid, k_steps=self.scheme.k_steps, method=run.method,
                               seed=run.seed), **run.facts}

    def _next_rest(self) -> int:
        hybrid, produced = self.run.hybrid, self.done - self.burn_in_end
        regular = (self.done // hybrid.checkpoint_interval + 1) * hybrid.checkpoint_interval
        return min(regular, self.burn_in_end + judged_after(max(produced, 0), hybrid.save_interval_steps))

    def _write_restart_file(self) -> None:
        self.pool.forget()  # a resumed run has no SCF history either
        self.tolerances.save(self.writer.parts)
        self.writer.checkpoint(self.state, self.rng, {
            "done": self.done, "tally": self.tally.counts, "spent": self.account.so_far(),
            "segments": [int(s) for s in self.segments], "burn_in_end": self.burn_in_end,
            "learned": str(self.run.checkpoint) if self.tally.counts.get("learned") else None,
            "rotamers_seen": self.coverage.seen, "gaps": self.gaps, "frozen": self.scheme.frozen,
            "species": self.species.kept if self.species is not None else None,
            "recorded": self.tolerances.n_recorded})
        self.pool.begin(self.done)

    def _progress(self) -> str:
        produced_ps = self.done * self.scheme.k_steps * self.scheme.dt_ps * self.run.hybrid.replicas
        news = self.tally.progress(produced_ps, self.account.so_far()["wall_s"])
        return f"{news}, {self.aim.shortfall()}" if self.aim is not None and self.aim.known is not None else news
