"""OpenFF and GAFF through openff-toolkit and openmmforcefields, where these are installed."""

from __future__ import annotations

import openmm
from rdkit import Chem

from kstep.errors import UserError

INSTALL_HINT = ("needs openff-toolkit and openmmforcefields, which come from conda-forge: "
                "'conda env create -f environment.yml'; --force-field mmff94 works without them")


def build_openff_system(molecule: Chem.Mol, force_field: str = "openff_unconstrained-2.2.1.offxml") -> openmm.System:
    """SMIRNOFF parameters with AM1-BCC charges.

    A constrained file loses its constraints: OpenFF's constrained and unconstrained releases
    differ in nothing else, and the baselines here resolve bond vibrations.
    """
    toolkit = import_toolkit(force_field)
    try:
        parameters = toolkit.ForceField(force_field)
    except OSError:
        raise UserError(f"OpenFF file '{force_field}' was not found; "
                        "openff_unconstrained-2.2.1.offxml comes with openff-forcefields") from None
    if "Constraints" in parameters.registered_parameter_handlers:
        parameters.deregister_parameter_handler("Constraints")
    try:
        offmol = toolkit.Molecule.from_rdkit(molecule, allow_undefined_stereo=True, hydrogens_are_explicit=True)
        system = parameters.create_openmm_system(offmol.to_topology())
    except Exception as error:  # a dozen exception classes without a common base
        raise UserError(f"{force_field} cannot describe this molecule: {reason(error)}") from error
    return isolated(system, molecule)


def build_gaff_system(molecule: Chem.Mol, force_field: str = "gaff-2.11") -> openmm.System:
    """GAFF parameters with AM1-BCC charges (needs AmberTools)."""
    toolkit = import_toolkit(force_field)
    from openmm import app

    try:
        from openmmforcefields.generators import GAFFTemplateGenerator
    except ImportError:
        raise UserError(f"--force-field {force_field} {INSTALL_HINT}") from None
    if force_field not in GAFFTemplateGenerator.INSTALLED_FORCEFIELDS:
        raise UserError(f"unknown force field '{force_field}'; openmmforcefields has "
                        f"{', '.join(GAFFTemplateGenerator.INSTALLED_FORCEFIELDS)}")
    try:
        offmol = toolkit.Molecule.from_rdkit(molecule, allow_undefined_stereo=True, hydrogens_are_explicit=True)
        templates = app.ForceField()
        templates.registerTemplateGenerator(GAFFTemplateGenerator(offmol, forcefield=force_field).generator)
        system = templates.createSystem(offmol.to_topology().to_openmm(), nonbondedMethod=app.NoCutoff,
                                        constraints=None, rigidWater=False, removeCMMotion=False)
    except Exception as error:
        raise UserError(f"{force_field} cannot describe this molecule: {reason(error)}") from error
    return isolated(system, molecule)


def import_toolkit(force_field: str):
    """openff.toolkit, or a UserError that says where to get it."""
    try:
        # Importing openmmforcefields alone proves nothing: it loads the toolkit later.
        import openff.toolkit
    except ImportError:
        raise UserError(f"--force-field {force_field} {INSTALL_HINT}") from None
    return openff.toolkit


def isolated(system: openmm.System, molecule: Chem.Mol) -> openmm.System:
    """Remove what a gas-phase System must not hold, and check its particles against RDKit's."""
    for index in reversed(range(system.getNumForces())):
        if isinstance(system.getForce(index), openmm.CMMotionRemover):
            system.removeForce(index)
    if system.getNumParticles() != molecule.GetNumAtoms() or system.getNumConstraints():
        raise UserError("this force field adds virtual sites or constraints; choose one without them")
    for atom in molecule.GetAtoms():
        system.setParticleMass(atom.GetIdx(), atom.GetMass())
    return system


def reason(error: Exception) -> str:
    """The toolkit's own words, shortened to the part that helps."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "assign_partial_charges" in text:
        return "no AM1-BCC charges; AmberTools is missing (environment.yml has it) or does not know an element here"
    return text if len(text) <= 200 else text[:200] + " ..."
