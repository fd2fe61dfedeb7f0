"""DFT for real: methanol, PBE/def2-SVP, an exact ensemble from a cold start, against plain MD at 1 fs.

06b learns from nothing and samples; a short plain run (01c) says what one of its calls costs here; the network's own
dynamics says how fast plain MD forgets its energy, since plain MD itself would take days.  Compared is what 100
effective samples of the potential energy cost, labels, training and burn-in included.  Writes
benchmarks/results/dft.json.

    python benchmarks/dft.py
"""

from __future__ import annotations

import json
from pathlib import Path

from guides import put
from kstep.analysis.measure.profile import characterise
from kstep.analysis.measure.samples import effective_samples, per, ratio, series_of
from kstep.files import write_json_compact
from kstep.forces import load_qm_config, physics_spec
from kstep.molecules.molecule import Molecule
from kstep.schemas import load_trajectory
from kstep.study.benchmark import network_reference as network_dynamics
from kstep.units import FS_PER_PS
from running import RESULTS, ROOT, machine, provenance, sh

RESULT = RESULTS / "dft.json"
GUIDE, MARK = ROOT / "QM_WORKFLOW.md", "<!-- dft -->"
NAME, SMILES = "methanol", "CO"
# the coarser grid is twice as fast; rotating the molecule changes its energy by 0.01 kT
CHANGED = {"grid_level": "1", "conv_tol": "1.0e-8"}
REPLICAS, STEPS, BURN_IN, WORKERS = 16, 40, 4, 2
PLAIN_PS, NETWORK_PS = 0.05, 200.0
WANTED = 100


def config_file(work: Path) -> Path:
    """configs/qm_pyscf.yaml with the keys of CHANGED."""
    lines = (ROOT / "configs/qm_pyscf.yaml").read_text().splitlines()
    lines = [f"{key}: {CHANGED[key]}" if (key := line.split(":")[0]) in CHANGED else line for line in lines]
    path = work / "qm_pyscf.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def run(work: Path) -> dict:
    """The three runs, each kept if it is there; their files by name."""
    config, smiles = config_file(work), work / f"{NAME}.smi"
    smiles.write_text(f"{SMILES} {NAME}\n")
    files = {"config": config, "molecule": work / "raw" / NAME, "hybrid": work / f"{NAME}.npz",
             "plain": work / "plain" / NAME / "trajectory.npz", "network": work / "network_dynamics.npz"}
    sh(files["molecule"], "src/00_prep_mols.py", "--smiles", smiles, "--out-dir", work / "raw")
    sh(files["hybrid"], "src/06b_hybrid_integrate_qm.py", "--molecule", files["molecule"], "--qm-config", config,
       "--learn", "--scheme", "metropolis", "--replicas", REPLICAS, "--steps", STEPS, "--burn-in-steps", BURN_IN,
       "--num-workers", WORKERS, "--resume", "--out", files["hybrid"])
    sh(files["plain"], "src/01c_run_pyscf_baselines.py", "--smiles-file", smiles, "--raw", work / "raw", "--config",
       config, "--out", work / "plain", "--replicas", 2, "--num-workers", WORKERS, "--resume",
       *(word for pair in ("dt_fs=1", f"length_ps={PLAIN_PS}", "equilibration_ps=0.02") for word in ("--set", pair)))
    if not files["network"].exists():
        molecule, settings = Molecule.load(files["molecule"]), load_qm_config(config)
        network_dynamics.run(files["network"], molecule, physics_spec(molecule, settings, warm_start=False),
                             files["hybrid"].with_name(files["hybrid"].name + ".learn") / "network.pt",
                             network_dynamics.last_frames(files["hybrid"]), method=settings.method,
                             temperature_K=settings.temperature_K, length_ps=NETWORK_PS,
                             redraw_ps=settings.redraw_interval_ps, seed=0, n_workers=WORKERS)
    return files


def judge(files: dict) -> dict:
    """What 100 effective samples of the energy cost either way."""
    hybrid, plain = load_trajectory(files["hybrid"]), load_trajectory(files["plain"]).metadata
    done = hybrid.metadata
    profile = characterise(hybrid)
    found = effective_samples(series_of(profile), [None] * len(profile.coordinates.labels["torsions"]))["energy"]
    series, network = network_dynamics.load(files["network"])
    slow = effective_samples(series, [None] * len(series.labels))["energy"]
    calls = done["true_calls"] - done["true_calls_burn_in"]
    ours = {"acceptance": done["acceptance"], "mean_length_fs": done["jump_fs"], "true_calls": calls,
            "samples": found["samples"], "samples_error": found["standard_error"],
            "training_calls": done["true_calls_training"], "burn_in_calls": done["true_calls_burn_in"],
            "training_cpu_s": done["cpu_s_training"], "burn_in_cpu_s": done["cpu_burn_in_s"],
            "cpu_s_per_call": done["cpu_production_s"] / calls,
            "exp_minus_beta_dH": [done["mean_exp_minus_beta_dH"], done["mean_exp_minus_beta_dH_error"]]}
    theirs = {"cpu_s_per_call": plain["cpu_s"] / plain["true_calls"], "timed_calls": plain["true_calls"],
              "network_ps": series.length_ps, "certificate": network["certificate"], "samples": slow["samples"]}
    per_call, plain_per_call = per(found, calls), per(slow, series.length_ps * FS_PER_PS)
    out = {"metropolis": ours, "plain": theirs, "wanted": WANTED}
    if per_call is None or plain_per_call is None:
        return out
    total, plain_total = WANTED / per_call["value"], WANTED / plain_per_call["value"]
    error, plain_error = (t * p["error"] / p["value"] for t, p in ((total, per_call), (plain_total, plain_per_call)))
    before_calls = ours["training_calls"] + ours["burn_in_calls"]
    before_s = ours["training_cpu_s"] + ours["burn_in_cpu_s"]
    for name, unit, start, price, plain_price in (("calls", "", before_calls, 1.0, 1.0), (
            "cpu", "_s", before_s, ours["cpu_s_per_call"], theirs["cpu_s_per_call"])):
        mine = {"value": start + total * price, "error": error * price}
        other = {"value": plain_total * plain_price, "error": plain_error * plain_price}
        out[f"total_{name}{unit}"] = {"metropolis": mine, "plain": other, "ratio": ratio(other, mine)}
    return out


def table(data: dict) -> str:
    """The table of QM_WORKFLOW.md."""
    ours, plain = data["metropolis"], data["plain"]
    calls, cpu = data["total_calls"], data["total_cpu_s"]

    def beside(entry, digits=0):
        return f"{entry['value']:,.{digits}f} +- {entry['error']:,.{digits}f}"

    rows = [
        ("true calls: learning / burn-in", f"{ours['training_calls']} / {ours['burn_in_calls']}", "-"),
        ("acceptance; <exp(-beta dH)>", f"{ours['acceptance']:.3f}; {ours['exp_minus_beta_dH'][0]:.3f} +- "
         f"{ours['exp_minus_beta_dH'][1]:.3f}", "-"),
        ("effective energy samples, of true calls or timesteps", f"{ours['samples']:.0f} of {ours['true_calls']}",
         f"{plain['samples']:.0f} of {plain['network_ps'] * FS_PER_PS:,.0f}"),
        ("CPU s per true call", f"{ours['cpu_s_per_call']:.2f}", f"{plain['cpu_s_per_call']:.2f}"),
        (f"true calls to {data['wanted']} samples, all included", beside(calls["metropolis"]), beside(calls["plain"])),
        ("CPU s of the same", beside(cpu["metropolis"]), beside(cpu["plain"])),
        ("gain in true calls; in CPU time", f"{calls['ratio']['value']:.0f} +- {calls['ratio']['error']:.0f}x; "
         f"{cpu['ratio']['value']:.0f} +- {cpu['ratio']['error']:.0f}x", "1"),
    ]
    certificate = plain["certificate"]
    lines = ["| | metropolis, from a cold start | plain MD, 1 fs |", "|---|---|---|",
             *(f"| {label} | {mine} | {other} |" for label, mine, other in rows)]
    return "\n".join(lines) + (
        f"\n\nThe timesteps of plain MD are the network's own dynamics, {plain['network_ps']:.0f} ps over {REPLICAS} "
        f"replicas in all, certified by a spread of E_true - E_ML of {certificate['spread_kJ_per_mol']:.2g} kJ/mol "
        f"and a force error of {certificate['force_rmse_kJ_per_mol_A']:.2g} kJ/mol/A; the price of its call is that "
        f"of {plain['timed_calls']} steps of plain MD run here.")


def main():
    work = ROOT / "outputs/dft"
    work.mkdir(parents=True, exist_ok=True)
    files = run(work)
    settings = load_qm_config(files["config"])
    result = {"molecule": NAME, "method": settings.method, "machine": machine(), **provenance(),
              "config": settings.model_dump(), **judge(files)}
    write_json_compact(RESULT, result)
    put(GUIDE, MARK, table(result))
    print(json.dumps({key: result[key] for key in result if key not in ("machine", "config", "versions")}, indent=1))


if __name__ == "__main__":
    main()
