"""QM/MM measured: what `src/qmmm_example.py` does to ethanol in a droplet and to half of butane.

Plain QM/MM in NVE (drift), plain QM/MM in a thermostat (what it samples per QM call), metropolis with a network
learned in the same command, and the cheap potential's own dynamics, asked now and then what the truth is.  Runs in
outputs/benchmark/qmmm, writes benchmarks/results/qmmm.json and the table of QMMM_INTEGRATION.md; what is there
already is kept.

    python benchmarks/qmmm.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from guides import put
from kstep.analysis.measure.energy import energy_drift
from kstep.analysis.measure.samples import FEWEST_FOR_A_RATE
from kstep.analysis.measure.statistics import estimate_means
from kstep.files import write_json_compact
from kstep.schemas import load_trajectory
from kstep.units import PS_PER_FS
from pipeline import WORK
from running import RESULTS, ROOT, machine, provenance, sh

GUIDE, MARK = ROOT / "QMMM_INTEGRATION.md", "<!-- measured -->"
RESULT = RESULTS / "qmmm.json"
SYSTEMS = {"ethanol_in_20_waters": ("--smiles", "CCO", "--waters", 20),
           "half_of_butane": ("--smiles", "CCCC", "--waters", 0, "--qm-atoms", 0, 1, 4, 5, 6, 7, 8)}
RUNS = {"nve": ("--scheme", "plain", "--dt-fs", 0.5, "--replicas", 8, "--burn-in-steps", 200, "--steps", 1500),
        "metropolis": ("--learn-calls", 500, "--k-steps", 100, "--dt-fs", 1, "--replicas", 4, "--burn-in-steps", 20,
                       "--steps", 600),
        "plain": ("--scheme", "plain", "--thermostat", "langevin", "--dt-fs", 0.5, "--replicas", 4,
                  "--burn-in-steps", 500, "--steps", 12000),
        "cheap": ("--scheme", "checked", "--thermostat", "langevin", "--dt-fs", 0.5, "--k-steps", 20, "--replicas", 4,
                  "--burn-in-steps", 100, "--steps", 1000)}


def effective_samples(run) -> dict:
    """The true potential energy over production: mean with error, effective samples, and these per 1000 QM calls."""
    frames = run.frames_of("train")
    series = [run.Epot[frames[run.replica[frames] == r]][:, None] for r in np.unique(run.replica)]
    spacing_ps = run.metadata["jump_fs"] * PS_PER_FS
    estimate = estimate_means(series, spacing_ps)
    samples = float(estimate.n_eff[0])
    return {"frames": len(frames), "length_ps": len(frames) * spacing_ps, "effective_energy_samples": samples,
            "per_1000_qm_calls": 1000.0 * samples / len(frames), "mean_energy_kJ_per_mol": float(estimate.mean[0]),
            "mean_energy_error": float(estimate.standard_error[0]),
            "energy_spread_kJ_per_mol": float(np.sqrt(estimate.variance[0]))}


def together(entry: dict) -> dict:
    """What metropolis and plain say beside each other.

    Plain dynamics that holds fewer than 50 samples has no rate; it is then taken from the cheap potential's own
    dynamics, under the same thermostat, which `checked` certifies with QM calls.
    """
    plain, fast = (entry[name] for name in ("plain", "metropolis"))
    source = "plain" if plain["effective_energy_samples"] >= FEWEST_FOR_A_RATE else "cheap"
    samples, length_ps = (entry[source][key] for key in ("effective_energy_samples", "length_ps"))
    enough = min(samples, fast["effective_energy_samples"]) >= FEWEST_FOR_A_RATE
    rate = samples / length_ps * plain["dt_fs"]
    error = float(np.sqrt(2.0 / samples + 2.0 / fast["effective_energy_samples"]))
    return {"simulated_time": fast["accepted_fs_per_qm_call"] / plain["dt_fs"], "plain_rate_from": source,
            "plain_per_1000_qm_calls": rate if samples >= FEWEST_FOR_A_RATE else None,
            "effective_energy_samples": fast["per_1000_qm_calls"] / rate if enough else None,
            "effective_energy_samples_error": fast["per_1000_qm_calls"] / rate * error if enough else None,
            "mean_energy_metropolis_minus_plain": fast["mean_energy_kJ_per_mol"] - plain["mean_energy_kJ_per_mol"],
            "mean_energy_difference_error": float(np.hypot(fast["mean_energy_error"], plain["mean_energy_error"]))}


FEW = f"fewer than {FEWEST_FOR_A_RATE} samples"


def _rates(entry: dict) -> str:
    rate = entry["together"]["plain_per_1000_qm_calls"]
    return f"{entry['metropolis']['per_1000_qm_calls']:.0f} ({FEW if rate is None else f'{rate:.1f}'})"


def _speed_up(entry: dict) -> str:
    found = entry["together"]
    value, error = found["effective_energy_samples"], found["effective_energy_samples_error"]
    return FEW if value is None else f"{value:.0f} +- {error:.0f}x"


def _samples(name: str):
    def text(entry: dict) -> str:
        return f"{entry[name]['effective_energy_samples']:.0f} in {entry[name]['length_ps']:.0f} ps"
    return text


def figures(name: str, path: Path) -> dict:
    """What one run shows."""
    run = load_trajectory(path)
    meta = run.metadata
    found = {"atoms": int(run.pos.shape[1]), "qm_atoms": len(meta["qm_atoms"]), "true_calls": meta["true_calls"],
             "cpu_s": meta["cpu_s"], "cpu_ms_per_step": 1e3 * meta["cpu_s"] / meta["true_calls"],
             "dt_fs": meta["dt_fs"], "k_steps": meta["k_steps"], "git_commit": meta["git_commit"]}
    if name == "nve":
        return {**found, "length_ps": float(np.ptp(run.time_ps[run.frames_of("drift")])), **energy_drift(run)}
    found.update(effective_samples(run))
    if name == "cheap":
        found["certificate"] = meta["certificate"]
    if name == "metropolis":
        found.update({key: meta[key] for key in ("acceptance", "mean_exp_minus_beta_dH", "mean_exp_minus_beta_dH_error",
                                                 "true_calls_training", "cpu_s_training")})
        found["accepted_fs_per_qm_call"] = meta["jump_fs"] * meta["acceptance"]
    return found


def table(data: dict) -> str:
    """The table of QMMM_INTEGRATION.md."""
    systems = [name for name in SYSTEMS if name in data]
    rows = [("atoms (QM)", lambda d: f"{d['nve']['atoms']} ({d['nve']['qm_atoms']})"),
            ("plain, NVE at 0.5 fs: drift of the total energy, kJ/mol/ps",
             lambda d: f"{d['nve']['drift_kJ_per_mol_ps']:+.3f} +- {d['nve']['half_width_95']:.2g}"),
            ("- over windows x ps", lambda d: f"{d['nve']['windows']} x {d['nve']['window_ps']:.2g}"),
            ("plain: CPU ms per QM/MM step", lambda d: f"{d['nve']['cpu_ms_per_step']:.1f}"),
            ("metropolis, k x timestep", lambda d: f"{d['metropolis']['k_steps']} x {d['metropolis']['dt_fs']:g} fs"),
            ("- acceptance", lambda d: f"{d['metropolis']['acceptance']:.3f}"),
            ("- <exp(-beta dH)>", lambda d: f"{d['metropolis']['mean_exp_minus_beta_dH']:.3f} +- "
             f"{d['metropolis']['mean_exp_minus_beta_dH_error']:.2g}"),
            ("- QM calls of the run / of learning",
             lambda d: f"{d['metropolis']['true_calls']} / {d['metropolis']['true_calls_training']}"),
            ("- CPU s of the run / of learning",
             lambda d: f"{d['metropolis']['cpu_s']:.0f} / {d['metropolis']['cpu_s_training']:.0f}"),
            ("- accepted fs per QM call, over plain at 0.5 fs",
             lambda d: f"{d['together']['simulated_time']:.0f}x"),
            ("- effective energy samples",
             lambda d: f"{d['metropolis']['effective_energy_samples']:.0f} of {d['metropolis']['frames']} QM calls"),
            ("the same of plain, NVT at 0.5 fs", _samples("plain")),
            ("the same of the cheap potential's dynamics, NVT at 0.5 fs", _samples("cheap")),
            ("- its certificate: spread of E_true - E_cheap, kJ/mol; force error, kJ/mol/A",
             lambda d: f"{d['cheap']['certificate']['spread_kJ_per_mol']:.2g}; "
             f"{d['cheap']['certificate']['force_rmse_kJ_per_mol_A']:.2g}"),
            ("effective energy samples per 1000 QM calls, metropolis (plain)", _rates),
            ("- their quotient", _speed_up),
            ("- mean potential energy, metropolis less plain, kJ/mol",
             lambda d: f"{d['together']['mean_energy_metropolis_minus_plain']:+.1f} +- "
             f"{d['together']['mean_energy_difference_error']:.1f}")]
    lines = ["| | " + " | ".join(name.replace("_", " ") for name in systems) + " |", "|---|" + "---|" * len(systems)]
    lines += ["| " + " | ".join([label, *(value(data[s]) for s in systems)]) + " |" for label, value in rows]
    return "\n".join(lines)


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for system, flags in SYSTEMS.items():
        data = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        data["machine"] = machine()
        for name, settings in RUNS.items():
            out = WORK / "qmmm" / system / f"{name}.npz"
            if name == "cheap":
                settings += ("--checkpoint", WORK / "qmmm" / system / "metropolis.npz.learn" / "network.pt")
            sh(out, "src/qmmm_example.py", *flags, *settings, "--out", out)
            data.setdefault(system, {})[name] = figures(name, out)
        data[system]["together"] = together(data[system])
        data["git_commit"] = provenance()["git_commit"]
        write_json_compact(RESULT, data)
        put(GUIDE, MARK, table(data))
        print(json.dumps({system: data[system]}, indent=1), flush=True)


if __name__ == "__main__":
    main()
