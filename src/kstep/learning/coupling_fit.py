"""The classical coupling that fits a QM/MM potential best: charges and their response, from forces on MM atoms.

The QM pushes every MM charge with a force that is linear in what is sought:

    F_j = -sum_i (q_i + sum_k K_ik phi_k) grad_j [C Q_j / sqrt(r_ij^2 + a^2)]

so q (n,) and the symmetric K (n,n) come from one linear least-squares problem over the answers of
true calls, with a small ridge; the damping a is the best of a few.  The charges' sum is not forced: the
answers know it.  Force matching: Ercolessi & Adams, Europhys. Lett. 26, 583 (1994).
"""

from __future__ import annotations

import numpy as np

from kstep.forces.qmmm.coupling import Coupling, potential

DAMPINGS_NM = (0.0, 0.04, 0.08, 0.12, 0.16)
RIDGE = 1e-6  # of the mean diagonal of the normal equations, per unknown


def fit_coupling(sites: np.ndarray, field: np.ndarray, field_charges: np.ndarray,
                 field_forces: np.ndarray) -> Coupling:
    """The Coupling of S answers: sites (S,n,3), field (S,m,3) nm, field_forces (S,m,3) kJ/mol/nm; Q (m,) e."""
    if not len(field_charges) or not np.square(field_forces).sum():
        return Coupling(np.zeros(sites.shape[1]))
    found = [_fit(sites, field, field_charges, field_forces, a) for a in DAMPINGS_NM]
    return min(found, key=lambda pair: pair[0])[1]


def _fit(sites, field, field_charges, field_forces, damping_nm) -> tuple[float, Coupling]:
    n = sites.shape[1]
    upper = np.triu_indices(n)
    size = n + len(upper[0])
    normal, right, squares = np.zeros((size, size)), np.zeros(size), 0.0
    for x, y, f in zip(sites, field, field_forces):
        phi, gradient = potential(x, y, field_charges, damping_nm)
        on_field = gradient.reshape(n, -1)  # force on every charge, per unit of q_i
        # dF/dK_ik = on_field_i phi_k + on_field_k phi_i, once on the diagonal
        pairs = on_field[upper[0]] * phi[upper[1], None] + on_field[upper[1]] * phi[upper[0], None]
        pairs[upper[0] == upper[1]] *= 0.5
        design = np.concatenate([on_field, pairs])
        normal += design @ design.T
        right += design @ f.ravel()
        squares += (f * f).sum()
    diagonal = np.diag(normal).copy()
    scale = 1.0 / np.sqrt(np.maximum(diagonal, 1e-300))  # charges and responses have units far apart
    scaled = normal * scale[:, None] * scale + RIDGE * size * np.eye(size)
    unknowns = scale * np.linalg.solve(scaled, right * scale)
    residual = squares - 2.0 * unknowns @ right + unknowns @ normal @ unknowns
    response = np.zeros((n, n))
    response[upper] = unknowns[n:]
    response = response + np.triu(response, 1).T
    return float(residual), Coupling(unknowns[:n], response, damping_nm)
