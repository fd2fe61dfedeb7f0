"""The tables of docs/RESULTS.md from the JSON files in benchmarks/results.

    python benchmarks/tables.py            print them
    python benchmarks/tables.py --write    put them into docs/RESULTS.md
    python benchmarks/tables.py --add outputs/benchmark/ethanol/benchmark.json    take a molecule's benchmark (07) in
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from guides import put
from kstep.files import write_json_compact
from running import RESULTS, ROOT

EXACT_AND_FAST = RESULTS / "exact_and_fast.json"
TEMPERING = RESULTS / "tempering.json"
VALIDATION = RESULTS / "validation.json"
MEMORY = RESULTS / "memory.json"
WEIGHTS = RESULTS / "weights.json"
ADVISE = RESULTS / "advise.json"
INNER_LOOP = RESULTS / "inner_loop.json"
CREST = RESULTS / "crest.json"
SCALING = RESULTS / "scaling.json"
GUIDE, MARK = ROOT / "docs" / "RESULTS.md", "<!-- tables -->"
LOWER_KJ = 0.5  # per mol, by which a conformer is lower than another's lowest
LEAST_IN_EXCESS = 0.01  # measured population of a conformer beyond CREST's list that has a row of its own
HELD_TO = {"mm": {4: ("3-4x", 0.03, 3, 0.01), 8: ("6-8x", 0.04, 4, 0.02), 12: ("10-12x", 0.05, 5, 0.03)},
           "qm": {4: ("3-4x", 0.015, 2, 0.03), 8: ("6-8x", 0.020, 3, 0.05)}}


def beside_floor(entry: dict | None, digits: int) -> str:
    """'0.0012 (floor 0.0010)'."""
    if not entry:
        return "n/a"
    floor = f"{entry['floor']:.{digits}f}" if entry["floor"] is not None else "none"
    return f"{entry['value']:.{digits}f} (floor {floor})"


def drift(entry: dict | None) -> str:
    """Slope with its 95 % interval, or when it blew up."""
    if not entry:
        return "n/a"
    text = f"{entry['drift_kJ_per_mol_ps']:+.3g} +- {entry['half_width_95']:.2g}"
    if entry["blown_up_segments"]:
        text += (f"; {entry['blown_up_segments']} of {entry['segments']} blew up, "
                 f"first at {entry['first_blow_up_ps']:.2g} ps")
    return text


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def by_k(section: dict) -> list[tuple[str, dict]]:
    """Rows 'molecule k=4' by molecule, then k."""
    def order(item):
        name, k = item[0].split(" k=")
        return name != "ethanol", int(k)

    return sorted(section.items(), key=order)


def qm_metropolis(section: dict) -> str:
    rows = []
    names = sorted(section, reverse=True)  # ethanol first, as the bars are given

    def row(label, bar, value):
        rows.append([label, bar, *[value(section[name]) for name in names]])

    def middle(seeds, key, inner="value"):
        values = sorted(s[key][inner] for s in seeds)
        return values[len(values) // 2]

    row("acceptance, median of 3 seeds", ">= 0.85 ethanol, >= 0.75 aspirin", lambda s: f"{s['acceptance_median']:.3f}")
    row("bond error, A (times the floor)", "<= 0.002, <= 1.5 floors",
        lambda s: f"{s['bond_rmse_A_median']:.5f} ({s['bond_ratio_to_floor_median']:.2f})")
    row("- plain at 0.5 fs, same calls", "",
        lambda s: f"{middle(s['plain_same_calls'], 'bond_rmse_A'):.5f} "
                  f"({middle(s['plain_same_calls'], 'bond_rmse_A', 'ratio'):.2f})")
    row("angle error, deg (times the floor)", "<= 0.6, <= 1.5 floors",
        lambda s: f"{s['angle_rmse_deg_median']:.3f} ({s['angle_ratio_to_floor_median']:.2f})")
    row("- plain at 0.5 fs, same calls", "",
        lambda s: f"{middle(s['plain_same_calls'], 'angle_rmse_deg'):.3f} "
                  f"({middle(s['plain_same_calls'], 'angle_rmse_deg', 'ratio'):.2f})")
    row("<exp(-beta dH)>, each seed", "1 within 3 errors, error <= 0.03",
        lambda s: ", ".join(f"{r['exp_minus_beta_dH']['mean']:.3f} +- {r['exp_minus_beta_dH']['standard_error']:.3f}"
                            for r in s["seeds"]))
    row("proposals per seed", ">= 2000", lambda s: s["seeds"][0]["proposals"])
    row("wall seconds per ps of accepted trajectory", "",
        lambda s: f"{sorted(r['wall_s_per_ps'] for r in s['seeds'])[1]:.4f}")
    row("- plain at 1 fs, same cores and replicas", "",
        lambda s: f"{sorted(r['wall_s_per_ps'] for r in s['plain_1fs'])[1]:.3f}")
    row("ratio of the two, network trained", ">= 30 ethanol, >= 100 aspirin", lambda s: f"{s['wall_ratio_median']:.0f}")
    row("effective energy samples per 1000 true calls", "",
        lambda s: f"{sorted(r['sampling']['energy_per_1000_calls'] for r in s['seeds'])[1]:.0f}")
    row("- the long plain reference at 0.5 fs", "", lambda s: f"{s['plain_reference_energy_per_1000_calls']:.1f}")
    row("true calls: run / training data", "",
        lambda s: f"{s['seeds'][0]['true_calls']} / {s['seeds'][0]['true_calls_training']}")
    return "### GFN2-xTB, `metropolis`: k = 1000 at 0.5 fs, 300 K, real masses, frozen network\n\n" + table(
        ["", "bar", *names], rows)


def qm_jump(section: dict) -> str:
    rows = []
    for key, row in by_k(section):
        one, k = row["one_step"], row["nve"]["k_steps"]
        held = HELD_TO["qm"][k]
        rows.append([key, f"{one['jump_rms_A']:.2e} / {one['verlet_rms_A']:.2e}", f"1/{one['verlet_over_jump']:.1f}",
                     drift(row["nve"]["drift"]), f"{row['nve']['calls_saved']:.2f}x", drift(row["no_network"]["drift"]),
                     drift(row["plain_same_calls"]["drift"]), drift(row["plain_same_calls_and_time"]["drift"]),
                     f"{held[0]}, {held[3]}"])
    return ("### GFN2-xTB, `jump`: k = 4 and 8 at 0.25 fs\n\nOne-step position error on held-out windows (RMS over "
            "atoms), bar: at most 1/10 of one velocity-Verlet step of the same length. Then NVE without thermostat or "
            "rescale; drift of the true total energy in kJ/mol/ps with its 95 % interval. k = 4 and 8 at 0.25 fs are "
            "1 and 2 fs, where plain Verlet itself is stable: its column at dt = k x 0.25 fs makes the same calls "
            "over the same time.\n\n"
            + table(["", "jump / Verlet, A", "ratio", "jump, NVE drift", "calls saved", "no network",
                     "plain 0.25 fs, same calls",
                     "plain at k dt, same calls and time", "tools of this kind: calls saved, drift"], rows))


def mm(section: dict) -> str:
    exact, fast = [], []
    for key, row in by_k(section):
        k = row["jump"]["k_steps"]
        m, p = row["metropolis"], row["metropolis_plain_same_calls"]
        exact.append([key, f"{m['acceptance']:.3f}", beside_floor(m["bond_rmse_A"], 5),
                      beside_floor(p["bond_rmse_A"], 5),
                      beside_floor(m["angle_rmse_deg"], 3), beside_floor(p["angle_rmse_deg"], 3),
                      f"{m['wall_s_per_ps']:.3f} / {p['wall_s_per_ps']:.3f}"])
        j, n, p = row["jump"], row["jump_no_network"], row["jump_plain_same_calls"]
        held = HELD_TO["mm"][k]
        fast.append([key, beside_floor(j["bond_rmse_A"], 4), held[1], beside_floor(j["angle_rmse_deg"], 2), held[2],
                     f"{j['calls_saved']:.2f}x", f">= {0.8 * k:.1f}x, {held[0]}",
                     f"{j['refused_jumps']} of {j['proposals']}",
                     f"{n['calls_saved']:.2f}x", f"{beside_floor(p['bond_rmse_A'], 4)}, "
                                                 f"{beside_floor(p['angle_rmse_deg'], 2)}",
                     f"{j['wall_s_per_ps']:.2f} / {p['wall_s_per_ps']:.2f}"])
    return ("### MMFF94 (OpenMM), aspirin, 1 fs, 300 K\n\n`metropolis` (bars: within 1.5 floors, at most 0.003 A and "
            "0.6 deg):\n\n"
            + table(["", "acceptance", "bond error, A", "plain, same calls", "angle error, deg", "plain, same calls",
                     "wall s per ps: metropolis / plain"], exact)
            + "\n\n`jump` inside a Langevin thermostat, bars in the columns beside (bond and angle: the figures tools "
              "of this kind are held to):\n\n"
            + table(["", "bond error, A", "bar", "angle error, deg", "bar", "calls saved", "bar; tools of this kind",
                     "macro-steps with a refused jump", "calls saved without network", "plain, same calls",
                     "wall s per ps: jump / plain"], fast))


def mm_native(section: dict) -> str:
    text = []
    for name, row in section.items():
        us = row["us_per_step"]
        fastest = min(us, key=us.get)
        text.append(f"OpenMM's own loop takes {us[fastest]:.0f} us per step of {name} on one core ({fastest}): "
                    f"{us[fastest] * 1e-3:.3f} s per ps, half of that per ps of two replicas on two cores. Compare "
                    "the last columns: MM is where methods are proved, not where they pay.")
    return "\n\n".join(text)


def exact_and_fast(section: dict) -> str:
    """The benchmarks of 07: bars of all molecules side by side, then each molecule's table of schemes."""
    names = sorted(section, key=lambda name: (name not in ("ethanol", "aspirin"), name != "ethanol", name))
    bars = {name: {b["bar"]: b for b in section[name]["bars"]} for name in names}
    rows = []
    for label in dict.fromkeys(label for name in names for label in bars[name]):
        row = [label]
        for name in names:
            b = bars[name].get(label, {"target": "", "measured": "n/a", "met": None})
            verdict = {True: " **met**", False: " **missed**", None: " (undecided)" if b["target"] else ""}[b["met"]]
            row += [b["target"], b["measured"] + verdict]
        rows.append(row)
    parts = ["### Exact and fast: what `src/07_benchmark.py` measured\n\n" + table(
        ["", *(word for name in names for word in (f"{name}, bar", name))], rows)]
    for name in names:
        entry = section[name]
        head, *lines = entry["table"]
        parts.append(f"{name}, {entry['method']}, {entry['temperature_K']:g} K, {entry['settings']['num_workers']} "
                     f"workers on {entry['machine']['cpu']}:\n\n" + table(head, lines)
                     + "\n\n" + "\n".join(f"- {line}" for line in entry["sentences"]))
    return "\n\n".join(parts)


def tempering(data: dict) -> str:
    """What benchmarks/tempering.py measured: a barrier crossed, and the same populations from either side."""
    s = data["settings"]
    ladder = ", ".join(f"{t:g}" for t in s["ladder_K"])

    def share(pair):
        return f"{100 * pair[0]:.2g} +- {100 * pair[1]:.1g} %"

    labels = {"ladder_from_Z": "ladder, all from Z, `--learn`", "ladder_from_E": "ladder, all from E, same network",
              "metropolis_300K": "`metropolis` at 300 K alone, from Z", "plain_300K": "plain MD at 300 K, 1 fs, from Z"}
    rows = [[label, data[name]["true_calls"], data[name]["barrier_crossings"], data[name]["transitions_at_300K"],
             share(data[name]["E_300K"]), share(data[name]["E_300K_mbar"]) if "E_300K_mbar" in data[name] else ""]
            for name, label in labels.items() if name in data]
    z = data["ladder_from_Z"]
    swaps = z["swap_acceptance"]
    above = ", ".join(f"{e:.1f} +- {d:.1f} kJ/mol from {x}" for x, (e, d) in data["E_above_Z_kJ_per_mol"].items())
    apart = f" ({data['errors_apart']:.1f} errors apart)" if "errors_apart" in data else ""
    return (f"### Parallel tempering: the ester of `{s['smiles']}` turns over\n\n"
            f"GFN2-xTB; {s['ladders']} ladders of {ladder} K, {s['steps']} macro-steps after {s['burn_in_steps']} of "
            "burn-in, counted in the table. Only the Z form was given. Learning took "
            f"{z['true_calls_training']} true calls more; {min(swaps):.2f} to {max(swaps):.2f} of the swaps of "
            f"neighbours were accepted, and {z['acceptance']:.3f} of the proposals. Errors come from the spread of "
            "the ladders.\n\n"
            + table(["", "true calls", "crossings of 90 degrees, all rungs", "changes between Z and E at 300 K",
                     "E at 300 K", "E at 300 K, MBAR over rungs"], rows)
            + f"\n\nFree energy of E above Z: {above}{apart}. `python benchmarks/tempering.py` repeats it.")


def validation(data: dict) -> str:
    """The checks of physical_validation, the larger deviation of the two temperatures in each cell."""
    rows, notes = [], []
    for name, row in data["rows"].items():
        if "deviation_largest" in row:
            steps = ", ".join(f"{dt:g}" for dt in row["dt_fs"])
            notes.append(f"{name}, k = {row['k_steps']}, dt = {steps} fs: RMS of the total energy "
                         f"{', '.join(f'{e:.3g}' for e in row['rms_kJ_per_mol'])} kJ/mol; its ratios leave dt^2 by at "
                         f"most {100 * row['deviation_largest']:.1f} % ({row['starts']} starts, median "
                         f"{100 * row['deviation_median']:.1f} %).")
            continue
        samples = row["samples"]
        independent = min(n for s in samples for key, n in s["independent"].items() if key != "frames")

        def most(group, part, samples=samples):
            sigmas = (part(s[group])[key] for s in samples for key in ("shape_sigma", "mean_sigma", "width_sigma"))
            return f"{max(sigmas):.1f}"

        elements = [most("equipartition", lambda e, key=key: e[key])
                    for key in ("H", "C", "O", "rotational", "internal")]
        rows.append([name, row["true"], f"{independent:.0f}", most("kinetic", lambda k: k), *elements,
                     f"{row['potential_sigma']:.1f}", f"{row['total_sigma']:.1f}"])
        if "chains" in row:
            notes.append(f"{name}: acceptance {' and '.join(format(c['acceptance'], '.2f') for c in row['chains'])}; "
                         f"force error of its network {row['network']['force_error_kJ_per_mol_A']:.1f} kJ/mol/A.")
    return ("### Ensembles: `physical_validation` on ethanol\n\n"
            + f"300 and {data.get('hot_K', float('nan')):g} K, a network "
            "fitted to few labels. Each cell: the largest deviation, in standard errors, of the distribution "
            "(Kolmogorov-Smirnov), its mean and its width at either temperature; bar: 3.\n\n" + table(
                ["", "true potential", "independent frames, least", "kinetic energy", "H", "C", "O", "rotation",
                 "vibration", "two temperatures: potential", "total energy"], rows)
            + "\n\n" + "\n".join(f"- {note}" for note in notes)
            + "\n\n`python benchmarks/validation.py` repeats it "
            f"({sum(row['cpu_s'] for row in data['rows'].values()):.0f} CPU seconds).")


def add(path: Path) -> None:
    """Take the benchmark.json of one molecule into the published file."""
    try:
        entry = json.loads(path.read_text())
        name = entry["molecule"]
    except (OSError, ValueError, KeyError, TypeError):
        raise SystemExit(f"error: {path} is not a benchmark.json of src/07_benchmark.py") from None
    data = json.loads(EXACT_AND_FAST.read_text()) if EXACT_AND_FAST.exists() else {}
    data[name] = entry
    write_json_compact(EXACT_AND_FAST, data)


def advise(data: dict) -> str:
    """What benchmarks/advise.py measured: CPU seconds for N effective samples, foretold over found."""
    rows = []

    def cell(check, name, factor):
        if not check.get(name):
            return "n/a"
        allowed = factor[name] if isinstance(factor, dict) else factor
        return f"{check[name]['predicted_over_measured']:.2f} ({allowed:g})"

    for molecule, occasions in data.items():
        for occasion, told in occasions.items():
            for check in told["checks"]:
                rows.append([molecule, occasion, check["scheme"],
                             *(cell(check, name, told["factor"]) for name in ("energy", "torsion"))])
    return ("### What `src/08_advise.py` foretold, over what then happened\n\nCPU seconds for effective samples of the "
            "energy and of the slowest torsion, in brackets the factor within which it is meant to hold; learning is "
            "not in it.\n\n" + table(["", "known beforehand", "of", "energy", "slowest torsion"], rows)
            + "\n\n`python benchmarks/advise.py` repeats it (aspirin: `--smiles \"CC(=O)Oc1ccccc1C(=O)O\" --name "
              "aspirin --steps 120 --plain-ps 0`).")


def memory(data: dict) -> str:
    """What benchmarks/memory.py measured."""
    rows = [[label, f"{run['highest_MB']:.0f}", f"{run['file_MB']:.1f}"] for label, run in data["runs"].items()]
    return ("### Memory of whole runs\n\n"
            + table(["", "highest memory, all processes, MB", "trajectory file, MB"], rows)
            + "\n\n`python benchmarks/memory.py` repeats it.")


def cold_start(data: dict) -> str:
    """What benchmarks/cold_start.py measured."""
    rows = [[name, row["atoms"], row["true_calls"], f"{row['cpu_s']:.0f}", f"{row['d_spread_kT'][0]:.2f}",
             f"{sum(row['holes'])} of {row['states']}"] for name, row in
            sorted(data["molecules"].items(), key=lambda item: item[1]["atoms"])]
    return ("### Cold starts: from a SMILES to a frozen network, GFN2-xTB, 300 K\n\n"
            + table(["", "atoms", "true calls", "CPU s", "spread of E_true - E_network, kT", "fresh states in holes"],
                    rows)
            + "\n\n`python benchmarks/cold_start.py` repeats it.")


def unseen(data: dict) -> str:
    """What benchmarks/unseen.py measured."""
    rows = [[name, row["method"], row["true_calls_training"], row["true_calls"],
             f"{row['cpu_s_training'] + row['cpu_s']:.0f}", row["why"]]
            for name, row in sorted(data["molecules"].items())]
    return ("### `kstep sample SMILES --learn` and nothing else, on molecules that nothing was tuned on\n\n"
            + table(["", "method", "true calls to learn", "and to sample", "CPU s in all", "how it ended"], rows)
            + "\n\n`python benchmarks/unseen.py` repeats it.")


def dearest(data: dict) -> str:
    """What benchmarks/dearest.py measured."""
    rows = [[name, row["method"], row["calls_to_acceptance"], row["true_calls_training"], f"{row['acceptance']:.2f}",
             f"{row['energy_samples']:.0f} in {row['true_calls']} calls", f"{row['cpu_s_to_200_samples'] / 60:.0f}",
             "{:.3f} ± {:.3f}".format(*row["exp_minus_beta_dH"])] for name, row in data.items() if "rounds" in row]
    four = {name: row for name, row in data.items() if "sigmas_apart" in row}
    return ("### Dear methods, learned via GFN2-xTB (`--via`)\n\n"
            + table(["", "method", "its calls until the acceptance expected is as promised", "its calls to learn",
                     "acceptance measured", "samples of the energy", "CPU minutes from the SMILES to 200 samples",
                     "<exp(-ΔH/kT)>"], rows)
            + "\n\n`python benchmarks/dearest.py methanol_ccsdt` repeats it." + _four_methods(four))


def _four_methods(data: dict) -> str:
    """Gauche and anti of ethanol, a method a row."""
    if not data:
        return ""
    rows = [[row["method"], f"{100 * row['gauche']:.1f} ± {100 * row['error']:.1f}",
             *(f"{100 * one['gauche']:.1f} ± {100 * one['error']:.1f}" for one in row["starts"].values()),
             f"{row['sigmas_apart']:.1f}", *(sum(one[key] for one in row["starts"].values())
                                             for key in ("true_calls_training", "true_calls")),
             f"{sum(one['cpu_s'] for one in row['starts'].values()) / 60:.0f}"] for row in data.values()]
    return ("\n\n### Ethanol by method: gauche, both mirror images, at 300 K\n\nThe mean of two runs that share "
            "neither network, labels nor seed, one begun in gauche alone and one in anti alone.\n\n"
            + table(["method", "gauche, %", "begun in gauche", "begun in anti", "standard errors apart",
                     "true calls to learn", "to sample", "CPU minutes"], rows)
            + f"\n\n`python benchmarks/dearest.py {' '.join(data)}` repeats it.")


def weights(data: dict) -> str:
    """What benchmarks/weights.py found of an observable that d knows nothing of, and of holes."""
    free = [r for r in data["rows"] if r["hole"] == "none" and r["correlation"] == 0.0]

    def cells(r, *first):
        n = r["samples"]
        return [*first, f"{r['spread_kT']:g}", f"{r['acceptance']:.2f}", f"{n['chain']:.0f}", f"{n['recycling']:.0f}",
                f"{n['weights']:.0f}", r["taken"]]

    rows = [cells(r, f"{r['memory']:g}", f"{r['memory_of_observable']:g}") for r in
            sorted(free, key=lambda r: (r["memory"], r["memory_of_observable"], r["spread_kT"]))]
    holes = [f"{n['unlimited']:.0f} without limits, {n['weights']:.0f} within 10 kT, {n['chain']:.0f} of the chain"
             for r in data["rows"] if "half" in r["hole"] and r["spread_kT"] == 0.7 for n in (r["samples"],)]
    warned = ", ".join(f"{float(share):.0%} at {s}" for s, share in data["k_hat_warns"].items() if float(share) > 0)
    return ("### Chain, waste recycling or weights\n\n"
            "Samples per 1000 true calls in a model of `nested`: d = E_true - E_ML is Gaussian with a spread s and "
            "forgets itself from one macro-step to the next down to c, the observable down to its own c.\n\n"
            + table(["c of d", "c of the observable", "s (kT)", "acceptance of the chain", "chain", "recycling",
                     "weights", "taken"], rows)
            + f"\n\nThe rule ({data['rule']}) gets at least {data['rule_gets_at_least']:.0%} of the better one, chain "
            "or weights, also where d and the observable are correlated. In a hole of the network that is as hard to "
            f"leave as to enter (c = 0.3, s = 0.7 kT): {holes[0]}. k-hat warns of 1600 independent weights in {warned} "
            "kT. `python benchmarks/weights.py` repeats it.")


def inner_loop(data: dict) -> str:
    """What benchmarks/inner_loop.py measured."""
    rows = list(next(iter(data["atoms"].values()))["step_us"])
    rows.sort(key=int)
    lines = [[n_atoms, found["pairs"], *(f"{found['step_us'][n]:.3g}" for n in rows),
              f"{found['limit_products_us']:.2g} + {found['limit_passes_us']:.2g}"]
             for n_atoms, found in sorted(data["atoms"].items(), key=lambda item: int(item[0]))]
    return ("### The inner loop of `pair_mlp`\n\nMicroseconds of one timestep of one replica (network's force and "
            "velocity Verlet, float32 inside, one core) for so many replicas computed at once. The limit: the "
            f"operations of its matrix products at {data['product_GFLOP_per_s']:.0f} GFLOP/s, the highest rate that a "
            "product of square matrices reaches here, and the passes between them at "
            f"{data['stream_GB_per_s']:.0f} GB/s, that of multiplying arrays which stay in the cache.\n\n"
            + table(["atoms", "pairs", *(f"{n} replicas" for n in rows), "limit, products + passes"], lines)
            + "\n\n`python benchmarks/inner_loop.py` repeats it.")


def crest(data: dict) -> str:
    """What benchmarks/crest.py measured: cost, conformers found, and those that matter one by one."""
    head, single, notes = [], [], []

    def percent(conformer):
        if "measured_error" not in conformer:
            return f"not found: below {100 * conformer['measured_below']:.1f} % (95 %)"
        return f"{100 * conformer['measured']:.1f} +- {100 * conformer['measured_error']:.1f} %"

    for name, row in data["molecules"].items():
        halves, important = row["halves"], row["important"]
        hours = [f"{row[key]:.2f}" if row[key] is not None else "" for key in ("cpu_h", "crest_cpu_h", "over_crest")]
        samples = min(n for n in (row["energy_samples"], row["torsion_samples"]) if n is not None)
        head.append([name, row["atoms"], *hours, f"{row['labels']} + {row['true_calls']}",
                     f"{samples:.0f}" + ("" if row["aim_reached"] else ", short of its aim"),
                     f"{len(important) - row['important_missed']} of {len(important)}",
                     f"{row['found_of_all']} of {row['crest']['distinct']} ({row['static_found']:.0%} of population)",
                     f"{len(row['excess'])} ({100 * sum(e['measured'] for e in row['excess']):.1f} % measured)",
                     f"{halves['p']:.2g}" if halves["p"] is not None else "n/a"])
        single += [[name, f"{c['energy']:.2f}", f"{100 * c['static']:.1f} %", percent(c), f"{c['nearest_rmsd_A']:.2f}"]
                   for c in important]
        single += [[name, f"{c['energy']:.2f}", "not listed", percent(c), ""]
                   for c in sorted(row["excess"], key=lambda c: -c["measured"]) if c["measured"] >= LEAST_IN_EXCESS]
        if row["lowest_below_crest"] > LOWER_KJ:
            notes.append(f"{name}: a conformer lies {row['lowest_below_crest']:.1f} kJ/mol below CREST's lowest.")
    return ("### Conformers against CREST\n\nGFN2-xTB, from the SMILES alone: `--learn`, then `nested` until the "
            "slowest torsion has its samples. Conformers are told apart by energies (0.5 kJ/mol) and heavy atoms "
            "(0.3 A) after relaxation of both sides at GFN2-xTB, whose calls are not in the cost. Halves: populations "
            "of the ten largest conformers from chains that began in disjoint start conformers, chi-square p.\n\n"
            + table(["", "atoms", "CPU h", "CREST, CPU h", "ratio", "true calls, learning + run", "effective samples",
                     "found, of 3 % or more", "found, of all", "in its window and not in its list", "halves, p"], head)
            + "\n\nWhat matters one by one. CREST's populations are of energies alone at 298 K; measured ones, at "
            "the run's 300 K, have vibrations and all anharmonicity in them.\n\n"
            + table(["", "kJ/mol above CREST's lowest", "static population", "measured", "nearest of ours, A"], single)
            + "".join(f"\n\n{note}" for note in notes)
            + "\n\n`python benchmarks/crest.py --ensemble PATH --smiles SMILES --name NAME` repeats it.")


def scaling(data: dict) -> str:
    """What benchmarks/scaling.py put together."""
    def cell(row, key, form):
        return form.format(row[key]) if row.get(key) is not None else "n/a"

    rows = [[name, row["atoms"], cell(row, "torsion_per_1000_calls", "{:.0f}"), cell(row, "labels", "{:.0f}"),
             cell(row, "cpu_s_training", "{:.0f}")]
            for name, row in sorted(data["molecules"].items(), key=lambda item: (item[1]["atoms"], item[0]))]
    return ("### Scaling with the number of atoms\n\n![Samples per 1000 true calls, labels and CPU seconds of learning "
            "against the number of atoms](scaling.svg)\n\n"
            + table(["", "atoms", "samples of the slowest torsion per 1000 true calls", "labels to learn",
                     "CPU s to learn"], rows)
            + "\n\n`python benchmarks/scaling.py` draws it from the records of the other benchmarks.")


def tables() -> str:
    """All tables as Markdown."""
    data = json.loads((RESULTS / "pipeline.json").read_text())
    on = data["machine"]
    parts = [f"Measured on {on['cores']} cores of one {on['cpu']}, no GPU."]
    for name, function in (("qm_metropolis", qm_metropolis), ("qm_jump", qm_jump), ("mm", mm),
                           ("mm_native", mm_native)):
        if name in data:
            parts.append(function(data[name]))
    if EXACT_AND_FAST.exists():
        parts.append(exact_and_fast(json.loads(EXACT_AND_FAST.read_text())))
    if ADVISE.exists():
        parts.append(advise(json.loads(ADVISE.read_text())))
    if TEMPERING.exists():
        parts.append(tempering(json.loads(TEMPERING.read_text())))
    if WEIGHTS.exists():
        parts.append(weights(json.loads(WEIGHTS.read_text())))
    if VALIDATION.exists():
        parts.append(validation(json.loads(VALIDATION.read_text())))
    for name, function in (("cold_start", cold_start), ("unseen", unseen), ("dearest", dearest)):
        if (RESULTS / f"{name}.json").exists():
            parts.append(function(json.loads((RESULTS / f"{name}.json").read_text())))
    if MEMORY.exists():
        parts.append(memory(json.loads(MEMORY.read_text())))
    if INNER_LOOP.exists():
        parts.append(inner_loop(json.loads(INNER_LOOP.read_text())))
    if CREST.exists():
        parts.append(crest(json.loads(CREST.read_text())))
    if SCALING.exists():
        parts.append(scaling(json.loads(SCALING.read_text())))
    return "\n\n".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace the tables in docs/RESULTS.md")
    parser.add_argument("--add", type=Path, metavar="BENCHMARK.JSON",
                        help="take in a benchmark of src/07_benchmark.py first")
    args = parser.parse_args()
    if args.add:
        add(args.add)
    if args.write:
        put(GUIDE, MARK, tables())
    else:
        print(tables())


if __name__ == "__main__":
    main()
