"""Energy drift: whether the true total energy stays where no thermostat acts."""

from __future__ import annotations

from kstep.analysis.judge.verdict import Verdict
from kstep.analysis.measure.energy import energy_drift
from kstep.analysis.metrics.cells import Cell, number, with_error
from kstep.analysis.metrics.metric import NOTHING, Metric
from kstep.schemas import Trajectory
from kstep.scheme_traits import traits_of


def rescales_energy(trajectory: Trajectory) -> bool:
    """True when the run rescaled velocities to its old total energy, which hides drift."""
    config = trajectory.metadata.get("config") or {}
    return bool(trajectory.metadata.get("energy_rescale") or (isinstance(config, dict) and (
        config.get("energy_rescale") or (config.get("hybrid") or {}).get("energy_rescale"))))


def drift_of(run: Trajectory) -> dict | None:
    """`energy_drift` with its verdict; None where the scheme or a rescale leaves none to measure."""
    if not traits_of(run.metadata).keeps_velocities or rescales_energy(run):
        return None
    found = energy_drift(run)
    if found is None:
        return None
    interval = found["confidence_95"]
    verdict = (Verdict.BLEW_UP if found["blown_up_segments"] else Verdict.NO_INTERVAL if interval is None
               else Verdict.NO_DRIFT if interval[0] <= 0 <= interval[1] else Verdict.DRIFTS)
    return {**found, "verdict": verdict}


class Drift(Metric):
    """Slope of the true total energy in NVE windows, with its 95 % interval."""

    name, label, unit, needs_frames = "drift", "energy drift", "kJ/mol/ps", False
    about = ("Energy drift", "Slope of the true total energy when no thermostat acts, with its 95 % confidence "
             "interval. It is not defined for a scheme that draws new velocities for each step.")

    def compute(self, comparison):
        """See `drift_of`."""
        return drift_of(comparison.run)

    def warnings(self, comparison):
        """A rescale is said."""
        said = "the run rescales its energy, which hides drift; none is reported"
        return [said] if rescales_energy(comparison.run) else []

    def cells(self, result: dict) -> tuple[str, str, str]:
        """Slope with its interval, and what it says."""
        drift = result["drift"]
        if drift is None:
            return NOTHING
        slope = with_error(drift["drift_kJ_per_mol_ps"], drift["half_width_95"])
        slope += " (95 %)" if drift["half_width_95"] is not None else ""
        more = (f" after {number(drift['first_blow_up_ps'])} ps ({drift['blown_up_segments']} of {drift['segments']})"
                if drift["blown_up_segments"] else "")
        return slope, "", Cell(drift["verdict"] + more, drift["verdict"])

    def lines(self, result):
        """One line, of a run without drift too."""
        return {self.heading: self.cells(result)}


DRIFT = Drift()
