"""What a benchmark is held to, beside what it measured; the targets are data (benchmarks/targets.yaml)."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from kstep.config import read_yaml
from kstep.errors import UserError, did_you_mean
from kstep.study.benchmark.plan import RIVAL
from kstep.study.benchmark.samplers import FEW_SAMPLES, middle
from kstep.study.benchmark.speedup import median_of

OF_MOLECULE = ("cold_start", "cold_start_cpu_s", "torsion_per_call", "energy_per_call", "torsion_per_cpu_s", "total",
               "torsion_per_1000_calls", "torsion_per_1000_dear_calls", "torsion_per_cpu_s_over_rival",
               "few_over_rival", "few_cpu_s", "agreement_p", "inner_us")
OF_SCHEME = ("drift", "spread", "force")
LEAST_ACCEPTANCE, LEAST_PROPOSALS, LEAST_LENGTH_FS = 0.3, 300, 200.0  # acceptance of a spread of 1.5 kT
SHARP_POPULATION = 0.01  # agreement says something where a deviation of that size would have been seen


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

    def add(name, key, value, text, least=False, can_meet=True, can_miss=True, targets=targets, scheme="", unit="x"):
        target = targets.get(key)
        met = None
        if target is not None and value is not None:
            met = bool(value >= target if least else value <= target)
            met = met if (can_meet if met else can_miss) else None
        out.append({"bar": name, "key": scheme + key, "target": "" if target is None else f"{'>=' if least else '<='} "
                                                                                          f"{target:g}"
                    + (unit if least else ""), "value": value, "measured": text, "met": met})

    cold = result.get("cold_start") or []
    lost = [math.inf] * (len(result.get("seeds") or cold) - len(cold)) if cold else []  # that never froze a network
    counted = [c["true_calls"] if c["decides"] else math.inf for c in cold] + lost
    cpu_s = [c["cpu_s"] for c in cold] + lost
    without = f"; {len(lost)} more left no network" if lost else ""
    add("cold start: true calls until the network is frozen (median)", "cold_start",
        statistics.median_high(counted) if counted and statistics.median_high(counted) < math.inf else None,
        ", ".join(f"{c['true_calls']} ({c['acceptance']:.2f})" for c in cold) + without or "not run")
    add("cold start: CPU seconds until the network is frozen (median)", "cold_start_cpu_s",
        statistics.median_high(cpu_s) if cpu_s and statistics.median_high(cpu_s) < math.inf else None,
        ", ".join(f"{c['cpu_s']:.0f}" for c in cold) + without or "not run")
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
    _of_samplers(result["samplers"], add)
    inner = result.get("inner_step")
    add("energy + force of the network, us per replica-step at 64 replicas", "inner_us",
        inner and inner["us_per_replica_step"], f"{inner['us_per_replica_step']:.2f} "
                                                f"({inner['architecture']})" if inner else
        "not measured")
    for scheme, own in targets.items():
        if isinstance(own, dict):
            _of_scheme(scheme, own, rows.get(scheme) or {}, add)
    return out


def _of_samplers(samplers: list[dict], add) -> None:
    """The bars of the judged sampler as it is tuned for this machine and for a dear call, and beside its rival."""
    here = next((entry for entry in samplers if entry["call_cost_s"] is None), None)
    dear = next((entry for entry in samplers if entry["call_cost_s"] is not None), None)
    for entry, key, words in ((here, "torsion_per_1000_calls", "tuned for this machine"),
                              (dear, "torsion_per_1000_dear_calls", "tuned for a dear call")):
        found = median_of([seed["torsion_per_1000_calls"] for seed in entry["seeds"]]) if entry else None
        text = with_error(found).removesuffix("x") if entry else "not run"
        if entry and entry["call_cost_s"] is not None:
            text += f" (a call of {entry['call_cost_s']:g} s)"
        add(f"slowest torsion, samples per 1000 true calls, {words}", key, found and found["value"], text, least=True,
            unit="")
    for key, words in (("torsion_per_cpu_s", f"slowest torsion, samples per CPU second / {RIVAL}, same network"),
                       ("few", f"CPU from nothing to {FEW_SAMPLES} torsion samples: {RIVAL} / this")):
        found, bound = middle(here["over_rival"], key) if here else (None, False)
        text = (f"at least {found['value']:.3g}x ({RIVAL} has fewer than 50 samples)" if bound else with_error(found)
                ) if here and here["over_rival"] else "not run"
        # a bound that falls short decides nothing
        add(words, f"{key}_over_rival", found and found["value"], text, least=True, can_miss=not bound)
    few = median_of([seed["few"] and seed["few"]["cpu_s"] for seed in here["seeds"]]) if here else None
    add(f"CPU seconds from nothing to {FEW_SAMPLES} torsion samples", "few_cpu_s", few and few["value"],
        with_error(few).removesuffix("x") if here else "not run")
    found = here and here["agreement"]
    p, seen = (found["p"], found["seen"].get("populations", 0.0)) if found else (None, None)
    text = "not run" if not found else "too few chains" if p is None else (
        f"{p:.2g}; populations to {seen:.2g}" if "populations" in found["seen"] else f"{p:.2g}")
    # a difference is a difference, however blurred; agreement must have been looked at closely
    add(f"energy, bonds, angles and populations against {RIVAL}: p of chi-square", "agreement_p", p, text, least=True,
        unit="", can_meet=seen is not None and seen <= SHARP_POPULATION)


def _of_scheme(scheme: str, targets: dict, row: dict, add) -> None:
    """The bars of one scheme: NVE drift, and the certificate of its network."""
    drift, certificate = row.get("drift"), row.get("certificate") or {}
    where = {"targets": targets, "scheme": f"{scheme}_"}
    if "drift" in targets:
        sharp = drift is not None and drift["half_width_95"] is not None and drift["half_width_95"] <= targets["drift"]
        add(f"{scheme}, NVE: absolute drift, kJ/mol/ps", "drift", abs(drift["drift_kJ_per_mol_ps"]) if drift else None,
            drift_text(drift), can_meet=sharp, can_miss=sharp, **where)
    for words, key, target in (("spread of E_true - E_ML, kJ/mol", "spread_kJ_per_mol", "spread"),
                               ("force error, kJ/mol/A", "force_rmse_kJ_per_mol_A", "force")):
        if target in targets:
            value = certificate.get(key)
            add(f"{scheme}: {words}", target, value, "not run" if value is None else f"{value:.3g}", **where)


def cold_start(row: dict) -> dict:
    """What a run from nothing took to learn, and what its frozen network then reached.

    Learning ends by its own rule, which weighs labels against acceptance.  It decides the bar when at least 300
    proposals of a mean length of 200 fs were accepted at 0.3 or more.
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
