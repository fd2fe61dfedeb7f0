"""GFN2-xTB, GFN1-xTB and IPEA1-xTB through tblite.

>>> physics = TblitePhysics(numbers=[1, 1], masses=[1.008, 1.008])
>>> energy, forces = physics.energy_and_forces([[0, 0, 0], [0, 0, 0.074]])
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from kstep.config import ChargedConfig, Count, Number, Temperature
from kstep.errors import UserError
from kstep.forces.base import Backend, KnownEnergy, Physics, as_physics_error, check_electrons, check_elements
from kstep.units import FORCE_PER_HARTREE_BOHR, KJ_PER_HARTREE, NM_PER_BOHR

HEAVIEST_ELEMENT = 86
METHODS = ("GFN2-xTB", "GFN1-xTB", "IPEA1-xTB")
HARTREE_PER_KELVIN = 3.166811563455546e-06


class QMConfig(ChargedConfig):
    """configs/qm.yaml: xTB baselines and hybrids, by either backend that has it."""

    backend: Literal["tblite", "xtb"] = "tblite"
    method: Literal["GFN2-xTB", "GFN1-xTB", "IPEA1-xTB", "GFN-FF"] = "GFN2-xTB"
    accuracy: Annotated[float, Field(gt=0, le=10), Number] = 0.1  # SCF tolerance; 1.0 drifts
    max_iterations: Count = 250
    electronic_temperature_K: Temperature = 300.0


class TblitePhysics(Physics):
    """One molecule at an xTB level.

    accuracy scales the SCF tolerances (1.0 drifts by 0.16 kJ/mol/ps at 0.25 fs, 0.1 does not).
    With warm_start each slot's SCF begins at its last result: a third faster along a
    trajectory, but the energy then depends on history within the tolerance; exact sampling
    leaves it off.
    """

    def __init__(self, numbers, masses, *, method: str = "GFN2-xTB", charge: int = 0,
                 multiplicity: int = 1, accuracy: float = 0.1, max_iterations: int = 250,
                 electronic_temperature_K: float = 300.0, warm_start: bool = False):
        super().__init__(numbers, masses)
        if method not in METHODS:
            raise UserError(f"backend tblite has no method {method}; it has {', '.join(METHODS)}")
        check_elements(self.numbers, HEAVIEST_ELEMENT, method)
        check_electrons(self.numbers, charge, multiplicity)
        from tblite.interface import Calculator

        # tblite wants a sane structure at construction; the first true call replaces it.
        placeholder = np.arange(3.0 * len(self.numbers)).reshape(-1, 3) * 3.0
        self._calculator = Calculator(method, self.numbers, placeholder, float(charge), multiplicity - 1)
        self._calculator.set("verbosity", 0)
        self._calculator.set("accuracy", accuracy)
        self._calculator.set("max-iter", max_iterations)
        self._calculator.set("temperature", electronic_temperature_K * HARTREE_PER_KELVIN)
        self._warm_start = warm_start

    def _compute(self, positions, slot):
        with as_physics_error("the xTB calculation"):
            self._calculator.update(positions / NM_PER_BOHR)
            result = self._calculator.singlepoint(self._last.pop(slot, None))
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
            self._last[slot].save(str(path))
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


BACKEND = Backend(TblitePhysics, QMConfig, install="pip install tblite", packages=("tblite",), keeps_history=True,
                  known=KnownEnergy(-13312.2541))
