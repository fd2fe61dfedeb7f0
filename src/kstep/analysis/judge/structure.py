"""Bonds, angles, torsions, RDF and energy of a run against its reference, each beside its noise floor.

The floor of a metric is its mean over pairs of reference replicas, brought to the run's own
effective sample size; `compare.compare` states the formula and what each entry holds.
"""

from __future__ import annotations

import numpy as np

from kstep.analysis.measure import statistics
from kstep.analysis.measure.profile import GRIDS, Profile
from kstep.analysis.measure.torsions import count_transitions, find_rotamers, most_samples, rotamer_populations

FEWEST_FOR_A_RATE = 50  # effective samples
R_HAT_LIMIT = 1.05


def _finite(number):
    return float(number) if np.isfinite(number) else None


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


def compare_structure(reference: Profile, hybrid: Profile, seed: int) -> dict:
    """Every entry of `structure` in the result of `compare`."""
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


def compare_torsions(reference: Profile, hybrid: Profile, seed: int) -> list[dict]:
    """One dict per rotatable torsion: rotamers, effective samples, crossings, W1 beside its floor."""
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
