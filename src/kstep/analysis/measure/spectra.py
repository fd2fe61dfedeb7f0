"""The vibrational spectrum from velocities, and where its X-H stretches lie.

Defined only where velocities follow one another by the dynamics: within NVE segments.  A
Metropolis chain has no spectrum, and a thermostat broadens one.
"""

from __future__ import annotations

import numpy as np
from scipy import fft

from kstep.analysis.measure.geometry import symbol
from kstep.schemas import Trajectory
from kstep.units import WAVENUMBER_PER_THZ

SHORTEST_SEGMENT_PS = 0.4  # below, the resolution is worse than 80 cm-1
LONGEST_WINDOW_PS = 2.0  # resolves 24 cm-1; longer ones are fewer, and noisier
STRETCH_RANGE_CM = (2400.0, 4400.0)  # of a bond to hydrogen; to its isotopes lower, as their reduced masses say
HYDROGEN_DA = 1.008
MOST_WINDOWS = 400  # spread over all replicas; enough for a smooth curve
GRID_CM = np.arange(0.0, 4500.0, 2.0)


def nve_segments(trajectory: Trajectory, temperature_K: float | None = None) -> list[np.ndarray]:
    """Frame indices of each NVE segment of the measured roles, evenly spaced in time."""
    out = []
    for index, segment in enumerate(trajectory.segments):
        if segment["ensemble"] != "NVE" or segment["role"] not in ("train", "reference", "drift"):
            continue
        if temperature_K is not None and abs(segment["temperature_K"] - temperature_K) > 0.5:
            continue
        frames = np.flatnonzero(trajectory.segment == index)
        if len(frames) < 8:
            continue
        gaps = np.diff(trajectory.time_ps[frames])
        if gaps.min() > 0 and gaps.max() < 1.01 * gaps.min():
            out.append(frames)
    return out


def cut_windows(trajectory: Trajectory, window_ps: float,
                temperature_K: float | None = None) -> list[tuple[np.ndarray, float]]:
    """Frames and spacing (ps) of NVE windows of one length, evenly spread over the run, MOST_WINDOWS at most.

    Without those whose frames are too far apart to resolve a stretch (Nyquist).
    """
    windows = []
    for frames in nve_segments(trajectory, temperature_K):
        spacing = spacing_ps(trajectory, frames)
        if nyquist_cm(spacing) < GRID_CM[-1]:
            continue
        steps = max(1, int(window_ps / spacing + 1e-6))  # neighbours share the frame between them
        windows += [(frames[start: start + steps + 1], spacing) for start in range(0, len(frames) - steps, steps)]
    if not windows:
        return []
    return [windows[i] for i in np.unique(np.linspace(0, len(windows) - 1, MOST_WINDOWS).astype(int))]


def spacing_ps(trajectory: Trajectory, frames: np.ndarray) -> float:
    """Time between frames (F,) of one segment."""
    return float(np.median(np.diff(trajectory.time_ps[frames])))


def nyquist_cm(spacing: float) -> float:
    """The highest wavenumber that frames `spacing` ps apart show."""
    return WAVENUMBER_PER_THZ / (2.0 * spacing)


def independent_groups(trajectory: Trajectory, windows: list) -> np.ndarray:
    """A number for each window: its replica, whose windows share a conformer; with fewer than 3, one of 5 blocks."""
    group = trajectory.replica[[part[0] for part, _ in windows]]
    return group if len(np.unique(group)) >= 3 else np.arange(len(windows)) * 5 // len(windows)


def mass_weighted_power(trajectory: Trajectory, part: np.ndarray, spacing: float) -> np.ndarray:
    """Power (len(GRID_CM),) of the velocities of frames `part`, weighted with sqrt(m)."""
    weighted = trajectory.vel[part] * np.sqrt(trajectory.masses_sampler)[:, None]
    return power_spectrum(weighted.reshape(len(part), -1), spacing).sum(axis=1)


def power_spectrum(signal: np.ndarray, spacing_ps: float) -> np.ndarray:
    """Power (len(GRID_CM), C) of series (T, C) on the fixed wavenumber grid, Hann window.

    By the Wiener-Khinchin theorem this is the Fourier transform of the autocorrelation.
    """
    n = len(signal)
    padded = fft.next_fast_len(max(2 * n, int(WAVENUMBER_PER_THZ / spacing_ps)), real=True)  # 1 cm-1 or finer
    window = np.hanning(n)[:, None]
    power = np.abs(fft.rfft(signal * window, n=padded, axis=0)) ** 2 / n
    wavenumber = fft.rfftfreq(padded, d=spacing_ps) * WAVENUMBER_PER_THZ
    return np.stack([np.interp(GRID_CM, wavenumber, column, right=0.0) for column in power.T], axis=1)


def isotope_shift(heavy_Da: float, hydrogen_Da: float) -> float:
    """nu / nu_H of a stretch X-H as a harmonic oscillator: sqrt(mu_H / mu), mu = m_X m / (m_X + m)."""
    reduced = [heavy_Da * light / (heavy_Da + light) for light in (HYDROGEN_DA, hydrogen_Da)]
    return float(np.sqrt(reduced[0] / reduced[1]))


def stretch_position_cm(power: np.ndarray, shift: float = 1.0) -> float:
    """Power-weighted centre of a stretch band: within 300 cm-1 of its highest point; shift: see `isotope_shift`."""
    inside = (GRID_CM >= shift * STRETCH_RANGE_CM[0]) & (GRID_CM <= shift * STRETCH_RANGE_CM[1])
    grid, band = GRID_CM[inside], power[inside]
    if band.sum() <= 0:
        return float("nan")
    for _ in range(2):
        centre = grid[band.argmax()]
        band = np.where(np.abs(grid - centre) <= 300.0 * shift, band, 0.0)
    return float((grid * band).sum() / band.sum())


def spectrum(trajectory: Trajectory, window_ps: float, temperature_K: float | None = None) -> dict | None:
    """Vibrational spectrum and X-H stretch positions, from NVE windows of one length.

    Velocities are weighted with sqrt(m); each X-H stretch is seen through the relative velocity
    along its bond, so that C-H, N-H and O-H bands separate, and C-D from C-H.  Returns {"density": (G,),
    "stretches": {"C-H": {"position_cm", "error_cm"}}, "bands", "windows", "window_ps"}; None if no NVE
    segment is as long as `window_ps` or frames are too far apart to resolve a stretch.
    """
    bonds = trajectory.bonds
    numbers = trajectory.atom_types
    masses = trajectory.masses_sampler  # those that the velocities belong to
    stretches: dict[str, list[int]] = {}
    shifts: dict[str, float] = {}
    for b, pair in enumerate(bonds):
        heavy, light = sorted(pair, key=lambda a: -numbers[a])
        if numbers[heavy] != 1 == numbers[light]:
            name = f"{symbol(numbers[heavy])}-{symbol(1, trajectory.masses[light])}"
            stretches.setdefault(name, []).append(b)
            shifts[name] = isotope_shift(masses[heavy], masses[light])
    windows = cut_windows(trajectory, window_ps, temperature_K)
    if not windows:
        return None
    densities, bands = [], {name: [] for name in stretches}
    for part, spacing in windows:
        velocity = trajectory.vel[part]
        densities.append(mass_weighted_power(trajectory, part, spacing))
        for name, rows in stretches.items():
            i, j = bonds[rows].T
            d = trajectory.pos[part][:, i] - trajectory.pos[part][:, j]
            d /= np.linalg.norm(d, axis=-1, keepdims=True)
            along = ((velocity[:, i] - velocity[:, j]) * d).sum(axis=-1)
            bands[name].append(power_spectrum(along, spacing).sum(axis=1))
    group = independent_groups(trajectory, windows)
    rng = np.random.default_rng(0)
    out = {"density": np.mean(densities, axis=0), "windows": len(densities), "window_ps": window_ps,
           "bands": {}, "stretches": {}}
    out["density"] = out["density"] / (out["density"].sum() * (GRID_CM[1] - GRID_CM[0]))
    for name, band in bands.items():
        band = np.array(band)
        sums = np.array([band[group == g].sum(axis=0) for g in np.unique(group)])
        draws = [stretch_position_cm(sums[rng.integers(len(sums), size=len(sums))].sum(axis=0), shifts[name])
                 for _ in range(60)] if len(sums) > 1 else []
        out["bands"][name] = band.mean(axis=0)
        few = np.sqrt(len(sums) / max(len(sums) - 1, 1))  # the spread of so few is too small by this factor
        out["stretches"][name] = {"position_cm": stretch_position_cm(band.mean(axis=0), shifts[name]),
                                  "error_cm": float(few * np.std(draws)) if draws else None}
    return out


def longest_window_ps(trajectory: Trajectory, temperature_K: float | None = None) -> float:
    """Length of the longest usable NVE segment; 0 if there is none."""
    times = [np.ptp(trajectory.time_ps[f]) for f in nve_segments(trajectory, temperature_K)]
    return float(max(times, default=0.0))
