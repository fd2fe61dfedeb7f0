"""The spectrum of a run, where it has one, beside plain MD's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kstep.analysis.judge.compare import check_comparable
from kstep.analysis.measure.infrared import STEP_CM, Spectrum, spectrum_of
from kstep.analysis.measure.spectra import (
    GRID_CM,
    LONGEST_WINDOW_PS,
    SHORTEST_SEGMENT_PS,
    longest_window_ps,
    nve_segments,
    nyquist_cm,
    spacing_ps,
)
from kstep.errors import UserError
from kstep.schemas import Trajectory
from kstep.scheme_traits import traits_of
from kstep.units import FS_PER_PS, WAVENUMBER_PER_THZ

LONGEST_TAKEN_PS = WAVENUMBER_PER_THZ / STEP_CM  # lines of longer ones are narrower than the grid tells
SAME_PEAK_CM = 100.0  # two runs' peaks farther apart are two


def infrared(run: Trajectory, *, baseline: Trajectory | None = None, window_ps: float | None = None) -> Spectrum:
    """The spectrum of a run, beside that of plain MD of the same molecule and method.

    window_ps: length of the stretches that are transformed, and so the resolution (None: as long as both have, 2 ps
    at most).  UserError where a run keeps no velocities, has no NVE stretch, or frames too far apart.
    """
    both = [run] if baseline is None else [run, baseline]
    for trajectory in both:
        _check_dynamics(trajectory)
    if baseline is not None:
        check_comparable(baseline, run)
    longest = min(map(longest_window_ps, both))
    window_ps = window_ps or longest / np.ceil(longest / LONGEST_WINDOW_PS - 1e-6)  # the longest stretch in equal parts
    if window_ps > longest * 1.0001:
        raise UserError(f"there is no stretch of {window_ps:g} ps without a thermostat or a velocity redraw, the "
                        f"longest is {longest:.3g} ps; ask for a shorter --window-ps")
    if window_ps > LONGEST_TAKEN_PS:
        raise UserError(f"stretches of {window_ps:g} ps have lines about as narrow as the spectrum's points are apart, "
                        f"{STEP_CM:g} cm-1, so that their areas would be chance; ask for a --window-ps of "
                        f"{LONGEST_TAKEN_PS:.3g} or less")
    own = spectrum_of(run, window_ps)
    if baseline is None:
        return own
    return beside(own, spectrum_of(baseline, window_ps))


def beside(own: Spectrum, plain: Spectrum) -> Spectrum:
    """A spectrum whose peaks know how far they are from the nearest of plain MD's, each of which is taken once."""
    peaks, free = list(own.peaks), list(plain.peaks)
    for gap, i, other in sorted(((abs(p.position_cm - q.position_cm), i, q) for i, p in enumerate(own.peaks)
                                 for q in plain.peaks), key=lambda pair: pair[:2]):
        if gap <= SAME_PEAK_CM and other in free and peaks[i].reference_cm is None:
            free.remove(other)
            peaks[i] = replace(peaks[i], reference_cm=other.position_cm,
                               shift_cm=peaks[i].position_cm - other.position_cm,
                               shift_error_cm=float(np.hypot(peaks[i].position_error_cm, other.position_error_cm)))
    return replace(own, peaks=tuple(peaks), baseline=plain)


def _check_dynamics(trajectory: Trajectory) -> None:
    """Refuse what has no spectrum: velocities that follow no dynamics, a thermostat, frames too far apart."""
    metadata, traits = trajectory.metadata, traits_of(trajectory.metadata)
    name = f"the run of {metadata.get('molecule')} with scheme {metadata.get('scheme')}"
    if trajectory.is_restrained:
        raise UserError(f"{name} was held by restraints, which is not the dynamics of the molecule, so that it has no "
                        "spectrum; run it without them")
    if not traits.keeps_velocities or traits.ensemble == "none":
        raise UserError(f"{name} follows no dynamics, so that it has no spectrum; run plain MD (kstep baseline), or "
                        "--scheme impulse or checked with --thermostat none")
    if trajectory.is_weighted:
        raise UserError(f"{name} has frames that count by weight, which is not the dynamics of the molecule, so that "
                        "it has no spectrum")
    segments = nve_segments(trajectory)
    if longest_window_ps(trajectory) < SHORTEST_SEGMENT_PS:
        raise UserError(f"{name} has no stretch of {SHORTEST_SEGMENT_PS:g} ps without a thermostat or a velocity "
                        "redraw; run it with --thermostat none, plain MD with a longer redraw_interval_ps")
    widest = max(spacing_ps(trajectory, frames) for frames in segments)
    if nyquist_cm(widest) < GRID_CM[-1]:
        raise UserError(f"{name} has frames {widest * FS_PER_PS:.3g} fs apart, which show nothing above "
                        f"{nyquist_cm(widest):.0f} cm-1 (Nyquist) and fold what is there; a spectrum takes "
                        f"{WAVENUMBER_PER_THZ / 2 / GRID_CM[-1] * FS_PER_PS:.2g} fs or less: fewer --k-steps, and "
                        "save_interval_steps: 1")
    if len(trajectory.dipole) and not np.isfinite(trajectory.dipole[np.concatenate(segments)]).all():
        raise UserError(f"{name} lacks the dipole of some frames, which its calculator did not say")
