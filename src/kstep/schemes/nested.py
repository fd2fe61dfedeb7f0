"""The network explores for as long as the molecule needs; the true energy is asked once, about the result."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from kstep import importance
from kstep.config import Count, NonNegative, Temperature, Whole
from kstep.errors import UserError
from kstep.restraints import mirrored_alike
from kstep.schemes.delayed import DelayedLadder
from kstep.schemes.judge import Judge, decide
from kstep.schemes.maxwell import draw_velocities
from kstep.schemes.network_ladder import NetworkLadder, Turns
from kstep.schemes.sampler import (
    SAMPLER_TRAITS,
    Sampler,
    SamplerConfig,
    check_mover,
    check_rungs,
    check_start_energies,
    settled_masses,
    swap_acceptance,
)
from kstep.schemes.state import Info, Proposal, State, has_moved, put, said_besides
from kstep.units import PS_PER_FS, kT

DEFAULT_MOVES = 10
DEFAULT_MOVE_FS = 150.0
LOG_WEIGHT_BIN = 0.01
DEFAULT_BURN_IN = 10
FLOOR_KT, ROOM_K = 5.0, 300.0  # how far below the lowest energy it was taught a network may be believed


class NestedConfig(SamplerConfig):
    """The keys of nested; k_steps are the timesteps of all moves of a macro-step together, on average."""

    moves: Count | None = Field(None, description="moves on the network per true call")
    network_ladder_K: Annotated[list[Temperature], Field(min_length=1, max_length=100)] | None = Field(
        None, description="a ladder of temperatures on the network alone, the target first; one rung is none")
    turns: Whole = Field(
        8, description="torsions turned over before and after each exchange on the network, at most two of each")
    delayed_steps: Count | None = Field(
        None, description="steps judged by the method of --delay-with per call of the dear one")
    call_cost_s: NonNegative | None = Field(
        None, description="seconds of a true call that learning and tune reckon with, instead of what they measure")
    judge: Literal["auto", "chain", "weights"] = Field(
        "auto", description="the true energy refuses proposals (chain), weighs them, or what burn-in finds better")
    mirror_images: bool = Field(True, description="moves to the mirror image of a molecule without named stereocentres")


class Nested(Sampler):
    """M moves on the network's potential, on a ladder of temperatures that it alone has, then one true call: the whole
    ladder is accepted with

        min(1, exp(-[d(y_1) - d(x_1)]/kT_1)),   d = U_true - U_net,

    or goes back as one; or, where that gives more samples, it is kept and its frame weighs exp(-d(y_1)/kT_1)
    (kstep.schemes.judge: how, and when).  The moves are reversible for prod_i exp(-u_i(x_i)), u_i =
    U_net/kT_i or, of a network of parts, with some of them alone at T_i (`NetworkLadder.advance`), so the coldest rung
    samples exp(-U_true/kT_1) exactly whatever the network's error: Iftimie et al., J. Chem. Phys. 113,
    4852 (2000); Gelb, J. Chem. Phys. 118, 7747 (2003); Christen & Fox, J. Comput. Graph. Stat. 14, 795 (2005).  The
    other rungs sample the network and never cost a true call.

    Two tests, not one: the inner one on U_net, the outer on d.  `metropolis`, which has a single test on the true
    energy and the kinetic one, is not the case M = 1.  Info.delta_H is d(y_1) - d(x_1); velocities are drawn anew, for
    the trajectory alone.  The first proposal of all is taken as it is, and has no delta_H: a start geometry has a d
    that no thermal one need have, and a chain that begins far below the mean of d stays there.  Of a coldest rung that
    comes back as it was the energy is known, and nothing is asked.  Behind a cheaper truth (kstep.schemes.delayed) that
    one stands in the place of U_net.
    """

    name = "nested"
    traits = replace(SAMPLER_TRAITS, explores=True,
                     warm_start=False)  # from one proposal to the next it is another geometry anyway
    Config = NestedConfig
    freezes = True
    default_burn_in = None

    def __init__(self, ladder: NetworkLadder | DelayedLadder, k_steps: int, *, needs_forces: bool = True,
                 judge: str = "chain"):
        """ladder: its moves; k_steps: timesteps of the coldest rung in a macro-step, on average; judge: wanted."""
        super().__init__(ladder.network, ladder.carry, ladder.masses, ladder.dt_ps, k_steps)
        self.ladder, self.needs_forces, self.inside = ladder, needs_forces, ladder.inside
        self.wanted_judge = judge

    @classmethod
    def settle_defaults(cls, config, checkpoint, baseline) -> dict:
        """Tuned unless every choice is made or tune is false; then ten moves of 150 fs without a ladder."""
        check_mover(config)
        settled = {}
        if config.judge == "weights" and config.burn_in_steps is not None and config.burn_in_steps < 2:
            raise UserError("judge weights measures its constant in the first half of burn-in; give burn_in_steps of 2 "
                            "or more")
        if config.network_ladder_K:
            check_rungs(config, "network_ladder_K")
            settled["temperature_K"] = config.network_ladder_K[0]
        choices = (config.dt_fs, config.k_steps, config.moves, config.network_ladder_K)
        settled["tune"] = config.tune if config.tune is not None else None in choices
        settled.update(settled_masses(config.model_copy(update=settled)))
        if not settled["tune"]:
            dt_fs, moves = config.dt_fs or baseline.dt_fs, config.moves or DEFAULT_MOVES
            temperature_K = settled.get("temperature_K", config.temperature_K) or baseline.temperature_K
            settled["burn_in_steps"] = DEFAULT_BURN_IN if config.burn_in_steps is None else config.burn_in_steps
            settled.update(dt_fs=dt_fs, moves=moves, network_ladder_K=config.network_ladder_K or [temperature_K],
                           k_steps=config.k_steps or moves * max(1, round(DEFAULT_MOVE_FS / dt_fs)))
        return settled

    @classmethod
    def build(cls, config, molecule, *, network, carry, masses, needs_forces) -> Nested:
        """On the ladder of its config."""
        ladder = NetworkLadder(network, carry, masses, config.dt_fs * PS_PER_FS, tuple(config.network_ladder_K),
                               n_moves=config.moves, move_steps=max(1, round(config.k_steps / config.moves)),
                               **cls.means(config, molecule, network))
        return cls(ladder, ladder.n_moves * ladder.move_steps, needs_forces=needs_forces, judge=config.judge)

    def delayed_by(self, pool, n_steps: int) -> Nested:
        """The same behind a cheaper truth (kstep.schemes.delayed)."""
        return Nested(DelayedLadder(self.ladder, pool, n_steps), self.k_steps * n_steps,
                      needs_forces=self.needs_forces, judge=self.wanted_judge)

    @classmethod
    def means(cls, config, molecule, network) -> dict[str, Any]:
        """See `means_of`."""
        return means_of(molecule, network, walls=config.keep_species, mirror=config.mirror_images, turns=config.turns)

    def temperature_K(self, n_replicas: int) -> np.ndarray:
        """That of the coldest rung."""
        return np.full(n_replicas, self.ladder.temperatures_K[0])

    @property
    def judge(self) -> Judge:
        """That of the run; a chain until it is frozen."""
        return Judge(self.frozen["middle"] if self.frozen else None)

    def freeze(self, gaps: np.ndarray) -> None:
        """Chain or weights from here on, by the d of proposals so far."""
        self.frozen = decide(self.wanted_judge, gaps, kT(self.ladder.temperatures_K[0]))

    @property
    def _kT(self) -> float:
        return kT(self.ladder.temperatures_K[0])

    def propose(self, state: State, info: Info, rng: np.random.Generator) -> Proposal:
        """The network's moves of every replica and of the rungs above it."""
        rows = np.arange(state.n_replicas)
        x, u = self._whole_ladders(state)
        # the dice are cast here, before the answer is known
        log_u = np.log(rng.random(len(rows)))
        velocities = draw_velocities(len(rows), self.masses, self.temperature_K(len(rows)), rng)
        led = self.ladder.advance(x, u, rng)
        asked = rows[has_moved(led.positions[:, 0], x[:, 0])]  # of all others the answer is known
        return Proposal(asked, led.positions[asked, 0], velocities[asked], np.full(len(asked), led.n_steps),
                        {"from": (x, u), "to": led, "log_u": log_u, "velocities": velocities})

    def _whole_ladders(self, state: State) -> tuple[np.ndarray, np.ndarray]:
        """Positions (R,m,N,3) and network energies (R,m) or (R,m,p); a start has every rung where its coldest is."""
        if not _is_under_way(state):
            x = np.repeat(state.positions[:, None], self.ladder.n_rungs, axis=1)
            u = self.ladder.energy(x)
            check_start_energies(self.ladder.total(u[:, 0]))
            return x, u
        return (np.concatenate([state.positions[:, None], state.rungs], axis=1),
                np.concatenate([state.network_energy[:, None], state.rung_energy], axis=1))

    def settle(self, state: State, info: Info, proposal: Proposal, truth,
               rng: np.random.Generator) -> tuple[State, Info]:
        """Accept each ladder on the true energy of its coldest rung, or put it back."""
        (x, u), led, rows = proposal.extra["from"], proposal.extra["to"], proposal.rows
        energy, forces = put(state.energy, rows, truth.energy), put(state.forces, rows, truth.forces)
        with np.errstate(over="ignore", invalid="ignore"):
            begin = state.energy - self.ladder.total(u[:, 0])
            end = energy - self.ladder.total(led.energy[:, 0])
            at_start = np.isneginf(begin) if _is_under_way(state) else np.ones(len(begin), dtype=bool)
            end = np.where(np.isfinite(end) & (begin < np.inf), end, np.inf)
            tested = self.judge.excess(end, self._kT) - self.judge.excess(begin, self._kT)
        accepted = np.where(at_start, np.isfinite(end), proposal.extra["log_u"] < -tested / self._kT)
        stay = np.where(accepted, 0, state.stay + 1) if _is_under_way(state) else np.zeros(len(end), dtype=np.int64)

        def choose(new, old):
            return np.where(accepted.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        x, u = choose(led.positions, x), choose(led.energy, u)
        state = replace(state, positions=x[:, 0], velocities=proposal.extra["velocities"],
                        energy=choose(energy, state.energy), forces=choose(forces, state.forces),
                        network_energy=u[:, 0], rungs=x[:, 1:], rung_energy=u[:, 1:], stay=stay,
                        **{name: choose(put(getattr(state, name), rows, values), getattr(state, name))
                           for name, values in said_besides(state, truth).items()})
        asked = np.isin(np.arange(len(x)), rows)
        return state, replace(
            info, pending=np.zeros_like(info.pending), attempts=info.attempts + asked,
            failures=put(info.failures, rows, info.failures[rows] + truth.failed),
            inner_steps=np.full(len(x), led.n_steps * self.ladder.n_rungs), accepted=accepted,
            delta_H=np.where(at_start, np.nan, np.where(np.isfinite(end), end - begin, np.inf)),
            gap=np.stack([np.where(at_start, np.nan, begin), end], axis=1),
            weight=self.judge.weight(choose(end, begin), self._kT), moves=led.moves, exchanges=led.exchanges,
            turns=led.turns, delayed=led.delayed, stay=stay)

    def count(self, info: Info) -> dict:
        """And how the moves and exchanges on the network fared, and how long chains stayed."""
        moves, exchanges = info.moves.sum(axis=0), info.exchanges.sum(axis=0)
        stays = {str(stay): int(n) for stay, n in zip(*np.unique(info.stay, return_counts=True))}
        fared = {**super().count(info), "untested": int((~np.isfinite(info.delta_H)).sum())}
        if self.judge.middle is not None:  # the identity is the chain's
            bins = np.round(np.log(info.weight) / LOG_WEIGHT_BIN).astype(int)
            fared = {"failed_true_calls": fared["failed_true_calls"],
                     "log_weights": {str(b): int(n) for b, n in zip(*np.unique(bins, return_counts=True))}}
        return {**fared, "moves": {str(i): [int(n) for n in rung] for i, rung in enumerate(moves)},
                "swaps": {str(i): [int(n) for n in pair] for i, pair in enumerate(exchanges)}, "stays": stays,
                "turns": {str(i): [int(n) for n in rung] for i, rung in enumerate(info.turns.sum(axis=0))},
                **({"delayed": [int(n) for n in info.delayed.sum(axis=0)]} if len(info.delayed) else {})}

    @classmethod
    def summarise(cls, sums: dict) -> dict:
        """And swap_acceptance; figures: acceptance of the moves on each rung, shares at the walls, the longest stay,
        the acceptance of a cheaper truth that is asked first.

        Weighted frames have no identity; figures["weights"] says what they are worth (kstep.importance).
        """
        weighed = "log_weights" in sums
        fared = {"acceptance": sums["accepted"] / sums["macro_steps"]} if weighed else super().summarise(sums)
        out: dict[str, Any] = {**fared, **swap_acceptance(sums)}
        if out:
            rungs = [sums["moves"][rung] for rung in sorted(sums["moves"], key=int)]
            out["figures"] = {"inner_acceptance": [taken / tried for tried, taken, _ in rungs],
                              "refused_at_walls": [refused / tried for tried, _, refused in rungs],
                              "turns_accepted": [taken / tried for tried, taken in
                                                 (sums["turns"][rung] for rung in sorted(sums["turns"], key=int))
                                                 if tried],
                              "longest_stay": max(map(int, sums["stays"]), default=0)}
        if out and "delayed" in sums:
            asked, taken = sums["delayed"]
            out["figures"]["delayed_acceptance"] = taken / max(asked, 1)
        if weighed:
            bins = np.repeat([int(b) for b in sums["log_weights"]], list(sums["log_weights"].values()))
            out["figures"]["weights"] = importance.diagnose(np.exp(LOG_WEIGHT_BIN * bins))
        return out

    @classmethod
    def last_words(cls, metadata: dict) -> str:
        """Acceptance and identity, or acceptance and what the weights are worth."""
        found, delayed = (metadata["figures"].get(key) for key in ("weights", "delayed_acceptance"))
        words = (super().last_words(metadata) if found is None else
                 f"acceptance {metadata['acceptance']:.3f}, {importance.in_words(found)}")
        return words if delayed is None else f"{words}, after {delayed:.3f} on the cheaper truth"


def means_of(molecule, network, *, walls: bool, mirror: bool, turns: int) -> dict[str, Any]:
    """What a NetworkLadder of a molecule has besides its moves: arguments of it.

    A region in its surroundings has neither mirror image nor turns, and a restraint that tells mirror images apart
    leaves none either; turns need a network that says how low it was taught, which delta_scale moves as its energies.
    """
    species = molecule.species() if walls or mirror else None
    alone, floor = molecule.region is None, network.metadata.get("lowest_energy_kJ_per_mol")
    can_turn = alone and floor is not None
    lowest = floor * getattr(network, "delta_scale", 1.0) - FLOOR_KT * kT(ROOM_K) if can_turn else None
    return {"inside": species.inside if walls else None, "mirror": bool(mirror and alone and species.achiral
                           and mirrored_alike(getattr(network, "restraints", ()))),
            "turns": Turns.of(molecule, turns, lowest) if can_turn else None}


def _is_under_way(state: State) -> bool:
    """Whether the network's energies at this state are known: not before its first macro-step is settled."""
    return len(state.network_energy) == state.n_replicas
