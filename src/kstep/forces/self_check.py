"""What an installation can do: its packages, its devices, and a known energy from every backend.

What belongs to it is read from the package's own metadata (pyproject.toml), so that nothing is listed twice.
"""

from __future__ import annotations

import logging
import pkgutil
import sys
import warnings
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from typing import Any

import numpy as np
from ase.data import atomic_masses
from packaging.requirements import Requirement

from kstep.errors import PhysicsError, UserError
from kstep.forces import BACKENDS, find_backend, plugged_in
from kstep.processes import physical_cores

# where a module is not called as its package is
MODULES = {"pyyaml": "yaml", "pyscf_dispersion": "pyscf.dispersion", "openff_toolkit": "openff.toolkit",
           "cupy_cuda12x": "cupy", "cupy_cuda13x": "cupy", "gpu4pyscf_cuda12x": "gpu4pyscf",
           "gpu4pyscf_cuda13x": "gpu4pyscf"}
FROM_CONDA = ("openff-toolkit", "openmmforcefields")  # OpenFF and GAFF, which PyPI does not have
FOR_DEVELOPERS = {"test", "dev", "docs"}


class Part(Enum):
    """What kind of thing a row is about."""

    MACHINE = "machine"
    BACKEND = "backend"
    PACKAGE = "package"


class Condition(Enum):
    """Whether it can be used."""

    WORKS = "works"
    MISSING = "missing"
    BROKEN = "broken"


@dataclass(frozen=True)
class Row:
    """One thing an installation may have: found, what was measured or went wrong; remedy, how to get it."""

    part: Part
    name: str
    state: Condition
    is_core: bool
    version: str = ""
    found: str = ""
    remedy: str = ""


def check_installation() -> list[Row]:
    """Machine, backends and packages, in this order; takes some seconds, since all of them are loaded."""
    names = [*BACKENDS, *plugged_in()]
    return [*check_machine(), *map(check_backend, names), *check_packages()]


def core_works(rows: list[Row]) -> bool:
    """Whether everything works that every installation has."""
    return all(row.state is Condition.WORKS for row in rows if row.is_core)


def check_machine() -> list[Row]:
    """Python, cores, and the devices that PyTorch sees."""
    python = sys.version.split()[0]
    rows = [Row(Part.MACHINE, "python", Condition.WORKS, True, python, sys.executable),
            Row(Part.MACHINE, "cores", Condition.WORKS, True, found=f"{physical_cores()} for this process")]
    torch, _ = _load("torch")
    if torch is None:
        return rows  # the package has a row of its own
    cuda = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    devices = {"CUDA": ", ".join(map(torch.cuda.get_device_name, cuda)),
               "MPS": "an Apple GPU" if torch.backends.mps.is_available() else ""}
    return rows + [Row(Part.MACHINE, name, Condition.WORKS, False, found=found) if found else
                   Row(Part.MACHINE, name, Condition.MISSING, False, found="no such GPU",
                       remedy="networks run on the CPU")
                   for name, found in devices.items()]


def check_backend(name: str) -> Row:
    """Build a backend and ask it for an energy that is known."""
    try:
        backend = find_backend(name)
    except UserError as error:
        return Row(Part.BACKEND, name, Condition.BROKEN, False, found=str(error), remedy="mend or remove that package")
    versions = [_version(package) for package in backend.packages]
    row: dict[str, Any] = dict(part=Part.BACKEND, name=name, is_core=backend.is_core and name in BACKENDS,
                               version=", ".join(versions))
    known = backend.known
    if known is None:
        return Row(**row, state=Condition.WORKS, found="it has no known energy to be asked for")
    numbers = np.array(known.numbers)
    try:
        physics = backend.physics(numbers=numbers, masses=atomic_masses[numbers], **known.keywords())
        energy = physics.energy(np.array(known.positions))
    except Exception as error:  # a library that is there and cannot be loaded: each fails in its own way
        reason = str(error) if isinstance(error, (UserError, PhysicsError)) else f"{type(error).__name__}: {error}"
        state = Condition.BROKEN if all(versions) else Condition.MISSING
        return Row(**row, state=state, found=reason, remedy=backend.install)
    if abs(energy - known.energy) > known.tolerance:
        return Row(**row, state=Condition.BROKEN, remedy=backend.install,
                   found=f"its energy of a known geometry is {energy:.4f} kJ/mol and should be {known.energy:.4f}")
    return Row(**row, state=Condition.WORKS, found=f"{energy:.4f} kJ/mol, as it should")


def check_packages() -> list[Row]:
    """What this project depends on, then what it can use besides."""
    try:
        wanted, extras = requires("kstep") or [], metadata("kstep").get_all("Provides-Extra") or []
    except PackageNotFoundError:  # run from its sources
        wanted, extras = [], []
    core, optional = [], {}
    asked = {name for backend in map(find_backend, BACKENDS) if not backend.is_core for name in backend.packages}
    for requirement in map(Requirement, wanted):
        name = requirement.name
        if name in asked:  # the backend itself has said whether that is there, and works
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            core.append(check_package(name, f"pip install '{name}{requirement.specifier}'", is_core=True))
            continue
        for extra in sorted({*extras} - FOR_DEVELOPERS):
            if requirement.marker.evaluate({"extra": extra}):  # one of several may bring the same module
                optional.setdefault(_module(name), {})[f"pip install 'kstep[{extra}]'"] = name
    return [*core, *(check_package(next(iter(of.values())), " or ".join(of)) for of in optional.values()),
            *(check_package(name, f"conda install -c conda-forge {name}") for name in FROM_CONDA)]


def check_package(name: str, remedy: str, *, is_core: bool = False) -> Row:
    """Import what a package is there for; name is that of its distribution."""
    row: dict[str, Any] = dict(part=Part.PACKAGE, name=name, is_core=is_core, version=_version(name))
    module, reason = _load(_module(name))
    if module is None:
        return Row(**row, state=Condition.BROKEN if reason else Condition.MISSING, found=reason, remedy=remedy)
    return Row(**{**row, "version": row["version"] or getattr(module, "__version__", "")}, state=Condition.WORKS)


def _module(name: str) -> str:
    plain = name.lower().replace("-", "_")
    return MODULES.get(plain, plain)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _load(module: str):
    """(module, "") or (None, why it cannot be loaded, "" where it is not there)."""
    logging.disable(logging.WARNING)  # pymbar warns of what it does without
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pkgutil.resolve_name(module), ""
    except Exception as error:  # without a driver, or a library, each fails in its own way
        absent = isinstance(error, AttributeError) or getattr(error, "name", None) == module.split(".")[0]
        return None, "" if absent else f"{type(error).__name__}: {error}"
    finally:
        logging.disable(logging.NOTSET)
