"""Trajectory -> k-step windows.

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

import numpy as np

from kstep.errors import UserError
from kstep.schemas import Trajectory
from kstep.scheme_traits import traits_of
from kstep.units import PS_PER_FS

ROLES = ("train", "hot")
N_BLOCKS = 10  # time blocks per replica and role: the grain of splits in time
SHORT_SHARE = 0.15  # of windows of length k/2, and again of k/4: the jump scheme halves on a retry


def check_usable(trajectory: Trajectory, path) -> None:
    """Raise UserError when a trajectory cannot feed a dataset."""
    if len(trajectory.forces) == 0:
        raise UserError(f"{path} stores no forces; run its baseline again with --store-forces")
    if trajectory.is_restrained:
        raise UserError(f"{path} was held by restraints, whose forces it does not store; windows need plain MD without")
    if traits_of(trajectory.metadata).needs_network:
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
