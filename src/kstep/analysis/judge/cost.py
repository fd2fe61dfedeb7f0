"""What a run cost, and how many independent samples it gave for that."""

from __future__ import annotations

import numpy as np

from kstep.analysis.measure.profile import Profile
from kstep.schemas import Trajectory


def cost_of(run: Trajectory, metropolis: dict | None) -> dict:
    """True calls, seconds and accepted trajectory of a run; `metropolis` from ensemble.metropolis_identity.

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
    # only accepted proposals move a Metropolis chain
    share = metropolis["acceptance"] if metropolis and metropolis["acceptance"] is not None else 1.0
    # burn-in is paid once; the speed of a run is that of its production where the file knows it
    production_wall, production_ps = metadata.get("wall_production_s"), total_ps
    if production_wall:
        burn_in = run.frames_of("equil")
        first = {r: run.time_ps[burn_in][run.replica[burn_in] == r].max(initial=0.0) for r in replicas}
        production_ps = total_ps - float(sum(first.values()))
    production_ps *= share
    attempts = tally.get("attempts")
    if attempts is None:
        values, counts = np.unique(run.attempts[run.attempts > 0], return_counts=True)
        attempts = {str(int(v)): int(c) for v, c in zip(values, counts)}
    return {
        "true_calls": int(calls), "true_calls_training": int(metadata.get("true_calls_training") or 0),
        "true_calls_burn_in": int(metadata.get("true_calls_burn_in") or 0),
        "wall_s": float(wall), "cpu_s": float(metadata.get("cpu_s") or 0.0),
        "simulated_ps": total_ps * share,
        "wall_s_per_ps": (production_wall or wall) / production_ps if production_ps > 0 and wall else None,
        "baseline_steps_covered": int(covered * share),
        "calls_saved_factor": covered * share / calls if calls else None,
        "attempts": attempts,
        "refused_jumps": tally.get("refused_jumps") if metadata["scheme"] == "jump" else None,
        "plain_steps": tally.get("plain_steps") if metadata["scheme"] == "jump" else None,
        "failed_true_calls": tally.get("failed_true_calls"),
    }


def effective_samples(profile: Profile, torsions: list[dict]) -> dict:
    """Independent samples of the potential energy and of the slowest torsion that has rotamers."""
    crossed = [t for t in torsions if t["state"] == "crossed"]
    slowest = min(crossed, key=lambda t: t["effective_samples"], default=None)
    several = [t for t in torsions if t["state"] != "one rotamer in the reference"]
    return {
        "energy": float(profile.potential.n_eff[0]),
        "slowest_torsion": slowest["effective_samples"] if slowest else None,
        "slowest_torsion_label": slowest["label"] if slowest else None,
        "never_crossed": [t["label"] for t in torsions if t["state"] == "never crossed"],
        "one_rotamer": [t["label"] for t in torsions if t["state"] == "one rotamer in the reference"],
        "convergence": ("no torsion with rotamers" if not several else "converged"
                        if all(t["convergence"] == "converged" for t in several) else "not converged"),
    }


def sampling(profile: Profile, torsions: list[dict], cost: dict) -> dict:
    """Effective samples, and how many per 1000 true calls and per second of CPU and wall-clock time."""
    found = effective_samples(profile, torsions)
    rates = {"calls": cost["true_calls"], "cpu_s": cost["cpu_s"], "wall_s": cost["wall_s"]}
    for observable in ("energy", "slowest_torsion"):
        n = found[observable]
        found[f"{observable}_per_1000_calls"] = 1e3 * n / rates["calls"] if n is not None and rates["calls"] else None
        for second in ("cpu_s", "wall_s"):
            found[f"{observable}_per_{second}"] = n / rates[second] if n is not None and rates[second] else None
    return found
