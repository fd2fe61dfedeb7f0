"""What the judgement found, in sentences: the only English that a verdict against plain MD has."""

from __future__ import annotations

from kstep.analysis.judge.verdict import Outcome

NOT_JUDGED = {Outcome.NO_FRAMES: "the run holds no production frames",
              Outcome.NO_CONTROL: "no plain control with known true calls"}


def sentence_of(verdict: dict, role: str) -> str:
    """One comparison of `judge.controls.judge` as a sentence without its full stop; role: what the run is for."""
    outcome = verdict["outcome"]
    if outcome == Outcome.IS_CONTROL:
        return f"is itself a control ({role})"
    if outcome in NOT_JUDGED:
        return f"not judged against plain MD: {NOT_JUDGED[outcome]}"
    against = (f"plain MD ({verdict['control']}) at the same number of true calls"
               + (", training included" if verdict["training_included"] else ""))
    if outcome == Outcome.WON:
        return f"beats {against}" + ("" if verdict["converged"] else ", though its own torsions are not converged yet "
                                                                     "either")
    return f"does not beat {against}: {'; '.join(map(_loss, verdict['lost_on']))}"


def _loss(lost: dict) -> str:
    if lost["what"] == "convergence":
        return "its torsions are not converged"
    if "samples" in lost:
        return f"{lost['what']} {lost['samples']:.3g} effective samples against {lost['against']:.3g}"
    if lost["control"] is None:
        return f"{lost['what']} above its floor"
    return (f"{lost['what']} {lost['value']:.3g} above its floor {lost['floor']:.3g} and above the control's "
            f"{lost['control']:.3g}")
