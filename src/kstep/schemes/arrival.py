"""The end of a macro-step that is never refused: plain, impulse and checked share it."""

from __future__ import annotations

import numpy as np

from kstep.errors import PhysicsError
from kstep.schemes.state import Info, Proposal, State, put_rows, said_besides


def arrive(name: str, state: State, info: Info, proposal: Proposal, truth, velocities: np.ndarray, *,
           way_out: str) -> tuple[State, Info]:
    """`state` with the proposal's rows at its end, the true energy and force there; `info` with its steps counted.

    velocities (r,N,3) nm/ps: complete.  Raises PhysicsError where the true force is missing, since
    dynamics cannot go on without; `way_out` says what a user does then.
    """
    rows = proposal.rows
    if truth.failed.any():
        first = int(np.argmax(truth.failed))
        raise PhysicsError(f"{name} dynamics of replica {rows[first]} broke at step {state.step}: "
                           f"{truth.messages[first]}; {way_out}")
    return (put_rows(state, rows, positions=proposal.positions, velocities=velocities, energy=truth.energy,
                     forces=truth.forces, **said_besides(state, truth)),
            put_rows(info, rows, pending=info.pending[rows] - proposal.span, attempts=info.attempts[rows] + 1))
