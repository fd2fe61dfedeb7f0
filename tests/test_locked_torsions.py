"""What generators of conformers have on one side alone is turned over: acids, esters, amides."""

import numpy as np
import pytest
from rdkit import Chem

from conftest import molecule_from_smiles
from kstep.dihedrals import dihedrals_deg, wrap_deg
from kstep.molecules.conformers import locked_torsions, of_every_side, turned_over
from kstep.molecules.prepare import prepare_molecule


def sides(molecule, torsion):
    angles = dihedrals_deg(molecule.conformers, np.array([torsion]))[:, 0]
    return set((np.abs(wrap_deg(angles)) > 90.0).tolist())


@pytest.mark.parametrize("smiles, torsion", [
    ("NCC(=O)O", (3, 2, 4, 9)),  # an acid: its hydrogen turned holds a bond to the amine
    ("COC(=O)F", (0, 1, 2, 3)), ("CNC=O", (0, 1, 2, 3)),  # an ester, an amide
    ("N[C@@H](Cc1c[nH]c2ccccc12)C(=O)NCC(=O)O", (17, 16, 18, 33))])
def test_both_sides_are_among_the_starts(smiles, torsion):
    prepared = prepare_molecule("m", smiles)
    molecule = prepared.molecule
    assert sides(molecule, torsion) == {True, False} and not prepared.dropped
    assert molecule.species().inside(molecule.conformers).all() and len(molecule.conformers) <= 20
    assert (np.diff(molecule.conformer_energies) >= 0.0).all()


def test_an_acid_that_is_turned_may_be_the_lowest_and_several_are_kept_then():
    molecule = prepare_molecule("m", "N[C@@H](Cc1c[nH]c2ccccc12)C(=O)NCC(=O)O").molecule
    turned = np.abs(wrap_deg(dihedrals_deg(molecule.conformers, np.array([(17, 16, 18, 33)]))[:, 0])) > 90.0
    to_the_amide = np.linalg.norm(molecule.conformers[:, 33] - molecule.conformers[:, 13], axis=1) < 0.22
    assert turned[0] and turned.sum() >= 4 and (turned & to_the_amide).any()


def test_what_names_a_stereoisomer_and_one_conformer_alone_stay_as_they_are():
    molecule = prepare_molecule("m", "C/C=C/CO").molecule
    assert sides(molecule, (0, 1, 2, 3)) == {True}
    assert len(prepare_molecule("m", "NCC(=O)O", n_conformers=1).molecule.conformers) == 1


def test_what_is_locked():
    acid = molecule_from_smiles("NCC(=O)O", "m", 6)
    torsions, middle = locked_torsions(acid, acid.conformers)
    assert [3, 2, 4, 9] in torsions.tolist() and abs(middle[torsions.tolist().index([3, 2, 4, 9])]) < 20.0
    turned = turned_over(acid, acid.conformers, torsions[:1])
    assert turned.shape == acid.conformers.shape
    change = wrap_deg(dihedrals_deg(turned, torsions[:1]) - dihedrals_deg(acid.conformers, torsions[:1]))
    assert np.allclose(np.abs(change), 180.0, atol=1e-6)
    both = np.concatenate([acid.conformers, turned])
    assert torsions[0].tolist() not in locked_torsions(acid, both)[0].tolist()
    alkene = molecule_from_smiles("C/C=C/CO", "m", 6)
    assert alkene.bond_orders[[sorted(b) == [1, 2] for b in alkene.bonds.tolist()]] == 2.0
    assert [0, 1, 2, 3] not in locked_torsions(alkene, alkene.conformers)[0].tolist()


def test_one_of_every_side_takes_the_place_of_the_highest():
    kept = [(5, 0.0), (3, 1.0), (0, 2.0), (1, 3.0), (2, 4.0), (4, 9.0)]
    far = np.zeros((3, 6), dtype=bool)
    far[0, [1, 2]], far[1, 4], far[2, 5] = True, True, True
    assert of_every_side(kept, far[:0], 3) == kept[:3]
    assert of_every_side(kept, far, 3) == [(5, 0.0), (3, 1.0), (1, 3.0)]  # two are left as they are
    assert of_every_side(kept, far, 4) == [(5, 0.0), (3, 1.0), (1, 3.0), (4, 9.0)]
    assert of_every_side(kept, far, 1) == kept[:1] and of_every_side(kept, far, 9) == kept


def test_turning_is_of_conformers_that_rdkit_finds_alike():
    """The reason for all of this: should RDKit begin to turn acids over, it can go."""
    from rdkit.Chem import rdDistGeom

    mol = Chem.AddHs(Chem.MolFromSmiles("NCC(=O)O"))
    rdDistGeom.EmbedMultipleConfs(mol, 100, randomSeed=1)
    positions = np.array([conformer.GetPositions() for conformer in mol.GetConformers()])
    assert (np.abs(wrap_deg(dihedrals_deg(positions, np.array([(3, 2, 4, 9)])))) < 90.0).mean() > 0.97
