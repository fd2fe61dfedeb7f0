"""How fast torsions and energy forget, from dynamics that costs no true call.

A trained network, or without one a classical force field, stands in for the true potential: its plain
dynamics gives the correlation times that plain MD will have, its own Metropolis chain (which rejects for
integration errors alone) gives effective samples per proposal at each trajectory length.
"""

from __future__ import annotations

import time

import numpy as np

from kstep.analysis.measure.profile import characterise
from kstep.analysis.measure.statistics import autocorrelation, block_length, block_means, statistical_inefficiency
from kstep.analysis.measure.torsions import count_transitions, find_rotamers, most_samples, rotamer_populations
from kstep.errors import UserError
from kstep.runs.loop import initial_state, run
from kstep.runs.tuning import NetworkAsTruth
from kstep.schemas import Trajectory, complete_trajectory
from kstep.schemes import Metropolis
from kstep.schemes.maxwell import degrees_of_freedom, draw_velocities
from kstep.schemes.state import kinetic_energy
from kstep.units import FS_PER_PS, PS_PER_FS, kT

FRAME_FS = 25.0  # between stored frames of plain dynamics; a torsion forgets in picoseconds
FIRST_PS = 16.0  # per replica; then doubled until there are samples enough
TAIL_PS, TAIL_END = 1.0, 0.35  # the correlation of dynamics is fitted from this time on, down to this value
CHAIN_END = 0.15  # that of a Metropolis chain, and of energies in blocks, from the first lag on
ENERGY_BLOCK_PS = 0.1
LEFT_SIGMA = 4.0  # a replica whose mean energy is this far from where it started is in a hole of the network


def effective_samples(trajectory: Trajectory) -> dict:
    """Effective samples of the potential energy and of the slowest torsion that has two rotamers or more.

    {"energy", "torsion" (None without such a torsion), "label", "never_crossed": labels, "frames", "ps"}.  As in
    `analysis.compare`, with the trajectory's own rotamers, but counted by `correlation_time`, which scatters less
    in a short run.  The energy of dynamics is averaged over 0.1 ps first, since it oscillates.
    Raises UserError when there are no production frames.
    """
    profile = characterise(trajectory)
    if profile is None:
        raise UserError("the trajectory holds no production frames, or fewer than four per replica")
    chain = trajectory.metadata["scheme"] == "metropolis"
    first, end = (1, CHAIN_END) if chain else (round(TAIL_PS / profile.spacing_ps), TAIL_END)
    best, never = None, []
    for d, label in enumerate(profile.coordinates.torsion_labels):
        histogram = profile.histograms["torsions"][:, d].sum(axis=0)
        wells = find_rotamers(histogram)
        if len(wells) < 2:
            continue
        crossings = sum(count_transitions(x[:, d], wells) for x in profile.torsion_series)
        if not crossings:
            never.append(label)
            continue
        time = max(correlation_time([f(np.radians(x[:, [d]])) for x in profile.torsion_series], first, end)
                   for f in (np.cos, np.sin))
        n = min(profile.n_frames / time, most_samples(crossings, rotamer_populations(histogram, wells)))
        if best is None or n < best[0]:
            best = n, label
    length = 1 if chain else block_length(profile.spacing_ps, ENERGY_BLOCK_PS)
    frames = [trajectory.Epot[r][:, None] for r in profile.replicas]
    blocks = [block_means(x, length) for x in frames]
    independent = sum(len(b) for b in blocks) / correlation_time(blocks, 1, CHAIN_END)
    energy = independent * np.concatenate(frames).var() / max(np.concatenate(blocks).var(), 1e-24)
    return {"energy": float(min(energy, profile.n_frames)), "torsion": best and best[0], "label": best and best[1],
            "never_crossed": never, "frames": profile.n_frames, "ps": profile.n_frames * profile.spacing_ps}


def correlation_time(replicas: list[np.ndarray], first: int, end: float) -> float:
    """Frames per effective sample of one observable, (T_r,1) per replica: its correlation C, with a fitted tail.

        g = 1 + 2 sum_{t <= b} C(t) + 2 C(b) / (exp(r) - 1)

    r: slope of a straight line through -ln C between frame `first` and frame b, where C falls below `end`.
    Summing C up to its first zero (`statistics.statistical_inefficiency`) adds the noise of many correlation
    times: in 2000 ps of ethanol's plain dynamics that scatters by half, the fit by a tenth.  Where C does not
    last long enough for a line, that sum is returned.
    """
    correlation = autocorrelation(replicas)[0][:, 0]
    below = correlation < end
    last = int(np.argmax(below)) if below.any() else len(correlation) // 3
    if last - first >= 1 and (correlation[first: last + 1] > 0).all():
        slope = -np.polyfit(np.arange(first, last + 1), np.log(correlation[first: last + 1]), 1)[0]
        if slope > 0:
            return float(1.0 + 2.0 * correlation[1: last + 1].sum() + 2.0 * correlation[last] / np.expm1(slope))
    return float(statistical_inefficiency(replicas)[0])


def _trajectory(molecule, scheme, frames, spacing_ps, temperature_K, masses, dt_fs) -> Trajectory:
    """Frames [(positions (R,N,3), velocities, energy (R,))] as a Trajectory in memory."""
    positions, velocities, energy = (np.array(part) for part in zip(*frames))
    n_frames, n_replicas = energy.shape
    time_ps = np.repeat(spacing_ps * np.arange(1, n_frames + 1), n_replicas)
    kinetic = np.array([kinetic_energy(v, masses) for v in velocities]).ravel()
    replica = np.tile(np.arange(n_replicas), n_frames)
    arrays = complete_trajectory({
        "pos": positions.reshape(-1, *positions.shape[2:]), "vel": velocities.reshape(-1, *positions.shape[2:]),
        "Ekin": kinetic, "Epot": energy.ravel(), "Etot": kinetic + energy.ravel(), "time_ps": time_ps,
        "step": np.rint(time_ps * FS_PER_PS / dt_fs), "replica": replica, "segment": replica,
        "masses": molecule.masses, "masses_sampler": masses, "atom_types": molecule.numbers, "bonds": molecule.bonds})
    segments = [{"replica": r, "role": "train", "ensemble": "NVT", "temperature_K": temperature_K,
                 "n_dof": degrees_of_freedom(len(molecule))} for r in range(n_replicas)]
    return Trajectory(**arrays, metadata={"molecule": molecule.name, "scheme": scheme, "segments": segments})


def metropolis_rates(molecule, network, carry, positions, masses, temperature_K, dt_fs: float, k_steps: int, rng, *,
                     length_law: str, n_proposals: int) -> tuple[dict, np.ndarray]:
    """Effective samples per proposal and acceptance of the stand-in's own chain; and its last positions (R,N,3)."""
    scheme = Metropolis(carry, masses, dt_fs * PS_PER_FS, k_steps, temperature_K, length_law=length_law)
    pool = NetworkAsTruth(network)
    state = run(scheme, pool, initial_state(pool, positions, np.zeros_like(positions)), rng, max(2, n_proposals // 5))
    frames, accepted = [], []

    def keep(state, info):
        frames.append((state.positions, state.velocities, state.energy))
        accepted.append(info.accepted.mean())

    state = run(scheme, pool, state, rng, n_proposals, reporters=[keep])
    found = effective_samples(_trajectory(molecule, "metropolis", frames, k_steps * dt_fs * PS_PER_FS, temperature_K,
                                          masses, dt_fs))
    n = n_proposals * len(positions)
    rates = {"energy": found["energy"] / n, "torsion": found["torsion"] and found["torsion"] / n,
             "acceptance": float(np.mean(accepted)), "label": found["label"], "never_crossed": found["never_crossed"]}
    return rates, state.positions


def plain_rates(molecule, network, carry, positions, temperature_K, dt_fs: float, redraw_ps: float, rng, *,
                enough: float, most_cpu_s: float) -> dict:
    """ps of plain dynamics per effective sample, from the stand-in's dynamics with real masses.

    Velocities are drawn anew every redraw_ps, as baselines do.  The run doubles until it holds
    `enough` samples of the slowest torsion (of the energy, without torsions), or most_cpu_s are spent.
    positions (R,N,3) must be samples of the potential: a replica that falls into a hole of the network is
    told by its energy, and left out.
    """
    masses, x = np.asarray(molecule.masses, dtype=float), positions
    every = max(1, round(FRAME_FS / dt_fs))
    spacing_ps = every * dt_fs * PS_PER_FS
    per_draw = max(1, round(redraw_ps / spacing_ps))
    frames, wanted, start = [], max(8, round(FIRST_PS / spacing_ps)), time.process_time()
    first = network.energy_and_forces(positions)[0]
    while True:
        while len(frames) < wanted:
            if len(frames) % per_draw == 0:
                v = draw_velocities(len(x), masses, temperature_K, rng)
            x, v = carry(x, v, masses, dt_fs * PS_PER_FS, every)
            frames.append((x, v, network.energy_and_forces(x)[0]))
        late = np.mean([energy for _, _, energy in frames[-len(frames) // 4:]], axis=0)
        stays = np.abs(late - first.mean()) <= LEFT_SIGMA * max(first.std(), 0.5 * kT(temperature_K))
        if stays.sum() < 0.5 * len(stays):  # NaN stays nowhere
            raise UserError("the network's own dynamics does not stay together, so it can forecast nothing; train "
                            "it further (hot data, more labels)")
        found = effective_samples(_trajectory(molecule, "plain", [[a[stays] for a in frame] for frame in frames],
                                              spacing_ps, temperature_K, masses, dt_fs))
        spent = time.process_time() - start
        have = found["torsion"] or (0.0 if found["never_crossed"] else found["energy"])
        if have >= enough or 2.0 * spent > most_cpu_s:
            break
        wanted *= 2
    ps = found["ps"]
    return {"energy": ps / found["energy"], "torsion": found["torsion"] and ps / found["torsion"],
            "label": found["label"], "never_crossed": found["never_crossed"], "simulated_ps": ps, "cpu_s": spent,
            "replicas_lost": int((~stays).sum())}
