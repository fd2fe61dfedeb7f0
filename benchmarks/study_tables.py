"""The tables of studies of molecules, as Markdown: ensembles beside CREST's, growth with size, experiments, spectra.

benchmarks/tables.py puts them into its page.
"""

from __future__ import annotations

from guides import table

LOWER_KJ = 0.5  # per mol, by which a conformer is lower than another's lowest
LEAST_IN_EXCESS = 0.01  # measured population of a conformer beyond CREST's list that has a row of its own


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
        if row.get("apart") is not None:  # records of before have none
            far = row["apart"]
            well = max(range(len(far["wells_deg"])), key=lambda w: abs(far["measured"][w] - far["static"][w]))
            notes.append(f"{name}: the two differ most in torsion {far['torsion']}, which lies near "
                         f"{far['wells_deg'][well]:.0f} degrees in {far['measured'][well]:.1%} of what is measured and "
                         f"in {far['static'][well]:.1%} of CREST's list.")
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
            + "\n\nWhat limits it: the network's error grows with the molecule, so that fewer proposals are taken, or "
            "frames weigh less; and labels go with the torsions whose sides have to be asked for more than with atoms "
            "(alanine dipeptide beside aspirin).\n\n`python benchmarks/scaling.py` draws it from the records of the "
            "other benchmarks.")


def experiment(data: dict) -> str:
    """What a method gives beside experiment, of benchmarks/experiment.py."""
    digits = {"share": 3}
    rows = [[name.replace("_", " "), entry["method"], f["figure"], number(f, "method", "method_error", digits),
             number(f, "experiment", "experiment_error", digits), f["unit"], f["source"]]
            for name, entry in data["molecules"].items() for f in entry["figures"]]
    calls = "; ".join(f"{name.replace('_', ' ')}: {entry['true_calls_training']:,} labels and "
                      f"{sum(entry['true_calls']):,} true calls" for name, entry in data["molecules"].items())
    return ("### Conformers beside experiment\n\n"
            "Sampling is exact within the errors, so that a difference is the method's own and that of classical "
            "nuclei.\n\n" + table(["", "method", "figure", "method gives", "experiment", "unit", "from"], rows)
            + f"\n\n{calls}.\n\n`python benchmarks/experiment.py` repeats those of GFN2-xTB, `python "
            "benchmarks/experiment.py --molecules n_methylformamide --qm-config configs/qm_pyscf.yaml "
            "--via configs/qm.yaml --effective-samples 100` that of PBE.")


def spectra(data: dict) -> str:
    """Peaks of impulse beside plain MD's, of benchmarks/spectra.py."""
    rows, within = [], []
    for name, found in data["molecules"].items():
        for peak in found["peaks"]:
            shift, error = peak["shift_cm"], peak["shift_error_cm"]
            within += [] if shift is None else [abs(shift) / error]
            rows.append([name, f"{peak['position_cm']:.0f} ± {peak['position_error_cm']:.0f}",
                         f"{peak['intensity']:.0f} ± {peak['intensity_error']:.0f}",
                         "none near" if shift is None else f"{peak['reference_cm']:.0f}",
                         "" if shift is None else f"{shift:+.0f} ± {error:.0f}", "yes" if peak["agrees"] else "no"])
    broke = "".join(f" {name}: the run {found['status']}." for name, found in data["molecules"].items()
                    if found["status"] != "finished")
    warm = "; ".join(f"{name}: {found['true_calls']:,} calls against {found['plain_true_calls']:,}, "
                     f"{found['temperature_K']:.0f} K against {found['plain_temperature_K']:.0f} K"
                     for name, found in data["molecules"].items())
    return (f"### Infrared spectra: `impulse`, a call each {data['dt_fs'] * data['k_steps']:g} fs, beside plain MD at "
            f"{data['dt_fs']:g} fs\n\n{data['ps']:g} ps of each, in NVE, from the same frames of an exact run with the "
            "same velocities. A peak agrees within 10 cm-1 or one standard error of the difference.\n\n"
            + table(["", "peak, cm-1", "area, km/mol", "plain MD, cm-1", "shift, cm-1", "agrees"], rows)
            + f"\n\nOf {len(within)} shared peaks {sum(z <= 1.0 for z in within)} lie within one error of each other, "
            f"{sum(z <= 2.0 for z in within)} within two. {warm}.{broke}\n\n`python benchmarks/spectra.py` repeats it.")


def number(figure: dict, key: str, error: str, digits: dict[str, int]) -> str:
    """A figure of a record with its standard error, if it has one."""
    places = digits.get(figure["unit"], 0)
    value = f"{figure[key]:.{places}f}"
    return value if figure[error] is None else f"{value} +- {figure[error]:.{places}f}"
