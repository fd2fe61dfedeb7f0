"""One rung of a ladder of truths: the difference of a dear method to all below it, from as few dear calls as pay.

Between two questions a chain makes nested proposals (schemes/nested.py) under U_net + sum D, D of the labels so far: it
samples the dear method as far as that is known, where a difference is then asked for.  How far D can be trusted is what
every label's energy says of a D without that label; no states are held out.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kstep.errors import UserError
from kstep.files import Claim, sha256
from kstep.forces import PhysicsSpec
from kstep.forces.journal import JournaledPool
from kstep.forces.pool import Truth, make_pool
from kstep.learning.chains import spread_worth
from kstep.learning.corrected import digest_of, sum_of
from kstep.learning.ending import SampleCost, acceptance, more_labels_pay
from kstep.learning.explorer import ladder_of
from kstep.learning.learn_config import LearnConfig
from kstep.learning.progress import Meter, Record
from kstep.learning.target import Target
from kstep.runs.network_dynamics import make_carrier
from kstep.schemes.state import State
from kstep.training.difference import MOST_RELABELLINGS, Difference, fit_difference
from kstep.training.equivalent_atoms import relabellings
from kstep.units import kT

PROPOSALS = 8  # of a chain between two labels; each of as many moves as learning makes
SETTLING = 3  # times as many before the first, from geometries at a minimum
FEWEST_LABELS, FEWEST_ROUNDS = 8, 2  # below which a prediction of what was left out says little

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


class Climber:
    """The difference of one rung to all below it."""

    def __init__(self, bottom: Target, base: Path, rung: Rung, below: tuple[Difference, ...], folder: Path,
                 config: LearnConfig, seed: int, n_workers: int):
        self.bottom, self.rung, self.below, self.folder, self.config = bottom, rung, below, folder, config
        self.base, self.n_workers = base, n_workers
        self.rng = np.random.default_rng([seed, 4, len(below)])
        self.kT = kT(bottom.temperatures_K[0])
        self.progress = Climb()
        self.difference: Difference | None = None
        molecule = bottom.molecule
        self.orders = relabellings(molecule.numbers, molecule.bonds, MOST_RELABELLINGS)
        n = len(molecule)
        self.positions, self.energies, self.forces = np.zeros((0, n, 3)), np.zeros(0), np.zeros((0, n, 3))
        self.fresh = np.zeros(1)  # energies of the last labels, less what was expected of them
        self.record = Record(folder, {
            "config": config.model_dump(exclude={"samples_wanted"}), **bottom.facts, "base": sha256(base),
            "below": digest_of(below), "dear": rung.spec.fingerprint, "dear_method": rung.method, "seed": seed,
            "workers": n_workers})

    def run(self, resume: bool) -> tuple[Difference, Climb]:
        """The difference, and what it took; UserError for an unfinished one without resume."""
        with Claim(self.folder, self.folder):
            state = self._restored()
            if not self.progress.done:
                self.record.check_asked("climb", state, resume)
                self._climb(state, resume)
            assert self.difference is not None
            return self.difference, self.progress

    def _climb(self, state: State | None, resume: bool) -> None:
        self.spent, recipe = Meter(), self.bottom.recipe
        arguments = {**recipe.arguments, "checkpoint": self.base, "device": self.bottom.device}
        network = recipe.load(**arguments)
        carry = make_carrier(network, recipe.load, arguments, min(self.n_workers, self.config.difference_batch))
        self.ladder = ladder_of(self.bottom, self.config, network, carry)
        try:
            with (JournaledPool(make_pool(self.rung.spec, self.n_workers), self.folder) as self.dear,
                  make_pool(self.bottom.spec, 1) as self.cheap):
                self.spent.of(lambda: self.dear.cpu_s, lambda: self.cheap.cpu_s, lambda: carry.cpu_s)
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
            carry.close()

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
        before = self.spent.cpu_s
        dear = self.dear.evaluate(x)
        asked_s = (self.spent.cpu_s - before) / len(x)
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
            p.rounds, n, growth=self.config.difference_batch / n, overhead=0.0,
            sampling=SampleCost(self.config.samples_wanted, self.bottom.calls_per_sample))
        p.done = exhausted or not pays
        if exhausted and pays:
            log.warning("the difference of %s to %s is left to %.2f kT after %d true calls; the sampling stays exact "
                        "but is slower; raise max_true_calls to learn on", self.rung.method, self.bottom.method, spread,
                        asked)

    def _save(self, x: np.ndarray, u: np.ndarray) -> None:
        """Everything a cut climb needs to go on after this round."""
        self.dear.forget()  # a resumed one has no SCF history either
        self.cheap.forget()
        p = self.progress
        n, spread = p.rounds[-1][:2]
        row = {"round": len(p.rounds), "labels": n, "spread_kT": spread, "acceptance": acceptance(spread),
               "fresh_kT": float(np.std(self.fresh) / self.kT), "true_calls": dict(p.calls),
               "cpu_s": p.cpu_s + self.spent.cpu_s, "wall_s": p.wall_s + self.spent.wall_s}
        self.record.rows.append(row)
        log.info("%s less %s: %d labels leave %.2f kT (independent proposals: acceptance %.2f), new ones were off by "
                 "%.2f kT; %.0f s of CPU", self.rung.method, self.bottom.method, n, spread, row["acceptance"],
                 row["fresh_kT"], row["cpu_s"])
        flat = x.reshape(-1, *x.shape[2:])
        state = State(flat, np.zeros_like(flat), u.reshape(len(flat), -1)[:, 0], np.zeros_like(flat))
        arrays = {"label_positions": self.positions, "label_energies": self.energies, "label_forces": self.forces}
        if self.difference is not None:
            arrays |= {f"difference_{name}": array for name, array in self.difference.as_arrays().items()}
        kept = {**p.__dict__, "cpu_s": row["cpu_s"], "wall_s": row["wall_s"]}
        self.record.keep(state, self.rng, kept, arrays)
        if p.done:
            p.cpu_s, p.wall_s = row["cpu_s"], row["wall_s"]
        self.record.write_rows()
        self.dear.begin(len(p.rounds))

    def _unpacked(self, state: State) -> tuple[np.ndarray, np.ndarray]:
        shape = (-1, self.ladder.n_rungs)
        return state.positions.reshape(*shape, *state.positions.shape[1:]), state.energy.reshape(shape)

    def _restored(self) -> State | None:
        saved = self.record.kept()
        if saved is None:
            return None
        state, self.rng, progress, arrays = saved
        self.progress = Climb(**progress)
        self.positions, self.energies, self.forces = (
            arrays[f"label_{name}"] for name in ("positions", "energies", "forces"))
        own = {name.removeprefix("difference_"): array for name, array in arrays.items()
               if name.startswith("difference_")}
        self.difference = Difference.of_arrays(own) if own else None
        return state
