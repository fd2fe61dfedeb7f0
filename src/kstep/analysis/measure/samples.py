"""How fast a run makes independent samples, with standard errors: the currency of every comparison.

The same observables, rotamers and estimator serve plain dynamics, a Metropolis chain and the
network's own dynamics, so that ratios compare like with like.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.special import gammaincinv

from kstep.analysis.measure.geometry import find_coordinates, on_circle
from kstep.analysis.measure.profile import GRIDS, Profile
from kstep.analysis.measure.statistics import estimate_means
from kstep.analysis.measure.torsions import count_crossings, crossings_per_chance, find_rotamers
from kstep.dihedrals import dihedrals_deg

FEWEST_FOR_A_RATE = 50  # effective samples
JACKKNIFE_GROUPS = 8


@dataclass(frozen=True)
class Series:
    """What is followed: energy (T_r,) kJ/mol and torsions (T_r,D) degrees of each replica, every spacing_ps.

    weights: (T_r,) of its frames; None: all count alike.
    """

    energy: list[np.ndarray]
    torsions: list[np.ndarray]
    labels: list[str]
    spacing_ps: float
    weights: list[np.ndarray] | None = None

    @property
    def n_frames(self) -> int:
        """Frames of all replicas."""
        return sum(len(e) for e in self.energy)

    @property
    def length_ps(self) -> float:
        """Length of all replicas together, ps."""
        return self.n_frames * self.spacing_ps

    def every(self, spacing_ps: float) -> Series:
        """The same, thinned to about `spacing_ps` between frames."""
        stride = max(1, round(spacing_ps / self.spacing_ps)) if self.spacing_ps > 0 else 1
        return Series([e[::stride] for e in self.energy], [t[::stride] for t in self.torsions], self.labels,
                      self.spacing_ps * stride, self.weights and [w[::stride] for w in self.weights])

    def subset(self, replicas) -> Series:
        """Some of the replicas."""
        return Series([self.energy[r] for r in replicas], [self.torsions[r] for r in replicas], self.labels,
                      self.spacing_ps, self.weights and [self.weights[r] for r in replicas])


def series_of(profile: Profile) -> Series:
    """The series of a trajectory's production."""
    return Series([profile.trajectory.Epot[r] for r in profile.replicas], profile.torsion_series,
                  profile.coordinates.labels["torsions"], profile.spacing_ps, profile.weights)


class Recording:
    """Energy and torsions of replicas of one molecule, frame after frame, where positions are not kept."""

    def __init__(self, numbers, bonds, spacing_ps: float):
        found = find_coordinates(numbers, bonds)
        self._torsions, self._labels, self._spacing_ps = found.atoms["torsions"], found.labels["torsions"], spacing_ps
        self._angles: list[np.ndarray] = []
        self.energies: list[np.ndarray] = []

    def add(self, positions: np.ndarray, energy: np.ndarray) -> None:
        """One frame: positions (R,N,3) nm, energy (R,) kJ/mol."""
        self._angles.append(dihedrals_deg(positions, self._torsions))
        self.energies.append(energy)

    def series(self, rows=slice(None)) -> Series:
        """What was recorded, of all replicas or of some: rows (R,) bool."""
        return Series(list(np.array(self.energies)[:, rows].T),
                      list(np.array(self._angles)[:, rows].transpose(1, 0, 2)), self._labels, self._spacing_ps)


@dataclass(frozen=True)
class Rotamers:
    """Wells (W,) in degrees of one torsion, and the wells (K,) that references alone show.

    per_chance: how often independent samples cross from well to well at each chance they have
    (torsions.crossings_per_chance).  crossings: those seen, of references and runs together.
    """

    label: str
    centres_deg: np.ndarray
    per_chance: float
    known_deg: np.ndarray = field(default_factory=lambda: np.zeros(0))
    crossings: int = 0

    def crossings_per_sample(self, chances: int, n_frames: int) -> float:
        """Crossings that each of n_frames would stand for, were they independent; 0 where one well bounds nothing.

        A run that sits in one well fluctuates fast about it and would otherwise count as many samples of the torsion.
        Chances and not frames are what can cross: a chain's first frame cannot, nor one on a barrier.
        """
        return self.per_chance * max(chances, 1) / n_frames


def common_rotamers(references: list[Series], runs: list[Series]) -> list[Rotamers]:
    """Wells of every torsion, for `effective_samples` of references and runs alike.

    Each side has one half of the weight where wells are looked for.  How often samples cross between them is the same
    for both, so that a crossing means the same everywhere, and each side says as much of the populations behind it as
    it crosses: one that never does shows where it began.
    """
    out = []
    for d, label in enumerate((references + runs)[0].labels):
        sides = [side for side in (references, runs) if side]
        densities = np.array([_density(side, d) for side in sides])
        both = densities.sum(axis=0)
        wells = find_rotamers(both)
        crossings = np.array([_crossings(side, d, wells) for side in sides])
        known = crossings @ densities if crossings.any() else both
        out.append(Rotamers(label, wells, crossings_per_chance(known, wells), find_rotamers(densities[0]),
                            int(crossings.sum())))
    return out


def counted(rotamers: list[Rotamers]) -> tuple[list[Rotamers | None], list[str]]:
    """Torsions with at least two wells in the references, None for the others; and what only runs saw, in words."""
    notes = [f"torsion {r.label} has {len(r.centres_deg)} wells in the runs but {len(r.known_deg)} in the plain "
             "reference, which is too short to have left it; it is not counted"
             for r in rotamers if len(r.known_deg) < 2 <= len(r.centres_deg)]
    return [r if len(r.known_deg) >= 2 else None for r in rotamers], notes


def comparable(rotamers: list[Rotamers]) -> tuple[list[Rotamers | None], list[str]]:
    """As `counted`, less the torsions that neither references nor runs ever cross: of those no two rates compare."""
    known, notes = counted(rotamers)
    kept = [r if r is None or r.crossings else None for r in known]
    notes += [f"torsion {r.label} has {len(r.centres_deg)} wells, in each of which something began, and none crosses; "
              "it is not counted, and nobody knows its populations" for r in known if r is not None and not r.crossings]
    return kept, notes


def _density(side: list[Series], column: int) -> np.ndarray:
    """Histogram of a torsion of all these series together, which sums to one."""
    counts = np.sum([_histogram(series, column) for series in side], axis=0)
    return counts / (counts.sum() or 1.0)


def _histogram(series: Series, column: int) -> np.ndarray:
    lower, upper, bins, _ = GRIDS["torsions"]
    weights = None if series.weights is None else np.concatenate(series.weights)
    return np.histogram(np.concatenate([t[:, column] for t in series.torsions]), bins, (lower, upper),
                        weights=weights)[0].astype(float)


def _crossings(side: list[Series], column: int, wells_deg: np.ndarray) -> float:
    return float(sum(count_crossings(t[:, column], wells_deg)[0] for series in side for t in series.torsions))


def by_errors(series: Series, columns: list[int]) -> np.ndarray:
    """Samples (1 + C,) of the energy and of torsions, by the error of their mean (statistics.estimate_means).

    A torsion has as many as the slower of its cosine and sine.
    """
    energy = estimate_means([e[:, None] for e in series.energy], series.spacing_ps, series.weights).n_eff
    if not columns:
        return energy
    circle = [on_circle(t[:, columns]) for t in series.torsions]
    torsions = estimate_means(circle, series.spacing_ps, series.weights).n_eff
    return np.concatenate([energy, torsions.reshape(2, -1).min(axis=0)])


def effective_samples(series: Series, rotamers: list[Rotamers | None],
                      correlation: Callable[[Series, list[int]], np.ndarray] = by_errors, *,
                      jackknife: bool = True) -> dict:
    """Independent samples of the energy and of every torsion with rotamers, with standard errors.

    A torsion has at most as many as its crossings stand for (Rotamers.crossings_per_sample).  The error is a jackknife
    over replicas, at least sqrt(2/n) of the value: what a variance from n independent samples is off by, and that alone
    without `jackknife`, which takes most of the time.  `correlation` is how the memory of an observable is taken:
    `by_errors`, or fitted_tail.FittedTail where runs are short.
    Returns {"energy": {...}, "torsions": {label: {"samples", "standard_error", "crossings", "crossings_per_sample"}}}.
    """
    columns = [d for d, r in enumerate(rotamers) if r is not None]
    n = len(series.energy)
    counts = np.array([[count_crossings(t[:, d], rotamers[d].centres_deg) for d in columns]
                       for t in series.torsions]).reshape(n, len(columns), 2)

    def bounded(part, counts):
        total = counts.sum(axis=0)
        per_sample = np.array([rotamers[d].crossings_per_sample(chances, part.n_frames)
                               for d, (_, chances) in zip(columns, total)])
        most = np.divide(total[:, 0], per_sample, out=np.full(len(columns), np.inf), where=per_sample > 0)
        return np.minimum(correlation(part, columns), [np.inf, *most]), per_sample

    whole, per_sample = bounded(series, counts)
    groups = [g for g in np.array_split(np.arange(n), min(n, JACKKNIFE_GROUPS)) if len(g)]
    error = np.zeros(len(whole))
    if jackknife and len(groups) >= 3:
        rates = []
        for group in groups:
            rest = np.setdiff1d(np.arange(n), group)
            part = series.subset(rest)
            rates.append(bounded(part, counts[rest])[0] / part.n_frames)
        rates = np.array(rates) * series.n_frames
        error = np.sqrt((len(groups) - 1) / len(groups) * ((rates - rates.mean(axis=0)) ** 2).sum(axis=0))
    error = np.maximum(error, whole * np.sqrt(2.0 / np.maximum(whole, 1.0)))
    found = [{"samples": float(s), "standard_error": float(e)} for s, e in zip(whole, error)]
    return {"energy": found[0],
            "torsions": {rotamers[d].label: {**found[1 + i], "crossings": int(counts[:, i, 0].sum()),
                                             "crossings_per_sample": float(per_sample[i])}
                         for i, d in enumerate(columns)}}


def slowest(torsions: dict[str, dict]) -> tuple[str, dict] | None:
    """(label, entry) of the torsion with the fewest samples; None where there is none."""
    return min(torsions.items(), key=lambda item: item[1]["samples"], default=None)


def crossed(torsions: dict[str, dict]) -> dict[str, dict]:
    """Those that have crossed at least once: a torsion that never did has no rate at all."""
    return {label: entry for label, entry in torsions.items() if entry["crossings"]}


def per(entry: dict, amount: float) -> dict | None:
    """Samples per unit of `amount` with their error; None where fewer than 50 stand behind a rate."""
    if not amount or entry["samples"] < FEWEST_FOR_A_RATE:
        return None
    return {"value": entry["samples"] / amount, "error": entry["standard_error"] / amount, "samples": entry["samples"]}


def ratio(a: dict | None, b: dict | None) -> dict | None:
    """a / b of two {"value", "error"} entries, independent errors; None where one is missing."""
    if a is None or b is None or not b["value"]:
        return None
    value = a["value"] / b["value"]
    relative = np.hypot(a["error"] / a["value"] if a["value"] else 0.0, b["error"] / b["value"])
    return {"value": float(value), "error": float(value * relative)}


def most_samples_by_poisson(entry: dict, confidence: float = 0.95) -> float:
    """Upper bound on the samples that a run of this length makes on average, from its crossings alone.

    With k crossings seen, their mean is below half the chi-square quantile of 2k + 2 degrees of freedom (Garwood,
    Biometrika 28, 437 (1936)), and a sample takes Rotamers.crossings_per_sample of them at least.
    """
    return float(gammaincinv(entry["crossings"] + 1.0, confidence) / entry["crossings_per_sample"])
