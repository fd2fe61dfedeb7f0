"""How fast torsions and energy forget, from dynamics that costs no true call.

A trained network, or without one a classical force field, stands in for the true potential: its plain
dynamics gives the correlation times that plain MD will have, its own Metropolis chain (which rejects for
integration errors alone) gives effective samples per proposal at each trajectory length.
"""

from __future__ import annotations

import time
from itertools import islice

import numpy as np

from kstep.analysis.measure.run_samples import samples_of
from kstep.analysis.measure.samples import Recording
from kstep.errors import UserError
from kstep.runs.loop import initial_state, run
from kstep.runs.network_dynamics import network_dynamics
from kstep.runs.tuning import NetworkAsTruth
from kstep.schemes import Metropolis
from kstep.units import PS_PER_FS, kT

FRAME_FS = 25.0  # between stored frames of plain dynamics; a torsion forgets in picoseconds
FIRST_PS = 16.0  # per replica; then doubled until there are samples enough
LEFT_SIGMA = 4.0  # a replica whose mean energy is this far from where it started is in a hole of the network


def stand_in_chain(molecule, network, carry, positions, masses, temperature_K, dt_fs: float, k_steps: int, rng, *,
                     length_law: str, n_proposals: int) -> tuple[dict, np.ndarray]:
    """Effective samples per proposal and acceptance of the stand-in's own chain; and its last positions (R,N,3)."""
    scheme = Metropolis(carry, masses, dt_fs * PS_PER_FS, k_steps, temperature_K, length_law=length_law)
    pool = NetworkAsTruth(network)
    state = run(scheme, pool, initial_state(pool, positions, np.zeros_like(positions)), rng, max(2, n_proposals // 5))
    recorded, accepted = Recording(molecule.numbers, molecule.bonds, k_steps * dt_fs * PS_PER_FS), []

    def keep(state, info):
        recorded.add(state.positions, state.energy)
        accepted.append(info.accepted.mean())

    state = run(scheme, pool, state, rng, n_proposals, reporters=[keep])
    found = samples_of(recorded.series(), of_dynamics=False)
    n = n_proposals * len(positions)
    rates = {"energy": found["energy"] / n, "torsion": found["torsion"] and found["torsion"] / n,
             "acceptance": float(np.mean(accepted)), "label": found["label"], "never_crossed": found["never_crossed"]}
    return rates, state.positions


def stand_in_dynamics(molecule, network, carry, positions, temperature_K, dt_fs: float, redraw_ps: float, rng, *,
                enough: float, most_cpu_s: float) -> dict:
    """ps of plain dynamics per effective sample, from the stand-in's dynamics with real masses.

    Velocities are drawn anew every redraw_ps, as baselines do.  The run doubles until it holds
    `enough` samples of the slowest torsion (of the energy, without torsions), or most_cpu_s are spent.
    positions (R,N,3) must be samples of the potential: a replica that falls into a hole of the network is
    told by its energy, and left out.
    """
    every = max(1, round(FRAME_FS / dt_fs))
    spacing_ps = every * dt_fs * PS_PER_FS
    recorded, start = Recording(molecule.numbers, molecule.bonds, spacing_ps), time.process_time()
    wanted = max(8, round(FIRST_PS / spacing_ps))
    first = network.energy_and_forces(positions)[0]
    frames = network_dynamics(network, carry, positions, molecule.masses, temperature_K, rng, dt_fs=dt_fs,
                              steps_per_frame=every, frames_per_draw=max(1, round(redraw_ps / spacing_ps)))
    while True:
        for frame in islice(frames, wanted - len(recorded.energies)):
            recorded.add(frame.positions, frame.energy)
        late = np.mean(recorded.energies[-wanted // 4:], axis=0)
        stays = np.abs(late - first.mean()) <= LEFT_SIGMA * max(first.std(), 0.5 * kT(temperature_K))
        if stays.sum() < 0.5 * len(stays):  # NaN stays nowhere
            raise UserError("the network's own dynamics does not stay together, so it can forecast nothing; train "
                            "it further (hot data, more labels)")
        found = samples_of(recorded.series(stays), of_dynamics=True)
        spent = time.process_time() - start
        have = found["torsion"] or (0.0 if found["never_crossed"] else found["energy"])
        if have >= enough or 2.0 * spent > most_cpu_s:
            break
        wanted *= 2
    ps = found["ps"]
    return {"energy": ps / found["energy"], "torsion": found["torsion"] and ps / found["torsion"],
            "label": found["label"], "never_crossed": found["never_crossed"], "simulated_ps": ps, "cpu_s": spent,
            "replicas_lost": int((~stays).sum())}
