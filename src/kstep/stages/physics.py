"""The true potential of one molecule: its config and, for OpenMM, its System."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from kstep.config import BaselineConfig, load_config, read_settings, validate
from kstep.errors import UserError
from kstep.forces import PhysicsSpec, calculator_spec, check_spec, electrons, load_qm_config, physics_spec
from kstep.forces.openmm import MDConfig
from kstep.molecules.molecule import Molecule
from kstep.molecules.prepare import (
    Prepared,
    prepare_smiles,
    prepare_structure,
    system_xml_for,
    system_xml_of,
    write_prepared,
)
from kstep.molecules.smiles import warn_of_triplet
from kstep.molecules.structure_file import is_structure_file, read_structure, structure_of
from kstep.processes import physical_cores
from kstep.runs.baseline_plan import plan_baseline

if TYPE_CHECKING:
    import ase

# a SMILES, a prepared folder, a structure file, ase.Atoms or several of them, or a Molecule
Subject: TypeAlias = "str | Path | Molecule | ase.Atoms | Sequence[ase.Atoms]"


@dataclass(frozen=True)
class TruePhysics:
    """A molecule under the potential of `config`, whose spin multiplicity is the molecule's where it says one.

    OpenMM's System comes from system.xml in the prepared `folder`, or is given as XML; calculator: an ASE calculator,
    or a factory of one, that is the potential in the place of one that the config names.
    """

    molecule: Molecule
    config: BaselineConfig
    folder: Path | None = None
    system_xml: str | None = None
    calculator: object = None

    def __post_init__(self):
        # what is written of a run, or of labels, is of the molecule: that of another spin is another one
        before, multiplicity = self.molecule, getattr(self.config, "spin_multiplicity", None)
        if multiplicity not in (None, before.multiplicity):
            relaxed_on = before.relaxed_on and f"{before.relaxed_on} with multiplicity {before.multiplicity}"
            object.__setattr__(self, "molecule", replace(before, multiplicity=multiplicity, relaxed_on=relaxed_on))

    @property
    def is_mm(self) -> bool:
        """Whether a force field is the truth."""
        return isinstance(self.config, MDConfig)

    @property
    def method(self) -> str:
        """What tells this energy surface from another."""
        return self.spec().method

    def spec(self, *, warm_start: bool = True) -> PhysicsSpec:
        """The recipe of its backend; warm_start: whether an SCF may begin at the replica's last one.

        Raises UserError where the config's charge is another than the molecule's.
        """
        if not self.is_mm and self.config.charge not in (None, self.molecule.charge):
            raise UserError(f"charge: {self.config.charge} of the config contradicts {self.molecule.name}, whose own "
                            f"is {self.molecule.charge:+d}; leave it null, or name the ion that is meant")
        if self.calculator is not None:
            spec = calculator_spec(self.calculator, self.molecule, charge=self.config.charge,
                                   multiplicity=self.config.spin_multiplicity)
        else:
            system = self.system_xml if self.folder is None else self.folder / "system.xml"
            spec = physics_spec(self.molecule, self.config, system_xml=system, warm_start=warm_start)
        return replace(spec, restraints=self.config.restraints or ())

    def on(self, config: BaselineConfig, calculator: object = None) -> TruePhysics:
        """The same molecule under another potential, whose charge and multiplicity are these where it has none."""
        own = {key: value for key in ("charge", "spin_multiplicity")
               if getattr(config, key, 0) is None and (value := getattr(self.config, key, None)) is not None}
        return replace(self, config=config.model_copy(update=own), calculator=calculator)

    def check(self) -> None:
        """Raise UserError for what the backend refuses: a wrong charge is found here, not later."""
        if not self.is_mm:
            own = electrons(self.config, self.molecule.charge, self.molecule.multiplicity)
            warn_of_triplet(self.molecule.name, self.molecule.numbers, **own)
            check_spec(self.spec(warm_start=False), self.molecule)

    def workers(self, wanted: int | None) -> int:
        """Processes for true calls; an MM call costs microseconds, less than sending it to a worker.

        Where a scheduler has the true calls they carry the network, in two halves, as those of two cores or more do.
        """
        if self.config.scheduler is not None:
            return wanted or max(2, physical_cores())
        return wanted or (1 if self.is_mm else physical_cores())


def load_physics(path: str | Path | None, overrides: dict[str, Any] | None = None) -> BaselineConfig:
    """The config of plain MD and true calls in a YAML file, of the kind that its keys name."""
    keys, _ = read_settings(path, overrides)
    if keys.get("backend", "openmm" if "platform" in keys else "tblite") == "openmm":
        return load_config(MDConfig, path, overrides)
    return load_qm_config(path, overrides)


def solvated(config: BaselineConfig, solvent: str | None) -> BaselineConfig:
    """The config of a method beside the truth in the solvent that was asked for, if any; one without implicit solvents
    stays in the gas phase, where it only judges or proposes worse."""
    if solvent is None or "solvent" not in type(config).model_fields:
        return config
    return validate(type(config), config.model_dump() | {"solvent": solvent}, "settings")


def check_lengths(config: BaselineConfig, where: str | Path) -> None:
    """UserError where plain MD of this config would have no timestep."""
    if not any(stretch.n_steps for stretch in plan_baseline(config)):
        raise UserError(f"{where}: every length is zero; set length_ps")


def prepared_physics(path: str | Path, config: BaselineConfig) -> TruePhysics:
    """The physics of a prepared folder, or of the molecule.npz in it."""
    path = Path(path)
    return TruePhysics(Molecule.load(path), config, folder=path.parent if path.suffix == ".npz" else path)


def open_physics(subject: Subject | None, config: BaselineConfig, *, name: str | None = None, seed: int = 0,
                 structure: str | Path | None = None, charge: int | None = None,
                 multiplicity: int | None = None, keep: Path | None = None) -> TruePhysics:
    """The physics of a molecule that is prepared, in memory, or prepared now.

    subject: see `Subject`; a str that is no path is a SMILES; structure: a structure file instead, or the geometries of
    the subject where that is a SMILES; name: of what is prepared now (None: the structure file's, or the formula);
    charge, multiplicity: of the molecule, where it does not say them itself; keep: folder that what is prepared now is
    written below, for those who are to read it from there.  Raises UserError for what contradicts itself.
    """
    if isinstance(subject, str) and not subject.strip():
        raise UserError("the molecule is empty; give a SMILES, a structure file or a prepared folder")
    for what, flag, key in (("charge", charge, "charge"), ("multiplicity", multiplicity, "spin_multiplicity")):
        own = getattr(config, key, None)
        if None not in (flag, own) and flag != own:
            raise UserError(f"{what} {flag} contradicts the config's {key}: {own}; leave one of them out")
    path = Path(subject) if isinstance(subject, str | Path) else None
    prepared_before = isinstance(subject, Molecule) or (path is not None and not is_structure_file(path) and (
        isinstance(subject, Path) or path.exists() or path.suffix == ".npz"))
    if not prepared_before:
        prepared = prepare_subject(subject, config, name=name, seed=seed, structure=structure, charge=charge,
                                   multiplicity=multiplicity)
        if keep is not None:
            return TruePhysics(prepared.molecule, config, folder=_kept(prepared, keep))
        return TruePhysics(prepared.molecule, config, system_xml=system_xml_of(prepared))
    what = subject.name if isinstance(subject, Molecule) else subject
    if name is not None:
        raise UserError(f"{what} has a name already; a name goes with a SMILES or a structure file")
    if structure is not None:
        raise UserError(f"{what} has geometries of its own; --structure goes alone, or with a SMILES")
    if isinstance(subject, Molecule):
        xml = system_xml_for(subject) if isinstance(config, MDConfig) else None
        physics = TruePhysics(subject, config, system_xml=xml)
    else:
        physics = prepared_physics(path or "", config)
    for key, flag, own in (("charge", charge, physics.molecule.charge),
                           ("multiplicity", multiplicity, physics.molecule.multiplicity)):
        if flag not in (None, own):
            raise UserError(f"{key} {flag} contradicts {what}, which has {key} {own}; leave --{key} out, or prepare "
                            "the molecule again")
    return physics


def _kept(prepared: Prepared, raw: Path) -> Path:
    """The folder <raw>/<name> of what was prepared, written now if it is not there; UserError where another one is."""
    molecule, folder = prepared.molecule, raw / prepared.molecule.name
    if not (folder / "molecule.npz").is_file():
        write_prepared(prepared, raw)
        return folder
    there = Molecule.load(folder)
    if (there.smiles, there.charge, there.multiplicity) != (molecule.smiles, molecule.charge, molecule.multiplicity) \
            or there.conformers.shape != molecule.conformers.shape or not np.allclose(
                there.conformers, molecule.conformers, atol=1e-4):
        raise UserError(f"{folder} holds another molecule of that name, or other geometries; choose another output, or "
                        f"name {folder} as the molecule")
    return folder


def prepare_subject(subject: Subject | None, config: BaselineConfig | None = None, *,
                    structure: str | Path | None = None, name: str | None = None, charge: int | None = None,
                    multiplicity: int | None = None, force_field: str | None = None, **options) -> Prepared:
    """What is not prepared yet, as `open_physics` takes it; options: of `prepare_smiles`, for a SMILES alone.

    The charge of a structure is the config's where neither the caller nor the structure says it.
    """
    if isinstance(subject, Molecule):
        raise UserError(f"molecule {subject.name} is prepared already; write it with its save()")
    if isinstance(subject, str | Path) and is_structure_file(subject):
        if structure is not None:
            raise UserError(f"{subject} and {structure} are both structure files; give one, or a SMILES beside it")
        subject, structure = None, subject
    electrons_of_it = {"charge": charge if charge is not None else getattr(config, "charge", None),
                       "multiplicity": multiplicity if multiplicity is not None else
                       getattr(config, "spin_multiplicity", None)}
    if structure is not None:
        smiles = None if subject is None else str(subject)
        return prepare_structure(read_structure(structure, smiles=smiles, **electrons_of_it), name,
                                 force_field=force_field)
    if subject is None:
        raise UserError("say which molecule: a SMILES, a prepared folder, or --structure with a structure file")
    if not isinstance(subject, str | Path):
        return prepare_structure(structure_of(subject, **electrons_of_it), name, force_field=force_field)
    try:
        return prepare_smiles(str(subject), name, charge=charge, multiplicity=multiplicity, force_field=force_field,
                              **options)
    except UserError as error:
        hint = f"; or {subject} is a prepared folder that does not exist" if Path(subject).parent != Path() else ""
        raise UserError(f"{error}{hint}") from None
