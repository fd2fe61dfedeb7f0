"""The true physics: one backend per file, one contract (`base.Physics`), one pool of workers.

A backend is a file with a `BACKEND` (`base.Backend`): its physics, the config of its YAML, and what else has to be
known of it.  One of this project has a line in BACKENDS; one of another installed package is found through the
entry-point group `kstep.backends`, where a name stands for "package.module:BACKEND" too.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import pkgutil
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy as np

from kstep.config import BaselineConfig, ChargedConfig, read_settings, validate
from kstep.errors import UserError, did_you_mean
from kstep.fingerprint import LONGEST, digest
from kstep.forces.base import Backend, Physics
from kstep.restraints import Restraint, check_restraints

BACKENDS = {
    "tblite": "kstep.forces.tblite:BACKEND",
    "xtb": "kstep.forces.xtb:BACKEND",
    "openmm": "kstep.forces.openmm:BACKEND",
    "pyscf": "kstep.forces.pyscf:BACKEND",
    "ase": "kstep.forces.ase:BACKEND",
    "aimnet2": "kstep.forces.aimnet2:BACKEND",
    "qmmm": "kstep.forces.qmmm.backend:BACKEND",
}
ENTRY_POINTS = "kstep.backends"


def plugged_in() -> dict[str, EntryPoint]:
    """Backends of other installed packages, by name."""
    return {found.name: found for found in entry_points(group=ENTRY_POINTS) if found.name not in BACKENDS}


def find_backend(name: str) -> Backend:
    """The backend of a name; UserError where there is none, or where another package's cannot be loaded."""
    if name in BACKENDS:
        return pkgutil.resolve_name(BACKENDS[name])
    others = plugged_in()
    if name not in others:
        raise UserError(f"unknown backend {name!r}{did_you_mean(name, [*BACKENDS, *others])}")
    try:
        backend = others[name].load()
    except Exception as error:  # whatever another package does when it is imported
        raise UserError(f"backend {name} of package {_package(others[name])} cannot be loaded ({error})") from None
    if not isinstance(backend, Backend):
        raise UserError(f"backend {name} of package {_package(others[name])} is a {type(backend).__name__}, not a "
                        "kstep.forces.base.Backend")
    return backend


def _package(found: EntryPoint) -> str:
    return found.dist.name if found.dist else found.module


def load_qm_config(path: str | Path | None, overrides: dict[str, Any] | None = None) -> ChargedConfig:
    """`load_config` of the kind that the key `backend` names: each backend has its own keys, and refuses another's."""
    data, where = read_settings(path, overrides)
    name = str(data.get("backend", "tblite"))
    backend = find_backend(name) if name in BACKENDS or name in plugged_in() else None
    if backend is None or not backend.has_electrons:
        known = [other for other in BACKENDS if find_backend(other).has_electrons]
        raise UserError(f"{where}: unknown backend {data['backend']!r}{did_you_mean(name, [*known, *plugged_in()])}")
    kind: Any = backend.config
    if "method" in data and "method" not in kind.model_fields:
        keys = backend.method_keys or " and ".join(backend.own_keys)
        raise UserError(f"{where}: backend {name} has no key 'method'; write {keys}")
    for key in data.keys() - kind.model_fields:
        if any(key in other.config.model_fields for other in map(find_backend, BACKENDS) if other.has_electrons):
            raise UserError(f"{where}: key '{key}' means nothing to backend {name}; remove it")
    return validate(kind, data, where)


@dataclass(frozen=True)
class PhysicsSpec:
    """A picklable recipe of a backend, so that spawned workers can build their own.

    settings: keywords of the backend's constructor, plain values; objects: those that are none, pickled; method: what
    tells its potential energy surface from another's; restraints: what the pool that evaluates it adds,
    no part of the backend nor of the method; threads, call_limit_s, scheduler: how it works, not what it computes, as
    in BaselineConfig.  UserError for restraints on atoms that are not there.
    """

    backend: str
    numbers: np.ndarray
    masses: np.ndarray
    settings: dict[str, Any] = field(default_factory=dict)
    method: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    restraints: tuple[Restraint, ...] = ()
    threads: int = 1
    call_limit_s: float | None = None
    scheduler: str | None = None

    def __post_init__(self):
        check_restraints(self.restraints, len(self.numbers))

    @property
    def keeps_history(self) -> bool:
        """Whether an SCF begins where the replica's last one ended."""
        return bool(self.settings.get("warm_start"))

    @property
    def surface(self) -> str:
        """A hash of all that decides what a backend says of a geometry."""
        what = {**self.fingerprint, "restraints": None,  # which are added to it
                "objects": {name: hashlib.sha256(data).hexdigest() for name, data in self.objects.items()}}
        return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def energy_is_cheaper(self) -> bool:
        """Whether an energy alone costs much less than an energy with forces."""
        return find_backend(self.backend).energy_is_cheaper

    @property
    def has_forces(self) -> bool:
        """Whether it can be asked for forces; of one that cannot, `Physics.energy` is all there is."""
        return find_backend(self.backend).has_forces(self.settings)

    def require_forces(self, what: str, instead: str) -> None:
        """UserError where there are none: what needs them, and the way out."""
        if not self.has_forces:
            raise UserError(f"{self.method} has no forces, and {what} needs them; {instead}")

    @property
    def fingerprint(self) -> dict[str, Any]:
        """All that makes the energy surface, and the masses on it: what a resumed run must share (kstep.fingerprint).

        A text as long as a file, such as an OpenMM System, is there as its digest; an object by the method's words.
        """
        settings = {key: digest(value) if isinstance(value, str) and len(value) > LONGEST else value
                    for key, value in self.settings.items()}
        return {"backend": self.backend, "method": self.method, "numbers": np.asarray(self.numbers).tolist(),
                "masses": np.asarray(self.masses).tolist(), "settings": settings,
                "restraints": [restraint.model_dump(mode="json") for restraint in self.restraints]}

    def build(self) -> Physics:
        """Construct the backend in this process; UserError says how to get what is missing."""
        backend = find_backend(self.backend)
        try:
            objects = {key: pickle.loads(data) for key, data in self.objects.items()}
        except Exception as error:  # a class that only the program knows which made it
            raise UserError(f"{self.method} cannot be built in a worker process ({error}); define its class or factory "
                            "in a module, not in a notebook or a console") from None
        try:
            return backend.physics(numbers=self.numbers, masses=self.masses, **{**self.settings, **objects})
        except ImportError as error:
            raise UserError(f"backend {self.backend} cannot be loaded ({error}); {backend.install}") from None


def check_spec(spec: PhysicsSpec, molecule) -> None:
    """Raise UserError for what a backend refuses, and for a calculator of someone else's that is no potential."""
    find_backend(spec.backend).check(spec, molecule)


def physics_spec(molecule, config: BaselineConfig, *, system_xml: str | Path | None = None,
                 warm_start: bool = False) -> PhysicsSpec:
    """The recipe of a backend's config (MDConfig, QMConfig, PyscfConfig ...) for a Molecule.

    system_xml: for a force field, the molecule's OpenMM System as XML, or the path of its system.xml; None where the
    molecule has none.  warm_start: whether an SCF may begin at the replica's last one; a backend that keeps no history
    begins afresh.  Charge and multiplicity are always explicit.
    """
    backend = find_backend(config.backend)
    settings = backend.keywords(molecule, config)
    if backend.has_electrons:
        settings |= electrons(config, molecule.charge, molecule.multiplicity)
    if backend.keeps_history:
        settings["warm_start"] = warm_start
    if backend.needs_system:
        settings["system_xml"] = _system_text(molecule, system_xml)
    method = molecule.force_field if backend.needs_system else config.surface
    return PhysicsSpec(config.backend, molecule.numbers, molecule.masses, settings, method, **how_it_works(config))


def how_it_works(config: BaselineConfig) -> dict[str, Any]:
    """Fields of a PhysicsSpec that decide no number."""
    return {"threads": config.threads, "call_limit_s": config.call_limit_s, "scheduler": config.scheduler}


def electrons(config: BaselineConfig, charge: int, multiplicity: int) -> dict[str, int]:
    """The config's charge and multiplicity, or those of the molecule where it has none."""
    return {"charge": charge if config.charge is None else config.charge,
            "multiplicity": multiplicity if config.spin_multiplicity is None else config.spin_multiplicity}


def _system_text(molecule, system_xml: str | Path | None) -> str:
    if system_xml is None:
        raise UserError(f"MMFF94 has no parameters for {molecule.name}; run it with xTB (06b), or prepare it with "
                        "another --force-field (00_prep_mols.py)")
    if isinstance(system_xml, str):
        return system_xml
    if not system_xml.is_file():
        raise UserError(f"{system_xml} does not exist; prepare the molecule with 00_prep_mols.py --force-field mmff94")
    return system_xml.read_text(errors="replace")


def calculator_spec(calculator, molecule, *, method: str | None = None, kwargs: dict[str, Any] | None = None,
                    charge: int | None = None, multiplicity: int | None = None) -> PhysicsSpec:
    """The recipe of any ASE calculator for a Molecule.

    calculator: the calculator, where it can be pickled; a factory that returns a new one (a class, a function of a
    module, a functools.partial); or "package.module:Factory" with its kwargs.  method: what tells its energy surface
    from another's (None: its class and settings).  charge, multiplicity: None takes the molecule's.  UserError for what
    cannot go to worker processes, or has no settings to tell it by.  `check_spec` then asks whether its forces are the
    slope of its energy.
    """
    from kstep.forces.ase import AseConfig, make_calculator, name_of, pickled, surface_of

    is_text = isinstance(calculator, str)
    if kwargs and not is_text:
        raise UserError("kwargs belong to a calculator given as 'package.module:Factory'; give functools.partial of "
                        "the factory")
    forces = is_text or "forces" in make_calculator(calculator, {}).implemented_properties
    config = AseConfig(calculator=calculator if is_text else name_of(calculator), kwargs=kwargs or {}, forces=forces,
                       charge=charge, spin_multiplicity=multiplicity)
    spec = physics_spec(molecule, config)
    if is_text:
        return replace(spec, method=method or spec.method)
    data = pickled(calculator)
    method = method or surface_of(calculator)
    return replace(spec, method=method, settings=spec.settings | {"calculator": method}, objects={"calculator": data})


def qmmm_spec(surroundings, qm_atoms, config, *, charge: int = 0, multiplicity: int = 1,
              embedding: str = "electrostatic") -> PhysicsSpec:
    """The recipe of a QM region in `surroundings` (molecules.droplet), computed as a QMConfig or PyscfConfig says.

    tblite has no point charges, so xtb computes the same methods in its place; every SCF starts cold, so that the
    energy depends on the geometry alone.
    """
    surroundings.check_cut(qm_atoms)
    if getattr(config, "is_correlated", False):
        raise UserError(f"a QM region needs forces on the charges around it, which {config.method} does not have here; "
                        "take a functional or HF without correlation")
    if getattr(config, "solvent", None):
        raise UserError(f"a QM region has its solvent around it, atom by atom; take solvent: {config.solvent} out of "
                        "its config")
    settings = dict(
        find_backend(config.backend).keywords(None, config), **electrons(config, charge, multiplicity),
        system_xml=surroundings.system_xml, bonds=np.asarray(surroundings.bonds).tolist(),
        qm_atoms=[int(atom) for atom in qm_atoms], embedding=embedding,
        engine="xtb" if config.backend == "tblite" else config.backend)
    return PhysicsSpec("qmmm", surroundings.numbers, surroundings.masses, settings, config.method,
                       **how_it_works(config))
