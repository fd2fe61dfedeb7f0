"""How fast a run makes independent samples, with standard errors: the currency of every comparison.

The same observables, rotamers and estimator serve plain dynamics, a Metropolis chain and the
network's own dynamics, so that ratios compare like with like.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from kstep.analysis.judge.structure import FEWEST_FOR_A_RATE
from kstep.analysis.measure.profile import GRIDS, Profile
from kstep.analysis.measure.statistics import estimate_means
from kstep.analysis.measure.torsions import count_transitions, find_rotamers, most_samples, rotamer_populations

JACKKNIFE_GROUPS = 8


@dataclass(frozen=True)
class Series:
    """What is followed: energy (T_r,) kJ/mol and torsions (T_r,D) degrees of each replica, every spacing_ps."""

    energy: list[np.ndarray]
    torsions: list[np.ndarray]
    labels: list[str]
    spacing_ps: float

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
                      self.spacing_ps * stride)

    def subset(self, replicas) -> Series:
        """Some of the replicas."""
        return Series([self.energy[r] for r in replicas], [self.torsions[r] for r in replicas], self.labels,
                      self.spacing_ps)


def series_of(profile: Profile) -> Series:
    """The series of a trajectory's production."""
    return Series([profile.trajectory.Epot[r] for r in profile.replicas], profile.torsion_series,
                  profile.coordinates.torsion_labels, profile.spacing_ps)


@dataclass(frozen=True)
class Rotamers:
    """Wells (W,) in degrees of one torsion and their populations (W,)."""

    label: str
    centres_deg: np.ndarray
    populations: np.ndarray


def common_rotamers(references: list[Series], runs: list[Series]) -> tuple[list[Rotamers | None], list[str]]:
    """Wells of every torsion with at least two in the references, None for the others.

    Wells and populations come from references and runs alike, each side with one half of the weight, so
    that a crossing means the same everywhere.  Also returns sentences about wells that only runs visit.
    """
    out, notes = [], []
    for d, label in enumerate((references + runs)[0].labels):
        base = sum(_histogram(s, d) for s in references)
        both = base / base.sum()
        if runs:
            own = sum(_histogram(s, d) for s in runs)
            both = both + own / own.sum()
        wells, known = find_rotamers(both), find_rotamers(base)
        if len(known) < 2:
            out.append(None)
            if len(wells) >= 2:
                notes.append(f"torsion {label} has {len(wells)} wells in the runs but {len(known)} in the plain reference, "
                             "which is too short to have left it; it is not counted")
            continue
        out.append(Rotamers(label, wells, rotamer_populations(both, wells)))
    return out, notes


def _histogram(series: Series, column: int) -> np.ndarray:
    lower, upper, bins, _ = GRIDS["torsions"]
    return np.histogram(np.concatenate([t[:, column] for t in series.torsions]), bins, (lower, upper))[0].astype(float)


def effective_samples(series: Series, rotamers: list[Rotamers | None]) -> dict:
    """Independent samples of the energy and of every torsion with rotamers, with standard errors.

    A torsion has as many as the slower of its cosine and sine, at most torsions.most_samples of
    its crossings.  The error is a jackknife over replicas, at least sqrt(2/n) of the value: what a
    variance from n independent samples is off by.
    Returns {"energy": {...}, "torsions": {label: {"samples", "standard_error", "crossings"}}}.
    """
    counted = [d for d, r in enumerate(rotamers) if r is not None]
    crossings = np.array([[count_transitions(t[:, d], rotamers[d].centres_deg) for d in counted] for t in series.torsions])
    whole = _samples(series, rotamers, counted, crossings)
    n = len(series.energy)
    groups = [g for g in np.array_split(np.arange(n), min(n, JACKKNIFE_GROUPS)) if len(g)]
    error = np.zeros(len(whole))
    if len(groups) >= 3:
        rates = []
        for group in groups:
            rest = np.setdiff1d(np.arange(n), group)
            part = series.subset(rest)
            rates.append(_samples(part, rotamers, counted, crossings[rest]) / part.n_frames)
        rates = np.array(rates) * series.n_frames
        error = np.sqrt((len(groups) - 1) / len(groups) * ((rates - rates.mean(axis=0)) ** 2).sum(axis=0))
    error = np.maximum(error, whole * np.sqrt(2.0 / np.maximum(whole, 1.0)))
    found = [{"samples": float(s), "standard_error": float(e)} for s, e in zip(whole, error)]
    return {"energy": found[0],
            "torsions": {rotamers[d].label: {**found[1 + i], "crossings": int(crossings[:, i].sum()),
                                             "crossings_per_sample": float(1.0 / most_samples(1, rotamers[d].populations))}
                         for i, d in enumerate(counted)}}


def _samples(series, rotamers, counted, crossings):
    """Effective samples (1 + torsions,): the energy first."""
    circle = [np.column_stack([np.cos(np.radians(t[:, counted])), np.sin(np.radians(t[:, counted]))])
              for t in series.torsions]
    energy = estimate_means([e[:, None] for e in series.energy], series.spacing_ps).n_eff
    torsions = np.zeros(0)
    if counted:
        torsions = estimate_means(circle, series.spacing_ps).n_eff.reshape(2, -1).min(axis=0)
    bound = [most_samples(int(crossings[:, i].sum()), rotamers[d].populations) for i, d in enumerate(counted)]
    return np.concatenate([energy, np.minimum(torsions, bound)])


def slowest(found: dict) -> tuple[str, dict] | None:
    """(label, entry) of the torsion with the fewest samples; None for a molecule without rotamers."""
    torsions = found["torsions"]
    if not torsions:
        return None
    label = min(torsions, key=lambda name: torsions[name]["samples"])
    return label, torsions[label]


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

    With k crossings seen, their mean is below chi2.ppf(confidence, 2k + 2) / 2 (Garwood, Biometrika
    28, 437 (1936)), and a sample takes sum p (1 - p) crossings at least (torsions.most_samples).
    """
    return float(chi2.ppf(confidence, 2 * entry["crossings"] + 2) / 2.0 / entry["crossings_per_sample"])
