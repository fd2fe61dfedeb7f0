"""Trajectory -> k-step windows -> dataset.

A window is a stretch of plain NVE dynamics: the state at its start (x_t, v_t, f_t), k timesteps
later the state at its end, and the velocity half a step before the end,

    v_half = v(t + k dt) - (dt / 2 m) F(t + k dt),

which is what the jump head predicts, since the closing half-kick is left to the true force.
Its start and end are also labels (energy and forces) for the energy head.

Windows come from segments of role train and hot alone, lie inside one segment (no velocity
redraw, no thermostat) and inside one time block, so that splits in time share no frame.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from kstep.errors import UserError
from kstep.files import sha256
from kstep.schemas import Trajectory, load_trajectory
from kstep.units import PS_PER_FS

ROLES = ("train", "hot")
N_BLOCKS = 10  # time blocks per replica and role: the grain of splits in time
SHORT_SHARE = 0.15  # of windows of length k/2, and again of k/4: the jump scheme halves on a retry


def find_trajectories(root: str | Path, molecules: list[str] | None = None) -> dict[str, Path]:
    """{molecule name: <root>/<name>/trajectory.npz}, sorted by name."""
    root = Path(root)
    found = {path.parent.name: path for path in sorted(root.glob("*/trajectory.npz"))}
    if not found:
        raise UserError(f"no trajectory found under {root}: expected {root}/<name>/trajectory.npz; "
                        "run 01_run_md_baselines.py or 01b_run_qm_baselines.py first")
    for name in molecules or []:
        if name not in found:
            raise UserError(f"{root}/{name}/trajectory.npz does not exist; found: {', '.join(found)}")
    return {name: found[name] for name in molecules or found}


def check_usable(trajectory: Trajectory, path) -> None:
    """Raise UserError when a trajectory cannot feed a dataset."""
    if len(trajectory.forces) == 0:
        raise UserError(f"{path} stores no forces; run its baseline again with --store-forces")
    if trajectory.metadata.get("scheme", "plain") != "plain":
        raise UserError(f"{path} was made by scheme '{trajectory.metadata['scheme']}'; windows need plain MD")
    if not np.array_equal(trajectory.masses, trajectory.masses_sampler):
        raise UserError(f"{path} holds velocities of other masses than the physical ones; windows need plain MD")


def time_blocks(trajectory: Trajectory, n_blocks: int = N_BLOCKS) -> np.ndarray:
    """Time block (T,) of each frame, 0..n_blocks-1 within its replica and role; -1 for other roles."""
    block = np.full(len(trajectory.step), -1, dtype=np.int64)
    for role in ROLES:
        frames = trajectory.frames_of(role)
        for replica in np.unique(trajectory.replica[frames]):
            own = frames[trajectory.replica[frames] == replica]
            block[own] = np.arange(len(own)) * n_blocks // len(own)
    return block


def cut(trajectory: Trajectory, k: int, block: np.ndarray) -> tuple[np.ndarray, np.ndarray, Counter]:
    """Start and end frames of all windows of k timesteps, and a count of what was dropped and why."""
    starts, ends, dropped = [], [], Counter()
    for index, segment in enumerate(trajectory.segments):
        frames = np.flatnonzero(trajectory.segment == index)
        if segment["role"] not in ROLES:
            dropped[f"frames of role {segment['role']}"] += len(frames)
            continue
        if segment["ensemble"] != "NVE":
            dropped[f"frames with thermostat noise ({segment['ensemble']})"] += len(frames)
            continue
        if len(frames) == 0:
            continue
        step = trajectory.step[frames]
        if (np.diff(step) <= 0).any():
            raise UserError(f"segment {index} of the trajectory is out of order: its steps do not increase")
        partner = np.searchsorted(step, step + k)
        inside = partner < len(step)
        partner[~inside] = 0
        exact = inside & (step[partner] == step + k)
        dropped["windows past the end of a segment"] += int((~inside).sum())
        dropped["windows whose end falls between stored frames"] += int((inside & ~exact).sum())
        same = block[frames] == block[frames[partner]]
        dropped["windows across a time block border"] += int((exact & ~same).sum())
        keep = exact & same
        starts.append(frames[keep])
        ends.append(frames[partner[keep]])
    if not starts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), dropped
    return np.concatenate(starts), np.concatenate(ends), dropped


def _evenly(n: int, wanted: int) -> np.ndarray:
    """`wanted` of the indices 0..n-1, evenly spaced."""
    return np.arange(n) if wanted >= n else np.linspace(0, n - 1, wanted).astype(np.int64)


def _thin(trajectory: Trajectory, starts: np.ndarray, stride: int) -> np.ndarray:
    """Indices of starts at least `stride` timesteps apart within their segment."""
    segment = trajectory.segment[starts]
    first = np.unique(segment, return_index=True)[1]
    origin = np.zeros(len(starts), dtype=np.int64)
    origin[first] = np.diff(np.append(first, len(starts)))
    offset = trajectory.step[starts] - np.repeat(trajectory.step[starts[first]], origin[first])
    slot = offset // stride
    new = np.ones(len(starts), dtype=bool)
    new[1:] = (slot[1:] != slot[:-1]) | (segment[1:] != segment[:-1])
    return np.flatnonzero(new)


def windows_of(trajectory: Trajectory, k: int, *, stride: int | None, max_samples: int) -> tuple[dict, Counter]:
    """Windows of k (and a share of k/2 and k/4) timesteps of one trajectory.

    stride: timesteps between starts (None: k, so that windows touch).  Returns the per-window
    arrays of the dataset schema with (P,N,3) coordinates, and what was dropped and why.
    """
    block = time_blocks(trajectory)
    shorter = [k // part for part in (2, 4) if k % part == 0]
    n_long = max(1, round(max_samples / (1 + SHORT_SHARE * len(shorter))))
    chosen, dropped = [], Counter()
    for length in [k, *shorter]:
        starts, ends, why = cut(trajectory, length, block)
        if length == k:
            dropped = why
            if len(starts) == 0:
                return {}, dropped
        keep = _thin(trajectory, starts, stride or k)
        wanted = n_long if length == k else max(1, round(SHORT_SHARE * len(chosen[0][0])))
        picked = keep[_evenly(len(keep), wanted)]
        if length == k:
            dropped[f"windows by the stride of {stride or k} timesteps"] = len(starts) - len(keep)
            dropped[f"windows beyond --max-samples-per-mol {max_samples}"] = len(keep) - len(picked)
        chosen.append((starts[picked], ends[picked], np.full(len(picked), length)))
    start, end, k_steps = (np.concatenate(parts) for parts in zip(*chosen))
    half_kick = 0.5 * trajectory.metadata["dt_fs"] * PS_PER_FS / trajectory.masses[:, None]
    temperature = np.array([s["temperature_K"] for s in trajectory.segments], dtype=float)
    return {
        "x_t": trajectory.pos[start], "v_t": trajectory.vel[start], "f_t": trajectory.forces[start],
        "x_tk": trajectory.pos[end], "v_tk": trajectory.vel[end], "f_tk": trajectory.forces[end],
        "v_half": trajectory.vel[end] - half_kick * trajectory.forces[end],
        "epot_t": trajectory.Epot[start], "epot_tk": trajectory.Epot[end],
        "temperature_K": temperature[trajectory.segment[start]],
        "frame": start, "block": block[start], "k_steps": k_steps,
    }, Counter({why: n for why, n in dropped.items() if n})


def turn_randomly(windows: dict, copies: int, rng: np.random.Generator) -> dict:
    """Add `copies` randomly rotated copies of each window (equivariant models do not need them)."""
    vectors = ("x_t", "v_t", "f_t", "x_tk", "v_tk", "f_tk", "v_half")
    out = {key: [value] for key, value in windows.items()}
    n = len(windows["frame"])
    for _ in range(copies):
        # QR of a Gaussian matrix with the signs of R taken out is uniform over O(3).
        q, r = np.linalg.qr(rng.normal(size=(n, 3, 3)))
        q *= np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]
        q[:, :, 0] *= np.sign(np.linalg.det(q))[:, None]
        for key, value in windows.items():
            out[key].append(np.einsum("pni,pji->pnj", value, q) if key in vectors else value)
    return {key: np.concatenate(parts) for key, parts in out.items()}


def build_dataset(paths: dict[str, Path], k: int, *, stride: int | None = None, max_samples: int = 10000,
                  rotations: int = 0, seed: int = 0) -> tuple[dict, dict]:
    """Dataset arrays and metadata (schema `dataset`) of windows of k timesteps over all molecules.

    paths: {name: trajectory file}.  Raises UserError for k < 1, mixed timesteps, missing forces
    or when no window fits.
    """
    if k < 1:
        raise UserError(f"k = {k} is not a number of timesteps >= 1")
    parts, molecules, inputs, dropped = [], [], [], {}
    statics = {key: [] for key in ("atom_types", "masses", "bonds", "charge", "multiplicity")}
    dt_fs, true_calls = None, 0
    for index, (name, path) in enumerate(paths.items()):
        trajectory = load_trajectory(path)
        check_usable(trajectory, path)
        meta = trajectory.metadata
        if dt_fs is not None and meta["dt_fs"] != dt_fs:
            raise UserError(f"{path} has dt_fs {meta['dt_fs']}, the trajectories before it {dt_fs}; "
                            "one dataset needs one timestep")
        dt_fs = meta["dt_fs"]
        windows, why = windows_of(trajectory, k, stride=stride, max_samples=max_samples)
        if not windows:
            raise UserError(f"{path}: no window of k = {k} timesteps fits into its segments of role "
                            f"{' or '.join(ROLES)}; frames must be stored at multiples that divide k")
        if rotations:
            windows = turn_randomly(windows, rotations, np.random.default_rng([seed, index]))
        parts.append({**windows, "molecule_id": np.full(len(windows["frame"]), index)})
        statics["atom_types"].append(trajectory.atom_types)
        statics["masses"].append(trajectory.masses)
        statics["bonds"].append(trajectory.bonds)
        statics["charge"].append(int(meta.get("charge", 0)))
        statics["multiplicity"].append(int(meta.get("multiplicity", 1)))
        molecules.append({"name": name, "smiles": meta.get("smiles", ""), "method": meta.get("method", "")})
        inputs.append({"molecule": name, "sha256": sha256(path)})
        true_calls += int(meta.get("true_calls", 0))
        dropped[name] = dict(why)
    methods = sorted({m["method"] for m in molecules})
    if len(methods) > 1:
        raise UserError(f"the trajectories mix methods ({', '.join(methods)}); one dataset needs one")
    per_molecule = [len(types) for types in statics["atom_types"]]
    per_window = np.concatenate([np.full(len(p["frame"]), n) for p, n in zip(parts, per_molecule)])
    arrays = {}
    for key in parts[0]:
        flat = [p[key].reshape(-1, 3) if p[key].ndim == 3 else p[key] for p in parts]
        arrays[key] = np.concatenate(flat)
    arrays |= {
        "ptr": np.concatenate([[0], np.cumsum(per_window)]),
        "dt_fs": np.array(float(dt_fs)),
        "mol_ptr": np.concatenate([[0], np.cumsum(per_molecule)]),
        "bond_ptr": np.concatenate([[0], np.cumsum([len(b) for b in statics["bonds"]])]),
        "charge": np.array(statics["charge"], dtype=np.int64),
        "multiplicity": np.array(statics["multiplicity"], dtype=np.int64),
        **{key: np.concatenate(statics[key]) for key in ("atom_types", "masses", "bonds")},
    }
    metadata = {
        "units": "nm ps Da kJ/mol", "molecules": molecules, "method": methods[0], "k_steps": k,
        "dt_fs": float(dt_fs), "jump_fs": k * float(dt_fs), "stride": stride or k, "roles": list(ROLES),
        "n_blocks": N_BLOCKS, "rotations": rotations, "seed": seed, "inputs": inputs,
        "true_calls": true_calls, "dropped": dropped,
    }
    return arrays, metadata
