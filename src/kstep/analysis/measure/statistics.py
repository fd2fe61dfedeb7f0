"""Errors of time averages, distances between distributions, and the noise floor.

Everything works on *lists of replica series*: one array (T_r, C) per independent replica,
C observables side by side, so that a replica stuck in its own well shows as slow, not as fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft
from scipy.special import gammaincinv

VIBRATION_BLOCK_PS = 0.05  # longer than any molecular vibration above 700 cm-1
MINIMUM_LAG = 3  # pymbar's mintime: no stop at a zero crossing before this lag
FEWEST_SAMPLES = 50  # independent ones, below which an average is said not to be converged
MOST_ERROR = 0.02  # standard error of a population, which of 2 % is that of as few samples
MOST_R_HAT = 1.05  # split-R-hat up to which chains are said to agree
WITHIN_FLOOR = 1.5  # a value up to this multiple of its noise floor is called "within floor"


def autocorrelation(replicas: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """C(t) (T,C) of observables followed by replicas (T_r,C), about their common mean; and which of them vary (C,)."""
    lengths = np.array([len(x) for x in replicas])
    total, longest = lengths.sum(), lengths.max()
    mean = sum(x.sum(axis=0) for x in replicas) / total
    products = np.zeros((longest, replicas[0].shape[1]))
    for x in replicas:
        padded = fft.next_fast_len(2 * len(x), real=True)
        spectrum = fft.rfft(x - mean, n=padded, axis=0)
        products[: len(x)] += fft.irfft(np.abs(spectrum) ** 2, n=padded, axis=0)[: len(x)]
    pairs = np.maximum(lengths[:, None] - np.arange(longest), 0).sum(axis=0)
    variance = products[0] / total
    # an FFT leaves rounding noise on a constant series; it has no correlation time
    varies = variance > 1e-24 * np.maximum(1.0, mean**2)
    return products / pairs[:, None] / np.where(varies, variance, 1.0), varies


def statistical_inefficiency(replicas: list[np.ndarray], minimum_lag: int = MINIMUM_LAG) -> np.ndarray:
    """Statistical inefficiency g (C,) of observables followed by several replicas.

        g = 1 + 2 sum_t C(t) (1 - t/T),   stopped at the first C(t) <= 0 with t > minimum_lag,

    with C(t) averaged over replicas about their common mean.  This is the estimator of
    pymbar.timeseries.statistical_inefficiency (Chodera et al., JCTC 3, 26 (2007)), to which it is
    equal for one replica; here all observables share one FFT.  A constant observable has g = 1.
    """
    lengths = np.array([len(x) for x in replicas])
    n_columns = replicas[0].shape[1]
    longest, average = lengths.max(), lengths.mean()
    if longest < 3 or n_columns == 0:
        return np.ones(n_columns)
    correlation, varies = autocorrelation(replicas)
    lags = np.arange(longest)
    stops = (correlation <= 0.0) & (lags[:, None] > minimum_lag)
    stops[longest - 1] = True
    last = np.argmax(stops, axis=0)
    counted = (lags[:, None] >= 1) & (lags[:, None] < last)
    weights = np.maximum(1.0 - lags / average, 0.0)[:, None]
    g = 1.0 + 2.0 * np.sum(correlation * weights * counted, axis=0)
    return np.where(varies, np.maximum(g, 1.0), 1.0)


def block_length(spacing_ps: float, block_ps: float = VIBRATION_BLOCK_PS) -> int:
    """Frames per block so that a block outlasts a vibration; 1 when frames are farther apart."""
    return max(1, round(block_ps / spacing_ps)) if spacing_ps > 0 else 1


def block_means(x: np.ndarray, length: int) -> np.ndarray:
    """Means of consecutive blocks (T, ...) -> (T // length, ...); an incomplete last block is dropped."""
    length = max(1, min(length, len(x)))
    count = len(x) // length
    return x[: count * length].reshape(count, length, *x.shape[1:]).mean(axis=1)


@dataclass(frozen=True)
class MeanEstimate:
    """Time averages of C observables with their sampling errors.

    mean, variance (C,) over all frames; mean_variance (C,): squared standard error of `mean`;
    n_eff (C,) = variance / mean_variance, at most the number of frames; replica_means (R,C);
    shares (R,): each replica's part of all frames; interval (C,): frames between independent ones.
    """

    mean: np.ndarray
    variance: np.ndarray
    mean_variance: np.ndarray
    n_eff: np.ndarray
    replica_means: np.ndarray
    shares: np.ndarray
    interval: np.ndarray

    @property
    def standard_error(self) -> np.ndarray:
        """Standard error of each mean, in the unit of the mean."""
        return np.sqrt(self.mean_variance)


def estimate_means(replicas: list[np.ndarray], spacing_ps: float,
                   weights: list[np.ndarray] | None = None) -> MeanEstimate:
    """Means with errors, from replica series (T_r, C) stored every `spacing_ps`; weights (T_r,): of frames.

    A bond oscillates, so its autocorrelation crosses zero long before it has decayed and the
    usual stopping rule misses the slow part.  The series is therefore averaged over blocks of
    50 fs first (blocks of one frame when frames are farther apart), and

        error^2 = var(block means) g(block means) / number of blocks,
        n_eff   = var(frames) / error^2,

    which is the number of independent frames that would give the same error.  Short series
    underrate g; with four replicas or more their spread shows it, and all errors are raised by
    the ratio of observed to expected squared spread (averaged over the observables) where that
    exceeds what chance gives once in twenty times (chi-square).  Weighted frames: see `weighted_residuals`.
    """
    if weights is not None:
        return _estimate_weighted_means(replicas, spacing_ps, weights)
    lengths = np.array([len(x) for x in replicas], dtype=float)
    total = lengths.sum()
    # of the mean length: one short replica would else leave all the others without blocks, and oscillating
    length = min(block_length(spacing_ps), max(1, int(lengths.mean()) // 4))
    replica_means = np.array([x.mean(axis=0, dtype=np.float64) for x in replicas])
    mean = lengths @ replica_means / total
    variance = sum(((x - mean) ** 2).sum(axis=0, dtype=np.float64) for x in replicas) / max(total - 1, 1)
    blocks = [block_means(np.asarray(x, dtype=np.float64), length) for x in replicas]
    n_blocks = sum(len(b) for b in blocks)
    g = statistical_inefficiency(blocks)
    grand = sum(b.sum(axis=0) for b in blocks) / n_blocks
    block_variance = sum(((b - grand) ** 2).sum(axis=0) for b in blocks) / max(n_blocks - 1, 1)
    mean_variance = np.maximum(block_variance * g / n_blocks, variance / total)
    inflation = 1.0
    if len(replicas) >= 4 and (mean_variance > 1e-24).any():
        varies = mean_variance > 1e-24
        spread = (lengths[:, None] * (replica_means - mean) ** 2).sum(axis=0) / (len(replicas) - 1) / total
        ratio = float((spread[varies] / mean_variance[varies]).mean())
        if ratio > gammaincinv((len(replicas) - 1) / 2, 0.95) / ((len(replicas) - 1) / 2):
            inflation = ratio
    mean_variance = mean_variance * inflation
    constant = variance <= 0
    n_eff = np.where(constant, total, variance / np.where(constant, 1.0, mean_variance))
    return MeanEstimate(mean, variance, mean_variance, n_eff, replica_means, lengths / total,
                        g * length * inflation)


def weighted_residuals(replicas: list[np.ndarray],
                       weights: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Residuals (T_r,C), mean and variance (C,) of series (T_r,C) under weights (T_r,) of frames.

        mean = sum w f / sum w,   variance = sum w (f - mean)^2 / sum w,   e_t = w_t (f_t - mean) / <w>

    To first order the ratio's error is that of the plain average of e, so that its variance over the frames, times the
    statistical inefficiency of e itself (not of f), gives the error of the mean: unequal weights, and weights that
    remember themselves, are both in it.  For independent weights that know nothing of f the effective frames are
    Kish's (sum w)^2 / sum w^2.
    """
    total = sum(w.sum() for w in weights)
    n = sum(len(w) for w in weights)
    mean = sum(w @ np.asarray(x, dtype=np.float64) for x, w in zip(replicas, weights)) / total
    variance = sum(w @ (x - mean) ** 2 for x, w in zip(replicas, weights)) / total
    return [w[:, None] * (x - mean) * (n / total) for x, w in zip(replicas, weights)], mean, variance


def _estimate_weighted_means(replicas, spacing_ps, weights) -> MeanEstimate:
    residuals, mean, variance = weighted_residuals(replicas, weights)
    found = estimate_means(residuals, spacing_ps)
    n = sum(len(w) for w in weights)
    mean_variance = np.maximum(found.mean_variance, variance / n)
    constant = variance <= 0
    n_eff = np.where(constant, n, variance / np.where(constant, 1.0, mean_variance))
    sums = np.array([w.sum() for w in weights])
    replica_means = np.array([w @ x / s if s > 0 else mean for x, w, s in zip(replicas, weights, sums)])
    return MeanEstimate(mean, variance * (n / max(n - 1, 1)), mean_variance, n_eff, replica_means, found.shares,
                        found.interval)


def wasserstein_1(p: np.ndarray, q: np.ndarray, width: float, circular: bool = False) -> np.ndarray:
    """Wasserstein-1 distance (...,) of histograms (..., bins), in the unit of the bin `width`.

        W1 = integral |F_p - F_q| dx;  on a circle the integral of |F_p - F_q - median(F_p - F_q)|
    (Rabin, Delon, Gousseau, J. Math. Imaging Vis. 41, 147 (2011)).
    """
    difference = np.cumsum(_normalised(p) - _normalised(q), axis=-1)
    if circular:
        difference = difference - np.median(difference, axis=-1, keepdims=True)
    return np.abs(difference).sum(axis=-1) * width


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence (...,) of histograms (..., bins) in bits: 0 equal, 1 disjoint."""
    p, q = _normalised(p), _normalised(q)
    middle = 0.5 * (p + q)

    def relative_entropy(a):
        ratio = np.divide(a, middle, out=np.ones_like(a), where=a > 0)
        return (a * np.log2(ratio)).sum(axis=-1)

    return 0.5 * (relative_entropy(p) + relative_entropy(q))


def coarsen(histogram: np.ndarray, factor: int) -> np.ndarray:
    """Merge `factor` neighbouring bins of the last axis."""
    return histogram.reshape(*histogram.shape[:-1], -1, factor).sum(axis=-1)


def _normalised(histogram: np.ndarray) -> np.ndarray:
    total = histogram.sum(axis=-1, keepdims=True)
    return histogram / np.where(total > 0, total, 1.0)


def split_r_hat(replicas: list[np.ndarray], weights: list[np.ndarray] | None = None) -> np.ndarray:
    """Split-R-hat (C,) of replica series (T_r, C): 1 when all halves of all replicas agree.

    Gelman et al., Bayesian Data Analysis (2013), eq. 11.4, on each replica's halves; where these are of
    different lengths they count by their frames in both variances, as in an average.  With weights (T_r,) of frames the
    halves' means and variances are weighted, and a half that weighs nothing makes it infinite.
    """
    halves = [len(x) // 2 for x in replicas]
    if min(halves) < 2:
        return np.full(replicas[0].shape[1], np.nan)
    chains = [part.astype(np.float64) for x, half in zip(replicas, halves) for part in (x[:half], x[-half:])]
    shares = [np.full(half, 1.0 / half) for half in halves for _ in range(2)]
    if weights is not None:
        parts = [part.astype(np.float64) for w, half in zip(weights, halves) for part in (w[:half], w[-half:])]
        if any(part.sum() <= 0 for part in parts):
            return np.full(replicas[0].shape[1], np.inf)
        shares = [part / part.sum() for part in parts]
    size = np.array([len(x) for x in chains], dtype=np.float64)[:, None]
    means = np.array([share @ x for share, x in zip(shares, chains)])
    own = np.array([share @ (x - mean) ** 2 for share, x, mean in zip(shares, chains, means)]) * size / (size - 1.0)
    within, half = (size * own).sum(axis=0) / size.sum(), size.mean()
    between = (size * (means - (size * means).sum(axis=0) / size.sum()) ** 2).sum(axis=0) / (len(chains) - 1)
    pooled = (half - 1) / half * within + between / half
    rounding = 1e-24 * (means**2).max(axis=0)  # of a constant, whose weighted means need not have the same last bit
    stuck = within <= np.maximum(1e-12 * pooled, rounding)
    ratio = np.sqrt(pooled / np.where(stuck, 1.0, within))
    return np.where(stuck, np.where(between / half > rounding, np.inf, 1.0), ratio)


@dataclass(frozen=True)
class Floor:
    """Noise floor of one metric: what sampling alone gives at the comparison's sample sizes."""

    value: float
    error: float | None
    expected: float | None = None  # the second estimate, from the standard errors alone


def noise_floor(pair_values: np.ndarray, scale: np.ndarray, combine, *, expected: float | None = None,
                seed: int = 0, repeats: int = 200) -> Floor:
    """Mean of a metric over pairs of independent reference replicas, brought to other sample sizes.

    pair_values (R,R,C): |difference| of each coordinate between replicas a and b;
    scale (R,R) or (R,R,C): sqrt of (hybrid's + pooled reference's squared standard error)
        / (a's + b's), so that a pair of short replicas speaks for a long hybrid run against all
        replicas pooled; for a divergence, which grows with 1/n and not 1/sqrt(n), its square;
    combine: (..., C) -> (...): how coordinates make one number (RMS, mean, sum).

    The error is a bootstrap over replicas; with two replicas, of which there is one pair only,
    over coordinates.
    """
    n = len(pair_values)
    if n < 2:
        raise ValueError("a noise floor needs at least two independent replicas")
    scaled = pair_values * (scale if scale.ndim == 3 else scale[..., None])
    a, b = np.triu_indices(n, 1)
    table = combine(scaled)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(repeats):
        if n > 2:
            weight = np.bincount(rng.integers(n, size=n), minlength=n)
            pair_weight = weight[a] * weight[b]
            if pair_weight.sum() == 0:
                continue
            draws.append(np.average(table[a, b], weights=pair_weight))
        elif scaled.shape[-1] > 1:
            columns = rng.integers(scaled.shape[-1], size=scaled.shape[-1])
            draws.append(float(combine(scaled[0, 1][columns])))
    return Floor(float(table[a, b].mean()), float(np.std(draws)) if draws else None, expected)


def exponential_identity(delta_H: list[np.ndarray], kT: float) -> dict:
    """<exp(-dH/kT)> over all Metropolis proposals, which is 1 for any reversible proposal.

    delta_H: one array (T_r,) per replica, kJ/mol.  The standard error is the larger of the one
    from the statistical inefficiency and the one from the spread of replica means, because rare
    proposals far downhill carry much of the average.
    Source: Creutz, Phys. Rev. D 38, 1228 (1988).
    """
    weights = [np.exp(-np.clip(d, -700 * kT, None) / kT) for d in delta_H if len(d)]
    n = sum(len(w) for w in weights)
    everything = np.concatenate(weights)
    g = float(statistical_inefficiency([w[:, None] for w in weights])[0])
    error = float(np.sqrt(everything.var(ddof=1) * g / n)) if n > 1 else float("nan")
    means = np.array([w.mean() for w in weights])
    if len(means) >= 4:
        error = max(error, float(means.std(ddof=1) / np.sqrt(len(means))))
    return {"mean": float(everything.mean()), "standard_error": error, "proposals": int(n), "g": g}
