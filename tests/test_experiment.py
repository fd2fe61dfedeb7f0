"""Populations beside experiment: enthalpies from several temperatures, shares and free energies from one."""

import numpy as np
import pytest

import experiment
from conftest import molecule_from_smiles
from kstep.units import KJ_PER_KCAL, kT
from test_populations import GAP_KJ, tempered, truth_at

TEMPERATURES_K = (450.0, 350.0, 275.0)


@pytest.fixture(scope="module")
def subject_and_runs():
    """Two states GAP_KJ apart, told by the O-H torsion of propanol, at three temperatures."""
    molecule = molecule_from_smiles("CCCO", "propanol", 1)
    states = {"t": lambda a: experiment.trans(a[:, 0]), "g": lambda a: ~experiment.trans(a[:, 0])}
    figures = (experiment.Figure("g", "enthalpy", "t", "g", 1434.0, 10.0, "made up"),
               experiment.Figure("g", "share", "t", "g", 0.2, None, "made up", 275.0),
               experiment.Figure("g", "free energy", "t", "g", 800.0, None, "made up", 350.0))
    subject = experiment.Subject("CCCO", states, ((1, 2, 3, 11),), TEMPERATURES_K, figures)
    return subject, [tempered(molecule, n, (T,), ladders=8, frames=2000, stay=0.0, as_ladder=False)
                     for n, T in enumerate(TEMPERATURES_K)]


def test_figures_are_those_of_the_made_up_states(subject_and_runs):
    subject, runs = subject_and_runs
    ratio = truth_at(350.0) / (1.0 - truth_at(350.0))
    wanted = (GAP_KJ * 1000 / KJ_PER_KCAL, truth_at(275.0), -kT(350.0) * np.log(ratio) * 1000 / KJ_PER_KCAL)
    for figure, value in zip(subject.figures, wanted):
        found, error = experiment.value_of(figure, subject, runs)
        assert abs(found - value) < 3 * error < 0.15 * abs(value), figure.kind


def test_an_enthalpy_is_the_slope_of_ln_K():
    T = np.array(TEMPERATURES_K)
    H, error = experiment.enthalpy(T, -3.0 / kT(T) + 0.7, np.array([0.1, 0.1, 0.1]))
    assert pytest.approx(3.0) == H
    rng = np.random.default_rng(0)
    found = [experiment.enthalpy(T, -3.0 / kT(T) + 0.1 * rng.standard_normal(3), np.full(3, 0.1))[0]
             for _ in range(2000)]
    assert np.std(found) == pytest.approx(error, rel=0.06)


def test_an_enthalpy_is_also_the_gap_of_mean_energies(subject_and_runs):
    """Energies that fall by 3 kJ/mol from the one state to the other, beside noise; the two kinds of estimate agree."""
    subject, runs = subject_and_runs
    figure, wanted = subject.figures[0], GAP_KJ * 1000 / KJ_PER_KCAL
    parts = experiment.enthalpies(figure, subject, runs)
    assert [part["from"] for part in parts][:2] == ["slope of ln K", "energies at 450 K"]
    for part in parts:
        assert abs(part["value"] - wanted) < 3.5 * part["error"] < 0.5 * wanted, part
    value, error = experiment.value_of(figure, subject, runs)
    assert error < min(part["error"] for part in parts) and abs(value - wanted) < 3 * error


def test_a_weighted_mean_has_its_error():
    rng, errors = np.random.default_rng(0), np.array([1.0, 2.0, 0.5])
    found = np.array([experiment.weighted(7.0 + errors * rng.standard_normal(3), errors) for _ in range(4000)])
    assert found[:, 0].mean() == pytest.approx(7.0, abs=0.05)
    assert found[:, 0].std() == pytest.approx(found[0, 1], rel=0.05)
    assert found[:, 2].mean() == pytest.approx(1.0, abs=0.06)


def test_states_share_out_every_geometry():
    angles = np.random.default_rng(0).uniform(-180, 180, (500, 2))
    for name, subject in experiment.MOLECULES.items():
        inside = np.sum([state(angles) for state in subject.states.values()], axis=0)
        assert (inside == 1).all(), name
        assert len(np.array(subject.torsions).shape) == 2
        assert {f.first for f in subject.figures} | {f.second for f in subject.figures} <= set(subject.states)
