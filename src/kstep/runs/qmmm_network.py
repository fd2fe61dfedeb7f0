"""A network in the place of the QM region: what carries a QM/MM system through k cheap timesteps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kstep.errors import PhysicsError
from kstep.forces import PhysicsSpec
from kstep.forces.qmmm.coupling import Coupling
from kstep.forces.qmmm.system import Environment, MMPart
from kstep.restraints import Bias, Restraint
from kstep.runs.settings import NetworkRecipe


class EmbeddedNetwork:
    """The cheap potential of all N atoms, with the face of a Network towards carriers and schemes:

        E = E_network(x_capped) + E_coupling(x_capped, x_MM) + E_MM(x) + W(x)

    network: of the capped region, link atoms last; environment: what is around it; mm: what computes that; W: of
    restraints, if there are any, which are no more heated than the environment that they belong to here.  It is the
    gradient of one energy, so `metropolis` is exact for whatever true potential judges it.  Geometries OpenMM has no
    number for give NaN, and their proposals are rejected.

    The three terms are its parts (kstep.schemes.network_ladder): a ladder heats the network whole, the coupling, in
    which a hot partner meets a cold one, to the geometric mean of both temperatures, and the environment not at all.
    """

    device = "cpu"
    heated = (1.0, 0.5, 0.0)

    def __init__(self, network, environment: Environment, coupling: Coupling, mm: MMPart,
                 restraints: Sequence[Restraint] = ()):
        self.restraints, self._bias = tuple(restraints), Bias(restraints)
        self.network, self.region, self.coupling, self.mm = network, environment.region, coupling, mm
        self.field_atoms = environment.field_atoms
        self.field_charges = environment.field_charges[self.field_atoms]
        self.metadata = {**network.metadata, "coupling": coupling.as_lists()}

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
        parts, forces = self._parts(x)
        return parts.sum(axis=1), forces

    def energy_parts(self, x: np.ndarray) -> np.ndarray:
        """Energies (R,3) kJ/mol of network, coupling and environment at x (R,N,3) nm."""
        return self._parts(x)[0]

    def forces(self, x: np.ndarray, scale: np.ndarray | None = None) -> np.ndarray:
        """Forces (R,N,3) kJ/mol/nm alone; scale (R,3): of those of each part."""
        return self._parts(x, scale)[1]

    def _parts(self, x: np.ndarray, scale: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Energies (R,3) of the parts, and the sum (R,N,3) of their forces, times scale (R,3)."""
        of_network, of_coupling, of_mm = (np.ones((len(x), 3)) if scale is None else scale).T[..., None, None]
        capped, energy = self.region.capped(x), np.empty((len(x), 3))
        energy[:, 0], on_capped = self.network.energy_and_forces(capped)
        energy[:, 1], on_sites, on_field = self.coupling.energy_and_forces(capped, x[:, self.field_atoms],
                                                                           self.field_charges)
        forces = self.region.spread(of_network * on_capped + of_coupling * on_sites, x)
        forces[:, self.field_atoms] += of_coupling * on_field
        for r in range(len(x)):
            try:
                energy[r, 2], mm_forces = self.mm(x[r])
            except PhysicsError:
                energy[r, 2], mm_forces = np.nan, np.nan
            forces[r] += of_mm[r] * mm_forces
        if self.restraints:
            bias, bias_forces = self._bias.energy_and_forces(x)
            energy[:, 2] += bias
            forces += of_mm * bias_forces
        return energy, forces


def embedded_recipe(spec: PhysicsSpec, method: str) -> NetworkRecipe:
    """How a run with a spec of backend qmmm builds its network."""
    return NetworkRecipe(load_embedded, {"spec": spec, "method": method})


def load_embedded(checkpoint, spec: PhysicsSpec, method: str, **settings) -> EmbeddedNetwork:
    """The network of a checkpoint in the surroundings of a spec of backend qmmm; spawned processes can call it.

    settings: of `Network.load`.  A checkpoint without a coupling (one of 06b, learned in vacuo) meets the force
    field's own charges.
    """
    from kstep.models.network import Network

    environment = Environment.of(spec)
    region = environment.region
    network = Network.load(checkpoint, region.capped_numbers(spec.numbers), region.capped_masses(spec.masses),
                           region.capped_bonds(spec.settings["bonds"]), method=method, **settings)
    saved = network.metadata.get("coupling")
    coupling = Coupling.from_lists(saved) if saved else environment.classical
    return EmbeddedNetwork(network, environment, coupling, environment.mm_part(), spec.restraints)
