"""Any ASE calculator as the true physics: ORCA, DFTB+, Psi4, MACE and whatever else has one.

>>> physics = AsePhysics([1, 1], [1.008, 1.008], calculator="ase.calculators.lj:LennardJones", kwargs={"sigma": 0.6})
>>> energy, forces = physics.energy_and_forces([[0, 0, 0], [0, 0, 0.074]])
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import pickle
import pkgutil
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from kstep.config import ChargedConfig, Word
from kstep.errors import PhysicsError, UserError
from kstep.forces.base import Backend, KnownEnergy, Physics, check_electrons
from kstep.units import ANGSTROM_PER_NM, FORCE_PER_EV_ANGSTROM, KJ_PER_EV, NM_PER_ANGSTROM

log = logging.getLogger("kstep")

SHAKEN_NM, PROBE_NM = 0.003, 5e-4
LEAST_WORK = 1e-3  # kJ/mol, what of an energy is above its noise
NOT_PHYSICS = {"atoms", "restart", "ignore_bad_restart_file", "label", "prefix", "directory", "_directory", "command",
               "profile"}  # where a calculator works, not what it computes


# what packages of calculators are called: none of their modules does anything but compute when it is imported
ALLOWED = ("ase.calculators", "tblite", "xtb", "dftd3", "dftd4", "gpaw", "mace", "torchani", "aimnet", "orb_models",
           "fairchem", "chgnet", "matgl", "sevenn", "nequip", "deepmd", "metatomic", "metatrain", "quippy", "so3lr",
           "pyscf_gpu_calculator")
ALSO_ALLOWED = "KSTEP_ALLOW_CALCULATOR"  # environment, so that workers know: names that a user has allowed, by commas


def allow_calculators(names: Sequence[str]) -> None:
    """Let this program and its workers take calculators of these names, "package.module:Factory", too."""
    os.environ[ALSO_ALLOWED] = ",".join([*filter(None, [os.environ.get(ALSO_ALLOWED)]), *names])


class AseConfig(ChargedConfig):
    """configs/qm_ase.yaml: baselines and hybrids with any ASE calculator."""

    backend: Literal["ase"] = "ase"
    calculator: Word
    kwargs: dict[str, Any] = {}
    forces: bool = True  # whether it has any that are worth their price

    @property
    def method(self) -> str:
        """The calculator with its arguments, e.g. 'tblite.ase:TBLite(method=GFN2-xTB)'."""
        return with_arguments(self.calculator, self.kwargs)


class AsePhysics(Physics):
    """One molecule as an ase.Atoms with a calculator.

    calculator: "package.module:Factory", where Factory(**kwargs) is the calculator; or a factory, or the calculator
    itself, which then belongs to this object.  Charge and multiplicity are on the Atoms, in both ways that calculators
    read them: info["charge"] and info["spin"] (= multiplicity, as MACE has it), and initial charges and magnetic
    moments that add up to the charge and to the number of unpaired electrons, spread evenly (as tblite has it).  A
    calculator that reads neither (ORCA) needs them in kwargs.  It is reset before each call, so that the energy depends
    on the geometry alone, and runs in a temporary folder of its own.  Where it has two energies, as with smeared
    occupations, the forces belong to `free_energy`, and that is the energy here.  Of a neutral molecule the dipole is
    kept where the calculator found it on the way.
    """

    def __init__(self, numbers, masses, *, calculator: str | Callable | Any, kwargs: dict[str, Any] | None = None,
                 charge: int = 0, multiplicity: int = 1, forces: bool = True):
        super().__init__(numbers, masses)
        self.has_forces = forces
        check_electrons(self.numbers, charge, multiplicity)
        from ase import Atoms

        n_atoms = len(self.numbers)
        self._folder = tempfile.TemporaryDirectory(prefix="kstep-ase-")
        self._atoms = Atoms(numbers=self.numbers, masses=self.masses, positions=np.zeros((n_atoms, 3)),
                            charges=np.full(n_atoms, charge / n_atoms),
                            magmoms=np.full(n_atoms, (multiplicity - 1) / n_atoms),
                            info={"charge": charge, "spin": multiplicity})
        self._calculator = self._atoms.calc = make_calculator(calculator, kwargs or {}, forces=forces)
        # about which point an ion's dipole is meant, each calculator says for itself
        self._has_dipole = charge == 0 and "dipole" in self._calculator.implemented_properties

    def _compute(self, positions, slot):
        with self._at(positions):
            energy = self._energy()
            forces = np.array(self._atoms.get_forces(), dtype=np.float64)
            self._keep_dipole()
        return energy * KJ_PER_EV, forces * FORCE_PER_EV_ANGSTROM

    def _compute_energy(self, positions, slot):
        with self._at(positions):
            energy = self._energy()
            self._keep_dipole()
        return energy * KJ_PER_EV

    def _energy(self) -> float:
        """eV; the energy whose slope the forces are."""
        calculator = self._calculator
        if "free_energy" in calculator.implemented_properties:
            with contextlib.suppress(NotImplementedError):  # declared, and not computed with these settings
                return float(calculator.get_property("free_energy", self._atoms))
        energy = self._atoms.get_potential_energy()
        return float(getattr(calculator, "results", {}).get("free_energy", energy))

    def _keep_dipole(self) -> None:
        """What the calculator found besides; nothing is computed for it."""
        if self._has_dipole:
            found = getattr(self._calculator, "results", {}).get("dipole", np.full(3, np.nan))
            self._said = {"dipole": np.asarray(found, dtype=np.float64) * NM_PER_ANGSTROM}

    @contextlib.contextmanager
    def _at(self, positions):
        """The Atoms at positions (N,3) nm, nothing known of them, in a folder for the calculator's files."""
        if hasattr(self._calculator, "reset"):
            self._calculator.reset()
        else:  # those over ASE's newer base class: ORCA, Quantum ESPRESSO, sums of calculators
            self._calculator.atoms, self._calculator.results = None, {}
        self._atoms.set_positions(positions * ANGSTROM_PER_NM)
        with contextlib.chdir(self._folder.name):
            try:
                yield
            except Exception as error:  # each calculator has its own
                raise PhysicsError(f"the ASE calculator failed: {type(error).__name__}: {str(error).strip()}") from None


def make_calculator(what: str | Callable | Any, kwargs: dict[str, Any], *, forces: bool = False):
    """The calculator of "package.module:Factory", of a factory, or itself; UserError says what is missing.

    forces: whether it has to have them.
    """
    factory: Any = _named(what) if isinstance(what, str) else what
    name = what if isinstance(what, str) else name_of(what)
    calculator = factory
    if isinstance(what, str) or is_factory(what):
        try:
            calculator = factory(**kwargs)
        except Exception as error:  # a wrong keyword, a missing file, a program that is not there: the user's to mend
            raise UserError(f"calculator {name} cannot be built with {kwargs}: {error}") from None
    known = set() if isinstance(calculator, type) else set(getattr(calculator, "implemented_properties", ()))
    if "energy" not in known:
        raise UserError(f"calculator {name} is no ASE calculator with energy and forces")
    if forces and "forces" not in known:
        raise UserError(f"calculator {name} has no forces; if its energies are to be sampled, set forces: false")
    return calculator


def _named(what: str):
    """The class or function of a text, which a config may have from anywhere: nothing else is imported, or called."""
    module, _, attribute = what.partition(":")
    if not attribute or not all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")]):
        raise UserError(f"calculator '{what}' must read package.module:Factory, e.g. tblite.ase:TBLite")
    refusal = UserError(f"calculator {what} is of no package that is known for calculators ({', '.join(ALLOWED)}), and "
                        f"would be run as a program; if you trust it, say --allow-calculator {what}")
    asked_for = what in os.environ.get(ALSO_ALLOWED, "").split(",")
    if not asked_for and not _is_allowed(module):
        raise refusal
    try:
        factory = pkgutil.resolve_name(what)
    except ImportError as error:
        raise UserError(f"calculator {what} cannot be imported ({error}); is its package installed?") from None
    except AttributeError:
        raise UserError(f"calculator {what}: module {module} has no '{attribute}'") from None
    if not asked_for and not _is_allowed(str(getattr(factory, "__module__", ""))):  # imported there from elsewhere
        raise refusal
    is_calculator = inspect.isclass(factory) and hasattr(factory, "get_property")
    if not (is_calculator or inspect.isfunction(factory)):
        raise UserError(f"calculator {what} is no class of calculators, nor a function that returns one")
    log.info("the true physics comes from %s of %s", attribute, inspect.getsourcefile(factory) or module)
    return factory


def _is_allowed(module: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in ALLOWED)


def is_factory(calculator) -> bool:
    """Whether it is called for a calculator: a class, a function, a functools.partial."""
    return isinstance(calculator, type) or (callable(calculator) and not hasattr(calculator, "implemented_properties"))


def pickled(calculator) -> bytes:
    """A calculator or factory as worker processes get it; UserError where it cannot be taken there."""
    try:
        data = pickle.dumps(calculator)
        pickle.loads(data)
    except Exception as error:  # PicklingError, AttributeError, TypeError, and each library's own
        raise UserError(f"calculator {name_of(calculator)} cannot be handed to worker processes ({error}); give a "
                        "factory in its place: a function of a module, or functools.partial of a class, that returns a "
                        "new calculator") from None
    return data


def surface_of(calculator) -> str:
    """What tells its potential energy surface from another's: class and settings, or the factory's path and arguments.

    UserError where neither does: an argument that is not among the calculator's parameters, or no plain value; an
    attribute set by hand; a class or function that only this program knows.
    """
    text = _settings_of(make_calculator(calculator, {}))
    if text is None and is_factory(calculator):
        part = calculator if isinstance(calculator, functools.partial) else functools.partial(calculator)
        arguments = {**{str(i): value for i, value in enumerate(part.args)}, **part.keywords}
        text = with_arguments(name_of(calculator), arguments) if _is_plain(arguments) else None
    if text is None or "<" in text.partition("(")[0] or text.startswith("__main__:"):
        raise UserError(f"the settings of calculator {name_of(calculator)} do not tell its energy surface from "
                        "another's; name it with method='...', one name for each surface")
    return text


def _settings_of(calculator) -> str | None:
    """Class and parameters other than the class's defaults, None where another calculator could have the same."""
    kind, parameters = type(calculator), dict(getattr(calculator, "parameters", None) or {})
    named = {key for key, argument in inspect.signature(kind.__init__).parameters.items()
             if argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)} - NOT_PHYSICS - {"self"}
    if not named <= set(parameters) or not _is_plain(parameters):
        return None
    try:
        twin = kind(**parameters)
    except Exception:  # its parameters are not its arguments
        return None
    for key, value in vars(calculator).items():
        if key not in NOT_PHYSICS and isinstance(value, (int, float, str)) and getattr(twin, key, value) != value:
            return None
    defaults = {key: str(value) for key, value in getattr(kind, "default_parameters", {}).items()}
    return with_arguments(name_of(calculator), {key: value for key, value in parameters.items()
                                                if key not in NOT_PHYSICS and defaults.get(key) != str(value)})


def _is_plain(value) -> bool:
    """Whether its text says all of it: numbers, words, and lists and mappings of them."""
    if isinstance(value, dict):
        return all(_is_plain(part) for pair in value.items() for part in pair)
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, np.generic))


def name_of(calculator) -> str:
    """'package.module:Class' of a calculator, or of what a factory calls."""
    while isinstance(calculator, functools.partial):
        calculator = calculator.func
    named = calculator if is_factory(calculator) and hasattr(calculator, "__qualname__") else type(calculator)
    return f"{named.__module__}:{named.__qualname__}"


def with_arguments(name: str, arguments: dict[str, Any]) -> str:
    """'name(key=value, ...)', the keys in order."""
    return f"{name}({', '.join(f'{key}={arguments[key]}' for key in sorted(arguments))})"


def check_calculator(spec, molecule) -> None:
    """Refuse a calculator whose forces are not the slope of its energy: other units, another sign, noise.

    One without forces is only asked for an energy.  At most three true calls beside a conformer of the Molecule, which
    no run is billed for; UserError says by how much.
    """
    physics = spec.build()
    x = molecule.conformers[0] + np.random.default_rng(0).normal(size=molecule.conformers[0].shape) * SHAKEN_NM
    try:
        if not physics.has_forces:
            physics.energy(x)
            return
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


def _lennard_jones() -> dict[str, Any]:
    return {"calculator": "ase.calculators.lj:LennardJones", "kwargs": {"sigma": 0.6, "epsilon": 0.1, "rc": 100.0}}


BACKEND = Backend(AsePhysics, AseConfig, install="pip install ase, and the package of the calculator",
                  packages=("ase",), check=check_calculator, method_keys="calculator and kwargs",
                  energy_is_cheaper=True, has_forces=lambda settings: settings.get("forces", True),
                  known=KnownEnergy(-4.5442, _lennard_jones, tolerance=1e-4))
