"""Does a run keep the right ensemble: temperatures, energy, the Metropolis identity, vibrations."""

from __future__ import annotations

import numpy as np

from kstep.analysis.measure import spectra, statistics
from kstep.analysis.measure.energy import energy_drift
from kstep.analysis.measure.profile import Profile
from kstep.schemas import Trajectory
from kstep.units import kT


def rescales_energy(trajectory: Trajectory) -> bool:
    """True when the run rescaled velocities to its old total energy, which hides drift."""
    config = trajectory.metadata.get("config") or {}
    return bool(trajectory.metadata.get("energy_rescale") or (isinstance(config, dict) and (
        config.get("energy_rescale") or (config.get("hybrid") or {}).get("energy_rescale"))))


def temperatures(profile: Profile) -> dict:
    """Per element: temperature and its standard error in K, the target, and a verdict (equipartition)."""
    out = {}
    for e, element in enumerate(profile.elements):
        value, error = float(profile.temperatures.mean[e]), float(profile.temperatures.standard_error[e])
        off = abs(value - profile.temperature_K) > 3.0 * error
        out[element] = {"temperature_K": value, "standard_error_K": error, "target_K": profile.temperature_K,
                        "verdict": "off by more than 3 standard errors" if off else "right"}
    return out


def drift(run: Trajectory) -> dict | None:
    """Energy drift in the NVE windows; None where the scheme or a rescale leaves none to measure."""
    if run.metadata["scheme"] == "metropolis" or rescales_energy(run):
        return None
    return energy_drift(run)


def certificate(run: Trajectory) -> dict | None:
    """How far the network lay from the truth along the run, beside its tolerances; None where it was not recorded."""
    found, config = run.metadata.get("certificate"), run.metadata.get("config") or {}
    if not found or not found["pairs"] or run.metadata.get("delta_scale") == 0:
        return None
    limits = {"spread_kJ_per_mol": config.get("max_energy_spread_kJ_per_mol"),
              "force_rmse_kJ_per_mol_A": config.get("max_force_rmse_kJ_per_mol_A")}
    verdicts = {key: "no tolerance" if limit is None else
                "within tolerance" if found[key] <= limit else "past tolerance" for key, limit in limits.items()}
    return {**found, "tolerances": limits, "verdicts": verdicts}


def caveats(run: Trajectory) -> list[str]:
    """What the scheme of a run does not promise, and whether the run came to its end, in sentences."""
    out, status = [], run.metadata.get("status") or ""
    if run.metadata["scheme"] == "checked":
        out.append("checked follows the network's force, so its ensemble is the network's; E_true - E_ML and the "
                   "force error say how near that is to the true one")
    if run.metadata["scheme"] == "impulse" and (run.metadata.get("config") or {}).get("project_residual"):
        out.append("the kicks were projected off bond lengths and angle distances: the map is reversible but not "
                   "symplectic, and the run samples neither the true potential nor the network's exactly")
    learned = (run.metadata.get("tally") or {}).get("learned")
    if learned:
        out.append(f"the network was trained anew at macro-step {', '.join(str(x['macro_step']) for x in learned)}; "
                   "production is what came after")
    if status.startswith(("stopped", "broke")):
        out.append(f"the run {status}")
    return out


def metropolis_identity(run: Trajectory, profile: Profile | None) -> dict | None:
    """Acceptance and <exp(-dH/kT)> over the production proposals, which is 1 for a correct sampler."""
    if run.metadata["scheme"] != "metropolis" or not len(run.delta_H):
        return None
    replicas = profile.replicas if profile else [np.arange(len(run.delta_H))]
    proposals = [run.delta_H[r][~np.isnan(run.delta_H[r])] for r in replicas]
    n = sum(len(p) for p in proposals)
    if n == 0:
        return None
    temperature_K = profile.temperature_K if profile else run.metadata["temperature_K"]
    identity = statistics.exponential_identity(proposals, kT(temperature_K))
    off = abs(identity["mean"] - 1.0) > 3.0 * identity["standard_error"]
    too_few = not identity["standard_error"] <= 0.03
    accepted = np.concatenate([run.accepted[r][~np.isnan(run.delta_H[r])] for r in replicas]) \
        if len(run.accepted) else np.zeros(0)
    values = np.concatenate(proposals)
    return {
        "acceptance": float(accepted.mean()) if len(accepted) else None,
        "proposals": int(n),
        "exp_minus_beta_dH": identity["mean"],
        "standard_error": identity["standard_error"],
        "verdict": "violated" if off else "not decided (error above 0.03)" if too_few else "holds",
        "delta_H_mean_kT": float(values[np.isfinite(values)].mean() / kT(temperature_K)),
    }


def stretches(reference: Profile, run: Trajectory) -> dict | None:
    """Positions of the X-H stretches and their shifts in cm-1; None where no spectrum is defined."""
    if run.metadata["scheme"] == "metropolis":
        return None
    window = min(spectra.longest_window_ps(run),
                 spectra.longest_window_ps(reference.trajectory, reference.temperature_K), 2.0)
    if window < spectra.SHORTEST_SEGMENT_PS:
        return None
    own = spectra.spectrum(run, window)
    base = spectra.spectrum(reference.trajectory, window, reference.temperature_K)
    if own is None or base is None:
        return None
    out = {}
    for name, here in own["stretches"].items():
        there = base["stretches"][name]
        errors = [here["error_cm"], there["error_cm"]]
        error = float(np.hypot(*errors)) if None not in errors else None
        shift = here["position_cm"] - there["position_cm"]
        out[name] = {"position_cm": here["position_cm"], "reference_cm": there["position_cm"], "shift_cm": shift,
                     "error_cm": error, "windows": own["windows"], "window_ps": window,
                     "verdict": "no floor" if not error
                     else "within floor" if abs(shift) <= 3.0 * error else "above floor"}
    return out
