"""The tables of docs/RESULTS.md from the JSON files in benchmarks/results.

    python benchmarks/tables.py            print them
    python benchmarks/tables.py --write    put them into docs/RESULTS.md
    python benchmarks/tables.py --add outputs/benchmark/ethanol/benchmark.json    take a molecule's benchmark (07) in
    python benchmarks/tables.py --agreement outputs/long/ethanol/benchmark.json     only how its samplers agree
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import dearest_tables
import pipeline_tables
import study_tables
from guides import put, table
from kstep.files import write_json_compact
from kstep.study.benchmark.agreement import sentence
from running import RESULTS, ROOT

EXACT_AND_FAST, AGREEMENT = RESULTS / "exact_and_fast.json", RESULTS / "agreement.json"
GUIDE, MARK = ROOT / "docs" / "RESULTS.md", "<!-- tables -->"


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
    entry = benchmark_of(path)
    _merge(EXACT_AND_FAST, {entry["molecule"]: entry})


def add_agreement(path: Path) -> None:
    """Take in how closely the samplers of a benchmark agree: one of many proposals sees less than the usual one can."""
    entry = benchmark_of(path)
    rows = [{"name": each["name"], "rival": each["rival"], **each["agreement"]}
            for each in entry["samplers"] if each["agreement"]]
    if not rows:
        raise SystemExit(f"error: {path} holds no two samplers; run the sections nested and metropolis")
    kept = {key: entry[key] for key in ("method", "temperature_K", "commands", "machine", "versions", "git_commit")}
    _merge(AGREEMENT, {entry["molecule"]: {"samplers": rows, **kept}})


def benchmark_of(path: Path) -> dict:
    """What 07 wrote there."""
    try:
        entry = json.loads(path.read_text())
        entry["molecule"], entry["samplers"]
    except (OSError, ValueError, KeyError, TypeError):
        raise SystemExit(f"error: {path} is not a benchmark.json of src/07_benchmark.py") from None
    return entry


def _merge(record: Path, new: dict) -> None:
    write_json_compact(record, {**(json.loads(record.read_text()) if record.exists() else {}), **new})


def agreement(data: dict) -> str:
    """Samplers beside each other in runs long enough to see 1 %."""
    lines = [f"- {name}, {entry['method']}: {sentence(row['name'], row['rival'], row)}"
             for name, entry in sorted(data.items()) for row in entry["samplers"]]
    return ("### Two exact samplers beside each other, in runs long enough to see 1 %\n\n" + "\n".join(lines)
            + "\n\n`src/07_benchmark.py --molecule data/raw/ethanol --out-dir outputs/long/ethanol --sections plain "
              "learn nested metropolis --seeds 0 --proposals 3100 --dear-call-s 0 --num-workers 1 --reference-ps 1 "
              "--fine-reference-ps 1 --timed-ps 0.1 --timed-window-ps 0.25`, then `benchmarks/tables.py --agreement "
              "outputs/long/ethanol/benchmark.json --write`.")


def advise(data: dict) -> str:
    """What benchmarks/advise.py measured: CPU seconds for N effective samples, foretold over found."""
    rows = []

    def cell(check, name, factor):
        if not check.get(name) or check[name]["predicted_over_measured"] is None:  # a torsion that was never foretold
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


def soak(data: dict) -> str:
    """What benchmarks/soak.py measured."""
    kinds = Counter(fault.partition(": ")[2].removesuffix(" checkpoint.npz") for fault in data["faults"])
    rows = [[name, data["frames" + key], data["true_calls" + key], f"{100 * data['memory_growth' + key]:+.2f} %"]
            for name, key in (("quiet", "_of_quiet_run"), ("under faults", ""))]
    return (f"### Methanol, `{data['scheme']}`, under faults\n\n"
            f"{data['minutes']:.0f} minutes of both runs together; faults: "
            + ", ".join(f"{kind} {n} times" for kind, n in sorted(kinds.items())) + ".\n\n"
            + table(["", "frames", "true calls", "memory, last quarter over the second"], rows)
            + f"\n\nFrames that are lost or doubled: {data['lost_or_doubled']}, out of step: {data['out_of_step']}; "
            f"ends with another exit code than they should have: {len(data['wrong_ends'])}; mean energies "
            f"{data['deviation']:.1g} standard errors apart, populations {data['shares_apart']:.1g}. "
            "`python benchmarks/soak.py` repeats it.")


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
    return ("### `kstep sample SMILES --learn` and nothing else, on molecules that nothing was tuned on but "
            "fluoroethanol and ibuprofen\n\n"
            + table(["", "method", "true calls to learn", "and to sample", "CPU s in all", "how it ended"], rows)
            + "\n\n`python benchmarks/unseen.py` repeats it.")


def independent(data: dict) -> str:
    """What benchmarks/independent.py counted anew."""
    def spread(found, key):
        return "" if key not in found else f"{found[key]['z']:.2f}"

    rows = [[name, run["method"], len(found["states"]),
             f"{100 * run['largest_difference']:.1f} % ({run['z_with_the_file']:.2f})" if "of_the_file" in run else "",
             spread(run, "dynamics"), "{:+.2f} ± {:.2f}".format(*(run["dynamics"][key] for key in (
                 "energy_rise_kJ", "energy_rise_error_kJ"))) if "dynamics" in run else "",
             spread(found, "by_energies") if number else ""]
            for found in data.values() for number, (name, run) in enumerate(found["runs"].items())]
    return ("### Populations counted again, without kstep's analysis\n\nWells of a second program of their own; ASE's "
            "Langevin dynamics over tblite's own calculator, begun in frames of the run, which an exact ensemble does "
            "not notice; and the second run's shares as the first run's and the energies of the two methods say "
            "(Bennett). z is a difference over its error, root mean square over the wells: 1 is what chance gives.\n\n"
            + table(["", "method", "wells", "largest difference from the run's own table (z)", "z after ASE's dynamics",
                     "energy's rise in it, kJ/mol", "z of the shares from the other run's"], rows)
            + "\n\n`python benchmarks/unseen.py` makes the runs, `python benchmarks/independent.py` judges them.")


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


SHOWN = {  # by record, in the order of the page
    "exact_and_fast": exact_and_fast, "agreement": agreement, "advise": advise, "tempering": tempering,
    "weights": weights, "validation": validation, "cold_start": cold_start, "unseen": unseen,
    "independent": independent, "dearest": dearest_tables.shown, "memory": memory, "soak": soak,
    "inner_loop": inner_loop, "crest": study_tables.crest, "experiment": study_tables.experiment,
    "spectra": study_tables.spectra, "scaling": study_tables.scaling}


def tables() -> str:
    """All tables as Markdown."""
    data = json.loads((RESULTS / "pipeline.json").read_text())
    on = data["machine"]
    parts = [f"Measured on {on['cores']} cores of one {on['cpu']}, no GPU."]
    parts += pipeline_tables.tables(data)
    parts += [show(json.loads((RESULTS / f"{name}.json").read_text())) for name, show in SHOWN.items()
              if (RESULTS / f"{name}.json").exists()]
    return "\n\n".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace the tables in docs/RESULTS.md")
    parser.add_argument("--add", type=Path, metavar="BENCHMARK.JSON",
                        help="take in a benchmark of src/07_benchmark.py first")
    parser.add_argument("--agreement", type=Path, metavar="BENCHMARK.JSON",
                        help="take in no more of one than how its samplers agree")
    args = parser.parse_args()
    if args.add:
        add(args.add)
    if args.agreement:
        add_agreement(args.agreement)
    if args.write:
        put(GUIDE, MARK, tables())
    else:
        print(tables())


if __name__ == "__main__":
    main()
