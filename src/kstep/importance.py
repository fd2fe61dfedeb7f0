"""How far the average of weighted frames can be trusted: Kish's effective size and the Pareto tail of the weights."""

from __future__ import annotations

import numpy as np

MOST_K_HAT = 0.7  # above, an average converges too slowly to be of use, and its error bar means nothing
MOST_OF_ONE_FRAME = 0.5  # of all weight
# ways to better weights
BY_NETWORK = "teach the network more, or set judge: chain"
BY_RESTRAINTS = "restrain less, or join windows of restraints (kstep umbrella)"
BY_TEMPERATURE = "sample at that temperature, or on a ladder that reaches it (--tempering)"
PRIOR_TAIL, PRIOR_K = 10.0, 0.5  # a weak prior on k: so many frames of the tail at this value


def effective_share(weights: np.ndarray) -> float:
    """Kish's (sum w)^2 / (S sum w^2) of weights (S,): 1 where all are equal, 1/S where one holds everything."""
    total = weights.sum()
    return float(total**2 / (len(weights) * (weights**2).sum())) if total > 0 else 0.0


def pareto_k(weights: np.ndarray) -> float | None:
    """Shape k-hat of a generalised Pareto distribution fitted to the largest min(S/5, 3 sqrt(S)) of weights (S,).

    1/k is the number of moments that the weights have: up to 0.7 an average of them converges at a practical rate.
    None where fewer than five weights make a tail, or all are equal.  Source: Vehtari, Simpson, Gelman, Yao, Gabry,
    J. Mach. Learn. Res. 25, 72 (2024), with the estimator of Zhang & Stephens, Technometrics 51, 316 (2009).
    """
    n = len(weights)
    length = int(min(n / 5, 3.0 * np.sqrt(n)))
    if length < 5:
        return None
    largest = np.sort(np.asarray(weights, dtype=float))[-length - 1:]
    beyond = largest[1:] - largest[0]
    beyond = beyond[beyond > 0]
    return _shape(beyond / beyond[-1]) if len(beyond) >= 5 else None


def _shape(x: np.ndarray) -> float:
    """k of exceedances x (M,), sorted: the posterior mean of theta = -k / scale on a grid that data choose."""
    n = len(x)
    m = 30 + int(np.sqrt(n))
    theta = 1.0 / x[-1] + (1.0 - np.sqrt(m / (np.arange(1, m + 1) - 0.5))) / (3.0 * x[int(n / 4 + 0.5) - 1])
    k = np.log1p(-theta[:, None] * x).mean(axis=1)
    log_likelihood = n * (np.log(-theta / k) - k - 1.0)
    posterior = np.exp(log_likelihood - log_likelihood.max())
    mean = (theta * posterior).sum() / posterior.sum()
    return float((n * np.log1p(-mean * x).mean() + PRIOR_TAIL * PRIOR_K) / (n + PRIOR_TAIL))


def diagnose(weights: np.ndarray) -> dict:
    """{"frames", "effective_share", "pareto_k_hat", "largest_share"} of weights (S,), plain numbers."""
    total = float(weights.sum())
    return {"frames": len(weights), "effective_share": effective_share(weights), "pareto_k_hat": pareto_k(weights),
            "largest_share": float(weights.max() / total) if total > 0 else None}


def warning(found: dict, way_out: str = BY_NETWORK) -> str | None:
    """What `diagnose` found wrong, in words, and the way out; None where the weights can be trusted."""
    k, largest = found["pareto_k_hat"], found["largest_share"]
    if largest is None:
        return "the weights say nothing: every frame weighs 0"
    if largest > MOST_OF_ONE_FRAME:
        return f"the weights say nothing: one frame holds {largest:.0%} of them; {way_out}"
    if k is not None and k > MOST_K_HAT:
        return (f"the weights say little: their Pareto k-hat is {k:.2f}, above {MOST_K_HAT:g}, so that a few frames "
                f"decide each average; {way_out}")
    return None


def in_words(found: dict) -> str:
    """Effective frames, k-hat, and the warning where there is one."""
    k = found["pareto_k_hat"]
    words = (f"weights worth {found['effective_share'] * found['frames']:.0f} of {found['frames']} frames, "
             f"Pareto k-hat {'none' if k is None else f'{k:.2f}'}")
    return "; ".join(filter(None, (words, warning(found))))
