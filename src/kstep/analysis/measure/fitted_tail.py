"""Effective samples of short runs: correlation times with a fitted tail, for `samples.effective_samples`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kstep.analysis.measure.samples import Series
from kstep.analysis.measure.statistics import (
    autocorrelation,
    block_length,
    block_means,
    statistical_inefficiency,
    weighted_residuals,
)

TAIL_PS, TAIL_END = 1.0, 0.35  # the correlation of dynamics is fitted from this time on, down to this value
CHAIN_END = 0.15  # that of a Metropolis chain, and of energies in blocks, from the first lag on
FEWEST_POINTS = 4  # of a line: the slope of two or three is noise, and a flat one makes the tail endless
ENERGY_BLOCK_PS = 0.1


@dataclass(frozen=True)
class FittedTail:
    """Samples (1 + C,) of the energy and of torsions by `correlation_time`, which scatters less in a short run.

    of_dynamics: the energy oscillates, so it is averaged over 0.1 ps first, and a torsion's tail begins at 1 ps.
    """

    of_dynamics: bool

    def __call__(self, series: Series, columns: list[int]) -> np.ndarray:
        first, end = (round(TAIL_PS / series.spacing_ps), TAIL_END) if self.of_dynamics else (1, CHAIN_END)
        weighted = series.weights is not None

        def averaged(replicas: list[np.ndarray]) -> tuple[list[np.ndarray], float]:
            # what has the memory of the mean's error, and how much more it varies than the observable
            if not weighted:
                return replicas, 1.0
            residuals, _, variance = weighted_residuals(replicas, series.weights)
            return residuals, float(np.concatenate(residuals).var() / max(float(variance[0]), 1e-24))

        def frames_per_sample(replicas: list[np.ndarray]) -> float:
            of_error, more = averaged(replicas)
            return correlation_time(of_error, first, end) * more

        times = [max(frames_per_sample([f(np.radians(t[:, [d]])) for t in series.torsions])
                     for f in (np.cos, np.sin)) for d in columns]
        frames, more = averaged([e[:, None] for e in series.energy])
        length = block_length(series.spacing_ps, ENERGY_BLOCK_PS) if self.of_dynamics else 1
        blocks = [block_means(e, length) for e in frames]
        energy = sum(len(b) for b in blocks) / correlation_time(blocks, 1, CHAIN_END)
        energy *= np.concatenate(frames).var() / max(np.concatenate(blocks).var(), 1e-24) / more
        return np.array([min(energy, series.n_frames), *(series.n_frames / time for time in times)])


def correlation_time(replicas: list[np.ndarray], first: int, end: float) -> float:
    """Frames per effective sample of one observable, (T_r,1) per replica: its correlation C, with a fitted tail.

        g = 1 + 2 sum_{t <= b} C(t) + 2 C(b) / (exp(r) - 1)

    r: slope of a straight line through -ln C between frame `first` and frame b, where C falls below `end`.
    Summing C up to its first zero (`statistics.statistical_inefficiency`) adds the noise of many correlation
    times: in 2000 ps of ethanol's plain dynamics that scatters by half, the fit by a tenth.  Where C does not
    last long enough for a line, that sum is returned.
    """
    correlation = autocorrelation(replicas)[0][:, 0]
    below = correlation < end
    last = int(np.argmax(below)) if below.any() else len(correlation) // 3
    if last - first + 1 >= FEWEST_POINTS and (correlation[first: last + 1] > 0).all():
        slope = -np.polyfit(np.arange(first, last + 1), np.log(correlation[first: last + 1]), 1)[0]
        if slope > 0:
            return float(1.0 + 2.0 * correlation[1: last + 1].sum() + 2.0 * correlation[last] / np.expm1(slope))
    return float(statistical_inefficiency(replicas)[0])
