"""Maxwell-Boltzmann velocities, the centre of mass, and how many degrees of freedom remain."""

from __future__ import annotations

import numpy as np

from kstep.units import kT


def remove_centre_of_mass_velocity(velocities: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Subtract sum_i m_i v_i / M from every atom; velocities (...,N,3).

    It is the centre-of-mass *velocity* that goes, not the mean momentum: subtracting the same
    momentum from every atom would heat the light ones.
    """
    centre = np.einsum("...ni,n->...i", velocities, masses) / masses.sum()
    return velocities - centre[..., None, :]


def draw_velocities(n_replicas: int, masses: np.ndarray, temperature_K: float | np.ndarray,
                    rng: np.random.Generator) -> np.ndarray:
    """Velocities (R,N,3) nm/ps from the Maxwell distribution without centre-of-mass motion.

    temperature_K: one for all replicas, or (R,).

    The angular momentum stays: removing it would weight configurations by det(I)^(-1/2).
    """
    sigma = np.sqrt(kT(np.asarray(temperature_K))[..., None] / masses)
    velocities = rng.standard_normal((n_replicas, len(masses), 3)) * sigma[..., None]
    return remove_centre_of_mass_velocity(velocities, masses)


def degrees_of_freedom(n_atoms: int) -> int:
    """3N - 3: the centre-of-mass velocity is always removed here (an atom keeps its 3)."""
    return 3 * n_atoms - 3 if n_atoms > 1 else 3
