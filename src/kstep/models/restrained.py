"""A network with restraints added: the potential that replicas move on, and that proposals are judged by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kstep.restraints import Bias, Restraint
from kstep.units import PS_PER_FS


class RestrainedNetwork:
    """U_net + W with the face of a Network; everything else it says is the network's.

    W belongs to no label, and is not scaled by delta_scale.
    """

    def __init__(self, network, restraints: Sequence[Restraint], masses: np.ndarray):
        """masses (N,) Da: the physical ones, of the velocities that a jump takes."""
        self.network, self.restraints, self._bias = network, tuple(restraints), Bias(restraints)
        self._per_mass = 1.0 / np.asarray(masses, dtype=np.float64)[:, None]

    def __getattr__(self, name: str):
        if name == "network":  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self.network, name)

    def forces(self, x):
        """Conservative forces kJ/mol/nm at positions nm, both native."""
        network = self.network
        return network.forces(x) + network.native(self._bias.energy_and_forces(network.numpy(x))[1])

    def energy_and_forces(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energy (R,) kJ/mol and forces (R,N,3) kJ/mol/nm at x (R,N,3) nm."""
        energy, forces = self.network.energy_and_forces(x)
        bias, bias_forces = self._bias.energy_and_forces(x)
        return energy + bias, forces + bias_forces

    def jump(self, x: np.ndarray, v: np.ndarray, f_true: np.ndarray, span) -> tuple[np.ndarray, np.ndarray]:
        """As Network.jump; f_true (R,N,3) holds the force of W, of which a jump has learned nothing.

        W acts in kicks around the jump over tau, as an r-RESPA of it would:

            v <- v + (tau/2) F_W(x_0)/m,   (x_k, v_k-1/2) <- jump,   v_k-1/2 <- v_k-1/2 + (tau/2 - dt/2) F_W(x_k)/m

        and the half step dt/2 that is left closes with the true force at x_k, F_W in it.
        """
        dt_ps = self.network.metadata["dt_fs"] * PS_PER_FS
        tau = (np.broadcast_to(np.asarray(span), (len(x),)) * dt_ps)[:, None, None]
        force = self._bias.energy_and_forces(x)[1]
        end, half = self.network.jump(x, v + 0.5 * tau * force * self._per_mass, f_true - force, span)
        return end, half + 0.5 * (tau - dt_ps) * self._bias.energy_and_forces(end)[1] * self._per_mass
