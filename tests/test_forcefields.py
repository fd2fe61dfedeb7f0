"""The OpenMM System of a force field is the force field: MMFF94 against RDKit, OpenFF where installed."""

import numpy as np
import openmm
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from kstep.errors import UserError
from kstep.molecules import build_system
from kstep.molecules.mmff94 import build_mmff_system
from kstep.units import ANGSTROM_PER_NM, KJ_PER_KCAL, NM_PER_ANGSTROM

ENERGY_TOLERANCE = 1e-4  # kJ/mol
FORCE_TOLERANCE = 1e-3  # kJ/mol/nm

MOLECULES = {
    "water": "O", "ammonium": "[NH4+]", "hydroxide": "[OH-]", "sodium_ion": "[Na+]", "peroxide": "OO",
    "nitrile": "CC#N", "cyanogen": "N#CC#N", "isonitrile": "C[N+]#[C-]", "alkyne": "CC#C", "diyne": "C#CC#C",
    "allene": "C=C=C", "cumulene": "C=C=C=C", "ketene": "C=C=O", "isocyanate": "CN=C=O", "isothiocyanate": "CN=C=S",
    "azide": "CN=[N+]=[N-]", "diazonium": "c1ccccc1[N+]#N", "carbon_dioxide": "O=C=O",
    "nitro": "C[N+](=O)[O-]", "nitroso": "CN=O", "n_oxide": "C[N+](C)(C)[O-]", "oxime": "CC=NO",
    "sulfonamide": "NS(=O)(=O)c1ccc(N)cc1", "sulfoxide": "CS(=O)C", "sulfonium": "C[S+](C)C",
    "sulfonate": "CS(=O)(=O)[O-]", "thiol": "CS", "disulfide": "CSSC", "thioamide": "CC(N)=S",
    "phosphate": "COP(=O)(OC)OC", "phosphate_ion": "COP(=O)([O-])O", "phosphine": "CP(C)C", "silane": "C[Si](C)(C)C",
    "zwitterion": "[NH3+]CC(=O)[O-]", "carboxylate": "CC(=O)[O-]", "ammonium_quaternary": "C[N+](C)(C)C",
    "guanidinium": "NC(N)=[NH2+]", "amidine": "NC=N", "amide": "CC(=O)NC", "urea": "NC(N)=O", "enamine": "C=CN",
    "haloalkane": "FC(F)(F)C(Cl)Br", "iodide": "CI", "acyl_chloride": "CC(=O)Cl",
    "cyclopropane": "N#CC1CC1", "cyclopropene": "C1=CC1", "epoxide": "C1CO1", "aziridine": "C1CN1", "thiirane": "C1CS1",
    "cyclobutane": "C1CCC1", "cyclobutanone": "O=C1CCC1", "beta_lactam": "O=C1CCN1", "bicyclobutane": "C1C2CC12",
    "pyridine": "c1ccncc1", "pyridinium": "C[n+]1ccccc1", "pyrrole": "c1cc[nH]c1", "furan": "c1ccoc1",
    "thiophene": "c1ccsc1", "imidazole": "c1c[nH]cn1", "tetrazole": "c1nnn[nH]1", "indole": "c1ccc2[nH]ccc2c1",
    "caffeine": "Cn1cnc2c1c(=O)n(C)c(=O)n2C", "aspirin": "CC(=O)Oc1ccccc1C(=O)O", "diene": "C=CC=C",
    "glucose": "OC[C@H]1OC(O)[C@H](O)[C@@H](O)[C@@H]1O",
}


def embed(smiles):
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(molecule, randomSeed=7) == 0
    return molecule


def context_of(system):
    return openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference"))


def evaluate(context, positions_nm):
    context.setPositions(positions_nm)
    state = context.getState(energy=True, forces=True)
    return state.getPotentialEnergy()._value, np.asarray(state.getForces(asNumpy=True)._value)


# MMFF94s differs in the out-of-plane and torsion constants of delocalised nitrogen.
FLATTENED = ("amide", "urea", "enamine", "sulfonamide", "nitro", "guanidinium", "caffeine", "indole")


@pytest.mark.parametrize("name, variant", [*((name, "MMFF94") for name in MOLECULES),
                                           *((name, "MMFF94s") for name in FLATTENED)])
def test_mmff_equals_rdkit_at_minimum_and_distorted(name, variant):
    molecule = embed(MOLECULES[name])
    # Built first, from aromatic bonds: RDKit kekulises its own molecule when it types it.
    context = context_of(build_mmff_system(molecule, variant))
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(molecule, mmffVariant=variant)
    reference = rdForceFieldHelpers.MMFFGetMoleculeForceField(molecule, properties)
    reference.Initialize()
    reference.Minimize(maxIts=2000)
    minimum_A = molecule.GetConformer().GetPositions()
    rng = np.random.default_rng(len(name))
    for spread_A in (0.0, 0.03, 0.1, 0.1):
        positions_A = minimum_A + rng.normal(0, spread_A, minimum_A.shape)
        flat = positions_A.ravel().tolist()
        energy, forces = evaluate(context, positions_A * NM_PER_ANGSTROM)
        rdkit_energy = reference.CalcEnergy(flat) * KJ_PER_KCAL  # first: it clears the distances CalcGrad reuses
        gradient = np.array(reference.CalcGrad(flat)).reshape(-1, 3) * KJ_PER_KCAL * ANGSTROM_PER_NM
        assert energy == pytest.approx(rdkit_energy, rel=0, abs=ENERGY_TOLERANCE)
        np.testing.assert_allclose(forces, -gradient, rtol=0, atol=FORCE_TOLERANCE)


@pytest.mark.parametrize("name", ["azide", "amide", "sulfonamide", "cyanogen", "caffeine"])
def test_mmff_forces_are_minus_the_energy_gradient(name):
    molecule = embed(MOLECULES[name])
    context = context_of(build_mmff_system(molecule))
    positions = molecule.GetConformer().GetPositions() * NM_PER_ANGSTROM
    positions += np.random.default_rng(0).normal(0, 0.004, positions.shape)
    _, forces = evaluate(context, positions)
    step_nm = 1e-5
    for atom, axis in np.ndindex(positions.shape):
        ends = []
        for sign in (1, -1):
            moved = positions.copy()
            moved[atom, axis] += sign * step_nm
            ends.append(evaluate(context, moved)[0])
        assert forces[atom, axis] == pytest.approx((ends[1] - ends[0]) / (2 * step_nm), rel=1e-5, abs=2e-2)


def test_mmff_system_is_a_free_molecule_in_rdkit_order():
    molecule = embed("[2H]OCC")
    system = build_mmff_system(molecule)
    masses = [system.getParticleMass(i)._value for i in range(system.getNumParticles())]
    assert masses == pytest.approx([atom.GetMass() for atom in molecule.GetAtoms()])
    assert masses[0] == pytest.approx(2.014, abs=1e-3)
    assert system.getNumConstraints() == 0
    assert not any(isinstance(force, openmm.CMMotionRemover) for force in system.getForces())


def test_mmff_system_survives_xml():
    molecule = embed(MOLECULES["aspirin"])
    system = build_mmff_system(molecule)
    again = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    positions = molecule.GetConformer().GetPositions() * NM_PER_ANGSTROM
    energy, forces = evaluate(context_of(system), positions)
    energy_again, forces_again = evaluate(context_of(again), positions)
    assert energy_again == pytest.approx(energy, abs=1e-9)
    np.testing.assert_allclose(forces_again, forces, rtol=0, atol=1e-8)


def test_mmff_stays_finite_for_collinear_atoms_and_planar_centres():
    molecule = embed(MOLECULES["amide"])
    positions = molecule.GetConformer().GetPositions() * NM_PER_ANGSTROM
    positions[:, 2] = 0.0  # every centre exactly planar
    energy, forces = evaluate(context_of(build_mmff_system(molecule)), positions)
    assert np.isfinite(energy) and np.isfinite(forces).all()
    water = embed("O")
    line = np.array([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [-0.1, 0.0, 0.0]])
    energy, forces = evaluate(context_of(build_mmff_system(water)), line)
    assert np.isfinite(energy) and np.isfinite(forces).all()


def test_building_leaves_the_callers_aromatic_bonds_alone():
    molecule = embed(MOLECULES["caffeine"])
    build_mmff_system(molecule)
    assert any(bond.GetIsAromatic() for bond in molecule.GetBonds())


def test_missing_parameters_radicals_and_implicit_hydrogens_are_refused():
    with pytest.raises(UserError, match="MMFF94 lacks parameters .*elements B, H, O"):
        build_system(Chem.AddHs(Chem.MolFromSmiles("OB(O)O")), "mmff94")
    with pytest.raises(UserError, match="radicals"):
        build_system(Chem.AddHs(Chem.MolFromSmiles("[CH3]")), "mmff94s")
    with pytest.raises(UserError, match="explicit hydrogens"):
        build_system(Chem.MolFromSmiles("CC"), "mmff94")


@pytest.mark.parametrize("wrong, right", [("mmff49", "mmff94"), ("MMFF94", "mmff94"), ("gaff2.11", "gaff-2.11")])
def test_an_unknown_force_field_is_answered_with_the_nearest(wrong, right):
    with pytest.raises(ValueError, match=f"unknown force field '{wrong}'; did you mean '{right}'"):
        build_system(Chem.AddHs(Chem.MolFromSmiles("C")), wrong)


def has_openff():
    try:
        import openff.toolkit  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.skipif(has_openff(), reason="openff-toolkit is installed")
@pytest.mark.parametrize("force_field", ["openff_unconstrained-2.2.1.offxml", "gaff-2.11"])
def test_openff_without_its_toolkit_says_where_to_get_it(force_field):
    with pytest.raises(UserError, match="conda env create -f environment.yml"):
        build_system(Chem.AddHs(Chem.MolFromSmiles("C")), force_field)


@pytest.mark.skipif(not has_openff(), reason="openff-toolkit is not installed")
@pytest.mark.parametrize("force_field", ["openff_unconstrained-2.2.1.offxml", "openff-2.2.1.offxml", "gaff-2.11"])
def test_openff_and_gaff_build_a_free_molecule(force_field):
    molecule = embed("CCO")
    rdForceFieldHelpers.MMFFOptimizeMolecule(Chem.Mol(molecule))
    system = build_system(molecule, force_field)
    assert system.getNumParticles() == molecule.GetNumAtoms()
    assert system.getNumConstraints() == 0
    positions = molecule.GetConformer().GetPositions() * NM_PER_ANGSTROM
    context = context_of(system)
    energy, forces = evaluate(context, positions)
    step_nm = 1e-5
    moved = positions.copy()
    moved[2, 0] += step_nm
    assert forces[2, 0] == pytest.approx(-(evaluate(context, moved)[0] - energy) / step_nm, rel=1e-2, abs=1.0)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=1000)
    relaxed = np.asarray(context.getState(positions=True).getPositions(asNumpy=True)._value)
    assert 0.090 < np.linalg.norm(relaxed[2] - relaxed[8]) < 0.103  # O-H, in RDKit's atom order


@pytest.mark.skipif(not has_openff(), reason="openff-toolkit is not installed")
def test_an_openff_file_that_does_not_exist_is_named():
    with pytest.raises(UserError, match="'openff-0.0.0.offxml' was not found"):
        build_system(embed("C"), "openff-0.0.0.offxml")
