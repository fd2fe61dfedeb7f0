"""Plain, impulse, metropolis and nested keep the true potential's canonical ensemble, however wrong the network."""

import numpy as np
import pytest

import springs
from conftest import BatchPool, start_state
from kstep.runs.loop import run
from kstep.runs.network_dynamics import Carrier
from kstep.schemes import Impulse, Metropolis, Nested, Plain
from kstep.schemes.langevin import LangevinThermostat
from kstep.schemes.maxwell import draw_velocities
from kstep.schemes.network_ladder import NetworkLadder
from kstep.units import kT
from physical_checks import (
    Sample,
    check_pair,
    convergence,
    element_kinetic_energy,
    kinetic_distribution,
    sigma_of,
    sigmas,
    two_temperatures,
)
from test_impulse_checked import SHAPE, Springs

MASSES, NUMBERS = np.array(springs.METHANOL["masses"]), np.array(springs.METHANOL["numbers"])
TRUTH, NETWORK = Springs(), Springs(0.15)  # bonds 15 % too soft and 1.5 % too long
TEMPERATURES_K = (300.0, 420.0)
REPLICAS, BURN_IN, FRAMES = 350, 4, 6
LIMIT = 3.5  # sigma; some fifty figures are looked at


def scheme_of(name, temperature_K):
    """A scheme and its macro-steps per frame: 0.1 ps of dynamics, or twelve proposals."""
    if name == "plain":
        return Plain(MASSES, 5e-4), 200
    if name == "impulse":
        return Impulse(NETWORK, Carrier(NETWORK), MASSES, 2.5e-4, 4), 100
    if name == "nested":
        ladder = NetworkLadder(NETWORK, Carrier(NETWORK), MASSES, 1e-3, (temperature_K,), n_moves=2, move_steps=15)
        return Nested(ladder, 30), 12
    return Metropolis(Carrier(NETWORK), MASSES, 1e-3, 30, temperature_K, length_law="uniform"), 12


def sample(name, temperature_K, seed):
    scheme, every = scheme_of(name, temperature_K)
    rng, pool, frames = np.random.default_rng(seed), BatchPool(TRUTH), []
    x = np.repeat(SHAPE[None], REPLICAS, axis=0)
    state = start_state(pool, x, draw_velocities(REPLICAS, MASSES, 2 * temperature_K, rng))
    thermostat = None if scheme.traits.sets_temperature else LangevinThermostat(temperature_K, 40.0, MASSES)
    run(scheme, pool, state, rng, every * (BURN_IN + FRAMES), thermostat=thermostat,
        reporters=[lambda s, info: frames.append(s) if s.step % (every * scheme.k_steps) == 0 else None])
    frames = frames[BURN_IN:]
    return Sample(*(np.array([getattr(f, key) for f in frames]) for key in ("positions", "velocities", "energy")),
                  MASSES, NUMBERS, temperature_K)


@pytest.mark.parametrize("name", ["plain", "impulse", "metropolis", "nested"])
def test_two_temperatures_show_the_canonical_ensemble(name):
    cold, hot = (sample(name, temperature_K, seed) for seed, temperature_K in enumerate(TEMPERATURES_K, 10))
    figures = check_pair(cold, hot)
    for each in figures["samples"]:
        assert min(each["independent"]["potential"], each["independent"]["kinetic"]) > 1500
        assert set(each["equipartition"]) == {"H", "C", "O", "rotational", "internal"}
    found = sigmas(figures)
    assert len(found) == 2 + 2 * 3 * 6 and max(found.values()) < LIMIT, found


def maxwell(temperature_K, n=3000, potential=None, seed=0):
    v = draw_velocities(n, MASSES, temperature_K, np.random.default_rng(seed))[None]
    zeros = np.zeros((1, n)) if potential is None else potential[None]
    return Sample(np.repeat(SHAPE[None], n, axis=0)[None], v, zeros, MASSES, NUMBERS, 300.0)


def test_the_checks_notice_a_wrong_temperature():
    assert max(sigmas(kinetic_distribution(maxwell(300.0))).values()) < LIMIT
    assert kinetic_distribution(maxwell(312.0))["mean_sigma"] > LIMIT
    rng = np.random.default_rng(3)
    gamma = [rng.gamma(6.0, kT(t), 3000) for t in TEMPERATURES_K]
    cold, hot, wrong = (Sample(*[np.zeros((1, 3000, 1, 3))] * 2, u[None], MASSES[:1], NUMBERS[:1], t)
                        for u, t in zip((*gamma, 1.15 * gamma[1]), (*TEMPERATURES_K, TEMPERATURES_K[1])))
    assert two_temperatures(cold, hot, total_energy=False) < LIMIT < two_temperatures(cold, wrong, total_energy=False)


def test_a_group_of_atoms_has_all_its_degrees_of_freedom_beside_a_resting_whole():
    v = draw_velocities(40_000, MASSES, 300.0, np.random.default_rng(2))
    for z in (1, 6, 8):
        atoms = NUMBERS == z
        kinetic, dof = element_kinetic_energy(v, MASSES, atoms), 3 * atoms.sum()
        assert kinetic.mean() == pytest.approx(dof * kT(300.0) / 2, rel=0.02)
        assert kinetic.var() == pytest.approx(dof * kT(300.0) ** 2 / 2, rel=0.06)


def test_convergence_tells_second_order_from_first():
    wave = np.sin(np.arange(1000.0))
    assert convergence({dt: dt**2 * wave for dt in (4e-4, 2e-4, 1e-4)}) < 1e-9
    assert convergence({dt: dt * wave for dt in (4e-4, 2e-4, 1e-4)}) == pytest.approx(0.5)


def test_sigma_of_a_p_value_is_that_of_a_two_sided_normal_test():
    assert sigma_of(0.0026998) == pytest.approx(3.0, abs=1e-4) and sigma_of(1.0) == pytest.approx(0.0, abs=1e-12)
