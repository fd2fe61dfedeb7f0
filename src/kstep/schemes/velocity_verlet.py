"""Velocity Verlet, for any force and any array library."""

from __future__ import annotations


def velocity_verlet(forces, positions, velocities, inverse_masses, dt_ps: float, n_steps: int):
    """Carry (x, v) through n_steps of velocity Verlet; returns the new (x, v).

        v <- v + dt/2 f(x)/m;   x <- x + dt v;   v <- v + dt/2 f(x)/m

    forces: function of positions (R,N,3) nm giving kJ/mol/nm; inverse_masses broadcastable to
    (R,N,3), 1/Da.  Arrays may be numpy or torch.  Neighbouring half-kicks are joined, so each
    step costs one force.  Swope et al., J. Chem. Phys. 76, 637 (1982).
    """
    kick = dt_ps * inverse_masses
    velocities = velocities + (0.5 * kick) * forces(positions)
    for step in range(n_steps):
        positions = positions + dt_ps * velocities
        weight = kick if step < n_steps - 1 else 0.5 * kick
        velocities = velocities + weight * forces(positions)
    return positions, velocities
