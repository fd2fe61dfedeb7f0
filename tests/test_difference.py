"""The difference of two methods: recovered where it is known, honest about what it does not know."""

import numpy as np
import pytest

from kstep.learning.chains import half_range
from kstep.topology import equivalent_hydrogens
from kstep.training import difference as module
from kstep.training.difference import Difference, fit_difference
from kstep.training.equivalent_atoms import exchange_equivalent, relabellings
from ladder_truths import known_difference
from springs import METHANOL, WATER

NUMBERS, BONDS = np.array(WATER["numbers"]), np.array(WATER["bonds"])
ORDERS = relabellings(NUMBERS, BONDS, 64)
METHANE = {"numbers": [6, 1, 1, 1, 1], "bonds": [[0, 1], [0, 2], [0, 3], [0, 4]]}


def geometries(n, seed=0, size=0.004):
    """Waters (n,3,3) as warm as 300 K makes them, turned anyhow."""
    rng = np.random.default_rng(seed)
    x = np.array(WATER["shape"]) + size * rng.normal(size=(n, 3, 3))
    turns = np.linalg.qr(rng.normal(size=(n, 3, 3)))[0]
    return x @ turns


def fitted(n, seed=0, with_forces=False):
    x = geometries(n, seed)
    energy, forces = known_difference(x)
    return fit_difference(x, energy, forces if with_forces else None, ORDERS)


def error(difference, seed=99):
    """RMS error about its mean at fresh geometries, as a share of the spread there."""
    x = geometries(300, seed)
    energy, _ = known_difference(x)
    return (difference.energy_and_forces(x)[0] - energy).std() / energy.std()


def test_a_known_difference_is_recovered_from_energies_alone():
    errors = [error(fitted(n)) for n in (10, 20, 40)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.02
    x = geometries(50, 7)
    energy, forces = known_difference(x)
    found, slope = fitted(40).energy_and_forces(x)
    assert np.median(np.abs(found - energy)) < 0.05  # of -7000 kJ/mol
    assert np.median(np.abs(slope - forces)) < 0.05 * np.median(np.abs(forces))


def test_with_forces_a_label_counts_as_many():
    assert error(fitted(8, with_forces=True)) < 0.3 * error(fitted(8))
    x = geometries(8)
    energy, forces = known_difference(x)
    wrong = fit_difference(x, energy, -forces, ORDERS)
    assert error(wrong) > 10 * error(fitted(8, with_forces=True))


@pytest.mark.parametrize("with_forces", [False, True])
def test_what_is_left_out_tells_the_error_at_fresh_states(with_forces):
    n = 10 if with_forces else 20
    own, fresh = [], []
    for seed in range(25):
        found, x = fitted(n, seed, with_forces), geometries(100, 100 + seed)
        own += found.left_out.tolist()
        fresh += (known_difference(x)[0] - found.energy_and_forces(x)[0]).tolist()
    assert half_range(np.array(own)) / half_range(np.array(fresh)) == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize("with_forces", [False, True])
def test_the_closed_form_is_what_leaving_each_label_out_gives(with_forces, monkeypatch):
    monkeypatch.setattr(module, "LENGTHS", (2.0,))
    monkeypatch.setattr(module, "NOISES", (1e-4,))
    x = geometries(12)
    energy, forces = known_difference(x)
    whole = fit_difference(x, energy, forces if with_forces else None, ORDERS)
    for label in range(3):
        rest = np.arange(12) != label
        data = module._data(x[rest], energy[rest] - energy.mean(), forces[rest] if with_forces else None, ORDERS)
        part = module._solved(data, whole.length, 1e-4, energy.mean())
        expected = energy[label] - part.energy_and_forces(x[label:label + 1])[0][0]
        assert whole.left_out[label] == pytest.approx(expected, rel=0.02, abs=1e-4)


def test_its_forces_are_the_slope_of_its_energy():
    found, x, h = fitted(15, with_forces=True), geometries(4, 5), 1e-6
    slope = np.empty_like(x)
    for atom, axis in np.ndindex(3, 3):
        shift = np.zeros((3, 3))
        shift[atom, axis] = h
        up, down = (found.energy_and_forces(x + s)[0] for s in (shift, -shift))
        slope[:, atom, axis] = (down - up) / (2 * h)
    forces = found.energy_and_forces(x)[1]
    assert np.allclose(forces, slope, atol=1e-4 * np.abs(forces).max())


def test_it_knows_no_hydrogen_from_another_and_no_direction():
    found, x = fitted(10), geometries(6, 3)
    turned = x @ np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0] + 0.3
    energy, forces = found.energy_and_forces(x)
    for same in (turned, x[:, [0, 2, 1]], -x):
        assert np.allclose(found.energy_and_forces(same)[0], energy, rtol=0, atol=1e-8)
    assert np.allclose(found.energy_and_forces(x[:, [0, 2, 1]])[1], forces[:, [0, 2, 1]], atol=1e-8)
    first = fit_difference(geometries(10), known_difference(geometries(10))[0], None, np.arange(3)[None])
    assert np.abs(first.energy_and_forces(x[:, [0, 2, 1]])[0] - first.energy_and_forces(x)[0]).max() > 1e-4


def test_far_from_all_labels_it_is_its_constant():
    found = fitted(20, with_forces=True)
    far = geometries(5, 4) * np.array([0.1, 0.3, 3.0, 10.0, 100.0])[:, None, None]
    energy, forces = found.energy_and_forces(far)
    assert np.allclose(energy, found.constant) and np.allclose(forces, 0.0, atol=1e-6)


def test_many_labels_count_by_their_energies_alone(monkeypatch):
    monkeypatch.setattr(module, "MOST_DATA", 40)
    found = fitted(12, with_forces=True)  # 12 energies, and forces of three labels
    assert np.count_nonzero(np.abs(found.by_forces).sum(1)) == 3 * len(ORDERS) and len(found.left_out) == 12


def test_it_comes_back_from_a_file_bit_by_bit(tmp_path):
    found, x = fitted(9, with_forces=True), geometries(3, 8)
    np.savez(tmp_path / "d.npz", **found.as_arrays())
    again = Difference.of_arrays(dict(np.load(tmp_path / "d.npz")))
    assert all(np.array_equal(a, b) for a, b in zip(found.energy_and_forces(x), again.energy_and_forces(x)))


@pytest.mark.parametrize("molecule, size", [(WATER, 2), (METHANOL, 6), (METHANE, 24)])
def test_relabellings_are_a_group_of_all_that_are_drawn(molecule, size):
    numbers, bonds = np.array(molecule["numbers"]), np.array(molecule["bonds"])
    found = {tuple(order) for order in relabellings(numbers, bonds, 64).tolist()}
    drawn = {tuple(order) for order in exchange_equivalent(numbers, bonds, np.random.default_rng(0), 400).tolist()}
    assert len(found) == size and found == drawn
    assert all(tuple(np.array(a)[list(b)].tolist()) in found for a in found for b in found)
    few = {tuple(order) for order in relabellings(numbers, bonds, 2).tolist()}
    assert len(few) == 2 and few < found | {()} and len(equivalent_hydrogens(numbers, bonds)) == 1


@pytest.mark.parametrize("with_forces", [False, True])
def test_four_hydrogens_of_one_atom_are_alike(with_forces):
    """Methane: round a circle its hydrogens are no group with an exchange of two, and there was no covariance."""
    corners = 0.063 * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    x = np.concatenate([np.zeros((1, 3)), corners]) + 0.004 * np.random.default_rng(0).normal(size=(16, 5, 3))
    apart = x[:, 1:] - x[:, :1]
    r = np.linalg.norm(apart, axis=-1)
    on_hydrogens = -2e4 * ((r - 0.109) / r)[..., None] * apart
    energy = 1e4 * np.square(r - 0.109).sum(1)
    forces = np.concatenate([-on_hydrogens.sum(1, keepdims=True), on_hydrogens], axis=1) if with_forces else None
    orders = relabellings(np.array(METHANE["numbers"]), np.array(METHANE["bonds"]), 64)
    found = fit_difference(x, energy, forces, orders)
    for order in orders:
        assert np.allclose(found.energy_and_forces(x[:, order])[0], found.energy_and_forces(x)[0], atol=1e-8)
    assert found.left_out.std() < energy.std()
