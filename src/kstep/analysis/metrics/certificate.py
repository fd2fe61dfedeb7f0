"""How far the network lay from the truth along a run."""

from __future__ import annotations

from kstep.analysis.judge.verdict import Verdict
from kstep.analysis.metrics.cells import number
from kstep.analysis.metrics.metric import Metric
from kstep.schemas import Trajectory

LIMITS = {"spread_kJ_per_mol": "max_energy_spread_kJ_per_mol", "force_rmse_kJ_per_mol_A": "max_force_rmse_kJ_per_mol_A"}
LABELS = {"spread_kJ_per_mol": "spread of E_true - E_ML (kJ/mol)",
          "force_rmse_kJ_per_mol_A": "force error of the network (kJ/mol/A)"}


def certificate_of(run: Trajectory) -> dict | None:
    """What the run recorded, beside its tolerances; None where it recorded nothing."""
    found, config = run.metadata.get("certificate"), run.metadata.get("config") or {}
    if not found or not found["pairs"] or run.metadata.get("delta_scale") == 0:
        return None
    limits = {key: config.get(setting) for key, setting in LIMITS.items()}
    verdicts = {key: Verdict.NO_TOLERANCE if limit is None else
                Verdict.WITHIN_TOLERANCE if found[key] <= limit else Verdict.PAST_TOLERANCE
                for key, limit in limits.items()}
    return {**found, "tolerances": limits, "verdicts": verdicts}


class NetworkCertificate(Metric):
    """Mean and spread of E_true - E_ML, and the force error, of schemes that record them (kstep.runs.certificate)."""

    name, needs_frames = "certificate", False
    about = ("E_true - E_ML and force error", "How far the network's energy and force lay from the true ones at the "
             "end of each macro-step of a scheme that records them. The mean is a constant and does no harm; the "
             "spread and the force error do: where a run moves by the network's force alone, its ensemble is the "
             "network's.")

    def compute(self, comparison):
        """See `certificate_of`."""
        return certificate_of(comparison.run)

    def lines(self, result):
        """A line for the spread and one for the force error."""
        own, lines = result["certificate"], {}
        for key, label in LABELS.items() if own else ():
            limit = own["tolerances"][key]
            beside = "" if limit is None else f"{number(limit)} (tolerance)"
            lines[label] = number(own[key]), beside, own["verdicts"][key]
        return lines


CERTIFICATE = NetworkCertificate()
