"""What README shows of the measurements: its figures and one picture, from the JSON files in benchmarks/results.

    python benchmarks/readme.py        write both
"""

from __future__ import annotations

import json
import math

from guides import put
from kstep.files import write_text_atomic
from running import RESULTS, ROOT

GUIDE, MARK, PICTURE = ROOT / "README.md", "<!-- figures -->", ROOT / "docs" / "speed.svg"
TUNED_WITH = ("ethanol", "fluoroethanol", "aspirin", "ibuprofen")  # in view the learner and the samplers were made
MOLECULES = {"ethanol": "9 atoms", "fluoroethanol": "9 atoms", "aspirin": "21 atoms"}
WIDTH, ROW, TOP, LEFT, RIGHT = 760, 62, 84, 150, 130
DECADES = (-4, 2)  # of samples per CPU second
OURS, PLAIN, INK, FAINT = "#0b6e99", "#b4552d", "#222222", "#d9d9d9"


def middle(rows: list, key) -> dict:
    """Of the seeds the median one by key."""
    return sorted(rows, key=key)[len(rows) // 2]


def sampler_of(entry: dict) -> str:
    """The sampler that an entry compares with plain MD: that which was the default when it was measured."""
    return next(iter(entry.get("samplers", [])), {"name": "metropolis"})["name"]


def total_of(entry: dict) -> dict:
    """CPU of 10,000 samples of the slowest torsion from a cold start, of the median seed by plain MD / `sampler_of`."""
    return middle(entry["from_cold_start"], lambda seed: seed["total"]["ratio"]["value"])["total"]


def rates(entry: dict) -> list[tuple[float, float]]:
    """(samples per CPU second, its error) of plain MD and of the sampler, labels, training and burn-in paid for."""
    total = total_of(entry)
    return [(total["samples"] / total[key]["value"], total["samples"] * total[key]["error"] / total[key]["value"] ** 2)
            for key in ("plain_cpu_s", "cpu_s")]


def with_error(entry: dict) -> str:
    """A ratio and its error, to two digits of the error."""
    digits = 1 - math.floor(math.log10(entry["error"]))
    value, error = (round(entry[key], min(digits, 0)) for key in ("value", "error"))
    return f"{value:,.0f} ± {error:,.0f}"


def text(x: float, y: float, words: str, *, size: int = 14, colour: str = INK, anchor: str = "start",
         bold=False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"{weight}>'
            f"{words}</text>")


def svg(data: dict) -> str:
    """The picture: a row for each molecule, plain MD and a sampler on one logarithmic axis, with standard errors."""
    height = TOP + ROW * len(MOLECULES) + 48
    bottom = height - 48

    def at(rate: float) -> float:
        share = (math.log10(rate) - DECADES[0]) / (DECADES[1] - DECADES[0])
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
           'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">',
           "<title>Independent samples of the slowest torsion per CPU second, plain MD and exact samplers</title>",
           f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>',
           text(16, 30, "Independent samples of the slowest torsion per CPU second", size=17, bold=True),
           text(16, 52, "GFN2-xTB, 300 K, from a cold start: labels, training and burn-in are paid for; one standard "
                        "error", size=13)]
    for exponent in range(DECADES[0], DECADES[1] + 1):
        x = at(10.0 ** exponent)
        out += [f'<line x1="{x:.1f}" y1="{TOP - 16}" x2="{x:.1f}" y2="{bottom}" stroke="{FAINT}"/>',
                text(x, bottom + 20, f"{10.0 ** exponent:g}", size=13, anchor="middle")]
    for row, (name, size) in enumerate(MOLECULES.items()):
        y = TOP + ROW * (row + 0.5)
        pairs, ratio = rates(data[name]), total_of(data[name])["ratio"]
        (plain, _), (ours, _) = pairs
        out += [text(16, y - 1, name, bold=True), text(16, y + 16, size, size=13),
                f'<line x1="{at(plain):.1f}" y1="{y}" x2="{at(ours):.1f}" y2="{y}" stroke="{FAINT}" stroke-width="3"/>',
                text((at(plain) + at(ours)) / 2, y - 9, f"{with_error(ratio)} times",
                     anchor="middle")]
        for (rate, error), colour in zip(pairs, (PLAIN, OURS), strict=True):
            out += [f'<line x1="{at(rate - error):.1f}" y1="{y}" x2="{at(rate + error):.1f}" y2="{y}" '
                    f'stroke="{colour}" stroke-width="3"/>',
                    f'<circle cx="{at(rate):.1f}" cy="{y}" r="5" fill="{colour}"/>']
        out += [text(at(plain) - 14, y + 5, f"{plain:.2g}", size=13, colour=PLAIN, anchor="end"),
                text(at(ours) + 14, y + 5, f"{ours:.2g} {sampler_of(data[name])}", size=13, colour=OURS)]
    x = at(rates(data[next(iter(MOLECULES))])[0][0])
    out += [text(x, TOP + 0.5 * ROW + 26, "plain MD", size=13, colour=PLAIN, anchor="middle"), "</svg>"]
    return "\n".join(out) + "\n"


def figures(read) -> str:
    """README's table; read(name) gives what a benchmark has published."""
    fast, dft, ester, unseen = read("exact_and_fast"), read("dft"), read("tempering"), read("unseen")["molecules"]
    chains = [row["metropolis"] for row in read("molecules")["molecules"].values()]

    def each(words, row: str | None = None) -> str:
        return ", ".join(f"{name} {words(fast[name])}" for name in MOLECULES
                         if row is None or row in fast[name]["rows"])

    def pair(value: float, error: float, digits: int = 0) -> str:
        return f"{value:.{digits}f} ± {error:.{digits}f}"

    def drift(entry: dict) -> str:
        return f"{entry['drift_kJ_per_mol_ps']:+.2g} ± {entry['half_width_95']:.1g}"

    def one_command(run: dict) -> str:
        samples = min(run["effective_samples"].values())
        return (f"{samples:.0f} samples (R-hat {max(run['r_hat'].values()):.2f}) of "
                f"{run['true_calls_training'] + run['true_calls']} calls, {run['cpu_s_training'] + run['cpu_s']:.0f} s")

    dear = {name: row for name, row in read("dearest").items() if name in ("methanol_ccsdt", "ethanol_ccsdt_via_pbe")}
    identity = [abs(1 - c["exp_minus_beta_dH"]["mean"]) / c["exp_minus_beta_dH"]["standard_error"] for c in chains]
    z, e = (ester[f"ladder_from_{form}"]["E_300K"] for form in "ZE")
    rows = [
        ("`kstep sample SMILES --learn` (`nested`) on molecules that nothing was tuned on, start to end: effective "
         "samples of the slowest (torsion, or energy), true calls, CPU seconds",
         "; ".join(f"{name.replace('_', ' ')} {one_command(run)}"
                   for name, run in sorted(unseen.items(), key=lambda item: item[1]["atoms"])
                   if run["method"] == "GFN2-xTB" and name not in TUNED_WITH)),
        ("conformers and populations from the SMILES alone, beside CREST's list: CPU hours; found of those that it "
         "gives 3 % or more; measured population of all that it lacks",
         "; ".join(f"{name} ({row['atoms']} atoms) {row['cpu_h']:.2f} h against {row['crest_cpu_h']:.2f} h; "
                   f"{len(row['important']) - row['important_missed']} of {len(row['important'])}; "
                   f"{100 * sum(conformer['measured'] for conformer in row['excess']):.0f} %, down to "
                   f"{row['lowest_below_crest']:.1f} kJ/mol below its lowest"
                   for name, row in read("crest")["molecules"].items())),
        ("CPU time of 10,000 independent samples of the slowest torsion from a cold start, against plain MD at 1 fs, "
         "which is too slow to be timed: its rate is that of the network's own dynamics, certified by true calls",
         each(lambda entry: f"{with_error(total_of(entry)['ratio'])} times less (`{sampler_of(entry)}`)")),
        ("true calls that the network of such a run learns from",
         each(lambda entry: middle(entry["cold_start"], lambda seed: seed["true_calls"])["true_calls"])),
        ("CPU time of 100 independent energies of methanol, PBE/def2-SVP, `metropolis` against plain MD",
         f"{with_error(dft['total_cpu_s']['ratio'])} times less"),
        ("CCSD(T)/cc-pVDZ from the SMILES alone (`--via` cheaper methods): true calls, labels included, and CPU time, "
         "until the energy and the slowest torsion are known by so many samples",
         "; ".join(f"{name.split('_')[0]} {row['wanted_samples']} samples by {row['calls_to_wanted']:.0f} calls, "
                   f"{row['cpu_s_to_wanted'] / 60:.0f} min" for name, row in
                   sorted(dear.items(), key=lambda item: item[1]["cpu_s_to_wanted"]))),
        (f"`metropolis` on {len(chains)} molecules: acceptance; `<exp(-ΔH/kT)>`, which is 1 for an exact sampler",
         f"{min(c['acceptance'] for c in chains):.2f} to {max(c['acceptance'] for c in chains):.2f}; "
         f"within {max(identity):.1f} standard errors of 1"),
        ("an ester that 300 K does not turn over: share of its other form, all started from one form, all from the "
         "other",
         " %, ".join(pair(100 * share, 100 * error, 1) for share, error in (z, e)) + " %"),
        ("`impulse`, a true call each 2 fs, no thermostat: drift of the energy, kJ/mol/ps; infrared peaks as plain MD "
         "at 0.5 fs has them, to 10 cm-1 or their errors",
         each(lambda entry: drift(entry["rows"]["impulse"]["drift"]), "impulse") + "; "
         + ", ".join(f"{name} {found['agree']} of {found['of'] + len(found['found_by_plain_md_alone'])}"
                     for name, found in read("spectra")["molecules"].items())),
    ]
    return "\n".join(["| GFN2-xTB, 300 K, two CPU cores | measured |", "|---|---|",
                      *(f"| {a} | {b} |" for a, b in rows)])


def read(name: str) -> dict:
    """What a benchmark has published."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def main():
    write_text_atomic(PICTURE, svg(read("exact_and_fast")))
    put(GUIDE, MARK, figures(read))
    print(figures(read))
    print(PICTURE)


if __name__ == "__main__":
    main()
