"""What a metric is: one number of a run, how it is computed, and how it reads in a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from kstep.analysis.judge.verdict import Verdict
from kstep.analysis.measure import statistics
from kstep.analysis.measure.profile import Profile
from kstep.analysis.measure.samples import Rotamers, common_rotamers, effective_samples, series_of
from kstep.analysis.measure.statistics import MeanEstimate
from kstep.analysis.metrics.cells import NOT_DEFINED, number, with_error
from kstep.schemas import Trajectory
from kstep.scheme_traits import SchemeTraits, traits_of


@dataclass
class Comparison:
    """A run beside its reference.

    profile: what was measured on the run's production frames, None where it has none; seed: of the floors' errors.
    """

    reference: Profile
    profile: Profile | None
    run: Trajectory
    seed: int = 0
    _values: dict[str, Any] = field(default_factory=dict)

    @property
    def traits(self) -> SchemeTraits:
        """What the run's scheme says of itself."""
        return traits_of(self.run.metadata)

    @cached_property
    def samples(self) -> tuple[list[Rotamers], dict, dict]:
        """Rotamers of run and reference together, and the effective samples of the run and of the reference."""
        own, base = series_of(self.profile), series_of(self.reference)
        rotamers = common_rotamers([base], [own])
        return rotamers, effective_samples(own, rotamers), effective_samples(base, rotamers)

    def value(self, metric: Metric) -> Any:
        """What `metric` computes of this comparison, once; None where it is not defined."""
        if metric.name not in self._values:
            known = self.profile is not None or not metric.needs_frames
            self._values[metric.name] = metric.compute(self) if known else None
        return self._values[metric.name]


class Metric:
    """One number, or a few that belong together.

    name: its key in metrics.json; label, unit: of its row; section: the key under which it stands, None for the
    top; needs_frames: it is computed from production frames; about: (heading, what it means), for the report's end.
    """

    name: str
    label: str = ""
    unit: str = ""
    section: str | None = None
    needs_frames: bool = True
    about: tuple[str, str] | None = None

    def compute(self, comparison: Comparison) -> Any:
        """Plain numbers and verdicts; None where it is not defined for this run."""
        raise NotImplementedError

    def warnings(self, comparison: Comparison) -> list[str]:
        """What a reader must know of it, in sentences."""
        return []

    def lines(self, result: dict) -> dict[str, tuple[str, str, str]]:
        """What one run's column says: {label: (value, what stands beside it, verdict)}."""
        return {}

    def table(self, result: dict) -> tuple[list[str], list[list[str]]] | None:
        """Header and lines of a table of its own, for what does not fit a line."""
        return None

    def rows(self, result: dict, controls: dict[str, dict]) -> list[list[str]]:
        """Its lines of a table: label, value, what stands beside it, verdict, then the value of each control."""
        own, others = self.lines(result), [self.lines(control) for control in controls.values()]
        labels = dict.fromkeys(label for lines in (own, *others) for label in lines)
        return [[label, *own.get(label, NOTHING), *(_in_brief(*lines.get(label, NOTHING)) for lines in others)]
                for label in labels]

    @property
    def meaning(self) -> str:
        """What metrics.json says of it."""
        return " ".join((type(self).__doc__ or "").split())

    @property
    def heading(self) -> str:
        """'bond error (A)'."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


NOTHING = NOT_DEFINED, "", ""


def _in_brief(value: str, beside: str, verdict: str) -> str:
    """A control's cell: its value, and whether that lies within a floor of its own."""
    words: dict[str, str] = {Verdict.WITHIN_FLOOR: " (within)", Verdict.ABOVE_FLOOR: " (above)"}
    return verdict if verdict == Verdict.REFERENCE else value + words.get(verdict, "")


class FlooredMetric(Metric):
    """A distance from the reference, beside the noise floor that sampling alone gives it.

    The floor is the metric D_ab of each pair of reference replicas, times
        sqrt( sum_c (s_hyb,c^2 + s_ref,c^2) / sum_c (s_a,c^2 + s_b,c^2) ),
    averaged over pairs; s are the standard errors of coordinate c in the hybrid run, in the
    pooled reference and in the two replicas (statistics.estimate_means).  `floor_expected` is the
    second estimate, sqrt(mean_c (s_hyb,c^2 + s_ref,c^2)) for an RMS, which uses no pair at all: the
    two agree when replicas differ as their own fluctuations say they should.
    Distributions use n_eff in place of 1/s^2, divergences (which grow as 1/n) the square.
    Up to `limit` floors a value is within its floor.

    in_short: it stands in the benchmark's table too, there with so many `decimals`.
    """

    section = "structure"
    in_short: bool = True
    decimals: int = 3

    def entry_of(self, result: dict) -> dict | None:
        """What it said of a run; None where it was not defined."""
        return (result.get(self.section) or {}).get(self.name)

    def cells(self, result: dict) -> tuple[str, str, str]:
        """(value, floor, verdict)."""
        entry = self.entry_of(result)
        if entry is None:
            return NOTHING
        floor = with_error(entry["floor"], entry["floor_error"]) if entry["floor"] is not None else "none"
        return number(entry["value"]), floor, entry["verdict"]

    def lines(self, result):
        """One line, where it is defined."""
        return {self.heading: self.cells(result)} if self.entry_of(result) else {}


def floored(value, floor: statistics.Floor | None, limit: float = statistics.WITHIN_FLOOR) -> dict:
    """A value beside its floor: {"value", "floor", "floor_error", "floor_expected", "ratio", "limit", "verdict"}."""
    out = {"value": float(value), "floor": None, "floor_error": None, "floor_expected": None, "ratio": None,
           "limit": float(limit), "verdict": Verdict.NO_FLOOR}
    if floor is not None:
        within = value <= limit * floor.value
        out.update(floor=floor.value, floor_error=floor.error, floor_expected=floor.expected,
                   ratio=float(value / floor.value) if floor.value > 0 else None,
                   verdict=Verdict.WITHIN_FLOOR if within else Verdict.ABOVE_FLOOR)
    return out


def limit_of(parts: np.ndarray) -> float:
    """Ratio up to which a metric made of positive `parts` (C,) is within its floor.

    A metric of one coordinate scatters about its floor like |x| of a Gaussian, of which one in
    twenty exceeds 2.5 means; one of many coordinates hardly scatters, and 1.5 is the limit.
    """
    effective = parts.sum() ** 2 / max((parts**2).sum(), 1e-300)
    return max(statistics.WITHIN_FLOOR, 1.0 + 1.5 / np.sqrt(max(effective, 1.0)))


ONE_COORDINATE = limit_of(np.ones(1))


class DifferenceOfMeans(FlooredMetric):
    """|time average of the run - that of the reference|, summed over coordinates or as a root mean square.

    A subclass gives `estimate`, and `weights` for a root mean square.
    """

    limit: float = statistics.WITHIN_FLOOR

    def estimate(self, profile: Profile) -> MeanEstimate:
        """Time averages (C,) with errors, as statistics.estimate_means gives them."""
        raise NotImplementedError

    def weights(self, profile: Profile) -> np.ndarray | None:
        """(C,) of a root mean square; None: the coordinates' differences are summed."""
        return None

    def compute(self, comparison):
        """The difference beside its floor; None for a molecule without such coordinates."""
        h, r = self.estimate(comparison.profile), self.estimate(comparison.reference)
        if not len(r.mean):
            return None
        weights = self.weights(comparison.reference)
        variance = h.mean_variance + r.mean_variance
        if weights is None:
            weights = np.ones(len(r.mean))
            # the mean of |x| is sqrt(2/pi) of its standard deviation when x is Gaussian
            expected = float(np.sqrt(2.0 / np.pi) * np.sqrt(variance).sum())

            def combine(d):
                return d.sum(axis=-1)
        else:
            expected = float(np.sqrt(np.average(variance, weights=weights)))

            def combine(d):
                return np.sqrt(np.average(d**2, axis=-1, weights=weights))

        value, floor = combine(np.abs(h.mean - r.mean)), None
        if len(r.replica_means) >= 2:
            pairs = np.abs(r.replica_means[:, None] - r.replica_means[None])
            floor = statistics.noise_floor(pairs, _scale_of_pairs(h, r, weights), combine, expected=expected,
                                           seed=comparison.seed)
        return {**floored(value, floor, self.limit), **self.detail(comparison.reference, h, r)}

    def detail(self, reference: Profile, h: MeanEstimate, r: MeanEstimate) -> dict:
        """What else its entry holds."""
        return {}


def _scale_of_pairs(h: MeanEstimate, r: MeanEstimate, weights: np.ndarray) -> np.ndarray:
    """(R,R) factor that brings a replica pair's difference to the run against the pooled reference."""
    pair = 1.0 / r.shares[:, None] + 1.0 / r.shares[None, :]
    denominator = (weights * r.mean_variance).sum() * pair
    return np.sqrt((weights * (h.mean_variance + r.mean_variance)).sum() / np.maximum(denominator, 1e-300))
