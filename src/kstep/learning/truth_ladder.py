"""Ladders of truth: learn at a cheap method, then only the difference to the next dearer one, and so on.

    learn            a network of the cheapest rung (learner.py), whose calls are milliseconds
    climb            for each dearer rung: states of the network's own chains, a question to the dear truth about each
                     and a fit of the difference to all below (training/difference.py); again, until more labels would
                     cost more calls than they save in sampling
    learn again      a network of the cheapest rung plus all differences (corrected.py): no call but of the cheapest

Between two questions a chain makes nested proposals (schemes/nested.py) under U_net + sum D, D of the labels so far: it
samples the dear method as far as that is known, where a difference is then asked for.  How far D can be trusted is what
every label's energy says of a D without that label; no states are held out.

Whatever a rung is worth, what is sampled afterwards is exact, since there the dear truth judges (Christen & Fox, J.
Comput. Graph. Stat. 14, 795 (2005)): a bad one only costs acceptance.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kstep.errors import UserError
from kstep.files import Claim, sha256, write_text_atomic
from kstep.fingerprint import as_written
from kstep.forces import PhysicsSpec
from kstep.forces.journal import JournaledPool
from kstep.forces.pool import Truth, make_pool
from kstep.learning.chains import spread_worth
from kstep.learning.corrected import CorrectedLabels, CorrectedTarget, digest_of, sum_of
from kstep.learning.ending import acceptance, more_labels_pay
from kstep.learning.learn_config import LearnConfig
from kstep.learning.target import Target
from kstep.molecules.molecule import Molecule
from kstep.runs.network_dynamics import make_carrier
from kstep.runs.recorder import BEGIN_ANEW, read_restart, write_restart
from kstep.runs.sampler import sampler_masses
from kstep.schemes.network_ladder import NetworkLadder
from kstep.schemes.state import State
from kstep.training.difference import MOST_RELABELLINGS, Difference, fit_difference
from kstep.training.equivalent_hydrogens import relabellings
from kstep.training.labels import Labels
from kstep.units import PS_PER_FS, kT

NETWORK, LABELS = "network.pt", "labels.npz"  # of a rung that was learned
PROPOSALS = 8  # of a chain between two labels; each of as many moves as learning makes
SETTLING = 3  # times as many before the first, from geometries at a minimum
FEWEST_LABELS, FEWEST_ROUNDS = 8, 2  # below which a prediction of what was left out says little
GROWTH = 0.08  # of the labels of the cheapest rung in a round on the sum: it was learned, and only shifts
SHARED = ("charge", "multiplicity", "solvent")  # by all rungs; a force field has no electrons to say so of

log = logging.getLogger("kstep")


@dataclass(frozen=True)
class Rung:
    """A method of the ladder: the recipe of its backend, and what tells its surface from another's."""

    spec: PhysicsSpec
    method: str


@dataclass
class Climb:
    """Where the difference to one rung stands.

    rounds: (labels, spread in kT, labels it was judged by) after each fit; calls: true calls of each method; call_s:
    CPU seconds that one of the dear truth took.
    """

    rounds: list = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    call_s: float = 0.0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    done: bool = False


def check_rungs(rungs: Sequence[Rung]) -> None:
    """UserError where a ladder, the cheapest first and the truth last, is none."""
    top = rungs[-1]
    seen: set[str] = set()
    for rung in rungs:
        if rung.method in seen:
            raise UserError(f"{rung.method} stands twice in the ladder --via; name every method once, the cheapest "
                            "first, and the truth itself not")
        seen.add(rung.method)
        for key in SHARED:
            own, wanted = rung.spec.settings.get(key), top.spec.settings.get(key)
            if own != wanted and (key == "solvent" or None not in (own, wanted)):
                raise UserError(f"--via {rung.method} has {key} {own}, and {top.method} has {key} {wanted}; give all "
                                "rungs the same one")
    rungs[0].spec.require_forces("learning a network of it", "let the ladder --via begin with a method that has them")


def rung_folder(out: str | Path, number: int) -> Path:
    """The folder of the difference to rung `number` (1: the one above the cheapest) of a run into `out`."""
    return Path(f"{out}.via{number}")


def climb(target: Target, rungs: Sequence[Rung], base: Path, base_labels: Path, out: str | Path, model: Any,
          config: LearnConfig, *, seed: int = 0, n_workers: int = 1, resume: bool = False) -> Path:
    """The frozen network of the last of `rungs`, from one of the first: the checkpoint <out>.via<n>/network.pt.

    target: the molecule and its temperatures, with what the sampling will have; base: checkpoint of the first rung's
    network, base_labels: what it was fitted to.  The checkpoint's method is the last rung's; it says `rungs` (method,
    labels, true_calls and the spread in kT that is left, of each), true_calls_training of the last method alone,
    true_calls_training_by_method of all, and cpu_s_per_true_call.  Files of a finished climb of the same settings are
    the result; UserError for others, and for an unfinished one without resume.
    """
    from kstep.learning.learner import learn
    from kstep.models import checkpoint as checkpoints

    check_base(target.labelled, rungs[0], base, base_labels)
    started = checkpoints.load(base)
    bottom = replace(target, spec=rungs[0].spec, method=rungs[0].method, starts_spent={})
    differences: tuple[Difference, ...] = ()
    climbs: list[Climb] = []
    for number, rung in enumerate(rungs[1:], 1):
        climber = _Climber(bottom, base, rung, differences, rung_folder(out, number), config, seed, n_workers)
        difference, climbed = climber.run(resume)
        differences, climbs = (*differences, difference), [*climbs, climbed]
    path = rung_folder(out, len(climbs)) / NETWORK
    made_of = as_written({"base": sha256(base), "differences": digest_of(differences)})
    if path.is_file() and checkpoints.load(path).get("made_of") == made_of:
        return path
    top = rungs[-1]
    fields = {name: getattr(bottom, name) for name in Target.__dataclass_fields__}
    total = CorrectedTarget(**{**fields, "method": f"{top.method} via {rungs[0].method}"}, differences=differences)
    gentle = config.model_copy(update={"round_growth": min(config.round_growth, GROWTH)})
    learned = checkpoints.load(learn(
        total, model, gentle, folder=rung_folder(out, len(climbs)) / "sum", seed=seed, n_workers=n_workers,
        resume=resume, earlier=CorrectedLabels(labels=base_labels, differences=differences)))
    checkpoints.save(path, {**learned, **_account(rungs, started, learned, climbs), "method": top.method,
                            "made_of": made_of})
    return path


def check_base(molecule: Molecule, rung: Rung, base: Path, base_labels: Path) -> None:
    """UserError where the network that a ladder begins with, or its labels, are of another molecule or method."""
    from kstep.models import checkpoint as checkpoints

    checkpoint = checkpoints.load(base)
    checkpoints.check_fits(checkpoint, base, molecule.numbers, molecule.bonds)
    labels, metadata = Labels.load(base_labels)
    for path, method in ((base, checkpoint["method"]), (base_labels, metadata["method"])):
        if method != rung.method:
            raise UserError(f"{path} is of {method}, and the ladder --via begins with {rung.method}; give a network of "
                            "that and its labels, or leave both out to learn one")
    if labels.positions.shape[1] != len(molecule):
        raise UserError(f"{base_labels} holds labels of another molecule than {molecule.name}")


def _account(rungs: Sequence[Rung], started: dict, learned: dict, climbs: list[Climb]) -> dict[str, Any]:
    """What the checkpoint of the last rung says of the ladder."""
    calls = {rung.method: 0 for rung in rungs}
    calls[rungs[0].method] = int(learned["true_calls_training"])  # those of its first network are among them
    for climbed in climbs:
        for method, n in climbed.calls.items():
            calls[method] += n
    fitted = float(learned["d_spread_kT"])
    rows = [{"method": rungs[0].method, "true_calls": calls[rungs[0].method], "spread_kT": fitted}]
    rows += [{"method": rung.method, "labels": climbed.rounds[-1][0], "true_calls": calls[rung.method],
              "spread_kT": climbed.rounds[-1][1]} for rung, climbed in zip(rungs[1:], climbs)]
    spread = math.hypot(fitted, climbs[-1].rounds[-1][1])
    seconds = {key: sum(float(one.get(key) or 0.0) for one in (started, learned)) + sum(
        getattr(climbed, key.removesuffix("_training")) for climbed in climbs)
        for key in ("cpu_s_training", "wall_s_training")}
    log.info("%s via %s: E_true - E_network is expected to spread by %.2f kT (independent proposals: acceptance %.2f); "
             "true calls: %s", rungs[-1].method, ", ".join(rung.method for rung in rungs[:-1]), spread,
             acceptance(spread), ", ".join(f"{n} of {method}" for method, n in calls.items()))
    return {"true_calls_training": calls[rungs[-1].method], "true_calls_training_by_method": calls, "rungs": rows,
            "d_spread_kT": spread, "acceptance_expected": acceptance(spread),
            "cpu_s_per_true_call": climbs[-1].call_s, **seconds}


class _Climber:
    """The difference of one rung to all below it."""

    def __init__(self, bottom: Target, base: Path, rung: Rung, below: tuple[Difference, ...], folder: Path,
                 config: LearnConfig, seed: int, n_workers: int):
        self.bottom, self.rung, self.below, self.folder, self.config = bottom, rung, below, folder, config
        self.base, self.n_workers = base, n_workers
        self.rng = np.random.default_rng([seed, 4, len(below)])
        self.kT = kT(bottom.temperatures_K[0])
        self.progress, self.rows = Climb(), []
        self.difference: Difference | None = None
        molecule = bottom.molecule
        self.orders = relabellings(molecule.numbers, molecule.bonds, MOST_RELABELLINGS)
        n = len(molecule)
        self.positions, self.energies, self.forces = np.zeros((0, n, 3)), np.zeros(0), np.zeros((0, n, 3))
        self.fresh = np.zeros(1)  # energies of the last labels, less what was expected of them
        self.restart, self.log = folder / "chains.npz", folder / "rounds.jsonl"
        self.fingerprint = as_written({
            "config": config.model_dump(exclude={"samples_wanted"}), **bottom.facts, "base": sha256(base),
            "below": digest_of(below), "dear": rung.spec.fingerprint, "dear_method": rung.method, "seed": seed,
            "workers": n_workers})

    def run(self, resume: bool) -> tuple[Difference, Climb]:
        with Claim(self.folder, self.folder):
            state = self._restored()
            if not self.progress.done:
                if state is not None and not resume:
                    raise UserError(f"{self.folder} holds a climb that has not finished; --resume goes on with it, "
                                    f"{BEGIN_ANEW}")
                self._climb(state, resume)
            assert self.difference is not None
            return self.difference, self.progress

    def _climb(self, state: State | None, resume: bool) -> None:
        self._began = time.perf_counter(), time.process_time()
        recipe = self.bottom.recipe
        arguments = {**recipe.arguments, "checkpoint": self.base, "device": self.bottom.device}
        network = recipe.load(**arguments)
        self.carry = make_carrier(network, recipe.load, arguments, min(self.n_workers, self.config.difference_batch))
        n_moves, length_fs = self.bottom.moves(self.config)
        dt_fs = self.bottom.dt_fs(self.config)
        self.ladder = NetworkLadder(
            network, self.carry, sampler_masses(self.bottom.molecule, self.config.learn_hydrogen_mass_Da),
            dt_fs * PS_PER_FS, self.bottom.rungs_K(self.config), n_moves=n_moves,
            move_steps=max(1, round(length_fs / dt_fs)), **self.bottom.means(network))
        try:
            with (JournaledPool(make_pool(self.rung.spec, self.n_workers), self.folder) as self.dear,
                  make_pool(self.bottom.spec, 1) as self.cheap):
                self.dear.begin(len(self.progress.rounds), fresh=not resume)
                x, u = self._begun() if state is None else self._unpacked(state)
                if state is None:
                    x, u = self._wander(x, u, SETTLING * PROPOSALS)
                while not self.progress.done:
                    x, u = self._wander(x, u, PROPOSALS)
                    self._ask(x[:, 0])
                    self._fit()
                    self._save(x, u)
                self.dear.end()
        finally:
            self.carry.close()

    def _begun(self) -> tuple[np.ndarray, np.ndarray]:
        """Ladders (R,m,N,3) at every conformer in turn, and the network's energies (R,m)."""
        conformers, n = self.bottom.molecule.conformers, self.config.difference_batch
        x = np.repeat(conformers[np.arange(n) % len(conformers)][:, None], self.ladder.n_rungs, axis=1)
        return x, self.ladder.energy(x)

    def _wander(self, x: np.ndarray, u: np.ndarray, n_proposals: int) -> tuple[np.ndarray, np.ndarray]:
        """Nested proposals under the network and all differences so far; no true call."""
        d = self._shift(x[:, 0])
        for _ in range(n_proposals):
            log_u = np.log(self.rng.random(len(x)))
            led = self.ladder.advance(x, u, self.rng)
            d_end = self._shift(led.positions[:, 0])
            took = log_u < -(d_end - d) / self.kT
            x, d = np.where(took[:, None, None, None], led.positions, x), np.where(took, d_end, d)
            u = np.where(took.reshape(-1, *[1] * (u.ndim - 1)), led.energy, u)
        return x, u

    def _shift(self, positions: np.ndarray) -> np.ndarray:
        """What is known of U_dear - U_cheap at positions (S,N,3), kJ/mol."""
        known = self.below if self.difference is None else (*self.below, self.difference)
        return sum_of(known, positions)[0]

    def _ask(self, x: np.ndarray) -> None:
        """The dear truth and the cheap one at positions (S,N,3): labels of their difference, less what is below."""
        before = self._cpu_s()
        dear = self.dear.evaluate(x)
        asked_s = (self._cpu_s() - before) / len(x)
        n = len(self.progress.rounds)
        self.progress.call_s = (n * self.progress.call_s + asked_s) / (n + 1)
        good = ~dear.failed
        cheap = self.cheap.evaluate(x[good]) if good.any() else None
        self._count(self.rung.method, len(x))
        if cheap is None:
            return
        self._count(self.bottom.method, len(cheap.energy))
        energy, forces = self._label(x[good], dear, good, cheap)
        there = np.isfinite(energy)
        self.fresh = energy[there] - (0.0 if self.difference is None else
                                      self.difference.energy_and_forces(x[good][there])[0])
        self.positions = np.concatenate([self.positions, x[good][there]])
        self.energies = np.concatenate([self.energies, energy[there]])
        self.forces = np.concatenate([self.forces, forces[there]])

    def _label(self, x: np.ndarray, dear: Truth, good: np.ndarray, cheap: Truth) -> tuple[np.ndarray, np.ndarray]:
        known_energy, known_forces = sum_of(self.below, x)
        return (dear.bare[0][good] - cheap.bare[0] - known_energy, dear.bare[1][good] - cheap.bare[1] - known_forces)

    def _count(self, method: str, n: int) -> None:
        self.progress.calls[method] = self.progress.calls.get(method, 0) + n

    def _fit(self) -> None:
        """A difference of all labels, what it leaves, and whether that is enough."""
        p, n = self.progress, len(self.energies)
        asked = p.calls[self.rung.method]
        if n < FEWEST_LABELS:
            if asked >= 2 * max(FEWEST_LABELS, self.config.difference_batch):
                raise UserError(f"{self.rung.method} gave {n} energies in {asked} calls ({self.dear.failures[0]}), too "
                                "few to learn its difference from; check its settings")
            p.rounds.append([max(n, 1), float("inf"), max(n, 1)])
            return
        self.difference = fit_difference(self.positions, self.energies,
                                         self.forces if self.rung.spec.has_forces else None, self.orders)
        spread = spread_worth(self.difference.left_out / self.kT)
        p.rounds.append([n, spread, n])
        exhausted = asked + self.config.difference_batch > self.config.max_true_calls
        pays = len(p.rounds) < FEWEST_ROUNDS or more_labels_pay(
            p.rounds, n, growth=self.config.difference_batch / n, samples_wanted=self.config.samples_wanted,
            overhead=0.0, calls_per_sample=self.bottom.calls_per_sample)
        p.done = exhausted or not pays
        if exhausted and pays:
            log.warning("the difference of %s to %s is left to %.2f kT after %d true calls; the sampling stays exact "
                        "but is slower; raise max_true_calls to learn on", self.rung.method, self.bottom.method, spread,
                        asked)

    def _cpu_s(self) -> float:
        return time.process_time() + self.dear.cpu_s + self.cheap.cpu_s + self.carry.cpu_s

    def _save(self, x: np.ndarray, u: np.ndarray) -> None:
        """Everything a cut climb needs to go on after this round."""
        self.dear.forget()  # a resumed one has no SCF history either
        self.cheap.forget()
        p = self.progress
        wall, cpu = time.perf_counter() - self._began[0], self._cpu_s() - self._began[1]
        n, spread = p.rounds[-1][:2]
        row = {"round": len(p.rounds), "labels": n, "spread_kT": spread, "acceptance": acceptance(spread),
               "fresh_kT": float(np.std(self.fresh) / self.kT), "true_calls": dict(p.calls), "cpu_s": p.cpu_s + cpu,
               "wall_s": p.wall_s + wall}
        self.rows.append(row)
        log.info("%s less %s: %d labels leave %.2f kT (independent proposals: acceptance %.2f), new ones were off by "
                 "%.2f kT; %.0f s of CPU", self.rung.method, self.bottom.method, n, spread, row["acceptance"],
                 row["fresh_kT"], row["cpu_s"])
        flat = x.reshape(-1, *x.shape[2:])
        state = State(flat, np.zeros_like(flat), u.reshape(len(flat), -1)[:, 0], np.zeros_like(flat))
        arrays = {"label_positions": self.positions, "label_energies": self.energies, "label_forces": self.forces}
        if self.difference is not None:
            arrays |= {f"difference_{name}": array for name, array in self.difference.as_arrays().items()}
        kept = {**p.__dict__, "cpu_s": row["cpu_s"], "wall_s": row["wall_s"]}
        write_restart(self.restart, state, self.rng, self.fingerprint, kept, rows=self.rows, beside=arrays)
        if p.done:
            p.cpu_s, p.wall_s = row["cpu_s"], row["wall_s"]
        write_text_atomic(self.log, "".join(json.dumps(row) + "\n" for row in self.rows))
        self.dear.begin(len(p.rounds))

    def _unpacked(self, state: State) -> tuple[np.ndarray, np.ndarray]:
        shape = (-1, self.ladder.n_rungs)
        return state.positions.reshape(*shape, *state.positions.shape[1:]), state.energy.reshape(shape)

    def _restored(self) -> State | None:
        saved = read_restart(self.restart, self.fingerprint, "learned")
        if saved is None:
            return None
        state, self.rng, text, arrays = saved
        self.rows, self.progress = text["rows"], Climb(**text["progress"])
        write_text_atomic(self.log, "".join(json.dumps(row) + "\n" for row in self.rows))
        self.positions, self.energies, self.forces = (
            arrays[f"label_{name}"] for name in ("positions", "energies", "forces"))
        own = {name.removeprefix("difference_"): array for name, array in arrays.items()
               if name.startswith("difference_")}
        self.difference = Difference.of_arrays(own) if own else None
        return state
