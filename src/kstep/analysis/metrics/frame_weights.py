"""What the weights of a run's frames are worth: their effective number, and the Pareto tail that decides it."""

from __future__ import annotations

import numpy as np

from kstep.analysis.judge.verdict import Verdict
from kstep.analysis.metrics.cells import number
from kstep.analysis.metrics.metric import Metric
from kstep.importance import BY_NETWORK, BY_RESTRAINTS, MOST_K_HAT, diagnose, warning


class FrameWeights(Metric):
    """Kish's effective share of the production frames, Pareto k-hat, and the share of the heaviest frame."""

    name = "weights"
    about = ("Weights", "Frames of a chain that follows the network weigh exp(-(E_true - E_ML)/kT), those of a run "
             "that restraints of energy W held exp(W/kT) besides, and every average here heeds that. The effective "
             "frames are those that would say as much if all weighed the same. Pareto "
             f"k-hat, from the tail of the weights, says whether averages converge: up to {MOST_K_HAT:g} they do.")

    def compute(self, comparison):
        """importance.diagnose of the production frames, with a verdict; None where all frames count alike."""
        weights = comparison.profile.weights
        if weights is None:
            return None
        found = diagnose(np.concatenate(weights))
        return {**found, "verdict": Verdict.NOT_CONVERGED if warning(found) else Verdict.CONVERGED}

    def warnings(self, comparison):
        """That the weights say little or nothing."""
        found = comparison.value(self)
        way_out = BY_RESTRAINTS if comparison.run.is_restrained else BY_NETWORK
        return list(filter(None, [warning(found, way_out)])) if found else []

    def lines(self, result):
        """A line for the effective frames and one for k-hat."""
        own = result.get("weights")
        if not own:
            return {}
        return {"frames that the weights are worth": (number(own["effective_share"] * own["frames"]), "",
                                                      f"of {own['frames']}"),
                "Pareto k-hat of the weights": (number(own["pareto_k_hat"]), f"at most {MOST_K_HAT:g}", own["verdict"])}


WEIGHTS = FrameWeights()
