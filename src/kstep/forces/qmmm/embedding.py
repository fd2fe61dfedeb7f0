"""QM in the field of point charges: energy, forces on the QM atoms, and forces on the charges."""

from __future__ import annotations

import contextlib
import ctypes
from dataclasses import dataclass

import numpy as np

from kstep.errors import PhysicsError, UserError
from kstep.forces.base import as_physics_error
from kstep.forces.pyscf import PyscfPhysics, converge, gradient, mean_field
from kstep.forces.xtb import XtbPhysics
from kstep.units import FORCE_PER_HARTREE_BOHR, KJ_PER_HARTREE, NM_PER_BOHR


@dataclass(frozen=True)
class Field:
    """The m point charges around a region: numbers (m,), charges (m,) e, positions (m,3) nm."""

    numbers: np.ndarray
    charges: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True)
class Answer:
    """energy kJ/mol; forces (n,3) on the capped region and field_forces (m,3) on the charges, kJ/mol/nm."""

    energy: float
    forces: np.ndarray
    field_forces: np.ndarray


class XtbInField(XtbPhysics):
    """GFN2-xTB or GFN1-xTB among point charges.

    A charge meets each shell through gamma = 1 / sqrt(r^2 + eta^-2), eta the mean hardness of the shell
    and of the charge's element, so that a charge that comes near does not pull the electrons over:
    Bannwarth, Ehlert, Grimme, JCTC 15, 1652 (2019), eq. 24.  tblite, which computes the same methods
    elsewhere here, has no point charges.  The gradient on the charges is in xtb's C interface
    (xtb_getPCGradient), and not in its Python one.
    """

    def __init__(self, numbers, masses, **settings):
        if settings.get("method") == "GFN-FF":
            raise UserError("GFN-FF feels no point charges; use method GFN2-xTB or GFN1-xTB for the QM region")
        super().__init__(numbers, masses, **settings)
        from xtb import _libxtb
        from xtb.libxtb import ffi

        self._pc_gradient = ctypes.CDLL(_libxtb.__file__).xtb_getPCGradient
        self._pc_gradient.argtypes, self._pc_gradient.restype = [ctypes.c_void_p] * 3, None
        self._address = lambda handle: int(ffi.cast("uintptr_t", handle))

    def in_field(self, positions: np.ndarray, field: Field) -> Answer:
        """The region at positions (n,3) nm; every SCF starts cold, so that the energy depends on x alone."""
        with contextlib.chdir(self._folder.name), as_physics_error("the xTB calculation"):
            self._prepare(positions / NM_PER_BOHR)
            if len(field.charges):
                self._calculator.set_external_charges(field.numbers, field.charges, field.positions / NM_PER_BOHR)
            result = self._calculator.singlepoint()
            gradient = np.zeros((len(field.charges), 3))
            if len(field.charges):
                self._pc_gradient(self._address(result._env), self._address(result._res), gradient.ctypes.data)
            if result.check() != 0:
                raise PhysicsError("xtb gave no gradient on the point charges")
        return Answer(float(result.get_energy()) * KJ_PER_HARTREE,
                      -np.asarray(result.get_gradient()) * FORCE_PER_HARTREE_BOHR, -gradient * FORCE_PER_HARTREE_BOHR)


class PyscfInField(PyscfPhysics):
    """Hartree-Fock or DFT among point charges (pyscf.qmmm), on the CPU.

    The charges enter the one-electron Hamiltonian bare; nothing damps them, so a charge must keep away from
    the region's edge: the Lennard-Jones terms see to that.
    """

    def __init__(self, numbers, masses, **settings):
        super().__init__(numbers, masses, **{**settings, "device": "cpu"})

    def in_field(self, positions: np.ndarray, field: Field) -> Answer:
        """As XtbInField's."""
        from pyscf import qmmm

        molecule = self._molecule.set_geom_(positions / NM_PER_BOHR, unit="Bohr", inplace=False)
        electrons = mean_field(molecule, self.settings)
        if len(field.charges):
            electrons = qmmm.mm_charge(electrons, field.positions / NM_PER_BOHR, field.charges, unit="Bohr")
        on_field = np.zeros((len(field.charges), 3))
        with as_physics_error("the PySCF calculation"):
            electrons, _ = converge(electrons)
            slope = gradient(electrons, self.settings)
            if len(field.charges):
                gradients = electrons.nuc_grad_method()
                density = electrons.make_rdm1()
                both_spins = density if density.ndim == 2 else density.sum(0)
                on_field = gradients.grad_nuc_mm() + gradients.grad_hcore_mm(both_spins)
        return Answer(float(electrons.e_tot) * KJ_PER_HARTREE, -slope * FORCE_PER_HARTREE_BOHR,
                      -on_field * FORCE_PER_HARTREE_BOHR)


ENGINES = {"xtb": XtbInField, "pyscf": PyscfInField}
