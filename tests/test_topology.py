"""What follows from bonds alone."""

import numpy as np

from kstep.topology import bonds_between


def test_bonds_between_atoms_are_counted_along_the_shortest_way():
    """A ring of five with an atom on it, and one that no bond leads to."""
    bonds = np.array([[0, 1], [1, 2], [2, 3], [3, 4], [0, 4], [4, 5]])
    found = bonds_between(7, bonds, 4)
    assert (found == found.T).all()
    assert found[0].tolist() == [0, 1, 2, 2, 1, 2, 4] and found[5].tolist() == [2, 3, 3, 2, 1, 0, 4]
    assert bonds_between(7, bonds, 2)[5].tolist() == [2, 2, 2, 2, 1, 0, 2]
