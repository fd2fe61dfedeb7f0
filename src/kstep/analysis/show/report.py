"""metrics.json, the table on the terminal, and one report.html that needs nothing else."""

from __future__ import annotations

import base64
import html
import json
import math
from pathlib import Path

from kstep.files import write_text_atomic

NOT_DEFINED = "n/a"

EXPLANATIONS = {
    "How to read this page": "Every number stands beside its noise floor: the size it would have if the run sampled "
    "exactly the same thing as plain MD, given how long both ran. The floor is measured on independent plain runs "
    "and has an error of its own. A number up to 1.5 times its floor reads 'within floor': no difference was seen "
    "(up to 2.5 times where the number rests on a single coordinate and so scatters more). "
    "Controls, where there are any, are plain MD with the same number of true calls, and the same scheme without "
    "its network.",
    "Bond and angle error": "Difference of time-averaged bond lengths and angles between run and reference, root mean "
    "square over all of them. Hydrogens of one CH3, CH2 or NH3 group are averaged first, because they exchange.",
    "Wasserstein-1 and Jensen-Shannon": "How far a whole distribution is from the reference's, not only its mean. "
    "Wasserstein-1 is the average distance one has to shift it; Jensen-Shannon is 0 for equal and 1 for disjoint.",
    "RDF": "Histogram of all atom-atom distances in the molecule, area 1; the number is the area between the two "
    "curves.",
    "Energy drift": "Slope of the true total energy when no thermostat acts, with its 95 % confidence interval. It is "
    "not defined for metropolis, which draws new velocities for each step.",
    "Acceptance and <exp(-dH/kT)>": "Share of metropolis proposals that the true energy accepted. The average of "
    "exp(-dH/kT) over all proposals is exactly 1 when the sampler is correct.",
    "E_true - E_ML and force error": "How far the network's energy and force lay from the true ones at the end of each "
    "macro-step of impulse and checked. The mean is a constant and does no harm; the spread and the force error do. "
    "checked moves by the network's force alone: its ensemble is the network's.",
    "Temperature per element": "From velocities, with 3(1 - m/M) degrees of freedom per atom; all elements must agree "
    "with the target within their errors. The kinetic-energy p value is small (below 0.01) when its distribution is "
    "not Maxwell's.",
    "Effective samples": "How many independent frames would give the same error of the average. More per true call "
    "means faster sampling. The slowest torsion counts; one that never crossed is named, not counted.",
    "Split-R-hat": "Compares halves of replicas with each other; up to 1.05 reads 'converged'.",
    "True calls": "Evaluations of the true physics, training data shown apart. Steps per call says how many timesteps "
    "of accepted trajectory one call paid for.",
}


def write_metrics(path: Path, metrics: dict) -> None:
    """Write metrics.json; NaN and infinity become null, since JSON has neither."""
    write_text_atomic(path, json.dumps(_clean(metrics), indent=1) + "\n")


def _clean(value):
    if isinstance(value, dict):
        return {str(k): _clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if hasattr(value, "item"):
        return _clean(value.item())
    return value


def number(value, digits: int = 3) -> str:
    """A number for reading: three significant digits, 'n/a' for None."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOT_DEFINED
    if isinstance(value, int):
        return str(value)
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 1e-4):
        return f"{value:.{digits - 1}e}"
    if abs(value) >= 10 ** digits:
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


STRUCTURE_ROWS = [
    ("bond_rmse_A", "bond error (A)"), ("angle_rmse_deg", "angle error (deg)"), ("bond_w1_A", "bond W1 (A)"),
    ("angle_w1_deg", "angle W1 (deg)"), ("torsion_w1_deg", "torsion W1 (deg)"),
    ("bond_js", "bond Jensen-Shannon"), ("angle_js", "angle Jensen-Shannon"),
    ("torsion_js", "torsion Jensen-Shannon"), ("rdf_l1", "RDF L1"),
    ("potential_kJ_per_mol", "mean potential energy (kJ/mol)"),
]


def cells(result: dict, key: str) -> tuple[str, str, str]:
    """(value, floor, verdict) of one structure metric."""
    entry = (result.get("structure") or {}).get(key)
    if entry is None:
        return NOT_DEFINED, NOT_DEFINED, ""
    error = f" +- {number(entry['floor_error'], 2)}" if entry["floor_error"] is not None else ""
    floor = number(entry["floor"]) + error if entry["floor"] is not None else "none"
    return number(entry["value"]), floor, entry["verdict"]


def _with_verdict(entry):
    """A control's cell: its value, and whether that is within the control's own floor."""
    if entry is None:
        return NOT_DEFINED
    words = {"within floor": " (within)", "above floor": " (above)", "no floor": ""}
    return number(entry["value"]) + words.get(entry["verdict"], "")


def _drift_cells(result):
    drift = result["drift"]
    if drift is None:
        return NOT_DEFINED, "", ""
    half = f" +- {number(drift['half_width_95'], 2)} (95 %)" if drift["half_width_95"] is not None else ""
    if drift["blown_up_segments"]:
        return (number(drift["drift_kJ_per_mol_ps"]) + half, "",
                f"blew up after {number(drift['first_blow_up_ps'])} ps "
                f"({drift['blown_up_segments']} of {drift['segments']})")
    interval = drift["confidence_95"]
    if interval is None:
        return number(drift["drift_kJ_per_mol_ps"]), "", "one window: no interval"
    seen = "no drift seen" if interval[0] <= 0 <= interval[1] else "drifts"
    return number(drift["drift_kJ_per_mol_ps"]) + half, "", seen


def table(result: dict, controls: dict[str, dict]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one run: metric, value, noise floor, verdict, then one column per control."""
    header = ["metric", "this run", "noise floor", "verdict", *controls]
    rows: list[list[str]] = []

    def add(label, value, floor, verdict, pick):
        rows.append([label, value, floor, verdict, *[pick(c) for c in controls.values()]])

    for key, label in STRUCTURE_ROWS:
        if any(key in (r.get("structure") or {}) for r in (result, *controls.values())):
            add(label, *cells(result, key), lambda c: _with_verdict((c.get("structure") or {}).get(key))
                if c["role"] != "baseline" else "reference")
    add("energy drift (kJ/mol/ps)", *_drift_cells(result), lambda c: _drift_cells(c)[0])
    for name, shift in (result["stretches"] or {}).items():
        add(f"{name} stretch shift (cm-1)", f"{shift['shift_cm']:+.1f}",
            f"{number(shift['error_cm'], 2)} (error)", shift["verdict"],
            lambda c: "reference" if c["role"] == "baseline" else
            f"{c['stretches'][name]['shift_cm']:+.1f}" if c["stretches"] and name in c["stretches"] else NOT_DEFINED)
    if result["stretches"] is None:
        add("X-H stretch shift (cm-1)", NOT_DEFINED, "", "", lambda c: "reference" if c["role"] == "baseline" else NOT_DEFINED if not c["stretches"] else
            ", ".join(f"{n} {s['shift_cm']:+.0f}" for n, s in c["stretches"].items()))
    if result["metropolis"]:
        m = result["metropolis"]
        add("acceptance", number(m["acceptance"]), "", f"{m['proposals']} proposals",
            lambda c: number((c["metropolis"] or {}).get("acceptance")))
        add("<exp(-dH/kT)>", f"{m['exp_minus_beta_dH']:.4f} +- {number(m['standard_error'], 2)}", "1 exactly",
            m["verdict"], lambda c: number((c["metropolis"] or {}).get("exp_minus_beta_dH")))
    if result["certificate"]:
        c = result["certificate"]
        for key, label in (("spread_kJ_per_mol", "spread of E_true - E_ML (kJ/mol)"),
                           ("force_rmse_kJ_per_mol_A", "force error of the network (kJ/mol/A)")):
            limit = c["tolerances"][key]
            add(label, number(c[key]), "" if limit is None else f"{number(limit)} (tolerance)", c["verdicts"][key],
                lambda other: number((other["certificate"] or {}).get(key)))
    for element, t in (result["temperature"] or {}).items():
        add(f"temperature of {element} (K)", f"{t['temperature_K']:.1f}", f"{t['standard_error_K']:.1f} (error)",
            t["verdict"], lambda c: f"{c['temperature'][element]['temperature_K']:.1f}" if c["temperature"]
            else NOT_DEFINED)
    if result["kinetic"]:
        p = result["kinetic"]["p_value"]
        add("kinetic energy, p value", number(p), f"{result['kinetic']['independent_frames']} frames",
            "Maxwell" if p >= 0.01 else "not Maxwell",
            lambda c: number((c["kinetic"] or {}).get("p_value")))
    if result["sampling"]:
        for observable, label in (("energy", "energy"), ("slowest_torsion", "slowest torsion")):
            if observable == "slowest_torsion" and result["sampling"]["convergence"] == "no torsion with rotamers":
                continue
            add(f"effective samples, {label}", number(result["sampling"][observable]), "",
                result["sampling"]["convergence"] if observable == "slowest_torsion" else "",
                lambda c: number((c["sampling"] or {}).get(observable)))
            for unit, words in (("1000_calls", "1000 true calls"), ("cpu_s", "CPU second"),
                                ("wall_s", "wall second")):
                add(f"{label} samples per {words}", number(result["sampling"][f"{observable}_per_{unit}"]), "", "",
                    lambda c: number((c["sampling"] or {}).get(f"{observable}_per_{unit}")))
    cost = result["cost"]
    add("true calls", number(cost["true_calls"]), "", f"+ {cost['true_calls_training']} for training",
        lambda c: number(c["cost"]["true_calls"]))
    add("steps per true call", number(cost["calls_saved_factor"]), "", "",
        lambda c: number(c["cost"]["calls_saved_factor"]) if c["role"] != "baseline" else "1")
    plain = next((c["cost"]["wall_s_per_ps"] for label, c in controls.items() if label != "no network"), None)
    ratio = f"{number(plain / cost['wall_s_per_ps'], 2)} x faster than plain" \
        if plain and cost["wall_s_per_ps"] and result["role"] == "hybrid" else ""
    add("wall seconds per ps", number(cost["wall_s_per_ps"]), "", ratio, lambda c: number(c["cost"]["wall_s_per_ps"]))
    if result["scheme"] == "jump":
        words = ", ".join(f"{n} with {a}" for a, n in sorted(cost["attempts"].items()))
        add("steps by number of attempts", words, "", "", lambda c: "")
        if cost["refused_jumps"] is not None:
            add("jumps refused", number(cost["refused_jumps"]), "",
                f"{number(cost['plain_steps'])} timesteps done by plain MD", lambda c: "")
    if cost["failed_true_calls"]:
        add("failed true calls", number(cost["failed_true_calls"]), "", "counted as rejected", lambda c: "")
    return header, rows


def torsion_table(result: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the rotatable torsions of one run."""
    header = ["torsion", "rotamers", "state", "eff. samples", "split-R-hat", "transitions", "rate (1/ps)",
              "W1 (deg)", "floor", "verdict"]
    rows = []
    for t in result["torsions"]:
        rate = number(t["rate_per_ps"])
        if t["rate_reference_per_ps"] is not None:
            rate += f" (reference {number(t['rate_reference_per_ps'])})"
        rows.append([t["label"], str(len(t["rotamers_deg"])), t["state"], number(t["effective_samples"]),
                     f"{number(t['r_hat'])}, {t['convergence']}", str(t["transitions"]), rate, number(t["w1_deg"]),
                     number(t["w1_floor_deg"]), t["verdict"]])
    return header, rows


def summary_table(molecule: dict) -> tuple[list[str], list[list[str]]]:
    """One row per run of a molecule."""
    header = ["run", "scheme", "k", "true calls", "bond error (A)", "angle error (deg)", "acceptance or drift",
              "energy / torsion eff. samples per 1000 calls"]
    rows = []
    for name, r in molecule["runs"].items():
        def short(key):
            value, floor, verdict = cells(r, key)
            return f"{value}, floor {floor.split(' ')[0]}: {verdict}" if verdict else value
        if r["metropolis"]:
            middle = f"accepts {number(r['metropolis']['acceptance'])}"
        else:
            value, _, words = _drift_cells(r)
            middle = f"{value} kJ/mol/ps, {words}" if words else NOT_DEFINED
            if r["certificate"] and not words:
                middle = f"E_true - E_ML spread {number(r['certificate']['spread_kJ_per_mol'])} kJ/mol"
        sampling = r["sampling"] or {}
        scheme = r["scheme"] + (" (no network)" if r["role"] == "no network" else "")
        rows.append([name, scheme, number(r["k_steps"]) if r["k_steps"] else "1", str(r["cost"]["true_calls"]),
                     short("bond_rmse_A"), short("angle_rmse_deg"), middle,
                     f"{number(sampling.get('energy_per_1000_calls'))} / "
                     f"{number(sampling.get('slowest_torsion_per_1000_calls'))}"])
    return header, rows


def controls_of(name: str, molecule: dict) -> dict[str, dict]:
    """Results shown beside a run: its plain and no-network controls, and the baseline itself."""
    run = molecule["runs"][name]
    out = {label: molecule["runs"][c] for label, c in run.get("control_files", {}).items()}
    reference = molecule["reference"].get(f"{run['temperature_K']:g} K")
    if reference:
        out["baseline"] = reference
    return out


def shown_runs(molecule: dict) -> list[str]:
    """Hybrids; controls stand beside them, and alone only when there is no hybrid."""
    hybrids = [n for n, r in molecule["runs"].items() if r["role"] == "hybrid"]
    return hybrids or list(molecule["runs"])


def format_text(metrics: dict) -> str:
    """The whole report as text for the terminal."""
    lines = []
    for name, molecule in metrics["molecules"].items():
        lines += ["", name, "=" * len(name), *_text_table(*summary_table(molecule))]
        for run in shown_runs(molecule):
            result = molecule["runs"][run]
            lines += ["", f"{name}: {run} ({result['scheme']}, {result['replicas']} replicas, "
                      f"{result['production_frames']} frames, {result['temperature_K']:g} K)"]
            lines += _text_table(*table(result, controls_of(run, molecule)))
            if result["torsions"]:
                lines += ["", *_text_table(*torsion_table(result))]
            lines += [f"warning: {w}" for w in result["warnings"]]
            lines += [f"verdict: {v}" for v in result["verdicts"]]
    return "\n".join(lines)


def _text_table(header, rows):
    widths = [max(len(str(r[c])) for r in [header, *rows]) for c in range(len(header))]
    ruled = ["  ".join(str(cell).ljust(w) for cell, w in zip(r, widths)).rstrip() for r in [header, *rows]]
    return [ruled[0], "-" * len(ruled[0]), *ruled[1:]]


CSS = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; margin: 0 auto; max-width: 62rem;
       padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { border-bottom: 2px solid #0072b2; padding-bottom: .2rem; margin-top: 2.5rem; }
h3 { margin-top: 2rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; margin: .6rem 0; min-width: 52rem; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top; }
th { background: #f2f5f7; } td.within { color: #00634a; } td.above { color: #a33b00; font-weight: 600; }
.verdict { background: #eef5fa; border-left: 4px solid #0072b2; padding: .4rem .8rem; margin: .4rem 0; }
.verdict.lost, .problem { background: #fdf1e9; border-left: 4px solid #d55e00; padding: .4rem .8rem; margin: .4rem 0; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; } figcaption { font-size: .85rem; color: #555; }
dt { font-weight: 600; margin-top: .6rem; } dd { margin: 0; } .note { color: #555; font-size: .9rem; }
@media print { body { max-width: none; font-size: 11pt; } .scroll { overflow: visible; } table { font-size: 7.5pt; min-width: 0; }
  th, td { padding: .1rem .25rem; } figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""

CAPTIONS = {
    "energy": "Potential energy along the run and its distribution.",
    "rdf": "Atom-atom distances; below, the difference with twice its standard error shaded.",
    "bonds": "Bond lengths; if there are more than twelve, those that differ most.",
    "angles": "Angles; if there are more than twelve, those that differ most.",
    "torsions": "Rotatable torsions.",
    "temperature": "Temperature of each element with two standard errors.",
    "metropolis": "Energy error of the proposals, and acceptance along the run.",
    "drift": "True total energy in NVE windows.",
    "spectrum": "Vibrational spectrum from NVE windows of the same length.",
}


def _class(cell):
    if cell in ("within floor", "holds", "right", "converged", "no drift seen", "Maxwell", "within tolerance"):
        return ' class="within"'
    bad = ("above floor", "violated", "off by", "blew up", "not Maxwell", "drifts", "not converged", "past tolerance")
    return ' class="above"' if cell.startswith(bad) else ""


def _html_table(header, rows):
    e = html.escape
    head = "".join(f"<th>{e(h)}</th>" for h in header)
    body = "".join("<tr>" + "".join(f"<td{_class(c)}>{e(c).replace('+-', '&plusmn;')}</td>" for c in r) + "</tr>"
                   for r in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def write_html(path: Path, metrics: dict, plot_root: Path, title: str) -> None:
    """One page with all tables and pictures inside it."""
    e = html.escape
    parts = [f"<h1>{e(title)}</h1>",
             f"<p>{e(EXPLANATIONS['How to read this page'])}</p>"]
    parts += [f'<p class="problem">{e(p)}</p>' for p in metrics["problems"]]
    for name, molecule in metrics["molecules"].items():
        first = next(iter(molecule["runs"].values()))
        parts += [f"<h2>{e(name)}</h2>",
                  f'<p class="note">{e(str(first["method"]))}; the reference is {first["reference_replicas"]} '
                  f"independent plain replica{'s' * (first['reference_replicas'] != 1)}.</p>",
                  _html_table(*summary_table(molecule))]
        for run in shown_runs(molecule):
            result = molecule["runs"][run]
            parts.append(f"<h3>{e(run)}</h3>")
            for verdict in result["verdicts"]:
                lost = " lost" if verdict.startswith("does not") else ""
                parts.append(f'<p class="verdict{lost}">{e(verdict[0].upper() + verdict[1:])}.</p>')
            parts += [f'<p class="problem">{e(w[0].upper() + w[1:])}.</p>' for w in result["warnings"]]
            parts.append(_html_table(*table(result, controls_of(run, molecule))))
            if result["torsions"]:
                parts.append(_html_table(*torsion_table(result)))
            for plot, file in result.get("plots", {}).items():
                data = base64.b64encode((plot_root / file).read_bytes()).decode()
                parts.append(f'<figure><img alt="{e(CAPTIONS[plot])}" src="data:image/png;base64,{data}">'
                             f"<figcaption>{e(CAPTIONS[plot])}</figcaption></figure>")
    notes = "".join(f"<dt>{e(k)}</dt><dd>{e(v)}</dd>" for k, v in list(EXPLANATIONS.items())[1:])
    parts.append(f"<h2>What the numbers mean</h2><dl>{notes}</dl>")
    write_text_atomic(
        path, f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
              f'content="width=device-width, initial-scale=1"><title>{e(title)}</title><style>{CSS}</style></head>'
              f'<body>{"".join(parts)}</body></html>\n')
