"""Self-learning hybrid Monte Carlo: the network proposes, the true energy decides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kstep.schemes.ladder import TemperatureLadder
from kstep.schemes.maxwell import draw_velocities
from kstep.schemes.state import Info, Proposal, State, kinetic_energy, put
from kstep.units import kT


class Metropolis:
    """k velocity-Verlet steps on the network's conservative force, accepted with

        min(1, exp(-[H(x_k, v_k) - H(x_0, v_0)] / kT)),   H = U_true(x) + sum_i m_i v_i^2 / 2

    Velocities are drawn anew before every proposal, the map is reversible and preserves volume,
    so positions sample exp(-U_true/kT) exactly whatever the network's error: Duane et al.,
    Phys. Lett. B 195, 216 (1987).  `masses` are the sampler's: any positive ones leave the
    distribution of positions as it is.  A failed true call is a rejection.

    The length is k steps, or (`length_law` uniform) drawn anew for every proposal from 1 ... 2k - 1,
    without a look at the state, so that no vibration can be in step with it: Mackenzie, Phys.
    Lett. B 226, 369 (1989).  With a ladder, replicas have temperatures of their own and exchange
    configurations after the test.
    """

    name = "metropolis"
    is_thermostatted = True

    def __init__(self, carry, masses: np.ndarray, dt_ps: float, k_steps: int, temperature_K: float, *,
                 length_law: str = "fixed", ladder: TemperatureLadder | None = None, needs_forces: bool = True):
        """`carry(x, v, masses, dt_ps, n_steps)` is the network's dynamics; see kstep.runs.network_dynamics.

        The test takes energies alone; with needs_forces false no true force is asked for, and State.forces is NaN.
        """
        self.carry = carry
        self.masses = np.asarray(masses, dtype=np.float64)
        self.dt_ps = dt_ps
        self.k_steps = k_steps
        self.length_law = length_law
        self.needs_forces = needs_forces
        self.ladder = ladder or TemperatureLadder((temperature_K,))
        self.group = self.ladder.n_rungs  # replicas that must stay in one half-batch

    def draw_length(self, rng: np.random.Generator) -> int:
        """Timesteps of the next proposal."""
        return int(rng.integers(1, 2 * self.k_steps)) if self.length_law == "uniform" else self.k_steps

    def propose(self, state: State, info: Info, rng: np.random.Generator) -> Proposal:
        """New momenta and the network's dynamics for every replica."""
        rows = np.arange(state.n_replicas)
        start = draw_velocities(len(rows), self.masses, self.ladder.of(len(rows)), rng)
        # the dice are cast here, before the answer is known
        log_u = np.log(rng.random(len(rows)))
        n_steps = self.draw_length(rng)
        positions, velocities = self.carry(state.positions, start, self.masses, self.dt_ps, n_steps)
        return Proposal(rows, positions, velocities, np.full(len(rows), n_steps), {"start": start, "log_u": log_u})

    def settle(self, state: State, info: Info, proposal: Proposal, truth,
               rng: np.random.Generator) -> tuple[State, Info]:
        """Accept or reject each replica on the true energy."""
        rows, start = proposal.rows, proposal.extra["start"]
        with np.errstate(over="ignore", invalid="ignore"):
            delta_H = (truth.energy + kinetic_energy(proposal.velocities, self.masses)
                       - state.energy[rows] - kinetic_energy(start, self.masses))
        delta_H = np.where(np.isfinite(delta_H), delta_H, np.inf)
        accepted = proposal.extra["log_u"] < -delta_H / kT(self.ladder.of(len(rows)))

        def choose(new, old):
            return np.where(accepted.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        state = replace(
            state,
            positions=put(state.positions, rows, choose(proposal.positions, state.positions[rows])),
            velocities=put(state.velocities, rows, choose(proposal.velocities, start)),
            energy=put(state.energy, rows, choose(truth.energy, state.energy[rows])),
            forces=put(state.forces, rows, choose(truth.forces, state.forces[rows])),
        )
        state, swapped = self.ladder.swap(state, state.step // self.k_steps, rng)
        return state, replace(
            info, pending=put(info.pending, rows, 0), attempts=put(info.attempts, rows, info.attempts[rows] + 1),
            failures=put(info.failures, rows, info.failures[rows] + truth.failed),
            inner_steps=put(info.inner_steps, rows, proposal.span), accepted=put(info.accepted, rows, accepted),
            delta_H=put(info.delta_H, rows, delta_H), swapped=swapped)
