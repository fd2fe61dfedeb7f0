"""The 22 small molecules of data/qm_molecules.smi, GFN2-xTB: what k = 4, 8 and 1000 give, beside floor and plain MD.

    metropolis  k = 1000 at 0.5 fs, each molecule from a cold start (--learn)
    impulse     k = 4 and 8 at 0.25 fs, with the networks that those cold starts learned
    jump        k = 4 and 8 at 0.25 fs, one network trained on windows of all molecules

Structure is judged inside a thermostat, drift in NVE.  Controls: plain MD with the same true calls at 0.25 fs, plain
MD with the same calls over the same time (dt = k x 0.25 fs), and jump without its network.  What is there under
outputs/molecules is kept, so an interrupted run goes on; figures go to benchmarks/results/molecules.json.

    python benchmarks/molecules.py
    python benchmarks/molecules.py --molecules ethanol water
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from guides import put
from judging import judged
from kstep.analysis.measure.profile import characterise
from kstep.files import write_json_compact
from kstep.schemas import load_trajectory
from running import RESULTS, ROOT, machine, provenance, sh

RESULT = RESULTS / "molecules.json"
GUIDE, MARK = ROOT / "QM_WORKFLOW.md", "<!-- molecules -->"
WORK = Path("outputs/molecules")
SMILES = Path("data/qm_molecules.smi")
DT_FS, KS = 0.25, (4, 8)
REFERENCE_PS, TRAINING_PS = 4.0, 1.0  # per replica
REFERENCE_REPLICAS, TRAINING_REPLICAS = 4, 2
DYNAMICS_PS, REPLICAS = 1.0, 4
JUMP_STEPS = 12_000  # of training
STRUCTURE = (("bond_rmse_A", 4), ("angle_rmse_deg", 2))  # keys and decimals
HELD_TO = {4: {"speed_up": "3-4", "bond_rmse_A": 0.015, "angle_rmse_deg": 2.0, "drift": 0.03},
           8: {"speed_up": "6-8", "bond_rmse_A": 0.020, "angle_rmse_deg": 3.0, "drift": 0.05}}
LABELS = {"impulse": "impulse, k = {k}", "jump": "jump, k = {k}", "jump no network": "- jump without its network",
          "plain same calls": "- plain, 0.25 fs, as many calls",
          "plain same calls and time": "- plain, {dt:g} fs, as many calls and as long"}
SCHEMES = tuple(LABELS)
# lengths are drawn: at a fixed 500 fs a mode of formaldehyde comes back to where it was, and mixes no more
METROPOLIS = ("--learn", "--scheme", "metropolis", "--k-steps", 1000, "--dt-fs", 0.5, "--resume",
              "--replicas", 32, "--steps", 40, "--burn-in-steps", 10)
HYBRID, BASELINE = "src/06b_hybrid_integrate_qm.py", "src/01b_run_qm_baselines.py"


def names() -> list[str]:
    """The molecules of the list."""
    rows = [line.split() for line in (ROOT / SMILES).read_text().splitlines()]
    return [row[1] for row in rows if row and not row[0].startswith("#")]


def plain(folder: str, chosen: list[str], first_replica: int, replicas: int, length_ps: float, n_workers: int) -> None:
    """Plain trajectories of every molecule that has none in `folder`."""
    missing = [name for name in chosen if not trajectory(folder, name).exists()]
    if missing:
        settings = (f"dt_fs={DT_FS}", f"length_ps={length_ps}", "hot_length_ps=0", "equilibration_ps=0.5",
                    "redraw_interval_ps=0.25")
        sh(trajectory(folder, missing[-1]), BASELINE, "--smiles-file", SMILES, "--raw", WORK / "raw", "--out",
           WORK / folder,
           "--first-replica", first_replica, "--replicas", replicas, "--num-workers", n_workers, "--resume",
           *(word for name in missing for word in ("--molecule", name)),
           *(word for pair in settings for word in ("--set", pair)))


def trajectory(folder: str, name: str) -> Path:
    return ROOT / WORK / folder / name / "trajectory.npz"


def jump_network(chosen: list[str]) -> Path:
    """One EGNN trained on windows of 8 timesteps and fewer of every molecule."""
    md, out = WORK / "training", ROOT / WORK / "jump" / "best.pt"
    sh(ROOT / WORK / "dataset_k8.npz", "src/02_make_dataset.py", "--md-root", md, "--out-root", WORK, "--splits-dir",
       WORK / "splits", "--ks", 4, 8, "--split-by", "time", "--max-samples-per-mol", 2000)
    sh(out.with_name("training.json"), "src/04_train.py", "--dataset", WORK / "dataset_k8.npz", "--model-config",
       "configs/model.yaml", "--train-config", "configs/train.yaml", "--max-steps", JUMP_STEPS, "--splits",
       WORK / "splits/train.json", WORK / "splits/val.json", "--out-dir", WORK / "jump")
    return out


def runs(name: str, jump: Path) -> dict[str, Path]:
    """Every hybrid run and control of a molecule; label -> file."""
    folder, made = ROOT / WORK / "hybrid" / name, {}

    def run(label: str, *flags) -> Path:
        made[label] = folder / f"{label.replace(' ', '_').replace('=', '')}.npz"
        sh(made[label], HYBRID, "--molecule", WORK / "raw" / name, "--num-workers", 1, "--seed", 1, "--out",
           made[label], *flags)
        return made[label]

    learned = run("metropolis", *METROPOLIS)
    learned = learned.with_name(learned.name + ".learn") / "network.pt"
    start = ("--replicas", REPLICAS, "--initial-md", trajectory("training", name))
    for k in KS:
        steps = round(DYNAMICS_PS * 1e3 / (k * DT_FS))
        schemes = {"jump": ("jump", "--k-steps", k, "--checkpoint", jump),
                   "jump no network": ("jump", "--k-steps", k, "--checkpoint", jump, "--delta-scale", 0),
                   "impulse": ("impulse", "--k-steps", k, "--dt-fs", DT_FS, "--checkpoint", learned),
                   "plain same calls": ("plain", "--dt-fs", DT_FS),
                   "plain same calls and time": ("plain", "--dt-fs", k * DT_FS)}
        for scheme, flags in schemes.items():
            for kind, thermostat, burn_in in (("nvt", "langevin", steps // 5), ("nve", "none", 0)):
                run(f"{scheme} k={k} {kind}", "--scheme", *flags, "--thermostat", thermostat, "--steps", steps,
                    "--burn-in-steps", burn_in, *start)
    return made


def judge(name: str, files: dict[str, Path]) -> dict:
    """The figures of a molecule; a run that broke before production has none of structure."""
    reference = characterise(load_trajectory(trajectory("reference", name)))
    rows = {label: judged(reference, path) for label, path in files.items()}
    keep = ("scheme", "k_steps", "dt_fs", "true_calls", "true_calls_training", "proposals", "produced_ps",
            "wall_s_per_ps",
            "cpu_s_per_ps", "status", "drift", "bond_rmse_A", "angle_rmse_deg", "acceptance", "exp_minus_beta_dH",
            "refused_jumps", "plain_steps", "calls_saved")
    return {label: {key: row[key] for key in keep if key in row} for label, row in rows.items()}


def table(data: dict) -> str:
    """What QM_WORKFLOW.md shows: schemes and controls over all molecules, then molecule by molecule."""
    return over_all(data["molecules"]) + "\n\n" + each(data["molecules"])


def over_all(molecules: dict) -> str:
    """A row per scheme: its price, and how many molecules keep what such tools are held to."""
    lines = ["| | timesteps per true call | CPU time, plain / this | bond error, A (floor) | angle error, deg (floor) "
             "| NVE drift, kJ/mol/ps (95 %) | blown up in NVE |", "|---|---|---|---|---|---|---|"]
    for k in KS:
        asked = HELD_TO[k]
        lines.append(f"| **asked at k = {k}** | {asked['speed_up']} | {asked['speed_up']} | {asked['bond_rmse_A']} | "
                     f"{asked['angle_rmse_deg']} | {asked['drift']} | none |")
        for scheme in SCHEMES:
            rows = {name: {kind: row[f"{scheme} k={k} {kind}"] for kind in ("nvt", "nve")}
                    for name, row in molecules.items()}
            plain = {name: row[f"plain same calls k={k} nvt"] for name, row in molecules.items()}
            nvt = {name: row["nvt"] for name, row in rows.items()}
            lines.append(f"| {LABELS[scheme].format(k=k, dt=k * DT_FS)} | "
                         f"{_median(calls_per_step(row) for row in nvt.values()):.1f} | "
                         f"{_cheaper((plain[name], row) for name, row in nvt.items()):.1f} | "
                         + " | ".join(_structure(nvt.values(), key, digits, asked[key]) for key, digits in STRUCTURE)
                         + f" | {_drift([row['nve']['drift'] for row in rows.values()], asked['drift'])} | "
                         f"{sum(_blown(row['nve']) for row in rows.values())} |")
    mc = [row["metropolis"] for row in molecules.values()]
    steps = _median(row["acceptance"] * row["k_steps"] * row["dt_fs"] / DT_FS for row in mc)
    speed = _cheaper((row[f"plain same calls k={KS[0]} nvt"], row["metropolis"]) for row in molecules.values())
    lines.append(f"| metropolis, 1000 x 0.5 fs on average, accepted time | {steps:.0f} | {speed:.0f} | "
                 + " | ".join(_structure(mc, key, digits, HELD_TO[KS[0]][key]) for key, digits in STRUCTURE)
                 + " | exact; no velocities | - |")
    return "\n".join(lines)


def each(molecules: dict) -> str:
    """A row per molecule."""
    lines = ["| | metropolis: acceptance | <exp(-beta dH)> | calls to learn | bond error, A (floor) | impulse k = 4: "
             "drift | k = 8: drift | jump k = 4: drift |", "|---|---|---|---|---|---|---|---|"]
    for name, row in molecules.items():
        mc, identity = row["metropolis"], row["metropolis"]["exp_minus_beta_dH"]
        bond = mc["bond_rmse_A"]
        lines.append(f"| {name.replace('_', ' ')} | {mc['acceptance']:.3f} | {identity['mean']:.3f} +- "
                     f"{identity['standard_error']:.3f} | {mc['true_calls_training']} | {bond['value']:.4f} "
                     f"({bond['floor']:.4f}) | "
                     + " | ".join(_slope(row[label]) for label in ("impulse k=4 nve", "impulse k=8 nve",
                                                                   "jump k=4 nve"))
                     + " |")
    return "\n".join(lines)


def calls_per_step(row: dict) -> float:
    """Timesteps of the baseline per true call."""
    return row.get("calls_saved", row["dt_fs"] * row["k_steps"] / DT_FS)


def _median(values) -> float:
    return float(np.median(list(values)))


def _cheaper(pairs) -> float:
    """Median over pairs of a plain run and another: CPU seconds per ps of the one by those of the other."""
    prices = [(plain["cpu_s_per_ps"], other["cpu_s_per_ps"]) for plain, other in pairs]
    return _median(plain / other for plain, other in prices if plain and other)


def _blown(row: dict) -> bool:
    return row["status"] != "finished" or row["drift"]["blown_up_segments"] > 0


def _structure(rows, key: str, digits: int, asked: float) -> str:
    """Median error beside its median floor, and how many molecules stay below what is asked."""
    have = [row[key] for row in rows if key in row]
    if not have:
        return "broke"
    kept = sum(entry["value"] <= asked for entry in have)
    return (f"{_median(entry['value'] for entry in have):.{digits}f} "
            f"({_median(entry['floor'] for entry in have):.{digits}f}); {kept} of {len(rows)}")


def _drift(drifts: list[dict], asked: float) -> str:
    """Mean over the molecules whose energy stayed finite, its 95 % interval, and how many keep what is asked."""
    sound = np.array([d["drift_kJ_per_mol_ps"] for d in drifts if d and not d["blown_up_segments"]])
    if len(sound) < 2:
        return "-"
    kept = int((np.abs(sound) <= asked).sum())
    return f"{sound.mean():+.4f} +- {1.96 * sound.std(ddof=1) / len(sound) ** 0.5:.4f}; {kept} of {len(drifts)}"


def _slope(row: dict) -> str:
    drift = row["drift"]
    if _blown(row):
        return "blew up"
    return f"{drift['drift_kJ_per_mol_ps']:+.3f} +- {drift['half_width_95']:.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", nargs="+", choices=names(), default=names(),
                        help="all of them train the jump network")
    parser.add_argument("--jobs", type=int, default=2, help="molecules at a time, one core each")
    args = parser.parse_args()
    (ROOT / WORK).mkdir(parents=True, exist_ok=True)
    sh(ROOT / WORK / "raw" / names()[-1], "src/00_prep_mols.py", "--smiles", SMILES, "--out-dir", WORK / "raw")
    plain("training", names(), 0, TRAINING_REPLICAS, TRAINING_PS, args.jobs)
    jump = jump_network(names())
    plain("reference", args.molecules, 100, REFERENCE_REPLICAS, REFERENCE_PS, args.jobs)
    data = json.loads(RESULT.read_text()) if RESULT.exists() else {"molecules": {}}
    with ThreadPoolExecutor(args.jobs) as threads:
        for name, rows in zip(args.molecules, threads.map(lambda n: judge(n, runs(n, jump)), args.molecules)):
            data["molecules"][name] = rows
            data.update(machine=machine(), method="GFN2-xTB", jump_training_steps=JUMP_STEPS, **provenance())
            write_json_compact(RESULT, data)
            print(f"{name}: judged", flush=True)
    put(GUIDE, MARK, table(data))


if __name__ == "__main__":
    main()
