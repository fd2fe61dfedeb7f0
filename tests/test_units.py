"""The constants against an independent source; agreement between our own backends cannot show a wrong one."""

import numpy as np
import pytest
from ase import units as ase_units
from scipy import constants

from kstep import units


@pytest.mark.parametrize("name, exact", [
    ("BOLTZMANN", constants.R * 1e-3),
    ("AVOGADRO", constants.N_A),
    ("NM_PER_BOHR", constants.physical_constants["Bohr radius"][0] * 1e9),
    ("KJ_PER_HARTREE", constants.physical_constants["Hartree energy"][0] * constants.N_A * 1e-3),
    ("KJ_PER_EV", constants.e * constants.N_A * 1e-3),
    ("KJ_PER_KCAL", constants.calorie),
    ("WAVENUMBER_PER_THZ", 1e12 / (100 * constants.c)),
    ("PS_PER_ASE_TIME", 1 / (1e3 * ase_units.fs)),
])
def test_constants_are_codatas(name, exact):
    assert getattr(units, name) == pytest.approx(exact, rel=2e-7)


def test_newtons_law_needs_no_factor():
    """1 kJ/mol/nm on 1 Da is 1 nm/ps^2, and m v^2 / 2 of 1 Da at 1 nm/ps is 1/2 kJ/mol."""
    dalton = constants.physical_constants["atomic mass constant"][0]
    newton = 1e3 / constants.N_A / 1e-9
    assert newton / dalton * 1e9 / 1e24 == pytest.approx(1.0, rel=1e-6)
    assert 0.5 * dalton * 1e6 * constants.N_A * 1e-3 == pytest.approx(0.5, rel=1e-6)


def test_energy_of_a_hydrogen_molecule_is_tblites_own_in_kilojoules():
    """The absolute energy and the force, converted by hand from atomic units."""
    from tblite import interface

    from kstep.forces.tblite import TblitePhysics

    bohr = constants.physical_constants["Bohr radius"][0]
    x = np.array([[0, 0, 0], [0, 0, 0.08]])
    raw = interface.Calculator("GFN2-xTB", np.array([1, 1]), x * 1e-9 / bohr)
    raw.set("verbosity", 0)
    raw.set("accuracy", 0.1)
    result = raw.singlepoint()
    energy, forces = TblitePhysics([1, 1], [1.008, 1.008]).energy_and_forces(x)
    hartree = constants.physical_constants["Hartree energy"][0] * constants.N_A * 1e-3
    assert energy == pytest.approx(result.get("energy") * hartree, rel=1e-7)
    assert forces == pytest.approx(-result.get("gradient") * hartree / (bohr * 1e9), rel=1e-5, abs=1e-5)


def test_no_digit_of_the_electronic_temperature_is_lost():
    """xtb-python calls its argument an int; the library takes a double."""
    pytest.importorskip("xtb.interface")
    from kstep.forces.tblite import TblitePhysics
    from kstep.forces.xtb import XtbPhysics

    x = np.array([[0, 0, 0], [0, 0, 0.25]])
    tblite, xtb = ([kind([1, 1], [1.008, 1.008], electronic_temperature_K=t, accuracy=1e-3).energy(x)
                    for t in (6000.0, 6000.9)] for kind in (TblitePhysics, XtbPhysics))
    assert abs(xtb[1] - xtb[0]) > 1e-3
    assert xtb[1] - xtb[0] == pytest.approx(tblite[1] - tblite[0], rel=0.02)


def test_electronic_temperature_is_in_kelvin():
    """Two hydrogens far apart have a small gap, so that the smearing shows."""
    from tblite import interface

    from kstep.forces.tblite import TblitePhysics

    bohr, hartree = constants.physical_constants["Bohr radius"][0], constants.physical_constants["Hartree energy"][0]
    x = np.array([[0, 0, 0], [0, 0, 0.25]])
    energies = []
    for temperature_K in (300.0, 6000.0):
        raw = interface.Calculator("GFN2-xTB", np.array([1, 1]), x * 1e-9 / bohr)
        raw.set("verbosity", 0)
        raw.set("accuracy", 0.1)
        raw.set("temperature", temperature_K * constants.k / hartree)
        expected = raw.singlepoint().get("energy") * hartree * constants.N_A * 1e-3
        energies.append(TblitePhysics([1, 1], [1.008, 1.008], electronic_temperature_K=temperature_K).energy(x))
        assert energies[-1] == pytest.approx(expected, rel=1e-6)
    assert abs(energies[1] - energies[0]) > 1.0
