"""Chain, waste recycling or weights: samples per 1000 true calls of proposals that a network makes, in a model of them.

Along the network's own chain d = U_true - U_net is Gaussian with a spread of s kT and a memory c (its correlation
from one macro-step to the next); the observable is correlated with d by r, and what is its own has a memory of its
own.  The network may have a hole, where d = +100 kT, that is left at once or is as hard to leave as to enter.

  chain      proposals are accepted with min(1, exp(-[d_y - d_x]))
  recycling  the same chain, but every step averages a f(y) + (1 - a) f(x), a its acceptance
  unlimited  the network's chain, which never goes back, with weights exp(-d)
  weights    the same within 10 kT of the median of d, a chain beyond: kstep.schemes.judge

Samples: variance of the observable over the mean squared error of its average in runs of 1000 calls.  What is taken
when (`judge.weighs_better`) is held to the table; also how often k-hat warns of the weights of 1600 frames.  A minute.

    python benchmarks/weights.py
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from kstep.files import write_json_compact
from kstep.importance import MOST_K_HAT, pareto_k
from kstep.schemes.judge import NARROWEST_KT, WIDEST_KT, Judge, weighs_better
from running import RESULTS, provenance

SPREADS_KT = (0.2, 0.4, 0.7, 1.0, 1.3, 1.5)
MEMORIES = (0.0, 0.3, 0.7)
SLOW = 0.9  # memory of an observable that d knows nothing of, such as a torsion's
CORRELATIONS = (0.0, 0.7)
HOLES = {"none": None, "1 % of frames": (0.01, 0.99), "half of the frames, hard to leave": (0.003, 0.003)}
HOLE_KT = 100.0
CALLS, RUNS, BURN_IN = 1000, 600, 100


@dataclass(frozen=True)
class Network:
    """Its chain: of d, spread and memory; of the observable, correlation and memory; odds to (enter, leave) a hole."""

    spread: float
    memory: float
    correlation: float
    memory_of_observable: float
    hole: tuple[float, float] | None = None

    def steps(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """From (3,n), d and the observable's own part as normal variates and whether in the hole, to the next ones."""
        memory = np.array([[self.memory], [self.memory_of_observable]])
        moved = memory * x[:2] + np.sqrt(1.0 - memory**2) * rng.standard_normal(x[:2].shape)
        if self.hole is None:
            return np.vstack([moved, x[2:]])
        enter, leave = self.hole
        dice = rng.random(x.shape[1])
        return np.vstack([moved, np.where(x[2] > 0, dice >= leave, dice < enter)])

    def d(self, x: np.ndarray) -> np.ndarray:
        """U_true - U_net in kT, with a mean of 0 along the network's chain."""
        return self.spread * x[0] + HOLE_KT * x[2]

    def observable(self, x: np.ndarray) -> np.ndarray:
        """Variance 1; its true mean is -s r."""
        return self.correlation * x[0] + np.sqrt(1.0 - self.correlation**2) * x[1]


EXCESS = {"chain": Judge().excess, "recycling": Judge().excess, "unlimited": lambda d, kT: np.zeros(len(d)),
          "weights": Judge(0.0).excess}


def samples(network: Network, way: str, seed: int = 0) -> dict:
    """Samples per 1000 calls and the share of proposals taken, in RUNS runs that begin in equilibrium."""
    rng, excess = np.random.default_rng(seed), EXCESS[way]
    x = np.vstack([rng.standard_normal((2, RUNS)), np.zeros(RUNS)])
    x[0] -= network.spread
    total, average, taken = np.zeros(RUNS), np.zeros(RUNS), 0.0
    for step in range(-BURN_IN, CALLS):
        y = network.steps(x, rng)
        change = excess(network.d(y), 1.0) - excess(network.d(x), 1.0)
        acceptance = np.exp(-np.maximum(change, 0.0))
        begin, x = x, np.where(rng.random(RUNS) < acceptance, y, x)
        if step < 0:
            continue
        taken += acceptance.mean() / CALLS
        if way == "recycling":
            weight, value = 1.0, acceptance * network.observable(y) + (1.0 - acceptance) * network.observable(begin)
        else:
            weight, value = np.exp(excess(network.d(x), 1.0) - network.d(x)), network.observable(x)
        total, average = total + weight, average + weight * value
    error = average / total + network.spread * network.correlation
    return {"samples": float(1000.0 / CALLS / (error**2).mean()), "taken": float(taken)}


def row(network: Network, hole: str) -> dict:
    """All ways of one network, and the one that `judge.decide` takes."""
    found = {way: samples(network, way) for way in EXCESS}
    return {"spread_kT": network.spread, "memory": network.memory, "correlation": network.correlation,
            "memory_of_observable": network.memory_of_observable, "hole": hole,
            "acceptance": found["chain"]["taken"], "samples": {way: f["samples"] for way, f in found.items()},
            "taken": "weights" if weighs_better(network.spread, network.memory) else "chain"}


def warned(spread: float, frames: int = 1600, tries: int = 200) -> float:
    """How often k-hat is above its limit for independent frames of a Gaussian d."""
    rng = np.random.default_rng(0)
    return float(np.mean([pareto_k(np.exp(-spread * rng.standard_normal(frames))) > MOST_K_HAT for _ in range(tries)]))


def regret(rows: list[dict]) -> float:
    """The smallest share of the better one's samples, of chain and weights, that the rule gets."""
    return min(r["samples"][r["taken"]] / max(r["samples"]["chain"], r["samples"]["weights"]) for r in rows)


def main() -> None:
    """Write benchmarks/results/weights.json."""
    rows = [row(Network(s, c, r, memory), "none") for c, r, s in itertools.product(MEMORIES, CORRELATIONS, SPREADS_KT)
            for memory in (c, SLOW)]
    rows += [row(Network(s, 0.3, 0.0, 0.3, hole), name) for name, hole in HOLES.items() if hole
             for s in (0.4, 0.7, 1.0)]
    for r in rows:
        facts = (f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}"
                 for key, value in r.items() if key != "samples")
        print(*facts, {way: round(n) for way, n in r["samples"].items()}, flush=True)
    smooth = [r for r in rows if r["hole"] == "none"]
    rule = f"weights where {NARROWEST_KT:g} <= spread_kT <= {WIDEST_KT:g} sqrt(1 - memory^2)"
    out = {"rows": rows, "rule": rule, "rule_gets_at_least": regret(smooth),
           "k_hat_warns": {f"{s:g}": warned(s) for s in (*SPREADS_KT, 2.0, 2.5)}, **provenance()}
    print({key: value for key, value in out.items() if key != "rows"})
    write_json_compact(RESULTS / "weights.json", out)


if __name__ == "__main__":
    main()
