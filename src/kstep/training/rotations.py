"""Random rotations of windows: for measuring that nothing depends on how a molecule lies."""

from __future__ import annotations

import numpy as np


def random_rotations(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n,3,3), uniform over the rotations."""
    # QR of a Gaussian matrix with the signs of R taken out is uniform over O(3).
    q, r = np.linalg.qr(rng.normal(size=(n, 3, 3)))
    q *= np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]
    q[:, :, 0] *= np.sign(np.linalg.det(q))[:, None]
    return q


def turns_of_epoch(mode: str, n_windows: int, step_size: int, seed: int, epoch: int) -> np.ndarray | None:
    """Rotations (S,3,3) of the windows of an epoch: each its own (per_graph), or one for each step (batch)."""
    if mode == "none":
        return None
    rng = np.random.default_rng([seed, epoch, 1])
    if mode == "per_graph":
        return random_rotations(rng, n_windows)
    return random_rotations(rng, -(-n_windows // step_size)).repeat(step_size, 0)[:n_windows]
