"""Does a run beat plain MD at the same number of true calls?  Answered in plain sentences."""

from __future__ import annotations

BASELINE = "the baseline, scaled"
MOST_SCALED = 3.0  # a short control's samples are mostly its starting frames': they do not grow with its calls


def judge(result: dict, controls: dict[str, dict]) -> list[str]:
    """Plain sentences: does this run beat plain MD at the same number of true calls?

    controls: results of `compare` for plain runs of the same molecule (and, under the name
    BASELINE, for the reference itself).  Effective samples of a control are scaled to the run's
    number of calls, the baseline's by any factor, a shorter control's by MOST_SCALED at most; the
    baseline speaks where no control does.  The run must win on the energy and on the slowest
    torsion, and its structure must lie within its floor or be no worse than the control's.
    """
    if result["structure"] is None:
        return ["not judged against plain MD: the run holds no production frames"]
    out = []
    known = {name: control for name, control in controls.items()
             if control["structure"] is not None and control["cost"]["true_calls"]}
    for extra, words in ((0, ""), (result["cost"]["true_calls_training"], ", training included")):
        if words and not extra:
            continue
        budget = result["cost"]["true_calls"] + extra
        near = {name: control for name, control in known.items() if name != BASELINE
                and budget / control["cost"]["true_calls"] <= MOST_SCALED}
        for name, control in (near or {n: c for n, c in known.items() if n == BASELINE}).items():
            lost = _lost(result, control, budget, structure_too=name != BASELINE)
            text = f"plain MD ({name}) at the same number of true calls{words}"
            neither = result["sampling"]["convergence"] == "not converged"
            won = f"beats {text}" + (", though its own torsions are not converged yet either" if neither else "")
            out.append(won if not lost else f"does not beat {text}: {'; '.join(lost)}")
    if not out:
        return ["not judged against plain MD: no plain control with known true calls"]
    return out


def _lost(result, control, budget, structure_too):
    """What the run loses at; the baseline's structure is the reference itself, so it cannot be worse."""
    factor = budget / control["cost"]["true_calls"]
    mine, theirs, lost = result["sampling"], control["sampling"], []
    if mine["energy"] <= factor * theirs["energy"]:
        lost.append(f"energy {mine['energy']:.3g} effective samples against {factor * theirs['energy']:.3g}")
    several = [t for t in result["torsions"] if t["state"] != "one rotamer in the reference"]
    if several:
        here = 0.0 if mine["never_crossed"] else mine["slowest_torsion"] or 0.0
        there = 0.0 if theirs["never_crossed"] else theirs["slowest_torsion"] or 0.0
        if here <= factor * there and there > 0:
            lost.append(f"slowest torsion {here:.3g} effective samples against {factor * there:.3g}")
        elif mine["convergence"] != "converged" and theirs["convergence"] == "converged":
            lost.append("its torsions are not converged")
    for key, label in (("bond_rmse_A", "bond error"), ("angle_rmse_deg", "angle error")):
        a, b = result["structure"].get(key), control["structure"].get(key) if structure_too else None
        if a and a["verdict"] == "above floor" and (b is None or a["value"] > b["value"]):
            lost.append(f"{label} {a['value']:.3g} above its floor {a['floor']:.3g} and above the control's "
                        f"{b['value']:.3g}" if b else f"{label} above its floor")
    return lost
