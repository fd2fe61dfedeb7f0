"""Takes from a force what would change bond lengths and the 1-3 distances of bond angles."""

from __future__ import annotations

import numpy as np

from kstep.topology import find_angles

# singular values below this share of the largest are directions in which no distance changes at all
RANK_TOLERANCE = 1e-8


class StretchAndBendProjection:
    """The part of a force whose kick leaves every 1-2 and 1-3 distance's rate as it is.

        F' = F - J^T (J M^-1 J^T)^+ J M^-1 F,   so that J M^-1 F' = 0

    with J (C,3N) the derivatives of the C distances and ^+ the pseudo-inverse (distances around one
    centre depend on each other).  Total force and torque are kept.  F' of a gradient is no gradient.
    """

    def __init__(self, bonds: np.ndarray, masses: np.ndarray):
        self.masses = np.asarray(masses, dtype=np.float64)
        bonds = np.asarray(bonds, dtype=np.int64).reshape(-1, 2)
        self.pairs = np.concatenate([bonds, find_angles(len(self.masses), bonds)[:, [0, 2]]])

    def jacobian(self, positions: np.ndarray) -> np.ndarray:
        """Derivatives (R,C,N,3) of the distances of `pairs` (C,2) at positions (R,N,3)."""
        first, second = self.pairs.T
        along = positions[:, first] - positions[:, second]
        along /= np.linalg.norm(along, axis=-1, keepdims=True)
        out = np.zeros((len(positions), len(self.pairs), *positions.shape[1:]))
        rows = np.arange(len(self.pairs))
        out[:, rows, first] = along
        out[:, rows, second] = -along
        return out

    def __call__(self, forces: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Projected forces (R,N,3) at positions (R,N,3)."""
        if not len(self.pairs):
            return forces
        root = np.sqrt(self.masses)[:, None]
        n_replicas, shape = len(forces), forces.shape
        # In coordinates sqrt(m) x the projector is orthogonal, and singular vectors give it without
        # squaring the condition number as J M^-1 J^T would.
        scaled = (self.jacobian(positions) / root).reshape(n_replicas, len(self.pairs), -1)
        _, size, vectors = np.linalg.svd(scaled, full_matrices=False)
        vectors = vectors * (size > RANK_TOLERANCE * size[:, :1])[..., None]
        g = (forces / root).reshape(n_replicas, -1)
        g = g - np.einsum("rcd,rc->rd", vectors, np.einsum("rcd,rd->rc", vectors, g))
        return g.reshape(shape) * root
