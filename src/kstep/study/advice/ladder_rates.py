"""What moves on a ladder of the network's alone tell of a sampler that asks the truth about their result.

A trial of the moves (runs.exploration) gives the moves of one independent sample of the energy and of the slowest
torsion.  With the share of results that the truth accepts, that is the rate at any number of moves per true call; a
trained network gives both, a force field the first before anything is trained.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kstep.runs.exploration import (
    LADDER_TOP_K,
    MOVES,
    Explorer,
    Trial,
    burn_in_of,
    cheapest,
    possible_ladders,
    samples_per_call,
)
from kstep.runs.settings import HybridRun
from kstep.runs.tuning import Costs
from kstep.study.advice import cost_model as model
from kstep.units import FS_PER_PS

NUMBERS = (1, 3, 10, 30, 100)  # of moves per true call that are compared


def rate(trial: Trial, observable: str, n_moves: int, acceptance: float) -> float | None:
    """Effective samples of an observable per true call about the result of n_moves; None where it never crossed."""
    each = trial.moves_per[observable]
    return each and samples_per_call(max(each, 1.0), n_moves, acceptance)


def with_ladder(pilot: model.SamplerCost, trial: Trial, enough_energy: bool) -> model.SamplerCost:
    """The sampler of a pilot run, with the rate of the slowest torsion from a trial of its own ladder.

    The pilot gives acceptance and costs; its chains are too short to say how slow a slow torsion is.  The energy
    forgets fast, and what it keeps is the network's error, which the ladder does not know: its rate is the pilot's
    where that holds samples enough.
    """
    rates = {o: rate(trial, o, pilot.moves, pilot.acceptance) for o in model.OBSERVABLES}
    if enough_energy:
        rates["energy"] = pilot.samples_per_call["energy"]
    return replace(pilot, samples_per_call=rates)


def foretold(run: HybridRun, explorer: Explorer, positions: np.ndarray, costs: Costs,
             most_cpu_s: float) -> tuple[model.SamplerCost, Trial]:
    """The sampler that tuning would choose if the network moved as `explorer` does, and the trial that it rests on.

    positions (R,N,3): samples of the explorer's potential; costs: of a true call, and of a timestep of the network to
    come; most_cpu_s: of all trials.
    """
    hybrid, dt_fs = run.hybrid, FS_PER_PS * explorer.dt_ps
    length = max(1, round(hybrid.k_steps / (hybrid.moves or 10) if hybrid.k_steps else hybrid.shortest_mean_fs / dt_fs))
    ladders = ([tuple(hybrid.network_ladder_K)] if hybrid.network_ladder_K else
               possible_ladders(hybrid.temperature_K, LADDER_TOP_K, run.molecule))
    trials = []
    for ladder in ladders:
        trial, positions = explorer.trial(positions, ladder, length, most_cpu_s=most_cpu_s / len(ladders))
        trials.append(replace(trial, cpu_s_per_move=len(ladder) * length * costs.inner_step_s))
    allowed = ((hybrid.moves,) if hybrid.moves else (max(1, round(hybrid.k_steps / length)),) if hybrid.k_steps
               else MOVES)
    reckoned = costs.true_call_s if hybrid.call_cost_s is None else hybrid.call_cost_s
    trial, n_moves, _ = cheapest(trials, reckoned, model.ACCEPTANCE_AFTER_LEARNING, allowed)
    per_call = costs.true_call_s + n_moves * trial.cpu_s_per_move
    slowest = samples_per_call(trial.moves_per_sample, n_moves, model.ACCEPTANCE_AFTER_LEARNING)
    burn_in = burn_in_of(slowest) if hybrid.burn_in_steps is None else hybrid.burn_in_steps
    return model.SamplerCost(
        per_call, {o: rate(trial, o, n_moves, model.ACCEPTANCE_AFTER_LEARNING) for o in model.OBSERVABLES},
        model.ACCEPTANCE_AFTER_LEARNING, dt_fs, n_moves * length, burn_in * hybrid.replicas * per_call, n_moves,
        trial.temperatures_K), trial


def by_moves(sampler: model.SamplerCost, trial: Trial, true_call_s: float) -> list[dict]:
    """CPU seconds per effective sample at other numbers of moves per true call, one row each.

    Rates, and costs of a true call with its moves on all rungs, are the trial's, times what the sampler's own are over
    them at its number of moves.
    """
    def spent(n_moves: int) -> float:
        return true_call_s + n_moves * trial.cpu_s_per_move

    rows = []
    for n_moves in sorted({*NUMBERS, sampler.moves}):
        cost = sampler.cpu_s_per_call * spent(n_moves) / spent(sampler.moves)
        row = {"moves": n_moves, "k_steps": n_moves * trial.move_steps,
               "mean_length_fs": n_moves * trial.move_steps * sampler.dt_fs, "cpu_s_per_call": cost}
        for o in model.OBSERVABLES:
            there, here, known = (rate(trial, o, n_moves, sampler.acceptance),
                                  rate(trial, o, sampler.moves, sampler.acceptance), sampler.samples_per_call[o])
            found = there * known / here if there and here and known else None
            row[f"{o}_samples_per_call"] = found
            row[f"cpu_s_per_{o}_sample"] = found and cost / found
        rows.append(row)
    return rows
