"""The infrared spectrum of classical dynamics, from the dipole moments along it, with its peaks and their errors.

    A(nu) = N_A / (12 eps_0 c^2 kT) S(nu),      int_0^inf S(nu) dnu = <|dmu/dt|^2>

S is the one-sided spectral density of the dipole's time derivative, the Fourier transform of its autocorrelation
(Wiener-Khinchin).  The harmonic quantum correction x / (1 - exp(-x)), x = h c nu / kT, which multiplies the classical
correlation, cancels the 1 - exp(-x) of stimulated emission, so that hbar is not in it: Ramirez, Lopez-Ciudad, Kumar,
Marx, J. Chem. Phys. 121, 3973 (2004), eq. 23; Thomas, Brehm, Fligg, Voehringer, Kirchner, Phys. Chem. Chem. Phys. 15,
6608 (2013), eq. 12.  A harmonic mode Q gets its double-harmonic intensity, N_A / (12 eps_0 c^2) |dmu/dQ|^2, at any T.
kT is that of the kinetic energy of these very frames: NVE stretches keep the energy they began with.  A free molecule
turns, so that each band is as wide as its P and R branches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.constants import Avogadro, atomic_mass, c, elementary_charge, epsilon_0
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks

from kstep.analysis.measure.spectra import (
    GRID_CM,
    cut_windows,
    independent_groups,
    mass_weighted_power,
    power_spectrum,
)
from kstep.schemas import Trajectory
from kstep.units import BOLTZMANN, WAVENUMBER_PER_THZ

KM_PER_MOL = elementary_charge**2 * Avogadro / (12 * epsilon_0 * c**2 * atomic_mass) / 1000  # of 1 e^2/Da: 974.9
HANN_WIDTH = 1.44  # full width at half height of a line through a Hann window of length 1
SMOOTH_CM = 40.0  # full width, of the curve that peaks are looked for in
BAND_CM = 40.0  # half width of what a peak's position is the centre of
LOWEST_CM = 60.0  # below, the turning of the whole molecule
FAINTEST = 0.02  # of the highest peak
LEAST_ERRORS = 1.0  # that a peak rises above its surroundings; its height is as uncertain as the energy in its mode
DRAWS = 100
STEP_CM = float(GRID_CM[1] - GRID_CM[0])
UNITS = {True: "km/mol", False: "arbitrary units"}


@dataclass(frozen=True)
class Peak:
    """A band: position_cm, the centre of what is higher than half its height, and intensity, its area; with errors.

    intensity in km/mol (arbitrary units of a power spectrum); reference_cm, shift_cm, shift_error_cm: of the nearest
    peak of plain MD, None where there is none near.
    """

    position_cm: float
    position_error_cm: float
    intensity: float
    intensity_error: float
    reference_cm: float | None = None
    shift_cm: float | None = None
    shift_error_cm: float | None = None


@dataclass(frozen=True)
class Spectrum:
    """Spectra of a run on GRID_CM, each with its standard error over replicas, and peaks of `curve`.

    absorption (G,) km/mol per cm-1, None where the run has no dipoles; power (G,) per cm-1, the velocities' (density of
    vibrational states), of area 1; temperature_K: of the frames' kinetic energy; asked_K: what the run was to have;
    resolution_cm: full width of a line.
    """

    molecule: str
    method: str
    scheme: str
    temperature_K: float
    asked_K: float
    window_ps: float
    resolution_cm: float
    windows: int
    replicas: int
    absorption: np.ndarray | None
    absorption_error: np.ndarray | None
    power: np.ndarray
    power_error: np.ndarray
    peaks: tuple[Peak, ...]
    baseline: Spectrum | None = None

    @property
    def wavenumber_cm(self) -> np.ndarray:
        """The grid (G,)."""
        return GRID_CM

    @property
    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """What peaks are of: the absorption and its error, or the power where there are no dipoles."""
        if self.absorption is None or self.absorption_error is None:
            return self.power, self.power_error
        return self.absorption, self.absorption_error

    @property
    def unit(self) -> str:
        """Of the peaks' intensities."""
        return UNITS[self.absorption is not None]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = {key: _plain(value) for key, value in vars(self).items()}
        return {**plain, "unit": self.unit, "wavenumber_cm": GRID_CM.tolist(),
                "peaks": [{key: _plain(value) for key, value in vars(peak).items()} for peak in self.peaks],
                "baseline": self.baseline and self.baseline.as_dict()}


def _plain(value: Any) -> Any:
    """Lists for arrays; None for an error that a single stretch does not tell."""
    if isinstance(value, np.ndarray):
        return None if np.isnan(value).all() else value.tolist()
    return None if isinstance(value, float) and np.isnan(value) else value


def spectrum_of(trajectory: Trajectory, window_ps: float) -> Spectrum:
    """The spectrum of the NVE windows of a trajectory, of which there must be one."""
    windows = cut_windows(trajectory, window_ps)
    group = independent_groups(trajectory, windows)
    frames = np.concatenate([part for part, _ in windows])
    n_dof, asked_K = (np.array([segment[key] for segment in trajectory.segments])[trajectory.segment[frames]]
                      for key in ("n_dof", "temperature_K"))
    kT = float(np.mean(2.0 * trajectory.Ekin[frames] / n_dof))
    power = _by_group([mass_weighted_power(trajectory, part, spacing) for part, spacing in windows], group)
    power /= power.mean(axis=0).sum() * STEP_CM
    absorption = None
    if len(trajectory.dipole):
        absorption = KM_PER_MOL / kT * _by_group(
            [absorbed(trajectory.dipole[part], spacing) for part, spacing in windows], group)
    metadata, judged = trajectory.metadata, power if absorption is None else absorption
    return Spectrum(
        metadata["molecule"], str(metadata.get("method")), str(metadata["scheme"]), kT / BOLTZMANN,
        float(asked_K.mean()), window_ps,
        HANN_WIDTH / window_ps * WAVENUMBER_PER_THZ, len(windows), len(np.unique(trajectory.replica[frames])),
        None if absorption is None else absorption.mean(axis=0), None if absorption is None else _error(absorption),
        power.mean(axis=0), _error(power), find_bands(judged))


def absorbed(dipole: np.ndarray, spacing: float) -> np.ndarray:
    """S (G,) in e^2 nm^2/ps^2 per cm-1 of dipoles (T,3) e nm, `spacing` ps apart: its area is <|dmu/dt|^2>.

    Differences are transformed rather than dipoles, whose constant part would leak, and the transfer function of a
    difference, sin(w h/2) / (w h/2), is divided out.
    """
    slope = np.diff(dipole, axis=0) / spacing
    window = np.hanning(len(slope))
    density = 2.0 * spacing * len(slope) / (window**2).sum() / WAVENUMBER_PER_THZ * power_spectrum(slope, spacing)
    return density.sum(axis=1) / np.sinc(GRID_CM / WAVENUMBER_PER_THZ * spacing) ** 2


def _by_group(spectra: list[np.ndarray], group: np.ndarray) -> np.ndarray:
    """Mean (g,G) of each independent group of windows."""
    stacked = np.array(spectra)
    return np.array([stacked[group == g].mean(axis=0) for g in np.unique(group)])


def _error(groups: np.ndarray) -> np.ndarray:
    """Standard error (G,) of the mean of independent spectra (g,G); NaN of a single one."""
    if len(groups) < 2:
        return np.full(groups.shape[1], np.nan)
    return groups.std(axis=0, ddof=1) / np.sqrt(len(groups))


def find_bands(groups: np.ndarray) -> tuple[Peak, ...]:
    """Peaks of the mean of independent spectra (g,G), by position; errors from drawing the g anew."""
    rng, n = np.random.default_rng(0), len(groups)
    draws = [groups[rng.integers(n, size=n)].mean(axis=0) for _ in range(DRAWS)] if n > 1 else []
    few = np.sqrt(n / (n - 1)) if n > 1 else np.nan  # the spread of n values is too small by this factor
    curve, smooth = groups.mean(axis=0), _smooth(groups.mean(axis=0))
    error = _error(np.array([_smooth(g) for g in groups]))
    inside = smooth[GRID_CM >= LOWEST_CM]
    tops, _ = find_peaks(smooth, distance=BAND_CM / STEP_CM, prominence=np.maximum(
        FAINTEST * inside.max(), LEAST_ERRORS * np.nan_to_num(error)))
    found = []
    for top in tops[GRID_CM[tops] >= LOWEST_CM]:
        low, high = _valleys(smooth, tops, top)
        places = [_centre(draw, GRID_CM[top]) for draw in draws]
        areas = [draw[low:high].sum() * STEP_CM for draw in draws]
        found.append(Peak(_centre(curve, GRID_CM[top]), float(few * np.std(places)) if draws else float("nan"),
                          float(curve[low:high].sum() * STEP_CM),
                          float(few * np.std(areas)) if draws else float("nan")))
    return tuple(found)


def _smooth(curve: np.ndarray) -> np.ndarray:
    return gaussian_filter1d(curve, SMOOTH_CM / STEP_CM / np.sqrt(8.0 * np.log(2.0)), mode="constant")


def _centre(curve: np.ndarray, near_cm: float) -> float:
    """Centre of what rises above half the height of the highest point within BAND_CM of a peak."""
    for _ in range(2):
        band = np.where(np.abs(GRID_CM - near_cm) <= BAND_CM, curve, 0.0)
        near_cm = GRID_CM[_smooth(band).argmax()]
    band = np.where(np.abs(GRID_CM - near_cm) <= BAND_CM, curve, 0.0)
    band = np.maximum(band - 0.5 * band.max(), 0.0)
    return float((GRID_CM * band).sum() / band.sum())


def _valleys(smooth: np.ndarray, tops: np.ndarray, top: int) -> tuple[int, int]:
    """Where a peak's area ends on both sides: in the valley to its neighbour, or where 1 % of its height is left."""
    left, right = max(tops[tops < top], default=0), min(tops[tops > top], default=len(smooth) - 1)
    low = left + int(smooth[left:top + 1].argmin())
    high = top + int(smooth[top:right + 1].argmin())
    faint = smooth < 0.01 * smooth[top]
    low = max(low, int(np.flatnonzero(faint[:top])[-1]) if faint[:top].any() else 0)
    high = min(high, top + int(np.flatnonzero(faint[top:])[0]) if faint[top:].any() else len(smooth) - 1)
    return low, high + 1
