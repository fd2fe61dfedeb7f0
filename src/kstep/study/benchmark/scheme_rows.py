"""One row of a benchmark: a scheme's cost, errors beside their floors, drift, spectrum and samples.

Every figure comes from trajectory files.  Seconds of plain MD come from short runs made side by
side with everything else, since a long reference may have run on a busy machine.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kstep.analysis.judge.compare import compare
from kstep.analysis.judge.verdict import Verdict
from kstep.analysis.measure.profile import Profile, characterise
from kstep.analysis.measure.samples import Rotamers, effective_samples, per, series_of, slowest
from kstep.analysis.metrics import METRICS
from kstep.analysis.metrics.drift import drift_of
from kstep.analysis.metrics.metric import FlooredMetric
from kstep.analysis.metrics.stretches import stretch_shifts
from kstep.schemas import Trajectory
from kstep.scheme_traits import traits_of
from kstep.units import FS_PER_PS, PS_PER_FS

IN_SHORT = tuple(m for m in METRICS if isinstance(m, FlooredMetric) and m.in_short)  # beside their floors
SHORTEST_REPLICA_PS = 5.0  # of dynamics: a series no longer than its memory makes that memory look short


def replica_length_ps(profile: Profile) -> float:
    """Production of the shortest replica."""
    return min(len(r) for r in profile.replicas) * profile.spacing_ps


def plain_cost(timed: Trajectory, n_workers: int) -> dict:
    """What plain MD costs, from a run of whole replicas on n_workers processes."""
    metadata = timed.metadata
    calls_per_ps = FS_PER_PS / metadata["dt_fs"]
    total_ps = metadata["true_calls"] / calls_per_ps
    n_replicas = len(np.unique(timed.replica))
    # QM replicas run n_workers at a time and the file knows the longest; MM replicas run one after another
    waves = math.ceil(n_replicas / n_workers) if metadata.get("backend") != "openmm" else 1
    return {"true_calls_per_ps": calls_per_ps, "cpu_s_per_call": metadata["cpu_s"] / metadata["true_calls"],
            "cpu_s_per_ps": metadata["cpu_s"] / total_ps, "wall_s_per_ps": waves * metadata["wall_s"] / total_ps}


def hybrid_cost(run: Trajectory, command_cpu_s: float | None) -> dict:
    """What a hybrid's production costs per ps of accepted trajectory; burn-in and training stand apart.

    command_cpu_s: of the command that made the file, less what it spent on learning; what of it is not
    production (imports, tuning, thermalisation) counts as burn-in.
    """
    metadata = run.metadata
    burn_in = metadata["cpu_burn_in_s"]
    if command_cpu_s is not None:
        burn_in = max(burn_in, command_cpu_s - metadata["cpu_production_s"])
    calls = metadata["true_calls"] - metadata.get("true_calls_burn_in", 0)
    share = metadata["acceptance"] if traits_of(metadata).can_refuse else 1.0
    moved_ps = max(metadata["tally"]["macro_steps"] * metadata["jump_fs"] * PS_PER_FS * share, 1e-12)
    return {"true_calls_per_ps": calls / moved_ps, "cpu_s_per_call": metadata["cpu_production_s"] / max(calls, 1),
            "cpu_s_per_ps": metadata["cpu_production_s"] / moved_ps,
            "wall_s_per_ps": metadata["wall_production_s"] / moved_ps, "true_calls_production": calls,
            "cpu_s_production": metadata["cpu_production_s"], "true_calls_burn_in": metadata["true_calls_burn_in"],
            "cpu_s_burn_in": burn_in, "busy_share": metadata.get("busy_share")}


def training_cost(metadata: dict, cpu_s_per_call: float, training_s: float | None) -> dict:
    """CPU seconds that a run's network cost.

    A self-learned network knows all of it.  Otherwise labels are priced at what a plain call costs
    here, and training_s, the seconds that training took, is added if known.
    """
    calls = metadata.get("true_calls_training") or 0
    known = metadata.get("cpu_s_training")
    if known is not None:
        return {"true_calls": calls, "cpu_s": float(known), "source": "measured while it learned, labels included"}
    words = "labels at the price of a plain call"
    words += " + the seconds of training" if training_s is not None else "; the time of training is not known"
    return {"true_calls": calls, "cpu_s": calls * cpu_s_per_call + (training_s or 0.0), "source": words}


def samples_row(profile: Profile, rotamers: list[Rotamers | None], cost: dict, training: dict | None) -> dict:
    """Effective samples of the energy and the slowest torsion per 1000 true calls and per CPU second.

    cost: true_calls_production, cpu_s_production; rates with training included spread training and
    burn-in over the samples of this one run.  Dynamics of less than 5 ps per replica gives no rate.
    """
    found = effective_samples(series_of(profile), rotamers)
    slow = slowest(found["torsions"])
    dynamics = traits_of(profile.trajectory.metadata).keeps_velocities
    short = dynamics and replica_length_ps(profile) < SHORTEST_REPLICA_PS
    calls, cpu_s = cost["true_calls_production"], cost["cpu_s_production"]
    before = {"true_calls": cost.get("true_calls_burn_in", 0) + (training or {}).get("true_calls", 0),
              "cpu_s": cost.get("cpu_s_burn_in", 0.0) + (training or {}).get("cpu_s", 0.0)}
    out: dict[str, Any] = {"all": found, "slowest_torsion_label": slow[0] if slow else None}
    for name, entry in (("energy", found["energy"]), ("torsion", slow[1] if slow else None)):
        if entry is None:
            continue
        out[name] = {"samples": entry["samples"], "standard_error": entry["standard_error"], "too_short": short}
        if short:
            continue
        out[name] |= {"per_call": per(entry, calls), "per_cpu_s": per(entry, cpu_s),
                      "per_call_training_included": per(entry, calls + before["true_calls"]),
                      "per_cpu_s_training_included": per(entry, cpu_s + before["cpu_s"])}
    return out


def torsion_rate(samples: dict, profile: Profile, label: str | None) -> dict | None:
    """Transitions of one torsion per ps of dynamics, if at least 50 samples stand behind it."""
    if label is None or not traits_of(profile.trajectory.metadata).keeps_velocities:
        return None
    entry, length_ps = samples["all"]["torsions"][label], series_of(profile).length_ps
    return {"label": label, "transitions": entry["crossings"], "length_ps": length_ps,
            "per_ps": entry["crossings"] / length_ps if per(entry, 1.0) else None}


def structure_row(reference: Profile, profile: Profile) -> dict:
    """Errors beside their floors, temperatures, and the identity of the proposals of a production run."""
    found = compare(reference, profile)
    keys = ("value", "floor", "floor_error", "ratio", "verdict")
    entries = {metric.name: metric.entry_of(found) for metric in IN_SHORT}
    out = {name: {k: entry[k] for k in keys} if profile is not reference else Verdict.REFERENCE
           for name, entry in entries.items() if entry}
    identity = found["proposals"] or {}
    if "exp_minus_beta_dH" in identity:
        out["exp_minus_beta_dH"] = {"mean": identity["exp_minus_beta_dH"], "standard_error": identity["standard_error"]}
    return {**out, "temperature": found["temperature"], "kinetic": found["kinetic"], "warnings": found["warnings"],
            "converged": found["sampling"]["convergence"]}


def dynamics_row(spectrum_reference: Profile | None, nve: Trajectory | None, spectrum: Trajectory | None) -> dict:
    """Drift, certificate and stretch shifts of NVE runs; None where there is no such run."""
    drift = drift_of(nve) if nve is not None else None
    shifts = None
    if spectrum is not None and spectrum_reference is not None and not (
            not traits_of(spectrum.metadata).needs_network
            and spectrum.metadata["dt_fs"] == spectrum_reference.trajectory.metadata["dt_fs"]):
        shifts = stretch_shifts(spectrum_reference, spectrum)
    return {"drift": drift, "certificate": nve.metadata.get("certificate") if nve is not None else None,
            "stretches": shifts, "status_nve": nve.metadata.get("status") if nve is not None else None}


def plain_row(run: Trajectory, timed: Trajectory, reference: Profile, spectrum_reference: Profile | None,
              rotamers: list[Rotamers | None], label: str | None, n_workers: int) -> dict:
    """The row of plain MD: `run` is the long one, `timed` the one made side by side with the others."""
    profile = reference if run is reference.trajectory else characterise(run, temperature_K=reference.temperature_K)
    cost = plain_cost(timed, n_workers)
    length_ps = series_of(profile).length_ps
    cost["true_calls_production"] = round(length_ps * cost["true_calls_per_ps"])
    cost["cpu_s_production"] = cost["true_calls_production"] * cost["cpu_s_per_call"]
    samples = samples_row(profile, rotamers, cost, None)
    return {"scheme": run.metadata["scheme"], "dt_fs": run.metadata["dt_fs"], "jump_fs": run.metadata["dt_fs"],
            "acceptance": None,
            "length_ps": length_ps, "cost": cost, "samples": samples, "status": run.metadata["status"],
            "torsion_rate": torsion_rate(samples, profile, label), **structure_row(reference, profile),
            **dynamics_row(spectrum_reference, timed, timed)}


def hybrid_row(run: Trajectory, reference: Profile, spectrum_reference: Profile | None, rotamers: list[Rotamers | None],
               label: str | None, plain_cpu_s_per_call: float, training_s: float | None, command_cpu_s: float | None, *,
               nve: Trajectory | None = None, spectrum: Trajectory | None = None) -> dict:
    """The row of a hybrid: `run` samples an ensemble, `nve` shows the drift, `spectrum` the stretches."""
    profile = characterise(run, temperature_K=reference.temperature_K)
    metadata, cost = run.metadata, hybrid_cost(run, command_cpu_s)
    training = training_cost(metadata, plain_cpu_s_per_call, training_s)
    out = {"scheme": metadata["scheme"], "dt_fs": metadata["dt_fs"], "jump_fs": metadata["jump_fs"],
           "acceptance": metadata.get("acceptance"), "cost": cost, "training": training,
           "tuning": metadata.get("tuning"),
           "status": metadata["status"], "proposals": metadata["tally"]["macro_steps"], "seed": metadata.get("seed"),
           **dynamics_row(spectrum_reference, nve, spectrum)}
    if profile is None:  # broke before production
        return {**out, "samples": None, "torsion_rate": None, "warnings": ["no production frames"]}
    samples = samples_row(profile, rotamers, cost, training)
    return {**out, "samples": samples, "torsion_rate": torsion_rate(samples, profile, label),
            **structure_row(reference, profile)}
