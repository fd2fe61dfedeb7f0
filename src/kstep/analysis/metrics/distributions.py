"""Whole distributions of bonds, angles and torsions: Wasserstein-1 and Jensen-Shannon from the reference's."""

from __future__ import annotations

import numpy as np

from kstep.analysis.measure import statistics
from kstep.analysis.measure.profile import GRIDS
from kstep.analysis.metrics.metric import Comparison, FlooredMetric, floored, limit_of


class DistributionDistance(FlooredMetric):
    """Mean over the coordinates of a kind (bonds, angles, torsions) of one distance between distributions.

    The floor of a coordinate is the mean distance of two reference replicas, brought to the samples behind the run's
    histogram; a divergence grows as 1/n and not as its square root.
    """

    in_short = False
    about = ("Wasserstein-1 and Jensen-Shannon", "How far a whole distribution is from the reference's, not only its "
             "mean. Wasserstein-1 is the average distance one has to shift it; Jensen-Shannon is 0 for equal and 1 "
             "for disjoint.")

    def __init__(self, kind: str, unit: str, is_divergence: bool):
        self.kind, self.is_divergence, one = kind, is_divergence, kind[:-1]
        self.name = f"{one}_js" if is_divergence else f"{one}_w1_{unit}"
        self.label, self.unit = (f"{one} Jensen-Shannon", "") if is_divergence else (f"{one} W1", unit)

    def _distance(self, p, q):
        lower, upper, bins, merged = GRIDS[self.kind]
        if self.is_divergence:
            return statistics.jensen_shannon(statistics.coarsen(p, merged), statistics.coarsen(q, merged))
        return statistics.wasserstein_1(p, q, (upper - lower) / bins, circular=self.kind == "torsions")

    def of_each(self, comparison: Comparison) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Distances (C,) of run and pooled reference; those of replica pairs (R,R,C) and their scale, None with one."""
        hybrid, reference = comparison.profile, comparison.reference
        table = reference.histograms[self.kind]
        values = self._distance(hybrid.histograms[self.kind].sum(axis=0), table.sum(axis=0))
        if len(table) < 2:
            return values, None, None
        sizes = "bin_n_eff" if self.is_divergence else "shape_n_eff"
        n_h, n_r = getattr(hybrid, sizes)[self.kind], getattr(reference, sizes)[self.kind]
        shares = reference.means["bonds"].shares
        pair = (1.0 / shares[:, None] + 1.0 / shares[None, :])[..., None] / n_r
        pairs = np.array([[self._distance(p, q) for q in table] for p in table])
        return values, pairs, np.sqrt((1.0 / n_h + 1.0 / n_r) / pair) ** (2 if self.is_divergence else 1)

    def floors(self, pairs: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """The floor (C,) of each coordinate."""
        a, b = np.triu_indices(len(pairs), 1)
        return (pairs * scale)[a, b].mean(axis=0)

    def compute(self, comparison):
        """The mean distance beside its floor; None for a molecule without such coordinates."""
        weights = comparison.reference.coordinates.weights(self.kind)
        if not len(weights):
            return None

        def combine(d):
            return np.average(d, axis=-1, weights=weights)

        values, pairs, scale = self.of_each(comparison)
        if pairs is None:
            return floored(combine(values), None)
        floor = statistics.noise_floor(pairs, scale, combine, seed=comparison.seed)
        return floored(combine(values), floor, limit_of(weights * self.floors(pairs, scale)))


BOND_W1, ANGLE_W1, TORSION_W1 = (DistributionDistance(kind, unit, False) for kind, unit in (
    ("bonds", "A"), ("angles", "deg"), ("torsions", "deg")))
BOND_JS, ANGLE_JS, TORSION_JS = (DistributionDistance(kind, "", True) for kind in ("bonds", "angles", "torsions"))
