"""A network in the place of the QM region: what carries a QM/MM system through k cheap timesteps."""

from __future__ import annotations

import numpy as np

from kstep.errors import PhysicsError
from kstep.molecules.molecule import Molecule


class EmbeddedNetwork:
    """The cheap potential of all N atoms, with the face of a Network towards carriers and schemes:

        E = E_network(x_capped) + E_coupling(x_capped, x_MM) + E_MM(x)

    network: of the capped region, link atoms last; region (forces.qmmm.link.Region), mm
    (forces.qmmm.backend.MMPart), coupling (forces.qmmm.coupling.Coupling); field_atoms (m,) and
    field_charges (m,) e: the MM charges that the region feels.  It is the gradient of one energy, so
    `metropolis` is exact for whatever true potential judges it.  Geometries OpenMM has no number for
    give NaN, and their proposals are rejected.
    """

    device = "cpu"

    def __init__(self, network, region, mm, coupling, field_atoms, field_charges):
        self.network, self.region, self.mm, self.coupling = network, region, mm, coupling
        self.field_atoms, self.field_charges = field_atoms, field_charges
        self.metadata = network.metadata

    @classmethod
    def around(cls, network, physics, coupling, mm) -> EmbeddedNetwork:
        """The network in the surroundings of a QMMMPhysics; mm computes its environment."""
        return cls(network, physics.region, mm, coupling, physics.field_atoms, physics.field_charges)

    @staticmethod
    def native(array: np.ndarray) -> np.ndarray:
        """(R,N,3) as the array type `forces` takes: numpy float64."""
        return np.array(array, dtype=np.float64)

    @staticmethod
    def numpy(native: np.ndarray) -> np.ndarray:
        """A native array as numpy."""
        return np.asarray(native)

    def energy_and_forces(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energy (R,) kJ/mol and forces (R,N,3) kJ/mol/nm at x (R,N,3) nm."""
        capped = self.region.capped(x)
        energy, on_capped = self.network.energy_and_forces(capped)
        coupled, on_sites, on_field = self.coupling.energy_and_forces(capped, x[:, self.field_atoms],
                                                                      self.field_charges)
        forces = self.region.spread(on_capped + on_sites, x)
        forces[:, self.field_atoms] += on_field
        energy = energy + coupled
        for r in range(len(x)):
            try:
                of_mm, mm_forces = self.mm.energy_and_forces(x[r])
            except PhysicsError:
                of_mm, mm_forces = np.nan, np.nan
            energy[r] += of_mm
            forces[r] += mm_forces
        return energy, forces

    def forces(self, x: np.ndarray) -> np.ndarray:
        """Forces (R,N,3) kJ/mol/nm alone."""
        return self.energy_and_forces(x)[1]


def capped_molecule(name: str, region, numbers, masses, bonds, positions, charge: int, multiplicity: int) -> Molecule:
    """The capped region as a Molecule, for its network: atoms of the region, then link atoms (hydrogens).

    numbers, masses, bonds, positions (S,N,3) nm are those of the whole system.
    """
    own = region.capped_bonds(bonds)
    geometries = region.capped(np.asarray(positions))
    return Molecule(name, "", region.capped_numbers(numbers), region.capped_masses(masses), own, np.ones(len(own)),
                    geometries, np.zeros(len(geometries)), charge, multiplicity, "none")
