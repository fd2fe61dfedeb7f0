"""The end of a macro-step that is never refused: plain, impulse and checked share it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kstep.errors import PhysicsError
from kstep.schemes.state import Proposal, State, put


def arrive(name: str, state: State, proposal: Proposal, truth, velocities: np.ndarray, *, way_out: str) -> State:
    """`state` with the proposal's rows at its end, the true energy and force there, and its steps counted.

    velocities (r,N,3) nm/ps: complete.  Raises PhysicsError where the true force is missing, since
    dynamics cannot go on without; `way_out` says what a user does then.
    """
    rows = proposal.rows
    if truth.failed.any():
        first = int(np.argmax(truth.failed))
        raise PhysicsError(f"{name} dynamics of replica {rows[first]} broke at step {state.step}: {truth.messages[first]}; "
                           f"{way_out}")
    return replace(
        state,
        positions=put(state.positions, rows, proposal.positions),
        velocities=put(state.velocities, rows, velocities),
        energy=put(state.energy, rows, truth.energy),
        forces=put(state.forces, rows, truth.forces),
        pending=put(state.pending, rows, state.pending[rows] - proposal.span),
        attempts=put(state.attempts, rows, state.attempts[rows] + 1),
    )
