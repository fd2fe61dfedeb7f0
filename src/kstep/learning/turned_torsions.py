"""Geometries behind a barrier: conformers with one torsion turned over.

A network that has seen one side of a barrier puts a wall where the other side is, and no chain of
its proposals gets past it, however hot.  Conformer generators leave sides out as well (the second
form of an amide).  Who samples on a ladder of temperatures wants both.
"""

from __future__ import annotations

import numpy as np

from kstep.dihedrals import far_side, turned


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
