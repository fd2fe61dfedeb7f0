"""Any ASE calculator as the true physics: ORCA, DFTB+, Psi4, MACE and whatever else has one.

>>> physics = AsePhysics([1, 1], [1.008, 1.008], calculator="ase.calculators.lj:LennardJones", kwargs={"sigma": 0.6})
>>> energy, forces = physics.energy_and_forces([[0, 0, 0], [0, 0, 0.074]])
"""

from __future__ import annotations

import contextlib
import pkgutil
import tempfile
from typing import Any

import numpy as np

from kstep.errors import PhysicsError, UserError
from kstep.forces.base import Physics, check_electrons
from kstep.units import ANGSTROM_PER_NM, FORCE_PER_EV_ANGSTROM, KJ_PER_EV

SHAKEN_NM, PROBE_NM = 0.003, 5e-4
LEAST_WORK = 1e-3  # kJ/mol, what of an energy is above its noise


class AsePhysics(Physics):
    """One molecule as an ase.Atoms with a calculator.

    calculator: "package.module:Factory"; Factory(**kwargs) is the calculator.  Charge and multiplicity are
    on the Atoms, in both ways that calculators read them: info["charge"] and info["spin"] (= multiplicity, as
    MACE has it), and initial charges and magnetic moments that add up to the charge and to the number of
    unpaired electrons, spread evenly (as tblite has it).  A calculator that reads neither (ORCA) needs them in
    kwargs.  It is reset before each call, so that the energy depends on the geometry alone, and runs in a
    temporary folder of its own.
    """

    def __init__(self, numbers, masses, *, calculator: str, kwargs: dict[str, Any] | None = None, charge: int = 0,
                 multiplicity: int = 1):
        super().__init__(numbers, masses)
        check_electrons(self.numbers, charge, multiplicity)
        from ase import Atoms

        n_atoms = len(self.numbers)
        self._folder = tempfile.TemporaryDirectory(prefix="kstep-ase-")
        self._atoms = Atoms(numbers=self.numbers, masses=self.masses, positions=np.zeros((n_atoms, 3)),
                            charges=np.full(n_atoms, charge / n_atoms),
                            magmoms=np.full(n_atoms, (multiplicity - 1) / n_atoms),
                            info={"charge": charge, "spin": multiplicity})
        self._calculator = self._atoms.calc = make_calculator(calculator, kwargs or {})

    def _compute(self, positions, slot):
        with self._at(positions):
            energy = self._energy()
            forces = np.array(self._atoms.get_forces(), dtype=np.float64)
        return energy * KJ_PER_EV, forces * FORCE_PER_EV_ANGSTROM

    def _compute_energy(self, positions, slot):
        with self._at(positions):
            return self._energy() * KJ_PER_EV

    def _energy(self) -> float:
        """eV; the energy whose slope the forces are."""
        calculator = self._calculator
        if "free_energy" in calculator.implemented_properties:
            with contextlib.suppress(NotImplementedError):  # declared, and not computed with these settings
                return float(calculator.get_property("free_energy", self._atoms))
        energy = self._atoms.get_potential_energy()
        return float(getattr(calculator, "results", {}).get("free_energy", energy))

    @contextlib.contextmanager
    def _at(self, positions):
        """The Atoms at positions (N,3) nm, nothing known of them, in a folder for the calculator's files."""
        self._calculator.reset()
        self._atoms.set_positions(positions * ANGSTROM_PER_NM)
        with contextlib.chdir(self._folder.name):
            try:
                yield
            except Exception as error:  # each calculator has its own
                raise PhysicsError(f"the ASE calculator failed: {type(error).__name__}: {str(error).strip()}") from None


def make_calculator(path: str, kwargs: dict[str, Any]):
    """Factory(**kwargs) of "package.module:Factory"; UserError says what is missing."""
    try:
        factory = pkgutil.resolve_name(path)
    except ValueError:
        raise UserError(f"calculator '{path}' must read package.module:Factory, e.g. tblite.ase:TBLite") from None
    except ImportError as error:
        raise UserError(f"calculator {path} cannot be imported ({error}); is its package installed?") from None
    except AttributeError:
        module, _, name = path.partition(":")
        raise UserError(f"calculator {path}: module {module} has no '{name}'") from None
    try:
        calculator = factory(**kwargs)
    except Exception as error:  # a wrong keyword, a missing file, a program that is not there: the user's to mend
        raise UserError(f"calculator {path} cannot be built with {kwargs}: {error}") from None
    wanted = {"energy", "forces"} - set(getattr(calculator, "implemented_properties", ()))
    if wanted or isinstance(calculator, type) or not hasattr(calculator, "reset"):
        raise UserError(f"calculator {path} is no ASE calculator with {' and '.join(sorted(wanted)) or 'reset()'}")
    return calculator


def check_calculator(spec, molecule) -> None:
    """Refuse a calculator whose forces are not the slope of its energy: other units, another sign, noise.

    Three true calls beside a conformer of the Molecule, which no run is billed for; UserError says by how much.
    """
    physics = spec.build()
    x = molecule.conformers[0] + np.random.default_rng(0).normal(size=molecule.conformers[0].shape) * SHAKEN_NM
    try:
        forces = physics.energy_and_forces(x)[1]
        size = float(np.linalg.norm(forces))
        if size * PROBE_NM < LEAST_WORK:  # one atom alone has no force
            return
        ahead, behind = (physics.energy(x + step * forces / size) for step in (PROBE_NM, -PROBE_NM))
    except PhysicsError as error:
        raise UserError(f"the calculator has no number for the start geometry of {molecule.name}: {error}") from None
    slope = (behind - ahead) / (2 * PROBE_NM)
    if abs(slope - size) > 0.1 * size:
        raise UserError(f"the forces of calculator {spec.settings['calculator']} are not the slope of its energy "
                        f"(that is {slope / size:.3g} times as steep); ASE wants eV and eV/A")
