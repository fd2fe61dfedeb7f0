"""A synthetic ethanol whose distributions are known exactly, for tests of the judgement.

Bonds and angles are independent AR(1) processes, the O-H torsion jumps between three wells,
velocities are Maxwell; nothing is integrated, so thousands of frames cost milliseconds.
"""

import numpy as np

from kstep.schemas import Trajectory, complete_trajectory
from kstep.units import BOLTZMANN

NUMBERS = np.array([6, 6, 8, 1, 1, 1, 1, 1, 1])
MASSES = np.where(NUMBERS == 6, 12.011, np.where(NUMBERS == 8, 15.999, 1.008))
# atom, bonded to, angle to, torsion to, length (nm), angle (deg), torsion (deg)
Z_MATRIX = [
    (1, 0, None, None, 0.1520, None, None),
    (2, 1, 0, None, 0.1420, 108.0, None),
    (3, 0, 1, 2, 0.1095, 110.5, 180.0), (4, 0, 1, 2, 0.1095, 110.5, 60.0), (5, 0, 1, 2, 0.1095, 110.5, -60.0),
    (6, 1, 0, 2, 0.1100, 110.0, 120.0), (7, 1, 0, 2, 0.1100, 110.0, -120.0),
    (8, 2, 1, 0, 0.0965, 108.5, None),
]
BONDS = np.array([sorted((a, b)) for a, b, *_ in Z_MATRIX])
WELLS = np.array([180.0, 60.0, -60.0])
T_K = 300.0


def autoregressive(rng, n, columns, correlation):
    """AR(1) series of unit variance; its statistical inefficiency is (1 + c) / (1 - c)."""
    from scipy.signal import lfilter

    noise = rng.standard_normal((n, columns)) * np.sqrt(1.0 - correlation**2)
    noise[0] /= np.sqrt(1.0 - correlation**2)
    return lfilter([1.0], [1.0, -correlation], noise, axis=0)


def place(a, b, c, length, angle, torsion):
    """Position of an atom bonded to a, with the angle to b and the torsion to c; all (T, ...)."""
    ab = (a - b) / np.linalg.norm(a - b, axis=1, keepdims=True)
    normal = np.cross(b - c, ab)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    other = np.cross(normal, ab)
    sine = np.sin(angle)
    local = np.stack([-np.cos(angle), sine * np.cos(torsion), sine * np.sin(torsion)], axis=1) * length[:, None]
    return a + local[:, :1] * ab + local[:, 1:2] * other + local[:, 2:] * normal


def one_replica(rng, n, correlation, hop, bond_shift_A, well=None):
    """Positions (T,9,3) in nm and potential energy (T,) in kJ/mol."""
    noise = autoregressive(rng, n, 16, correlation)
    hops = np.where(rng.random(n) < hop, rng.integers(0, 3, n), -1)
    hops[0] = rng.integers(0, 3) if well is None else well
    state = hops[np.maximum.accumulate(np.where(hops >= 0, np.arange(n), 0))]
    if well is not None:
        state[:] = well
    pos = np.zeros((n, 9, 3))
    for row, (atom, a, b, c, length, angle, torsion) in enumerate(Z_MATRIX):
        length = length + 0.1 * bond_shift_A + 0.003 * noise[:, row]
        if b is None:
            pos[:, atom, 0] = length
            continue
        angle = np.radians(angle + 3.0 * noise[:, 8 + row - 1])
        if c is None:
            pos[:, atom] = pos[:, a] + length[:, None] * np.stack(
                [-np.cos(angle), np.sin(angle), 0 * angle], axis=1)
            continue
        phi = np.radians(WELLS[state] + 12.0 * noise[:, 15] if torsion is None else np.full(n, torsion))
        pos[:, atom] = place(pos[:, a], pos[:, b], pos[:, c], length, angle, phi)
    energy = 0.5 * BOLTZMANN * T_K * (noise**2).sum(axis=1)
    return pos, energy


def maxwell(rng, n, masses, temperature_K=T_K):
    """Velocities (T,N,3) in nm/ps without centre-of-mass motion."""
    v = rng.standard_normal((n, len(masses), 3)) * np.sqrt(BOLTZMANN * temperature_K / masses)[:, None]
    return v - np.einsum("n,tni->ti", masses / masses.sum(), v)[:, None]


def ethanol(seed=0, replicas=4, frames=2000, *, correlation=0.8, hop=0.02, bond_shift_A=0.0, spacing_ps=0.1,
            scheme="plain", velocity_scale=1.0, drift=None, wells=None, delta_H_sigma=None,
            drift_frames=60, **metadata) -> Trajectory:
    """A trajectory of the synthetic ethanol; `drift` (kJ/mol/ps) adds four NVE windows per replica."""
    rng = np.random.default_rng(seed)
    parts = {key: [] for key in ("pos", "vel", "Epot", "Ekin", "time_ps", "step", "replica", "segment")}
    etot, segments = [], []
    steps_per_frame = max(1, round(spacing_ps / 0.0005))

    def add(n, replica, role, ensemble, n_dof, start, total=None):
        pos, epot = one_replica(rng, n, correlation, hop, bond_shift_A, None if wells is None else wells[replica])
        vel = velocity_scale * maxwell(rng, n, MASSES)
        ekin = 0.5 * np.einsum("n,tni->t", MASSES, vel**2)
        step = (start + 1 + np.arange(n)) * steps_per_frame
        for key, value in (("pos", pos), ("vel", vel), ("Epot", epot), ("Ekin", ekin), ("step", step),
                           ("time_ps", step * 0.0005), ("replica", np.full(n, replica)),
                           ("segment", np.full(n, len(segments)))):
            parts[key].append(value)
        etot.append(epot + ekin if total is None else total(step * 0.0005))
        segments.append({"replica": replica, "role": role, "ensemble": ensemble, "temperature_K": T_K,
                         "n_dof": n_dof})

    for r in range(replicas):
        add(20, r, "equil", "NVT", 24, 0)
        add(frames, r, "train", "NVT", 24, 20)
        if drift is not None:
            for w in range(4):
                add(drift_frames, r, "drift", "NVE", 21, 20 + frames + drift_frames * w,
                    lambda t: 40.0 + drift * (t - t[0]) + 0.05 * rng.standard_normal(len(t)))
    arrays = {key: np.concatenate(value) for key, value in parts.items()}
    n = len(arrays["pos"])
    if scheme == "metropolis":
        sigma = delta_H_sigma or 0.3
        arrays["delta_H"] = BOLTZMANN * T_K * (sigma * rng.standard_normal(n) + 0.5 * sigma**2)
        arrays["accepted"] = rng.random(n) < np.exp(-np.clip(arrays["delta_H"] / (BOLTZMANN * T_K), 0, None))
    if scheme != "plain":
        arrays["attempts"] = np.ones(n, dtype=int)
        arrays["inner_steps"] = np.full(n, steps_per_frame)
    arrays = complete_trajectory({
        **arrays, "Etot": np.concatenate(etot), "masses": MASSES, "masses_sampler": MASSES, "atom_types": NUMBERS,
        "bonds": BONDS})
    calls = n if scheme != "plain" else int(arrays["step"].max()) * replicas
    return Trajectory(**arrays, metadata={
        "molecule": "ethanol", "smiles": "CCO", "method": "synthetic", "scheme": scheme, "dt_fs": 0.5,
        "k_steps": steps_per_frame if scheme != "plain" else 1, "jump_fs": 1e3 * spacing_ps, "temperature_K": T_K,
        "true_calls": calls, "true_calls_training": 0, "wall_s": 10.0, "cpu_s": 20.0, "status": "complete",
        "segments": segments, **metadata})


def save(path, trajectory):
    """Write a Trajectory with save_trajectory."""
    from kstep.schemas import save_trajectory

    arrays = {k: v for k, v in vars(trajectory).items() if k != "metadata"}
    save_trajectory(path, arrays, trajectory.metadata)
