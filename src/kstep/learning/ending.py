"""When learning ends: where another round of labels would cost more than it saves for the samples asked for.

A sampler that proposes independent samples of the network's ensemble accepts them by d = E_true - E_network alone.
Where d is Gaussian with spread s (in kT), everything that learning can bring is in s: `samples_per_call`; of other d, s
is what is worth as little (`chains.spread_worth`).  How s falls with the number of labels is read off the rounds so far
(`Trend`); what labels, fits and samples cost together, in true calls, says whether to go on (`more_labels_pay`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import erfc, log_ndtr

CALLS_PER_ENERGY, CALLS_PER_TORSION = 1.0, 3.0  # taken proposals until energies, or the slowest torsion, are others
USUAL_FALL = 0.5, 0.25  # exponent of s ~ n^-b before any round has said so, and how far it may be off
RECENT = 4  # rounds that the trend is read off: a floor bends it, and earlier networks knew another ground
ROUNDS_AHEAD = 6  # that are reckoned with: a gain may be two or three rounds away, an extrapolation further off is none
WIDTHS, POINTS = 9.0, 2001  # of the quadrature over d


def acceptance(spread_kT: float) -> float:
    """Mean acceptance of independent proposals, erfc(s/2), for Gaussian d of spread s in kT."""
    return float(erfc(0.5 * spread_kT))


def samples_per_call(spread_kT: float) -> float:
    """Independent samples that one true call of such a chain is worth.

        1 / <(1 + R(d)) / (1 - R(d))>,   d ~ N(-s^2, s^2),   1 - R(d) = Phi(d/s) + exp(d + s^2/2) Phi(-d/s - s)

    1 - R(d) is the chance that a proposal, whose d' ~ N(0, s^2), is taken from where d is; d of the true ensemble is
    that of the network's weighted with exp(-d).  A chain that stays keeps its observable, one that moves forgets it, so
    that the correlation after t calls is <R(d)^t>, whose sum is the integrated autocorrelation time: Liu, Stat. Comput.
    6, 113 (1996).
    """
    s = float(spread_kT)
    if not np.isfinite(s):
        return 0.0
    z = np.linspace(-WIDTHS, WIDTHS, POINTS)
    weight = np.exp(-0.5 * z * z)
    d = s * (z - s)
    taken = np.exp(log_ndtr(z - s)) + np.exp(d + 0.5 * s * s + log_ndtr(-z))
    refused = np.clip(1.0 - taken, 0.0, 1.0)
    return float(weight.sum() / (weight * (1.0 + refused) / np.maximum(taken, 1e-300)).sum())


@dataclass(frozen=True)
class Trend:
    """s(n) = exp(level) (n / n_0)^-fall: the spread in kT that n labels lead to."""

    n_0: float
    level: float
    fall: float

    @classmethod
    def of(cls, rounds: list[tuple[int, float, int]]) -> Trend:
        """Of (labels fitted, spread, states it was measured on) of each round: weighted least squares in logarithms.

        The logarithm of half a 16-84 % range of m Gaussian numbers is uncertain by 0.96 / sqrt(m).  USUAL_FALL is one
        more datum about the slope, which decides where rounds are few.
        """
        n, s, states = np.array(rounds[-RECENT:], dtype=float).T
        error = 0.96 / np.sqrt(np.maximum(states, 1.0)) + 0.05  # and what no power law describes
        n_0 = float(n[-1])
        design = np.stack([np.ones_like(n), -np.log(n / n_0)], axis=1) / error[:, None]
        design = np.concatenate([design, [[0.0, 1.0 / USUAL_FALL[1]]]])
        right = np.append(np.log(np.maximum(s, 1e-6)) / error, USUAL_FALL[0] / USUAL_FALL[1])
        level, fall = np.linalg.lstsq(design, right, rcond=None)[0]
        return cls(n_0, float(level), float(max(fall, 0.0)))

    def spread(self, n_labels: float) -> float:
        """Spread in kT of a network that is fitted to n labels."""
        return float(np.exp(self.level - self.fall * np.log(n_labels / self.n_0)))


def calls_of_sampling(spread_kT: float, samples_wanted: int, calls_per_sample: float) -> float:
    """True calls that samples_wanted samples take, each of calls_per_sample taken proposals."""
    worth = samples_per_call(spread_kT)
    return calls_per_sample * samples_wanted / worth if worth else np.inf


def more_labels_pay(rounds: list[tuple[int, float, int]], n_labels: int, *, growth: float, samples_wanted: int,
                    overhead: float, calls_per_sample: float = CALLS_PER_TORSION) -> bool:
    """Whether some number of further rounds is expected to cost fewer true calls than it saves in sampling.

    rounds: as of `Trend.of`; n_labels: there are now; growth: labels of a round, as a share of those there are;
    overhead: what fit and chains of a round cost per label that is fitted, in true calls.
    """
    if not rounds or not all(np.isfinite(s) for _, s, _ in rounds[-RECENT:]):
        return True  # nothing is known yet
    trend = Trend.of(rounds)
    now = calls_of_sampling(trend.spread(n_labels), samples_wanted, calls_per_sample)
    if not np.isfinite(now):
        return True
    spent, n = 0.0, float(n_labels)
    for _ in range(ROUNDS_AHEAD):
        spent += growth * n + overhead * n
        n *= 1.0 + growth
        if spent + calls_of_sampling(trend.spread(n), samples_wanted, calls_per_sample) < now:
            return True
    return False
