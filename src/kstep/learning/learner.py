"""Self-learning: labels, network and chains grow together, then the network is frozen.

    bootstrap    short hot plain MD from every start, and from
                 turned ones (learning/turned_torsions.py); each true call is a label
    rounds       fit afresh; the network explores as it will in production, on all rungs of its ladder and
                 judged by itself alone; the truth is asked where every rung arrives, and at rotamers drawn at random,
                 and each answer is a label; of many torsions every second ladder begins anew there, now and then
    the end      where more labels would cost more than they save (learning/ending.py): d = E_true - E_network is asked
                 on all starts, on hot true dynamics from them and at random rotamers, then the last fit is made, as
                 long as pays, on all labels, and fresh states of all rungs must show no hole; where they show that the
                 fit did not bring what was reckoned with, learning goes on

A hole is a state whose d is far from the median: a network too low there holds chains fast, one too high (a false wall)
hides a part of the molecule in silence, which only starts, true dynamics and rotamers can show.  What is found becomes
labels and leads to another round.

Everything here is burn-in: adaptation breaks detailed balance, so nothing of it is ever counted as
a sample, and its true calls and CPU seconds go on the network's bill.  The idea of self-learning
Monte Carlo: Liu, Qi, Meng, Fu, Phys. Rev. B 95, 041101 (2017).
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from kstep.errors import UserError
from kstep.files import Claim
from kstep.forces.journal import JournaledPool
from kstep.forces.pool import make_pool
from kstep.learning.earlier import Earlier
from kstep.learning.ending import RECENT, LastFit, SampleCost, Trend, acceptance, more_labels_pay
from kstep.learning.explorer import LabelSeeker
from kstep.learning.learn_config import LearnConfig
from kstep.learning.progress import Meter, Progress, Rounds, Seen
from kstep.learning.target import Target
from kstep.models import checkpoint as checkpoints
from kstep.models.model_config import ModelConfig
from kstep.runs.recorder import BEGIN_ANEW
from kstep.schemes.state import State

LABELS = "labels.npz"  # for others to train on
OF_NO_NETWORK = {"samples_wanted", "difference_batch", "least_share"}  # keys of the config that change no label, no fit
FEWEST_ROUNDS = 3  # a trend needs them, and one round's states are too few to show the tails of E_true - E_network
AFTER_HOLES = 0.25  # of the labels of a round, where nothing but the holes that were found is wanting
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
        self.explorer = LabelSeeker(target, config, seed, n_workers)
        self.progress = Progress()
        self.n_bootstrap = config.bootstrap_labels_per_atom * len(target.labelled)
        self.most_true_calls = most_true_calls
        self._check_budget()
        self.checkpoint: dict[str, Any] = {}
        self.network_path = folder / "network.pt"
        settings = {"config": config.model_dump(exclude=OF_NO_NETWORK), "model": model.model_dump()}
        self.record = Rounds(folder, {**settings, **target.facts, **earlier.facts, "seed": seed, "workers": n_workers,
                                      "most_true_calls": most_true_calls})

    def _check_budget(self) -> None:
        """Refuse a budget that starts, turned starts, hot MD and one round do not fit in."""
        n, every = self.explorer.n_chains, self.config.bootstrap_redraw_steps
        least = n * (3 + math.ceil(self.n_bootstrap / (n * every)) * every)
        if self.most_true_calls is not None and self.most_true_calls < least:
            raise UserError(f"{self.most_true_calls} true calls are too few to learn {len(self.target.labelled)} atoms "
                            f"with {n} chains; give at least {least}")

    # the story --------------------------------------------------------------------------------

    def run(self, resume: bool) -> Path:
        with Claim(self.folder, self.folder):
            state = self._restored()
            if self.progress.done:
                log.info("%s is learned already; %s", self.network_path, BEGIN_ANEW)
                return self.network_path
            self.record.check_asked("learning", state, resume)
            return self._learn(state, resume)

    def _learn(self, state: State | None, resume: bool) -> Path:
        self.spent = Meter()
        try:
            pool = self.target.surface(make_pool(self.target.spec, self.n_workers))
            with JournaledPool(pool, self.folder) as self.pool:
                self.explorer.pool = self.pool
                self.spent.of(lambda: self.pool.cpu_s, lambda: getattr(self.explorer.carry, "cpu_s", 0.0))
                self.pool.begin(0 if state is None else self.progress.round + 1, fresh=not resume)
                if state is None:
                    state = self._bootstrap()
                    self._save(state)
                while not self.progress.done:
                    self.progress.round += 1
                    n_fitted, began = len(self.explorer.labels), self.spent.cpu_s
                    self._fit(self.config.round_passes)
                    fitted = self.spent.cpu_s
                    state, seen = self._round(state)
                    self._reckon(seen, n_fitted, fitted - began, self.spent.cpu_s - fitted)
                    if self._exhausted() or not self._more_labels_pay():
                        state = self._end(state, seen)
                    self._save(state)
                self.pool.end()
        finally:
            self.explorer.close()
        return self.network_path

    def _bootstrap(self) -> State:
        """The first labels, of every start in turn: by hot plain MD, or where an earlier network leads."""
        began, p, explorer = self.spent.cpu_s, self.progress, self.explorer
        explorer.labels, p.earlier_calls = self.earlier.labels_of(self.target)
        fewest = 0 if len(explorer.labels) else 1  # chains at one start are one geometry, which shows no slope
        before = self.target.starts_spent
        p.earlier_calls += int(before.get("true_calls", 0))
        p.cpu_s, p.wall_s = before.get("cpu_s", 0.0), before.get("wall_s", 0.0)
        state = explorer.at_starts()
        # alone, 300 K would not cross, and would never use these labels; restraints keep it from them
        if len(explorer.rungs_K) > 1 and not self.target.spec.restraints:
            state = explorer.turn_over(state)
        p.call_s = (self.spent.cpu_s - began) / max(1, self.pool.true_calls)
        n_steps = max(fewest, math.ceil((self.n_bootstrap - len(explorer.labels)) / explorer.n_chains))
        if self.earlier.checkpoint is not None and n_steps:
            explorer.lead_with(self.earlier.arguments(self.target))
            return explorer.explore(state, n_steps)[0]
        began, asked = self.spent.cpu_s, self.pool.true_calls
        state = explorer.true_dynamics(state, n_steps)
        if n_steps:  # the first SCF of a chain has no guess
            p.call_s = (self.spent.cpu_s - began) / (self.pool.true_calls - asked)
        log.info("bootstrap: %d true calls at %g K from %d starts", self.pool.true_calls, explorer.hot_K,
                 len(self.target.molecule.conformers))
        return state

    def _fit(self, passes: float) -> None:
        """Fit afresh to all labels, `passes` over all of them while they are few; the network leads from now on.

        Nothing of an earlier fit is kept: a network is a function of its labels alone, and its scales are those of all
        rungs.
        """
        cost, labels, explorer = self._cost(), self.explorer.labels, self.explorer
        self.checkpoint = self.target.fit(
            labels, self.model, self.config, true_calls=cost["true_calls_training"],
            dt_fs=self.target.dt_fs(self.config), seed=self.seed, passes=self.config.passes(passes, len(labels)))
        self.checkpoint.update(cost, ladder_K=list(explorer.rungs_K))
        checkpoints.save(self.network_path, self.checkpoint)
        explorer.lead_with({**self.target.recipe.arguments, "checkpoint": self.network_path,
                            "device": self.target.device})

    def _round(self, state: State) -> tuple[State, Seen]:
        """The network explores; every answer becomes a label."""
        explorer = self.explorer
        before = len(explorer.labels)
        few = self.progress.found and not self._more_labels_pay()
        growth = self.config.round_growth * (AFTER_HOLES if few else 1.0)
        wanted = math.ceil(growth * before / explorer.n_chains)
        state, seen = explorer.explore(state, int(max(1, min(wanted, self._questions_left()))), apart=True)
        missing = wanted - math.ceil((len(explorer.labels) - before) / explorer.n_chains)
        if missing > wanted / 2:  # a network that holds its chains fast learns nothing from them
            state = explorer.true_dynamics(state, int(min(missing, self._questions_left())))
        self._report("round", seen)
        return state, seen

    def _end(self, state: State, seen: Seen) -> State:
        """Look for holes on true dynamics, make the last fit, look at fresh states: are there none, it is frozen.

        Calls that are not left are not made; seen: what the round before showed.
        """
        p, config, explorer = self.progress, self.config, self.explorer
        may = self._questions_left() * explorer.n_chains >= explorer.search_calls
        x, energy = explorer.searched() if may else (None, None)
        if x is not None:
            found = explorer.holes_among(x, energy)
            p.searched += len(x)
            log.info("%d starts and states of true dynamics: %d holes or false walls", len(x), found)
            if found and not self._exhausted():
                p.found += found
                return state
        length, n_fitted = self._length_that_pays(), len(explorer.labels)
        self._fit(config.fit_passes * length)
        found = 0 if x is None else explorer.holes_among(x, energy)
        n_questions = math.ceil(config.verify_proposals / explorer.n_chains)
        if self._questions_left() >= n_questions:
            state, seen = explorer.explore(state, n_questions, longer=LONGER)
            self._report("verify", seen)
            p.searched += seen.states
            found += sum(seen.holes)
            if sum(seen.holes):  # where a chain in one says nothing of the spread elsewhere; and longer fits have more
                p.longest = max(1, length // 2)
            else:
                p.left = self._last_fit.learned_from(self._of_round_kT(n_fitted), length, seen.spread_kT[0]).left
        p.found += found
        wanting = bool(found) or self._more_labels_pay(made=length)
        p.done = not wanting or self._exhausted()
        if p.done:
            self._freeze(seen, found, wanting)
        return state

    def _freeze(self, seen: Seen, found: int, wanting: bool) -> None:
        """The weights are final; what they promise and what they cost is written beside them."""
        if wanting:
            log.warning("the network's error spreads by %.2f kT (acceptance %.2f), %d states of it in holes, after %d "
                        "true calls; the sampling stays exact but is slower; raise %s to learn on", seen.spread_kT[0],
                        acceptance(seen.spread_kT[0]), found, self._true_calls,
                        "max_true_calls" if self.most_true_calls is None else "the number of calls")
        self.checkpoint.update(self._cost(), d_spread_kT=seen.spread_kT[0],
                               acceptance_expected=acceptance(seen.spread_kT[0]),
                               holes={"searched": self.progress.searched, "found": found})
        checkpoints.save(self.network_path, self.checkpoint)

    # whether to go on -------------------------------------------------------------------------

    def _reckon(self, seen: Seen, n_fitted: int, fit_s: float, chains_s: float) -> None:
        """What a round showed and cost, for the decision to go on; chains_s: CPU seconds of its chains, truth and all.

        What is measured is rounded to a power of two: a run should end where another one of the same seed does.
        """
        p, asked = self.progress, len(self.explorer.labels) - n_fitted
        p.rounds.append([n_fitted, seen.spread_kT[0], seen.states // len(self.explorer.rungs_K)])
        p.overhead, p.moves = self.config.fit_cost_calls, 0.0
        if p.overhead is None:
            call_s = max(p.call_s if self.target.call_cost_s is None else self.target.call_cost_s, 1e-9)
            moves_s = max(chains_s - asked * p.call_s, 1e-9)
            p.overhead = _rounded((fit_s + moves_s) / n_fitted / call_s)
            p.moves = _rounded(len(self.explorer.rungs_K) * moves_s / max(asked, 1) / call_s)

    def _more_labels_pay(self, made: int | None = None) -> bool:
        """made: the length of the last fit, where it has been made of these labels."""
        p = self.progress
        return p.round < FEWEST_ROUNDS or more_labels_pay(
            p.rounds, len(self.explorer.labels), growth=self.config.round_growth, overhead=p.overhead,
            sampling=self._sampling, last_fit=self._last_fit, made=made)

    @property
    def _sampling(self) -> SampleCost:
        return SampleCost(self.config.samples_wanted, self.target.calls_per_sample, self.progress.moves)

    @property
    def _last_fit(self) -> LastFit:
        """As far as it is known; a round's overhead is nearly all of its fit."""
        p, config = self.progress, self.config
        return LastFit(p.left, p.overhead * config.fit_passes / config.round_passes, p.longest)

    def _length_that_pays(self) -> int:
        """How many times fit_passes the last fit is to make."""
        n_labels = len(self.explorer.labels)
        return self._last_fit.best(self._of_round_kT(n_labels), n_labels, self._sampling)[1]

    def _of_round_kT(self, n_labels: int) -> float:
        """Spread that a round's fit to so many labels leaves, as the trend has it; inf where nothing is known of it."""
        rounds = self.progress.rounds[-RECENT:]
        return Trend.of(rounds).spread(n_labels) if all(math.isfinite(s) for _, s, _ in rounds) else math.inf

    @property
    def _true_calls(self) -> int:
        return self.progress.true_calls + self.pool.true_calls

    def _questions_left(self) -> float:
        """How often the calls left are enough to ask about all chains."""
        if self.most_true_calls is None:
            return math.inf
        return (self.most_true_calls - self._true_calls) // self.explorer.n_chains

    def _exhausted(self) -> bool:
        return self._true_calls >= self.config.max_true_calls or self._questions_left() < 1

    # what is written down ---------------------------------------------------------------------

    def _cost(self) -> dict:
        p = self.progress
        return {"true_calls_training": self._true_calls + p.earlier_calls, "cpu_s_training": p.cpu_s + self.spent.cpu_s,
                "wall_s_training": p.wall_s + self.spent.wall_s}

    def _report(self, what: str, seen: Seen) -> None:
        self.record.add(what, self.progress, seen, self._cost(), labels=len(self.explorer.labels),
                        ladder_K=list(self.explorer.rungs_K), failed_true_calls=len(self.pool.failures))

    def _save(self, state: State) -> None:
        """Everything a cut run needs to go on after this round."""
        self.pool.forget()  # a resumed run has no SCF history either
        cost, labels = self._cost(), self.explorer.labels
        labels.save(self.folder / LABELS, self.target.labelled, method=self.target.method,
                    true_calls=cost["true_calls_training"], dt_fs=self.target.dt_fs(self.config))
        self.record.save(state, self.explorer.rng, self.progress, cost, labels)
        self.pool.begin(self.progress.round + 1)

    def _restored(self) -> State | None:
        saved = self.record.restore()
        if saved is None:
            self.record.check_free((self.network_path.name, LABELS))
            return None
        state, self.explorer.rng, self.progress, self.explorer.labels = saved
        if self.progress.done and not self.network_path.is_file():
            raise UserError(f"{self.network_path}, which was learned, is gone; put it back, or {BEGIN_ANEW}")
        return state


def _rounded(number: float) -> float:
    return 2.0 ** round(math.log2(number))
