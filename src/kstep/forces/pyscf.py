"""Hartree-Fock, DFT and what goes on top of them (kstep.forces.correlation) through PySCF.

Fields are computed on a GPU through GPU4PySCF where there is one.

>>> physics = PyscfPhysics([1, 1], [1.008, 1.008], functional="PBE", basis="def2-SVP")
>>> energy, forces = physics.energy_and_forces([[0, 0, 0], [0, 0, 0.074]])

The electrons are `mean_field`, `converge` and `gradient`, so that an embedding can put its charges
between them.
"""

from __future__ import annotations

import logging
import warnings
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from kstep.config import ChargedConfig, Config, Count, Number, Word
from kstep.errors import PhysicsError, UserError, did_you_mean
from kstep.forces.base import SYMBOLS, Backend, KnownEnergy, Physics, as_physics_error, check_electrons
from kstep.forces.basis import check_basis, core_potentials
from kstep.forces.correlation import (
    DOUBLE_HYBRIDS,
    Correlation,
    check_correlation,
    correlate,
    double_hybrid,
    has_forces,
    is_correlated,
    slope_of,
)
from kstep.forces.solvents import Solvent, in_solvent, refuse_model_alone, spelled
from kstep.processes import threads_here
from kstep.units import FORCE_PER_HARTREE_BOHR, KJ_PER_HARTREE, NM_PER_BOHR

log = logging.getLogger("kstep")

PCM_METHODS = {"cpcm": "C-PCM", "iefpcm": "IEF-PCM"}
DEFAULT_MODEL = "smd"


class ScfSettings(Config):
    """How the electrons are treated."""

    functional: Word = "PBE"
    correlation: Correlation = None
    frozen_core: bool = True  # of what is correlated
    basis: Word = "def2-SVP"
    density_fit: bool = False
    dispersion: Literal["d3bj", "d3zero", "d3bjm", "d3zerom", "d3op", "d4"] | None = None
    unrestricted: bool | None = None  # null: where the multiplicity is not 1
    grid_level: Annotated[int, Field(ge=0, le=9), Number] = 2
    conv_tol: Annotated[float, Field(ge=1e-12, le=1e-4), Number] = 1e-9  # Ha; below, rounding decides
    max_iterations: Count = 100
    solvent: Solvent = None
    solvation_model: Literal["smd", "cpcm", "iefpcm"] | None = None  # null: smd
    device: Literal["auto", "cpu", "gpu"] = "auto"  # auto is settled by pick_device before a calculation

    @property
    def xc(self) -> str:
        """The functional of the field, as PySCF writes it."""
        hybrid = double_hybrid(self.functional)
        return hybrid.xc if hybrid is not None else self.functional

    @property
    def is_correlated(self) -> bool:
        """Whether something is computed on top of the field."""
        return is_correlated(self.model_dump())


class PyscfConfig(ChargedConfig, ScfSettings):
    """configs/qm_pyscf.yaml: baselines and hybrids with DFT, Hartree-Fock and correlated methods."""

    backend: Literal["pyscf"] = "pyscf"

    @property
    def method(self) -> str:
        """All that tells one potential energy surface from another: 'PBE-D3BJ/def2-SVP', 'DF-UB3LYP/def2-SVP',
        'CCSD(T)/CC-PVDZ', and 'AE-CCSD(T)/CC-PVDZ' where the core is correlated too (all electrons).
        """
        kind = "" if self.unrestricted is None else "U" if self.unrestricted else "R"
        dispersion = f"-{self.dispersion.upper()}" if self.dispersion else ""
        basis = self.basis.upper().replace("DEF2", "def2")
        kind = f"{'AE-' if self.is_correlated and not self.frozen_core else ''}{kind}"
        name = (self.correlation or self.functional).upper()
        return f"{'DF-' if self.density_fit else ''}{kind}{name}{dispersion}/{basis}"

    @property
    def surface(self) -> str:
        """The method in its solvent: 'PBE/def2-SVP/SMD(water)'."""
        return in_solvent(self.method, self.solvation_model or DEFAULT_MODEL, self.solvent)


def build_molecule(numbers: np.ndarray, positions_bohr: np.ndarray, basis: str, charge: int, multiplicity: int):
    """The gto.Mole of numbers (N,) at positions (N,3) in bohr; UserError where the basis has no such element."""
    from pyscf import gto

    check_basis(numbers, basis)
    atoms = [(SYMBOLS[int(z)], tuple(x)) for z, x in zip(numbers, positions_bohr)]
    return gto.M(atom=atoms, unit="Bohr", basis=basis, ecp=core_potentials(numbers, basis), charge=charge,
                 spin=multiplicity - 1, verbose=0)


def mean_field(mol, settings: ScfSettings):
    """The unconverged mean-field object of a gto.Mole: RHF, UHF, ROHF, RKS, UKS or ROKS, with its settings."""
    from pyscf import dft, scf

    unrestricted = mol.spin != 0 if settings.unrestricted is None else settings.unrestricted
    kind = "U" if unrestricted else "R" if mol.spin == 0 else "RO"
    if settings.functional.upper() == "HF":
        field = getattr(scf, f"{kind}HF")(mol)
    else:
        field = getattr(dft, f"{kind}KS")(mol, xc=settings.xc)
        field.grids.level = field.nlcgrids.level = settings.grid_level  # the second: of VV10, as in wB97X-V
    if settings.density_fit:
        field = field.density_fit()
    if settings.dispersion is not None:
        field.disp = settings.dispersion
    field.conv_tol, field.max_cycle = settings.conv_tol, settings.max_iterations
    if settings.solvent is not None:
        field = in_continuum(field, settings)  # last: what is put on later would not know of it
    return field.to_gpu() if settings.device == "gpu" else field


@lru_cache
def solvents() -> dict[str, str]:
    """PySCF's name of each solvent of the Minnesota Solvent Descriptor Database, by ours."""
    from pyscf.solvent.smd import solvent_db

    return {spelled(name): name for name in solvent_db if name}


def in_continuum(field, settings: ScfSettings):
    """The mean field in its implicit solvent.

    smd: Marenich, Cramer, Truhlar, J. Phys. Chem. B 113, 6378 (2009), IEF-PCM with the terms of cavitation, dispersion
    and solvent structure; cpcm, iefpcm: electrostatics alone, of the solvent's dielectric constant.
    """
    from pyscf.solvent.smd import solvent_db

    name, model = solvents()[settings.solvent or ""], settings.solvation_model or DEFAULT_MODEL
    if model == "smd":
        field = field.SMD()
        field.with_solvent.solvent = name
    else:
        field = field.PCM()
        field.with_solvent.method, field.with_solvent.eps = PCM_METHODS[model], solvent_db[name][5]
    return field


def check_solvent(mol, settings: ScfSettings) -> None:
    """Refuse a solvent that PySCF does not know, and one that this GPU4PySCF cannot compute."""
    refuse_model_alone(settings.solvation_model, settings.solvent)
    if settings.solvent is None:
        return
    if settings.solvent not in solvents():
        raise UserError(f"PySCF knows no solvent '{settings.solvent}'{did_you_mean(settings.solvent, solvents())}; "
                        "pyscf.solvent.smd.solvent_db lists them")
    try:
        mean_field(mol, settings)
    except (ImportError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"implicit solvent cannot be computed here ({error}); set device: cpu, or solvent: none"
                        ) from None


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
        slope.grid_response = True  # without it water drifts by 1 kJ/mol/ps at grid level 1; it costs nothing
    return to_numpy(slope.kernel())


def to_numpy(array) -> np.ndarray:
    """A numpy array of what may be CuPy's."""
    return array.get() if hasattr(array, "get") else np.asarray(array)


@lru_cache
def gpu_found() -> bool:
    """Whether GPU4PySCF can compute here."""
    try:
        import cupy
        import gpu4pyscf  # noqa: F401

        return bool(cupy.cuda.is_available())
    except Exception:  # without a driver CuPy raises RuntimeErrors of its own, not ImportError
        return False


@lru_cache
def pick_device(wanted: str) -> str:
    """'cpu' or 'gpu' for device auto, cpu or gpu; says so in one line of the log, once per process."""
    if wanted == "cpu":
        return "cpu"
    if gpu_found():
        log.info("PySCF runs on the GPU (GPU4PySCF)")
        return "gpu"
    log.log(logging.WARNING if wanted == "gpu" else logging.INFO,
            "no CUDA GPU with GPU4PySCF found; PySCF runs on the CPU")
    return "cpu"


def device_of(settings: ScfSettings) -> str:
    """`pick_device` of what a GPU can do; correlation is computed on the CPU."""
    if settings.is_correlated and settings.device == "gpu":
        raise UserError("correlation and double hybrids are computed on the CPU; set device: auto")
    return "cpu" if settings.is_correlated else pick_device(settings.device)


def check_functional(settings: ScfSettings) -> None:
    """Refuse a functional PySCF does not know, and a dispersion correction that is not installed."""
    from pyscf.dft import libxc
    from pyscf.scf import dispersion

    name = settings.functional
    try:
        bare, _, wanted = dispersion.parse_dft(settings.xc)
        exact, parts = libxc.parse_xc(bare)
    except NotImplementedError as error:
        raise UserError(f"PySCF cannot compute functional {name}: {error}") from None
    except (KeyError, ValueError, IndexError):
        known = ["HF", *DOUBLE_HYBRIDS, *libxc.XC_ALIAS, *libxc.XC_CODES]
        raise UserError(f"PySCF knows no functional '{name}'{did_you_mean(name.upper(), known)}") from None
    if not parts and not any(exact):
        raise UserError(f"functional '{name}' is empty: without exchange the electrons repel themselves")
    if (settings.dispersion or wanted) and dispersion.dispersion is None:
        raise UserError(f"dispersion {settings.dispersion or wanted} needs the package pyscf-dispersion, which is not "
                        "installed; pip install pyscf-dispersion, or leave dispersion out")


def check_dispersion(mol, settings: ScfSettings) -> None:
    """Refuse a dispersion correction without parameters for the functional."""
    field = mean_field(mol, settings.model_copy(update={"device": "cpu"}))
    try:
        field.get_dispersion()
    except Exception as error:  # dftd3 and dftd4 each have their own
        raise UserError(f"there is no dispersion correction of this kind for functional {settings.functional}: "
                        f"{str(error).strip()}") from None


class PyscfPhysics(Physics):
    """One molecule by Hartree-Fock, DFT or a correlated method; keyword settings are those of ScfSettings.

    With warm_start each slot's SCF begins at its last density; the energy then depends on history, but only within
    conv_tol.  A correlated one always begins afresh: the field is the least of its cost.  `second_tries` counts the
    true calls whose SCF needed second order.
    """

    def __init__(self, numbers, masses, *, charge: int = 0, multiplicity: int = 1, warm_start: bool = False,
                 **settings):
        super().__init__(numbers, masses)
        check_electrons(self.numbers, charge, multiplicity)
        import pyscf

        self.settings = ScfSettings(**settings)
        check_correlation(self.settings, multiplicity)
        check_functional(self.settings)
        self.has_forces = has_forces(self.settings.model_dump())
        pyscf.lib.num_threads(threads_here())
        apart = np.arange(3.0 * len(self.numbers)).reshape(-1, 3) * 3.0  # the first true call says where the atoms are
        self._molecule = build_molecule(self.numbers, apart, self.settings.basis, charge, multiplicity)
        check_solvent(self._molecule, self.settings)
        check_dispersion(self._molecule, self.settings)
        self._charge = charge
        self.second_tries = 0
        self._warm_start = warm_start and not self.settings.is_correlated

    def _compute(self, positions, slot):
        with as_physics_error("the PySCF calculation"):
            field = self._converged(positions, slot)
            if self.settings.is_correlated:
                energy, solver = correlate(field, self.settings)
                return energy * KJ_PER_HARTREE, -slope_of(solver) * FORCE_PER_HARTREE_BOHR
            slope = gradient(field, self.settings)
            self._said = {"dipole": self._dipole(field, positions)}
        return float(field.e_tot) * KJ_PER_HARTREE, -slope * FORCE_PER_HARTREE_BOHR

    def _dipole(self, field, positions) -> np.ndarray:
        return self.dipole(positions, to_numpy(field.dip_moment(unit="AU", verbose=0)) * NM_PER_BOHR, self._charge)

    def _compute_energy(self, positions, slot):
        with as_physics_error("the PySCF calculation"):
            field = self._converged(positions, slot)
            if self.settings.is_correlated:
                return correlate(field, self.settings)[0] * KJ_PER_HARTREE
            self._said = {"dipole": self._dipole(field, positions)}
            return float(field.e_tot) * KJ_PER_HARTREE

    def _converged(self, positions, slot):
        from pyscf import lib

        molecule = self._molecule.set_geom_(positions / NM_PER_BOHR, unit="Bohr", inplace=False)
        if self.settings.is_correlated:  # sums go in blocks that fit into what is left: always as much, for equal bits
            molecule.max_memory += lib.current_memory()[0]
        field, tries = converge(mean_field(molecule, self.settings), self._guess(slot))
        self.second_tries += tries - 1
        if self._warm_start:
            # without the orbitals that PySCF hangs on it, so that one from a restart file is the same guess
            self._last[slot] = to_numpy(field.make_rdm1())
        return field

    def _guess(self, slot: int):
        """The density matrix that a slot's SCF begins with, where the SCF is; None: that of atoms."""
        guess = self._last.pop(slot, None)
        if guess is not None and self.settings.device == "gpu":
            import cupy

            return cupy.asarray(guess)
        return guess


BACKEND = Backend(PyscfPhysics, PyscfConfig, install="pip install pyscf", packages=("pyscf",),
                  method_keys="functional and basis", energy_is_cheaper=True, keeps_history=True,
                  has_forces=has_forces, more=lambda molecule, config: {"device": device_of(config)},
                  known=KnownEnergy(-196815.1894, lambda: {"functional": "HF", "basis": "STO-3G", "device": "cpu"}))
