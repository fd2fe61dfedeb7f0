"""ASE calculators that are no potential, for the tests of backend ase."""

import numpy as np
from ase.calculators.calculator import Calculator, all_changes


class Spring(Calculator):
    """Every atom on a spring to the centre; `wrong` says what is the matter with its answer."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, wrong=""):
        super().__init__()
        self.wrong = wrong

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        apart = self.atoms.positions - self.atoms.positions.mean(0)
        energy, forces = 5.0 * float((apart**2).sum()), -10.0 * apart
        if self.wrong == "kJ/mol":
            energy *= 96.485
        elif self.wrong == "sign":
            forces = -forces
        elif self.wrong == "one row":
            forces = forces[0]
        elif self.wrong == "flat":
            forces = forces.ravel()
        self.results = {"energy": energy, "forces": forces}
