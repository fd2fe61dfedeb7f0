"""Self-learning: labels, network and chains grow together, then the network is frozen.

    bootstrap    short hot plain MD from every start, for a ladder of temperatures from turned
                 ones too (learning/turned_torsions.py); each true call is a label
    rounds       fit; propose with the network, judge with the truth, and keep every answer as a
                 label, rejected proposals too; colder and longer as the acceptance allows
    last fit     long, on all labels; then fresh proposals must confirm acceptance and error

Everything here is burn-in: adaptation breaks detailed balance, so nothing of it is ever counted as
a sample, and its true calls and CPU seconds go on the network's bill.  The idea of self-learning
Monte Carlo: Liu, Qi, Meng, Fu, Phys. Rev. B 95, 041101 (2017).
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kstep.errors import UserError
from kstep.forces.pool import EvaluationPool
from kstep.learning.learn_config import LearnConfig
from kstep.learning.progress import Progress, Record, Seen
from kstep.learning.target import Target
from kstep.models import checkpoint as checkpoints
from kstep.models.model_config import ModelConfig
from kstep.runs.loop import initial_state, macro_steps, run
from kstep.runs.network_dynamics import make_carrier
from kstep.runs.sampler import sampler_masses
from kstep.schemes import Metropolis, Plain
from kstep.schemes.ladder import TemperatureLadder
from kstep.schemes.maxwell import draw_velocities
from kstep.schemes.state import State, put_rows
from kstep.training.labels import Labels
from kstep.units import PS_PER_FS, kT

COOLING_ROUNDS = 3  # good rounds from the hot to the target temperature

log = logging.getLogger("kstep")


def learn(target: Target, model: ModelConfig, config: LearnConfig, *, folder: Path, seed: int = 0, n_workers: int = 1,
          most_true_calls: int | None = None, resume: bool = False) -> Path:
    """Learn a network for `target`; returns the checkpoint <folder>/network.pt.

    Beside it lie labels.npz (a dataset any network can be trained on, where nothing but the labelled atoms is in
    it), rounds.jsonl (what each round saw) and chains.npz (where the chains stand).  Rounds end past
    config.max_true_calls; no call is made beyond most_true_calls, whose last ones are learned from whether or not a
    network was confirmed before.  Raises UserError where these are too few for one round.
    """
    return _Learner(target, model, config, folder, seed, n_workers, most_true_calls).run(resume)


class _Learner:
    def __init__(self, target: Target, model: ModelConfig, config: LearnConfig, folder: Path, seed: int,
                 n_workers: int, most_true_calls: int | None):
        self.target, self.model, self.config = target, model, config
        self.folder, self.seed, self.n_workers = folder, seed, n_workers
        self.masses = sampler_masses(target.molecule, config.learn_hydrogen_mass_Da)
        self.rng = np.random.default_rng([seed, 2])
        self.target_K = target.temperatures_K[0]
        self.dt_fs, self.length_fs = target.dt_fs(config), target.last_length_fs(config)
        self.hot_K = max(config.hot_temperature_K, *target.temperatures_K)
        self.progress = Progress(temperature_K=self.hot_K, length_fs=min(config.first_length_fs, self.length_fs))
        rungs = len(target.temperatures_K)
        self.n_chains = -(-config.learn_replicas // rungs) * rungs
        self.labels = Labels.empty(len(target.labelled))
        self.n_bootstrap = config.bootstrap_labels_per_atom * len(target.labelled)
        self.n_confirming = math.ceil(config.verify_proposals / self.n_chains)
        self.most_true_calls = most_true_calls
        self._check_budget()
        self.carry: Any = None  # kstep.runs.network_dynamics.make_carrier, once there is a network
        self.checkpoint: dict[str, Any] | None = None
        self.network_path = folder / "network.pt"
        self.record = Record(folder, {"config": config.model_dump(), "model": model.model_dump(), **target.facts,
                                      "seed": seed, "workers": n_workers, "most_true_calls": most_true_calls})

    def _check_budget(self) -> None:
        """Refuse a budget that starts, turned starts, hot MD and one round do not fit in."""
        redraws = math.ceil(self.n_bootstrap / (self.n_chains * self.config.bootstrap_redraw_steps))
        least = self.n_chains * (3 + redraws * self.config.bootstrap_redraw_steps)
        if self.most_true_calls is not None and self.most_true_calls < least:
            raise UserError(f"{self.most_true_calls} true calls are too few to learn {len(self.target.labelled)} atoms "
                            f"with {self.n_chains} chains; give at least {least}")

    # the story --------------------------------------------------------------------------------

    def run(self, resume: bool) -> Path:
        config = self.config
        self.folder.mkdir(parents=True, exist_ok=True)
        self._started, self._cpu_started = time.perf_counter(), time.process_time()
        try:
            with EvaluationPool(self.target.spec, self.n_workers) as self.pool:
                state = self._restored() if resume else None
                if state is None:
                    self.record.start_over()
                    state = self._bootstrap()
                    self._save(state)
                while not self.progress.done:
                    self.progress.round += 1
                    self._fit(config.round_passes)
                    state, seen = self._round(state)
                    if self._good(seen) or self._exhausted():
                        self._fit(config.fit_passes)
                        state = self._verify(state, seen)
                    self._save(state)
        finally:
            if self.carry is not None:
                self.carry.close()
        return self.network_path

    def _bootstrap(self) -> State:
        """Hot plain MD from every start in turn; the first labels."""
        config, starts = self.config, self.target.molecule.conformers
        starts = starts[np.arange(self.n_chains) % len(starts)]
        scheme = Plain(self.masses, config.bootstrap_dt_fs * PS_PER_FS)

        def keep(proposal, truth):
            self.labels.join(self.target.labels(proposal.positions, truth, self.hot_K))

        state = initial_state(self.pool, starts, np.zeros_like(starts), observe=keep)
        if len(self.target.temperatures_K) > 1:  # alone, 300 K would not cross, and would never use these labels
            state = self._turn_over(state)
        temperature_K = 2.0 * self.hot_K - self.target.starts_K  # half of what is missing turns into potential energy
        while len(self.labels) < self.n_bootstrap:
            velocities = draw_velocities(self.n_chains, self.masses, temperature_K, self.rng)
            state = State(state.positions, velocities, state.energy, state.forces)
            state = run(scheme, self.pool, state, self.rng, config.bootstrap_redraw_steps, observe=keep)
            temperature_K = self.hot_K
        log.info("bootstrap: %d true calls at %g K from %d starts", self.pool.true_calls, self.hot_K,
                 len(self.target.molecule.conformers))
        return state

    def _turn_over(self, state: State) -> State:
        """Every second chain starts with a torsion turned, where atoms do not clash."""
        rows, turned = self.target.turned(state.positions)
        if not len(rows):
            return state
        truth = self.pool.evaluate(turned, rows)
        self.labels.join(self.target.labels(turned, truth, self.hot_K))
        # a clash starts no chain: farther up than heat gets
        reach = self.config.fit_outlier_kT * max(1, 3 * len(self.target.labelled) - 6) * kT(self.hot_K)
        with np.errstate(invalid="ignore"):
            calm = ~truth.failed & (truth.energy < state.energy.min() + reach)
        return put_rows(state, rows[calm], positions=turned[calm], energy=truth.energy[calm], forces=truth.forces[calm])

    def _fit(self, passes: float) -> None:
        """Fit to all labels, going on from the network so far; `passes` over all of them."""
        cost = self._cost()
        self.checkpoint = self.target.fit(
            self.labels, self.model, self.config, true_calls=cost["true_calls_training"], dt_fs=self.dt_fs,
            seed=self.seed, start=self.checkpoint and self.checkpoint["state_dict"], passes=passes)
        self.checkpoint.update(cost)
        checkpoints.save(self.network_path, self.checkpoint)
        self._carry_with_new_network()

    def _round(self, state: State) -> tuple[State, Seen]:
        """Proposals with the new network; every answer becomes a label."""
        p, config = self.progress, self.config
        wanted = math.ceil(config.round_growth * len(self.labels) / state.n_replicas)
        n_steps = int(max(1, min(wanted, self._steps_left())))
        at_target = self._at_target()
        state, seen = self._propose(state, n_steps)
        if not at_target:
            seen = replace(seen, at_target=False)
        self._report("round", seen)
        if seen.acceptance >= config.advance_acceptance:
            p.temperature_K = max(self.target_K, p.temperature_K - (self.hot_K - self.target_K) / COOLING_ROUNDS)
            p.length_fs = min(self.length_fs, 2.0 * p.length_fs)
        return state, seen

    def _verify(self, state: State, seen: Seen) -> State:
        """Fresh proposals with the last network: are acceptance and held-out error good enough to freeze it?

        Where no calls are left for them it is frozen unconfirmed; seen: what the round before it showed.
        """
        p, good = self.progress, False
        if self._steps_left() >= self.n_confirming:
            p.temperature_K, p.length_fs, p.verified = self.target_K, self.length_fs, p.verified + 1
            state, seen = self._propose(state, self.n_confirming)
            self._report("verify", seen)
            self.checkpoint["acceptance_verified"] = seen.acceptance
            good = (seen.acceptance >= self.config.target_acceptance
                    and seen.heldout_kT <= self.config.heldout_energy_kT)
        p.done = good or self._exhausted()
        if p.done and not good:
            log.warning("the network reached an acceptance of %.2f (target %.2f) and a held-out error of %.2f kT "
                        "(%.2f) within %d true calls; the sampling stays exact but is slower; raise %s to learn on",
                        seen.acceptance, self.config.target_acceptance, seen.heldout_kT, self.config.heldout_energy_kT,
                        self._true_calls, "max_true_calls" if self.most_true_calls is None else "the number of calls")
        if p.done:  # the weights are final; only what they cost is not yet in the file
            self.checkpoint.update(self._cost())
            checkpoints.save(self.network_path, self.checkpoint)
        return state

    # its parts --------------------------------------------------------------------------------

    def _propose(self, state: State, n_macro_steps: int) -> tuple[State, Seen]:
        p = self.progress
        k_steps = max(1, round(p.length_fs / self.dt_fs))
        # while it cools, no rung is colder than the loop is
        ladder = TemperatureLadder(tuple(max(t, p.temperature_K) for t in self.target.temperatures_K))
        scheme = Metropolis(self.carry, self.masses, self.dt_fs * PS_PER_FS, k_steps, p.temperature_K,
                            length_law="uniform", ladder=ladder)
        accepted, errors = [], []

        def judge(proposal, truth):
            temperature_K = ladder.of(len(truth.energy))
            self.labels.join(self.target.labels(proposal.positions, truth, temperature_K))
            with np.errstate(all="ignore"):
                error = truth.energy - self.network.energy_and_forces(proposal.positions)[0]
            errors.append(error / kT(temperature_K))

        for state, info in macro_steps(scheme, self.pool, state, self.rng, n_macro_steps, observe=judge,
                                 n_parts=2 if self.pool.n_workers > 1 else 1):
            accepted.append(info.accepted)
        accepted, errors = np.array(accepted), np.concatenate(errors)
        errors = errors[np.isfinite(errors)]
        # a few proposals beyond every label would hide the error of all others: half the 16-84 % range
        spread = 0.5 * np.subtract(*np.percentile(errors, [84.13, 15.87])) if len(errors) else np.inf
        return state, Seen(accepted.size, float(accepted.mean()), float(spread), self._at_target())

    def _at_target(self) -> bool:
        return self.progress.temperature_K <= self.target_K and self.progress.length_fs >= self.length_fs

    def _good(self, seen: Seen) -> bool:
        """Worth a last fit: it gains a few per cent over that of a round.

        Where calls are numbered, one that was not good enough is tried again at the end alone.
        """
        return (seen.at_target and seen.acceptance >= self.config.target_acceptance - self.config.last_fit_gain
                and self._steps_left() >= self.n_confirming
                and not (self.most_true_calls and self.progress.verified))

    @property
    def _true_calls(self) -> int:
        return self.progress.true_calls + self.pool.true_calls

    def _steps_left(self) -> float:
        """Macro-steps that the calls left are enough for."""
        return math.inf if self.most_true_calls is None else (self.most_true_calls - self._true_calls) // self.n_chains

    def _exhausted(self) -> bool:
        return self._true_calls >= self.config.max_true_calls or self._steps_left() < 1

    def _carry_with_new_network(self) -> None:
        recipe = self.target.recipe
        arguments = {**recipe.arguments, "checkpoint": self.network_path, "device": self.target.device}
        self.network = recipe.load(**arguments)
        if self.carry is None:
            self.carry = make_carrier(self.network, recipe.load, arguments, min(self.n_workers, self.n_chains))
        else:
            self.carry.change_network(self.network, arguments)

    # what is written down ---------------------------------------------------------------------

    def _cost(self) -> dict:
        p = self.progress
        workers = self.pool.cpu_s + (self.carry.cpu_s if self.carry is not None else 0.0)
        return {"true_calls_training": self._true_calls,
                "cpu_s_training": p.cpu_s + time.process_time() - self._cpu_started + workers,
                "wall_s_training": p.wall_s + time.perf_counter() - self._started}

    def _report(self, what: str, seen: Seen) -> None:
        self.record.add(what, self.progress, seen, self._cost(), labels=len(self.labels),
                        failed_true_calls=len(self.pool.failures))

    def _save(self, state: State) -> None:
        """Everything a cut run needs to go on after this round."""
        self.pool.forget()  # a resumed run has no SCF history either
        cost = self._cost()
        self.labels.save(self.folder / "labels.npz", self.target.labelled, method=self.target.method,
                         true_calls=cost["true_calls_training"], dt_fs=self.dt_fs)
        self.record.save(state, self.rng, self.progress, cost)

    def _restored(self) -> State | None:
        saved = self.record.restore()
        if saved is None:
            return None
        state, self.rng, self.progress = saved
        self.labels, _ = Labels.load(self.folder / "labels.npz")
        if self.network_path.is_file() and self.progress.round:
            self.checkpoint = checkpoints.load(self.network_path)
        return state
