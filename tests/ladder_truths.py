"""Two methods that disagree on water by a known, smooth difference, as ASE calculators that cost nothing."""

import numpy as np
from ase.calculators.calculator import Calculator, all_changes

from kstep.units import FORCE_PER_EV_ANGSTROM, KJ_PER_EV, NM_PER_ANGSTROM

PAIRS = np.array([[0, 1], [0, 2], [1, 2]])
REST, STIFFNESS = np.array([0.096, 0.096, 0.151]), np.array([3.0e5, 3.0e5, 1.0e5])  # nm, kJ/mol/nm^2


def springs(x, rest=REST, stiffness=STIFFNESS):
    """Energy (S,) and its slope (S,3) by the distances of the pairs, at positions (S,3,3)."""
    r = np.linalg.norm(x[:, PAIRS[:, 0]] - x[:, PAIRS[:, 1]], axis=-1)
    return r, (0.5 * stiffness * (r - rest) ** 2).sum(-1), stiffness * (r - rest)


def known_difference(x, size=1.0):
    """D = -7e3 + size [w.q + 8 (q_1 + q_2 - 2 q_3)^2], q = 1/r - 1/r_0 in 1/nm: energy (S,), forces (S,3,3)."""
    r = np.linalg.norm(x[:, PAIRS[:, 0]] - x[:, PAIRS[:, 1]], axis=-1)
    q, w, v = 1.0 / r - 1.0 / REST, np.array([6.0, 6.0, -9.0]), np.array([1.0, 1.0, -2.0])
    along = q @ v
    slope = size * (w + 16.0 * along[:, None] * v) * -1.0 / r**2
    return -7.0e3 + size * (q @ w + 8.0 * along**2), on_atoms(x, r, slope)


def on_atoms(x, r, slope):
    """Forces (S,3,3) of dE/dr (S,3)."""
    forces = np.zeros_like(x)
    for p, (a, b) in enumerate(PAIRS):
        pull = (slope[:, p] / r[:, p])[:, None] * (x[:, a] - x[:, b])
        forces[:, a] -= pull
        forces[:, b] += pull
    return forces


class Cheap(Calculator):
    """Springs between all atoms."""

    implemented_properties = ["energy", "forces"]
    default_parameters = {"size": 0.0}

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        x = self.atoms.positions[None] * NM_PER_ANGSTROM
        r, energy, slope = springs(x)
        forces = on_atoms(x, r, slope)
        if self.parameters.size:
            d, d_forces = known_difference(x, self.parameters.size)
            energy, forces = energy + d, forces + d_forces
        self.results = {"energy": energy[0] / KJ_PER_EV, "forces": forces[0] / FORCE_PER_EV_ANGSTROM}


class Dear(Cheap):
    """The same and the known difference."""

    default_parameters = {"size": 1.0}


class DearEnergy(Dear):
    """The same, without forces."""

    implemented_properties = ["energy"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        del self.results["forces"]
