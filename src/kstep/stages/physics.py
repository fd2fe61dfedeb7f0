"""The true potential of one molecule: its config and, for OpenMM, its System."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kstep.config import BaselineConfig, load_config, read_settings
from kstep.errors import UserError
from kstep.forces import PhysicsSpec, calculator_spec, check_spec, load_qm_config, physics_spec
from kstep.forces.openmm import MDConfig
from kstep.molecules.molecule import Molecule
from kstep.molecules.prepare import molecule_from_smiles
from kstep.processes import physical_cores
from kstep.runs.baseline_plan import plan_baseline


@dataclass(frozen=True)
class TruePhysics:
    """A molecule under the potential of `config`.

    OpenMM's System comes from system.xml in the prepared `folder`, or is given as XML; calculator: an ASE calculator,
    or a factory of one, that is the potential in the place of one that the config names.
    """

    molecule: Molecule
    config: BaselineConfig
    folder: Path | None = None
    system_xml: str | None = None
    calculator: object = None

    @property
    def is_mm(self) -> bool:
        """Whether a force field is the truth."""
        return isinstance(self.config, MDConfig)

    @property
    def method(self) -> str:
        """What tells this energy surface from another."""
        return self.spec().method

    def spec(self, *, warm_start: bool = True) -> PhysicsSpec:
        """The recipe of its backend; warm_start: whether an SCF may begin at the replica's last one."""
        if self.calculator is not None:
            spec = calculator_spec(self.calculator, self.molecule, charge=self.config.charge,
                                   multiplicity=self.config.spin_multiplicity)
        else:
            system = self.system_xml if self.folder is None else self.folder / "system.xml"
            spec = physics_spec(self.molecule, self.config, system_xml=system, warm_start=warm_start)
        return replace(spec, restraints=self.config.restraints or ())

    def check(self) -> None:
        """Raise UserError for what the backend refuses: a wrong charge is found here, not later."""
        if not self.is_mm:
            check_spec(self.spec(warm_start=False), self.molecule)

    def workers(self, wanted: int | None) -> int:
        """Processes for true calls; an MM call costs microseconds, less than sending it to a worker."""
        return wanted or (1 if self.is_mm else physical_cores())


def load_physics(path: str | Path | None, overrides: dict[str, Any] | None = None) -> BaselineConfig:
    """The config of plain MD and true calls in a YAML file, of the kind that its keys name."""
    keys, _ = read_settings(path, overrides)
    if keys.get("backend", "openmm" if "platform" in keys else "tblite") == "openmm":
        return load_config(MDConfig, path, overrides)
    return load_qm_config(path, overrides)


def check_lengths(config: BaselineConfig, where: str | Path) -> None:
    """UserError where plain MD of this config would have no timestep."""
    if not any(stretch.n_steps for stretch in plan_baseline(config)):
        raise UserError(f"{where}: every length is zero; set length_ps")


def prepared_physics(path: str | Path, config: BaselineConfig) -> TruePhysics:
    """The physics of a prepared folder, or of the molecule.npz in it."""
    path = Path(path)
    return TruePhysics(Molecule.load(path), config, folder=path.parent if path.suffix == ".npz" else path)


def open_physics(subject: str | Path, config: BaselineConfig, *, name: str | None = None, seed: int = 0) -> TruePhysics:
    """The physics of a prepared folder, or of a SMILES that is prepared now (named by its formula without `name`)."""
    path = Path(subject)
    if path.exists() or path.suffix == ".npz":
        if name is not None:
            raise UserError(f"{subject} has a name already; a name goes with a SMILES")
        return prepared_physics(path, config)
    try:
        molecule, system_xml = molecule_from_smiles(str(subject), name, seed=seed)
    except UserError as error:
        hint = f"; or {subject} is a prepared folder that does not exist" if path.parent != Path() else ""
        raise UserError(f"{error}{hint}") from None
    return TruePhysics(molecule, config, system_xml=system_xml)
