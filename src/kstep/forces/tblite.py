"""GFN2-xTB, GFN1-xTB and IPEA1-xTB through tblite.

>>> physics = TblitePhysics(numbers=[1, 1], masses=[1.008, 1.008])
>>> energy, forces = physics.energy_and_forces([[0, 0, 0], [0, 0, 0.074]])
"""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from kstep import interruption
from kstep.config import ChargedConfig, Count, Number, Temperature
from kstep.errors import UserError
from kstep.forces.base import Backend, KnownEnergy, Physics, as_physics_error, check_electrons, check_elements
from kstep.forces.solvents import Solvent, check_xtb_solvent, in_solvent, refuse_model_alone
from kstep.units import FORCE_PER_HARTREE_BOHR, KJ_PER_HARTREE, NM_PER_BOHR

HEAVIEST_ELEMENT = 86
METHODS = ("GFN2-xTB", "GFN1-xTB", "IPEA1-xTB")
SOLVATION_MODELS = {"tblite": ("alpb", "gbsa"), "xtb": ("gbsa",)}  # of each backend, the first where none is named
SPELLED_IN_TBLITE = {"wet-octanol": "woctanol"}
HARTREE_PER_KELVIN = 3.166811563455546e-06


class QMConfig(ChargedConfig):
    """configs/qm.yaml: xTB baselines and hybrids, by either backend that has it."""

    backend: Literal["tblite", "xtb"] = "tblite"
    method: Literal["GFN2-xTB", "GFN1-xTB", "IPEA1-xTB", "GFN-FF"] = "GFN2-xTB"
    accuracy: Annotated[float, Field(gt=0, le=10), Number] = 0.1  # SCF tolerance; 1.0 drifts
    max_iterations: Count = 250
    electronic_temperature_K: Temperature = 300.0
    solvent: Solvent = None
    solvation_model: Literal["alpb", "gbsa"] | None = None  # null: alpb with tblite, gbsa with xtb

    @property
    def surface(self) -> str:
        """The method in its solvent: 'GFN2-xTB', 'GFN2-xTB/ALPB(water)'."""
        return in_solvent(self.method, self.solvation_model or SOLVATION_MODELS[self.backend][0], self.solvent)


class TblitePhysics(Physics):
    """One molecule at an xTB level.

    accuracy scales the SCF tolerances (1.0 drifts by 0.16 kJ/mol/ps at 0.25 fs, 0.1 does not).
    With warm_start each slot's SCF begins at its last result: a third faster along a
    trajectory, but the energy then depends on history within the tolerance; exact sampling
    leaves it off.  With a solvent it is in that implicit solvent, by `solvation_model` (None: ALPB); the energy is a
    free energy of solvation more than the gas phase's.
    """

    def __init__(self, numbers, masses, *, method: str = "GFN2-xTB", charge: int = 0,
                 multiplicity: int = 1, accuracy: float = 0.1, max_iterations: int = 250,
                 electronic_temperature_K: float = 300.0, solvent: str | None = None,
                 solvation_model: str | None = None, warm_start: bool = False):
        super().__init__(numbers, masses)
        if method not in METHODS:
            raise UserError(f"backend tblite has no method {method}; it has {', '.join(METHODS)}")
        check_elements(self.numbers, HEAVIEST_ELEMENT, method)
        check_electrons(self.numbers, charge, multiplicity)
        refuse_model_alone(solvation_model, solvent)
        if solvent is not None:
            solvation_model = check_xtb_solvent("tblite", SOLVATION_MODELS["tblite"], method, solvation_model, solvent)
        from tblite.interface import Calculator

        # tblite wants a sane structure at construction; the first true call replaces it.
        placeholder = np.arange(3.0 * len(self.numbers)).reshape(-1, 3) * 3.0
        self._calculator = Calculator(method, self.numbers, placeholder, float(charge), multiplicity - 1)
        self._calculator.set("verbosity", 0)
        self._calculator.set("accuracy", accuracy)
        self._calculator.set("max-iter", max_iterations)
        self._calculator.set("temperature", electronic_temperature_K * HARTREE_PER_KELVIN)
        if solvent is not None:
            try:
                self._calculator.add(f"{solvation_model}-solvation", SPELLED_IN_TBLITE.get(solvent, solvent))
            except Exception as error:  # an older tblite has fewer solvents, or none
                raise UserError(f"this tblite cannot put {solvent} around a molecule ({error}); pip install "
                                "'tblite>=0.8'") from None
        self._charge = charge
        self._warm_start = warm_start

    @interruption.unbroken
    def _compute(self, positions, slot):
        with as_physics_error("the xTB calculation"):
            self._calculator.update(positions / NM_PER_BOHR)
            result = self._calculator.singlepoint(self._last.pop(slot, None))
            self._said = {"dipole": self.dipole(positions, dipole_about_origin(result) * NM_PER_BOHR, self._charge)}
        if self._warm_start:
            self._last[slot] = result
        energy = float(result.get("energy")) * KJ_PER_HARTREE
        return energy, -np.asarray(result.get("gradient")) * FORCE_PER_HARTREE_BOHR

    def history(self, slot: int) -> np.ndarray:
        """The wavefunction, as tblite writes it."""
        if slot not in self._last:
            return np.zeros(0, dtype=np.uint8)
        with tempfile.TemporaryDirectory(prefix="kstep-tblite-") as folder:
            path = Path(folder) / "wavefunction.npz"
            try:
                self._last[slot].save(str(path))
            except RuntimeError as error:
                raise OSError(errno.EIO, "the wavefunction cannot be written there; is the disk full?", folder
                              ) from error
            return np.frombuffer(path.read_bytes(), dtype=np.uint8)

    def remember(self, slot: int, history: np.ndarray) -> None:
        """A wavefunction that `history` gave."""
        from tblite.interface import Result

        self._last.pop(slot, None)
        if len(history):
            with tempfile.TemporaryDirectory(prefix="kstep-tblite-") as folder:
                path = Path(folder) / "wavefunction.npz"
                path.write_bytes(history.tobytes())
                self._last[slot] = Result()
                self._last[slot].load(str(path))


def dipole_about_origin(result) -> np.ndarray:
    """The dipole (3,) in e bohr of a tblite Result.

    By its label in the table of what is computed after the SCF: `result.get` reads the whole table, bond orders too, a
    fifteenth of a call for a molecule of six atoms.
    """
    from tblite.library import error_check, ffi, lib

    if not hasattr(lib, "tblite_get_array_entry_label"):
        return result.get("dipole")
    found = np.empty(3)
    table = ffi.new("tblite_double_dictionary *", error_check(lib.tblite_get_post_processing_dict)(result._res))
    try:
        label = ffi.new("char[]", b"molecular-dipole")
        error_check(lib.tblite_get_array_entry_label)(table[0], label, ffi.cast("double*", found.ctypes.data))
    finally:
        lib.tblite_delete_double_dictionary(table)
    return found


BACKEND = Backend(TblitePhysics, QMConfig, install="pip install tblite", packages=("tblite",), keeps_history=True,
                  known=KnownEnergy(-13312.2541))
