"""What explores in a learning, and what it brings home: chains of the network, true dynamics, labels.

Whatever the truth answers is a label.  When that begins, how long it goes on and what it is worth is learner.py's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from kstep.learning.chains import Chains, Judgement
from kstep.learning.learn_config import LearnConfig
from kstep.learning.progress import Seen
from kstep.learning.target import Target
from kstep.runs.loop import initial_state, run
from kstep.runs.network_dynamics import make_carrier
from kstep.runs.sampler import sampler_masses
from kstep.schemes import Plain
from kstep.schemes.maxwell import draw_velocities
from kstep.schemes.network_ladder import NetworkLadder
from kstep.schemes.state import Info, Proposal, State, put, put_rows
from kstep.training.labels import Labels
from kstep.units import PS_PER_FS, kT

SCATTERED_EVERY = 5  # questions, in a round, of a molecule of many torsions
MANY_TORSIONS = 5  # from which on chains begin anew at rotamers drawn at random: there are more than chains find


def ladder_of(target: Target, config: LearnConfig, network, carry, longer: int = 1) -> NetworkLadder:
    """The ladder that chains of a learning climb; longer: times as many moves between two questions."""
    dt_fs, (n_moves, length_fs) = target.dt_fs(config), target.moves(config)
    return NetworkLadder(network, carry, sampler_masses(target.molecule, config.learn_hydrogen_mass_Da),
                         dt_fs * PS_PER_FS, target.rungs_K(config), n_moves=longer * n_moves,
                         move_steps=max(1, round(length_fs / dt_fs)), **target.means(network))


class Undaunted(Plain):
    """Plain dynamics for the sake of labels: a chain whose true call fails stays where it was, at rest, until its
    velocities are drawn anew.  It samples nothing, and hot molecules come to where no SCF converges.
    """

    def settle(self, state: State, info: Info, proposal: Proposal, truth,
               rng: np.random.Generator) -> tuple[State, Info]:
        """Close the step with the true force, or with that of before."""
        failed = truth.failed
        if failed.any():
            back = proposal.rows[failed]
            proposal = replace(proposal, positions=put(proposal.positions, failed, state.positions[back]),
                               velocities=put(proposal.velocities, failed, 0.0))
            truth = replace(truth, energy=put(truth.energy, failed, state.energy[back]),
                            forces=put(truth.forces, failed, state.forces[back]), failed=np.zeros_like(failed))
        return super().settle(state, info, proposal, truth, rng)


class LabelSeeker:
    """Who finds labels: chains, as many as learn_replicas says and rungs share evenly.

    labels: all so far, and rng, what everything is drawn from: both are set anew where a cut learning goes on; pool:
    who answers for the truth; network, carry: who leads the chains, once there is one.
    """

    def __init__(self, target: Target, config: LearnConfig, seed: int, n_workers: int):
        self.target, self.config, self.n_workers = target, config, n_workers
        self.rng, self.labels = np.random.default_rng([seed, 2]), Labels.empty(len(target.labelled))
        self.rungs_K = target.rungs_K(config)
        self.hot_K = max(config.hot_temperature_K, *target.temperatures_K)
        self.n_chains = -(-config.learn_replicas // len(self.rungs_K)) * len(self.rungs_K)
        self.n_searchers = max(self.n_chains, len(target.molecule.conformers))  # of true dynamics: one of every start
        self.pool: Any = None
        self.network: Any = None
        self.carry: Any = None  # kstep.runs.network_dynamics.make_carrier

    def lead_with(self, arguments: dict[str, Any]) -> None:
        """Load a network; it leads the chains from now on."""
        load = self.target.recipe.load
        self.network = load(**arguments)
        if self.carry is None:
            self.carry = make_carrier(self.network, load, arguments, min(self.n_workers, self.n_chains))
        else:
            self.carry.change_network(self.network, arguments)

    def close(self) -> None:
        """End what carries chains."""
        if self.carry is not None:
            self.carry.close()

    def at_starts(self, n: int | None = None, also=None) -> State:
        """n replicas (None: as many as chains), every start in turn, at rest; the truth is asked about them."""
        conformers = self.target.molecule.conformers
        starts = conformers[np.arange(n or self.n_chains) % len(conformers)]
        return initial_state(self.pool, starts, np.zeros_like(starts), observe=self._keeper(self.hot_K, also))

    def true_dynamics(self, state: State, n_steps: int, also=None) -> State:
        """Plain MD from starts, hot; also(proposal, truth) sees every answer."""
        scheme = Undaunted(sampler_masses(self.target.molecule, self.config.learn_hydrogen_mass_Da),
                           self.config.bootstrap_dt_fs * PS_PER_FS)
        every, keep = self.config.bootstrap_redraw_steps, self._keeper(self.hot_K, also)
        temperature_K = 2.0 * self.hot_K - self.target.starts_K  # half of what is missing turns into potential energy
        for step in range(0, n_steps, every):
            velocities = draw_velocities(state.n_replicas, scheme.masses, temperature_K, self.rng)
            state = State(state.positions, velocities, state.energy, state.forces)
            state = run(scheme, self.pool, state, self.rng, min(every, n_steps - step), observe=keep)
            temperature_K = self.hot_K
        return state

    def turn_over(self, state: State) -> State:
        """Every second chain starts with a torsion turned, where atoms do not clash."""
        rows, turned = self.target.turned(state.positions)
        if not len(rows):
            return state
        truth = self.pool.evaluate(turned, rows)
        self.labels.join(self.target.labels(turned, truth, self.hot_K))
        calm = self._is_calm(truth.energy, state.energy.min())  # a clash starts no chain
        return put_rows(state, rows[calm], positions=turned[calm], energy=truth.energy[calm], forces=truth.forces[calm])

    def _is_calm(self, energy: np.ndarray, lowest: float) -> np.ndarray:
        """Which of energies (S,) are no farther up than heat gets."""
        reach = self.config.fit_outlier_kT * max(1, 3 * len(self.target.labelled) - 6) * kT(self.hot_K)
        with np.errstate(invalid="ignore"):
            return np.isfinite(energy) & (energy < lowest + reach)

    def explore(self, state: State, n_questions: int, *, longer: int = 1, apart: bool = False) -> tuple[State, Seen]:
        """Moves of the network on its ladder, and the truth asked n_questions times where all rungs arrive.

        apart: the truth is asked at random rotamers too, where no move may lead; of many torsions that happens after
        every SCATTERED_EVERY questions, and every second ladder begins anew there.
        """
        ladder = ladder_of(self.target, self.config, self.network, self.carry, longer)
        known = self.target.known_ground(self.network, self.labels, max(self.rungs_K))
        chains = Chains(ladder, state, Judgement(self.rungs_K, self.config.hole_kT), known, self.rng)
        draw, keep = self._rotamers() if apart else None, self._keeper(np.array(self.rungs_K))
        many = draw is not None and len(draw.torsions) >= MANY_TORSIONS
        n_parts, block = 2 if self.n_workers > 1 else 1, SCATTERED_EVERY if many else n_questions
        for asked in range(0, n_questions, block):
            if draw is not None:
                chains.ask_apart(draw, self.pool, self._keeper(max(self.rungs_K)),
                                 begin_there=many and n_questions - asked >= block)
            chains.ask(self.pool, min(block, n_questions - asked), keep, n_parts=n_parts)
        return chains.state, Seen(**chains.seen())

    def _rotamers(self):
        """What draws rotamers at random; restraints, or one temperature alone, keep chains from them."""
        may = len(self.rungs_K) > 1 and self.n_chains > len(self.rungs_K) and not self.target.spec.restraints
        return self.target.rotamers() if may else None

    def _keeper(self, temperatures_K, also=None):
        """What makes labels of proposals and their answers: at one temperature, or at that of each row's rung."""
        of_rungs = np.atleast_1d(temperatures_K)

        def keep(proposal, truth):
            temperature_K = of_rungs[proposal.rows % len(of_rungs)] if len(of_rungs) > 1 else of_rungs[0]
            self.labels.join(self.target.labels(proposal.positions, truth, temperature_K))
            if also is not None:
                also(proposal, truth)

        return keep

    @property
    def search_calls(self) -> int:
        """True calls of `searched`."""
        return self.n_searchers * (self.config.search_steps + 1 + (self._rotamers() is not None))

    def searched(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions (S,N,3) and true energies (S,) of all starts, of hot true dynamics from them, and of rotamers drawn
        at random that do not clash; labels too."""
        positions, energies = [], []

        def note(proposal, truth):
            positions.append(proposal.positions)
            energies.append(truth.energy)

        state = self.at_starts(self.n_searchers, note)
        draw = self._rotamers()
        if draw is not None:
            drawn = draw(state.positions, self.rng)
            truth = self.pool.evaluate(drawn)
            self.labels.join(self.target.labels(drawn, truth, max(self.rungs_K)))
            calm = self._is_calm(truth.energy, state.energy.min())
            positions.append(drawn[calm])
            energies.append(truth.energy[calm])
        self.true_dynamics(state, self.config.search_steps, note)
        return np.concatenate(positions), np.concatenate(energies)

    def holes_among(self, positions: np.ndarray, energy: np.ndarray) -> int:
        """How many of S positions (S,N,3), whose true energies (S,) are known, the network has a hole or a wall at."""
        with np.errstate(all="ignore"):
            d = energy - self.network.energy_and_forces(positions)[0]
        there = np.isfinite(energy)
        return int((~Judgement((self.hot_K,), self.config.hole_kT).sound(d[there, None], d[there, None])).sum())
