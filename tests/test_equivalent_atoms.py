"""Which atoms change places by a molecule's own motion: ends of one atom, and flat rings that flip."""

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem, rdMolTransforms

from kstep.topology import equivalent_ends, ring_flips
from kstep.training.equivalent_atoms import exchange_equivalent, relabellings


def graph(smiles):
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    return (np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()]),
            np.array([[bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()] for bond in mol.GetBonds()]))


@pytest.mark.parametrize("smiles, flips, ends", [
    ("OCc1ccccc1", 1, 1), ("CC(C)Cc1ccc(cc1)[C@H](C)C(=O)O", 1, 4), ("c1ccccc1-c1ccccc1", 2, 0),
    ("Fc1cc(CO)cc(F)c1", 1, 1), ("Fc1ccc(CO)cc1F", 0, 1), ("OCc1ccncc1", 1, 1), ("OCc1cccnc1", 0, 1),
    ("CC(=O)Oc1ccccc1C(=O)O", 0, 1), ("OCc1ccc2ccccc2c1", 0, 1), ("c1ccccc1", 0, 0), ("C1CC1CO", 0, 3),
    ("OCn1cccc1", 1, 1), ("OCC(F)(F)F", 0, 2), ("CC(=O)[O-]", 0, 2), ("[O-][N+](=O)c1ccccc1", 1, 1),
    ("CS(=O)(=O)C", 0, 3), ("Cc1cc(C)cc(C)c1", 0, 3)])
def test_rings_flip_and_ends_change_places_where_they_are_alike(smiles, flips, ends):
    """Every relabelling leaves elements and bonds what they are, and all of them are drawn."""
    numbers, bonds = graph(smiles)
    assert (len(ring_flips(numbers, bonds)), len(equivalent_ends(numbers, bonds))) == (flips, ends)
    joined = {frozenset(bond) for bond in bonds.tolist()}
    orders = {tuple(order) for order in exchange_equivalent(numbers, bonds, np.random.default_rng(0), 3000).tolist()}
    for order in map(np.array, orders):
        assert (numbers[order] == numbers).all() and {frozenset(order[bond].tolist()) for bond in bonds} == joined
    assert orders == {tuple(order) for order in relabellings(numbers, bonds, 10**6).tolist()}
    assert len(orders) % 2**flips == 0


def test_ring_flips_are_left_out_first_of_what_is_too_much():
    numbers, bonds = graph("Cc1ccccc1")
    methyl = {tuple(order) for order in relabellings(numbers, bonds, 6).tolist()}
    assert len(methyl) == 6 and len(relabellings(numbers, bonds, 12)) == 12
    assert all(order[:7] == tuple(range(7)) for order in methyl)


def test_a_flipped_ring_is_one_that_turned_by_180_degrees():
    numbers, bonds = graph("OCc1ccccc1")
    mol = Chem.AddHs(Chem.MolFromSmiles("OCc1ccccc1"))
    assert AllChem.EmbedMolecule(mol, randomSeed=3) == 0
    AllChem.MMFFOptimizeMolecule(mol, maxIters=2000)
    before, torsion = mol.GetConformer().GetPositions(), (mol.GetConformer(), 0, 1, 2, 3)
    rdMolTransforms.SetDihedralDeg(*torsion, rdMolTransforms.GetDihedralDeg(*torsion) + 180.0)
    turned = mol.GetConformer().GetPositions()
    apart = [np.linalg.norm(x - turned, axis=1).max() for x in (before, before[ring_flips(numbers, bonds)[0]])]
    assert apart[1] < 0.2 < 2.0 < apart[0]  # angstrom


def test_isotopes_of_a_ring_keep_their_places():
    numbers, bonds = graph("OCc1ccccc1")
    masses = numbers.astype(float)
    assert len(ring_flips(numbers, bonds, masses)) == 1
    masses[3] += 1.0  # a carbon-13 in ortho
    assert len(ring_flips(numbers, bonds, masses)) == 0


def test_six_ends_of_an_octahedron_keep_their_places():
    numbers, bonds = graph("FS(F)(F)(F)(F)F")
    assert len(equivalent_ends(numbers, bonds)[0]) == 6
    assert (exchange_equivalent(numbers, bonds, np.random.default_rng(0), 20) == np.arange(7)).all()
