"""How many moves on the network a true call is worth, and on which ladder: chosen at no true call, then frozen.

The network alone tells how slow the molecule is: short trials of its own moves, with and without a ladder, give g,
the moves that one independent sample of the slowest observable takes.  After M moves the correlation left is

    c^M,   c = (g - 1)/(g + 1),

so that a proposal of M moves brings r = (1 - c^M)/(1 + c^M) samples, and a r / (1 + (1 - a) r) where a share a of them
is accepted.  M and the ladder are those of the least

    (c_call + M c_move) / samples,

in CPU seconds of this machine: few moves where a true call is a millisecond, many where it is a minute.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from kstep.analysis.measure.run_samples import samples_of
from kstep.analysis.measure.samples import Recording, Series
from kstep.molecules.molecule import Molecule
from kstep.schemes.ladder import rungs_between
from kstep.schemes.network_ladder import NetworkLadder
from kstep.units import FS_PER_PS

LADDER_TOP_K = 600.0  # where a network does not say how hot it was taught
MOVES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 65, 80, 100, 130, 160, 200, 260, 320)
AGREEMENT = (0.2, 0.45)  # of neighbouring rungs; fewer or more rungs outside it
TRIAL_CPU_S = 4.0  # of one trial, twice that where nothing was seen to cross
ENOUGH_SAMPLES = 60.0  # of the slowest observable, then a trial ends
FIRST_MOVES = 24  # of a trial, before it is judged for the first time
SETTLING = 0.2  # of a trial, which brings the rungs to their temperatures
FORGOTTEN = 3.0  # times of forgetting that burn-in lasts
BURN_IN_STEPS = (4, 20)
ACCEPTANCE = 0.85  # of the true test, where the network does not say what it expects

log = logging.getLogger("kstep")


@dataclass(frozen=True)
class Trial:
    """What a ladder's moves showed.

    moves_per_sample: of the observable named `slowest`; cpu_s_per_move: of all rungs of one replica; agreement: shares
    of exchanges that neighbouring rungs agreed to; never_crossed: torsions that stayed in one of their wells;
    moves_per: moves per sample of "energy" and "torsion", the slowest that crossed (None: none did).
    """

    temperatures_K: tuple[float, ...]
    move_steps: int
    moves_per_sample: float
    slowest: str
    cpu_s_per_move: float
    agreement: tuple[float, ...]
    never_crossed: tuple[str, ...] = ()
    moves_per: dict[str, float | None] = field(default_factory=dict)

    @property
    def cpu_s_per_sample(self) -> float:
        """CPU seconds of the network for one independent sample of its own ensemble."""
        return self.cpu_s_per_move * self.moves_per_sample


def with_rejections(rate: float, acceptance: float) -> float:
    """Effective samples per proposal when a share 1 - a of the proposals is rejected at random.

    A chain with lag-one correlation c gives (1 - c)/(1 + c) = r samples per proposal; with
    rejections c' = 1 - a + a c, so r' = a r / (1 + (1 - a) r).
    """
    return acceptance * rate / (1.0 + (1.0 - acceptance) * rate)


def samples_per_call(moves_per_sample: float, n_moves: int, acceptance: float) -> float:
    """Effective samples of one true call about the result of n_moves."""
    left = ((moves_per_sample - 1.0) / (moves_per_sample + 1.0)) ** n_moves
    return with_rejections((1.0 - left) / (1.0 + left), acceptance)


def burn_in_of(rate: float) -> int:
    """Macro-steps of burn-in for so many samples per call: three times what the slowest observable takes to forget."""
    needed = FORGOTTEN / np.log((1.0 + rate) / (1.0 - min(rate, 0.99)))
    return int(np.clip(np.ceil(needed), *BURN_IN_STEPS))


def cheapest(trials: list[Trial], cpu_s_per_call: float, acceptance: float,
             moves: tuple[int, ...] = MOVES) -> tuple[Trial, int, float]:
    """(trial, n_moves, CPU seconds per effective sample) of the least cost; MOVES that are allowed."""
    def cost(trial: Trial, n_moves: int) -> float:
        spent = cpu_s_per_call + n_moves * trial.cpu_s_per_move
        return spent / samples_per_call(trial.moves_per_sample, n_moves, acceptance)

    trial, n_moves = min(((t, m) for t in trials for m in moves), key=lambda pair: cost(*pair))
    return trial, n_moves, cost(trial, n_moves)


class Explorer:
    """Trials of one network's moves, each going on from where the last one ended."""

    def __init__(self, molecule: Molecule, network, carry, masses: np.ndarray, dt_ps: float, rng: np.random.Generator,
                 **walls):
        """masses (N,) Da: the sampler's; walls: `inside`, `mirror` and `turns` of a NetworkLadder."""
        self.molecule, self.network, self.carry, self.walls = molecule, network, carry, walls
        self.masses, self.dt_ps, self.rng = masses, dt_ps, rng
        self._seen: list[Series] = []  # by each trial: what one saw in two wells has two for all

    def ladder(self, temperatures_K, move_steps: int) -> NetworkLadder:
        """Single moves on these rungs."""
        return NetworkLadder(self.network, self.carry, self.masses, self.dt_ps, tuple(temperatures_K), n_moves=1,
                             move_steps=move_steps, **self.walls)

    def trial(self, positions: np.ndarray, temperatures_K, move_steps: int, *, enough: float = ENOUGH_SAMPLES,
              most_cpu_s: float = TRIAL_CPU_S) -> tuple[Trial, np.ndarray]:
        """How fast the coldest rung forgets, from positions (R,N,3); and where it ended (R,N,3).

        Until it holds `enough` samples of the slowest observable, or about most_cpu_s are spent.
        """
        ladder = self.ladder(temperatures_K, move_steps)
        x = np.repeat(positions[:, None], ladder.n_rungs, axis=1)
        u, recorded, spent = ladder.energy(x), [], 0.0
        exchanges, steps, wanted = np.zeros((ladder.n_rungs - 1, 2)), 0, FIRST_MOVES
        while True:
            start = time.process_time() + self.carry.cpu_s
            while len(recorded) < wanted:
                led = ladder.advance(x, u, self.rng)
                x, u, steps = led.positions, led.energy, steps + led.n_steps
                exchanges += led.exchanges.sum(axis=0)
                recorded.append((x[:, 0].copy(), ladder.total(u[:, 0]).copy()))
            spent += time.process_time() + self.carry.cpu_s - start
            series = self._series(recorded[int(SETTLING * len(recorded)):], move_steps)
            found = self._slowest(series)
            most = most_cpu_s * (2.0 if found["never_crossed"] else 1.0)
            if found["samples"] >= enough or 2.0 * spent > most:
                break
            wanted *= 2
        # lengths are drawn: what a move costs is that of its mean length
        per_move = spent / steps * move_steps / len(x)
        agreed = tuple(float(a) for a in exchanges[:, 1] / np.maximum(exchanges[:, 0], 1))
        self._seen.append(series)
        return Trial(ladder.temperatures_K, move_steps, cpu_s_per_move=per_move, agreement=agreed,
                     **_of_trial(found)), x[:, 0]

    def _series(self, frames: list[tuple[np.ndarray, np.ndarray]], move_steps: int) -> Series:
        """Energy and torsions of (positions (R,N,3), energy (R,)), a move apart."""
        bonds, region = self.molecule.bonds, self.molecule.region
        bonds = bonds if region is None else bonds[np.isin(bonds, region).all(axis=1)]
        recording = Recording(self.molecule.numbers, bonds, move_steps * self.dt_ps)
        for positions, energy in frames:
            recording.add(positions, energy)
        return recording.series()

    def _slowest(self, series: Series) -> dict[str, Any]:
        """Samples of the slowest of torsions and energy; one that never crossed has half a one."""
        found = samples_of(series, of_dynamics=False, beside=[other for other in self._seen if other is not series])
        rates = {"energy": found["energy"], **({found["label"]: found["torsion"]} if found["torsion"] else {}),
                 **dict.fromkeys(found["never_crossed"], 0.5)}
        name = min(rates, key=lambda each: rates[each])
        per = {o: found[o] and found["frames"] / found[o] for o in ("energy", "torsion")}
        return {"samples": rates[name], "slowest": name, "frames": found["frames"], "moves_per": per,
                "never_crossed": found["never_crossed"]}

    def best(self, positions: np.ndarray, move_steps: int, ladders: list[tuple[float, ...]], *, free_ladder: bool,
             free_length: bool) -> list[Trial]:
        """Trials of these ladders; where ladders are free with more or fewer rungs too, if neighbours agree too seldom
        or too often; where lengths are free of shorter and longer moves on the best.

        All are judged by the wells that any of them saw: one that never left a well would else be the fastest.
        """
        trials, waiting = [], list(ladders)
        self._seen = []
        while waiting:
            trial, positions = self.trial(positions, waiting.pop(0), move_steps)
            trials.append(trial)
            log.debug("moves on the network: %s", trial)
            if free_ladder and len(trials) <= len(ladders):
                waiting += other_rungs(trial)
        trials = self._judged_anew(trials)
        if free_length:
            rungs = min(trials, key=lambda t: t.cpu_s_per_sample).temperatures_K
            for steps in (max(1, move_steps // 2), 2 * move_steps):
                trial, positions = self.trial(positions, rungs, steps)
                trials.append(trial)
                log.debug("moves on the network: %s", trial)
        return self._judged_anew(trials)

    def _judged_anew(self, trials: list[Trial]) -> list[Trial]:
        return [replace(trial, **_of_trial(self._slowest(series))) for trial, series in zip(trials, self._seen)]


def _of_trial(found: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Trial that its series tells."""
    return {"moves_per_sample": max(1.0, found["frames"] / found["samples"]), "slowest": found["slowest"],
            "never_crossed": tuple(found["never_crossed"]), "moves_per": found["moves_per"]}


def other_rungs(trial: Trial) -> list[tuple[float, ...]]:
    """The same ladder with a rung more or less, where its neighbours agreed to fewer or more exchanges than is good."""
    n = len(trial.temperatures_K)
    mean = float(np.mean(trial.agreement)) if n > 1 else AGREEMENT[0]
    change = 1 if mean < AGREEMENT[0] else -1 if mean > AGREEMENT[1] and n > 2 else 0
    if not change:
        return []
    rungs = np.geomspace(trial.temperatures_K[0], trial.temperatures_K[-1], n + change)
    return [tuple(float(t) for t in np.round(rungs, 1))]


def possible_ladders(temperature_K: float, top_K: float, molecule: Molecule) -> list[tuple[float, ...]]:
    """No ladder, and those worth a trial: to top_K, and half way up; of a molecule with a region for that alone."""
    n_atoms = len(molecule) if molecule.region is None else len(molecule.region)
    halfway = 0.5 * (temperature_K + top_K)
    ladders = [(float(temperature_K),), rungs_between(temperature_K, top_K, n_atoms)]
    if len(ladders[1]) > 3:
        ladders.append(rungs_between(temperature_K, halfway, n_atoms))
    return ladders


def choose_moves(explorer: Explorer, positions: np.ndarray, *, temperature_K: float, cpu_s_per_call: float,
                 shortest_mean_fs: float, n_moves: int | None, k_steps: int | None,
                 network_ladder_K: list[float] | None, burn_in_steps: int | None) -> dict[str, Any]:
    """What is None of the last four, chosen, and what it was chosen from, as plain numbers.

    positions (R,N,3): samples of the network at temperature_K.
    """
    told = explorer.network.metadata
    acceptance = float(told.get("acceptance_expected") or ACCEPTANCE)
    ladders = ([tuple(network_ladder_K)] if network_ladder_K else
               possible_ladders(temperature_K, max(told.get("ladder_K") or [LADDER_TOP_K]), explorer.molecule))
    length = max(1, round(shortest_mean_fs / FS_PER_PS / explorer.dt_ps))
    if k_steps is not None:
        length = max(1, round(k_steps / (n_moves or 10)))
    trials = explorer.best(positions, length, ladders, free_ladder=not network_ladder_K,
                                      free_length=k_steps is None)
    allowed = (n_moves,) if n_moves else (max(1, round(k_steps / length)),) if k_steps else MOVES
    trial, n_moves, cost = cheapest(trials, cpu_s_per_call, acceptance, allowed)
    rate = samples_per_call(trial.moves_per_sample, n_moves, acceptance)
    if burn_in_steps is None:
        burn_in_steps = burn_in_of(rate)
    return {"moves": n_moves, "burn_in_steps": burn_in_steps, "k_steps": k_steps or n_moves * trial.move_steps,
            "network_ladder_K": list(trial.temperatures_K), "slowest": trial.slowest,
            "samples_per_call_expected": rate, "cpu_s_per_sample_expected": cost, "acceptance_reckoned": acceptance,
            "trials": [asdict(t) for t in trials]}


def describe(report: dict) -> str:
    """One line about what was chosen and why."""
    ladder = report["network_ladder_K"]
    rungs = f"on a ladder {'/'.join(f'{t:.0f}' for t in ladder)} K" if len(ladder) > 1 else "without a ladder"
    return (f"{report['moves']} moves of {report['k_steps'] / report['moves'] * report['dt_fs'] / FS_PER_PS:.2f} ps "
            f"per true call {rungs}: {report['slowest']} is the slowest, "
            f"{1000 * report['samples_per_call_expected']:.0f} samples of it per 1000 true calls expected")
