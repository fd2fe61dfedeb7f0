"""Self-learning: labels, network and chains grow together, then the network is frozen.

    bootstrap    short hot plain MD from every start, and from
                 turned ones (learning/turned_torsions.py); each true call is a label
    rounds       fit afresh; the network explores as it will in production, on all rungs of its ladder and
                 judged by itself alone; the truth is asked where every rung arrives, and each answer is a label; of
                 many torsions every second ladder begins anew, now and then, at rotamers drawn at random
    the end      where more labels would cost more than they save (learning/ending.py): d = E_true - E_network is asked
                 on all starts and on hot true dynamics from them, then the last fit is made, long, on all labels, and
                 fresh states of all rungs must show no hole

A hole is a state whose d is far from the median: a network too low there holds chains fast, one too high (a false wall)
hides a part of the molecule in silence, which only starts and true dynamics can show.  What is found becomes labels
and leads to another round.

Everything here is burn-in: adaptation breaks detailed balance, so nothing of it is ever counted as
a sample, and its true calls and CPU seconds go on the network's bill.  The idea of self-learning
Monte Carlo: Liu, Qi, Meng, Fu, Phys. Rev. B 95, 041101 (2017).
"""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from kstep.errors import UserError
from kstep.files import Claim
from kstep.forces.journal import JournaledPool
from kstep.forces.pool import make_pool
from kstep.learning.chains import Chains, Judgement
from kstep.learning.earlier import Earlier
from kstep.learning.ending import acceptance, more_labels_pay
from kstep.learning.learn_config import LearnConfig
from kstep.learning.progress import Progress, Record, Seen
from kstep.learning.target import Target
from kstep.models import checkpoint as checkpoints
from kstep.models.model_config import ModelConfig
from kstep.runs.loop import initial_state, run
from kstep.runs.network_dynamics import make_carrier
from kstep.runs.recorder import BEGIN_ANEW
from kstep.runs.sampler import sampler_masses
from kstep.schemes import Plain
from kstep.schemes.maxwell import draw_velocities
from kstep.schemes.network_ladder import NetworkLadder
from kstep.schemes.state import State, put_rows
from kstep.training.labels import Labels
from kstep.units import PS_PER_FS, kT

LABELS = "labels.npz"  # for others to train on
OF_NO_NETWORK = {"samples_wanted", "difference_batch", "least_share"}  # keys of the config that change no label, no fit
FEWEST_ROUNDS = 3  # a trend needs them, and one round's states are too few to show the tails of E_true - E_network
AFTER_HOLES = 0.25  # of the labels of a round, where nothing but the holes that were found is wanting
SCATTERED_EVERY = 5  # questions, in a round, of a molecule of many torsions
LONGER = 4  # moves between questions where holes are looked for: a chain comes to one in time, and moves cost no call

log = logging.getLogger("kstep")


def learn(target: Target, model: ModelConfig, config: LearnConfig, *, folder: Path, seed: int = 0, n_workers: int = 1,
          most_true_calls: int | None = None, resume: bool = False, earlier: Earlier | None = None) -> Path:
    """Learn a network for `target`; returns the checkpoint <folder>/network.pt.

    Beside it lie labels.npz (a dataset any network can be trained on, where nothing but the labelled atoms is in
    it), rounds.jsonl (what each round saw) and chains.npz (where the chains stand).  Rounds end past
    config.max_true_calls; no call is made beyond most_true_calls, whose last ones are learned from whether or not a
    network was confirmed before.  The checkpoint says ladder_K (the rungs learned), d_spread_kT (of d at the coldest),
    acceptance_expected (of independent proposals), and holes (states searched for them, and found in the end).
    earlier: what another learning left, which then saves most of the bootstrap.  What is in the folder is never
    replaced: a finished learning of the same settings is the result, whether or not this one resumes.  Raises
    UserError for one of other settings, for an unfinished one without resume, and where most_true_calls are too few for
    one round.
    """
    return _Learner(target, model, config, folder, seed, n_workers, most_true_calls, earlier or Earlier()).run(resume)


class _Learner:
    def __init__(self, target: Target, model: ModelConfig, config: LearnConfig, folder: Path, seed: int,
                 n_workers: int, most_true_calls: int | None, earlier: Earlier):
        self.target, self.model, self.config = target, model, config
        self.folder, self.seed, self.n_workers, self.earlier = folder, seed, n_workers, earlier
        self.masses = sampler_masses(target.molecule, config.learn_hydrogen_mass_Da)
        self.rng = np.random.default_rng([seed, 2])
        self.dt_fs, self.rungs_K = target.dt_fs(config), target.rungs_K(config)
        self.hot_K = max(config.hot_temperature_K, *target.temperatures_K)
        self.progress = Progress()
        self.n_chains = -(-config.learn_replicas // len(self.rungs_K)) * len(self.rungs_K)
        self.labels = Labels.empty(len(target.labelled))
        self.n_bootstrap = config.bootstrap_labels_per_atom * len(target.labelled)
        self.most_true_calls = most_true_calls
        self._check_budget()
        self.carry: Any = None  # kstep.runs.network_dynamics.make_carrier, once there is a network
        self.checkpoint: dict[str, Any] = {}
        self.network_path = folder / "network.pt"
        settings = {"config": config.model_dump(exclude=OF_NO_NETWORK), "model": model.model_dump()}
        self.record = Record(folder, {**settings, **target.facts, **earlier.facts, "seed": seed, "workers": n_workers,
                                      "most_true_calls": most_true_calls})

    def _check_budget(self) -> None:
        """Refuse a budget that starts, turned starts, hot MD and one round do not fit in."""
        redraws = math.ceil(self.n_bootstrap / (self.n_chains * self.config.bootstrap_redraw_steps))
        least = self.n_chains * (3 + redraws * self.config.bootstrap_redraw_steps)
        if self.most_true_calls is not None and self.most_true_calls < least:
            raise UserError(f"{self.most_true_calls} true calls are too few to learn {len(self.target.labelled)} atoms "
                            f"with {self.n_chains} chains; give at least {least}")

    # the story --------------------------------------------------------------------------------

    def run(self, resume: bool) -> Path:
        with Claim(self.folder, self.folder):
            state = self._restored()
            if self.progress.done:
                log.info("%s is learned already; %s", self.network_path, BEGIN_ANEW)
                return self.network_path
            if state is not None and not resume:
                raise UserError(f"{self.folder} holds a learning that has not finished; --resume goes on with it, "
                                f"{BEGIN_ANEW}")
            return self._learn(state, resume)

    def _learn(self, state: State | None, resume: bool) -> Path:
        self._started, self._cpu_started = time.perf_counter(), time.process_time()
        try:
            pool = self.target.surface(make_pool(self.target.spec, self.n_workers))
            with JournaledPool(pool, self.folder) as self.pool:
                self.pool.begin(0 if state is None else self.progress.round + 1, fresh=not resume)
                if state is None:
                    state = self._bootstrap()
                    self._save(state)
                while not self.progress.done:
                    self.progress.round += 1
                    began = self._cpu_s()
                    n_fitted = len(self.labels)
                    self._fit(self.config.round_passes)
                    state, seen = self._round(state)
                    self._reckon(seen, n_fitted, began)
                    if self._exhausted() or not self._more_labels_pay():
                        state = self._end(state, seen)
                    self._save(state)
                self.pool.end()
        finally:
            if self.carry is not None:
                self.carry.close()
        return self.network_path

    def _bootstrap(self) -> State:
        """The first labels, of every start in turn: by hot plain MD, or where an earlier network leads."""
        began, starts = self._cpu_s(), self._starts(self.n_chains)
        self.labels, self.progress.earlier_calls = self.earlier.labels_of(self.target)
        spent = self.target.starts_spent
        self.progress.earlier_calls += int(spent.get("true_calls", 0))
        self.progress.cpu_s, self.progress.wall_s = spent.get("cpu_s", 0.0), spent.get("wall_s", 0.0)

        def keep(proposal, truth):
            self.labels.join(self.target.labels(proposal.positions, truth, self.hot_K))

        state = initial_state(self.pool, starts, np.zeros_like(starts), observe=keep)
        # alone, 300 K would not cross, and would never use these labels; restraints keep it from them
        if len(self.rungs_K) > 1 and not self.target.spec.restraints:
            state = self._turn_over(state)
        self.progress.call_s = (self._cpu_s() - began) / max(1, self.pool.true_calls)
        n_steps = max(0, math.ceil((self.n_bootstrap - len(self.labels)) / self.n_chains))
        if self.earlier.checkpoint is not None and n_steps:
            self._carry_with(self.earlier.arguments(self.target))
            return self._explore(state, n_steps)[0]
        began, before = self._cpu_s(), self.pool.true_calls
        state = self._true_dynamics(state, n_steps, keep)
        if n_steps:  # the first SCF of a chain has no guess
            self.progress.call_s = (self._cpu_s() - began) / (self.pool.true_calls - before)
        log.info("bootstrap: %d true calls at %g K from %d starts", self.pool.true_calls, self.hot_K,
                 len(self.target.molecule.conformers))
        return state

    def _starts(self, n: int) -> np.ndarray:
        """n positions (n,N,3): every conformer in turn."""
        conformers = self.target.molecule.conformers
        return conformers[np.arange(n) % len(conformers)]

    def _true_dynamics(self, state: State, n_steps: int, observe) -> State:
        """Plain MD from starts, hot; observe(proposal, truth) sees every answer."""
        scheme, every = Plain(self.masses, self.config.bootstrap_dt_fs * PS_PER_FS), self.config.bootstrap_redraw_steps
        temperature_K = 2.0 * self.hot_K - self.target.starts_K  # half of what is missing turns into potential energy
        for step in range(0, n_steps, every):
            velocities = draw_velocities(state.n_replicas, self.masses, temperature_K, self.rng)
            state = State(state.positions, velocities, state.energy, state.forces)
            state = run(scheme, self.pool, state, self.rng, min(every, n_steps - step), observe=observe)
            temperature_K = self.hot_K
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
        """Fit afresh to all labels, `passes` over all of them while they are few.

        Nothing of an earlier fit is kept: a network is a function of its labels alone, and its scales are those of all
        rungs.
        """
        cost = self._cost()
        self.checkpoint = self.target.fit(
            self.labels, self.model, self.config, true_calls=cost["true_calls_training"], dt_fs=self.dt_fs,
            seed=self.seed, passes=self.config.passes(passes, len(self.labels)))
        self.checkpoint.update(cost, ladder_K=list(self.rungs_K))
        checkpoints.save(self.network_path, self.checkpoint)
        self._carry_with_new_network()

    def _round(self, state: State) -> tuple[State, Seen]:
        """The network explores; every answer becomes a label."""
        before = len(self.labels)
        growth = self.config.round_growth * (AFTER_HOLES if self.progress.found else 1.0)
        wanted = math.ceil(growth * before / self.n_chains)
        state, seen = self._explore(state, int(max(1, min(wanted, self._questions_left()))), scatter=self._scatter())
        missing = wanted - math.ceil((len(self.labels) - before) / self.n_chains)
        if missing > wanted / 2:  # a network that holds its chains fast learns nothing from them
            state = self._true_dynamics(state, int(min(missing, self._questions_left())), self._keeper())
        self._report("round", seen)
        return state, seen

    def _end(self, state: State, seen: Seen) -> State:
        """Look for holes on true dynamics, make the last fit, look at fresh states: are there none, it is frozen.

        Calls that are not left are not made; seen: what the round before showed.
        """
        p, config = self.progress, self.config
        calls = self._n_searchers * (config.search_steps + 1)
        x, energy = self._searched() if self._questions_left() * self.n_chains >= calls else (None, None)
        if x is not None:
            found = self._holes_among(x, energy)
            p.searched += len(x)
            log.info("%d starts and states of true dynamics: %d holes or false walls", len(x), found)
            if found and not self._exhausted():
                p.found += found
                return state
        self._fit(config.fit_passes)
        found = 0 if x is None else self._holes_among(x, energy)
        n_questions = math.ceil(config.verify_proposals / self.n_chains)
        if self._questions_left() >= n_questions:
            state, seen = self._explore(state, n_questions, LONGER)
            self._report("verify", seen)
            p.searched += seen.states
            found += sum(seen.holes)
        p.found += found
        p.done = not found or self._exhausted()
        if p.done:
            self._freeze(seen, found)
        return state

    def _freeze(self, seen: Seen, found: int) -> None:
        """The weights are final; what they promise and what they cost is written beside them."""
        if self._exhausted() and (found or self._more_labels_pay()):
            log.warning("the network's error spreads by %.2f kT (acceptance %.2f), %d states of it in holes, after %d "
                        "true calls; the sampling stays exact but is slower; raise %s to learn on", seen.spread_kT[0],
                        acceptance(seen.spread_kT[0]), found, self._true_calls,
                        "max_true_calls" if self.most_true_calls is None else "the number of calls")
        self.checkpoint.update(self._cost(), d_spread_kT=seen.spread_kT[0],
                               acceptance_expected=acceptance(seen.spread_kT[0]),
                               holes={"searched": self.progress.searched, "found": found})
        checkpoints.save(self.network_path, self.checkpoint)

    # its parts --------------------------------------------------------------------------------

    def _explore(self, state: State, n_questions: int, longer: int = 1, scatter=None) -> tuple[State, Seen]:
        """Moves of the network on its ladder, and the truth asked n_questions times where all rungs arrive.

        scatter: draws where every second ladder begins anew, after every SCATTERED_EVERY questions.
        """
        n_moves, length_fs = self.target.moves(self.config)
        ladder = NetworkLadder(self.network, self.carry, self.masses, self.dt_fs * PS_PER_FS, self.rungs_K,
                               n_moves=longer * n_moves, move_steps=max(1, round(length_fs / self.dt_fs)),
                               **self.target.means(self.network))
        known = self.target.known_ground(self.network, self.labels, max(self.rungs_K))
        chains = Chains(ladder, state, Judgement(self.rungs_K, self.config.hole_kT), known, self.rng)
        n_parts, block = 2 if self.n_workers > 1 else 1, SCATTERED_EVERY if scatter else n_questions
        for asked in range(0, n_questions, block):
            if scatter is not None and n_questions - asked >= block:
                chains.scatter(scatter)
            chains.ask(self.pool, min(block, n_questions - asked), self._keeper(), n_parts=n_parts)
        return chains.state, Seen(**chains.seen())

    def _scatter(self):
        """What draws rotamers at random for a round; restraints, or one temperature alone, keep chains from them."""
        may = len(self.rungs_K) > 1 and self.n_chains > len(self.rungs_K) and not self.target.spec.restraints
        return self.target.scatter() if may else None

    def _keeper(self):
        """What makes labels of proposals and their answers, at the temperature of the rung that each belongs to."""
        ladder_K = np.array(self.rungs_K)

        def keep(proposal, truth):
            self.labels.join(self.target.labels(proposal.positions, truth, ladder_K[proposal.rows % len(ladder_K)]))

        return keep

    def _searched(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions (S,N,3) and true energies (S,) of all starts and of hot true dynamics from them; labels too."""
        positions, energies = [], []

        def keep(proposal, truth):
            self.labels.join(self.target.labels(proposal.positions, truth, self.hot_K))
            positions.append(proposal.positions)
            energies.append(truth.energy)

        starts = self._starts(self._n_searchers)
        state = initial_state(self.pool, starts, np.zeros_like(starts), observe=keep)
        self._true_dynamics(state, self.config.search_steps, keep)
        return np.concatenate(positions), np.concatenate(energies)

    @property
    def _n_searchers(self) -> int:
        """Replicas of true dynamics that look for holes: one from every start, and as many as there are chains."""
        return max(self.n_chains, len(self.target.molecule.conformers))

    def _holes_among(self, positions: np.ndarray, energy: np.ndarray) -> int:
        """How many of S positions (S,N,3), whose true energies (S,) are known, the network has a hole or a wall at."""
        with np.errstate(all="ignore"):
            d = energy - self.network.energy_and_forces(positions)[0]
        there = np.isfinite(energy)
        return int((~Judgement((self.hot_K,), self.config.hole_kT).sound(d[there, None], d[there, None])).sum())

    def _reckon(self, seen: Seen, n_fitted: int, began: float) -> None:
        """What a round showed and cost, for the decision to go on.

        What is measured is rounded to a power of two: a run should end where another one of the same seed does.
        """
        p, asked = self.progress, len(self.labels) - n_fitted
        p.rounds.append([n_fitted, seen.spread_kT[0], seen.states // len(self.rungs_K)])
        p.overhead = self.config.fit_cost_calls
        if p.overhead is None:
            own_s = max(self._cpu_s() - began - asked * p.call_s, 1e-9)
            p.overhead = 2.0 ** round(math.log2(own_s / (n_fitted * max(p.call_s, 1e-9))))

    def _more_labels_pay(self) -> bool:
        config, p = self.config, self.progress
        return p.round < FEWEST_ROUNDS or more_labels_pay(p.rounds, len(self.labels), growth=config.round_growth,
                               samples_wanted=config.samples_wanted, overhead=p.overhead,
                               calls_per_sample=self.target.calls_per_sample)

    @property
    def _true_calls(self) -> int:
        return self.progress.true_calls + self.pool.true_calls

    def _questions_left(self) -> float:
        """How often the calls left are enough to ask about all chains."""
        return math.inf if self.most_true_calls is None else (self.most_true_calls - self._true_calls) // self.n_chains

    def _exhausted(self) -> bool:
        return self._true_calls >= self.config.max_true_calls or self._questions_left() < 1

    def _carry_with_new_network(self) -> None:
        self._carry_with({**self.target.recipe.arguments, "checkpoint": self.network_path,
                          "device": self.target.device})

    def _carry_with(self, arguments: dict) -> None:
        load = self.target.recipe.load
        self.network = load(**arguments)
        if self.carry is None:
            self.carry = make_carrier(self.network, load, arguments, min(self.n_workers, self.n_chains))
        else:
            self.carry.change_network(self.network, arguments)

    # what is written down ---------------------------------------------------------------------

    def _cpu_s(self) -> float:
        """CPU seconds of this process and its workers."""
        return (time.process_time() - self._cpu_started + self.pool.cpu_s
                + (self.carry.cpu_s if self.carry is not None else 0.0))

    def _cost(self) -> dict:
        p = self.progress
        return {"true_calls_training": self._true_calls + p.earlier_calls, "cpu_s_training": p.cpu_s + self._cpu_s(),
                "wall_s_training": p.wall_s + time.perf_counter() - self._started}

    def _report(self, what: str, seen: Seen) -> None:
        self.record.add(what, self.progress, seen, self._cost(), labels=len(self.labels), ladder_K=list(self.rungs_K),
                        failed_true_calls=len(self.pool.failures))

    def _save(self, state: State) -> None:
        """Everything a cut run needs to go on after this round."""
        self.pool.forget()  # a resumed run has no SCF history either
        cost = self._cost()
        self.labels.save(self.folder / LABELS, self.target.labelled, method=self.target.method,
                         true_calls=cost["true_calls_training"], dt_fs=self.dt_fs)
        self.record.save(state, self.rng, self.progress, cost, self.labels)
        self.pool.begin(self.progress.round + 1)

    def _restored(self) -> State | None:
        saved = self.record.restore()
        if saved is None:
            self.record.check_free((self.network_path.name, LABELS))
            return None
        state, self.rng, self.progress, self.labels = saved
        if self.progress.done and not self.network_path.is_file():
            raise UserError(f"{self.network_path}, which was learned, is gone; put it back, or {BEGIN_ANEW}")
        return state
