"""The bars of the pipeline, measured: every figure of the first tables of docs/RESULTS.md comes from here.

Runs the numbered scripts as a user would, in outputs/benchmark, then judges their files with
kstep.analysis and merges the figures into benchmarks/results/pipeline.json.  What is there already is
kept, so an interrupted benchmark continues; delete outputs/benchmark to measure again.

    python benchmarks/pipeline.py --sections qm-metropolis qm-jump --molecules ethanol aspirin
    python benchmarks/pipeline.py --sections mm
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path

import numpy as np

from judging import judged
from kstep.analysis.measure.profile import characterise
from kstep.files import write_json_compact
from kstep.schemas import load_dataset, load_trajectory
from kstep.units import PS_PER_FS
from running import RESULTS, ROOT, machine, provenance, sh

RESULT = RESULTS / "pipeline.json"
WORK = ROOT / "outputs" / "benchmark"
SMILES = {"ethanol": "CCO", "aspirin": "CC(=O)Oc1ccccc1C(=O)O"}
QM_REFERENCE_PS = {"ethanol": 40, "aspirin": 8}  # per replica
QM_TRAINING_PS = {"ethanol": 15, "aspirin": 4}  # per replica, at 300 K and again hot
QM_JUMP_TRAINING_PS = {"ethanol": 8, "aspirin": 2.5}
QM_NVE_STEPS = {"ethanol": 8000, "aspirin": 4000}  # baseline timesteps of 0.25 fs
SEEDS = (0, 1, 2)
REPLICAS = 64
REFERENCE_REPLICAS = 6


def store(section: str, key: str, figures: dict) -> None:
    """Merge one row into the result file."""
    data = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    data.setdefault("machine", machine())
    data.setdefault(section, {})[key] = {**figures, **{"git_commit": provenance()["git_commit"]}}
    write_json_compact(RESULT, data)
    print(json.dumps({key: figures}, indent=1), flush=True)


def prepare(name: str) -> Path:
    work = WORK / name
    work.mkdir(parents=True, exist_ok=True)
    smiles_file = work / f"{name}.smi"
    smiles_file.write_text(f"{SMILES[name]} {name}\n")
    sh(work / "raw" / name / "molecule.npz", "src/00_prep_mols.py", "--smiles", smiles_file, "--out-dir", work / "raw")
    return work


def qm_baseline(name: str, folder: str, *settings, first_replica: int, replicas: int) -> Path:
    """One 01b run; settings are key=value pairs over configs/qm.yaml."""
    work = prepare(name)
    out = work / folder / name / "trajectory.npz"
    pairs = [word for setting in settings for word in ("--set", setting)]
    sh(out, "src/01b_run_qm_baselines.py", "--smiles-file", work / f"{name}.smi", "--raw", work / "raw",
       "--out", work / folder, "--first-replica", first_replica, "--replicas", replicas, "--resume", *pairs)
    return out


def qm_reference(name: str):
    path = qm_baseline(name, "reference", f"length_ps={QM_REFERENCE_PS[name]}", "hot_length_ps=0",
                       "equilibration_ps=2", "save_interval_steps=4", first_replica=100, replicas=REFERENCE_REPLICAS)
    return characterise(load_trajectory(path))


def qm_training(name: str) -> Path:
    length = QM_TRAINING_PS[name]
    return qm_baseline(name, "training", f"length_ps={length}", f"hot_length_ps={length}", first_replica=0, replicas=4)


def qm_jump_training(name: str) -> Path:
    return qm_baseline(name, "training_025", f"length_ps={QM_JUMP_TRAINING_PS[name]}", "hot_length_ps=0", "dt_fs=0.25",
                       "equilibration_ps=0.5", first_replica=50, replicas=4)


def train(work: Path, k: int, model: str, folder: str, md: str) -> Path:
    """02 (all of 4, 8, 12 at once) and 04; model is 'energy' (pair_mlp) or 'jump' (egnn)."""
    configs = {"energy": ("configs/model_pair_mlp.yaml", "configs/train_pair_mlp.yaml", 40_000),
               "jump": ("configs/model.yaml", "configs/train.yaml", 5_000)}
    model_config, train_config, max_steps = configs[model]
    sh(work / md / f"dataset_k{k}.npz", "src/02_make_dataset.py", "--md-root", work / md, "--out-root", work / md,
       "--splits-dir", work / md / "splits", "--ks", 4, 8, 12, "--max-samples-per-mol", 20000)
    sh(work / folder / "training.json", "src/04_train.py", "--dataset", work / md / f"dataset_k{k}.npz",
       "--model-config", model_config, "--train-config", train_config, "--max-steps", max_steps,
       "--splits", work / md / "splits/train.json", work / md / "splits/val.json", "--out-dir", work / folder)
    return work / folder / "best.pt"


def hybrid(name: str, script: str, out: Path, scheme: str, *flags) -> Path:
    work = WORK / name
    sh(out, script, "--molecule", work / "raw" / name, "--scheme", scheme, "--out", out, *flags)
    return out


def median(values):
    return statistics.median(values)


def qm_metropolis(name: str) -> None:
    """k = 1000 at 0.5 fs, real masses, frozen network, three seeds; plain at 1 fs and 0.5 fs beside each."""
    work = prepare(name)
    qm_training(name)
    checkpoint = train(work, 8, "energy", "energy", "training")
    reference = qm_reference(name)
    rows, fast, same = [], [], []
    script = "src/06b_hybrid_integrate_qm.py"
    common = ("--replicas", REPLICAS, "--steps", 50)
    start = ("--initial-md", work / "training" / name / "trajectory.npz")
    for seed in SEEDS:
        rows.append(judged(reference, hybrid(
            name, script, work / f"hybrid/metropolis_{seed}.npz", "metropolis", "--checkpoint", checkpoint,
            "--k-steps", 1000, "--dt-fs", 0.5, "--seed", seed, "--burn-in-steps", 20, "--set", "length_law=fixed",
            *common)))
        same.append(judged(reference, hybrid(name, script, work / f"hybrid/plain_{seed}.npz", "plain",
                                             "--dt-fs", 0.5, "--seed", seed, "--burn-in-steps", 5, *common, *start)))
        fast.append(judged(reference, hybrid(name, script, work / f"hybrid/plain_1fs_{seed}.npz", "plain",
                                             "--dt-fs", 1.0, "--seed", seed, "--burn-in-steps", 5, *common, *start)))
    # short plain runs from given frames owe their samples to those frames; the long reference does not
    production = reference.trajectory.frames_of("train")
    steps = len(production) * reference.trajectory.metadata["config"]["save_interval_steps"]
    store("qm_metropolis", name, {
        "plain_reference_energy_per_1000_calls": float(reference.potential.n_eff[0]) / steps * 1e3,
        "acceptance_median": median([r["acceptance"] for r in rows]),
        "wall_ratio_median": median([p["wall_s_per_ps"] / r["wall_s_per_ps"] for p, r in zip(fast, rows)]),
        "bond_rmse_A_median": median([r["bond_rmse_A"]["value"] for r in rows]),
        "bond_ratio_to_floor_median": median([r["bond_rmse_A"]["ratio"] for r in rows]),
        "angle_rmse_deg_median": median([r["angle_rmse_deg"]["value"] for r in rows]),
        "angle_ratio_to_floor_median": median([r["angle_rmse_deg"]["ratio"] for r in rows]),
        "seeds": rows, "plain_same_calls": same, "plain_1fs": fast})


def one_step_errors(checkpoint: Path, dataset: Path, test_split: Path) -> dict:
    """RMS position error over atoms of the jump and of one velocity-Verlet step of the same length."""
    from kstep.models.network import Network
    from kstep.training.splits import select

    arrays, metadata = load_dataset(dataset)
    k = metadata["k_steps"]
    chosen = select(arrays, metadata, json.loads(test_split.read_text()), str(test_split))
    chosen = chosen[arrays["k_steps"][chosen] == k][:2000]
    n_atoms = int(arrays["mol_ptr"][1])
    masses, bonds = arrays["masses"][:n_atoms], arrays["bonds"]
    network = Network.load(checkpoint, arrays["atom_types"][:n_atoms], masses, bonds)
    x, v, f, x_k = (arrays[key].reshape(-1, n_atoms, 3)[chosen] for key in ("x_t", "v_t", "f_t", "x_tk"))
    tau = k * float(arrays["dt_fs"]) * PS_PER_FS
    jump = np.concatenate([network.jump(x[i:i + 250], v[i:i + 250], f[i:i + 250], k)[0]
                           for i in range(0, len(x), 250)])
    verlet = x + tau * v + 0.5 * tau**2 * f / masses[:, None]

    def rms_A(error):
        return float(np.sqrt((error**2).sum(-1).mean()) * 10)

    return {"windows": len(chosen), "tau_fs": tau / PS_PER_FS, "jump_rms_A": rms_A(jump - x_k),
            "verlet_rms_A": rms_A(verlet - x_k), "displacement_rms_A": rms_A(x - x_k),
            "verlet_over_jump": rms_A(verlet - x_k) / rms_A(jump - x_k)}


def qm_jump(name: str) -> None:
    """k = 4 and 8 at 0.25 fs: one-step error on the held-out split, and NVE without any rescale."""
    work = prepare(name)
    qm_jump_training(name)
    reference = qm_reference(name)
    script = "src/06b_hybrid_integrate_qm.py"
    for k in (4, 8):
        checkpoint = train(work, k, "jump", f"jump_k{k}", "training_025")
        row = {"one_step": one_step_errors(checkpoint, work / f"training_025/dataset_k{k}.npz",
                                           work / "training_025/splits/test.json")}
        common = ("--replicas", 8, "--burn-in-steps", 0, "--thermostat", "none",
                  "--initial-md", work / "training_025" / name / "trajectory.npz")
        steps = QM_NVE_STEPS[name] // k
        row["nve"] = judged(reference, hybrid(name, script, work / f"hybrid/jump_nve_k{k}.npz", "jump",
                                              "--checkpoint", checkpoint, "--k-steps", k, "--steps", steps, *common))
        row["no_network"] = judged(reference, hybrid(name, script, work / f"hybrid/jump_nve_k{k}_none.npz", "jump",
                                                     "--checkpoint", checkpoint, "--k-steps", k, "--delta-scale", 0,
                                                     "--steps", steps, *common))
        row["plain_same_calls"] = judged(reference, hybrid(name, script, work / f"hybrid/plain_nve_k{k}.npz", "plain",
                                                           "--dt-fs", 0.25, "--steps", steps, *common))
        row["plain_same_calls_and_time"] = judged(reference, hybrid(
            name, script, work / f"hybrid/plain_nve_k{k}_long.npz", "plain", "--dt-fs", 0.25 * k, "--steps", steps,
            *common))
        store("qm_jump", f"{name} k={k}", row)


def qm_data(name: str) -> None:
    """The true calls alone: reference and training data, for a run overnight."""
    for make in (qm_training, qm_jump_training, qm_reference):
        make(name)


def mm(name: str = "aspirin") -> None:
    """MMFF94 at 1 fs, k = 4, 8, 12: metropolis, and jump inside a Langevin thermostat."""
    work = prepare(name)
    raw, script = work / "raw" / name, "src/06_hybrid_integrate.py"
    reference_file = work / "mm_reference" / name / "trajectory.npz"
    sh(reference_file, "src/01_run_md_baselines.py", "--molecule", raw, "--out", work / "mm_reference",
       "--first-replica", 100, "--replicas", 8, "--no-store-forces", "--set", "length_ps=400", "--set",
       "hot_length_ps=0", "--set", "save_interval_steps=20", "--set", "dt_fs=0.5")
    training = work / "mm_training" / name / "trajectory.npz"
    sh(training, "src/01_run_md_baselines.py", "--molecule", raw, "--out", work / "mm_training",
       "--set", "length_ps=25", "--set", "hot_length_ps=10")
    reference = characterise(load_trajectory(reference_file))
    energy = train(work, 8, "energy", "mm_energy", "mm_training")
    # short moves cannot equilibrate conformers; long ones of the same exact sampler can, for every run below
    equilibrated = hybrid(name, script, work / "hybrid_mm_start/metropolis_k1000.npz", "metropolis", "--checkpoint",
                          energy,
                          "--k-steps", 1000, "--dt-fs", 1.0, "--set", "length_law=fixed", "--replicas", REPLICAS,
                          "--steps", 64, "--burn-in-steps", 256,
                          "--num-workers", os.cpu_count())
    start = ("--initial-md", equilibrated)
    store("mm_native", name, {"us_per_step": native_us_per_step(raw)})
    for k in (4, 8, 12):
        jump = train(work, k, "jump", f"mm_jump_k{k}", "mm_training")
        row = {"one_step": one_step_errors(jump, work / f"mm_training/dataset_k{k}.npz",
                                           work / "mm_training/splits/test.json")}
        # soft modes creep where momenta are lost after k fs, so many starts count for more than long chains
        exact = ("--replicas", 4 * REPLICAS, "--steps", 800, "--burn-in-steps", 100, "--set", "save_interval_steps=4",
                 "--set", "length_law=fixed", *start)
        fast = ("--replicas", REPLICAS, "--steps", 600, "--burn-in-steps", 100, *start)
        runs = {
            "metropolis": ("metropolis", "--checkpoint", energy, "--k-steps", k, "--dt-fs", 1.0, "--num-workers",
                           os.cpu_count(), *exact),
            "metropolis_plain_same_calls": ("plain", "--dt-fs", 1.0, *exact),
            "jump": ("jump", "--checkpoint", jump, "--k-steps", k, *fast),
            "jump_no_network": ("jump", "--checkpoint", jump, "--k-steps", k, "--delta-scale", 0, *fast),
            "jump_plain_same_calls": ("plain", "--dt-fs", 1.0, *fast),
        }
        for label, flags in runs.items():
            row[label] = judged(reference, hybrid(name, script, work / f"hybrid_mm/{label}_k{k}.npz", *flags))
        store("mm", f"{name} k={k}", row)


def native_us_per_step(raw: Path) -> dict:
    """Microseconds per step of OpenMM's own loop on each platform, nothing stored."""
    import openmm

    from kstep.forces.openmm import fastest_platform
    from kstep.molecules.molecule import Molecule

    system = openmm.XmlSerializer.deserialize((raw / "system.xml").read_text())
    return fastest_platform(system, Molecule.load(raw).conformers[0], n_steps=20_000)[1]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=["qm-data", "qm-metropolis", "qm-jump", "mm"], default=[])
    parser.add_argument("--molecules", nargs="+", choices=list(SMILES), default=list(SMILES))
    return parser.parse_args()


def main():
    args = parse()
    for section in args.sections:
        if section == "mm":
            mm()
            continue
        for name in args.molecules:
            {"qm-data": qm_data, "qm-metropolis": qm_metropolis, "qm-jump": qm_jump}[section](name)


if __name__ == "__main__":
    main()
