"""Isotopes are apart where masses show, and alike where they do not; a linear atom has no torsion."""

from types import SimpleNamespace

import numpy as np
import pytest
from rdkit import Chem

import kstep
import synthetic
from kstep.analysis.measure import spectra
from kstep.analysis.measure.geometry import find_coordinates, symbol
from kstep.analysis.measure.profile import characterise
from kstep.errors import UserError
from kstep.schemas import Trajectory, complete_trajectory
from kstep.topology import equivalent_hydrogens, find_rotatable_torsions
from kstep.training.batches import Windows
from kstep.training.equivalent_atoms import exchange_equivalent
from kstep.units import WAVENUMBER_PER_THZ

H, D, T = 1.008, 2.014, 3.016


def graph(smiles):
    """Numbers, bonds and masses of a SMILES with all hydrogens."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    return (np.array([a.GetAtomicNum() for a in molecule.GetAtoms()]),
            np.array([sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx())) for b in molecule.GetBonds()]),
            np.array([a.GetMass() for a in molecule.GetAtoms()]))


@pytest.mark.parametrize("smiles, middles", [
    ("CC#CC", []), ("OCC#CCO", [{0, 1}, {4, 5}]), ("N#CCCO", [{2, 3}, {3, 4}]), ("CC=C=CC", []),
    ("OCN=[N+]=[N-]", [{0, 1}, {1, 2}]), ("OC[N+]#[C-]", [{0, 1}]), ("OCC=[N+]=[N-]", [{0, 1}, {1, 2}]),
    ("OC[N+](=O)[O-]", [{0, 1}, {1, 2}]), ("OCN=O", [{0, 1}, {1, 2}]), ("OCN=C=O", [{0, 1}, {1, 2}]),
    ("ON=C", [{0, 1}, {1, 2}]), ("N=N", [{0, 1}]), ("OC[Hg]CO", [{0, 1}, {3, 4}])], ids=str)
def test_no_torsion_goes_through_a_linear_atom(smiles, middles):
    """Bonds of two-coordinate carbon, of the middle of N=N=N and of metals have none; bent nitrogens keep theirs."""
    numbers, bonds, _ = graph(smiles)
    found = [set(map(int, row[1:3])) for row in find_rotatable_torsions(numbers, bonds)]
    assert sorted(map(sorted, found)) == sorted(map(sorted, middles))


def oscillators(periods, masses, numbers, bonds, segments=6, length_ps=1.0, dt_ps=0.0005, seed=0):
    """A first atom at rest, each other one swinging along its bond at its wavenumber, NVE segments of random phase."""
    rng, time = np.random.default_rng(seed), np.arange(int(length_ps / dt_ps)) * dt_ps
    pos = np.zeros((segments, len(time), len(masses), 3))
    vel = np.zeros_like(pos)
    axes = np.eye(3)
    for n, wavenumber in enumerate(periods, 1):
        omega = 2 * np.pi * wavenumber / WAVENUMBER_PER_THZ
        phase = rng.uniform(0, 2 * np.pi, (segments, 1))
        pos[:, :, n] = (0.11 + 0.005 * np.cos(omega * time + phase))[..., None] * axes[n - 1]
        vel[:, :, n] = (-0.005 * omega * np.sin(omega * time + phase))[..., None] * axes[n - 1]
    rows = segments * len(time)
    arrays = complete_trajectory({
        "pos": pos.reshape(rows, -1, 3), "vel": vel.reshape(rows, -1, 3), "Ekin": np.zeros(rows),
        "Epot": np.zeros(rows), "Etot": np.zeros(rows), "time_ps": np.tile(time, segments),
        "step": np.tile(np.arange(len(time)), segments), "replica": np.repeat(np.arange(segments), len(time)),
        "segment": np.repeat(np.arange(segments), len(time)), "masses": np.array(masses),
        "masses_sampler": np.array(masses), "atom_types": np.array(numbers), "bonds": np.array(bonds)})
    table = [{"replica": r, "role": "train", "ensemble": "NVE", "temperature_K": 300.0, "n_dof": 3 * len(masses) - 3}
             for r in range(segments)]
    return Trajectory(**arrays, metadata={"molecule": "m", "method": "synthetic", "scheme": "plain", "segments": table})


def test_each_isotope_has_its_own_stretch():
    run = oscillators((3000.0, 2196.0, 1830.0), (12.011, H, D, T), (6, 1, 1, 1), ((0, 1), (0, 2), (0, 3)))
    found = spectra.spectrum(run, 0.99)["stretches"]
    assert {name: s["position_cm"] for name, s in found.items()} == {
        "C-H": pytest.approx(3000, abs=4), "C-D": pytest.approx(2196, abs=4), "C-T": pytest.approx(1830, abs=4)}


def test_the_window_goes_with_the_reduced_mass():
    """A harmonic C-D stretch lies 1.362 times lower than C-H."""
    assert spectra.isotope_shift(12.011, H) == 1.0
    assert spectra.isotope_shift(12.011, D) == pytest.approx(1 / 1.3619, rel=1e-4)
    low, high = (np.exp(-0.5 * ((spectra.GRID_CM - centre) / 20) ** 2) for centre in (2196, 4300))
    power = low + 1.5 * high
    assert spectra.stretch_position_cm(power, spectra.isotope_shift(12.011, D)) == pytest.approx(2196, abs=1)


def test_methane_d4_in_its_force_field(tmp_path):
    run = kstep.simulate("[2H]C([2H])([2H])[2H]", "md", out=tmp_path / "cd4.npz", length_ps=6.0, redraw_interval_ps=1.0,
                         equilibration_ps=1.0, hot_length_ps=0, replicas=1)
    (name, stretch), = spectra.spectrum(run.trajectory, 0.9)["stretches"].items()
    assert name == "C-D" and stretch["position_cm"] == pytest.approx(2196, abs=60)


def test_isotopes_are_pooled_apart():
    numbers, bonds, masses = graph("[2H]C([2H])([2H])CC[2H]")
    names = find_coordinates(numbers, bonds, masses=masses).labels["bonds"]
    assert sum(name.startswith("D") or "-D" in name for name in names) == 2 and any("(x3)" in name for name in names)
    assert any("H" in name and "(x2)" in name for name in names)
    groups = equivalent_hydrogens(numbers, bonds, masses)
    assert sorted(map(len, groups)) == [2, 2, 3] and sorted(map(len, equivalent_hydrogens(numbers, bonds))) == [2, 3, 3]
    assert [symbol(1, m) for m in (H, D, T)] == ["H", "D", "T"] and symbol(6, 13.003) == symbol(6) == "C"


def test_a_profile_keeps_deuterium_apart():
    """Of synthetic ethanol with one methyl hydrogen heavy: its bond is a quantity of its own."""
    run = synthetic.ethanol(replicas=2, frames=60)
    before = characterise(run).coordinates.labels["bonds"]
    run.masses = run.masses.copy()
    run.masses[3] = D
    after = characterise(run).coordinates.labels["bonds"]
    assert "C0-H3 (x3)" in before and {"C0-D3", "C0-H4 (x2)"} <= set(after)


def test_velocities_are_never_given_to_another_isotope():
    """Labels of windows, whose velocities belong to masses: CH2D does not turn, and CHD makes a centre handed."""
    for smiles in ("[2H]CO", "[2H]C([2H])([2H])O"):
        numbers, bonds, masses = graph(smiles)
        labels = exchange_equivalent(numbers, bonds, np.random.default_rng(0), 200, masses)
        assert (masses[labels] == masses).all() and len(np.unique(labels, axis=0)) > 1
    numbers, bonds, masses = graph("[2H]CO")
    light = [n for n in range(len(masses)) if masses[n] == masses.min() and numbers[n] == 1][:-1]
    both = exchange_equivalent(numbers, bonds, np.random.default_rng(0), 400, masses)
    moved = (both[:, light] != light).any(axis=1).mean()
    assert 0.4 < moved < 0.6  # by a reflection alone, never by a turn
    numbers, bonds, masses = graph("[2H]CC(O)F")  # no mirror image, so that the CH2D cannot move at all
    assert (exchange_equivalent(numbers, bonds, np.random.default_rng(0), 100, masses) == np.arange(len(masses))).all()
    windows = SimpleNamespace(of=[{"numbers": numbers, "bonds": bonds, "masses": masses}])
    assert (Windows.exchange_equivalent(windows, 0, np.random.default_rng(0), 100) == np.arange(len(masses))).all()
    numbers, bonds, masses = graph("[2H]C(O)C")
    handed = exchange_equivalent(numbers, bonds, np.random.default_rng(0), 200, masses)
    methyl = next(g for g in equivalent_hydrogens(numbers, bonds, masses) if len(g) == 3)
    swaps = [row[methyl].tolist() for row in handed]
    assert all(row in ([methyl[i:] + methyl[:i] for i in range(3)]) for row in swaps)  # turns, and no reflections


def test_a_baseline_without_plain_md_is_said_to_be_none(tmp_path):
    run = synthetic.ethanol(replicas=4, frames=60)
    run.metadata.update(scheme="metropolis", scheme_traits=None)
    run.metadata.pop("scheme_traits")
    synthetic.save(tmp_path / "x.npz", run)
    with pytest.raises(UserError, match="no run of plain MD among its baselines, only .*x.npz; make one with"):
        kstep.evaluate(tmp_path / "x.npz", tmp_path / "x.npz", out=tmp_path / "eval")
