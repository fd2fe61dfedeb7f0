"""A benchmark as text: the schemes side by side, the bars, and how the numbers were made."""

from __future__ import annotations

from kstep.analysis.judge.verdict import Verdict
from kstep.analysis.metrics.cells import NOT_DEFINED, number
from kstep.analysis.show.text import aligned
from kstep.study.benchmark import agreement, samplers
from kstep.study.benchmark.bars import drift_text, with_error
from kstep.study.benchmark.scheme_rows import IN_SHORT


def verdict(bar: dict) -> str:
    """'met', 'missed', 'undecided', or nothing for a molecule without targets."""
    return {True: "met", False: "missed", None: "undecided" if bar["target"] else ""}[bar["met"]]


def table_of(rows: dict[str, dict], elements: list[str]) -> list[list[str]]:
    """A head, then one line per figure, one column per scheme; the first cell names the figure."""
    lines = [["", *rows]]

    def add(label, pick):
        lines.append([label, *(_or_undefined(pick, row) for row in rows.values())])

    add("timestep / macro-step, fs", lambda r: f"{r['dt_fs']:g} / {r['jump_fs']:g}")
    for key, label in (("true_calls_per_ps", "true calls per ps"), ("wall_s_per_ps", "wall s per ps"),
                       ("cpu_s_per_ps", "CPU s per ps")):
        add(label, lambda r, key=key: number(r["cost"][key]))
    add("acceptance", lambda r: number(r["acceptance"]))
    add("moves on the network per true call", lambda r: str(r["tuning"]["moves"]))
    add("ladder on the network, K", lambda r: "/".join(f"{t:.0f}" for t in r["tuning"]["network_ladder_K"]))
    add("NVE drift, kJ/mol/ps (95 %)", lambda r: drift_text(r["drift"]))
    for metric in IN_SHORT:
        add(f"{metric.label}, {metric.unit} (floor)", lambda r, m=metric: _floored(r[m.name], m.decimals))
    add("C-H stretch shift, cm-1", lambda r: f"{r['stretches']['C-H']['shift_cm']:+.0f} +- "
                                             f"{number(r['stretches']['C-H']['error_cm'], 1)}")
    for element in elements:
        add(f"temperature of {element}, K", lambda r, e=element: f"{r['temperature'][e]['temperature_K']:.1f} +- "
                                                                 f"{r['temperature'][e]['standard_error_K']:.1f}")
    add("E_true - E_ML spread, kJ/mol", lambda r: number(r["certificate"]["spread_kJ_per_mol"]))
    add("force error, kJ/mol/A", lambda r: number(r["certificate"]["force_rmse_kJ_per_mol_A"]))
    add("torsion transitions per ps", _transitions)
    for name, words in (("energy", "energy"), ("torsion", "slowest torsion")):
        for key, unit, factor in (("per_call", "1000 true calls", 1e3), ("per_cpu_s", "CPU s", 1.0)):
            for suffix, note in (("", ""), ("_training_included", ", training included")):
                add(f"{words} samples / {unit}{note}", lambda r, n=name, k=key + suffix, f=factor: _rate(r, n, k, f))
    return lines


def _or_undefined(pick, row):
    try:
        return pick(row)
    except (KeyError, TypeError):  # the figure is not defined for this scheme, or was not measured
        return NOT_DEFINED


def _floored(entry, digits):
    if entry == Verdict.REFERENCE:
        return entry
    floor = "no floor" if entry["floor"] is None else f"{entry['floor']:.{digits}f}"
    return f"{entry['value']:.{digits}f} ({floor})"


def _transitions(row):
    found = row["torsion_rate"]
    if found["per_ps"] is not None:
        return number(found["per_ps"])
    return f"{found['transitions']} in {found['length_ps']:.0f} ps"


def _rate(row, name, key, factor):
    entry = row["samples"][name]
    if "training" not in row and key.endswith("included"):
        key = key.removesuffix("_training_included")  # nothing to train
    if entry["too_short"]:
        return "too short"
    rate = entry[key]
    return f"< 50 ({entry['samples']:.0f})" if rate is None else number(factor * rate["value"])


def as_text(result: dict) -> str:
    """The table of benchmark.json for a terminal."""
    out = [f"{result['molecule']}, {result['method']}, {result['temperature_K']:g} K, "
           f"{result['settings']['num_workers']} workers", "", *_ruleless(result["table"]), "",
           *_ruleless([["bar", "target", "measured", ""]] + [
               [b["bar"], b["target"], b["measured"], verdict(b)] for b in result["bars"]]), ""]
    return "\n".join(out + [f"- {line}" for line in sentences(result)])


def sentences(result: dict) -> list[str]:
    """What stands below the table: where the rates of plain MD come from, totals, what is missing, how it was made."""
    return [*plain_text(result["plain_rates"]),
            *(total_text(up) for up in result["from_cold_start"] or result["speed_up"] if "total" in up),
            *map(samplers.sentence, result["samplers"]),
            *(agreement.sentence(entry["name"], entry["rival"], entry["agreement"]) for entry in result["samplers"]
              if entry["agreement"]), *result["notes"]]


def plain_text(rates: dict) -> list[str]:
    """Energy and slowest torsion of plain MD: what its run shows, and what the network's dynamics says."""
    direct, network, energy = rates.get("torsion_direct"), rates["network"], rates["energy_direct"]
    out = [f"plain MD at 1 fs: {energy['samples']:.0f} +- {energy['standard_error']:.0f} effective samples of the "
           f"energy in {rates['length_ps']:.0f} ps, {1e3 * energy['samples'] / rates['calls']:.2g} +- "
           f"{1e3 * energy['standard_error'] / rates['calls']:.2g} per 1000 calls"]
    if direct:
        at_most = rates["torsion_at_most"]
        out.append(f"plain MD at 1 fs: {direct['samples']:.0f} +- {direct['standard_error']:.0f} effective samples of "
                   f"{direct['label']} in {rates['length_ps']:.0f} ps ({direct['crossings']} crossings); its "
                   f"crossings of {at_most['label']} allow at most {1e3 * at_most['per_call']:.3g} per 1000 calls (95 "
                   "%)")
    if network:
        found, certificate = network["torsion"], network["certificate"]
        often = (f"{1e3 * network['energy']['value']:.2g} +- {1e3 * network['energy']['error']:.1g} samples of the "
                 "energy and "
                 if network["energy"] else "")
        slow = (f"{1e3 * found['value']:.3g} +- {1e3 * found['error']:.2g} samples of {found['label']} per 1000 "
                "timesteps"
                if found else "fewer than 50 samples of its slowest torsion")
        agreement = ", ".join(f"{a['observable']} {with_error(a['plain_over_network'])[:-1]}"
                              for a in network["agreement"])
        out.append(f"the network's own dynamics, {network['length_ps']:.0f} ps at 1 fs, spread of E_true - E_ML "
                   f"{certificate['spread_kJ_per_mol']:.2g} kJ/mol, force error "
                   f"{certificate['force_rmse_kJ_per_mol_A']:.2g} kJ/mol/A: {often}{slow}; rates of plain MD over its "
                   f"own where both have 50 samples: {agreement or 'none'}")
    return out


def total_text(up: dict) -> str:
    """The parts of a total from a cold start, in one line."""
    t = up["total"]
    return (f"seed {up['seed']}: CPU for {t['samples']:,} torsion samples: training {t['training_cpu_s']:.0f} s + "
            f"burn-in {t['burn_in_cpu_s']:.0f} s + sampling {t['sampling_cpu_s']:.0f} s = {t['cpu_s']['value']:.0f} +- "
            f"{t['cpu_s']['error']:.0f} s; plain {t['plain_cpu_s']['value']:.0f} +- {t['plain_cpu_s']['error']:.0f} s; "
            f"ratio {t['ratio']['value']:.3g} +- {t['ratio']['error']:.2g}")


def _ruleless(table: list[list[str]]) -> list[str]:
    head, _, *lines = aligned((table[0], table[1:]))
    return [head, *lines]
