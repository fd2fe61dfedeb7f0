"""The dearest truths: how few calls of a dear method an exact ensemble of it takes when it is learned via cheaper ones.

Each section is one molecule and method: `kstep sample SMILES --config DEAR --via CHEAP`, or with --learn where nothing
stands below it, from the SMILES to 100 or 200 effective samples of the energy and of the slowest torsion.  What is cut
goes on where it was when the same command is given again.  Writes benchmarks/results/dearest.json, the sections that
were asked for; the others stay.

    python benchmarks/dearest.py methanol_ccsdt
    python benchmarks/dearest.py methanol_pbe

Sections ethanol_METHOD_populations: gauche and anti of ethanol, from two runs that have nothing in common, neither
network nor labels nor seed, and that began in gauche alone and in anti alone.  At CCSD(T), where a label takes as long
as a sample, the second one has the network of the first.

    python benchmarks/dearest.py ethanol_gfn2_populations ethanol_aimnet2_populations

Sections MOLECULE_METHOD_exact: the energy and the torsion of the methyl group of the run above, whose proposals the
truth accepts or refuses, beside those of samples of the same network alone, each weighed by its true energy.

    python benchmarks/dearest.py methanol_ccsdt_exact

Sections MOLECULE_METHOD_ways: short runs of one ensemble, each by another use of a cheap method: its network and the
difference to the dear one, as above; that network alone, without a label of the dear method; that and a method in
between that judges first.

    python benchmarks/dearest.py methanol_ccsdt_ways
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
from kstep.schemas import Trajectory, load_trajectory
from kstep.study.benchmark.agreement import same_mean
from kstep.units import ANGSTROM_PER_NM
from running import RESULTS, machine, provenance, sh

RESULT = RESULTS / "dearest.json"


def aim(population_error: float, effective_samples: int) -> tuple:
    """Flags of a run that ends when it knows so much."""
    return ("--population-error", population_error, "--effective-samples", effective_samples)


SECTIONS = {  # molecule, config of the truth, of the rungs below it, acceptance and labels promised, samples wanted
    "methanol_ccsdt": ("CO", "configs/qm_ccsdt.yaml", ("configs/qm.yaml",), 0.6, 60, 200),
    "methanol_pbe": ("CO", "configs/qm_pyscf.yaml", ("configs/qm.yaml",), 0.8, 60, 200),
    "fluoroethanol_pbe": ("OCCF", "configs/qm_pyscf.yaml", ("configs/qm.yaml",), 0.8, 100, 100),
    "ethanol_ccsdt": ("CCO", "configs/qm_ccsdt.yaml", ("configs/qm.yaml",), 0.6, 100, 100),
    "ethanol_ccsdt_via_pbe": ("CCO", "configs/qm_ccsdt.yaml", ("configs/qm.yaml", "configs/qm_pyscf.yaml"), 0.6, 100,
                              100),
    "aspirin_aimnet2": ("CC(=O)Oc1ccccc1C(=O)O", "configs/qm_aimnet2.yaml", (), None, None, 200),
    "aspirin_gfn2": ("CC(=O)Oc1ccccc1C(=O)O", "configs/qm.yaml", (), None, None, 200),
}
POPULATIONS = {  # of ethanol: config of the truth, of the rungs below it; when each run ends
    "ethanol_gfn2_populations": ("configs/qm.yaml", (), aim(0.01, 1500)),
    "ethanol_aimnet2_populations": ("configs/qm_aimnet2.yaml", (), aim(0.015, 200)),
    "ethanol_pbe_populations": ("configs/qm_pyscf.yaml", ("configs/qm.yaml",), aim(0.05, 100)),
    # 112 samples; chains of so few would wait for R-hat, not for the error
    "ethanol_ccsdt_populations": ("configs/qm_ccsdt.yaml", ("configs/qm.yaml", "configs/qm_pyscf.yaml"),
                                  ("--steps", 7)),
}
ONE_NETWORK = ("ethanol_ccsdt_populations",)
EXACT = {"methanol_ccsdt_exact": "methanol_ccsdt"}
H_C_O_H, THIRD_DEG, BINS = np.array([[2, 0, 1, 5]]), 120.0, 6  # of methanol, whose methyl group has three sides alike
WEIGHED_STEPS = 30
WAYS = {"methanol_ccsdt_ways": ("CO", "configs/qm_ccsdt.yaml", {
    "--via": ("--via", "configs/qm.yaml"),
    "--teacher": ("--teacher", "configs/qm.yaml"),
    "--teacher --delay-with": ("--teacher", "configs/qm.yaml", "--delay-with", "configs/qm_pyscf.yaml"),
})}
WAY_STEPS, WAY_BURN_IN, WAY_REPLICAS, MINUTE_S = 16, 4, 8, 60.0
C_C_O_H, GAUCHE_DEG = np.array([[0, 1, 2, 8]]), 120.0
MOVES = 20  # of 100 fs each: proposals are longer than 1 ps, as was promised


def run(name: str, work: Path) -> Path:
    """The trajectory of a section, kept where it is there."""
    smiles, dear, cheap, _, _, wanted = SECTIONS[name]
    out = work / f"{name}.npz"
    below = [*(word for each in cheap for word in ("--via", each)), "--moves", MOVES] if cheap else ["--learn"]
    sh(out, "-m", "kstep", "sample", smiles, "--config", dear, *below, "--effective-samples", wanted,
       "--num-workers", 1, "--resume", "--out", out)
    return out


def measured(name: str, path: Path) -> dict:
    """What it took, and what it gave."""
    run, (_, _, _, acceptance, most, wanted) = load_trajectory(path), SECTIONS[name]
    m = run.metadata
    rounds, by_method = [], {m["method"]: m["true_calls_training"]}
    if "rungs" in m:
        climbed = Path(f"{path}.via{len(m['rungs']) - 1}") / "rounds.jsonl"
        rounds, by_method = [*map(json.loads, climbed.read_text().splitlines())], m["true_calls_training_by_method"]
    enough = [row["true_calls"][m["method"]] for row in rounds if row["acceptance"] >= acceptance]
    found = samples_of(series_of(characterise(run)), of_dynamics=False)
    total = m["cpu_s"] + m["cpu_s_training"]
    calls = m["true_calls"] - m["true_calls_burn_in"]
    fewest = min(number for number in (found["energy"], found["torsion"]) if number is not None)
    return {"method": m["method"], "calls_by_method": by_method,
            "rounds": [{key: row[key] for key in ("labels", "spread_kT", "acceptance", "fresh_kT")} for row in rounds],
            "wanted_acceptance": acceptance, "most_calls": most, "calls_to_acceptance": min(enough, default=None),
            "acceptance": m["acceptance"], "jump_fs": m["jump_fs"], "true_calls": m["true_calls"],
            "true_calls_training": m["true_calls_training"], "energy_samples": found["energy"],
            "torsion": found["label"], "torsion_samples": found["torsion"],
            "samples_per_1000_calls": 1e3 * fewest / calls, "cpu_s": total, "wanted_samples": wanted,
            "calls_to_wanted": m["true_calls_training"] + m["true_calls_burn_in"] + calls * wanted / fewest,
            "cpu_s_to_wanted": m["cpu_s_training"] + m["cpu_burn_in_s"] + m["cpu_production_s"] * wanted / fewest,
            "judge": m["judge"]["judge"],
            "exp_minus_beta_dH": [m.get("mean_exp_minus_beta_dH"), m.get("mean_exp_minus_beta_dH_error")],
            "machine": machine(), **provenance()}


def exactness(name: str, work: Path) -> dict:
    """The energy and the torsion of methanol, judged by a chain and by weights."""
    smiles, dear, _, _, _, _ = SECTIONS[EXACT[name]]
    judged, out = run(EXACT[name], work), work / f"{name}.npz"
    network = load_trajectory(judged).metadata["checkpoint"]
    sh(out, "-m", "kstep", "sample", smiles, "--config", dear, "--checkpoint", network, "--set", "judge=weights",
       "--moves", 2 * MOVES, "--steps", WEIGHED_STEPS, "--seed", 1, "--num-workers", 1, "--resume", "--out", out)
    runs = {"chain": load_trajectory(judged), "weights": load_trajectory(out)}
    if (ways := {key: each.metadata["judge"]["judge"] for key, each in runs.items()}) != {key: key for key in runs}:
        raise SystemExit(f"error: the runs were judged otherwise: {ways}")
    means = {key: means_of_chains(each) for key, each in runs.items()}
    found = same_mean(*means.values())
    assert found is not None  # both have sixteen chains
    return {**found, "method": runs["chain"].metadata["method"],
            "true_calls": runs["weights"].metadata["true_calls"],
            "chains": [len(each) for each in means.values()],
            "energy_above_the_chains": {key: [float(each[:, 0].mean() - means["chain"][:, 0].mean()),
                                              float(each[:, 0].std(ddof=1) / len(each) ** 0.5)]
                                        for key, each in means.items()},
            "shares": {key: [each[:, 1:].mean(axis=0).tolist(), (each[:, 1:].std(axis=0, ddof=1)
                                                                 / len(each) ** 0.5).tolist()]
                       for key, each in means.items()},
            "machine": machine(), **provenance()}


def ways(name: str, work: Path) -> dict:
    """What a sample of the energy takes by each way, and would take if a call of the dear method took a minute."""
    (smiles, dear, all_ways), rows = WAYS[name], {}
    for number, (way, flags) in enumerate(all_ways.items()):
        out = work / f"{name}_{number}.npz"
        sh(out, "-m", "kstep", "sample", smiles, "--config", dear, *flags, "--moves", MOVES, "--steps", WAY_STEPS,
           "--burn-in-steps", WAY_BURN_IN, "--replicas", WAY_REPLICAS, "--num-workers", 1, "--resume", "--out", out)
        trajectory = load_trajectory(out)
        m, found = trajectory.metadata, samples_of(series_of(characterise(trajectory)), of_dynamics=False)
        if number == 0:
            call_s = m["tuning"]["cpu_s_per_true_call"]
        calls = m["true_calls"] - m["true_calls_burn_in"]
        cpu_s, calls = m["cpu_production_s"] / found["energy"], calls / found["energy"]
        rows[way] = {"acceptance": m["acceptance"], "true_calls_training": m["true_calls_training"],
                     "energy_samples": found["energy"], "true_calls_per_sample": calls, "cpu_s_per_sample": cpu_s,
                     "cpu_s_per_sample_of_dear_calls": cpu_s + calls * (MINUTE_S - call_s),
                     "true_calls_by_method": m.get("true_calls_by_method", {m["method"]: m["true_calls"]})}
    return {"method": m["method"], "cpu_s_per_true_call": call_s, "ways": rows, "machine": machine(), **provenance()}


def means_of_chains(run: Trajectory) -> np.ndarray:
    """(R,1+B): of every chain the mean energy, kJ/mol, and the shares of the torsion's third of a turn, under weights
    where frames have them."""
    torsion = dihedrals_deg(run.pos, H_C_O_H)[:, 0] % THIRD_DEG
    values = np.column_stack([run.Epot, np.eye(BINS)[(torsion * BINS / THIRD_DEG).astype(int) % BINS]])
    weight = run.weight if len(run.weight) else np.ones(len(values))
    return np.array([np.average(values[here], axis=0, weights=weight[here])
                     for here in (run.replica == number for number in np.unique(run.replica))])


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
    config, cheap, end = POPULATIONS[name]
    rows = {}
    for seed, (start, file) in enumerate(starts_of_ethanol(work).items(), 1):
        out = work / f"{name}_{start}.npz"
        learned = not (name in ONE_NETWORK and rows)
        network = [word for each in cheap for word in ("--via", each)] or ["--learn"]
        if not learned:
            network = ["--checkpoint", f"{work / name}_{next(iter(rows))}.npz.via{len(cheap)}/network.pt", "--tune"]
        sh(out, "-m", "kstep", "sample", "CCO", "--name", "ethanol", "--structure", file, "--config", config, *network,
           "--seed", seed, *end, "--num-workers", 1, "--resume", "--out", out)
        # by the angle alone: a conformer that is rare enough has no well of its own
        m, found = load_trajectory(out).metadata, kstep.average(out, is_gauche)
        rows[start] = {"gauche": found.mean, "error": found.error, "converged": found.converged,
                       "effective_samples": found.effective_samples, "r_hat": found.r_hat,
                       "acceptance": m["acceptance"], "true_calls": m["true_calls"],
                       "true_calls_training": learned * m["true_calls_training"],
                       "cpu_s": m["cpu_s"] + learned * m["cpu_s_training"]}
    value, error = (np.array([row[key] for row in rows.values()]) for key in ("gauche", "error"))
    weight = error**-2 / (error**-2).sum()
    return {"method": m["method"], "gauche": float(weight @ value), "error": float((error**-2).sum() ** -0.5),
            "sigmas_apart": float(abs(value[0] - value[1]) / np.hypot(*error)), "starts": rows, "machine": machine(),
            **provenance()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="+", choices=[*SECTIONS, *POPULATIONS, *EXACT, *WAYS])
    parser.add_argument("--work", type=Path, default=Path("outputs/dearest"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    for name in args.sections:
        if name in POPULATIONS:
            found = populations(name, args.work)
        elif name in WAYS:
            found = ways(name, args.work)
        elif name in EXACT:
            found = exactness(name, args.work)
        else:
            found = measured(name, run(name, args.work))
        kept = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        write_json_compact(RESULT, {**kept, name: found})
        if name in WAYS:
            print(f"{name}: CPU s a sample", {way: round(row["cpu_s_per_sample"], 1)
                                              for way, row in found["ways"].items()}, flush=True)
        elif name in EXACT:
            print(f"{name}: p = {found['p']:.2g} in {found['directions']} directions", flush=True)
        elif name in POPULATIONS:
            print(f"{name}: {100 * found['gauche']:.1f} +- {100 * found['error']:.1f} % gauche, two starts "
                  f"{found['sigmas_apart']:.1f} standard errors apart", flush=True)
        else:
            print(f"{name}: acceptance {found['acceptance']:.2f} after {found['true_calls_training']} labels, "
                  f"{found['wanted_samples']} samples by {found['calls_to_wanted']:.0f} calls and "
                  f"{found['cpu_s_to_wanted'] / 60:.0f} min of CPU", flush=True)


if __name__ == "__main__":
    main()
