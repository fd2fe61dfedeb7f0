"""Dihedral angles of positions, on the circle -180 to 180 degrees."""

from __future__ import annotations

import numpy as np


def dihedrals_deg(pos: np.ndarray, quadruples: np.ndarray) -> np.ndarray:
    """Dihedral angles (T,D) in degrees, -180..180, IUPAC sign, of quadruples (D,4) in positions (T,N,3)."""
    b1 = pos[:, quadruples[:, 1]] - pos[:, quadruples[:, 0]]
    b2 = pos[:, quadruples[:, 2]] - pos[:, quadruples[:, 1]]
    b3 = pos[:, quadruples[:, 3]] - pos[:, quadruples[:, 2]]
    n1, n2 = np.cross(b1, b2), np.cross(b2, b3)
    x = np.einsum("tpi,tpi->tp", n1, n2)
    y = np.einsum("tpi,tpi->tp", b1, n2) * np.linalg.norm(b2, axis=-1)
    return np.degrees(np.arctan2(y, x))


def wrap_deg(angle):
    """Map degrees into [-180, 180)."""
    return (angle + 180.0) % 360.0 - 180.0
