"""How the proposals of a scheme that may refuse them fared: acceptance, and the identity that proves it right."""

from __future__ import annotations

from typing import Any

import numpy as np

from kstep.analysis.judge.verdict import Verdict
from kstep.analysis.measure import statistics
from kstep.analysis.metrics.cells import number
from kstep.analysis.metrics.metric import Metric
from kstep.units import kT

LARGEST_ERROR = 0.03  # of <exp(-dH/kT)>, beyond which it decides nothing


class Proposals(Metric):
    """Acceptance and, where delta_H is recorded, <exp(-dH/kT)> over production: 1 for a correct sampler."""

    name, needs_frames = "proposals", False
    about = ("Acceptance and <exp(-dH/kT)>", "Share of proposals that the true energy accepted. The average of "
             "exp(-dH/kT) over all proposals, apart from those refused at the walls of the molecule or where the true "
             "physics has no number, is exactly 1 when the sampler is correct.")

    def compute(self, comparison):
        """Count, acceptance, and of the identity mean, standard error and verdict; None where nothing is refused."""
        run, profile, traits = comparison.run, comparison.profile, comparison.traits
        if not traits.can_refuse:
            return None
        frames = profile.replicas if profile else [np.arange(len(run.pos))]
        # the identity is a chain's
        known = len(run.delta_H) > 0 and traits.has_identity and not run.is_judged_by_weight
        if known:  # NaN where nothing was proposed, or where a wall refused it untested
            refused = ~run.accepted.astype(bool) if len(run.accepted) else np.zeros(len(run.pos), dtype=bool)
            frames = [f[~np.isnan(run.delta_H[f]) | refused[f]] for f in frames]
        count = sum(map(len, frames))
        if count == 0:
            return None
        accepted = np.concatenate([run.accepted[f] for f in frames]) if len(run.accepted) else None
        out: dict[str, Any] = {"count": count, "acceptance": None if accepted is None else float(accepted.mean())}
        if known and any(np.isfinite(run.delta_H[f]).any() for f in frames):
            temperature_K = profile.temperature_K if profile else run.metadata["temperature_K"]
            delta_H = [run.delta_H[f][np.isfinite(run.delta_H[f])] for f in frames]
            identity = statistics.exponential_identity(delta_H, kT(temperature_K))
            off = abs(identity["mean"] - 1.0) > 3.0 * identity["standard_error"]
            decided = identity["standard_error"] <= LARGEST_ERROR
            values = np.concatenate(delta_H)
            out |= {"exp_minus_beta_dH": identity["mean"], "standard_error": identity["standard_error"],
                    "verdict": Verdict.VIOLATED if off else Verdict.HOLDS if decided else Verdict.NOT_DECIDED,
                    "delta_H_mean_kT": float(values.mean() / kT(temperature_K))}
        return out

    def lines(self, result):
        """A line for the acceptance and one for the identity."""
        own = result["proposals"]
        if not own:
            return {}
        lines = {"acceptance": (number(own["acceptance"]), "", f"{own['count']} proposals")}
        if "verdict" in own:
            value = f"{own['exp_minus_beta_dH']:.4f} +- {number(own['standard_error'], 2)}"
            lines["<exp(-dH/kT)>"] = value, "1 exactly", own["verdict"]
        return lines


PROPOSALS = Proposals()
