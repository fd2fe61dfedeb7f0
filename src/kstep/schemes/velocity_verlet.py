"""Velocity Verlet, for any force and any array library."""

from __future__ import annotations


def velocity_verlet(forces, positions, velocities, inverse_masses, dt_ps: float, n_steps: int):
    """Carry (x, v) through n_steps of velocity Verlet; returns the new (x, v).

        v <- v + dt/2 f(x)/m;   x <- x + dt v;   v <- v + dt/2 f(x)/m

    forces: function of positions nm giving kJ/mol/nm; inverse_masses broadcastable to them, 1/Da; dt_ps not zero.
    Arrays may be numpy or torch, with their axes in any order.  Neighbouring half-kicks are joined, so each
    step costs one force; what travels is the step dt v, which is added as it is.
    Swope et al., J. Chem. Phys. 76, 637 (1982).
    """
    kick = dt_ps**2 * inverse_masses
    half_kick = 0.5 * kick
    step = dt_ps * velocities + half_kick * forces(positions)
    for n in range(n_steps):
        positions = positions + step
        step += (kick if n < n_steps - 1 else half_kick) * forces(positions)
    return positions, step / dt_ps
