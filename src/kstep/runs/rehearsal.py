"""A run whose network was learned for it finds out, by the weights of its own frames, what the network does not know.

The few hundred states that learning looks at do not show a conformer that holds one state in two hundred, which the
network puts 5 kT too high: in a run its frames weigh as much as all others together.  What a run has asked are labels
like any other, of the very ensemble that is to be sampled.  So where the weights of its production say little, a
network is fitted afresh to all labels there are, those of learning and those of the run; what was sampled before is
called burn-in, and production begins anew with the better network.  Nothing of one network's frames is weighed with
another's, so that the run stays exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kstep import importance
from kstep.runs.tolerance import OnViolation

FEWEST_FRAMES = 256  # of production, below which a tail is not told from chance


@dataclass(frozen=True)
class Rehearsal:
    """learn(recorded, start, out): fit a network afresh to all labels and those recorded; least_share: of the weights,
    Kish's effective share below which that is done; n_labels: of learning; most_labels: with those of the run."""

    learn: OnViolation
    least_share: float
    n_labels: int
    most_labels: int

    def shortfall(self, weights: np.ndarray) -> str | None:
        """What is wrong with the weights (F,) of production, in words; None where nothing is, or too few are there."""
        if len(weights) < FEWEST_FRAMES:
            return None
        found = importance.diagnose(weights)
        if found["effective_share"] < self.least_share:
            return (f"the weights of {len(weights)} frames are worth {found['effective_share'] * len(weights):.0f} of "
                    "them")
        return importance.warning(found)
