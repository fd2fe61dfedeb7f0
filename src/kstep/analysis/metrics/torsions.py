"""Every rotatable torsion: its rotamers, how often a run crossed between them, and how far it is from the reference."""

from __future__ import annotations

import numpy as np

from kstep.analysis.judge.verdict import TorsionState, Verdict
from kstep.analysis.measure.samples import FEWEST_FOR_A_RATE
from kstep.analysis.measure.statistics import MOST_R_HAT
from kstep.analysis.metrics.cells import number
from kstep.analysis.metrics.distributions import TORSION_JS, TORSION_W1
from kstep.analysis.metrics.frame_weights import WEIGHTS
from kstep.analysis.metrics.metric import ONE_COORDINATE, Metric
from kstep.dihedrals import wrap_deg

SAME_WELL_DEG = 30.0


def _finite(number):
    return float(number) if np.isfinite(number) else None


class Torsions(Metric):
    """Effective samples, crossings, split-R-hat, rate and Wasserstein-1 of every rotatable torsion."""

    name, needs_frames = "torsions", False
    about = ("Split-R-hat", "Compares halves of replicas with each other; up to 1.05 reads 'converged'.")

    def compute(self, comparison):
        """One dict per rotatable torsion."""
        reference, hybrid = comparison.reference, comparison.profile
        if hybrid is None or not reference.coordinates.labels["torsions"]:
            return []
        (w1, pairs, scale), (js, _, _) = TORSION_W1.of_each(comparison), TORSION_JS.of_each(comparison)
        floors = np.full(len(w1), np.nan) if pairs is None else TORSION_W1.floors(pairs, scale)
        rotamers, own, base = comparison.samples
        weighs_well = (comparison.value(WEIGHTS) or {}).get("verdict") != Verdict.NOT_CONVERGED
        dynamics = comparison.traits.keeps_velocities
        length_ps, reference_ps = (sum(np.ptp(p.trajectory.time_ps[r]) for r in p.replicas)
                                   for p in (hybrid, reference))
        out = []
        for d, wells in enumerate(rotamers):
            mine, theirs = own["torsions"][wells.label], base["torsions"][wells.label]
            many = len(wells.known_deg) >= 2
            n, r_hat = mine["samples"], float(hybrid.torsion_r_hat[d])
            converged = weighs_well and r_hat <= MOST_R_HAT and (not many or n >= FEWEST_FOR_A_RATE)
            floor = _finite(floors[d])
            enough, enough_there = (many and samples >= FEWEST_FOR_A_RATE for samples in (n, theirs["samples"]))
            rate = mine["crossings"] / length_ps if dynamics and length_ps > 0 and enough else None
            new = [float(c) for c in wells.centres_deg
                   if not len(wells.known_deg) or np.abs(wrap_deg(c - wells.known_deg)).min() > SAME_WELL_DEG]
            out.append({
                "label": wells.label, "rotamers_deg": [float(c) for c in wells.known_deg],
                "state": (TorsionState.ONE_ROTAMER if not many else
                          TorsionState.CROSSED if mine["crossings"] else TorsionState.NEVER_CROSSED),
                "effective_samples": n, "effective_samples_error": mine["standard_error"],
                "effective_samples_reference": theirs["samples"],
                "r_hat": _finite(r_hat), "r_hat_reference": _finite(reference.torsion_r_hat[d]),
                "convergence": Verdict.CONVERGED if converged else Verdict.NOT_CONVERGED,
                "new_rotamers_deg": new,
                "transitions": mine["crossings"], "transitions_reference": theirs["crossings"], "rate_per_ps": rate,
                "rate_reference_per_ps": (theirs["crossings"] / reference_ps if enough_there and reference_ps > 0
                                          else None),
                "w1_deg": float(w1[d]), "w1_floor_deg": floor, "js": float(js[d]),
                "verdict": (Verdict.NO_FLOOR if floor is None else
                            Verdict.WITHIN_FLOOR if w1[d] <= ONE_COORDINATE * floor else Verdict.ABOVE_FLOOR),
            })
        return out

    def warnings(self, comparison):
        """Torsions that the reference knows too little of."""
        out = []
        for torsion in comparison.value(self):
            there = torsion["effective_samples_reference"]
            if torsion["state"] != TorsionState.ONE_ROTAMER and there < FEWEST_FOR_A_RATE:
                out.append(f"the reference holds only {there:.0f} effective samples "
                           f"of torsion {torsion['label']}; what depends on it has a floor that is too low")
            if torsion["new_rotamers_deg"]:
                places = ", ".join(f"{c:.0f}" for c in torsion["new_rotamers_deg"])
                out.append(f"the run visits a rotamer of {torsion['label']} near {places} degrees that "
                           "the reference never did; one of them is wrong or too short")
        return out

    def table(self, result):
        """A line for each torsion."""
        header = ["torsion", "rotamers", "state", "eff. samples", "split-R-hat", "transitions", "rate (1/ps)",
                  "W1 (deg)", "floor", "verdict"]
        rows = []
        for t in result["torsions"]:
            rate = number(t["rate_per_ps"])
            if t["rate_reference_per_ps"] is not None:
                rate += f" (reference {number(t['rate_reference_per_ps'])})"
            rows.append([t["label"], str(len(t["rotamers_deg"])), t["state"], number(t["effective_samples"]),
                         f"{number(t['r_hat'])}, {t['convergence']}", str(t["transitions"]), rate, number(t["w1_deg"]),
                         number(t["w1_floor_deg"]), t["verdict"]])
        return (header, rows) if rows else None


TORSIONS = Torsions()
