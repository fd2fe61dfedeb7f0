"""Populations of conformers against experiment: what the *method* gives, sampled until it is known.

    python benchmarks/experiment.py                        # all of MOLECULES
    python benchmarks/experiment.py --molecules butane --effective-samples 200     # a quick try
    python benchmarks/experiment.py --molecules n_methylformamide --qm-config configs/qm_pyscf.yaml \
        --via configs/qm.yaml --effective-samples 200                               # the same with DFT

Every molecule is learned once, at its hottest temperature, and the network serves the other temperatures.  An amide
bond turns by the moves of `nested` on the network, a ring by a hot ladder that the network alone has.  An enthalpy is
the slope of ln K over -1/RT, and again, at each temperature, the difference of the states' mean energies; of two
estimates that know nothing of each other's noise the weighted mean is taken, and chi^2 says whether they agree.

States are ranges of a torsion, with borders where GFN2-xTB has its barriers (120 degrees; amide 90), and both mirror
images of a gauche state count.  A difference from experiment is the method's own, as sampling is exact within the
errors, and that of classical nuclei: zero-point energy is in experiment alone.  Runs in outputs/experiment, merges its
figures into benchmarks/results/experiment.json; what is there already is kept.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kstep.analysis.measure.averages import Ensemble, gather
from kstep.analysis.measure.observables import observe
from kstep.analysis.measure.populations import populations
from kstep.dihedrals import dihedrals_deg
from kstep.files import write_json_compact
from kstep.schemas import Trajectory, load_trajectory
from kstep.units import KJ_PER_KCAL, kT
from running import RESULTS, ROOT, machine, provenance, sh

RESULT, WORK = RESULTS / "experiment.json", Path("outputs/experiment")
CAL_PER_KJ = 1000.0 / KJ_PER_KCAL
LADDER_K = (300, 390, 510, 660, 860, 1120)
ON_THE_NETWORK = ("--network-ladder", *LADDER_K, "--hydrogen-mass", 4)

States = Callable[[np.ndarray], np.ndarray]  # of positions (F,N,3) nm: 0 or 1 for each of the states (F,S)


@dataclass(frozen=True)
class Figure:
    """One measured number: its states, "enthalpy" (cal/mol) or "free energy" (cal/mol) of the second state over the
    first, or "share" of the second; experiment with its standard error, from where, and at which temperature if at
    one."""

    name: str
    kind: str
    first: str
    second: str
    experiment: float
    error: float | None
    source: str
    temperature_K: float | None = None


@dataclass(frozen=True)
class Subject:
    """A molecule: what tells its states apart, temperatures of its runs (hottest first), further flags, figures."""

    smiles: str
    states: dict[str, Callable[[np.ndarray], np.ndarray]]  # of torsions (F,D) in degrees -> (F,) bool
    torsions: tuple[tuple[int, ...], ...]
    temperatures_K: tuple[float, ...]
    figures: tuple[Figure, ...]
    flags: tuple = ()


def trans(phi: np.ndarray) -> np.ndarray:
    """Whether torsions in degrees are beyond 120."""
    return np.abs(phi) > 120.0


BALABIN = "Raman of the gas at 143 to 250 K: Balabin, J. Phys. Chem. A 113, 1012 (2009)"
HAGEN = "electron diffraction, 2 sigma of 0.10, 0.13, 0.11: Dyngeseth, Schei, Hagen, J. Mol. Struct. 116, 257 (1984)"
MOLECULES = {
    "butane": Subject("CCCC", {"t": lambda a: trans(a[:, 0]), "g": lambda a: ~trans(a[:, 0])}, ((0, 1, 2, 3),),
                      (450.0, 330.0, 250.0), (Figure("gauche", "enthalpy", "t", "g", 660.0, 22.0, BALABIN),)),
    "pentane": Subject("CCCCC", {"tt": lambda a: trans(a).all(axis=1), "tg": lambda a: trans(a).sum(axis=1) == 1,
                                 "gg": lambda a: ~trans(a).any(axis=1) & (a[:, 0] * a[:, 1] > 0),
                                 "g+g-": lambda a: ~trans(a).any(axis=1) & (a[:, 0] * a[:, 1] <= 0)},
                       ((0, 1, 2, 3), (1, 2, 3, 4)), (450.0, 330.0, 250.0),
                       (Figure("tg", "enthalpy", "tt", "tg", 618.0, 6.0, BALABIN),
                        Figure("g+g+", "enthalpy", "tt", "gg", 940.0, 20.0, BALABIN))),
    "n_methylformamide": Subject("CNC=O", {"trans": lambda a: np.abs(a[:, 0]) < 90.0,
                                           "cis": lambda a: np.abs(a[:, 0]) >= 90.0}, ((0, 1, 2, 3),), (300.0,),
                                 (Figure("cis", "share", "trans", "cis", 0.05, None, "about 5 % of the gas at room "
                                         "temperature, IR and NMR: J. Mol. Struct. (2006), Conformational behavior of "
                                         "N-methylformamide", 300.0),)),
    "methylcyclohexane": Subject("CC1CCCCC1", {"equatorial": lambda a: trans(a[:, 0]),
                                               "axial": lambda a: ~trans(a[:, 0])}, ((0, 1, 2, 3),), (300.0,),
                                 (Figure("axial", "free energy", "equatorial", "axial", 1770.0, 30.0, "A value, 1.74 "
                                         "to 1.80 kcal/mol; in solution at 157 K dH 1.76 +- 0.10 kcal/mol, dS 0.2 +- "
                                         "0.2 eu: Wiberg et al., J. Org. Chem. 64, 2085 (1999)", 300.0),),
                                 ON_THE_NETWORK),
    "propionyl_chloride": Subject("CCC(=O)Cl", {"gauche": lambda a: ~trans(a[:, 0]), "anti": lambda a: trans(a[:, 0])},
                                  ((0, 1, 2, 4),), (488.0, 367.0, 293.0),
                                  tuple(Figure(f"anti at {T} K", "share", "gauche", "anti", x, error, HAGEN, float(T))
                                        for T, x, error in ((293, 0.77, 0.05), (367, 0.65, 0.065),
                                                            (488, 0.53, 0.055)))),
}


def made(name: str, subject: Subject, work: Path, *flags, via: str | None = None) -> list[Path]:
    """The runs of a molecule, hottest first, each kept if it is there; flags: of every one of them; via: YAML of a
    cheaper method that the network is learned of first."""
    out: list[Path] = []
    learned = ("learn", "--learn") if via is None else ("via1", "--via", via)
    for temperature_K in subject.temperatures_K:
        path = work / f"{name}_{temperature_K:g}K.npz"
        network = ("--checkpoint", f"{out[0]}.{learned[0]}/network.pt", "--tune") if out else learned[1:]
        sh(ROOT / path, "-m", "kstep", "sample", subject.smiles, "--name", name, *network, *subject.flags,
           "--temperature", f"{temperature_K:g}", *flags, "--resume", "--out", path)
        out.append(path)
    return out


def indicator(subject: Subject) -> States:
    """The states of frames, in the order of the subject's."""
    quadruples = np.array(subject.torsions)

    def of(x: np.ndarray) -> np.ndarray:
        angles = dihedrals_deg(x, quadruples)
        return np.column_stack([state(angles) for state in subject.states.values()]).astype(float)

    return of


def log_ratio(ensemble: Ensemble, subject: Subject, first: str, second: str) -> tuple[float, float]:
    """ln of the share of the second state over that of the first, with its error."""
    states, names = indicator(subject), list(subject.states)
    a, b = names.index(first), names.index(second)
    p = np.asarray(observe(ensemble, states).mean)
    if not (p[a] > 0 and p[b] > 0):
        raise SystemExit(f"{subject.smiles}: the run never saw {second if p[a] > 0 else first}")
    spread = observe(ensemble, lambda x: states(x)[:, b] / p[b] - states(x)[:, a] / p[a])
    return float(np.log(p[b] / p[a])), float(spread.error)


def energy_gap(ensemble: Ensemble, subject: Subject, first: str, second: str) -> tuple[float, float]:
    """Mean potential energy of the second state over that of the first, kJ/mol, with its error.

    With classical nuclei, whose kinetic energies are alike, the enthalpy difference at the ensemble's temperature:
    d ln K / d(-1/kT) = <U>_second - <U>_first.
    """
    names = list(subject.states)
    inside = indicator(subject)(ensemble.trajectory.pos[ensemble.frames])[:, [names.index(first), names.index(second)]]
    U = ensemble.trajectory.Epot[ensemble.frames][:, None]
    p = ensemble.weight @ inside
    means = (ensemble.weight @ (inside * U)) / p
    spread = ensemble.average((inside * (U - means) / p) @ np.array([[-1.0], [1.0]]))
    return float(means[1] - means[0]), float(spread.error[0])


def weighted(values: np.ndarray, errors: np.ndarray) -> tuple[float, float, float]:
    """Mean weighed by 1 / error^2, its error, and chi^2 per degree of freedom (1 where the values agree)."""
    w = 1.0 / errors**2
    mean = float(np.average(values, weights=w))
    return mean, float(1.0 / np.sqrt(w.sum())), float((w * (values - mean) ** 2).sum() / max(1, len(values) - 1))


def enthalpy(temperatures_K: np.ndarray, ln_K: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """kJ/mol and its error from ln K = -H / RT + S / R by weighted least squares."""
    x, w = -1.0 / kT(temperatures_K), 1.0 / errors**2
    middle = np.average(x, weights=w)
    spread = (w * (x - middle) ** 2).sum()
    return float((w * (x - middle) * ln_K).sum() / spread), float(1.0 / np.sqrt(spread))


def enthalpies(figure: Figure, subject: Subject, runs: list[Trajectory]) -> list[dict]:
    """Every estimate of an enthalpy, cal/mol with its error: from the slope of ln K, and from energies at each run."""
    ensembles, states = [gather([run]) for run in runs], (figure.first, figure.second)
    slope = enthalpy(np.array([e.temperature_K for e in ensembles]),
                     *np.array([log_ratio(e, subject, *states) for e in ensembles]).T)
    gaps = [energy_gap(e, subject, *states) for e in ensembles]
    names = ["slope of ln K", *(f"energies at {e.temperature_K:g} K" for e in ensembles)]
    return [{"from": name, "value": value * CAL_PER_KJ, "error": error * CAL_PER_KJ}
            for name, (value, error) in zip(names, [slope, *gaps])]


def value_of(figure: Figure, subject: Subject, runs: list[Trajectory]) -> tuple[float, float]:
    """What the runs say of a figure, with the error of sampling."""
    if figure.kind == "enthalpy":
        found = enthalpies(figure, subject, runs)
        return weighted(*(np.array([part[key] for part in found]) for key in ("value", "error")))[:2]
    at = figure.temperature_K or subject.temperatures_K[-1]
    own = [run for run, T in zip(runs, subject.temperatures_K) if abs(T - at) < 0.5] or runs
    ensemble = gather(own, at)
    ln_K, error = log_ratio(ensemble, subject, figure.first, figure.second)
    if figure.kind == "free energy":
        return -kT(at) * ln_K * CAL_PER_KJ, kT(at) * error * CAL_PER_KJ
    share = 1.0 / (1.0 + np.exp(-ln_K))
    return float(share), float(share * (1.0 - share) * error)


def row(subject: Subject, paths: list[Path]) -> dict:
    """Every figure of a molecule beside experiment, and whether its runs are converged."""
    runs = [load_trajectory(ROOT / path) for path in paths]
    figures = []
    for figure in subject.figures:
        value, error = value_of(figure, subject, runs)
        unit = "share" if figure.kind == "share" else "cal/mol"
        figures.append({"figure": figure.name, "kind": figure.kind, "unit": unit, "method": value,
                        "method_error": error, "experiment": figure.experiment, "experiment_error": figure.error,
                        "source": figure.source, "temperature_K": figure.temperature_K})
        if figure.kind == "enthalpy":
            parts = enthalpies(figure, subject, runs)
            chi2 = weighted(*(np.array([part[key] for part in parts]) for key in ("value", "error")))[2]
            figures[-1] |= {"estimates": parts, "chi2_per_degree": chi2}
    found = [populations([run]) for run in runs]
    return {"smiles": subject.smiles, "method": runs[0].metadata["method"], "figures": figures,
            "temperatures_K": list(subject.temperatures_K), "converged": [p.converged for p in found],
            "problems": [p.problems for p in found], "true_calls": [run.metadata["true_calls"] for run in runs],
            "true_calls_training": runs[0].metadata["true_calls_training"]}


def main() -> None:
    """Write benchmarks/results/experiment.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", nargs="+", choices=list(MOLECULES), default=list(MOLECULES))
    parser.add_argument("--effective-samples", type=int, default=4000, help="of each run")
    parser.add_argument("--max-true-calls", type=int, default=200_000, help="of each run, learning apart")
    parser.add_argument("--qm-config", default="configs/qm.yaml", help="YAML of the true physics")
    parser.add_argument("--via", help="YAML of a cheaper method, from which only the difference is learned")
    parser.add_argument("--work", type=Path, default=WORK, help="where the runs are")
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args()
    rows = json.loads(args.result.read_text())["molecules"] if args.result.exists() else {}
    other = Path(args.qm_config).stem.removeprefix("qm").strip("_")
    for molecule in args.molecules:
        subject, name = MOLECULES[molecule], f"{molecule}_{other}" if other else molecule
        paths = made(name, subject, args.work, "--config", args.qm_config, "--effective-samples",
                     args.effective_samples, "--max-true-calls", args.max_true_calls, via=args.via)
        rows[name] = row(subject, paths)
        for figure in rows[name]["figures"]:
            print(f"{name} {figure['figure']}: {figure['method']:.4g} +- {figure['method_error']:.2g} "
                  f"{figure['unit']}, experiment {figure['experiment']:g}", flush=True)
        write_json_compact(args.result, {"molecules": rows, "machine": machine(), **provenance()})


if __name__ == "__main__":
    main()
