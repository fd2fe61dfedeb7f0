"""The tables of what benchmarks/dearest.py measured, as Markdown: benchmarks/tables.py puts them into its page."""

from __future__ import annotations

from guides import table


def shown(data: dict) -> str:
    """What benchmarks/dearest.py measured."""
    climbed = {name: row for name, row in data.items() if "rounds" in row}
    rows = [[name, row["method"], row["calls_to_acceptance"] if row["rounds"] else "", row["true_calls_training"],
             f"{row['acceptance']:.2f}" if row["judge"] == "chain" else "weights",
             row["true_calls"], f"{row['wanted_samples']} of the {row['torsion'] or 'energy'}",
             f"{row['calls_to_wanted']:.0f}", f"{row['cpu_s_to_wanted'] / 60:.0f}",
             "{:.3f} ± {:.3f}".format(*row["exp_minus_beta_dH"]) if row["judge"] == "chain" else ""]
            for name, row in climbed.items()]
    four = {name: row for name, row in data.items() if "sigmas_apart" in row}
    return ("### Dear methods, learned via GFN2-xTB (`--via`), and two that are not\n\n"
            + table(["", "method", "its calls until the acceptance expected is as promised", "its calls to learn",
                     "acceptance measured", "its calls to sample", "effective samples",
                     "its calls from the SMILES to these", "CPU minutes", "<exp(-ΔH/kT)>"], rows)
            + f"\n\n`python benchmarks/dearest.py {' '.join(climbed)}` repeats it."
            + _judged_twice({name: row for name, row in data.items() if "directions" in row})
            + _ways({name: row for name, row in data.items() if "ways" in row}) + _four_methods(four))


def _judged_twice(data: dict) -> str:
    """Energies by a chain and by weights, a molecule a row."""
    if not data:
        return ""
    rows = [[name, row["method"],
             *("{:.2f} ± {:.2f}".format(*row["energy_above_the_chains"][way]) for way in ("chain", "weights")),
             f"{row['p']:.2g} ({row['directions']} directions of {row['observables']} observables)"]
            for name, row in data.items()]
    return ("\n\n### The same network judged in two ways\n\nA chain of proposals that the true energy accepts or "
            "refuses, and samples of the network alone that the true energy weighs: mean energy, kJ/mol above the "
            "chain's, and p of the energy and the torsion's histogram together.\n\n"
            + table(["", "method", "energy, chain", "energy, weights", "p"], rows)
            + f"\n\n`python benchmarks/dearest.py {' '.join(data)}` repeats it.")


def _ways(data: dict) -> str:
    """What a sample takes by each use of a cheaper method."""
    if not data:
        return ""
    rows = [[name, way, f"{row['acceptance']:.2f}", row["true_calls_training"], f"{row['energy_samples']:.0f}",
             *(f"{row[key]:.2g}" for key in ("true_calls_per_sample", "cpu_s_per_sample")),
             f"{row['cpu_s_per_sample_of_dear_calls']:.0f}"]
            for name, section in data.items() for way, row in section["ways"].items()]
    return ("\n\n### What a cheap method can do for a dear one\n\nRuns of "
            "128 frames: what stands on few samples is rough.\n\n"
            + table(["", "way", "acceptance", "dear calls to learn", "samples of the energy", "dear calls a sample",
                     "CPU s a sample", "and if a dear call took a minute"], rows)
            + f"\n\n`python benchmarks/dearest.py {' '.join(data)}` repeats it.")


def _four_methods(data: dict) -> str:
    """Gauche and anti of ethanol, a method a row."""
    if not data:
        return ""
    rows = [[row["method"], f"{100 * row['gauche']:.1f} ± {100 * row['error']:.1f}",
             *(f"{100 * one['gauche']:.1f} ± {100 * one['error']:.1f}"
               for one in (row["starts"][start] for start in ("gauche", "anti"))),
             f"{row['sigmas_apart']:.1f}",
             ", ".join(f"{row['starts'][start]['r_hat']:.2f}" for start in ("gauche", "anti")),
             *(sum(one[key] for one in row["starts"].values()) for key in ("true_calls_training", "true_calls")),
             f"{sum(one['cpu_s'] for one in row['starts'].values()) / 60:.0f}"] for row in data.values()]
    return ("\n\n### Ethanol by method: gauche, both mirror images, at 300 K\n\nThe mean of two runs that share "
            "no seed, one begun in gauche alone and one in anti alone; nor do they share labels and network, but at "
            "CCSD(T), whose seven frames a chain are too few for R-hat to say much.\n\n"
            + table(["method", "gauche, %", "begun in gauche", "begun in anti", "standard errors apart",
                     "R-hat", "true calls to learn", "to sample", "CPU minutes"], rows)
            + f"\n\n`python benchmarks/dearest.py {' '.join(data)}` repeats it.")
