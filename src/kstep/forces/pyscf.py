"""Hartree-Fock and DFT through PySCF, on a GPU through GPU4PySCF where there is one.

>>> physics = PyscfPhysics([1, 1], [1.008, 1.008], functional="PBE", basis="def2-SVP")
>>> energy, forces = physics.energy_and_forces([[0, 0, 0], [0, 0, 0.074]])

The electrons are `mean_field`, `converge` and `gradient`, so that an embedding can put its charges
between them.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np

from kstep.errors import PhysicsError, UserError, did_you_mean
from kstep.forces.base import SYMBOLS, Physics, check_electrons
from kstep.units import FORCE_PER_HARTREE_BOHR, KJ_PER_HARTREE, NM_PER_BOHR

HEAVIEST_WITHOUT_CORE_POTENTIAL = 36  # beyond Kr a basis may come with its own core potential (def2)

log = logging.getLogger("kstep")


@dataclass(frozen=True)
class ScfSettings:
    """How the electrons are treated; the keys of configs/qm_pyscf.yaml with the same names say what each does."""

    functional: str = "PBE"
    basis: str = "def2-SVP"
    density_fit: bool = False
    dispersion: str | None = None
    unrestricted: bool | None = None
    grid_level: int = 3
    grid_response: bool = True
    conv_tol: float = 1e-9
    max_iterations: int = 100
    device: str = "cpu"


def build_molecule(numbers: np.ndarray, positions_bohr: np.ndarray, basis: str, charge: int, multiplicity: int):
    """The gto.Mole of numbers (N,) at positions (N,3) in bohr; UserError where the basis has no such element."""
    import pyscf

    check_basis(numbers, basis)
    atoms = [(SYMBOLS[int(z)], tuple(x)) for z, x in zip(numbers, positions_bohr)]
    return pyscf.gto.M(atom=atoms, unit="Bohr", basis=basis, ecp=_core_potentials(numbers, basis), charge=charge,
                       spin=multiplicity - 1, verbose=0)


def mean_field(mol, settings: ScfSettings):
    """The unconverged mean-field object of a gto.Mole: RHF, UHF, ROHF, RKS, UKS or ROKS, with its settings."""
    import pyscf

    unrestricted = mol.spin != 0 if settings.unrestricted is None else settings.unrestricted
    kind = "U" if unrestricted else "R" if mol.spin == 0 else "RO"
    if settings.functional.upper() == "HF":
        field = getattr(pyscf.scf, f"{kind}HF")(mol)
    else:
        field = getattr(pyscf.dft, f"{kind}KS")(mol, xc=settings.functional)
        field.grids.level = settings.grid_level
    if settings.density_fit:
        field = field.density_fit()
    if settings.dispersion is not None:
        field.disp = settings.dispersion
    field.conv_tol, field.max_cycle = settings.conv_tol, settings.max_iterations
    return field.to_gpu() if settings.device == "gpu" else field


def converge(field, guess=None):
    """Run the SCF from a density matrix (None: atoms) and return the converged object and the tries it took.

    A field that DIIS leaves unconverged is tried once more with second-order SCF (Newton) from the orbitals
    reached, under the same tolerance; PhysicsError if that fails too.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of overflow on the way; what counts is `converged`
        field.kernel(dm0=guess)
        if field.converged:
            return field, 1
        second = field.newton()
        second.max_cycle = field.max_cycle
        second.kernel(field.mo_coeff, field.mo_occ)
    if not second.converged:
        raise PhysicsError(f"the SCF did not converge in {field.max_cycle} cycles, nor by second-order SCF after them")
    return second, 2


def gradient(field, settings: ScfSettings) -> np.ndarray:
    """dE/dx (N,3) in Ha/bohr of a converged field: the derivative of its energy on the grid that it was computed on."""
    slope = field.nuc_grad_method()
    slope.verbose = 0
    if settings.functional.upper() != "HF":
        slope.grid_response = settings.grid_response
    return to_numpy(slope.kernel())


def to_numpy(array) -> np.ndarray:
    """A numpy array of what may be CuPy's."""
    return array.get() if hasattr(array, "get") else np.asarray(array)
