"""What a benchmark is held to, beside what it measured; the targets are data (benchmarks/targets.yaml)."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from kstep.config import read_yaml
from kstep.errors import UserError, did_you_mean
from kstep.study.benchmark.speedup import median_of

OF_MOLECULE = ("cold_start", "torsion_per_call", "energy_per_call", "torsion_per_cpu_s", "total", "inner_us")
OF_SCHEME = ("drift", "spread", "force")
LEAST_ACCEPTANCE, LEAST_PROPOSALS, LEAST_LENGTH_FS = 0.8, 300, 200.0


def load_targets(path: str | Path, molecule: str) -> dict:
    """The targets of a molecule from a YAML of {molecule: {key: number, scheme: {key: number}}}; {} where none is."""
    targets = read_yaml(path).get(molecule) or {}
    for key, value in targets.items():
        known, entries = (OF_SCHEME, value) if isinstance(value, dict) else (OF_MOLECULE, {key: value})
        for name, number in entries.items():
            if name not in known or isinstance(number, bool) or not isinstance(number, (int, float)):
                raise UserError(f"{path}: '{name}' of {molecule} is no target with a number{did_you_mean(name, known)}")
    return targets


def bars(targets: dict, result: dict) -> list[dict]:
    """[{"bar", "target" (text, '' where there is none), "measured" (text), "met" (None: undecided)}].

    targets: of the molecule, as `load_targets` gives them; its schemes have bars of their own.
    """
    out = []
    rows, ups = result["rows"], result["speed_up"]

    def add(name, key, value, text, least=False, decided=True, targets=targets, scheme=""):
        target = targets.get(key)
        met = None
        if target is not None and value is not None and decided:
            met = bool(value >= target if least else value <= target)
        out.append({"bar": name, "key": scheme + key, "target": "" if target is None else f"{'>=' if least else '<='} "
                                                                                          f"{target:g}"
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
        inner and inner["us_per_replica_step"], f"{inner['us_per_replica_step']:.2f} "
                                                f"({inner['architecture']})" if inner else
        "not measured")
    for scheme, own in targets.items():
        if isinstance(own, dict):
            _of_scheme(scheme, own, rows.get(scheme) or {}, add)
    return out


def _of_scheme(scheme: str, targets: dict, row: dict, add) -> None:
    """The bars of one scheme: NVE drift, and the certificate of its network."""
    drift, certificate = row.get("drift"), row.get("certificate") or {}
    where = {"targets": targets, "scheme": f"{scheme}_"}
    if "drift" in targets:
        sharp = drift is not None and drift["half_width_95"] is not None and drift["half_width_95"] <= targets["drift"]
        add(f"{scheme}, NVE: absolute drift, kJ/mol/ps", "drift", abs(drift["drift_kJ_per_mol_ps"]) if drift else None,
            drift_text(drift), decided=sharp, **where)
    for words, key, target in (("spread of E_true - E_ML, kJ/mol", "spread_kJ_per_mol", "spread"),
                               ("force error, kJ/mol/A", "force_rmse_kJ_per_mol_A", "force")):
        if target in targets:
            value = certificate.get(key)
            add(f"{scheme}: {words}", target, value, "not run" if value is None else f"{value:.3g}", **where)


def cold_start(row: dict) -> dict:
    """What a run from nothing took to learn, and what its frozen network then reached.

    It decides the bar when at least 300 proposals of a mean length of 200 fs were accepted at 0.8 or more.
    """
    ok = (row["acceptance"] is not None and row["acceptance"] >= LEAST_ACCEPTANCE
          and row["proposals"] >= LEAST_PROPOSALS and row["jump_fs"] >= LEAST_LENGTH_FS)
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
