"""A cheap method in the place of a network: what proposes for a truth that takes minutes, with nothing learned.

GFN2-xTB, AIMNet2, or any calculator is as good a U_0 as a network for all that the schemes promise: `nested` samples
exp(-U_true/kT) whatever it is (Iftimie et al., J. Chem. Phys. 113, 4852 (2000); Gelb, J. Chem. Phys. 118, 7747 (2003)).
Each timestep costs a call of it, which a network's does not, so that it pays where the true call takes as long as
hundreds of them.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from kstep.errors import UserError
from kstep.forces import PhysicsSpec


class ProposalPotential:
    """A potential with the face of a kstep.models.network.Network; arrays are numpy's.

    A geometry that it has no number for has NaN, and what led there is refused.  It counts its own calls, in
    `true_calls`; none of them is one of the truth.
    """

    device = "cpu"

    def __init__(self, spec: PhysicsSpec, starts: np.ndarray):
        """starts (C,N,3) nm: its energies there tell where turns of torsions have fallen into a hole."""
        self.physics, self._starts, self._method = spec.build(), starts, spec.method

    @property
    def true_calls(self) -> int:
        """How often it was asked."""
        return self.physics.true_calls

    @functools.cached_property
    def metadata(self) -> dict[str, Any]:
        """What a network says of itself, as far as a potential that learned nothing has it."""
        energy, _ = self.energy_and_forces(self._starts)
        lowest = np.nanmin([*energy, np.inf])
        if not np.isfinite(lowest):
            raise UserError(f"{self._method} has no energy for any start, so that it cannot propose; take another "
                            "method for --propose-with")
        return {"method": self._method, "lowest_energy_kJ_per_mol": float(lowest)}

    def native(self, array: np.ndarray) -> np.ndarray:
        """(R,N,3) float64."""
        return np.array(array, dtype=np.float64)

    def numpy(self, native: np.ndarray) -> np.ndarray:
        """The same."""
        return native

    def forces(self, x: np.ndarray) -> np.ndarray:
        """Forces (R,N,3) kJ/mol/nm at x (R,N,3) nm."""
        return self.energy_and_forces(x)[1]

    def energy_and_forces(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energy (R,) kJ/mol and forces (R,N,3) kJ/mol/nm at x (R,N,3) nm."""
        return self.physics.batch(x)


def load_potential(spec: PhysicsSpec, starts: np.ndarray, **how: Any):
    """The potential of a NetworkRecipe, with the restraints of `spec`; spawned processes can call it.

    how: where and in which way a network would be computed.
    """
    from kstep.models.restrained import RestrainedNetwork

    potential = ProposalPotential(spec, starts)
    return RestrainedNetwork(potential, spec.restraints, spec.masses) if spec.restraints else potential
