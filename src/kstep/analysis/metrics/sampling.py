"""How many independent samples a run gave, and what each of them cost."""

from __future__ import annotations

from kstep.analysis.judge.verdict import TorsionState, Verdict
from kstep.analysis.metrics.cells import number
from kstep.analysis.metrics.cost import COST
from kstep.analysis.metrics.frame_weights import WEIGHTS
from kstep.analysis.metrics.metric import Metric
from kstep.analysis.metrics.torsions import TORSIONS

OBSERVABLES = {"energy": "energy", "slowest_torsion": "slowest torsion"}
UNITS = {"1000_calls": "1000 true calls", "cpu_s": "CPU second", "wall_s": "wall second"}


def rates_of(sampling: dict, cost: dict) -> dict[str, float | None]:
    """Effective samples of each observable per 1000 true calls and per second of CPU and wall-clock time."""
    amounts = {"1000_calls": (1e3, cost["true_calls"]), "cpu_s": (1.0, cost["cpu_s"]), "wall_s": (1.0, cost["wall_s"])}
    return {f"{observable}_per_{unit}": factor * sampling[observable] / amount
            if sampling[observable] is not None and amount else None
            for observable in OBSERVABLES for unit, (factor, amount) in amounts.items()}


class Sampling(Metric):
    """Effective samples of the potential energy and of the slowest torsion that has rotamers."""

    name = "sampling"
    about = ("Effective samples", "How many independent frames would give the same error of the average. More per "
             "true call means faster sampling. The slowest torsion counts; one that never crossed is named, not "
             "counted.")

    def compute(self, comparison):
        """Samples with errors, per call and second, and whether all torsions are converged."""
        torsions = comparison.value(TORSIONS)
        slow = min((t for t in torsions if t["state"] == TorsionState.CROSSED), key=lambda t: t["effective_samples"],
                   default=None)
        several = [t for t in torsions if t["state"] != TorsionState.ONE_ROTAMER]
        weighs_well = (comparison.value(WEIGHTS) or {}).get("verdict") != Verdict.NOT_CONVERGED
        energy = comparison.samples[1]["energy"]
        found = {
            "energy": energy["samples"], "energy_error": energy["standard_error"],
            "slowest_torsion": slow and slow["effective_samples"],
            "slowest_torsion_error": slow and slow["effective_samples_error"],
            "slowest_torsion_label": slow and slow["label"],
            **{name: [t["label"] for t in torsions if t["state"] == state] for name, state in (
                ("never_crossed", TorsionState.NEVER_CROSSED), ("one_rotamer", TorsionState.ONE_ROTAMER))},
            "convergence": (Verdict.NOT_CONVERGED if not weighs_well else
                            Verdict.NOTHING_TO_CONVERGE if not several else Verdict.CONVERGED
                            if all(t["convergence"] == Verdict.CONVERGED for t in several) else Verdict.NOT_CONVERGED)}
        return {**found, **rates_of(found, comparison.value(COST))}

    def lines(self, result):
        """Samples and their prices, of the energy and, where there is one, of the slowest torsion."""
        own, lines = result["sampling"], {}
        for observable, label in OBSERVABLES.items() if own else ():
            verdict = own["convergence"] if observable == "slowest_torsion" else ""
            if verdict != Verdict.NOTHING_TO_CONVERGE:
                error = own[f"{observable}_error"]
                lines[f"effective samples, {label}"] = (
                    number(own[observable]), f"{number(error, 2)} (error)" if error is not None else "", verdict)
                lines |= {f"{label} samples per {words}": (number(own[f"{observable}_per_{unit}"]), "", "")
                          for unit, words in UNITS.items()}
        return lines


SAMPLING = Sampling()
