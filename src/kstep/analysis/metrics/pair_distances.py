"""All atom-atom distances of the molecule, as one histogram."""

from __future__ import annotations

from kstep.analysis.metrics.metric import DifferenceOfMeans


class PairDistances(DifferenceOfMeans):
    """L1 difference of the intramolecular pair-distance histograms, each of area 1."""

    name, label, in_short = "rdf_l1", "RDF L1", False
    about = ("RDF", "Histogram of all atom-atom distances in the molecule, area 1; the number is the area between the "
             "two curves.")

    def estimate(self, profile):
        """Shares of the bins."""
        return profile.rdf


PAIR_DISTANCES = PairDistances()
