"""When learning ends: where another round of labels would cost more than it saves for the samples asked for.

A sampler that proposes independent samples of the network's ensemble accepts them by d = E_true - E_network alone.
Where d is Gaussian with spread s (in kT), everything that learning can bring is in s: `samples_per_call`; of other d, s
is what is worth as little (`chains.spread_worth`).  How s falls with the number of labels is read off the rounds so far
(`Trend`), and what the last fit, a longer one, will make of it is reckoned with (`LastFit`); what labels, fits and
samples cost together, in true calls, says whether to go on (`more_labels_pay`), and how long the last fit is to be.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import erfc, log_ndtr

CALLS_PER_ENERGY, CALLS_PER_TORSION = 1.0, 1.5  # taken proposals of tuned runs until energies, or torsions, are others
UNCOUNTED = 200  # samples that 64 chains make on their way from their starts, and until they agree: three each
USUAL_FALL = 0.5, 0.25  # exponent of s ~ n^-b before any round has said so, and how far it may be off
RECENT = 4  # rounds that the trend is read off: a floor bends it, and earlier networks knew another ground
ROUNDS_AHEAD = 6  # that are reckoned with: a gain may be two or three rounds away, an extrapolation further off is none
WIDTHS, POINTS = 9.0, 2001  # of the quadrature over d
LEFT_BY_LAST = 0.65  # of a round's spread, where the last fit makes three times the passes: 0.25 to 0.76 in nine cases
LENGTHS = 1, 2, 4  # of the last fit, of which the one that pays is made
PER_LENGTH = 0.3  # exponent of s ~ length^-b: 0.2 to 0.4 for 20 to 37 atoms


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


@dataclass(frozen=True)
class SampleCost:
    """What the network is for: so many independent samples, UNCOUNTED ones besides, each of calls_per_sample taken
    proposals; moves: what those of the network for a proposal cost, in true calls."""

    samples: int
    calls_per_sample: float = CALLS_PER_TORSION
    moves: float = 0.0

    def __call__(self, spread_kT: float) -> float:
        """Cost of it all in true calls, with a network whose d has this spread in kT."""
        worth = samples_per_call(spread_kT)
        taken = (self.samples + UNCOUNTED) * self.calls_per_sample
        return taken * (1.0 + self.moves) / worth if worth else np.inf


@dataclass(frozen=True)
class LastFit:
    """The fit that ends learning, in place of a round's; left: the share of a round's spread that it leaves where it is
    no longer than it must be; cost: what it then costs per label, in true calls; longest: of LENGTHS."""

    left: float = LEFT_BY_LAST
    cost: float = 0.0
    longest: int = LENGTHS[-1]

    def spread(self, of_round_kT: float, length: int) -> float:
        """Spread in kT after a fit of `length` times its passes, where a round's to these labels leaves of_round_kT."""
        return of_round_kT * self.left * length**-PER_LENGTH

    def learned_from(self, of_round_kT: float, length: int, seen_kT: float) -> LastFit:
        """The same, with what one of them left: as much is believed of it as of what is usual."""
        if not np.isfinite(of_round_kT) or not np.isfinite(seen_kT):
            return self
        left = seen_kT / (of_round_kT * length**-PER_LENGTH)
        return replace(self, left=float(np.sqrt(self.left * left)))

    def best(self, of_round_kT: float, n_labels: float, sampling: SampleCost) -> tuple[float, int]:
        """Fewest true calls that it and `sampling` with the spread it leaves take together, and its length for that."""
        return min((length * self.cost * n_labels + sampling(self.spread(of_round_kT, length)), length)
                   for length in LENGTHS if length <= self.longest)


def more_labels_pay(rounds: list[tuple[int, float, int]], n_labels: int, *, growth: float, overhead: float,
                    sampling: SampleCost, last_fit: LastFit | None = None, made: int | None = None) -> bool:
    """Whether some number of further rounds is expected to cost fewer true calls than it saves in sampling.

    rounds: as of `Trend.of`; n_labels: there are now; growth: labels of a round, as a share of those there are;
    overhead: what fit and chains of a round cost per label that is fitted, in true calls; last_fit: that which is to
    follow, None where a round's fit is what samples; made: the length of the one that was made of these labels.
    """
    if not rounds or not all(np.isfinite(s) for _, s, _ in rounds[-RECENT:]):
        return True  # nothing is known yet
    trend = Trend.of(rounds)

    def rest(n: float) -> float:
        return sampling(trend.spread(n)) if last_fit is None else last_fit.best(trend.spread(n), n, sampling)[0]

    if last_fit is None or made is None:
        now = rest(n_labels)
    else:
        now = sampling(last_fit.spread(trend.spread(n_labels), made))
    if not np.isfinite(now):
        return True
    spent, n = 0.0, float(n_labels)
    for _ in range(ROUNDS_AHEAD):
        spent += growth * n + overhead * n
        n *= 1.0 + growth
        if spent + rest(n) < now:
            return True
    return False
