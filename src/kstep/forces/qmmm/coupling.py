"""The classical form of the QM-MM electrostatics: point charges on the QM side that may respond to the field."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kstep.units import KJ_PER_HARTREE, NM_PER_BOHR

COULOMB = KJ_PER_HARTREE * NM_PER_BOHR  # kJ/mol nm/e^2


@dataclass(frozen=True)
class Coupling:
    """Charges q (n,) e on the sites of the capped region, their linear response K (n,n), and a damping a.

        phi_i = C sum_j Q_j / sqrt(|x_i - x_j|^2 + a^2)                  potential at site i, kJ/mol/e
        E     = sum_i q_i phi_i + 1/2 sum_ij phi_i K_ij phi_j            K_ij in e^2 mol/kJ

    Without K these are fixed charges, mechanical embedding; K is what the electrons do in the field,
    to second order: Stone, The Theory of Intermolecular Forces (2013), chapter 9 (charge-flow
    polarizabilities).  a = 0: Coulomb's law; xTB damps its point charges by about 0.12 nm.
    """

    charges: np.ndarray
    response: np.ndarray | None = None
    damping_nm: float = 0.0

    def as_lists(self) -> dict:
        """Plain numbers, for a checkpoint or JSON."""
        return {"charges": self.charges.tolist(), "damping_nm": float(self.damping_nm),
                "response": None if self.response is None else self.response.tolist()}

    @classmethod
    def from_lists(cls, saved: dict) -> Coupling:
        """What `as_lists` gave."""
        response = saved["response"]
        return cls(np.array(saved["charges"]), None if response is None else np.array(response),
                   float(saved["damping_nm"]))

    def energy_and_forces(self, sites: np.ndarray, field: np.ndarray, field_charges: np.ndarray):
        """E (...), forces on the sites (...,n,3) and on the field's atoms (...,m,3).

        sites (...,n,3), field (...,m,3) nm; field_charges Q (m,) e.
        """
        phi, gradient = potential(sites, field, field_charges, self.damping_nm)
        effective = np.broadcast_to(self.charges, phi.shape)
        energy = phi @ self.charges
        if self.response is not None:
            moved = phi @ self.response
            energy = energy + 0.5 * (phi * moved).sum(-1)
            effective = effective + moved
        pairs = effective[..., None, None] * gradient
        return energy, -pairs.sum(-2), pairs.sum(-3)


def potential(sites: np.ndarray, field: np.ndarray, field_charges: np.ndarray, damping_nm: float):
    """phi (...,n) at the sites and, per pair, its gradient (...,n,m,3) with respect to the site."""
    apart = sites[..., :, None, :] - field[..., None, :, :]
    inverse = 1.0 / np.sqrt((apart * apart).sum(-1) + damping_nm**2)
    weighed = COULOMB * field_charges * inverse
    return weighed.sum(-1), apart * (-weighed * inverse * inverse)[..., None]
