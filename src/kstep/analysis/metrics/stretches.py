"""Where the X-H stretches of the vibrational spectrum lie."""

from __future__ import annotations

import numpy as np

from kstep.analysis.judge.verdict import Verdict
from kstep.analysis.measure import spectra
from kstep.analysis.measure.profile import Profile
from kstep.analysis.metrics.cells import number
from kstep.analysis.metrics.metric import Metric
from kstep.schemas import Trajectory
from kstep.scheme_traits import traits_of


def stretch_shifts(reference: Profile, run: Trajectory) -> dict | None:
    """Positions of the X-H stretches and their shifts in cm-1; None where no spectrum is defined."""
    if not traits_of(run.metadata).keeps_velocities:
        return None
    window = min(spectra.longest_window_ps(run),
                 spectra.longest_window_ps(reference.trajectory, reference.temperature_K), spectra.LONGEST_WINDOW_PS)
    if window < spectra.SHORTEST_SEGMENT_PS:
        return None
    own = spectra.spectrum(run, window)
    base = spectra.spectrum(reference.trajectory, window, reference.temperature_K)
    if own is None or base is None:
        return None
    out = {}
    for name, here in own["stretches"].items():
        there = base["stretches"].get(name)
        if there is None:  # other isotopes than the reference's
            continue
        errors = [here["error_cm"], there["error_cm"]]
        error = float(np.hypot(*errors)) if None not in errors else None
        shift = here["position_cm"] - there["position_cm"]
        out[name] = {"position_cm": here["position_cm"], "reference_cm": there["position_cm"], "shift_cm": shift,
                     "error_cm": error, "windows": own["windows"], "window_ps": window,
                     "verdict": Verdict.NO_FLOOR if not error
                     else Verdict.WITHIN_FLOOR if abs(shift) <= 3.0 * error else Verdict.ABOVE_FLOOR}
    return out


class Stretches(Metric):
    """Shifts of the X-H stretches against the reference's, within three of their errors or not."""

    name, label, unit, needs_frames = "stretches", "stretch shift", "cm-1", False

    def compute(self, comparison):
        """See `stretch_shifts`."""
        return stretch_shifts(comparison.reference, comparison.run)

    def lines(self, result):
        """A line for each kind of stretch."""
        return {f"{name} {self.heading}": (f"{s['shift_cm']:+.1f}", f"{number(s['error_cm'], 2)} (error)", s["verdict"])
                for name, s in (result["stretches"] or {}).items()}


STRETCHES = Stretches()
