"""Infrared spectra: frequency and intensity of a diatomic whose both are known, and what has none."""

import dataclasses

import numpy as np
import pytest

from conftest import BatchPool, BondPotential
from kstep.analysis.measure.infrared import KM_PER_MOL, absorbed
from kstep.analysis.spectrum import infrared
from kstep.errors import UserError
from kstep.runs.loop import run
from kstep.schemas import Trajectory, complete_trajectory
from kstep.scheme_traits import SchemeTraits
from kstep.schemes import Plain
from kstep.schemes.state import State, kinetic_energy
from kstep.units import BOLTZMANN, WAVENUMBER_PER_THZ

R0, SPRING, CHARGE, T = 2.0, 3.0e5, 0.2, 300.0  # nm: so long that it turns by 6 cm-1 alone; kJ/mol/nm^2; e; K
DT_PS, STEPS, REPLICAS = 5e-4, 5000, 4


def reduced_mass(masses):
    return masses[0] * masses[1] / sum(masses)


def diatomic(masses, *, every=1, charge=CHARGE, scheme="plain", ensemble="NVE", dipoles=True, drift=0.0, net=0.0):
    """A run of the harmonic diatomic through the time loop, its vibration and its two rotations at T each.

    drift nm/ps: of the whole molecule; net e: more on the first atom.
    """
    masses = np.asarray(masses, dtype=float)
    mu = reduced_mass(masses)
    rng = np.random.default_rng(1)
    x = np.zeros((REPLICAS, 2, 3))
    x[:, 1, 2] = R0
    phase = 2 * np.pi * np.arange(REPLICAS) / REPLICAS
    amplitude = np.sqrt(2 * BOLTZMANN * T / SPRING)  # energy kT
    speed = np.sqrt(2 * BOLTZMANN * T / mu)  # of the turn, energy kT in its two degrees of freedom
    relative = np.zeros((REPLICAS, 3))
    relative[:, 2] = amplitude * np.sqrt(SPRING / mu) * np.cos(phase)
    relative[:, 0] = speed
    x[:, 1, 2] += amplitude * np.sin(phase)
    v = np.zeros_like(x)
    v[:, 1], v[:, 0] = relative * masses[0] / masses.sum(), -relative * masses[1] / masses.sum()
    pool = BatchPool(BondPotential(masses, [[0, 1]], lambda r: 0.5 * SPRING * (r - R0) ** 2,
                                   lambda r: SPRING * (r - R0)))
    truth = pool.evaluate(x)
    frames = []

    def keep(state, info=None):
        frames.append((state.positions + drift * state.step * DT_PS, state.velocities, state.energy))

    state = State(x, v, truth.energy, truth.forces)
    keep(state)
    run(Plain(masses, DT_PS), pool, state, rng, STEPS, reporters=[keep])
    pos, vel, energy = (np.array(values)[::every].swapaxes(0, 1) for values in zip(*frames))
    n = pos.shape[1]
    flat = {"pos": pos.reshape(-1, 2, 3), "vel": vel.reshape(-1, 2, 3), "Epot": energy.ravel()}
    centre = np.einsum("fni,n->fi", flat["pos"], masses) / masses.sum()
    dipole = (charge + net) * flat["pos"][:, 0] - charge * flat["pos"][:, 1] - net * centre
    kinetic = kinetic_energy(flat["vel"], masses)
    arrays = complete_trajectory({
        **flat, "Ekin": kinetic, "Etot": kinetic + flat["Epot"], 
        "time_ps": np.tile(np.arange(n) * every * DT_PS, REPLICAS), "step": np.tile(np.arange(n) * every, REPLICAS),
        "replica": np.repeat(np.arange(REPLICAS), n),
        "segment": np.repeat(np.arange(REPLICAS), n), **({"dipole": dipole} if dipoles else {}),
        "masses": masses, "masses_sampler": masses, "atom_types": np.array([1, 1]), "bonds": np.array([[0, 1]])})
    segments = [{"replica": r, "role": "drift", "ensemble": ensemble, "temperature_K": T, "n_dof": 3}
                for r in range(REPLICAS)]
    return Trajectory(**arrays, metadata={"molecule": "diatomic", "method": "springs", "scheme": scheme,
                                          "scheme_traits": SchemeTraits(None).as_dict(), "segments": segments})


def wavenumber(masses):
    """sqrt(k/mu) / 2 pi c, as velocity Verlet of this timestep has it: sin(w h/2) = w_0 h/2."""
    w0 = np.sqrt(SPRING / reduced_mass(masses))
    return 2 / DT_PS * np.arcsin(0.5 * w0 * DT_PS) / (2 * np.pi) * WAVENUMBER_PER_THZ


HYDROGEN, DEUTERIUM = (1.00794, 34.969), (2.0141, 34.969)


@pytest.fixture(scope="module")
def chloride():
    return diatomic(HYDROGEN)


def strongest(spectrum):
    return max(spectrum.peaks, key=lambda peak: peak.intensity)


@pytest.mark.parametrize("masses", [HYDROGEN, DEUTERIUM], ids=["HCl", "DCl"])
def test_frequency_and_intensity_of_a_diatomic(masses):
    """w = sqrt(k/mu), A = N_A q^2 / (12 eps_0 c^2 mu), the double-harmonic intensity of charges on a spring."""
    found = infrared(diatomic(masses))
    assert found.temperature_K == pytest.approx(T, rel=0.01)
    peak = strongest(found)
    assert peak.position_cm == pytest.approx(wavenumber(masses), abs=2.0)
    assert peak.intensity == pytest.approx(KM_PER_MOL * CHARGE**2 / reduced_mass(masses), rel=0.02)
    band = np.abs(found.wavenumber_cm - peak.position_cm) < 60
    assert found.power[band].sum() * 2.0 == pytest.approx(1 / 3, rel=0.05)  # of three degrees of freedom


def test_the_unit_is_that_of_quantum_chemistry():
    """(D/A)^2/amu is 42.2561 km/mol, so that e^2/Da is 974.88: the factor of every program of normal modes."""
    debye_per_e_angstrom = 0.20819434
    assert KM_PER_MOL * debye_per_e_angstrom**2 == pytest.approx(42.256, rel=1e-4)


def test_the_area_of_the_absorption_is_the_mean_square_of_the_dipoles_slope():
    """Parseval, whatever the signal and its sampling: a sine of amplitude a has a^2 w^2 / 2, also near Nyquist."""
    for spacing, nu in ((5e-4, 3000.0), (3.5e-3, 3500.0), (3.5e-3, 300.0)):
        t = np.arange(0, 4.0, spacing)
        w = 2 * np.pi * nu / WAVENUMBER_PER_THZ
        dipole = np.zeros((len(t), 3))
        dipole[:, 1] = 0.7 + 0.01 * np.sin(w * t)  # on a large constant part
        assert absorbed(dipole, spacing).sum() * 2.0 == pytest.approx(0.5 * (0.01 * w) ** 2, rel=0.01)


def test_intensity_does_not_depend_on_the_energy_that_the_stretch_began_with(chloride):
    """Of a harmonic molecule: velocities and displacements of half the energy give the same spectrum."""
    half = np.sqrt(0.5)
    centre = chloride.dipole.mean()
    assert centre != 0.0
    cold = Trajectory(**{**vars(chloride), "vel": chloride.vel * half, "Ekin": chloride.Ekin * 0.5,
                         "dipole": chloride.dipole * half})
    assert strongest(infrared(cold)).intensity == pytest.approx(strongest(infrared(chloride)).intensity, rel=1e-6)


def test_an_ion_that_flies_absorbs_what_one_at_rest_does():
    at_rest, flying = (strongest(infrared(diatomic(HYDROGEN, net=1.0, drift=drift))) for drift in (0.0, 3.0))
    assert flying.position_cm == pytest.approx(at_rest.position_cm, abs=0.5)
    assert flying.intensity == pytest.approx(at_rest.intensity, rel=1e-3)


def test_peaks_beside_those_of_plain_md(chloride):
    both = infrared(chloride, baseline=chloride)
    peak = strongest(both)
    assert peak.shift_cm == 0.0 and peak.reference_cm == peak.position_cm
    assert peak.shift_error_cm == pytest.approx(np.sqrt(2) * peak.position_error_cm)
    other = diatomic(DEUTERIUM)
    assert strongest(infrared(chloride, baseline=other)).reference_cm is None  # 800 cm-1 away


def test_the_error_covers_what_other_replicas_find():
    """Bands of noise around a position that differs from replica to replica: their mean is off by the error."""
    from kstep.analysis.measure.infrared import GRID_CM, find_bands

    rng, off, errors = np.random.default_rng(3), [], []
    for _ in range(60):
        centres = 1500.0 + 6.0 * rng.standard_normal(8)
        peak, = find_bands(np.exp(-0.5 * ((GRID_CM - centres[:, None]) / 20.0) ** 2))
        off.append(peak.position_cm - 1500.0)
        errors.append(peak.position_error_cm)
    assert np.mean(errors) == pytest.approx(6.0 / np.sqrt(8), rel=0.2)
    assert 0.5 < np.mean(np.abs(off) < errors) < 0.85


@pytest.mark.parametrize("change, words", [
    ({"every": 16}, "frames 8 fs apart, which show nothing above 2085 cm-1"),
    ({"ensemble": "NVT"}, "no stretch of 0.4 ps without a thermostat"),
])
def test_what_has_no_spectrum_says_why(change, words):
    with pytest.raises(UserError, match=words):
        infrared(diatomic(HYDROGEN, **change))


@pytest.mark.parametrize("traits", [SchemeTraits("energy", keeps_velocities=False),
                                    SchemeTraits("jump", ensemble="none")])
def test_schemes_without_dynamics_are_refused(chloride, traits):
    sampler = Trajectory(**{**vars(chloride), "metadata": {**chloride.metadata, "scheme_traits": traits.as_dict()}})
    with pytest.raises(UserError, match="follows no dynamics"):
        infrared(sampler)


def test_dynamics_under_restraints_are_refused_for_the_restraints(chloride):
    """It was impulse in NVE and was told to run impulse in NVE."""
    held = {**chloride.metadata, "restraints": [{"kind": "distance", "atoms": [0, 1], "centre": 0.13, "k": 10.0}],
            "scheme_traits": SchemeTraits("energy").as_dict()}
    run = Trajectory(**{**vars(chloride), "bias": np.zeros(len(chloride.pos)), "metadata": held})
    with pytest.raises(UserError, match="was held by restraints.*run it without them"):
        infrared(run)


def test_without_dipoles_there_is_the_power_spectrum():
    found = infrared(diatomic(HYDROGEN, dipoles=False))
    assert found.absorption is None and found.unit == "arbitrary units"
    assert strongest(found).position_cm == pytest.approx(wavenumber(HYDROGEN), abs=2.0)


def test_a_dipole_that_is_not_known_everywhere_is_refused(chloride):
    dipole = chloride.dipole.copy()
    dipole[77] = np.nan
    with pytest.raises(UserError, match="lacks the dipole of some frames"):
        infrared(Trajectory(**{**vars(chloride), "dipole": dipole}))


def test_windows_longer_than_any_stretch_are_refused(chloride):
    with pytest.raises(UserError, match="the longest is 2.5 ps"):
        infrared(chloride, window_ps=5.0)


def test_lines_that_fall_between_the_points_of_the_grid_are_refused(chloride):
    """Up to the longest stretch that is taken, an area does not depend on where its line lies."""
    spacing, windows = 2e-3, (16.6, 30.0)
    off = []
    for window_ps in windows:
        t = np.arange(0, window_ps, spacing)
        areas = [absorbed(np.sin(2 * np.pi * nu / WAVENUMBER_PER_THZ * t)[:, None], spacing).sum() * 2.0
                 / (0.5 * (2 * np.pi * nu / WAVENUMBER_PER_THZ) ** 2) for nu in (1500.0, 1500.5, 1501.0)]
        off.append(np.ptp(areas))
    assert off[0] < 0.01 and off[1] > 0.2
    longer = dataclasses.replace(chloride, time_ps=7.0 * chloride.time_ps)
    assert infrared(longer, window_ps=windows[0]).windows == REPLICAS
    with pytest.raises(UserError, match="--window-ps of 16.7 or less"):
        infrared(longer, window_ps=17.4)
