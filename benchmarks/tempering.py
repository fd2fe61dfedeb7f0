"""Parallel tempering shown to cross a barrier: the two forms of an ester, methyl fluoroformate, under GFN2-xTB.

Starts from one conformer, with the methyl group beside the C=O (Z); nobody tells it of the other (E),
which lies behind some 45 kJ/mol of ester rotation.  One command of 06b learns and samples on a ladder;
then the same network on the ladder from E, at 300 K without a ladder, and plain MD, each with the same
number of true calls.  Runs in outputs/benchmark/tempering, merges its figures into
benchmarks/results/tempering.json; what is there already is kept.

    python benchmarks/tempering.py
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np

from kstep.analysis.measure.torsions import count_transitions
from kstep.dihedrals import dihedrals_deg
from kstep.files import write_json_compact
from kstep.molecules.molecule import Molecule
from kstep.schemas import load_trajectory
from kstep.units import kT
from pipeline import WORK
from running import RESULTS, machine, provenance, sh

RESULT = RESULTS / "tempering.json"
SMILES, NAME = "COC(=O)F", "methyl_fluoroformate"
ESTER = np.array([[0, 1, 2, 3]])  # C-O-C=O: near 0 degrees in Z, near 180 in E
CENTRES_DEG = np.array([-180.0, 0.0])
LADDER_K = (300, 445, 660, 980, 1450)
LADDERS = 8
BURN_IN, STEPS = 200, 600  # macro-steps
SAMPLER = ("--k-steps", 300, "--dt-fs", 1.5, "--hydrogen-mass", 4)
MBAR_EVERY = 5  # macro-steps between the frames that MBAR sees


def prepare(work: Path) -> Path:
    """The molecule with conformers of the Z form alone."""
    smiles = work / f"{NAME}.smi"
    work.mkdir(parents=True, exist_ok=True)
    smiles.write_text(f"{SMILES} {NAME}\n")
    sh(work / "raw" / NAME / "molecule.npz", "src/00_prep_mols.py", "--smiles", smiles, "--out-dir", work / "raw")
    folder = work / "only_Z" / NAME
    if not (folder / "molecule.npz").exists():
        found = Molecule.load(work / "raw" / NAME)
        near = np.abs(dihedrals_deg(found.conformers, ESTER)[:, 0]) < 90
        folder.mkdir(parents=True, exist_ok=True)
        dataclasses.replace(found, conformers=found.conformers[near], conformer_energies=found.conformer_energies[near]
                            ).save(folder / "molecule.npz")
    return folder


def runs(work: Path):
    """Make the four runs, each of LADDERS * len(LADDER_K) replicas and as many true calls; yields (name, file)."""
    molecule, script = prepare(work), "src/06b_hybrid_integrate_qm.py"
    replicas = LADDERS * len(LADDER_K)
    common = ("--molecule", molecule, "--replicas", replicas, "--steps", STEPS, "--burn-in-steps", BURN_IN,
              "--num-workers", 1)
    ladder = ("--tempering", *LADDER_K)

    def made(name, *flags):
        out = work / f"{name}.npz"
        sh(out, script, *common, *flags, "--resume", "--out", out)
        return name, out

    _, from_Z = first = made("ladder_from_Z", *SAMPLER, *ladder, "--learn")
    yield first
    network = ("--scheme", "metropolis", "--checkpoint", f"{from_Z}.learn/network.pt", *SAMPLER)
    yield made("metropolis_300K", *network)
    found = load_trajectory(from_Z)
    at_target = found.frames_of("train")
    in_E = at_target[np.abs(dihedrals_deg(found.pos[at_target], ESTER)[:, 0]) > 90]
    if not len(in_E):
        raise SystemExit("the ladder never brought E to 300 K, so there is no frame to start from")
    yield made("ladder_from_E", *network, *ladder, "--seed", 1, "--initial-md", from_Z, "--frame", in_E[-1])
    yield made("plain_300K", "--scheme", "plain", "--dt-fs", 1)


@dataclasses.dataclass(frozen=True)
class Series:
    """angle_deg, energy (T,R) of all macro-steps; burn-in comes first."""

    angle_deg: np.ndarray
    energy: np.ndarray
    metadata: dict

    @classmethod
    def load(cls, path: Path) -> Series:
        run = load_trajectory(path)
        shape = (-1, run.metadata["replicas"])
        return cls(dihedrals_deg(run.pos, ESTER)[:, 0].reshape(shape), run.Epot.reshape(shape), run.metadata)

    @property
    def in_E(self) -> np.ndarray:
        return np.abs(self.angle_deg) > 90


def mean_of_ladders(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard error over independent ladders (L,)."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def mbar_population(energy: np.ndarray, in_E: np.ndarray) -> float:
    """Share of E at the first rung from the frames (T,L,K) of all K rungs: Shirts & Chodera, JCP 129, 124105 (2008)."""
    from pymbar import MBAR

    n_rungs = energy.shape[2]
    u, side = energy.transpose(2, 0, 1).ravel(), in_E.transpose(2, 0, 1).ravel()
    reduced = (u - u.min())[None] / kT(np.array(LADDER_K, dtype=float))[:, None]
    weights = MBAR(reduced, np.full(n_rungs, len(u) // n_rungs), solver_protocol="robust").weights()[:, 0]
    return float(weights[side].sum() / weights.sum())


def ladder_figures(path: Path) -> dict:
    """Populations of every rung, crossings, swaps, and MBAR; errors from the spread of the ladders."""
    run, n_rungs = Series.load(path), len(LADDER_K)
    meta = run.metadata
    side, energy = (a[BURN_IN:].reshape(STEPS, LADDERS, n_rungs) for a in (run.in_E, run.energy))
    rungs = [mean_of_ladders(side[:, :, r].mean(axis=0)) for r in range(n_rungs)]
    sparse = slice(None, None, MBAR_EVERY)
    all_mbar = mbar_population(energy[sparse], side[sparse])
    left_out = np.array([mbar_population(np.delete(energy[sparse], i, axis=1), np.delete(side[sparse], i, axis=1))
                         for i in range(LADDERS)])  # jackknife
    mbar_error = float(np.sqrt((LADDERS - 1) * left_out.var()))
    # swaps only hand configurations around: how many of a ladder's are E changes by crossing 90 degrees alone
    in_ladder = run.in_E.reshape(-1, LADDERS, n_rungs).sum(axis=2)
    to_300 = sum(count_transitions(run.angle_deg[:, r], CENTRES_DEG)
                 for r in range(0, run.angle_deg.shape[1], n_rungs))
    return {"start_E": float(run.in_E[0].mean()), "true_calls": meta["true_calls"],
            "true_calls_training": meta["true_calls_training"], "cpu_s": meta["cpu_s"],
            "cpu_s_training": meta["cpu_s_training"], "acceptance": meta["acceptance"],
            "exp_minus_beta_dH": [meta["mean_exp_minus_beta_dH"], meta["mean_exp_minus_beta_dH_error"]],
            "swap_acceptance": meta["swap_acceptance"], "failed_true_calls": len(meta["failed_true_calls"]),
            "barrier_crossings": int(np.abs(np.diff(in_ladder, axis=0)).sum()), "transitions_at_300K": to_300,
            "E_by_rung": rungs, "E_300K": rungs[0], "E_300K_mbar": [all_mbar, mbar_error]}


def alone_figures(path: Path) -> dict:
    """The same of replicas that all stay at 300 K."""
    run = Series.load(path)
    return {"true_calls": run.metadata["true_calls"], "cpu_s": run.metadata["cpu_s"],
            "acceptance": run.metadata.get("acceptance"), "start_E": float(run.in_E[0].mean()),
            "barrier_crossings": int(np.abs(np.diff(run.in_E.astype(int), axis=0)).sum()),
            "transitions_at_300K": sum(count_transitions(a, CENTRES_DEG) for a in run.angle_deg.T),
            "E_300K": mean_of_ladders(run.in_E[BURN_IN:].mean(axis=0))}


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for name, path in runs(WORK / "tempering"):
        figures = ladder_figures(path) if name.startswith("ladder") else alone_figures(path)
        store(name, figures)


def store(name: str, figures: dict) -> None:
    """Merge the figures of one run into the result file, and what both ladders say together once both are there."""
    data = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    data["machine"] = machine()
    data["settings"] = {"smiles": SMILES, "ladder_K": LADDER_K, "ladders": LADDERS, "burn_in_steps": BURN_IN,
                        "steps": STEPS}
    data[name] = {**figures, "git_commit": provenance()["git_commit"]}
    ladders = {x: data[f"ladder_from_{x}"]["E_300K"] for x in "ZE" if f"ladder_from_{x}" in data}
    data["E_above_Z_kJ_per_mol"] = {x: [float(kT(300.0) * np.log((1 - p) / p)), float(kT(300.0) * d / (p * (1 - p)))]
                                    for x, (p, d) in ladders.items()}
    if len(ladders) == 2:
        (a, da), (b, db) = ladders.values()
        data["errors_apart"] = abs(a - b) / float(np.hypot(da, db))
    write_json_compact(RESULT, data)
    print(json.dumps({name: data[name]}, indent=1), flush=True)


if __name__ == "__main__":
    main()
