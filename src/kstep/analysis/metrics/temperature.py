"""Whether velocities have the temperature that was asked for, element by element."""

from __future__ import annotations

from kstep.analysis.judge.verdict import Verdict
from kstep.analysis.metrics.metric import Metric


class Temperature(Metric):
    """Temperature of each element and of all atoms, and whether it is the target (equipartition)."""

    name = "temperature"
    about = ("Temperature per element", "From velocities, with 3(1 - m/M) degrees of freedom per atom; all elements "
             "must agree with the target within their errors. The kinetic-energy p value is small (below 0.01) when "
             "its distribution is not Maxwell's.")

    def compute(self, comparison):
        """{element: {"temperature_K", "standard_error_K", "target_K", "verdict"}}."""
        profile, out = comparison.profile, {}
        for e, element in enumerate(profile.elements):
            value, error = float(profile.temperatures.mean[e]), float(profile.temperatures.standard_error[e])
            off = abs(value - profile.temperature_K) > 3.0 * error
            out[element] = {"temperature_K": value, "standard_error_K": error, "target_K": profile.temperature_K,
                            "verdict": Verdict.OFF if off else Verdict.RIGHT}
        return out

    def lines(self, result):
        """A line for each element."""
        return {f"temperature of {element} (K)": (f"{t['temperature_K']:.1f}", f"{t['standard_error_K']:.1f} (error)",
                                                  t["verdict"]) for element, t in (result["temperature"] or {}).items()}


TEMPERATURE = Temperature()
