"""What the true energy does to a proposal that leaves exp(-U_net/kT) as it is: refuse it, weigh it, or both.

With d = U_true - U_net and any function excess(d), a chain that accepts with
min(1, exp(-[excess(d_y) - excess(d_x)]/kT)) follows exp(-[U_net + excess(d)]/kT), and with a weight of
exp(-[d - excess(d) - d_0]/kT) its frames have the averages of exp(-U_true/kT), whatever excess and the constant
d_0 are:

    chain     excess = d: all frames weigh the same
    weights   excess = d - clip(d, d_0 - 10 kT, d_0 + 10 kT): the network's own chain, which goes back only
              where the network knows nothing; there it would spend its calls on frames that weigh nothing

A call that fails (d infinite) goes back, and the frame before it counts once more with its own weight, as in any
Metropolis chain: to give that frame the weight 0 would rob of weight what lies beside the failures.

Which of them, `weighs_better`, is a matter of the spread of d and its memory, not of the acceptance: where d forgets
itself within a macro-step, weights give 1.2 to 2.9 times the samples of the chain, the more the lower its acceptance.
Where d is as slow as the moves and wide, heavy frames come in runs, and the chain is better; where it is narrow, the
chain has six tenths of the samples or more, and frames that all weigh alike are worth that.  Waste recycling (a f(y)
+ (1 - a) f(x) on the chain) lies between the two; where it is the best of three it is 10 % above the chain, so it is
not here (all measured: benchmarks/weights.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LIMIT_KT = 10.0  # a network is wrong by so much where it has a hole; a weight stays within exp(-10) ... exp(10)
NARROWEST_KT = 0.3  # below, every reader of the frames is spared their weights
WIDEST_KT = 1.6  # spread of d, where it forgets itself at once; beyond, k-hat warns of the weights
FEWEST_PAIRS = 30


@dataclass(frozen=True)
class Judge:
    """middle: d_0 in kJ/mol of weights; None: a chain."""

    middle: float | None = None

    def excess(self, d: np.ndarray, kT: float) -> np.ndarray:
        """What of d (R,) kJ/mol the test sees; infinite where d is."""
        return d if self.middle is None else d - self._weighed(d, kT)

    def weight(self, d: np.ndarray, kT: float) -> np.ndarray:
        """Weight (R,) of frames with d (R,) kJ/mol."""
        return np.ones(len(d)) if self.middle is None else np.exp(-(self._weighed(d, kT) - self.middle) / kT)

    def _weighed(self, d, kT):
        return np.clip(d, self.middle - LIMIT_KT * kT, self.middle + LIMIT_KT * kT)


def decide(wanted: str, gaps: np.ndarray, kT: float) -> dict:
    """{"judge": "chain" or "weights", "middle": d_0 or None, "spread_kT", "memory", "pairs"} from d of proposals.

    wanted: auto, chain or weights; gaps (P,2): d in kJ/mol where a proposal began (NaN: not known) and where it ended.
    The memory c is the slope of the second on the first, the spread s^2 = <(d_y - c d_x - const)^2> / (1 - c^2): those
    of the network's own chain, whichever chain the proposals began in.  auto asks `weighs_better`.
    """
    begun, ends = (column[np.isfinite(column)] for column in gaps.T)
    known = begun if len(begun) else ends  # the chain itself is in no hole, whatever is proposed to it
    middle = float(np.median(known)) if len(known) else None
    found = {"pairs": 0, "spread_kT": None, "memory": None}
    if middle is not None:
        near = gaps[(np.abs(gaps - middle) <= LIMIT_KT * kT).all(axis=1)]
        if len(near) >= FEWEST_PAIRS:
            found = {"pairs": len(near), **_spread(near / kT)}
    fits = found["spread_kT"] is not None and weighs_better(found["spread_kT"], found["memory"])
    weighs = middle is not None and (wanted == "weights" or (wanted == "auto" and fits))
    return {"judge": "weights" if weighs else "chain", "middle": middle if weighs else None, **found}


def weighs_better(spread_kT: float, memory: float) -> bool:
    """Whether weights are worth it: 0.3 kT <= s <= 1.6 kT sqrt(1 - c^2), fitted to benchmarks/weights.py."""
    return NARROWEST_KT <= spread_kT <= WIDEST_KT * float(np.sqrt(1.0 - memory**2))


def _spread(pairs: np.ndarray) -> dict:
    begin, end = (pairs - pairs.mean(axis=0)).T
    variance = (begin**2).mean()
    memory = float(np.clip((begin * end).mean() / variance, 0.0, 0.99)) if variance > 0 else 0.0
    rest = ((end - memory * begin) ** 2).mean()
    return {"spread_kT": float(np.sqrt(rest / (1.0 - memory**2))), "memory": memory}
