"""Does a sampler keep the ensemble it promises?  The checks of physical_validation on independent frames.

Every figure is a distance from what is promised in standard errors ("sigma"); a p value counts as
the sigma of a two-sided normal test.  Source: Merz, Shirts, PLoS ONE 13, e0202764 (2018).
"""

from __future__ import annotations

import contextlib
import io
import logging
from dataclasses import dataclass

import numpy as np
from scipy import stats

from kstep.analysis.measure.geometry import symbol
from kstep.analysis.measure.statistics import statistical_inefficiency
from kstep.units import BOLTZMANN

BOOTSTRAP_SEED = 1


@dataclass(frozen=True)
class Sample:
    """T frames of R replicas at one temperature, far enough apart to count as independent.

    positions, velocities (T,R,N,3) nm, nm/ps; potential (T,R) kJ/mol of the true potential; masses (N,) Da that
    the velocities belong to; the centre of mass rests.
    """

    positions: np.ndarray
    velocities: np.ndarray
    potential: np.ndarray
    masses: np.ndarray
    numbers: np.ndarray
    temperature_K: float

    @property
    def kinetic(self) -> np.ndarray:
        """Kinetic energy (T,R) in kJ/mol."""
        return 0.5 * np.einsum("trni,trni,n->tr", self.velocities, self.velocities, self.masses)

    def effective(self) -> dict:
        """Frames, and frames over the statistical inefficiency of potential and kinetic energy."""
        replicas = np.stack([self.potential, self.kinetic], axis=2).transpose(1, 0, 2)
        g = statistical_inefficiency(list(replicas), minimum_lag=1)
        return {"frames": self.potential.size, "potential": self.potential.size / g[0],
                "kinetic": self.potential.size / g[1]}


def _physical_validation():
    logging.getLogger("pymbar").setLevel(logging.ERROR)
    import physical_validation

    return physical_validation


def _data(n_atoms: int, *, removed: int, temperature_K=None, dt_ps=None, trajectory=None, masses=None, **observables):
    """A SimulationData; an isolated molecule has no volume, and nothing here asks for one."""
    data = _physical_validation().data
    whole = {} if masses is None else {
        "mass": masses, "molecule_idx": np.array([0]), "nconstraints_per_molecule": np.array([0])}
    ensemble = (data.EnsembleData("NVE", natoms=n_atoms, volume=1.0, energy=0.0) if temperature_K is None else
                data.EnsembleData("NVT", natoms=n_atoms, volume=1.0, temperature=temperature_K))
    return data.SimulationData(
        units=data.UnitData(kb=BOLTZMANN, energy_str="kJ/mol", energy_conversion=1.0, length_str="nm",
                            length_conversion=1.0, volume_str="nm^3", volume_conversion=1.0, temperature_str="K",
                            temperature_conversion=1.0, pressure_str="bar", pressure_conversion=1.0, time_str="ps",
                            time_conversion=1.0),
        ensemble=ensemble, **({} if dt_ps is None else {"dt": dt_ps}),
        system=data.SystemData(natoms=n_atoms, nconstraints=0, ndof_reduction_tra=removed, ndof_reduction_rot=0,
                               **whole),
        observables=data.ObservableData(**observables),
        **({} if trajectory is None else {"trajectory": data.TrajectoryData(*trajectory)}))


def _energies(sample: Sample):
    kinetic, potential = sample.kinetic.ravel(), sample.potential.ravel()
    return _data(len(sample.masses), removed=3, temperature_K=sample.temperature_K, kinetic_energy=kinetic,
                 potential_energy=potential, total_energy=kinetic + potential)


def sigma_of(p_value: float) -> float:
    """How many standard errors a two-sided normal test of this p value is off."""
    return float(stats.norm.isf(max(p_value, 1e-300) / 2))


def _as_figures(p_value, mean_and_width) -> dict:
    return {"p_value": float(p_value), "shape_sigma": sigma_of(p_value), "mean_sigma": float(mean_and_width[0]),
            "width_sigma": float(mean_and_width[1])}


def _both(check, data, **options) -> list:
    """The strict (Kolmogorov-Smirnov) and the non-strict (mean, width) form of a check."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints which degrees of freedom are absent
        return [check(data, strict=strict, verbosity=0, data_is_uncorrelated=True, **options, **seed)
                for strict, seed in ((True, {}), (False, {"bootstrap_seed": BOOTSTRAP_SEED}))]


def kinetic_distribution(sample: Sample) -> dict:
    """Is the kinetic energy of all atoms Maxwell's, with 3N - 3 degrees of freedom?"""
    return _as_figures(*_both(_physical_validation().kinetic_energy.distribution, _energies(sample)))


def element_kinetic_energy(velocities: np.ndarray, masses: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """Kinetic energy (...) of a group of atoms with what the resting centre of mass took from it given back, kJ/mol.

        K = sum_g m v^2 / 2 + (f - 1) |P_g|^2 / (2 M_g),   f = 1 / (1 - M_g / M)

    P_g, M_g: momentum and mass of the group.  With the whole at rest the group moves as a body of reduced mass
    M_g (1 - M_g / M), so K has exactly 3 n_g independent degrees of freedom.  velocities (...,N,3) nm/ps; atoms (N,)
    bool.
    """
    v, m = velocities[..., atoms, :], masses[atoms]
    momentum = np.einsum("...ni,n->...i", v, m)
    lost = 1.0 / (1.0 - m.sum() / masses.sum()) - 1.0
    return 0.5 * np.einsum("...ni,...ni,n->...", v, v, m) + lost * (momentum**2).sum(-1) / (2.0 * m.sum())


def equipartition(sample: Sample) -> dict:
    """Maxwell's distribution for each element, and for rotation and vibration of the molecule as a whole."""
    pv, found = _physical_validation(), {}
    for z in sorted(set(sample.numbers.tolist())):
        atoms = sample.numbers == z
        kinetic = element_kinetic_energy(sample.velocities, sample.masses, atoms).ravel()
        data = _data(int(atoms.sum()), removed=0, temperature_K=sample.temperature_K, kinetic_energy=kinetic)
        found[symbol(z)] = {**_as_figures(*_both(pv.kinetic_energy.distribution, data)), "temperature_K": float(
            2.0 * kinetic.mean() / (3 * atoms.sum() * BOLTZMANN)), "error_K": float(
            2.0 * kinetic.std() / np.sqrt(kinetic.size) / (3 * atoms.sum() * BOLTZMANN))}
    n = len(sample.masses)
    data = _data(n, removed=3, temperature_K=sample.temperature_K, masses=sample.masses,
                 trajectory=(sample.positions.reshape(-1, n, 3), sample.velocities.reshape(-1, n, 3)))
    strict, loose = _both(pv.kinetic_energy.equipartition, data)
    names = ("total", "rotational and internal", "rotational", "internal")  # nothing translates
    found |= {name: _as_figures(p, pair) for name, p, pair in zip(names, strict, loose, strict=True)
              if name in ("rotational", "internal")}
    return found


def two_temperatures(cold: Sample, hot: Sample, *, total_energy: bool) -> float:
    """Sigma by which ln(p_cold / p_hot) against the energy misses its slope 1/kT_hot - 1/kT_cold."""
    (deviation,) = _physical_validation().ensemble.check(
        _energies(cold), _energies(hot), total_energy=total_energy, data_is_uncorrelated=True, verbosity=0)
    return float(deviation)


def suggested_interval_K(sample: Sample) -> float:
    """Distance in K of the second temperature at which the check of the total energy is sharpest."""
    found = _physical_validation().ensemble.estimate_interval(
        _energies(sample), total_energy=True, verbosity=0, data_is_uncorrelated=True)
    return float(found["dT"])


def convergence(energies: dict[float, np.ndarray]) -> float:
    """Largest relative deviation of an NVE run's energy fluctuation from the square of the timestep; {dt_ps: (T,)}."""
    runs = [_data(1, removed=0, dt_ps=dt_ps, constant_of_motion=np.asarray(energy))
            for dt_ps, energy in energies.items()]
    return float(_physical_validation().integrator.convergence(runs, verbose=False))


def check_sample(sample: Sample) -> dict:
    """Everything one temperature alone can show."""
    return {"temperature_K": sample.temperature_K, "independent": sample.effective(),
            "kinetic": kinetic_distribution(sample), "equipartition": equipartition(sample)}


def check_pair(cold: Sample, hot: Sample) -> dict:
    """The checks of two runs that differ in temperature alone."""
    return {"samples": [check_sample(cold), check_sample(hot)],
            "potential_sigma": two_temperatures(cold, hot, total_energy=False),
            "total_sigma": two_temperatures(cold, hot, total_energy=True)}


def sigmas(figures) -> dict[str, float]:
    """Every '..._sigma' below a table of figures, by its path."""
    items = figures.items() if isinstance(figures, dict) else enumerate(figures) if isinstance(figures, list) else ()
    found = {}
    for key, value in items:
        if isinstance(key, str) and key.endswith("_sigma"):
            found[key] = value
        found |= {f"{key} {path}": sigma for path, sigma in sigmas(value).items()}
    return found
