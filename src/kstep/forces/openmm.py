"""Molecular mechanics through OpenMM, and the measured choice of its platform."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import model_validator

from kstep.config import BaselineConfig, Timestep
from kstep.errors import PhysicsError, UserError
from kstep.forces.base import Backend, KnownEnergy, Physics
from kstep.restraints import Restraint


class MDConfig(BaselineConfig):
    """configs/md.yaml: OpenMM baselines and hybrids."""

    backend: ClassVar[str] = "openmm"
    dt_fs: Timestep = 1.0
    platform: Literal["auto", "Reference", "CPU", "CUDA", "OpenCL"] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _no_continuum(cls, data: Any) -> Any:
        if isinstance(data, dict) and "solvent" in data:
            raise ValueError("a force field has no implicit solvent here; take a QM config (configs/qm.yaml), or put "
                             "waters around the molecule (kstep qmmm)")
        return data


# steps of an openmm.CustomIntegrator: what is computed for each degree of freedom, and how
VELOCITY_VERLET = (("v", "v + 0.5*dt*f/m"), ("x", "x + dt*v"), ("v", "v + 0.5*dt*f/m"))


def velocity_verlet_integrator(dt_ps: float):
    """OpenMM CustomIntegrator of velocity Verlet: positions and velocities of the same instant."""
    import openmm

    integrator = openmm.CustomIntegrator(dt_ps)
    for step in VELOCITY_VERLET:
        integrator.addComputePerDof(*step)
    return integrator


def read_system(system_xml: str, n_atoms: int):
    """The openmm.System of system.xml; UserError when it is none, or another molecule's."""
    import openmm

    try:
        system = openmm.XmlSerializer.deserialize(system_xml)
        n_particles = system.getNumParticles()
    except (ValueError, AttributeError, openmm.OpenMMException):
        raise UserError("system.xml holds no OpenMM System; prepare the molecule again with 00_prep_mols.py") from None
    if n_particles != n_atoms:
        raise UserError(f"system.xml has {n_particles} particles, the molecule {n_atoms}; prepare it again with "
                        "00_prep_mols.py")
    return system


# energies of kstep.restraints, as OpenMM reads them: its classes of forces, and how a force of one adds its atoms
_RESTRAINTS = {"distance": ("CustomBondForce", "0.5*k*(r-centre)^2", "addBond"),
               "angle": ("CustomAngleForce", "0.5*k*(theta-centre)^2", "addAngle"),
               "dihedral": ("CustomTorsionForce", "k*(1-cos(theta-centre))", "addTorsion")}


def add_restraints(system, restraints: Sequence[Restraint]) -> None:
    """Add forces of restraints to an openmm.System, for dynamics that OpenMM integrates by itself."""
    import openmm

    for restraint in restraints:
        kind, energy, add = _RESTRAINTS[restraint.kind]
        centre = restraint.centre if restraint.kind == "distance" else np.radians(restraint.centre)
        force = getattr(openmm, kind)(f"{energy}; k={restraint.k!r}; centre={float(centre)!r}")
        getattr(force, add)(*restraint.atoms)
        system.addForce(force)


def with_restraints(system_xml: str, restraints: Sequence[Restraint]) -> str:
    """The XML of an openmm.System with those forces in it."""
    import openmm

    if not restraints:
        return system_xml
    system = openmm.XmlSerializer.deserialize(system_xml)
    add_restraints(system, restraints)
    return openmm.XmlSerializer.serialize(system)


def make_context(system, platform: str, dt_ps: float = 0.001, integrator=None):
    """A Context on the named platform with one thread and an integrator (None: velocity Verlet of dt_ps)."""
    import openmm

    names = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
    if platform not in names:
        raise UserError(f"OpenMM has no platform '{platform}' here; it has {', '.join(names)}")
    properties = {"CPU": {"Threads": "1"}, "CUDA": {"Precision": "mixed"}}.get(platform, {})
    return openmm.Context(system, integrator or velocity_verlet_integrator(dt_ps),
                          openmm.Platform.getPlatformByName(platform), properties)


def fastest_platform(system, positions: np.ndarray, n_steps: int = 200) -> tuple[str, dict[str, float]]:
    """Time every platform on this molecule; returns the fastest and microseconds per step of each.

    For small molecules Reference beats CPU by far (no thread overhead), so this is measured.
    """
    import openmm

    timings = {}
    for i in range(openmm.Platform.getNumPlatforms()):
        name = openmm.Platform.getPlatform(i).getName()
        try:
            context = make_context(system, name)
            context.setPositions(positions)
            context.getIntegrator().step(10)
            start = time.perf_counter()
            context.getIntegrator().step(n_steps)
            context.getState(getEnergy=True)
            timings[name] = (time.perf_counter() - start) / n_steps * 1e6
        except openmm.OpenMMException:
            continue  # a platform without its device (CUDA, OpenCL) is simply not a candidate
    return min(timings, key=timings.get), timings


class OpenMMPhysics(Physics):
    """One molecule under an OpenMM System given as XML text."""

    def __init__(self, numbers, masses, *, system_xml: str, platform: str = "Reference"):
        super().__init__(numbers, masses)
        system = read_system(system_xml, len(self.numbers))
        self._context = make_context(system, "Reference" if platform == "auto" else platform)

    def _compute(self, positions, slot):
        return ask(self._context, positions)


def ask(context, positions: np.ndarray) -> tuple[float, np.ndarray]:
    """Energy (kJ/mol) and forces (N,3) (kJ/mol/nm) at positions (N,3) nm; PhysicsError where OpenMM has no number."""
    import openmm

    try:
        context.setPositions(positions)
        state = context.getState(getEnergy=True, getForces=True)
    except openmm.OpenMMException as error:
        raise PhysicsError(f"OpenMM failed: {error}") from None
    return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value


def _water_by_mmff94() -> dict:
    from openmm import XmlSerializer
    from rdkit import Chem

    from kstep.molecules import build_system

    return {"system_xml": XmlSerializer.serialize(build_system(Chem.AddHs(Chem.MolFromSmiles("O")), "mmff94"))}


BACKEND = Backend(OpenMMPhysics, MDConfig, install="pip install openmm", packages=("openmm",), needs_system=True,
                  known=KnownEnergy(0.6533, _water_by_mmff94, tolerance=1e-4))
