"""How many times cheaper an exact sampler is than plain MD, in the currency of effective samples.

The rates of plain MD come from its long run where that holds 50 samples of the energy, and of its slowest
torsion.  Where it does not, they come from the network's own dynamics, which is as fast as the plain one as
far as the certificate says that their potentials agree; beside it stands what the plain run
itself allows: its crossings bound its rate from above, and so the speed-up from below.
"""

from __future__ import annotations

import statistics

from kstep.analysis.measure.samples import (
    Rotamers,
    Series,
    effective_samples,
    most_samples_by_poisson,
    per,
    ratio,
    slowest,
)

WANTED_SAMPLES = 10_000
FROM_PLAIN = "plain dynamics"
FROM_NETWORK = "the network's dynamics, certified by energy spread and force error"


def plain_rates(plain: Series, calls_per_ps: float, rotamers: list[Rotamers | None],
                network: tuple[Series, dict] | None) -> dict:
    """Effective samples per true call of plain MD: energy and slowest torsion, with source and bounds.

    network: the series of the network's own dynamics and its metadata.
    """
    found = effective_samples(plain, rotamers)
    calls = plain.length_ps * calls_per_ps
    slow = slowest(found["torsions"])
    out = {"energy": None, "energy_direct": found["energy"], "calls": calls, "length_ps": plain.length_ps,
           "torsion": None, "network": None, "all": found}
    by_network = {"energy": None, "torsion": None}
    if network is not None:
        by_network = out["network"] = network_rates(plain, calls_per_ps, rotamers, *network)
    if (energy := per(found["energy"], calls)) is not None:
        out["energy"] = {**energy, "source": FROM_PLAIN}
    elif by_network["energy"]:
        out["energy"] = {**by_network["energy"], "source": FROM_NETWORK}
    if slow is None:
        return out
    label, entry = slow
    direct = per(entry, calls)
    out["torsion_direct"] = {"label": label, **entry, "per_call": direct}
    if direct is not None:
        out["torsion"] = {**direct, "label": label, "source": FROM_PLAIN}
    elif by_network["torsion"]:
        out["torsion"] = {**by_network["torsion"], "source": FROM_NETWORK}
    if by_network["torsion"]:
        label = by_network["torsion"]["label"]  # slowest with more to say so
    out["torsion_at_most"] = {"label": label, "crossings": found["torsions"][label]["crossings"],
                              "per_call": most_samples_by_poisson(found["torsions"][label]) / calls}
    return out


def network_rates(plain: Series, calls_per_ps: float, rotamers, series: Series, metadata: dict) -> dict:
    """Rates of the network's own dynamics as if each timestep had been a true call, and how they agree with plain.

    agreement: observables of which both runs hold 50 samples, both seen at the same times.
    """
    found = effective_samples(series, rotamers)
    thinned = effective_samples(plain.every(series.spacing_ps), rotamers)
    slow = slowest(found["torsions"])
    torsion = per(slow[1], series.length_ps * calls_per_ps) if slow else None
    agreement = []
    for name in ("energy", *found["torsions"]):
        mine, theirs = ((f["energy"] if name == "energy" else f["torsions"][name]) for f in (found, thinned))
        quotient = ratio(per(theirs, plain.length_ps), per(mine, series.length_ps))
        if quotient:
            agreement.append({"observable": name, "plain_over_network": quotient})
    return {"energy": per(found["energy"], series.length_ps * calls_per_ps),
            "torsion": {**torsion, "label": slow[0]} if torsion else None, "length_ps": series.length_ps,
            "certificate": metadata["certificate"], "true_calls": metadata["true_calls"], "agreement": agreement,
            "us_per_replica_step": metadata["us_per_replica_step"], "all": found}


def speed_up(row: dict, plain: dict, plain_cpu_s_per_call: float) -> dict:
    """Ratios of one run of an exact sampler to plain MD, and the total for 10 000 samples from a cold start."""
    samples = row["samples"] or {}
    out = {"seed": row.get("seed"), "acceptance": row["acceptance"]}
    per_cpu_s = {name: scaled(plain[name], 1.0 / plain_cpu_s_per_call) for name in ("energy", "torsion")}
    for name, rate in per_cpu_s.items():
        mine = samples.get(name)
        out[f"{name}_per_call"] = ratio(mine and mine["per_call"], plain[name])
        for key in ("per_cpu_s", "per_cpu_s_training_included"):
            out[f"{name}_{key}"] = ratio(mine and mine[key], rate)
    mine, bound = samples.get("torsion"), plain.get("torsion_at_most")
    if plain["network"] and plain["torsion"] and plain["torsion"]["source"] == FROM_PLAIN:
        out["torsion_per_call_by_network"] = ratio(mine and mine["per_call"], plain["network"]["torsion"])
    if mine and mine["per_call"] and bound:
        out["torsion_per_call_at_least"] = mine["per_call"]["value"] / bound["per_call"]
    if mine and mine["per_cpu_s"] and plain["torsion"]:
        out["total"] = total_cpu(row, mine["per_cpu_s"], per_cpu_s["torsion"])
    return out


def cost_of(row: dict, rate: dict, n_samples: float) -> dict:
    """CPU seconds from nothing to n_samples at a rate {"value", "error"} in samples per CPU second.

        T = T_training + T_burn-in + n / r
    """
    sampling = _inverse(rate, n_samples)
    parts = {"training_cpu_s": row["training"]["cpu_s"], "burn_in_cpu_s": row["cost"]["cpu_s_burn_in"],
             "sampling_cpu_s": sampling["value"]}
    return {**parts, "cpu_s": {"value": sum(parts.values()), "error": sampling["error"]}, "samples": n_samples}


def total_cpu(row: dict, rate: dict, plain_rate: dict) -> dict:
    """`cost_of` 10 000 effective torsion samples, extrapolated, beside T_plain = n / r_plain."""
    total, plain = cost_of(row, rate, WANTED_SAMPLES), _inverse(plain_rate, WANTED_SAMPLES)
    return {**total, "plain_cpu_s": plain, "ratio": ratio(plain, total["cpu_s"])}


def _inverse(rate: dict, n_samples: float) -> dict:
    value = n_samples / rate["value"]
    return {"value": value, "error": value * rate["error"] / rate["value"]}


def scaled(entry: dict | None, factor: float) -> dict | None:
    """An entry {"value", "error"} in another unit."""
    return entry and {"value": entry["value"] * factor, "error": entry["error"] * factor}


def median_of(entries: list[dict | None]) -> dict | None:
    """The entry {"value", "error"} with the median value (the lower of two); None if one is missing."""
    if not entries or any(e is None for e in entries):
        return None
    middle = statistics.median_low([e["value"] for e in entries])
    return next(e for e in entries if e["value"] == middle)
