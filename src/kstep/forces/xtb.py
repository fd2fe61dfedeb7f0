"""GFN2-xTB, GFN1-xTB and GFN-FF through xtb-python (Python 3.11)."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from typing import Any

import numpy as np

from kstep import interruption
from kstep.errors import UserError
from kstep.forces.base import Backend, KnownEnergy, Physics, as_physics_error, check_electrons, check_elements
from kstep.forces.solvents import check_xtb_solvent, refuse_model_alone
from kstep.forces.tblite import SOLVATION_MODELS, QMConfig
from kstep.units import FORCE_PER_HARTREE_BOHR, KJ_PER_HARTREE, NM_PER_BOHR

HEAVIEST_ELEMENT = 86  # xtb does not refuse a heavier one, it crashes
SPELLED_IN_XTB = {"dichloromethane": "ch2cl2", "carbondisulfide": "cs2", "diethylether": "ether", "hexane": "nhexane"}


class XtbPhysics(Physics):
    """One molecule at an xTB level; every call starts from a fresh SCF guess.

    topology_positions (N,3) nm: the geometry that GFN-FF reads its bonds, charges and bond orders
    from.  Without it the first call decides, so that two workers, or a run and its continuation,
    would have different potentials (aspirin: forces 50 kJ/mol/nm apart).  A solvent is GBSA's, the only model that
    xtb's interface for other programs has.
    """

    def __init__(self, numbers, masses, *, method: str = "GFN2-xTB", charge: int = 0,
                 multiplicity: int = 1, accuracy: float = 0.1, max_iterations: int = 250,
                 electronic_temperature_K: float = 300.0, solvent: str | None = None,
                 solvation_model: str | None = None, topology_positions=None):
        super().__init__(numbers, masses)
        check_elements(self.numbers, HEAVIEST_ELEMENT, method)
        check_electrons(self.numbers, charge, multiplicity)
        from xtb.interface import Calculator, Param
        from xtb.libxtb import VERBOSITY_MUTED

        parameters = {"GFN2-xTB": Param.GFN2xTB, "GFN1-xTB": Param.GFN1xTB, "GFN-FF": Param.GFNFF}
        if method not in parameters:
            raise UserError(f"backend xtb has no method {method}; it has {', '.join(parameters)}")
        refuse_model_alone(solvation_model, solvent)
        if solvent is not None:
            check_xtb_solvent("xtb", SOLVATION_MODELS["xtb"], method, solvation_model, solvent)
        self._solvent, self._charge = solvent, charge
        self._scf = accuracy, max_iterations, electronic_temperature_K
        self._make = lambda bohr: Calculator(parameters[method], self.numbers, bohr, float(charge),
                                             multiplicity - 1)
        self._muted = VERBOSITY_MUTED
        self._is_force_field = method == "GFN-FF"
        self._topology_positions = topology_positions
        self._calculator: Any = None
        self._folder = tempfile.TemporaryDirectory(prefix="kstep-xtb-")

    def _prepare(self, bohr):
        if self._calculator is None:
            # GFN-FF derives its topology from the geometry it is built with and drops files where it runs.
            first = bohr if self._topology_positions is None else (
                np.asarray(self._topology_positions, dtype=np.float64) / NM_PER_BOHR)
            self._calculator = self._make(first)
            self._calculator.set_verbosity(self._muted)
            # not os.devnull: xtb cannot open one file twice, and a process may hold several molecules
            self._calculator.set_output(os.path.join(self._folder.name, "xtb.out"))
            if not self._is_force_field:
                accuracy, max_iterations, electronic_temperature_K = self._scf
                self._calculator.set_accuracy(accuracy)
                self._calculator.set_max_iterations(max_iterations)
                self._calculator.set_electronic_temperature(electronic_temperature_K)
            if self._solvent is not None:
                from xtb.utils import get_solvent

                self._calculator.set_solvent(get_solvent(SPELLED_IN_XTB.get(self._solvent, self._solvent)))
        self._calculator.update(bohr)

    @interruption.unbroken
    def _compute(self, positions, slot):
        with contextlib.chdir(self._folder.name), as_physics_error("the xTB calculation"):
            self._prepare(positions / NM_PER_BOHR)
            result = self._calculator.singlepoint()
            self._said = {"dipole": self.dipole(positions, result.get_dipole() * NM_PER_BOHR, self._charge)}
        energy = float(result.get_energy()) * KJ_PER_HARTREE
        return energy, -np.asarray(result.get_gradient()) * FORCE_PER_HARTREE_BOHR


def _topology(molecule, config) -> dict:
    """The geometry that GFN-FF reads its bonds from: the molecule's first conformer."""
    if config.method != "GFN-FF" or molecule is None:
        return {}
    return {"topology_positions": molecule.conformers[0].tolist()}


BACKEND = Backend(XtbPhysics, QMConfig, packages=("xtb",), more=_topology, known=KnownEnergy(-13312.2541),
                  is_core=sys.version_info < (3, 12),
                  install="pip install xtb, which has wheels up to Python 3.11 only; tblite has the same methods")
