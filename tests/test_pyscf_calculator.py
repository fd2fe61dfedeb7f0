"""The standalone ASE calculator over PySCF."""

import sys
import types

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import CalculationFailed

from conftest import ROOT, run_python
from pyscf_gpu_calculator import PySCFCalculator


def water(**settings):
    atoms = Atoms("OH2", positions=[[0, 0, 0.117], [0.02, 0.757, -0.469], [0, -0.80, -0.469]])
    atoms.calc = PySCFCalculator(**{"basis": "STO-3G", "grid_level": 1, "device": "cpu", **settings})
    return atoms


@pytest.mark.parametrize("settings", [
    {}, {"xc": "HF", "charge": 1, "multiplicity": 2}, {"xc": "B3LYP", "density_fit": True},
])
def test_forces_are_the_derivative_of_the_energy(settings):
    atoms = water(conv_tol=1e-11, **settings)
    forces, x = atoms.get_forces(), atoms.get_positions()
    for atom, axis in ((0, 2), (1, 1)):
        energies = []
        for step in (1e-3, -1e-3):
            moved = x.copy()
            moved[atom, axis] += step
            atoms.set_positions(moved)
            energies.append(atoms.get_potential_energy())
        assert forces[atom, axis] == pytest.approx((energies[1] - energies[0]) / 2e-3, abs=2e-4)


def test_energy_and_dipole_are_those_of_pyscf():
    from pyscf import gto, scf

    atoms = water(xc="HF")
    mol = gto.M(atom=[(a.symbol, a.position) for a in atoms], basis="STO-3G", verbose=0)
    field = scf.RHF(mol).run()
    assert atoms.get_potential_energy() == pytest.approx(field.e_tot * 27.2114, abs=0.002)
    assert atoms.get_dipole_moment() / 0.2081943 == pytest.approx(field.dip_moment(verbose=0), abs=1e-3)


def test_the_dipole_of_an_ion_does_not_depend_on_where_it_is():
    ion = water(xc="HF", charge=1, multiplicity=2)
    dipole = ion.get_dipole_moment()
    ion.translate([5, 0, 0])
    assert ion.get_dipole_moment() == pytest.approx(dipole, abs=1e-4)


def test_no_convergence_is_a_clear_error():
    with pytest.raises(CalculationFailed, match="did not converge in 1 cycles, nor in second order"):
        water(max_cycle=1).get_potential_energy()


def test_wrong_input_is_a_clear_error(monkeypatch):
    with pytest.raises(ValueError, match="9 electrons .* cannot have multiplicity 1"):
        water(charge=1).get_potential_energy()
    with pytest.raises(ValueError, match="has no setting basiss"):
        PySCFCalculator(basiss="STO-3G")
    with pytest.raises(ValueError, match="is not auto, cpu or gpu"):
        PySCFCalculator(device="cuda")
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(RuntimeError, match="no CUDA GPU"):
        PySCFCalculator(device="gpu")


@pytest.mark.parametrize("settings, words", [
    ({"xc": "PBEE"}, "knows no functional 'PBEE'"), ({"xc": ""}, "is no functional"),
    ({"basis": "def2-SPV"}, "basis def2-SPV"), ({"charge": 0.5}, "charge 0.5 is not a whole number"),
    ({"multiplicity": 13}, "cannot have multiplicity 13"),
    ({"xc": "PBE", "grid_level": -1}, "grid_level -1 is below 0"),
    ({"conv_tol": 0}, "conv_tol 0 Ha"), ({"max_cycle": 0}, "max_cycle 0"),
    ({"unrestricted": "no"}, "unrestricted 'no'"),
    ({"basis": "gth-szv"}, "no functions for the core of O"),
])
def test_a_setting_without_a_right_number_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        water(**{"xc": "HF", **settings}).get_potential_energy()


@pytest.mark.parametrize("spoil, words", [
    (lambda a: a.set_pbc(True), "sees no images"), (lambda a: a.positions.fill(np.nan), "NaN"),
    (lambda a: a.positions.__setitem__(1, [0, 0, 0.13]), "atoms 0 .O. and 1 .H. are 0.013 A apart"),
    (lambda a: a.__delitem__([0, 1, 2]), "no atoms"),
])
def test_atoms_that_are_no_molecule_are_refused(spoil, words):
    atoms = water(xc="HF")
    spoil(atoms)
    with pytest.raises(ValueError, match=words):
        atoms.get_potential_energy()


def test_core_potentials_come_with_their_basis():
    """All electrons of Cl in the valence functions of LANL2DZ would be 90 Ha too low."""
    atoms = Atoms("HCl", positions=[[0, 0, 0], [0, 0, 1.28]])
    atoms.calc = PySCFCalculator(xc="HF", basis="LANL2DZ", device="cpu")
    assert atoms.get_potential_energy() / 27.2114 == pytest.approx(-15.28, abs=0.05)


def test_a_changed_setting_changes_the_energy():
    atoms = water(xc="HF")
    first = atoms.get_potential_energy()
    atoms.calc.set(basis="6-31G")
    assert atoms.get_potential_energy() < first - 1


@pytest.mark.parametrize("available, where", [(lambda: True, "GPU"), (lambda: False, "CPU"), (lambda: 1 / 0, "CPU")])
def test_it_says_where_it_runs(monkeypatch, available, where):
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=available)))
    monkeypatch.setitem(sys.modules, "gpu4pyscf", types.SimpleNamespace())
    calculator = PySCFCalculator(xc="HF", basis="STO-3G")
    assert calculator.running_on == where
    moved = []
    monkeypatch.setattr("pyscf.scf.hf.RHF.to_gpu", lambda field: moved.append(1) or field)
    atoms = Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.74]], calculator=calculator)
    assert np.isfinite(atoms.get_potential_energy()) and len(moved) == (where == "GPU")


def test_it_needs_nothing_else_of_this_project(tmp_path):
    """Copied alone to another folder, it runs from the shell."""
    (tmp_path / "w.xyz").write_text("3\n\nO 0 0 0.117\nH 0 0.757 -0.469\nH 0 -0.757 -0.469\n")
    (tmp_path / "calculator.py").write_text((ROOT / "src/pyscf_gpu_calculator.py").read_text())
    assert "kstep" not in (tmp_path / "calculator.py").read_text()
    done = run_python(tmp_path / "calculator.py", "w.xyz", "--xc", "HF", "--basis", "STO-3G", "--device", "cpu",
                      cwd=tmp_path)
    assert done.returncode == 0 and "on the CPU" in done.stdout and "dipole" in done.stdout, done.stderr
    done = run_python(tmp_path / "calculator.py", "w.xyz", "--xc", "PBEE", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith("error:")
    (tmp_path / "w.xyz").write_text("")
    done = run_python(tmp_path / "calculator.py", "w.xyz", cwd=tmp_path)
    assert done.returncode == 2 and "cannot be read by ASE" in done.stderr and "Traceback" not in done.stderr
