"""The network's own dynamics, long: how fast plain dynamics forgets, where plain runs are too short to say.

Network force, physical masses, 1 fs, and the velocity redraws of the plain reference; the true
physics is asked now and then and certifies, it changes nothing.  A replica that leaves its species, which the truth
does not do in so short a time, goes on from where it was before; that is counted.  Kept are the observables, not the
positions:

    energy    (R,T)    kJ/mol  of the network
    torsions  (R,T,D)  degrees, rotatable torsions in the order of analysis.geometry
    metadata: spacing_ps, length_ps, labels, certificate (runs.certificate), true_calls, cpu_s, wall_s,
    us_per_replica_step, times_outside, checkpoint_sha256
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

from kstep.analysis.measure.samples import Recording, Series
from kstep.errors import PhysicsError
from kstep.files import sha256
from kstep.forces.pool import make_pool
from kstep.npz import read_npz, write_npz
from kstep.progress import progress_bar
from kstep.runs.certificate import Certificate
from kstep.runs.network_dynamics import Carrier, make_carrier, network_dynamics
from kstep.runs.run_network import recipe_of
from kstep.schemas import load_trajectory
from kstep.units import PS_PER_FS

DT_FS = 1.0
SPACING_PS = 0.05
CHECK_PS = 10.0  # of one replica's dynamics per true call
MOST_OUTSIDE = 0.1  # times that a replica may leave its species, on average
INNER_STEPS, INNER_REPLICAS = 200, 64


def run(out: Path, molecule, spec, checkpoint: Path, starts: np.ndarray, *, method: str, temperature_K: float,
        length_ps: float, redraw_ps: float, seed: int, n_workers: int) -> None:
    """Carry replicas from starts (R,N,3) nm for length_ps each and write `out`."""
    recipe = recipe_of(molecule, method)
    arguments = {**recipe.arguments, "checkpoint": checkpoint}
    network = recipe.load(**arguments)
    carry = make_carrier(network, recipe.load, arguments, min(n_workers, len(starts)))
    recording = Recording(molecule.numbers, molecule.bonds, SPACING_PS)
    per_frame = round(SPACING_PS / PS_PER_FS / DT_FS)
    n_frames = max(1, round(length_ps / SPACING_PS))
    frames_per_check = max(1, min(round(CHECK_PS / SPACING_PS), n_frames))
    certificate, wall, cpu = Certificate(), time.perf_counter(), time.process_time()
    frames = network_dynamics(network, carry, starts, molecule.masses, temperature_K, np.random.default_rng([seed, 2]),
                              dt_fs=DT_FS, steps_per_frame=per_frame,
                              frames_per_draw=max(1, round(redraw_ps / SPACING_PS)),
                              inside=molecule.species().inside)
    outside, before = 0, starts
    try:
        with make_pool(spec, n_workers) as pool:
            for done in progress_bar(iterable=range(1, n_frames + 1), unit="frame", desc="the network's dynamics"):
                frame = next(frames)
                if not np.isfinite(frame.energy).all():
                    raise PhysicsError(f"the network's own dynamics broke after {done * SPACING_PS:g} ps; train it on "
                                       "more of what the molecule does")
                outside += int((frame.positions == before).all(axis=(1, 2)).sum())
                if outside > MOST_OUTSIDE * len(starts):
                    raise PhysicsError(f"replicas of the network's own dynamics left the species {outside} times in "
                                       f"{done * SPACING_PS:g} ps; train it on more of what the molecule does")
                before = frame.positions
                recording.add(frame.positions, frame.energy)
                if done % frames_per_check == 0:
                    truth = pool.evaluate(frame.positions)
                    if truth.failed.any():
                        first = int(np.argmax(truth.failed))
                        raise PhysicsError(f"the network's own dynamics went where the true physics fails, after "
                                           f"{done * SPACING_PS:g} ps: {truth.messages[first]}")
                    certificate.add_pairs(truth.energy - frame.energy, truth.forces - frame.forces)
            cpu_s = time.process_time() - cpu + carry.cpu_s
            calls = pool.true_calls
    finally:
        carry.close()
    series = recording.series()
    metadata = {
        "molecule": molecule.name, "method": method, "spacing_ps": SPACING_PS, "length_ps": n_frames * SPACING_PS,
        "redraw_ps": redraw_ps, "dt_fs": DT_FS, "temperature_K": temperature_K, "labels": series.labels,
        "certificate": certificate.figures(), "true_calls": calls, "cpu_s": cpu_s, "wall_s": time.perf_counter() - wall,
        "us_per_replica_step": 1e6 * cpu_s / (n_frames * per_frame * len(starts)),
        "times_outside": outside, "checkpoint_sha256": sha256(checkpoint)}
    write_npz(out, {"energy": np.array(series.energy), "torsions": np.array(series.torsions),
                    "metadata": np.array(json.dumps(metadata))})


def last_frames(path: Path) -> np.ndarray:
    """Positions (R,N,3) nm where each replica of a finished run stands; of an exact sampler, samples of the truth."""
    trajectory = load_trajectory(path)
    frames = trajectory.frames_of("train", "reference")
    ends = [frames[trajectory.replica[frames] == r] for r in np.unique(trajectory.replica[frames])]
    return trajectory.pos[[rows[np.argmax(trajectory.step[rows])] for rows in ends]].copy()


def load(path: Path) -> tuple[Series, dict]:
    """The series that `run` wrote, and its metadata."""
    arrays = read_npz(path)
    metadata = json.loads(str(arrays["metadata"]))
    series = Series(list(arrays["energy"]), list(arrays["torsions"]), metadata["labels"], metadata["spacing_ps"])
    return series, metadata


def inner_step_us(molecule, checkpoint: Path, method: str) -> dict:
    """Microseconds of one core for one timestep of one of 64 replicas: energy, force and Verlet; the best of five."""
    recipe = recipe_of(molecule, method)
    network = recipe.load(checkpoint=checkpoint, **recipe.arguments)
    carry = Carrier(network)
    x = np.repeat(molecule.conformers[:1], INNER_REPLICAS, axis=0)
    v = np.zeros_like(x)

    def seconds():
        start = time.process_time()
        carry(x, v, molecule.masses, 0.5 * PS_PER_FS, INNER_STEPS)
        return time.process_time() - start

    return {"us_per_replica_step": 1e6 * min(seconds() for _ in range(5)) / (INNER_STEPS * INNER_REPLICAS),
            "replicas": INNER_REPLICAS, "architecture": network.metadata["arch"]}
