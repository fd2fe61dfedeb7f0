"""The mean of the true potential energy."""

from __future__ import annotations

from kstep.analysis.metrics.metric import ONE_COORDINATE, DifferenceOfMeans


class PotentialEnergy(DifferenceOfMeans):
    """Difference of the mean potential energies of run and reference."""

    name, label, unit, in_short = "potential_kJ_per_mol", "mean potential energy", "kJ/mol", False
    limit = ONE_COORDINATE

    def estimate(self, profile):
        """One mean."""
        return profile.potential

    def detail(self, reference, h, r):
        """The difference with its sign."""
        return {"difference": float(h.mean[0] - r.mean[0])}


POTENTIAL_ENERGY = PotentialEnergy()
