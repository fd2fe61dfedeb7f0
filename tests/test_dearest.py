"""What benchmarks/dearest.py holds against each other: averages of chains, under weights where frames have them."""

from types import SimpleNamespace

import numpy as np
import pytest

import dearest


def methanol(torsion_deg):
    """Positions (6,3) nm of one whose H-C-O-H torsion is that; its other hydrogens lie anywhere."""
    turn = np.radians(torsion_deg)
    x = np.zeros((6, 3))
    x[1] = [0.14, 0.0, 0.0]
    x[2] = [-0.04, 0.1, 0.0]
    x[5] = [0.17, 0.09 * np.cos(turn), 0.09 * np.sin(turn)]
    return x


@pytest.mark.parametrize("weight, first, in_first_bin", [([], 20.0, 0.5), ([3.0, 1.0, 1.0, 1.0], 15.0, 0.75)])
def test_a_chain_is_averaged_by_weight_and_its_methyl_group_has_three_sides_alike(weight, first, in_first_bin):
    run = SimpleNamespace(pos=np.array([methanol(angle) for angle in (5.0, 35.0, 125.0, -110.0)]),
                          Epot=np.array([10.0, 30.0, 1.0, 2.0]), weight=np.array(weight),
                          replica=np.array([0, 0, 1, 1]))
    means = dearest.means_of_chains(run)
    assert means.shape == (2, 1 + dearest.BINS)
    assert means[0, :3] == pytest.approx([first, in_first_bin, 1.0 - in_first_bin])
    assert means[1] == pytest.approx([1.5, 1.0, 0, 0, 0, 0, 0])  # 5 and 10 degrees of a third of a turn
