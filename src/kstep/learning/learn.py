"""Self-learning: labels, network and chains grow together, then the network is frozen.

    bootstrap    short hot plain MD from every conformer, for a ladder of temperatures from turned
                 ones too (see `turns`); each true call is a label
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
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kstep.forces.pool import EvaluationPool
from kstep.learning.learn_config import LearnConfig
from kstep.learning.progress import Progress, Record, Seen
from kstep.learning.turned_torsions import turned_starts
from kstep.models import checkpoint as checkpoints
from kstep.models.model_config import ModelConfig
from kstep.molecules.molecule import Molecule
from kstep.runs.loop import initial_state, macro_steps, run
from kstep.runs.network_dynamics import make_carrier
from kstep.runs.run_network import load_network, network_arguments
from kstep.runs.sampler import sampler_masses
from kstep.schemes import Metropolis, Plain
from kstep.schemes.ladder import TemperatureLadder
from kstep.schemes.maxwell import draw_velocities
from kstep.schemes.state import State, put
from kstep.training.fit import fit
from kstep.training.labels import Labels
from kstep.units import PS_PER_FS, kT

COOLING_ROUNDS = 3  # good rounds from the hot to the target temperature

log = logging.getLogger("kstep")


@dataclass(frozen=True)
class Task:
    """What is learned: a molecule under a true potential, for sampling on a ladder of one or more temperatures."""

    molecule: Molecule
    spec: object
    method: str
    temperatures_K: tuple[float, ...]
    length_fs: float
    folder: Path
    seed: int
    n_workers: int
    device: str = "cpu"


def learn(task: Task, model: ModelConfig, config: LearnConfig, *, resume: bool = False) -> Path:
    """Learn a network for `task`; returns the checkpoint <folder>/network.pt.

    Beside it lie labels.npz (a dataset any network can be trained on), rounds.jsonl (what each
    round saw) and chains.npz (where the chains stand).
    """
    return _Learner(task, model, config).run(resume)


class _Learner:
    def __init__(self, task: Task, model: ModelConfig, config: LearnConfig):
        self.task, self.model, self.config = task, model, config
        self.masses = sampler_masses(task.molecule, config.learn_hydrogen_mass_Da)
        self.rng = np.random.default_rng([task.seed, 2])
        self.target_K = task.temperatures_K[0]
        self.length_fs = max(task.length_fs, config.last_length_fs)
        self.hot_K = max(config.hot_temperature_K, *task.temperatures_K)
        self.progress = Progress(temperature_K=self.hot_K, length_fs=config.first_length_fs)
        rungs = len(task.temperatures_K)
        self.n_chains = -(-config.learn_replicas // rungs) * rungs
        self.labels = Labels.empty(len(task.molecule))
        self.carry = None
        self.checkpoint = None
        self.network_path = task.folder / "network.pt"
        self.record = Record(task.folder, {
            "config": config.model_dump(), "model": model.model_dump(), "smiles": task.molecule.smiles,
            "method": task.method, "temperatures_K": task.temperatures_K, "length_fs": task.length_fs,
            "seed": task.seed, "workers": task.n_workers})

    # the story --------------------------------------------------------------------------------

    def run(self, resume: bool) -> Path:
        config = self.config
        self.task.folder.mkdir(parents=True, exist_ok=True)
        self._started, self._cpu_started = time.perf_counter(), time.process_time()
        try:
            with EvaluationPool(self.task.spec, self.task.n_workers) as self.pool:
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
                        state = self._verify(state)
                    self._save(state)
        finally:
            if self.carry is not None:
                self.carry.close()
        return self.network_path

    def _bootstrap(self) -> State:
        """Hot plain MD from every conformer in turn; the first labels."""
        config, molecule = self.config, self.task.molecule
        conformers = molecule.conformers[np.arange(self.n_chains) % len(molecule.conformers)]
        scheme = Plain(self.masses, config.bootstrap_dt_fs * PS_PER_FS)
        state = initial_state(self.pool, conformers, np.zeros_like(conformers))
        self.labels.append(state.positions, state.energy, state.forces, self.hot_K)
        if len(self.task.temperatures_K) > 1:  # alone, 300 K would not cross, and would never use these labels
            state = self._turn_over(state)

        def keep(proposal, truth):
            self.labels.append(proposal.positions, truth.energy, truth.forces, self.hot_K)

        wanted = config.bootstrap_labels_per_atom * len(molecule)
        temperature_K = 2.0 * self.hot_K  # from a minimum, half of it turns into potential energy
        while len(self.labels) < wanted:
            velocities = draw_velocities(self.n_chains, self.masses, temperature_K, self.rng)
            state = State(state.positions, velocities, state.energy, state.forces)
            state = run(scheme, self.pool, state, self.rng, config.bootstrap_redraw_steps, observe=keep)
            temperature_K = self.hot_K
        log.info("bootstrap: %d true calls at %g K from %d conformers", self.pool.true_calls, self.hot_K,
                 len(molecule.conformers))
        return state

    def _turn_over(self, state: State) -> State:
        """Every second chain starts with a torsion turned, where atoms do not clash."""
        molecule = self.task.molecule
        rows, turned = turned_starts(state.positions, molecule.numbers, molecule.bonds)
        if not len(rows):
            return state
        truth = self.pool.evaluate(turned, rows)
        self.labels.append(turned, truth.energy, truth.forces, self.hot_K)
        # a clash starts no chain: farther up than heat gets
        reach = self.config.fit_outlier_kT * max(1, 3 * len(molecule) - 6) * kT(self.hot_K)
        with np.errstate(invalid="ignore"):
            calm = ~truth.failed & (truth.energy < state.energy.min() + reach)
        new = {"positions": turned, "energy": truth.energy, "forces": truth.forces}
        return replace(state, **{name: put(getattr(state, name), rows[calm], value[calm])
                                 for name, value in new.items()})

    def _fit(self, passes: float) -> None:
        """Fit to all labels, going on from the network so far; `passes` over all of them."""
        cost = self._cost()
        self.checkpoint = fit(
            self.model, self.task.molecule, self.labels, self.config, method=self.task.method,
            true_calls=cost["true_calls_training"], dt_fs=self.config.inner_dt_fs, temperature_K=self.target_K,
            seed=self.task.seed, start=self.checkpoint and self.checkpoint["state_dict"],
            passes=passes).checkpoint
        self.checkpoint.update(cost)
        checkpoints.save(self.network_path, self.checkpoint)
        self._carry_with_new_network()

    def _round(self, state: State) -> tuple[State, Seen]:
        """Proposals with the new network; every answer becomes a label."""
        p, config = self.progress, self.config
        n_steps = math.ceil(config.round_growth * len(self.labels) / state.n_replicas)
        at_target = self._at_target()
        state, seen = self._propose(state, n_steps)
        if not at_target:
            seen = replace(seen, at_target=False)
        self._report("round", seen)
        if seen.acceptance >= config.advance_acceptance:
            p.temperature_K = max(self.target_K, p.temperature_K - (self.hot_K - self.target_K) / COOLING_ROUNDS)
            p.length_fs = min(self.length_fs, 2.0 * p.length_fs)
        return state, seen

    def _verify(self, state: State) -> State:
        """Fresh proposals with the last network: are acceptance and held-out error good enough to freeze it?"""
        p = self.progress
        p.temperature_K, p.length_fs = self.target_K, self.length_fs
        state, seen = self._propose(state, math.ceil(self.config.verify_proposals / state.n_replicas))
        self._report("verify", seen)
        good = (seen.acceptance >= self.config.target_acceptance
                and seen.heldout_kT <= self.config.heldout_energy_kT)
        p.done = good or self._exhausted()
        if p.done and not good:
            log.warning("the network reached an acceptance of %.2f (target %.2f) and a held-out error of %.2f kT "
                        "(%.2f) within %d true calls; the sampling stays exact but is slower; raise max_true_calls to "
                        "learn on",
                        seen.acceptance, self.config.target_acceptance, seen.heldout_kT, self.config.heldout_energy_kT,
                        self.pool.true_calls)
        if p.done:  # the weights are final; only what they cost is not yet in the file
            self.checkpoint.update(self._cost(), acceptance_verified=seen.acceptance)
            checkpoints.save(self.network_path, self.checkpoint)
        return state

    # its parts --------------------------------------------------------------------------------

    def _propose(self, state: State, n_macro_steps: int) -> tuple[State, Seen]:
        p, config = self.progress, self.config
        k_steps = max(1, round(p.length_fs / config.inner_dt_fs))
        # while it cools, no rung is colder than the loop is
        ladder = TemperatureLadder(tuple(max(t, p.temperature_K) for t in self.task.temperatures_K))
        scheme = Metropolis(self.carry, self.masses, config.inner_dt_fs * PS_PER_FS, k_steps, p.temperature_K,
                            length_law="uniform", ladder=ladder)
        accepted, errors = [], []

        def judge(proposal, truth):
            temperature_K = ladder.of(len(truth.energy))
            self.labels.append(proposal.positions, truth.energy, truth.forces, temperature_K)
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
        """Worth a last fit: it gains a few per cent over that of a round."""
        return seen.at_target and seen.acceptance >= self.config.target_acceptance - self.config.last_fit_gain

    def _exhausted(self) -> bool:
        return self.pool.true_calls >= self.config.max_true_calls

    def _carry_with_new_network(self) -> None:
        task = self.task
        arguments = network_arguments(self.network_path, task.molecule, task.method, task.device)
        self.network = load_network(**arguments)
        if self.carry is None:
            self.carry = make_carrier(self.network, load_network, arguments, min(task.n_workers, self.n_chains))
        else:
            self.carry.change_network(self.network, arguments)

    # what is written down ---------------------------------------------------------------------

    def _cost(self) -> dict:
        p = self.progress
        workers = self.pool.cpu_s + (self.carry.cpu_s if self.carry is not None else 0.0)
        return {"true_calls_training": p.true_calls + self.pool.true_calls,
                "cpu_s_training": p.cpu_s + time.process_time() - self._cpu_started + workers,
                "wall_s_training": p.wall_s + time.perf_counter() - self._started}

    def _report(self, what: str, seen: Seen) -> None:
        self.record.add(what, self.progress, seen, self._cost(), labels=len(self.labels),
                        failed_true_calls=len(self.pool.failures))

    def _save(self, state: State) -> None:
        """Everything a cut run needs to go on after this round."""
        self.pool.forget()  # a resumed run has no SCF history either
        cost = self._cost()
        self.labels.save(self.task.folder / "labels.npz", self.task.molecule, method=self.task.method,
                         true_calls=cost["true_calls_training"], dt_fs=self.config.inner_dt_fs)
        self.record.save(state, self.rng, self.progress, cost)

    def _restored(self) -> State | None:
        saved = self.record.restore(self.rng)
        if saved is None:
            return None
        state, self.progress = saved
        self.labels, _ = Labels.load(self.task.folder / "labels.npz")
        if self.network_path.is_file() and self.progress.round:
            self.checkpoint = checkpoints.load(self.network_path)
        return state
