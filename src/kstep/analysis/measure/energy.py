"""Energy drift, temperature of each element, and the kinetic-energy distribution."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
from scipy.special import stdtrit

from kstep.analysis.measure.geometry import symbol
from kstep.analysis.measure.statistics import MeanEstimate, estimate_means
from kstep.schemas import Trajectory
from kstep.units import BOLTZMANN, kT

FEWEST_WINDOWS = 4


def drift_windows(trajectory: Trajectory) -> Iterator[tuple[dict, np.ndarray]]:
    """Each NVE segment of role drift and the indices of its frames."""
    for index, segment in enumerate(trajectory.segments):
        if segment["role"] == "drift" and segment["ensemble"] == "NVE":
            yield segment, np.flatnonzero(trajectory.segment == index)


def energy_drift(trajectory: Trajectory) -> dict | None:
    """Slope of the true total energy in NVE windows of role `drift`, kJ/mol/ps.

    A line is fitted to each window; the mean over windows carries a 95 % confidence interval
    from their spread (Student's t).  Fewer than four segments are cut into four windows.  A
    window *blows up* when the total energy leaves its start by the kinetic energy of the whole
    molecule (n_dof kT / 2); it is fitted up to that point.  None if there is no such window.
    """
    windows, blowups = [], []
    for segment, frames in drift_windows(trajectory):
        if len(frames) < 3:
            continue
        time, energy = trajectory.time_ps[frames], trajectory.Etot[frames]
        limit = 0.5 * segment["n_dof"] * kT(segment["temperature_K"])
        beyond = np.flatnonzero(np.abs(energy - energy[0]) > limit)
        if len(beyond):
            blowups.append(float(time[beyond[0]] - time[0]))
            time, energy = time[: beyond[0] + 1], energy[: beyond[0] + 1]
        windows.append((time, energy))
    if not windows:
        return None
    n_segments = len(windows)
    if n_segments < FEWEST_WINDOWS:
        parts = -(-FEWEST_WINDOWS // n_segments)
        windows = [(t, e) for time, energy in windows
                   for t, e in zip(np.array_split(time, parts), np.array_split(energy, parts))]
    slopes = np.array([np.polyfit(t - t[0], e, 1)[0] for t, e in windows if len(t) >= 3])
    if len(slopes) == 0:  # blew up within two frames: the mean rate is all there is
        slopes = np.array([(e[-1] - e[0]) / (t[-1] - t[0]) for t, e in windows if len(t) > 1])
    if len(slopes) == 0:
        return None
    half = None
    if len(slopes) > 1:
        half = float(stdtrit(len(slopes) - 1, 0.975) * slopes.std(ddof=1) / np.sqrt(len(slopes)))
    mean = float(slopes.mean())
    return {
        "drift_kJ_per_mol_ps": mean,
        "confidence_95": None if half is None else [mean - half, mean + half],
        "half_width_95": half,
        "windows": len(slopes),
        "segments": n_segments,
        "window_ps": float(np.mean([t[-1] - t[0] for t, _ in windows])),
        "blown_up_segments": len(blowups),
        "first_blow_up_ps": min(blowups) if blowups else None,
    }


def element_temperatures(trajectory: Trajectory, replicas: list[np.ndarray], n_dof: int,
                         spacing_ps: float) -> tuple[list[str], MeanEstimate]:
    """Temperature of each element and of all atoms ('all'), from velocities of the given frames.

        T = sum m v^2 / (k_B n_dof),  with 3 (1 - m_i / M) degrees of freedom of atom i once the
        centre-of-mass velocity is removed

    (and the same shares of what is left when rotation is removed too).  Masses are the
    sampler's, to which the velocities belong.
    """
    masses, numbers = trajectory.masses_sampler, trajectory.atom_types
    n_atoms = len(masses)
    per_atom = np.full(n_atoms, 3.0)
    if n_dof < 3 * n_atoms:
        per_atom = 3.0 * (1.0 - masses / masses.sum()) if n_atoms > 1 else per_atom
        per_atom *= n_dof / per_atom.sum()
    elements = sorted({int(z) for z in numbers})
    columns = np.stack([(numbers == z).astype(float) for z in elements] + [np.ones(n_atoms)], axis=1)
    dof = per_atom @ columns
    series = []
    for frames in replicas:
        v = trajectory.vel[frames]
        series.append(np.einsum("tni,tni->tn", v, v) * masses @ columns / (BOLTZMANN * dof))
    return [symbol(z) for z in elements] + ["all"], estimate_means(series, spacing_ps)


def kinetic_energy_check(kinetic: list[np.ndarray], interval: float, n_dof: int,
                         temperature_K: float, n_atoms: int) -> dict | None:
    """Is the kinetic energy Maxwell distributed?  (physical_validation, on decorrelated frames)

    kinetic: one series (T_r,) in kJ/mol per replica; every `interval`-th frame is used, since the
    tests assume independent ones.  Returns the p value of the Kolmogorov-Smirnov test and the
    distances of the temperatures of mean and width from the target, in standard errors;
    None with fewer than 20 independent frames.  Source: Merz, Shirts, PLoS ONE 13, e0202764 (2018).
    """
    sample = np.concatenate([k[:: max(1, int(np.ceil(interval)))] for k in kinetic])
    if len(sample) < 20:
        return None
    logging.getLogger("pymbar").setLevel(logging.ERROR)
    import physical_validation

    data = physical_validation.data
    units = data.UnitData(kb=BOLTZMANN, energy_conversion=1.0, length_conversion=1.0, volume_conversion=1.0,
                          temperature_conversion=1.0, pressure_conversion=1.0, time_conversion=1.0)
    removed = 3 * n_atoms - n_dof
    simulation = data.SimulationData(
        units=units,
        system=data.SystemData(natoms=n_atoms, nconstraints=0, ndof_reduction_tra=min(removed, 3),
                               ndof_reduction_rot=max(removed - 3, 0)),
        # an isolated molecule has no volume; the kinetic energy does not ask for it
        ensemble=data.EnsembleData("NVT", natoms=n_atoms, volume=1.0, temperature=temperature_K),
        observables=data.ObservableData(kinetic_energy=sample),
    )
    check = physical_validation.kinetic_energy.distribution
    p_value = check(simulation, strict=True, verbosity=0, data_is_uncorrelated=True)
    mean, width = check(simulation, strict=False, verbosity=0, data_is_uncorrelated=True, bootstrap_seed=1)
    return {"p_value": float(p_value), "mean_deviation_se": float(mean), "width_deviation_se": float(width),
            "independent_frames": len(sample)}
