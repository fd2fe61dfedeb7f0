"""Dihedral angles of positions, on the circle -180 to 180 degrees, and positions with one of them turned."""

from __future__ import annotations

import numpy as np

from kstep.topology import neighbours, reachable


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


def far_side(torsion, bonds: np.ndarray, n_atoms: int) -> np.ndarray:
    """The atoms (n,) beyond the acyclic bond j-k of a torsion (i,j,k,l), k among them."""
    _, j, k, _ = (int(a) for a in torsion)
    return np.array(sorted(reachable(k, neighbours(n_atoms, bonds), (j, k))))


def turned(positions: np.ndarray, torsion, side: np.ndarray, angles_deg: np.ndarray) -> np.ndarray:
    """Positions (S,N,3) with the atoms `side` (n,), see `far_side`, turned about the bond j-k of torsion (i,j,k,l).

    angles_deg (S,): by how much, so that the torsion itself grows by it.
    """
    _, j, k, _ = (int(a) for a in torsion)
    axis = positions[:, k] - positions[:, j]
    axis = (axis / np.linalg.norm(axis, axis=1, keepdims=True))[:, None]
    angle, r = np.radians(angles_deg)[:, None, None], positions[:, side] - positions[:, [k]]
    out = positions.copy()  # Rodrigues' formula
    along = np.einsum("sni,sni->sn", r, np.broadcast_to(axis, r.shape))[..., None]
    out[:, side] = positions[:, [k]] + (r * np.cos(angle) + np.cross(axis, r) * np.sin(angle)
                                        + axis * along * (1.0 - np.cos(angle)))
    return out
