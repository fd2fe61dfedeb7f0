"""Geometries behind a barrier: conformers with one torsion turned over, or all of them.

A network that has seen one side of a barrier puts a wall where the other side is, and no chain of
its proposals gets past it, however hot.  Conformer generators leave sides out as well (the second
form of an amide).  Who samples on a ladder of temperatures wants both.  Of many torsions most rotamers are reached by
neither: a peptide of eight has thousands, and a network that was led to a few hundred puts others 5 to 100 kT too high.
"""

from __future__ import annotations

import numpy as np
from ase.data import vdw_radii

from kstep.dihedrals import far_side, turned
from kstep.topology import bonds_between
from kstep.units import NM_PER_ANGSTROM

TRIES = 40  # of turning all torsions of a geometry, before it is left as it was
CLOSEST, USUAL_RADIUS_A = 0.7, 2.0  # the second where nobody has given one
FAR_BONDS = 4  # between atoms whose distance torsions alone decide


def turn(positions: np.ndarray, bonds: np.ndarray, torsion, angle_deg: float) -> np.ndarray:
    """Positions (N,3) with the far side of the acyclic bond j-k of `torsion` (i,j,k,l) turned by angle_deg about it."""
    side = far_side(torsion, bonds, len(positions))
    return turned(positions[None], torsion, side, np.array([angle_deg]))[0]


def turned_starts(starts: np.ndarray, bonds: np.ndarray, torsions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows (T,), positions (T,N,3)): every second of `starts` (C,N,3) with one of the torsions (D,4) turned.

    The torsions take turns, and the angles of each divide the circle evenly, 0 left out.
    """
    rows = np.arange(1, len(starts), 2)
    if not len(torsions) or not len(rows):
        return rows[:0], starts[:0]
    positions = []
    for place, row in enumerate(rows):
        t = place % len(torsions)
        n_angles = len(range(t, len(rows), len(torsions)))
        angle_deg = 360.0 * (place // len(torsions) + 1) / (n_angles + 1)
        positions.append(turn(starts[row], bonds, torsions[t], angle_deg))
    return rows, np.array(positions)


class RandomRotamers:
    """Geometries with every torsion turned at random, where no two atoms clash that are FAR_BONDS bonds apart or more.

    Clash: closer than CLOSEST of the sum of their van der Waals radii, from which a few hundred fs of dynamics relax.
    """

    def __init__(self, numbers: np.ndarray, bonds: np.ndarray, torsions: np.ndarray):
        """numbers (N,); bonds (B,2); torsions (D,4) about acyclic bonds."""
        self.torsions = torsions
        self.sides = [far_side(torsion, bonds, len(numbers)) for torsion in torsions]
        first, second = np.triu_indices(len(numbers), k=1)
        far = bonds_between(len(numbers), bonds, FAR_BONDS)[first, second] == FAR_BONDS
        self.first, self.second = first[far], second[far]
        radii = np.nan_to_num(vdw_radii[numbers], nan=USUAL_RADIUS_A) * NM_PER_ANGSTROM
        self.least = CLOSEST * (radii[self.first] + radii[self.second])

    def _distances(self, positions: np.ndarray) -> np.ndarray:
        return np.linalg.norm(positions[:, self.first] - positions[:, self.second], axis=-1)

    def __call__(self, positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Positions (S,N,3), each turned anew until nothing clashes; as they were where that never is."""
        out, left = positions.copy(), np.arange(len(positions))
        for _ in range(TRIES):
            new = positions[left]
            for torsion, side in zip(self.torsions, self.sides):
                new = turned(new, torsion, side, rng.uniform(-180.0, 180.0, len(new)))
            fits = (self._distances(new) >= self.least).all(axis=1)
            out[left[fits]], left = new[fits], left[~fits]
            if not len(left):
                break
        return out
