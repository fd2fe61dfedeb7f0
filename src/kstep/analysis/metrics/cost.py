"""What a run cost: true calls, seconds, and the trajectory it got for them."""

from __future__ import annotations

import numpy as np

from kstep.analysis.metrics.cells import number
from kstep.analysis.metrics.metric import Metric
from kstep.analysis.metrics.proposals import PROPOSALS
from kstep.schemas import Trajectory
from kstep.scheme_traits import traits_of


def cost_of(run: Trajectory, acceptance: float | None) -> dict:
    """True calls, seconds and accepted trajectory of a run; acceptance: None where nothing can be refused.

    Of a ladder of temperatures the trajectory at the target counts, and the calls and seconds of every rung.
    """
    metadata = run.metadata
    tally = metadata.get("tally") or {}
    replicas = np.unique(run.replica)
    if (metadata.get("config") or {}).get("tempering_K"):
        replicas = np.setdiff1d(replicas, run.replica[run.frames_of("hot")])
    covered = int(sum(run.step[run.replica == r].max() for r in replicas))
    total_ps = float(sum(run.time_ps[run.replica == r].max() for r in replicas))
    calls, wall = metadata.get("true_calls") or 0, metadata.get("wall_s") or 0.0
    share = acceptance if acceptance is not None else 1.0  # only accepted proposals move a chain
    # burn-in is paid once; the speed of a run is that of its production where the file knows it
    production_wall, production_ps = metadata.get("wall_production_s"), total_ps
    if production_wall:
        burn_in = run.frames_of("equil")
        first = {r: run.time_ps[burn_in][run.replica[burn_in] == r].max(initial=0.0) for r in replicas}
        production_ps = total_ps - float(sum(first.values()))
    production_ps *= share
    return {
        "true_calls": int(calls), "true_calls_training": int(metadata.get("true_calls_training") or 0),
        "true_calls_burn_in": int(metadata.get("true_calls_burn_in") or 0),
        "wall_s": float(wall), "cpu_s": float(metadata.get("cpu_s") or 0.0),
        "simulated_ps": total_ps * share,
        "wall_s_per_ps": (production_wall or wall) / production_ps if production_ps > 0 and wall else None,
        "baseline_steps_covered": int(covered * share),
        "calls_saved_factor": covered * share / calls if calls else None,
        "attempts": tally.get("attempts", {}),
        "counters": {words: tally[key] for key, words in traits_of(metadata).counters.items() if key in tally},
        "failed_true_calls": tally.get("failed_true_calls"),
        **({"cheaper_calls": {name: n for name, n in metadata["true_calls_by_method"].items()
                              if name != metadata["method"]}} if "true_calls_by_method" in metadata else {}),
    }


class Cost(Metric):
    """True calls (training apart), seconds per ps, and what the scheme itself counts."""

    name, needs_frames = "cost", False
    about = ("True calls", "Evaluations of the true physics, training data shown apart. Steps per call says how many "
             "timesteps of accepted trajectory one call paid for.")

    def compute(self, comparison):
        """See `cost_of`."""
        return cost_of(comparison.run, (comparison.value(PROPOSALS) or {}).get("acceptance"))

    def lines(self, result):
        """Calls, steps per call, seconds per ps, and the scheme's own counters."""
        own = result["cost"]
        faster = own.get("times_faster_than_plain")
        lines = {"true calls": (number(own["true_calls"]), "", f"+ {own['true_calls_training']} for training"),
                 "steps per true call": (number(own["calls_saved_factor"]), "", ""),
                 "wall seconds per ps": (number(own["wall_s_per_ps"]), "",
                                         f"{number(faster, 2)} x faster than plain" if faster else "")}
        lines |= {f"calls of {name}": (number(n), "", "asked before the true physics")
                  for name, n in own.get("cheaper_calls", {}).items()}
        if own["counters"]:
            attempts = ", ".join(f"{n} with {a}" for a, n in sorted(own["attempts"].items()))
            lines["steps by number of attempts"] = attempts, "", ""
        lines |= {words: (number(count), "", "") for words, count in own["counters"].items()}
        if own["failed_true_calls"]:
            lines["failed true calls"] = number(own["failed_true_calls"]), "", "counted as rejected"
        return lines


COST = Cost()
