"""What stands in for a network that is not trained yet: its size for the speed, a force field for the motion."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from kstep.errors import UserError
from kstep.forces.openmm import read_system, velocity_verlet_integrator
from kstep.units import kT


class ForceField:
    """Classical dynamics at OpenMM's native speed, in the shape of a network and of what carries it.

    As a network: `energy_and_forces(x)`; called like `dynamics.carry.Carrier`: velocity Verlet for R replicas,
    one after another, with any masses.
    """

    device, cpu_s = "cpu", 0.0  # its work is this process's
    metadata: ClassVar = {"lowest_energy_kJ_per_mol": -np.inf}  # it repels where atoms clash: no depth is a hole

    def __init__(self, system_xml: str, n_atoms: int):
        import openmm

        self._openmm = openmm
        self._system = read_system(system_xml, n_atoms)
        self._platform = openmm.Platform.getPlatformByName("Reference")
        self._settings: tuple | None = None
        self._context: Any = None

    def _prepare(self, masses, dt_ps: float):
        if self._settings != (tuple(masses), dt_ps):
            for atom, mass in enumerate(masses):
                self._system.setParticleMass(atom, float(mass))
            self._context = self._openmm.Context(self._system, velocity_verlet_integrator(dt_ps), self._platform)
            self._settings = (tuple(masses), dt_ps)
        return self._context

    def energy_and_forces(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energy (R,) kJ/mol and forces (R,N,3) kJ/mol/nm at positions x (R,N,3) nm."""
        context = self._context or self._prepare(np.ones(x.shape[1]), 1e-3)
        energy, forces = np.full(len(x), np.nan), np.full(x.shape, np.nan)
        for r in np.flatnonzero(np.isfinite(x).all(axis=(1, 2))):
            context.setPositions(x[r])
            state = context.getState(getEnergy=True, getForces=True)
            energy[r], forces[r] = state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value
        return energy, forces

    def __call__(self, positions, velocities, masses, dt_ps: float, n_steps: int):
        """Positions and velocities (R,N,3) after n_steps of dt_ps; NaN where the dynamics broke."""
        context = self._prepare(masses, dt_ps)
        x, v = np.full(positions.shape, np.nan), np.full(positions.shape, np.nan)
        for r in range(len(positions)):
            context.setPositions(positions[r])
            context.setVelocities(velocities[r])
            try:
                context.getIntegrator().step(n_steps)
                state = context.getState(positions=True, velocities=True)
            except self._openmm.OpenMMException:
                continue
            x[r], v[r] = state.getPositions(asNumpy=True)._value, state.getVelocities(asNumpy=True)._value
        return x, v


def untrained_network(config, molecule, positions: np.ndarray, temperature_K: float):
    """A Network of the configured size with random weights: its speed is that of a trained one.

    positions (S,N,3) nm fit the scales of a pair_mlp, so that its dynamics stays in range.
    """
    if not config.heads.energy:
        raise UserError("md-kstep samples with an energy network; use a model config with heads: {energy: true}")
    from kstep.models import build_model
    from kstep.models.network import Network

    model = build_model(config, {"numbers": molecule.numbers, "bonds": molecule.bonds})
    if model.bound_to_one_molecule:
        spread = 0.5 * len(molecule) * kT(temperature_K)
        model.fit_normalisation({"positions": positions, "energies": np.linspace(-spread, spread, len(positions))})
    return Network(model, molecule.numbers, molecule.masses, molecule.bonds, metadata={"spans": [1]})
