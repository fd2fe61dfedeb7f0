"""Whether the kinetic energy is Maxwell distributed."""

from __future__ import annotations

from kstep.analysis.judge.verdict import Verdict
from kstep.analysis.metrics.cells import number
from kstep.analysis.metrics.metric import Metric

SMALLEST_P = 0.01


class KineticEnergy(Metric):
    """The p value of physical_validation's test (measure.energy.kinetic_energy_check)."""

    name, label = "kinetic", "kinetic energy, p value"

    def compute(self, comparison):
        """What the profile holds, with its verdict; None with too few independent frames."""
        found = comparison.profile.kinetic
        return found and {**found, "verdict": Verdict.MAXWELL if found["p_value"] >= SMALLEST_P
                          else Verdict.NOT_MAXWELL}

    def lines(self, result):
        """One line."""
        if not (own := result["kinetic"]):
            return {}
        return {self.label: (number(own["p_value"]), f"{own['independent_frames']} frames", own["verdict"])}


KINETIC_ENERGY = KineticEnergy()
