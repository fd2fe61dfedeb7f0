"""One run against its reference: every metric beside its noise floor, and a plain verdict.

`compare` is what scripts and benchmarks call.  `judge` sets a run against its controls.
"""

from __future__ import annotations

import numpy as np

from kstep.analysis import spectra, statistics
from kstep.analysis.energy import energy_drift
from kstep.analysis.profile import GRIDS, Profile, characterise, production_temperature_K
from kstep.analysis.torsions import count_transitions, find_rotamers, most_samples, rotamer_populations
from kstep.errors import UserError
from kstep.schemas import Trajectory
from kstep.units import kT

FEWEST_FOR_A_RATE = 50  # effective samples
R_HAT_LIMIT = 1.05


def compare(reference: Trajectory | Profile, hybrid: Trajectory | Profile, *, rdf_maximum_nm: float = 1.0,
            rdf_bins: int = 200, pool_hydrogens: bool = True, seed: int = 0) -> dict:
    """Judge a run (or a control) against a reference of independent plain replicas.

    Returns a nested dict of plain numbers (None where not defined):

        structure     bond_rmse_A, angle_rmse_deg, bond_w1_A, bond_js, angle_w1_deg, angle_js,
                      torsion_w1_deg, torsion_js, rdf_l1, potential_kJ_per_mol; each
                      {"value", "floor", "floor_error", "floor_expected", "ratio" (value / floor),
                      "limit" (ratio up to which it is within; 1.5 for bonds and angles), "verdict"}
        torsions      one dict per rotatable torsion (rotamers, effective samples, split-R-hat,
                      transitions, rate, W1 and its floor)
        sampling      effective samples of energy and slowest torsion, per true call and second; a
                      torsion's are bounded by its crossings (torsions.most_samples), and it is
                      converged with a split-R-hat up to 1.05 and 50 samples or more
        temperature   per element: K, standard error, verdict; kinetic: physical_validation
        drift         slope of the true total energy with its 95 % interval; None for metropolis
        metropolis    acceptance and <exp(-dH/kT)>; None for other schemes
        stretches     X-H stretch positions and their shift, cm-1; None where not defined
        cost          true calls (training apart), seconds, ps, attempts
        warnings      sentences

    Formula of the floor: the metric D_ab of each pair of reference replicas, times
        sqrt( sum_c (s_hyb,c^2 + s_ref,c^2) / sum_c (s_a,c^2 + s_b,c^2) ),
    averaged over pairs; s are the standard errors of coordinate c in the hybrid run, in the
    pooled reference and in the two replicas (statistics.estimate_means).  `floor_expected` is the
    second estimate, sqrt(mean_c (s_hyb,c^2 + s_ref,c^2)) for an RMS, which uses no pair at all: the
    two agree when replicas differ as their own fluctuations say they should.
    Distributions use n_eff in place of 1/s^2, divergences (which grow as 1/n) the square.
    """
    options = {"rdf_maximum_nm": rdf_maximum_nm, "rdf_bins": rdf_bins, "pool_hydrogens": pool_hydrogens}
    run = hybrid.trajectory if isinstance(hybrid, Profile) else hybrid
    base = reference.trajectory if isinstance(reference, Profile) else reference
    check_comparable(base, run)
    if isinstance(hybrid, Trajectory):
        hybrid = characterise(hybrid, **options)
    temperature_K = hybrid.temperature_K if hybrid else None
    if isinstance(reference, Trajectory):
        reference = characterise(reference, temperature_K=temperature_K, **options)
    if reference is None or (hybrid and abs(reference.temperature_K - hybrid.temperature_K) > 0.5):
        raise UserError(f"the baseline of '{base.metadata['molecule']}' has no production frames at "
                        f"{temperature_K or production_temperature_K(base) or 0:g} K; run it at the hybrid's "
                        "temperature")
    if not np.isclose(reference.rdf_maximum_nm, rdf_maximum_nm) or len(reference.rdf.mean) != rdf_bins:
        raise UserError("reference and hybrid were measured with different rdf ranges or bins")

    metadata = run.metadata
    result = {
        "molecule": metadata["molecule"], "scheme": metadata["scheme"], "method": metadata["method"],
        "k_steps": metadata.get("k_steps"), "dt_fs": metadata.get("dt_fs"), "jump_fs": metadata.get("jump_fs"),
        "temperature_K": reference.temperature_K, "role": role_of(run), "status": metadata.get("status"),
        "replicas": int(len(np.unique(run.replica))), "production_frames": hybrid.n_frames if hybrid else 0,
        "reference_replicas": reference.n_replicas, "warnings": [],
    }
    if hybrid is reference:
        pass
    elif reference.n_replicas == 1:
        result["warnings"].append("the reference is one replica, so no noise floor can be given; run at "
                                  "least four independent seeds or replicas")
    elif reference.n_replicas < 4:
        result["warnings"].append(f"the reference has only {reference.n_replicas} independent replicas; "
                                  "a trustworthy noise floor takes at least four")
    result["structure"] = _structure(reference, hybrid, seed) if hybrid else None
    result["torsions"] = _torsions(reference, hybrid, seed) if hybrid else []
    for torsion in result["torsions"]:
        if torsion["state"] != "one rotamer in the reference" \
                and torsion["effective_samples_reference"] < FEWEST_FOR_A_RATE:
            result["warnings"].append(
                f"the reference holds only {torsion['effective_samples_reference']:.0f} effective samples of torsion "
                f"{torsion['label']}; what depends on it has a floor that is too low")
        if torsion["new_rotamers_deg"]:
            places = ", ".join(f"{c:.0f}" for c in torsion["new_rotamers_deg"])
            result["warnings"].append(f"the run visits a rotamer of {torsion['label']} near {places} degrees that "
                                      "the reference never did; one of them is wrong or too short")
    result["temperature"] = _temperature(hybrid) if hybrid else None
    result["kinetic"] = hybrid.kinetic if hybrid else None
    result["drift"] = _drift(run)
    result["metropolis"] = _metropolis(run, hybrid)
    result["stretches"] = _stretches(reference, run)
    result["cost"] = _cost(run, result["metropolis"])
    result["sampling"] = _sampling(hybrid, result) if hybrid else None
    if not hybrid:
        result["warnings"].append("the run holds no production frames, so structure was not judged")
    if _energy_rescale(run):
        result["warnings"].append("the run rescales its energy, which hides drift; none is reported")
    return result


def check_comparable(reference: Trajectory, hybrid: Trajectory) -> None:
    """Same molecule, same atoms in the same order, same method; else one sentence."""
    r, h = reference.metadata, hybrid.metadata
    name = h.get("molecule")
    if r.get("molecule") != name:
        raise UserError(f"the run is of '{name}' but the reference of '{r.get('molecule')}'")
    if not np.array_equal(reference.atom_types, hybrid.atom_types):
        raise UserError(f"the atoms of '{name}' differ between baseline and run; prepare both from the same "
                        "data/raw folder")
    if not np.array_equal(np.sort(reference.bonds, axis=None), np.sort(hybrid.bonds, axis=None)):
        raise UserError(f"the bonds of '{name}' differ between baseline and run; prepare both from the same "
                        "data/raw folder")
    if r.get("method") != h.get("method"):
        raise UserError(f"'{name}' was run with {h.get('method')} but its baseline with {r.get('method')}; "
                        "compare runs of one method")


def role_of(trajectory: Trajectory) -> str:
    """'plain' and 'no network' are controls; everything else is a hybrid."""
    if trajectory.metadata["scheme"] == "plain":
        return "plain"
    return "no network" if trajectory.metadata.get("delta_scale") == 0 else "hybrid"


def _energy_rescale(trajectory):
    config = trajectory.metadata.get("config") or {}
    return bool(trajectory.metadata.get("energy_rescale") or (isinstance(config, dict) and (
        config.get("energy_rescale") or (config.get("hybrid") or {}).get("energy_rescale"))))


# structure and its floor

def _rms(weights):
    return lambda d: np.sqrt(np.average(d**2, axis=-1, weights=weights))


def _average(weights):
    return lambda d: np.average(d, axis=-1, weights=weights)


def _sum(d):
    return d.sum(axis=-1)


def _pair_scale_of_means(hybrid, reference, weights):
    """(R,R) factor that brings a replica pair's difference to hybrid against pooled reference."""
    own = hybrid.mean_variance + reference.mean_variance
    share = reference.shares
    pair = 1.0 / share[:, None] + 1.0 / share[None, :]
    denominator = (weights * reference.mean_variance).sum() * pair
    return np.sqrt((weights * own).sum() / np.maximum(denominator, 1e-300))


def _pair_scale_of_shapes(n_hybrid, n_reference, shares):
    pair = (1.0 / shares[:, None] + 1.0 / shares[None, :])[..., None] / n_reference
    return np.sqrt((1.0 / n_hybrid + 1.0 / n_reference) / pair)


def _entry(value, floor, limit=statistics.WITHIN_FLOOR):
    out = {"value": float(value), "floor": None, "floor_error": None, "floor_expected": None, "ratio": None,
           "limit": float(limit), "verdict": "no floor"}
    if floor is not None:
        ratio = float(value / floor.value) if floor.value > 0 else None
        within = value <= limit * floor.value
        out.update(floor=floor.value, floor_error=floor.error, floor_expected=floor.expected, ratio=ratio,
                   verdict="within floor" if within else "above floor")
    return out


def _limit(parts):
    """Ratio up to which a metric made of positive `parts` (C,) is within its floor.

    A metric of one coordinate scatters about its floor like |x| of a Gaussian, of which one in
    twenty exceeds 2.5 means; one of many coordinates hardly scatters, and 1.5 is the limit.
    """
    effective = parts.sum() ** 2 / max((parts**2).sum(), 1e-300)
    return max(statistics.WITHIN_FLOOR, 1.0 + 1.5 / np.sqrt(max(effective, 1.0)))


def _compare_means(hybrid, reference, weights, combine, expected, seed, limit=statistics.WITHIN_FLOOR):
    value = combine(np.abs(hybrid.mean - reference.mean))
    if len(reference.replica_means) < 2:
        return _entry(value, None, limit)
    pairs = np.abs(reference.replica_means[:, None] - reference.replica_means[None])
    scale = _pair_scale_of_means(hybrid, reference, weights)
    return _entry(value, statistics.noise_floor(pairs, scale, combine, expected=expected, seed=seed), limit)


def _distribution_distances(reference, hybrid, kind, weights, seed):
    """W1 and Jensen-Shannon of every coordinate of a kind: two entries and the values per coordinate."""
    lower, upper, bins, merged = GRIDS[kind]
    width, circular = (upper - lower) / bins, kind == "torsions"

    def w1(p, q):
        return statistics.wasserstein_1(p, q, width, circular)

    def js(p, q):
        return statistics.jensen_shannon(statistics.coarsen(p, merged), statistics.coarsen(q, merged))

    combine, table = _average(weights), reference.histograms[kind]
    pooled, own = table.sum(axis=0), hybrid.histograms[kind].sum(axis=0)
    entries, each = [], []
    for distance, power, sizes in ((w1, 1, "shape_n_eff"), (js, 2, "bin_n_eff")):
        n_h, n_r = getattr(hybrid, sizes)[kind], getattr(reference, sizes)[kind]
        values = distance(own, pooled)
        floor, each_floor, limit = None, np.full(len(values), np.nan), statistics.WITHIN_FLOOR
        if len(table) > 1:
            pairs = np.array([[distance(p, q) for q in table] for p in table])
            scale = _pair_scale_of_shapes(n_h, n_r, reference.means["bonds"].shares) ** power
            floor = statistics.noise_floor(pairs, scale, combine, seed=seed)
            a, b = np.triu_indices(len(table), 1)
            each_floor = (pairs * scale)[a, b].mean(axis=0)
            limit = _limit(weights * each_floor)
        entries.append(_entry(combine(values), floor, limit))
        each.append((values, each_floor))
    return entries, each


def _structure(reference, hybrid, seed):
    out = {}
    found = reference.coordinates
    for kind, unit, labels, group in (("bonds", "A", found.bond_labels, found.bond_group),
                                      ("angles", "deg", found.angle_labels, found.angle_group)):
        if not labels:
            continue
        name = kind[:-1]
        weights = np.bincount(group, minlength=len(labels)).astype(float)
        h, r = hybrid.means[kind], reference.means[kind]
        expected = float(np.sqrt(np.average(h.mean_variance + r.mean_variance, weights=weights)))
        entry = _compare_means(h, r, weights, _rms(weights), expected, seed)
        worst = int(np.abs(h.mean - r.mean).argmax())
        entry["worst"] = {"label": labels[worst], "difference": float(h.mean[worst] - r.mean[worst]),
                          "standard_error": float(np.sqrt(h.mean_variance[worst] + r.mean_variance[worst]))}
        out[f"{name}_rmse_{unit}"] = entry
        (w1, js), _ = _distribution_distances(reference, hybrid, kind, weights, seed)
        out[f"{name}_w1_{unit}"], out[f"{name}_js"] = w1, js
    if found.torsion_labels:
        (w1, js), _ = _distribution_distances(reference, hybrid, "torsions", np.ones(len(found.torsions)), seed)
        out["torsion_w1_deg"], out["torsion_js"] = w1, js
    h, r = hybrid.rdf, reference.rdf
    # the mean of |x| is sqrt(2/pi) of its standard deviation when x is Gaussian
    expected = float(np.sqrt(2.0 / np.pi) * np.sqrt(h.mean_variance + r.mean_variance).sum())
    out["rdf_l1"] = _compare_means(h, r, np.ones(len(r.mean)), _sum, expected, seed)
    h, r = hybrid.potential, reference.potential
    expected = float(np.sqrt(2.0 / np.pi * (h.mean_variance + r.mean_variance)[0]))
    entry = _compare_means(h, r, np.ones(1), _sum, expected, seed, _limit(np.ones(1)))
    entry["difference"] = float(h.mean[0] - r.mean[0])
    out["potential_kJ_per_mol"] = entry
    return out


def _torsions(reference, hybrid, seed):
    labels = reference.coordinates.torsion_labels
    if not labels:
        return []
    _, ((w1, w1_floor), (js, _)) = _distribution_distances(
        reference, hybrid, "torsions", np.ones(len(labels)), seed)
    dynamics = hybrid.trajectory.metadata["scheme"] != "metropolis"
    length_ps = sum(np.ptp(hybrid.trajectory.time_ps[r]) for r in hybrid.replicas)
    reference_ps = sum(np.ptp(reference.trajectory.time_ps[r]) for r in reference.replicas)
    out = []
    for d, label in enumerate(labels):
        base, own = (p.histograms["torsions"][:, d].sum(axis=0) for p in (reference, hybrid))
        centres = find_rotamers(base)
        many = len(centres) >= 2
        # wells that only the run has found count as crossings too
        both = base / base.sum() + own / own.sum()
        every = find_rotamers(both)
        populations = rotamer_populations(both, every)
        crossings, crossings_reference = (
            sum(count_transitions(x[:, d], every) for x in p.torsion_series) for p in (hybrid, reference))
        n_eff, n_eff_reference = float(hybrid.torsion_n_eff[d]), float(reference.torsion_n_eff[d])
        if len(every) >= 2:
            n_eff = min(n_eff, most_samples(crossings, populations))
            n_eff_reference = min(n_eff_reference, most_samples(crossings_reference, populations))
        r_hat = float(hybrid.torsion_r_hat[d])
        converged = r_hat <= R_HAT_LIMIT and (not many or n_eff >= FEWEST_FOR_A_RATE)
        floor = float(w1_floor[d]) if np.isfinite(w1_floor[d]) else None
        rate = crossings / length_ps if dynamics and length_ps > 0 and n_eff >= FEWEST_FOR_A_RATE and many else None
        enough = n_eff_reference >= FEWEST_FOR_A_RATE and many
        out.append({
            "label": label,
            "rotamers_deg": [float(c) for c in centres],
            "state": ("one rotamer in the reference" if not many
                      else "crossed" if crossings else "never crossed"),
            "effective_samples": n_eff,
            "effective_samples_reference": n_eff_reference,
            "r_hat": r_hat if np.isfinite(r_hat) else None,
            "r_hat_reference": _finite(reference.torsion_r_hat[d]),
            "convergence": "converged" if converged else "not converged",
            "new_rotamers_deg": [float(c) for c in every if not len(centres)
                                 or np.abs((c - centres + 180.0) % 360.0 - 180.0).min() > 30.0],
            "transitions": crossings, "transitions_reference": crossings_reference,
            "rate_per_ps": rate,
            "rate_reference_per_ps": crossings_reference / reference_ps if enough and reference_ps > 0 else None,
            "w1_deg": float(w1[d]), "w1_floor_deg": floor, "js": float(js[d]),
            "verdict": ("no floor" if floor is None
                        else "within floor" if w1[d] <= _limit(np.ones(1)) * floor else "above floor"),
        })
    return out


# temperature, energy, spectrum

def _finite(number):
    return float(number) if np.isfinite(number) else None


def _temperature(profile):
    out = {}
    for e, element in enumerate(profile.elements):
        value, error = float(profile.temperatures.mean[e]), float(profile.temperatures.standard_error[e])
        off = abs(value - profile.temperature_K) > 3.0 * error
        out[element] = {"temperature_K": value, "standard_error_K": error, "target_K": profile.temperature_K,
                        "verdict": "off by more than 3 standard errors" if off else "right"}
    return out


def _drift(run):
    if run.metadata["scheme"] == "metropolis" or _energy_rescale(run):
        return None
    return energy_drift(run)


def _metropolis(run, profile):
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


def _stretches(reference, run):
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


# cost, effective samples, verdict

def _cost(run, metropolis):
    metadata = run.metadata
    tally = metadata.get("tally") or {}
    replicas = np.unique(run.replica)
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


def _sampling(profile, result):
    found = effective_samples(profile, result["torsions"])
    cost = result["cost"]
    rates = {"calls": cost["true_calls"], "cpu_s": cost["cpu_s"], "wall_s": cost["wall_s"]}
    for observable in ("energy", "slowest_torsion"):
        n = found[observable]
        found[f"{observable}_per_1000_calls"] = 1e3 * n / rates["calls"] if n is not None and rates["calls"] else None
        for second in ("cpu_s", "wall_s"):
            found[f"{observable}_per_{second}"] = n / rates[second] if n is not None and rates[second] else None
    return found


def judge(result: dict, controls: dict[str, dict]) -> list[str]:
    """Plain sentences: does this run beat plain MD at the same number of true calls?

    controls: results of `compare` for plain runs of the same molecule (and, under the name
    'baseline', for the reference itself).  Effective samples of a control are scaled to the
    run's number of calls; the run must win on the energy and on the slowest torsion, and its
    structure must lie within its floor or be no worse than the control's.
    """
    if result["structure"] is None:
        return ["not judged against plain MD: the run holds no production frames"]
    out = []
    for name, control in controls.items():
        if control["structure"] is None or not control["cost"]["true_calls"]:
            continue
        for extra, words in ((0, ""), (result["cost"]["true_calls_training"], ", training included")):
            if words and not extra:
                continue
            lost = _lost(result, control, extra)
            text = f"plain MD ({name}) at the same number of true calls{words}"
            neither = result["sampling"]["convergence"] == "not converged"
            won = f"beats {text}" + (", though its own torsions are not converged yet either" if neither else "")
            out.append(won if not lost else f"does not beat {text}: {'; '.join(lost)}")
    if not out:
        return ["not judged against plain MD: no plain control with known true calls"]
    return out


def _lost(result, control, extra_calls):
    factor = (result["cost"]["true_calls"] + extra_calls) / control["cost"]["true_calls"]
    mine, theirs, lost = result["sampling"], control["sampling"], []
    if mine["energy"] <= factor * theirs["energy"]:
        lost.append(f"energy {mine['energy']:.3g} effective samples against {factor * theirs['energy']:.3g}")
    several = [t for t in result["torsions"] if t["state"] != "one rotamer in the reference"]
    if several:
        here = 0.0 if mine["never_crossed"] else mine["slowest_torsion"] or 0.0
        there = 0.0 if theirs["never_crossed"] else theirs["slowest_torsion"] or 0.0
        if here <= factor * there:
            lost.append(f"slowest torsion {here:.3g} effective samples against {factor * there:.3g}")
        elif mine["convergence"] != "converged" and theirs["convergence"] == "converged":
            lost.append("its torsions are not converged")
    for key, label in (("bond_rmse_A", "bond error"), ("angle_rmse_deg", "angle error")):
        a, b = result["structure"].get(key), control["structure"].get(key)
        if a and a["verdict"] == "above floor" and (b is None or a["value"] > b["value"]):
            lost.append(f"{label} {a['value']:.3g} above its floor {a['floor']:.3g} and above the control's "
                        f"{b['value']:.3g}" if b else f"{label} above its floor")
    return lost
