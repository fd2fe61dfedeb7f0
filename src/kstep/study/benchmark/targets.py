"""What a benchmark is held to, beside what it measured."""

from __future__ import annotations

import math
import statistics

from kstep.study.benchmark.speedup import median_of

# cold start in true calls; speed-ups; microseconds; drifts in kJ/mol/ps; spread kJ/mol; force error kJ/mol/A
TARGETS = {
    "ethanol": {"cold_start": 800, "torsion_per_call": 12, "energy_per_call": 60, "torsion_per_cpu_s": 8, "total": 5,
                "inner_us": 8, "impulse_drift": 0.02, "checked_drift": 0.01, "checked_spread": 0.5, "checked_force": 1.0},
    "aspirin": {"cold_start": 2000, "torsion_per_call": 200, "energy_per_call": 60, "torsion_per_cpu_s": 120, "total": 60,
                "inner_us": 15, "impulse_drift": 0.05, "checked_drift": 0.01, "checked_spread": 1.0, "checked_force": 2.0},
}
LEAST_ACCEPTANCE, LEAST_PROPOSALS, LEAST_LENGTH_FS = 0.8, 300, 200.0


def bars(molecule: str, result: dict) -> list[dict]:
    """[{"bar", "target" (text, '' for a molecule without targets), "measured" (text), "met" (None: undecided)}]."""
    targets, out = TARGETS.get(molecule, {}), []
    rows, ups = result["rows"], result["speed_up"]

    def add(name, key, value, text, least=False, decided=True):
        target = targets.get(key)
        met = None
        if target is not None and value is not None and decided:
            met = bool(value >= target if least else value <= target)
        out.append({"bar": name, "key": key, "target": "" if target is None else f"{'>=' if least else '<='} {target:g}"
                    + ("x" if least else ""), "value": value, "measured": text, "met": met})

    cold = result.get("cold_start") or []
    counted = [c["true_calls"] if c["decides"] else math.inf for c in cold]
    add("cold start: true calls to acceptance 0.8 (median)", "cold_start",
        statistics.median_high(counted) if counted and statistics.median_high(counted) < math.inf else None,
        ", ".join(f"{c['true_calls']} ({c['acceptance']:.2f})" for c in cold) or "not run")
    for name, key in (("effective torsion samples per true call / plain at 1 fs", "torsion_per_call"),
                      ("effective energy samples per true call / plain at 1 fs", "energy_per_call"),
                      ("effective torsion samples per CPU second / plain at 1 fs", "torsion_per_cpu_s")):
        found = median_of([u.get(key) for u in ups])
        text = with_error(found)
        plain = result["plain_rates"].get(key.split("_")[0])
        if found and plain:
            text += f" (rate of plain from {plain['source']})"
        if key == "torsion_per_call":
            other = median_of([u.get("torsion_per_call_by_network") for u in ups])
            if other:
                text += f"; {with_error(other)} by the network's dynamics"
            least = [u["torsion_per_call_at_least"] for u in ups if "torsion_per_call_at_least" in u]
            if least:
                text += f"; at least {statistics.median_low(least):.3g} by the crossings of plain (95 %)"
        add(name, key, found and found["value"], text, least=True)
    whole = result["from_cold_start"] or ups
    total = median_of([u["total"]["ratio"] if "total" in u else None for u in whole])
    add("CPU for 10,000 torsion samples from a cold start: plain / this", "total", total and total["value"],
        with_error(total) + ("" if result["from_cold_start"] else
                             " (no cold start was run: labels of the given network priced)"), least=True)
    inner = result.get("inner_step")
    add("energy + force of the network, us per replica-step at 64 replicas", "inner_us",
        inner and inner["us_per_replica_step"], f"{inner['us_per_replica_step']:.2f} ({inner['architecture']})" if inner else
        "not measured")
    for scheme, words in (("impulse", "impulse, NVE: absolute drift, kJ/mol/ps"),
                          ("checked", "checked, NVE: absolute drift, kJ/mol/ps")):
        drift = (rows.get(scheme) or {}).get("drift")
        target = targets.get(f"{scheme}_drift")
        sharp = drift is not None and drift["half_width_95"] is not None and (
            target is None or drift["half_width_95"] <= target)
        add(words, f"{scheme}_drift", abs(drift["drift_kJ_per_mol_ps"]) if drift else None, drift_text(drift), decided=sharp)
    certificate = (rows.get("checked") or {}).get("certificate") or {}
    for words, key, target in (("checked: spread of E_true - E_ML, kJ/mol", "spread_kJ_per_mol", "checked_spread"),
                               ("checked: force error, kJ/mol/A", "force_rmse_kJ_per_mol_A", "checked_force")):
        value = certificate.get(key)
        add(words, target, value, "not run" if value is None else f"{value:.3g}")
    return out


def cold_start(row: dict) -> dict:
    """What a run from nothing took to learn, and what its frozen network then reached.

    It decides the bar when at least 300 proposals of a mean length of 200 fs were accepted at 0.8 or more.
    """
    ok = (row["acceptance"] is not None and row["acceptance"] >= LEAST_ACCEPTANCE and row["proposals"] >= LEAST_PROPOSALS
          and row["jump_fs"] >= LEAST_LENGTH_FS)
    return {"seed": row["seed"], "true_calls": row["training"]["true_calls"], "acceptance": row["acceptance"],
            "proposals": row["proposals"], "mean_length_fs": row["jump_fs"], "cpu_s": row["training"]["cpu_s"],
            "decides": bool(ok)}


def with_error(entry: dict | None) -> str:
    """'23 +- 2x'."""
    return "fewer than 50 samples" if entry is None else f"{entry['value']:.3g} +- {entry['error']:.2g}x"


def drift_text(drift: dict | None) -> str:
    """Slope with its 95 % interval, or when it blew up."""
    if drift is None:
        return "n/a"
    half = drift["half_width_95"]
    text = f"{drift['drift_kJ_per_mol_ps']:+.2g}" + ("" if half is None else f" +- {half:.1g}")
    if drift["blown_up_segments"]:
        text += f", blew up in {drift['blown_up_segments']} of {drift['segments']}"
    return text
