"""Conformers and their populations against an ensemble of CREST's, from the SMILES alone: what is found, at what cost.

CREST's file is an xyz with an energy (hartree) on each comment line, GFN2-xTB in the gas phase; it stays where it is.
The run is made with `--learn` until the slowest torsion has so many effective samples, and kept under
outputs/crest/NAME.  Then its frames are relaxed, first on its network and, one of each conformer, at GFN2-xTB, as are
CREST's geometries, so that both have energies of one method; these true calls are counted apart, and what is relaxed is
kept there too.  A conformer of CREST's is found where one of ours lies within 0.3 A (heavy atoms) and 0.5 kJ/mol.
Populations are measured, with errors from chains; CREST's are of energies alone.  In which torsion the two differ most
is said too.  Figures go to benchmarks/results/crest.json.

    python benchmarks/crest.py --ensemble ../crest/WG01.xyz --name WG01 --crest-cpu-h 1.82 \\
        --smiles 'N[C@@H](Cc1c[nH]c2ccccc12)C(=O)NCC(=O)O'
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import chi2

from conformers import Likeness, Relaxed, as_named, boltzmann, order_of, read_ensemble, relax
from judging import sampled
from kstep.analysis.measure.geometry import find_coordinates
from kstep.analysis.measure.profile import GRIDS
from kstep.analysis.measure.statistics import MeanEstimate, estimate_means
from kstep.analysis.measure.torsions import find_rotamers, rotamer_populations
from kstep.cli.program import exit_code
from kstep.dihedrals import dihedrals_deg
from kstep.errors import UserError
from kstep.files import replacing, write_json_compact
from kstep.forces.local_pool import EvaluationPool
from kstep.molecules.molecule import Molecule
from kstep.molecules.prepare import molecule_from_smiles
from kstep.runs.run_network import recipe_of
from kstep.runs.settings import share_replicas
from kstep.schemas import Trajectory, load_trajectory
from kstep.stages.physics import TruePhysics, load_physics
from kstep.training.equivalent_atoms import exchange_equivalent
from kstep.units import KJ_PER_HARTREE, KJ_PER_KCAL, SECONDS_PER_HOUR
from running import RESULTS, ROOT, machine, provenance, sh

RESULT, WORK, CONFIG = RESULTS / "crest.json", ROOT / "outputs/crest", "configs/qm.yaml"
SCRIPT = "src/06b_hybrid_integrate_qm.py"
STATIC_K = 298.15  # of populations by energies alone
WINDOW_KJ = 6.0 * KJ_PER_KCAL  # above the lowest, that CREST keeps
MARGIN_KJ = 10.0  # by which a network may rank a conformer too high
WORTH_RELAXING = 1e-3  # of all weight: a conformer so common is relaxed wherever the network ranks it
TWICE_A, TWICE_KJ = 0.125, 0.2  # CREST's thresholds; its list has a minimum twice where an amine's H are exchanged
LEAST_STATIC = 0.03  # population of what must be found
LARGEST = 10  # conformers whose populations the halves of the run must agree on
AT_ONCE = 256  # geometries that a network relaxes together
AT_A_TIME = 32  # that the truth does, and are kept together
LABELLINGS = 24  # of equivalent atoms, drawn at random, that torsions are compared over
NEVER_SEEN = 3.0  # over n samples: the largest population that n samples miss with a chance of 5 %


@dataclass(frozen=True)
class Frames:
    """Production frames of a run at its target, evenly spread.

    positions (F,N,3) nm; weights (F,) of mean 1; rows: the frames (T_r,) of each chain, in their order; replicas (R,):
    the number of each chain in the run; spacing_ps: between two frames of one.
    """

    positions: np.ndarray
    weights: np.ndarray
    rows: list[np.ndarray]
    replicas: np.ndarray
    spacing_ps: float

    @classmethod
    def of(cls, run: Trajectory, most: int) -> Frames:
        """At most about `most` of them, an equal stride apart in each replica."""
        frames = run.frames_of("train", "reference")
        stride = max(1, -(-len(frames) // most))
        chains = [frames[run.replica[frames] == r][::stride] for r in np.unique(run.replica[frames])]
        chosen = np.concatenate(chains)
        rows = np.split(np.arange(len(chosen)), np.cumsum([len(chain) for chain in chains])[:-1])
        return cls(run.pos[chosen], run.weights_of(chosen), rows, run.replica[[chain[0] for chain in chains]],
                   float(np.median(np.concatenate([np.diff(run.time_ps[chain]) for chain in chains]))))

    def shares(self, inside: np.ndarray, chains: np.ndarray | None = None) -> MeanEstimate:
        """Populations of C conformers, with errors; inside (F,C): which frame is which; chains: of these alone."""
        rows = self.rows if chains is None else [self.rows[c] for c in chains]
        weights = [self.weights[r] for r in rows] if np.ptp(self.weights) > 0 else None
        return estimate_means([inside[r].astype(float) for r in rows], self.spacing_ps, weights)

    def errors(self, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Populations (C,), standard errors (C,): the larger of what the series' memory and the chains' spread say."""
        found = self.shares(inside)
        error = found.standard_error
        if len(self.rows) >= 4:
            error = np.maximum(error, found.replica_means.std(axis=0, ddof=1) / np.sqrt(len(self.rows)))
        return found.mean, error


@dataclass(frozen=True)
class Conformers:
    """Ours: positions (G,N,3) nm, energy (G,) kJ/mol, best first; of_frame (F,): each frame's, -1 where it has none."""

    positions: np.ndarray
    energy: np.ndarray
    of_frame: np.ndarray
    report: dict
    true_calls: int  # that relaxing took


def on_network(molecule: Molecule, physics: TruePhysics, checkpoint: Path, positions: np.ndarray) -> Relaxed:
    """Frames (F,N,3) nm relaxed on the network of a run; no true call."""
    recipe = recipe_of(molecule, physics.method)
    network = recipe.load(**recipe.arguments, checkpoint=checkpoint)
    parts = [relax(network.energy_and_forces, positions[first:first + AT_ONCE])
             for first in range(0, len(positions), AT_ONCE)]
    return Relaxed(*(np.concatenate([getattr(part, key) for part in parts])
                     for key in ("positions", "energy", "converged")))


def on_truth(pool: EvaluationPool, molecule: Molecule, positions: np.ndarray, folder: Path) -> tuple[Relaxed, int]:
    """Geometries (S,N,3) nm relaxed at the true potential, and the true calls that it takes, or took.

    One that is another species at its minimum has no energy.  folder: where the same geometries lie relaxed, or will,
    AT_A_TIME in a file: what is relaxed is kept where this ends before the last of them.
    """
    def ask(x):
        truth = pool.evaluate(x)
        return truth.energy, truth.forces

    parts, calls = [], 0
    for first in range(0, max(1, len(positions)), AT_A_TIME):
        part = np.ascontiguousarray(positions[first:first + AT_A_TIME])
        known = folder / f"relaxed_{hashlib.sha256(part.tobytes()).hexdigest()[:16]}.npz"
        if not known.is_file():
            before, found = pool.true_calls, relax(ask, part)
            with replacing(known) as path, open(path, "wb") as handle:
                np.savez(handle, **vars(found), true_calls=pool.true_calls - before)
            print(f"{first + len(part)} of {len(positions)} geometries are relaxed", flush=True)
        with np.load(known, allow_pickle=False) as arrays:
            parts.append([arrays[key] for key in ("positions", "energy", "converged")])
            calls += int(arrays["true_calls"])
    found = Relaxed(*map(np.concatenate, zip(*parts)))
    inside = molecule.species().inside(found.positions)
    return Relaxed(found.positions, np.where(inside, found.energy, np.nan), found.converged), calls


def our_conformers(molecule: Molecule, likeness: Likeness, frames: Frames, near: Relaxed,
                   pool: EvaluationPool, folder: Path) -> Conformers:
    """From frames relaxed on the network, one of each conformer relaxed at the true potential, and told apart again."""
    inside = molecule.species().inside(near.positions)
    group, lowest = likeness.group(near.positions, np.where(inside, near.energy, np.nan))
    weight = np.bincount(group[group >= 0], frames.weights[group >= 0], len(lowest)) / frames.weights.sum()
    height = near.energy[lowest] - near.energy[lowest].min()
    wanted = np.flatnonzero((height <= WINDOW_KJ + MARGIN_KJ) | (weight >= WORTH_RELAXING))
    truth, calls = on_truth(pool, molecule, near.positions[lowest[wanted]], folder)
    merged, best = likeness.group(truth.positions, truth.energy)
    if not len(best):
        raise UserError(f"no frame of the run relaxes to a minimum of {molecule.smiles}")
    of_group = np.full(len(lowest) + 1, -1)  # the last one: of frames that are in no group
    of_group[wanted] = merged
    of_frame = of_group[group]
    return Conformers(truth.positions[best], truth.energy[best], of_frame, {
        "frames": len(near.energy), "on_the_network": len(lowest), "relaxed": len(wanted), "distinct": len(best),
        "unconverged_on_the_network": int((~near.converged).sum()), "unconverged": int((~truth.converged).sum()),
        "another_species": int((~inside).sum()) + int(np.isnan(truth.energy).sum()),
        "weight_without_conformer": float(frames.weights[of_frame < 0].sum() / frames.weights.sum())}, calls)


@dataclass(frozen=True)
class Ensemble:
    """CREST's conformers, relaxed: positions (C,N,3) nm, energy (C,) kJ/mol, best first, their static populations (C,).

    static: of all minima that are one conformer together, each once, by energies at STATIC_K; listed (C,): energies
    (kJ/mol) as its file has them, of the best of each, above the lowest; report: how many there were and are left.
    """

    positions: np.ndarray
    energy: np.ndarray
    static: np.ndarray
    listed: np.ndarray
    report: dict
    true_calls: int  # that relaxing took


def their_conformers(molecule: Molecule, likeness: Likeness, path: Path, pool: EvaluationPool,
                     folder: Path) -> Ensemble:
    """CREST's conformers in the molecule's order of atoms, of its species, relaxed, each once."""
    numbers, positions, hartree = read_ensemble(path)
    order = next(filter(lambda found: found is not None, (order_of(molecule, numbers, x) for x in positions)), None)
    if order is None:
        raise UserError(f"{path} holds no geometry with the bonds of {molecule.smiles}")
    positions, same, mirrored = as_named(molecule, positions[:, order])
    if not same.any():
        raise UserError(f"{path} holds another stereoisomer than {molecule.smiles}; give its own SMILES")
    relaxed, calls = on_truth(pool, molecule, positions[same], folder)
    narrow = Likeness(molecule, rmsd_A=TWICE_A, energy_kJ=TWICE_KJ)
    _, minima = narrow.group(relaxed.positions, relaxed.energy)
    x, energy = relaxed.positions[minima], relaxed.energy[minima]
    static = boltzmann(energy, np.array([narrow.images(one) for one in x]), STATIC_K)
    conformer, best = likeness.group(x, energy)
    listed = (hartree[same] - hartree.min())[minima][best] * KJ_PER_HARTREE
    return Ensemble(x[best], energy[best], np.bincount(conformer, static, len(best)), listed, {
        "listed": len(hartree), "another_species": int((~same).sum()), "minima": len(minima), "distinct": len(best),
        "mirrored": mirrored, "unconverged": int((~relaxed.converged).sum())}, calls)


def matched(likeness: Likeness, ours: Conformers, theirs: Ensemble) -> np.ndarray:
    """Which of ours each of CREST's (C,) is, -1: none."""
    found = [likeness.find(x, energy, ours.positions, ours.energy)
             for x, energy in zip(theirs.positions, theirs.energy, strict=True)]
    return np.array([-1 if of_us is None else of_us for of_us in found])


def beside(likeness: Likeness, ours: Conformers, theirs: Ensemble, frames: Frames, samples: float) -> dict:
    """Every conformer of CREST's with at least LEAST_STATIC, found or not; how many of all; and what it lacks.

    Energies in kJ/mol above CREST's lowest; a population that was never seen is below NEVER_SEEN / samples (95 %).
    """
    of_us, zero = matched(likeness, ours, theirs), theirs.energy.min()
    population, error = frames.errors(ours.of_frame[:, None] == np.arange(len(ours.energy)))

    def measured(conformer: int) -> dict:
        if conformer < 0:
            return {"measured": 0.0, "measured_below": NEVER_SEEN / samples}
        return {"measured": population[conformer], "measured_error": error[conformer]}

    important = [{"energy": theirs.energy[c] - zero, "energy_listed": theirs.listed[c], "static": theirs.static[c],
                  "found": bool(of_us[c] >= 0), "nearest_rmsd_A": likeness.rmsd(theirs.positions[c],
                                                                               ours.positions).min(),
                  **measured(of_us[c])} for c in np.flatnonzero(theirs.static >= LEAST_STATIC)]
    excess = [g for g in np.flatnonzero(ours.energy - min(zero, ours.energy.min()) < WINDOW_KJ) if g not in of_us]
    return {"important": important, "important_missed": sum(not row["found"] for row in important),
            "found_of_all": int((of_us >= 0).sum()),
            "static_found": float(theirs.static[of_us >= 0].sum()),
            "ours_in_window": int((ours.energy - min(zero, ours.energy.min()) < WINDOW_KJ).sum()),
            # one of ours may lie between two of CREST's, and is found by both
            "measured_found": float(population[np.unique(of_us[of_us >= 0])].sum()),
            "excess": [{"energy": ours.energy[g] - zero, **measured(g)} for g in excess],
            "lowest_below_crest": max(0.0, float(zero - ours.energy.min()))}


def apart(molecule: Molecule, frames: Frames, theirs: Ensemble) -> dict | None:
    """Where the two differ most: a torsion, its wells in degrees, the share of each measured and by CREST's energies.

    Equivalent atoms, and mirror images where no centre is named, change places on both sides, since which is which says
    nothing.  None where no torsion has two wells.
    """
    found = find_coordinates(molecule.numbers, molecule.bonds)
    sides = [_of_torsions(molecule, found.atoms["torsions"], x, weights)
             for x, weights in ((frames.positions, frames.weights), (theirs.positions, theirs.static))]
    rows = []
    for label, ours, listed in zip(found.labels["torsions"], *sides, strict=True):
        wells = find_rotamers(ours + listed)
        if len(wells) >= 2:
            measured, static = (rotamer_populations(side, wells) for side in (ours, listed))
            rows.append({"torsion": label, "wells_deg": wells.tolist(), "measured": measured.tolist(),
                         "static": static.tolist(), "distance": float(0.5 * np.abs(measured - static).sum())})
    return max(rows, key=lambda row: row["distance"], default=None)


def _of_torsions(molecule: Molecule, torsions: np.ndarray, positions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Density (D,bins), of sum 1, over -180..180 degrees of each torsion (D,4) of geometries (S,N,3), weights (S,)."""
    lower, upper, bins, _ = GRIDS["torsions"]
    rng = np.random.default_rng(0)
    x = np.concatenate([np.take_along_axis(positions, exchange_equivalent(molecule.numbers, molecule.bonds, rng,
                                                                          len(positions))[..., None], 1)
                        for _ in range(LABELLINGS)])
    if molecule.species().achiral:
        x = np.concatenate([x, -x])
    copies = len(x) // len(weights)
    each = np.tile(weights / weights.sum() / copies, copies)
    return np.array([np.histogram(angles, bins, (lower, upper), weights=each)[0]
                     for angles in dihedrals_deg(x, torsions).T])


def halves(molecule: Molecule, run: Trajectory, frames: Frames, of_frame: np.ndarray) -> dict:
    """Populations of the largest conformers from chains that began in even and in odd start conformers; chi-square p.

    Which one a chain began in: kstep.runs.settings.share_replicas.  p: `homogeneity`, of them and all others together;
    None where there is one start conformer alone.
    """
    start = share_replicas(molecule.conformer_energies, run.metadata["replicas"], run.metadata["temperature_K"])
    parity = start[frames.replicas] % 2
    sides = [np.flatnonzero(parity == side) for side in (0, 1)]
    seen = of_frame >= 0
    share = np.bincount(of_frame[seen], frames.weights[seen], of_frame.max(initial=-1) + 1)
    largest = np.argsort(-share, kind="stable")[:LARGEST]
    inside = of_frame[:, None] == largest
    inside = np.column_stack([inside, ~inside.any(axis=1)])
    report = {"start_conformers": len(np.unique(start)), "chains": [len(side) for side in sides]}
    if not all(map(len, sides)):
        return {**report, "p": None}
    found = [frames.shares(inside, side) for side in sides]
    return {**report, "p": homogeneity(found),
            "populations": [[half.mean[c] for half in found] for c in range(len(largest))],
            "errors": [[half.standard_error[c] for half in found] for c in range(len(largest))]}


def homogeneity(samples: list[MeanEstimate]) -> float | None:
    """Probability that samples with the same true populations of C exclusive classes differ at least so much.

        X^2 = sum_h n_h sum_c (p_hc - p_c)^2 / p_c,   n_h = [sum_c p_hc (1 - p_hc) / p_c] / [sum_c var_hc / p_c]

    with p_c the populations of all, and n_h the independent frames that have errors like those of sample h, its chains
    at least: chi-square of (H - 1)(C - 1), as Pearson's with the first-order correction of Scott & Rao (in Current
    Topics in Survey Sampling (1981), 247).  None where fewer than two classes were seen.
    """
    share, variance = (np.array([getattr(s, key) for s in samples]) for key in ("mean", "mean_variance"))
    total = share.mean(axis=0)
    classes = total > 0
    freedom = int(classes.sum()) - 1
    if freedom < 1:
        return None
    share, variance, total = share[:, classes], variance[:, classes], total[classes]
    of_one, of_mean = ((v / total).sum(axis=1) for v in (share * (1.0 - share), variance))
    chains = np.array([len(s.replica_means) for s in samples], dtype=float)  # one that never moved has no error
    size = np.maximum(np.divide(of_one, of_mean, out=chains.copy(), where=of_mean > 0), chains)
    total = (size / size.sum()) @ share
    statistic = (size[:, None] * (share - total) ** 2 / total).sum()
    return float(chi2.sf(statistic, (len(samples) - 1) * freedom))


def cost(run: Trajectory, preparation_s: float, crest_cpu_h: float | None) -> dict:
    """CPU hours from the SMILES on: preparation, learning (labels included), tuning, burn-in and production."""
    spent = preparation_s + run.metadata["cpu_s"] + (run.metadata.get("cpu_s_training") or 0.0)
    ours = spent / SECONDS_PER_HOUR
    return {"cpu_h": ours, "crest_cpu_h": crest_cpu_h, "over_crest": ours / crest_cpu_h if crest_cpu_h else None}


def judge(molecule: Molecule, physics: TruePhysics, run: Trajectory, ensemble: Path, folder: Path, *,
          most_frames: int = 2000, n_workers: int = 1) -> dict:
    """Everything but the cost: what a finished run of a molecule holds of the conformers in a file of CREST's.

    folder: for what was relaxed.
    """
    likeness, frames = Likeness(molecule), Frames.of(run, most_frames)
    figures, began = sampled(run), time.process_time()
    near = on_network(molecule, physics, Path(run.metadata["checkpoint"]), frames.positions)
    network_s = time.process_time() - began
    with EvaluationPool(physics.spec(warm_start=False), n_workers) as pool:
        ours = our_conformers(molecule, likeness, frames, near, pool, folder)
        theirs = their_conformers(molecule, likeness, ensemble, pool, folder)
    analysis = {"true_calls": ours.true_calls, "true_calls_crest": theirs.true_calls, "cpu_s_network": network_s}
    least = min(n for n in (figures["energy_samples"], figures["torsion_samples"]) if n is not None)
    return {**figures, "ours": ours.report, "crest": theirs.report, "analysis": analysis,
            **beside(likeness, ours, theirs, frames, least), "apart": apart(molecule, frames, theirs),
            "halves": halves(molecule, run, frames, ours.of_frame)}


def run_of(path: Path, smiles: str) -> Trajectory:
    """The run in `path`; UserError where it is of another SMILES: what is there is kept, by its name alone."""
    run = load_trajectory(path)
    if run.metadata["smiles"] != smiles:
        raise UserError(f"{path} is a run of {run.metadata['smiles']}, not of {smiles}; give another --name")
    return run


def main() -> None:
    """Make the run unless it is there, judge it, and merge its figures into what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ensemble", type=Path, required=True, help="xyz of CREST's conformers, best first")
    parser.add_argument("--smiles", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--samples", type=int, default=200, help="effective samples to run for")
    parser.add_argument("--max-true-calls", type=int, default=20_000, help="of the run, learning apart")
    parser.add_argument("--crest-cpu-h", type=float, help="CPU hours that CREST took")
    parser.add_argument("--frames", type=int, default=2000, help="frames to relax")
    parser.add_argument("--num-workers", type=int, default=2, help="processes for true calls")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    path = WORK / args.name / "run.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    sh(path, SCRIPT, "--smiles", args.smiles, "--name", args.name, "--qm-config", CONFIG, "--learn",
       "--effective-samples", args.samples, "--max-true-calls", args.max_true_calls, "--num-workers", args.num_workers,
       "--resume", "--out", path)
    began = time.process_time()
    molecule, _ = molecule_from_smiles(args.smiles, args.name)
    preparation_s = time.process_time() - began
    run, physics = run_of(path, args.smiles), TruePhysics(molecule, load_physics(ROOT / CONFIG))
    row = {"smiles": args.smiles, **cost(run, preparation_s, args.crest_cpu_h),
           **judge(molecule, physics, run, args.ensemble, path.parent, most_frames=args.frames,
                   n_workers=args.num_workers)}
    results = json.loads(args.out.read_text()) if args.out.is_file() else {}
    results.setdefault("molecules", {})[args.name] = row
    results.update(machine=machine(), **provenance())
    write_json_compact(args.out, results)
    print(f"{args.name}: {len(row['important']) - row['important_missed']} of {len(row['important'])} conformers of "
          f"{LEAST_STATIC:.0%} or more found, {row['found_of_all']} of all {row['crest']['distinct']}; "
          f"{len(row['excess'])} in excess; {row['cpu_h']:.2f} CPU hours, CREST {row['crest_cpu_h']}; "
          f"halves agree with p = {row['halves']['p']}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
