"""The populations of a run found again by other means, and those of two methods held against each other.

    python benchmarks/independent.py water.npz                  # counted anew with numpy and MDTraj
    python benchmarks/independent.py water.npz --md-ps 0.5      # and: does ASE's own dynamics leave them as they are?
    python benchmarks/independent.py gas.npz water.npz          # and: do they differ as the two methods' energies say?
    python benchmarks/independent.py outputs/unseen/glycine_dipeptide.npz outputs/unseen/glycine_dipeptide_water.npz \\
        --md-ps 0.5 --publish glycine_dipeptide                 # and: keep it in benchmarks/results/independent.json

Nothing here asks kstep's analysis: it opens the file, takes the torsions that kstep names, and finds wells of its own,
between the valleys of each torsion's histogram (mirror images are one, unless the SMILES names a stereocentre;
equivalent atoms are not exchanged, so the molecule must have none among its torsions).  Three questions:

- do the shares of the wells agree with the table in the file?
- a run that is exact is one that the true dynamics leaves alone: frames drawn from it, carried on by ASE's Langevin
  over tblite's own calculator, must keep their populations and their mean energy;
- from gas to water the share of a state changes by exp(-df), df from Bennett's acceptance ratio (J. Comput. Phys. 22,
  245 (1976); pymbar) of U_water - U_gas over the frames of both runs within that state.  Shares that BAR predicts of
  the second run from the first must be those that it has.

Runs that it is meant for, with GFN2-xTB and ALPB (`kstep sample SMILES --learn [--solvent water] --out FILE`):
glycine dipeptide CC(=O)NCC(=O)NC in gas and in water, alanine dipeptide CC(=O)N[C@@H](C)C(=O)NC in water,
2-fluoroethanol OCCF.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path

import mdtraj
import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from pymbar import bar
from rdkit import Chem
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks
from tblite.ase import TBLite

from kstep.files import write_json_compact
from running import RESULTS, machine, provenance

RESULT = RESULTS / "independent.json"
BINS, SMOOTH_DEG, SHALLOW = 72, 10.0, 0.6  # a valley is lower than this share of the lower of its two hills
DRAWS, FRAMES = 200, 400
K_PER_EV = 1.0 / units.kB
KJ_PER_EV = units.mol / units.kJ
METHOD = re.compile(r"(GFN[12]-xTB|IPEA1-xTB)(?:/(ALPB|GBSA)\((.+)\))?$")


@dataclass(frozen=True)
class Run:
    """positions (F,N,3) nm of production, whose chain, how much each frame weighs, and what the file says."""

    x: np.ndarray
    energy: np.ndarray
    chain: np.ndarray
    weight: np.ndarray
    numbers: np.ndarray
    facts: dict

    @property
    def temperature_K(self) -> float:
        """Of the run."""
        return float(self.facts["temperature_K"])


def read(path: Path) -> Run:
    """The production frames of a file at its own temperature."""
    with np.load(path, allow_pickle=False) as f:
        facts = json.loads(str(f["metadata"]))
        kept = np.array([s["role"] in ("train", "reference") for s in facts["segments"]])[f["segment"]]
        weight = f["weight"][kept] if "weight" in f and len(f["weight"]) else np.ones(kept.sum())
        return Run(f["pos"][kept], f["Epot"][kept], f["replica"][kept], weight, f["atom_types"], facts)


def angles_of(x: np.ndarray, labels: list[str]) -> np.ndarray:
    """Torsions (F,D), degrees, of labels such as F3-C2-C1-O0."""
    atoms = [[int(word.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")) for word in label.split("-")]
             for label in labels]
    return np.degrees(mdtraj.compute_dihedrals(mdtraj.Trajectory(x, None), atoms, periodic=False)).astype(float)


def valleys(angle: np.ndarray, weight: np.ndarray, both_hands: bool) -> np.ndarray:
    """Borders (B,), degrees, between the wells of a torsion; both_hands: the mirror image has the same ones."""
    if both_hands:
        angle, weight = np.concatenate([angle, -angle]), np.concatenate([weight, weight])
    width = 360.0 / BINS  # bins lie about -180, ..., 0, ..., so that each has a mirror image
    counts = np.bincount(np.round(angle / width).astype(int) % BINS, weight, BINS)
    density = gaussian_filter1d(np.roll(counts, BINS // 2), SMOOTH_DEG / width, mode="wrap") + 1e-9 * weight.sum()
    thrice = find_peaks(-np.tile(density, 3))[0]  # the middle of what is flat, where nothing is between two wells
    found = [v - BINS for v in thrice.tolist() if BINS <= v < 2 * BINS]
    while len(found) > 1:
        hills = [max(density[np.arange(a, b if b > a else b + BINS) % BINS]) for a, b in
                 zip(found, found[1:] + found[:1])]
        depth = [density[v] / min(hills[n - 1], hills[n]) for n, v in enumerate(found)]
        if max(depth) < SHALLOW:
            break
        found.pop(int(np.argmax(depth)))
    return -180.0 + width * np.array(found, dtype=float) if len(found) > 1 else np.zeros(0)


def states_of(angles: np.ndarray, borders: list[np.ndarray], both_hands: bool) -> np.ndarray:
    """A name (F,) for the wells that each frame is in, that of the mirror image where that comes first."""
    def named(a):
        wells = [np.searchsorted(b, a[:, d]) % max(1, len(b)) for d, b in enumerate(borders)]
        middles = [[f"{round(_middle(b, w)):+d}" for w in range(max(1, len(b)))] for b in borders]
        return np.array([" ".join(middles[d][w[f]] for d, w in enumerate(wells)) for f in range(len(a))])

    names, mirrored = named(angles), named(-angles)
    return np.where(mirrored < names, mirrored, names) if both_hands else names


def _middle(borders: np.ndarray, well: int) -> float:
    """Middle of a well, degrees; wells are counted from the one that ends at the first border."""
    if not len(borders):
        return 0.0
    low, high = borders[well - 1], borders[well]
    middle = (low + (high - low) % 360.0 / 2 + 180.0) % 360.0 - 180.0
    return 180.0 if abs(abs(middle) - 180.0) < 360.0 / BINS else middle


def is_achiral(smiles: str) -> bool:
    """Whether nothing in the SMILES tells the molecule from its mirror image."""
    return not Chem.FindMolChiralCenters(Chem.MolFromSmiles(smiles), useLegacyImplementation=False)


def shares(state: np.ndarray, run: Run, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Share of each state and its error, which is the scatter of the chains."""
    inside = state[:, None] == np.array(names)
    p = (run.weight @ inside) / run.weight.sum()
    chains = np.unique(run.chain)
    means = np.array([run.weight[run.chain == c] @ (inside - p)[run.chain == c] for c in chains])
    return p, np.sqrt(len(chains) / (len(chains) - 1.0) * (means**2).sum(axis=0)) / run.weight.sum()


def of_the_file(run: Run, labels: list[str], borders, both_hands: bool, names: list[str]):
    """The same from the table of conformers in the file: shares and errors (S,)."""
    p, variance = np.zeros(len(names)), np.zeros(len(names))
    for c in run.facts["populations"]["conformers"]:
        angles = np.array([[c["wells_deg"][label] for label in labels]])
        n = names.index(str(states_of(angles, borders, both_hands)[0]))
        p[n] += c["population"]
        variance[n] += c["population_error"] ** 2
    return p, np.sqrt(variance)


def calculator(run: Run) -> TBLite:
    """tblite's own ASE calculator of a run's method."""
    found = METHOD.match(run.facts["method"])
    if found is None:
        raise SystemExit(f"{run.facts['method']} is no method that tblite has by itself here")
    name, model, solvent = found.groups()
    return TBLite(method=name, accuracy=0.1, verbosity=0, charge=run.facts.get("charge") or 0,
                  multiplicity=run.facts.get("multiplicity") or 1,
                  **({"solvation": (model.lower(), solvent)} if model else {}))


def energies_kT(run: Run, x: np.ndarray, beta_of: Run) -> np.ndarray:
    """U / kT (F,) of positions under the method of `run`, at the temperature of `beta_of`."""
    atoms = Atoms(run.numbers, calculator=calculator(run))
    found = np.empty(len(x))
    for n, positions in enumerate(x):
        atoms.set_positions(10.0 * positions)
        found[n] = atoms.get_potential_energy()
    return found * K_PER_EV / beta_of.temperature_K


def drawn(run: Run, n: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of n frames (all of them, where there are fewer), by weight."""
    if n >= len(run.x) and np.ptp(run.weight) == 0:
        return np.arange(len(run.x))
    return rng.choice(len(run.x), min(n, len(run.x)), p=run.weight / run.weight.sum(),
                      replace=bool(np.ptp(run.weight)))


def predicted(p_first: np.ndarray, state_first: np.ndarray, work_first: np.ndarray, state_second: np.ndarray,
              work_second: np.ndarray, names: list[str]) -> np.ndarray:
    """Shares (S,) of the second ensemble from those of the first.

    work: (U_second - U_first)/kT (F,) of frames of either ensemble.  NaN for a state that one of them lacks.
    """
    out = np.full(len(names), np.nan)
    for n, name in enumerate(names):
        there, back = work_first[state_first == name], -work_second[state_second == name]
        if len(there) and len(back):
            shift = there.mean()  # keeps exponentials small
            df = bar(there - shift, back + shift, compute_uncertainty=False)["Delta_f"] + shift
            out[n] = np.log(p_first[n]) - df
    out = np.exp(out - np.nanmax(out))
    return out / np.nansum(out)


def by_energies(first: Run, second: Run, states, names: list[str], seed: int = 0) -> dict:
    """What BAR makes of the first run's shares, beside the second's own; errors by drawing chains of both anew."""
    rng = np.random.default_rng(seed)
    picked = [drawn(run, FRAMES, rng) for run in (first, second)]
    work = [energies_kT(second, run.x[rows], first) - energies_kT(first, run.x[rows], first)
            for run, rows in zip((first, second), picked)]
    state = [s[rows] for s, rows in zip(states, picked)]
    chain = [run.chain[rows] for run, rows in zip((first, second), picked)]

    def difference(rows):
        p = [np.array([np.mean(state[i][rows[i]] == name) for name in names]) for i in (0, 1)]
        with np.errstate(divide="ignore"):
            said = predicted(p[0], state[0][rows[0]], work[0][rows[0]], state[1][rows[1]], work[1][rows[1]], names)
        common = np.where(np.isnan(said), 0.0, p[1])
        return said, common / common.sum(), said - common / common.sum()

    said, own, gap = difference([np.arange(len(s)) for s in state])
    draws = []
    for _ in range(DRAWS):
        rows = [np.concatenate([np.flatnonzero(c == k) for k in rng.choice(np.unique(c), len(np.unique(c)))])
                for c in chain]
        draws.append(difference(rows)[2])
    error = np.nanstd(draws, axis=0)
    return {"predicted": said.tolist(), "own": own.tolist(), "error": error.tolist(), "work_kT_std":
            [float(w.std()) for w in work], "frames": [len(r) for r in picked], "z": _z(gap, error)}


def by_dynamics(run: Run, labels, borders, both_hands: bool, names, length_ps: float, n: int, seed: int = 0) -> dict:
    """Populations and mean energy (kJ/mol) of n frames of a run, and of the second half of ASE's Langevin from them."""
    rng = np.random.default_rng(seed)
    rows, steps = drawn(run, n, rng), max(2, round(length_ps * 1000 / 0.5))
    atoms, kept, energy = Atoms(run.numbers, calculator=calculator(run)), [], []
    for row in rows:
        atoms.set_positions(10.0 * run.x[row])
        MaxwellBoltzmannDistribution(atoms, temperature_K=run.temperature_K, rng=rng)
        dynamics = Langevin(atoms, 0.5 * units.fs, temperature_K=run.temperature_K, friction=0.01 / units.fs, rng=rng,
                            fixcm=False)
        later = []
        for step in range(steps):
            dynamics.run(1)
            if step >= steps // 2 and step % 10 == 0:
                later.append((atoms.get_potential_energy() * KJ_PER_EV, atoms.get_positions() / 10.0))
        energy.append(np.mean([e for e, _ in later]) - run.energy[row])
        kept.append(np.array([x for _, x in later]))
    before = states_of(angles_of(run.x[rows], labels), borders, both_hands)
    after = np.array([[np.mean(states_of(angles_of(x, labels), borders, both_hands) == name) for name in names]
                      for x in kept])
    change = after - (before[:, None] == np.array(names))
    error = change.std(axis=0, ddof=1) / np.sqrt(len(rows))
    rise, of_rise = float(np.mean(energy)), float(np.std(energy, ddof=1) / np.sqrt(len(rows)))
    return {"starts": len(rows), "ps": length_ps, "change": change.mean(axis=0).tolist(), "error": error.tolist(),
            "z": _z(change.mean(axis=0), error), "energy_rise_kJ": rise, "energy_rise_error_kJ": of_rise,
            "energy_z": rise / of_rise}


def _z(gap: np.ndarray, error: np.ndarray) -> float:
    """Root mean square of differences over their errors, of states whose error is known."""
    known = np.isfinite(gap) & (error > 0)
    return float(np.sqrt(np.mean((gap[known] / error[known]) ** 2))) if known.any() else 0.0


def judged(paths: list[Path], md_ps: float, md_starts: int) -> dict:
    """All that is found of one run or two."""
    runs = [read(path) for path in paths]
    labels = sorted(set().union(*(run.facts["populations"]["torsions"] for run in runs)))
    both_hands = is_achiral(runs[0].facts["smiles"])
    angles = [angles_of(run.x, labels) for run in runs]
    weights = np.concatenate([run.weight / run.weight.sum() for run in runs])
    borders = [valleys(np.concatenate([a[:, d] for a in angles]), weights, both_hands) for d in range(len(labels))]
    states = [states_of(a, borders, both_hands) for a in angles]
    names = [str(name) for name in np.unique(np.concatenate(states))]
    out: dict = {"torsions": labels, "borders_deg": [b.tolist() for b in borders], "states": names, "runs": {}}
    for path, run, state in zip(paths, runs, states):
        p, error = shares(state, run, names)
        told = [label for label in labels if label in run.facts["populations"]["torsions"]]
        of_run = {"method": run.facts["method"], "share": p.tolist(), "error": error.tolist()}
        if told == labels:
            theirs, theirs_error = of_the_file(run, labels, borders, both_hands, names)
            both = np.hypot(error, theirs_error)
            of_run |= {"of_the_file": theirs.tolist(), "largest_difference": float(np.abs(p - theirs).max()),
                       "z_with_the_file": _z(p - theirs, both)}
        if md_ps:
            of_run["dynamics"] = by_dynamics(run, labels, borders, both_hands, names, md_ps, md_starts)
        out["runs"][path.stem] = of_run
    if len(runs) == 2:
        out["by_energies"] = by_energies(*runs, states, names)
    return out


def as_text(found: dict) -> str:
    """A table: states as rows, runs as columns."""
    lines = [f"{'state (' + ' '.join(found['torsions']) + ')':40s}" + "".join(f"{name:>26s}" for name in found["runs"])]
    for n, state in enumerate(found["states"]):
        cells = []
        for run in found["runs"].values():
            file = f", file {run['of_the_file'][n]:.3f}" if "of_the_file" in run else ""
            cells.append(f"{run['share'][n]:.3f} +- {run['error'][n]:.3f}{file}")
        lines.append(f"{state:40s}" + "".join(f"{cell:>26s}" for cell in cells))
    for name, run in found["runs"].items():
        if "of_the_file" in run:
            lines.append(f"{name}: the file's own table differs by {run['largest_difference']:.3f} at most, "
                         f"{run['z_with_the_file']:.2f} errors rms")
        if "dynamics" in run:
            d = run["dynamics"]
            lines.append(f"{name}: after {d['ps']:g} ps of ASE's dynamics from {d['starts']} frames, populations "
                         f"changed by {d['z']:.2f} errors rms, the energy by {d['energy_rise_kJ']:.2f} +- "
                         f"{d['energy_rise_error_kJ']:.2f} kJ/mol")
    if "by_energies" in found:
        b = found["by_energies"]
        rows = [f"{s}: {a:.3f} beside {o:.3f} +- {e:.3f}" for s, a, o, e in
                zip(found["states"], b["predicted"], b["own"], b["error"]) if np.isfinite(a)]
        lines += ["the second run's shares as the first run's and the energies say, beside its own:",
                  *("  " + row for row in rows), f"  {b['z']:.2f} errors rms"]
    return "\n".join(lines)


def main() -> None:
    """Print the tables, write JSON where that is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="one run, or two of one molecule by two methods")
    parser.add_argument("--md-ps", type=float, default=0.0, help="of ASE's dynamics from each start")
    parser.add_argument("--md-starts", type=int, default=48)
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--publish", metavar="NAME", help="keep it in benchmarks/results/independent.json under this")
    args = parser.parse_args()
    if len(args.runs) > 2:
        parser.error("give one run, or two")
    found = judged(args.runs, args.md_ps, args.md_starts)
    print(as_text(found))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    if args.publish:
        kept = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        write_json_compact(RESULT, {**kept, args.publish: found | {"machine": machine(), **provenance()}})


if __name__ == "__main__":
    main()
