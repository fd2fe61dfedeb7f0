"""The true physics: one backend per file, one contract (`base.Physics`), one pool of workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kstep.errors import UserError, did_you_mean
from kstep.forces.base import Physics


def _tblite(**settings):
    from kstep.forces.tblite import TblitePhysics

    return TblitePhysics(**settings)


def _xtb(**settings):
    from kstep.forces.xtb import XtbPhysics

    settings.pop("warm_start")
    return XtbPhysics(**settings)


def _openmm(**settings):
    from kstep.forces.openmm import OpenMMPhysics

    return OpenMMPhysics(**settings)


def _pyscf(**settings):
    from kstep.forces.pyscf import PyscfPhysics

    return PyscfPhysics(**settings)


def _ase(**settings):
    from kstep.forces.ase import AsePhysics

    return AsePhysics(**settings)


def _qmmm(**settings):
    from kstep.forces.qmmm.backend import QMMMPhysics

    return QMMMPhysics(**settings)


BACKENDS = {"tblite": _tblite, "xtb": _xtb, "openmm": _openmm, "pyscf": _pyscf, "ase": _ase, "qmmm": _qmmm}


CHEAPER_ENERGY = {"pyscf", "ase"}  # xTB and OpenMM give forces with the energy


@dataclass(frozen=True)
class PhysicsSpec:
    """A picklable recipe of a backend, so that spawned workers can build their own."""

    backend: str
    numbers: np.ndarray
    masses: np.ndarray
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def energy_is_cheaper(self) -> bool:
        """Whether an energy alone costs much less than an energy with forces."""
        return self.backend in CHEAPER_ENERGY

    def build(self) -> Physics:
        """Construct the backend in this process."""
        if self.backend not in BACKENDS:
            raise UserError(f"unknown backend '{self.backend}'{did_you_mean(self.backend, BACKENDS)}")
        return BACKENDS[self.backend](numbers=self.numbers, masses=self.masses, **self.settings)


def check_spec(spec: PhysicsSpec, molecule) -> None:
    """Raise UserError for what a backend refuses, and for a calculator of someone else's that is no potential."""
    if spec.backend == "ase":
        from kstep.forces.ase import check_calculator

        check_calculator(spec, molecule)
    else:
        spec.build()


def qm_spec(molecule, config, *, warm_start: bool) -> PhysicsSpec:
    """The recipe of a QMConfig, PyscfConfig or AseConfig for a Molecule; charge and multiplicity are always explicit.

    warm_start: whether an SCF may begin at the replica's last one; backends without one (xtb, ase) begin afresh.
    """
    settings = dict(
        charge=molecule.charge if config.charge is None else config.charge,
        multiplicity=molecule.multiplicity if config.spin_multiplicity is None else config.spin_multiplicity,
    )
    return PhysicsSpec(config.backend, molecule.numbers, molecule.masses,
                       {**settings, **SETTINGS[config.backend](molecule, config, warm_start)})


def _xtb_settings(molecule, config, warm_start) -> dict[str, Any]:
    settings = dict(method=config.method, accuracy=config.accuracy, max_iterations=config.max_iterations,
                    electronic_temperature_K=config.electronic_temperature_K, warm_start=warm_start)
    if config.backend == "xtb" and config.method == "GFN-FF" and molecule is not None:
        settings["topology_positions"] = molecule.conformers[0].tolist()
    return settings


def _pyscf_settings(molecule, config, warm_start) -> dict[str, Any]:
    from kstep.forces.pyscf import pick_device

    return dict(functional=config.functional, basis=config.basis, density_fit=config.density_fit,
                dispersion=config.dispersion, unrestricted=config.unrestricted, grid_level=config.grid_level,
                conv_tol=config.conv_tol, max_iterations=config.max_iterations, device=pick_device(config.device),
                warm_start=warm_start)


def _ase_settings(molecule, config, warm_start) -> dict[str, Any]:
    return dict(calculator=config.calculator, kwargs=config.kwargs)


SETTINGS = {"tblite": _xtb_settings, "xtb": _xtb_settings, "pyscf": _pyscf_settings, "ase": _ase_settings}


def mm_spec(molecule, config, folder: str | Path) -> PhysicsSpec:
    """The recipe of an MDConfig for a prepared molecule folder with system.xml."""
    path = Path(folder) / "system.xml"
    if not path.is_file():
        raise UserError(f"{path} does not exist; prepare the molecule with 00_prep_mols.py --force-field mmff94")
    return openmm_spec(molecule, config, path.read_text(errors="replace"))


def openmm_spec(molecule, config, system_xml: str | None) -> PhysicsSpec:
    """The recipe of an MDConfig for a molecule whose OpenMM System is given as XML, None where it has none."""
    if system_xml is None:
        raise UserError(f"MMFF94 has no parameters for {molecule.name}; run it with xTB (06b), or prepare it with another "
                        "--force-field (00_prep_mols.py)")
    return PhysicsSpec("openmm", molecule.numbers, molecule.masses,
                       dict(system_xml=system_xml, platform=config.platform))


def qmmm_spec(surroundings, qm_atoms, config, *, charge: int = 0, multiplicity: int = 1,
              embedding: str = "electrostatic") -> PhysicsSpec:
    """The recipe of a QM region in `surroundings` (forcefields.droplet), computed as a QMConfig or PyscfConfig says.

    tblite has no point charges, so xtb computes the same methods in its place.
    """
    surroundings.check_cut(qm_atoms)
    engine = "xtb" if config.backend == "tblite" else config.backend
    own = SETTINGS[config.backend](None, config, False)
    if engine in ("xtb", "pyscf"):
        own.pop("warm_start")  # every SCF starts cold, so that the energy depends on the geometry alone
    settings = dict(
        system_xml=surroundings.system_xml, bonds=np.asarray(surroundings.bonds).tolist(),
        qm_atoms=[int(atom) for atom in qm_atoms], charge=charge if config.charge is None else config.charge,
        multiplicity=multiplicity if config.spin_multiplicity is None else config.spin_multiplicity,
        embedding=embedding, engine=engine, **own)
    return PhysicsSpec("qmmm", surroundings.numbers, surroundings.masses, settings)
