"""ASE calculators that are no potential, have two energies, or do not tell their settings: for backend ase."""

from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.mixing import SumCalculator


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


class Smeared(Spring):
    """The forces belong to the free energy, told when asked; the energy is extrapolated to cold electrons."""

    implemented_properties = ["energy", "free_energy", "forces"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        if "free_energy" in properties or "free_energy" not in self.implemented_properties:
            self.results["free_energy"] = self.results["energy"]
        self.results["energy"] *= 1.2


class SmearedInSilence(Smeared):
    """The same, where the class does not list its free energy, and tells it always."""

    implemented_properties = ["energy", "forces"]


class Quiet(Spring):
    """A setting that is no argument and no parameter."""

    def __init__(self, **kwargs):
        stiffness = kwargs.pop("stiffness", 1.0)
        super().__init__(**kwargs)
        self.stiffness = stiffness


def make_sum():
    """A calculator over ASE's newer base class, which ORCA has too: nothing resets it."""
    return SumCalculator([Spring(), Spring()])


def make_spring():
    """A factory."""
    return Spring()


def returns_no_calculator():
    """A function that is allowed, and returns something else."""
    return 1.0


class EnergyAlone(Spring):
    """Nothing is wrong with it, but that it has no forces."""

    implemented_properties = ["energy"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        assert "forces" not in properties
        super().calculate(atoms, properties, system_changes)
        del self.results["forces"]
