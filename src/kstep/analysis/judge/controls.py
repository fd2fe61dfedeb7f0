"""Does a run beat plain MD at the same number of true calls?  Answered in values; show.words says them."""

from __future__ import annotations

from kstep.analysis.judge.verdict import Outcome, TorsionState, Verdict
from kstep.analysis.metrics import ANGLE_ERROR, BOND_ERROR

BASELINE = "the baseline, scaled"
MOST_SCALED = 3.0  # a short control's samples are mostly its starting frames': they do not grow with its calls


def judge(result: dict, controls: dict[str, dict]) -> list[dict]:
    """One comparison with each plain control at the same number of true calls, and at that with training included.

    controls: results of `compare` for plain runs of the same molecule (and, under the name
    BASELINE, for the reference itself).  Effective samples of a control are scaled to the run's
    number of calls, the baseline's by any factor, a shorter control's by MOST_SCALED at most; the
    baseline speaks where no control does.  The run must win on the energy and on the slowest
    torsion, and its structure must lie within its floor or be no worse than the control's.

    [{"outcome": Outcome, "control", "training_included", "converged" (the run's torsions), "lost_on": [{"what", ...}]}]
    """
    if result["structure"] is None:
        return [{"outcome": Outcome.NO_FRAMES}]
    out = []
    known = {name: control for name, control in controls.items()
             if control["structure"] is not None and control["cost"]["true_calls"]}
    training = result["cost"]["true_calls_training"]
    for extra in (0, training) if training else (0,):
        budget = result["cost"]["true_calls"] + extra
        near = {name: control for name, control in known.items() if name != BASELINE
                and budget / control["cost"]["true_calls"] <= MOST_SCALED}
        for name, control in (near or {n: c for n, c in known.items() if n == BASELINE}).items():
            lost = _lost_on(result, control, budget, structure_too=name != BASELINE)
            out.append({"outcome": Outcome.LOST if lost else Outcome.WON, "control": name,
                        "training_included": bool(extra), "lost_on": lost,
                        "converged": result["sampling"]["convergence"] != Verdict.NOT_CONVERGED})
    return out or [{"outcome": Outcome.NO_CONTROL}]


def _lost_on(result, control, budget, structure_too) -> list[dict]:
    """What the run loses at; the baseline's structure is the reference itself, so it cannot be worse."""
    factor = budget / control["cost"]["true_calls"]
    mine, theirs, lost = result["sampling"], control["sampling"], []
    if mine["energy"] <= factor * theirs["energy"]:
        lost.append({"what": "energy", "samples": mine["energy"], "against": factor * theirs["energy"]})
    if any(t["state"] != TorsionState.ONE_ROTAMER for t in result["torsions"]):
        here, there = (0.0 if s["never_crossed"] else s["slowest_torsion"] or 0.0 for s in (mine, theirs))
        if here <= factor * there and there > 0:
            lost.append({"what": "slowest torsion", "samples": here, "against": factor * there})
        elif mine["convergence"] != Verdict.CONVERGED and theirs["convergence"] == Verdict.CONVERGED:
            lost.append({"what": "convergence"})
    for metric in (BOND_ERROR, ANGLE_ERROR):
        a, b = metric.entry_of(result), metric.entry_of(control) if structure_too else None
        if a and a["verdict"] == Verdict.ABOVE_FLOOR and (b is None or a["value"] > b["value"]):
            lost.append({"what": metric.label, "value": a["value"], "floor": a["floor"], "control": b and b["value"]})
    return lost
