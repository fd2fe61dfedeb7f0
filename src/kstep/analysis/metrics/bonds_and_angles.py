"""Mean bond lengths and angles: how far the run's averages lie from the reference's."""

from __future__ import annotations

import numpy as np

from kstep.analysis.metrics.metric import DifferenceOfMeans


class MeanGeometry(DifferenceOfMeans):
    """Root mean square over all bonds (or angles) of the difference of their time averages."""

    about = ("Bond and angle error", "Difference of time-averaged bond lengths and angles between run and reference, "
             "root mean square over all of them. Hydrogens of one CH3, CH2 or NH3 group are averaged first, because "
             "they exchange.")

    def __init__(self, kind: str, unit: str, decimals: int):
        self.kind, self.unit, self.decimals = kind, unit, decimals
        self.name, self.label = f"{kind[:-1]}_rmse_{unit}", f"{kind[:-1]} error"

    def estimate(self, profile):
        """Means of the pooled bonds or angles."""
        return profile.means[self.kind]

    def weights(self, profile):
        """Each pooled quantity counts as often as there are bonds or angles in it."""
        return profile.coordinates.weights(self.kind)

    def detail(self, reference, h, r):
        """The bond or angle that is off most."""
        worst = int(np.abs(h.mean - r.mean).argmax())
        return {"worst": {"label": reference.coordinates.labels[self.kind][worst],
                          "difference": float(h.mean[worst] - r.mean[worst]),
                          "standard_error": float(np.sqrt(h.mean_variance[worst] + r.mean_variance[worst]))}}


BOND_ERROR, ANGLE_ERROR = MeanGeometry("bonds", "A", 5), MeanGeometry("angles", "deg", 3)
