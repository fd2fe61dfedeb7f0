"""Plain trajectories of small spring molecules, a stand-in for a baseline that costs no physics."""

import numpy as np

from kstep.schemas import save_trajectory
from kstep.units import kT

WATER = {"numbers": [8, 1, 1], "masses": [15.999, 1.008, 1.008], "bonds": [[0, 1], [0, 2]],
         "shape": [[0, 0, 0], [0.096, 0, 0], [-0.024, 0.093, 0]]}
METHANOL = {"numbers": [6, 8, 1, 1, 1, 1], "masses": [12.011, 15.999, 1.008, 1.008, 1.008, 1.008],
            "bonds": [[0, 1], [0, 2], [0, 3], [0, 4], [1, 5]],
            "shape": [[0, 0, 0], [0.142, 0, 0], [-0.036, 0.103, 0], [-0.036, -0.051, 0.089],
                      [-0.036, -0.051, -0.089], [0.174, 0.090, 0.01]]}


def energy_and_forces(x, shape):
    """Springs between all pairs, stiff where the pair is short: smooth, anharmonic in x."""
    d = x[:, None] - x[None]
    r = np.sqrt((d * d).sum(-1)) + np.eye(len(x))
    rest = np.sqrt(((shape[:, None] - shape[None]) ** 2).sum(-1)) + np.eye(len(x))
    stiffness = np.where(rest < 0.15, 2.0e5, 1.0e4)
    stretch = r - rest
    forces = -(stiffness * stretch / r)[..., None] * d
    return 0.25 * (stiffness * stretch**2).sum(), forces.sum(1)


def write_trajectory(path, molecule=WATER, *, seed=0, dt_fs=0.5, n_segments=8, segment_steps=100, replicas=2,
                     save_every=1, offset=-500.0, store_forces=True, name="water"):
    """An equilibration segment, then NVE segments of roles train, hot and drift per replica."""
    rng = np.random.default_rng(seed)
    shape, masses = np.array(molecule["shape"], float), np.array(molecule["masses"])
    m, dt = masses[:, None], dt_fs * 1e-3
    rows = {key: [] for key in ("pos", "vel", "forces", "Epot", "Ekin", "step", "replica", "segment")}
    segments = []
    for replica in range(replicas):
        x, step = shape.copy(), 0
        roles = [("equil", 300)] + [("train", 300)] * n_segments + [("hot", 450)] * 2 + [("drift", 300)]
        for role, temperature in roles:
            v = rng.normal(size=x.shape) * np.sqrt(kT(temperature) / m)
            v -= (m * v).sum(0) / m.sum()
            energy, f = energy_and_forces(x, shape)
            segments.append({"replica": replica, "role": role, "ensemble": "NVE", "temperature_K": temperature,
                             "n_dof": 3 * len(masses) - 3})
            for i in range(segment_steps + 1):
                if i % save_every == 0:
                    for key, value in {"pos": x, "vel": v, "forces": f, "Epot": energy + offset, "step": step,
                                       "Ekin": 0.5 * (m * v * v).sum(), "replica": replica,
                                       "segment": len(segments) - 1}.items():
                        rows[key].append(value)
                if i < segment_steps:
                    v = v + 0.5 * dt * f / m
                    x = x + dt * v
                    energy, f = energy_and_forces(x, shape)
                    v = v + 0.5 * dt * f / m
                    step += 1
    arrays = {key: np.array(value) for key, value in rows.items()}
    arrays |= {"Etot": arrays["Epot"] + arrays["Ekin"], "time_ps": arrays["step"] * dt, "masses": masses,
               "masses_sampler": masses, "atom_types": np.array(molecule["numbers"]),
               "bonds": np.array(molecule["bonds"])}
    if not store_forces:
        del arrays["forces"]
    save_trajectory(path, arrays, {
        "units": "nm ps Da kJ/mol", "molecule": name, "smiles": "", "method": "springs", "scheme": "plain",
        "k_steps": 1, "dt_fs": dt_fs, "jump_fs": dt_fs, "temperature_K": 300.0, "seed": seed, "charge": 0,
        "multiplicity": 1, "segments": segments, "true_calls": len(arrays["step"]), "status": "complete"})
    return path
