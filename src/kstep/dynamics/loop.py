"""The one time loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from kstep.dynamics.state import State
from kstep.errors import UserError


def initial_state(pool, positions: np.ndarray, velocities: np.ndarray) -> State:
    """A State from positions (R,N,3) and velocities (R,N,3): one true call per replica."""
    truth = pool.evaluate(positions)
    if truth.failed.any():
        raise UserError(f"the true physics refuses the start geometry of replica "
                        f"{int(np.argmax(truth.failed))}: {truth.messages[int(np.argmax(truth.failed))]}")
    return State(np.array(positions, dtype=np.float64), np.array(velocities, dtype=np.float64),
                 truth.energy, truth.forces)


def macro_step(scheme, pool, state: State, rng: np.random.Generator, thermostat=None) -> State:
    """Carry every replica `scheme.k_steps` timesteps forward.

    Schemes other than `jump` pass through the inner loop once; a refused jump comes back with
    timesteps still pending and is proposed again, shorter.
    """
    duration_ps = scheme.k_steps * scheme.dt_ps
    if thermostat is not None:
        state = thermostat.half_step(state, duration_ps, rng)
    state = state.begin_macro_step(scheme.k_steps, scheme.masses)
    while state.pending.any():
        proposal = scheme.propose(state, rng)
        truth = pool.evaluate(proposal.positions, proposal.rows)
        state = scheme.settle(state, proposal, truth, rng)
    if thermostat is not None:
        state = thermostat.half_step(state, duration_ps, rng)
    return replace(state, step=state.step + scheme.k_steps)


def run(scheme, pool, state: State, rng: np.random.Generator, n_macro_steps: int, *,
        thermostat=None, reporters: Iterable[Callable[[State], None]] = ()) -> State:
    """Run n_macro_steps and hand each state to every reporter."""
    reporters = list(reporters)
    for _ in range(n_macro_steps):
        state = macro_step(scheme, pool, state, rng, thermostat)
        for report in reporters:
            report(state)
    return state
