"""The exact samplers beside each other: what a true call and a CPU second buy, and what the first samples cost in all.

The network of a seed is the same for all of them, so that their ratios are of the samplers alone.  A rival that holds
fewer than 50 samples has no rate; its crossings bound it from above (samples.most_samples_by_poisson), and the ratio to
it from below.
"""

from __future__ import annotations

from kstep.analysis.measure.samples import most_samples_by_poisson, ratio
from kstep.study.benchmark.plan import Variant
from kstep.study.benchmark.speedup import cost_of, median_of, scaled

FEW_SAMPLES = 200  # of the slowest torsion: what a run aims at
OBSERVABLES = ("energy", "torsion")


def figures(row: dict) -> dict:
    """Of one run: rates {"value", "error"} per 1000 true calls and per CPU second, None from fewer than 50 samples.

    few: CPU seconds from nothing to FEW_SAMPLES of the slowest torsion, learning and burn-in included.
    """
    samples, tuning = row["samples"] or {}, row.get("tuning") or {}
    out = {"seed": row.get("seed"), "acceptance": row["acceptance"], "moves": tuning.get("moves"),
           "network_ladder_K": tuning.get("network_ladder_K"), "jump_fs": row["jump_fs"],
           "slowest_torsion": samples.get("slowest_torsion_label")}
    for name in OBSERVABLES:
        mine = samples.get(name) or {}
        out |= {f"{name}_samples": mine.get("samples"), f"{name}_per_1000_calls": scaled(mine.get("per_call"), 1e3),
                f"{name}_per_cpu_s": mine.get("per_cpu_s")}
    rate = out["torsion_per_cpu_s"]
    return {**out, "few": rate and cost_of(row, rate, FEW_SAMPLES)}


def over(row: dict, rival: dict) -> dict:
    """One run's rates over another's of the same network, and the other's cost of FEW_SAMPLES over the first's.

    {"seed", "energy_per_call", ..., "few": {"value", "error"}}; beside what has no ratio for want of the rival's
    samples stand "torsion_per_call_at_least", "torsion_per_cpu_s_at_least" and "few_at_least", numbers.
    """
    mine, theirs = row["samples"] or {}, rival["samples"] or {}
    out: dict = {"seed": row.get("seed")}
    for name in OBSERVABLES:
        for key in ("per_call", "per_cpu_s"):
            out[f"{name}_{key}"] = ratio((mine.get(name) or {}).get(key), (theirs.get(name) or {}).get(key))
    few, other = figures(row)["few"], figures(rival)["few"]
    out["few"] = ratio(other and other["cpu_s"], few and few["cpu_s"])
    if few and not other and theirs.get("slowest_torsion_label"):
        most = most_samples_by_poisson(theirs["all"]["torsions"][theirs["slowest_torsion_label"]])
        for key, amount in (("per_call", "true_calls_production"), ("per_cpu_s", "cpu_s_production")):
            out[f"torsion_{key}_at_least"] = mine["torsion"][key]["value"] / (most / rival["cost"][amount])
        at_most = {"value": most / rival["cost"]["cpu_s_production"], "error": 0.0}
        out["few_at_least"] = cost_of(rival, at_most, FEW_SAMPLES)["cpu_s"]["value"] / few["cpu_s"]["value"]
    return out


def beside(variant: Variant, rows: dict[int, dict], ups: list[dict], rivals: dict[int, dict], rival: str | None,
           agreement: dict | None) -> dict:
    """The entry of a variant in benchmark.json: rows and rivals by seed; ups: its speed-ups over plain MD."""
    return {"name": variant.name, "scheme": variant.scheme, "call_cost_s": variant.call_cost_s,
            "seeds": [figures(row) for row in rows.values()], "speed_up": ups, "rival": rival,
            "over_rival": [over(row, rivals[seed]) for seed, row in rows.items() if seed in rivals],
            "agreement": agreement}


def middle(entries: list[dict], key: str) -> tuple[dict | None, bool]:
    """The median over seeds of a ratio of `over`, and whether it is only a lower bound."""
    found = median_of([entry[key] for entry in entries])
    if found is not None or not entries:
        return found, False
    bounds = [entry.get(f"{key}_at_least", entry[key] and entry[key]["value"]) for entry in entries]
    found = median_of([bound and {"value": bound, "error": 0.0} for bound in bounds])
    return found, found is not None


def sentence(entry: dict) -> str:
    """What a variant reached, in one line: medians over its seeds."""
    seeds = entry["seeds"]
    parts = [f"acceptance {', '.join(format(s['acceptance'], '.2f') for s in seeds)}"]
    if seeds[0]["moves"]:
        ladder = seeds[0]["network_ladder_K"]
        parts.append(f"seed {seeds[0]['seed']}: {seeds[0]['moves']} moves per true call "
                     + (f"on {'/'.join(f'{t:.0f}' for t in ladder)} K" if len(ladder) > 1 else "without a ladder"))
    for name, words in zip(OBSERVABLES, ("energy", "slowest torsion"), strict=True):
        found = [median_of([s[f"{name}_{key}"] for s in seeds]) for key in ("per_1000_calls", "per_cpu_s")]
        parts.append(f"{words}: fewer than 50 samples" if None in found else
                     f"{words}: {_said(found[0])} samples per 1000 true calls, {_said(found[1])} per CPU second")
    few = median_of([s["few"] and s["few"]["cpu_s"] for s in seeds])
    if few:
        parts.append(f"{FEW_SAMPLES} samples of it from nothing in {few['value']:.0f} +- {few['error']:.0f} s of CPU")
    if entry["over_rival"]:
        found, bound = middle(entry["over_rival"], "torsion_per_cpu_s")
        if found:
            parts.append(f"{'at least ' if bound else ''}{_said(found)} times {entry['rival']} per CPU second")
    return f"{entry['name']}: {'; '.join(parts)}"


def _said(entry: dict) -> str:
    return f"{entry['value']:.3g}" + (f" +- {entry['error']:.2g}" if entry["error"] else "")
