"""The dearest truths: how few calls of a dear method an exact ensemble of it takes when it is learned via cheaper ones.

Each section is one molecule and method: `kstep sample SMILES --config DEAR --via CHEAP`, from the SMILES to 200
effective samples of the energy.  What is cut goes on where it was when the same command is given again.  Writes
benchmarks/results/dearest.json, the sections that were asked for; the others stay.

    python benchmarks/dearest.py methanol_ccsdt
    python benchmarks/dearest.py methanol_pbe

Sections ethanol_METHOD_populations: gauche and anti of ethanol, from two runs that have nothing in common, neither
network nor labels nor seed, and that began in gauche alone and in anti alone.

    python benchmarks/dearest.py ethanol_gfn2_populations ethanol_aimnet2_populations
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from ase import Atoms

import kstep
from kstep.analysis.measure.profile import characterise
from kstep.analysis.measure.run_samples import samples_of
from kstep.analysis.measure.samples import series_of
from kstep.dihedrals import dihedrals_deg
from kstep.files import write_json_compact
from kstep.schemas import load_trajectory
from kstep.units import ANGSTROM_PER_NM
from running import RESULTS, machine, provenance, sh

RESULT = RESULTS / "dearest.json"
SECTIONS = {  # molecule, config of the truth, of the rungs below it, acceptance and labels that were promised
    "methanol_ccsdt": ("CO", "configs/qm_ccsdt.yaml", ("configs/qm.yaml",), 0.6, 60),
    "methanol_pbe": ("CO", "configs/qm_pyscf.yaml", ("configs/qm.yaml",), 0.8, 60),
    "fluoroethanol_pbe": ("OCCF", "configs/qm_pyscf.yaml", ("configs/qm.yaml",), 0.8, 100),
    "ethanol_ccsdt": ("CCO", "configs/qm_ccsdt.yaml", ("configs/qm.yaml",), 0.6, 100),
}
POPULATIONS = {  # of ethanol: config of the truth, of the rungs below it; standard error and samples asked of each run
    "ethanol_gfn2_populations": ("configs/qm.yaml", (), 0.01, 1500),
    "ethanol_aimnet2_populations": ("configs/qm_aimnet2.yaml", (), 0.015, 200),
    "ethanol_pbe_populations": ("configs/qm_pyscf.yaml", ("configs/qm.yaml",), 0.02, 200),
    "ethanol_ccsdt_populations": ("configs/qm_ccsdt.yaml", ("configs/qm.yaml",), 0.02, 200),
}
C_C_O_H, GAUCHE_DEG = np.array([[0, 1, 2, 8]]), 120.0
MOVES = 20  # of 100 fs each: proposals are longer than 1 ps, as was promised
WANTED = 200


def run(name: str, work: Path) -> Path:
    """The trajectory of a section, kept where it is there."""
    smiles, dear, cheap, _, _ = SECTIONS[name]
    out = work / f"{name}.npz"
    sh(out, "-m", "kstep", "sample", smiles, "--config", dear, *(word for each in cheap for word in ("--via", each)),
       "--moves", MOVES, "--effective-samples", WANTED, "--num-workers", 1, "--resume", "--out", out)
    return out


def measured(name: str, path: Path) -> dict:
    """What it took, and what it gave."""
    run, (_, _, _, acceptance, most) = load_trajectory(path), SECTIONS[name]
    m = run.metadata
    folder = Path(f"{path}.via{len(m['rungs']) - 1}")
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    enough = [row["true_calls"][m["method"]] for row in rounds if row["acceptance"] >= acceptance]
    found = samples_of(series_of(characterise(run)), of_dynamics=False)
    total = m["cpu_s"] + m["cpu_s_training"]
    calls = m["true_calls"] - m["true_calls_burn_in"]
    return {"method": m["method"], "calls_by_method": m["true_calls_training_by_method"],
            "rounds": [{key: row[key] for key in ("labels", "spread_kT", "acceptance", "fresh_kT")} for row in rounds],
            "wanted_acceptance": acceptance, "most_calls": most, "calls_to_acceptance": min(enough, default=None),
            "acceptance": m["acceptance"], "jump_fs": m["jump_fs"], "true_calls": m["true_calls"],
            "true_calls_training": m["true_calls_training"], "energy_samples": found["energy"],
            "samples_per_1000_calls": 1e3 * found["energy"] / calls, "cpu_s": total,
            "cpu_s_to_200_samples": m["cpu_s_training"] + m["cpu_burn_in_s"]
            + m["cpu_production_s"] * WANTED / found["energy"],
            "exp_minus_beta_dH": [m["mean_exp_minus_beta_dH"], m["mean_exp_minus_beta_dH_error"]],
            "machine": machine(), **provenance()}


def is_gauche(positions: np.ndarray) -> np.ndarray:
    """Which of positions (F,9,3) nm of ethanol are gauche, of either hand (F,)."""
    return np.abs(dihedrals_deg(positions, C_C_O_H)[:, 0]) < GAUCHE_DEG


def starts_of_ethanol(work: Path) -> dict[str, Path]:
    """Files of its start geometries, those in gauche and those in anti."""
    molecule = kstep.prepare("CCO", "ethanol")
    gauche = is_gauche(molecule.conformers)
    files = {}
    for name, chosen in (("gauche", gauche), ("anti", ~gauche)):
        files[name] = work / f"ethanol_{name}.xyz"
        if not files[name].exists():
            Atoms(molecule.numbers, molecule.conformers[chosen][0] * ANGSTROM_PER_NM).write(files[name])
    return files


def populations(name: str, work: Path) -> dict:
    """Gauche and anti by the two runs, what each took, and by how many standard errors they differ."""
    config, cheap, error, samples = POPULATIONS[name]
    rows = {}
    for seed, (start, file) in enumerate(starts_of_ethanol(work).items(), 1):
        out = work / f"{name}_{start}.npz"
        sh(out, "-m", "kstep", "sample", "CCO", "--name", "ethanol", "--structure", file, "--config", config,
           *(word for each in cheap for word in ("--via", each)), *(() if cheap else ("--learn",)), "--seed", seed,
           "--population-error", error, "--effective-samples", samples, "--num-workers", 1, "--resume", "--out", out)
        # by the angle alone: a conformer that is rare enough has no well of its own
        m, found = load_trajectory(out).metadata, kstep.average(out, is_gauche)
        rows[start] = {"gauche": found.mean, "error": found.error, "converged": found.converged,
                       "effective_samples": found.effective_samples, "r_hat": found.r_hat,
                       "acceptance": m["acceptance"], "true_calls": m["true_calls"],
                       "true_calls_training": m["true_calls_training"], "cpu_s": m["cpu_s"] + m["cpu_s_training"]}
    value, error = (np.array([row[key] for row in rows.values()]) for key in ("gauche", "error"))
    weight = error**-2 / (error**-2).sum()
    return {"method": m["method"], "gauche": float(weight @ value), "error": float((error**-2).sum() ** -0.5),
            "sigmas_apart": float(abs(value[0] - value[1]) / np.hypot(*error)), "starts": rows, "machine": machine(),
            **provenance()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="+", choices=[*SECTIONS, *POPULATIONS])
    parser.add_argument("--work", type=Path, default=Path("outputs/dearest"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    for name in args.sections:
        is_table = name in POPULATIONS
        found = populations(name, args.work) if is_table else measured(name, run(name, args.work))
        kept = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        write_json_compact(RESULT, {**kept, name: found})
        if is_table:
            print(f"{name}: {100 * found['gauche']:.1f} +- {100 * found['error']:.1f} % gauche, two starts "
                  f"{found['sigmas_apart']:.1f} standard errors apart", flush=True)
        else:
            print(f"{name}: acceptance {found['acceptance']:.2f} after {found['true_calls_training']} labels, "
                  f"{found['energy_samples']:.0f} samples of the energy, {WANTED} of them in "
                  f"{found['cpu_s_to_200_samples'] / 60:.0f} min of CPU", flush=True)


if __name__ == "__main__":
    main()
