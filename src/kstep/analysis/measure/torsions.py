"""Rotamers of a torsion, crossings between them, and whether a run has seen enough of them."""

from __future__ import annotations

import numpy as np

from kstep.dihedrals import wrap_deg

CORE_HALF_WIDTH_DEG = 30.0  # a crossing counts when the next core is entered, not at the barrier top
SMALLEST_POPULATION = 0.01
ALIKE = 1e-3  # of the lower hill: densities between two wells that are the lowest one


def find_rotamers(histogram: np.ndarray) -> np.ndarray:
    """Centres (W,) in degrees of the wells of a torsion, from its histogram over -180..180.

    The histogram is smoothed over 10 degrees; peaks count as two wells when they are 45 degrees
    apart, the density between them falls below half of the lower one, and the lower one
    holds at least 1 % of the frames.
    """
    bins = len(histogram)
    width = 360.0 / bins
    density = _smooth(histogram / max(histogram.sum(), 1.0), 10.0 / width)
    peaks = np.flatnonzero((density > np.roll(density, 1)) & (density >= np.roll(density, -1)))
    kept: list[int] = []
    for peak in sorted(peaks, key=lambda p: -density[p]):
        if all(_separate(density, peak, other, width) for other in kept):
            kept.append(int(peak))
    centres = -180.0 + (np.array(sorted(kept)) + 0.5) * width
    if len(centres) == 0:
        return centres
    return centres[rotamer_populations(histogram, centres) >= SMALLEST_POPULATION]


def find_borders(histogram: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Where each of two or more wells (W,) begins, degrees: the lowest density between its centre and the one before.

    Not half-way: a well may have a shoulder.  Where nothing lies between two wells it is the middle of that.
    """
    bins = len(histogram)
    width = 360.0 / bins
    density = _smooth(histogram / max(histogram.sum(), 1.0), 10.0 / width)
    places = np.round((centres + 180.0) / width - 0.5).astype(int)
    borders = []
    for before, after in zip(np.roll(places, 1), places):
        between = (before + np.arange((after - before) % bins or bins)) % bins
        hills = min(density[before], density[after])
        lowest = np.flatnonzero(density[between] <= density[between].min() + ALIKE * hills)
        borders.append(-180.0 + (before + lowest.mean() + 0.5) * width)
    return wrap_deg(np.array(borders))


def well_of(angle_deg: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """The well (...), counted as borders (W,) of `find_borders` are, that each angle (...) lies in."""
    starts = (borders - borders[0]) % 360.0
    return np.searchsorted(starts, (angle_deg - borders[0]) % 360.0, side="right") - 1


def _smooth(density, sigma_bins):
    frequency = np.fft.rfftfreq(len(density))
    kernel = np.exp(-2.0 * (np.pi * frequency * sigma_bins) ** 2)
    return np.fft.irfft(np.fft.rfft(density) * kernel, n=len(density))


def _separate(density, peak, other, width):
    a, b = sorted((int(peak), int(other)))
    if min(b - a, len(density) - (b - a)) * width < 45.0:
        return False
    valleys = density[a: b + 1].min(), min(density[b:].min(), density[: a + 1].min())
    return max(valleys) < 0.5 * min(density[a], density[b])


def core_states(angle_deg: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Last core visited (T,) as an index into `centres`; -1 before the first visit."""
    nearest, inside = _nearest_core(angle_deg, centres)
    last = np.maximum.accumulate(np.where(inside, np.arange(len(angle_deg)), -1))
    return np.where(last >= 0, nearest[last], -1)


def count_transitions(angle_deg: np.ndarray, centres: np.ndarray) -> int:
    """Core-to-core crossings in one replica's series (T,): recrossings of a barrier do not count."""
    return count_crossings(angle_deg, centres)[0]


def count_crossings(angle_deg: np.ndarray, centres: np.ndarray) -> tuple[int, int]:
    """Core-to-core crossings in one replica's series (T,), and the chances it had to cross.

    A chance is a frame inside a core after another: a frame between cores shows no crossing, nor does a series' first.
    """
    if len(centres) < 2 or len(angle_deg) < 2:
        return 0, 0
    nearest, inside = _nearest_core(angle_deg, centres)
    crossed = np.diff(nearest[inside]) != 0
    return int(crossed.sum()), len(crossed)


def _nearest_core(angle_deg, centres):
    """Index (T,) of the nearest centre, and whether the angle is within its core (T,)."""
    distance = np.abs(wrap_deg(np.asarray(angle_deg)[:, None] - centres))
    nearest = distance.argmin(axis=1)
    return nearest, distance[np.arange(len(nearest)), nearest] <= CORE_HALF_WIDTH_DEG


def rotamer_populations(histogram: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Share (W,) of a torsion's histogram over -180..180 that lies nearest to each centre."""
    nearest, _ = _nearest_core(_middles(histogram), centres)
    return np.bincount(nearest, weights=histogram, minlength=len(centres)) / max(histogram.sum(), 1.0)


def crossings_per_chance(histogram: np.ndarray, centres: np.ndarray) -> float:
    """How often independent draws from a torsion's histogram over -180..180 cross at a chance (`count_crossings`).

    That is sum p (1 - p) over the populations p of the cores alone: 0 where one core, or none, holds all.
    """
    if len(centres) < 2:
        return 0.0
    nearest, inside = _nearest_core(_middles(histogram), centres)
    cores = np.bincount(nearest[inside], weights=histogram[inside], minlength=len(centres))
    populations = cores / (cores.sum() or 1.0)
    return float((populations * (1.0 - populations)).sum())


def _middles(histogram):
    bins = len(histogram)
    return -180.0 + (np.arange(bins) + 0.5) * 360.0 / bins
