"""Run the plan of a baseline for one replica, with restart files; join the replicas into one file."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kstep.config import BaselineConfig
from kstep.molecules.molecule import Molecule
from kstep.runs.accounting import Account
from kstep.runs.baseline_plan import plan_baseline
from kstep.runs.coverage import SpeciesWatch, describe_changes
from kstep.runs.recorder import TrajectoryWriter, facts_of_run, join_replicas
from kstep.runs.starts import Starts
from kstep.schemes import CONTROL
from kstep.schemes.maxwell import degrees_of_freedom, draw_velocities
from kstep.units import BOLTZMANN, PS_PER_FS

RESTART_S = 60.0  # between two restart files, where many timesteps take long
FAR_OFF = 0.3  # of the temperature that was set, and then
SURELY = 4.0  # standard errors too

log = logging.getLogger("kstep")


def run_baseline(engine, writer: TrajectoryWriter, positions: np.ndarray, config: BaselineConfig, *,
                 replica: int, seed: int, resume: bool, checkpoint_interval_steps: int | None = None,
                 progress: Callable[[int], None] = lambda n: None,
                 watch: SpeciesWatch | None = None) -> dict[str, Any]:
    """Carry one replica from `positions` (N,3) nm through the whole plan.

    Returns its true_calls, wall_s and cpu_s, those of an earlier part included.  `progress(n)` is told of
    every n finished timesteps, watch of the frames.  A restart file is written between stretches, where nothing is
    remembered: at the first border after each checkpoint_interval_steps (None: the engine's own), or after a minute.
    """
    account = Account()
    account.charge(engine, None)
    masses = np.asarray(writer.constants["masses"])
    plan = plan_baseline(config)
    saved = writer.resume() if resume else None
    if saved is None:
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(replica,)))
        state = engine.start(positions, np.zeros_like(positions))
        writer.start_over()  # only now: a start that fails costs an earlier run nothing
        engine.begin(0, fresh=not resume)
        first = 0
        if watch is not None:
            watch.see(state.positions, 0.0, np.array([replica]))
    else:
        state, rng, done = saved
        first = done["stretch"]
        account.go_on(done["spent"])
        engine.begin(first)
        if watch is not None:
            watch.go_on(done.get("species"))
        progress(sum(s.n_steps for s in plan[:first]))
    interval = checkpoint_interval_steps or engine.restart_interval_steps
    n_dof = degrees_of_freedom(len(masses))
    since_checkpoint, written = 0, time.monotonic()
    for number, stretch in enumerate(plan[first:], start=first):
        engine.forget()
        if stretch.redraw:
            state = replace(state, velocities=draw_velocities(1, masses, stretch.temperature_K, rng))
        segment = writer.open_segment(replica, stretch.role, stretch.ensemble, stretch.temperature_K, n_dof)

        def record(frame, segment=segment):
            writer.add(frame, config.dt_fs, replica, segment)
            if watch is not None:
                watch.see(frame.positions, frame.step * config.dt_fs * PS_PER_FS, np.array([replica]))

        if stretch.role == "equil":
            every, record_frame = stretch.n_steps, record  # its last frame is enough
        else:
            every, record_frame = config.save_interval_steps, record
            record(state)
        state = engine.run(state, stretch, rng, every, record_frame)
        progress(stretch.n_steps)
        since_checkpoint += stretch.n_steps
        late = time.monotonic() - written > RESTART_S
        if (since_checkpoint >= interval or late) and number + 1 < len(plan):
            writer.checkpoint(state, rng, {"stretch": number + 1, "spent": account.so_far(),
                                           "species": watch.kept if watch is not None else None})
            engine.begin(number + 1)
            since_checkpoint, written = 0, time.monotonic()
    return {key: account.so_far()[key] for key in ("true_calls", "wall_s", "cpu_s")}


def finish_baseline(out: Path, pieces: list[Path], molecule: Molecule, config: BaselineConfig, *, seed: int,
                    first_replica: int, true_calls: int, wall_s: float, cpu_s: float, facts: dict,
                    species_changes: list[dict] | None = None, starts: Starts | None = None) -> str:
    """Join the replicas of `pieces` into `out`, remove them, and say in one clause what came out.

    true_calls, wall_s, cpu_s: of the dynamics, to which come those of the starts; facts: the metadata that is the
    backend's own (method, backend, charge, versions ...); species_changes: of the replicas, as numbered in `out` (see
    kstep.runs.coverage).
    """
    of_run = facts_of_run(molecule, CONTROL, config, k_steps=1, method=facts["method"], seed=seed)
    changed = describe_changes(species_changes or [], len(pieces))
    of_starts, paid = (starts.caveats, starts.spent) if starts is not None else ([], {})
    temperature_K, n_drawn = _temperature_of(pieces, len(molecule))
    wrong = off_temperature(temperature_K, config.temperature_K, degrees_of_freedom(len(molecule)) * n_drawn)
    if wrong:
        log.warning("%s: %s", molecule.name, wrong)
    join_replicas(out, pieces, {
        **of_run, "caveats": [*of_run["caveats"], *of_starts, *filter(None, [changed, wrong])],
        "species_changes": species_changes or [],
        "first_replica": first_replica, "charge": molecule.charge, "multiplicity": molecule.multiplicity,
        "true_calls": true_calls + paid.get("true_calls", 0), "true_calls_training": 0,
        "wall_s": wall_s + paid.get("wall_s", 0.0), "cpu_s": cpu_s + paid.get("cpu_s", 0.0), "status": "finished",
        **({"starts": starts.record} if starts is not None else {}),
        **facts})
    for piece in pieces:
        piece.unlink()
    ps = true_calls * config.dt_fs * PS_PER_FS
    return ", ".join(filter(None, [f"{len(pieces)} replicas", f"{ps:.1f} ps", f"mean temperature {temperature_K:.0f} K",
                                   changed]))


def _temperature_of(pieces: list[Path], n_atoms: int) -> tuple[float, int]:
    """Mean temperature in K of production (NaN: there is none), and how often its velocities were drawn."""
    kinetic, n_drawn = [], 0
    for piece in pieces:
        with np.load(piece, allow_pickle=False) as archive:  # of which these arrays alone are read
            segments = json.loads(str(archive["metadata"]))["segments"]
            train = [i for i, segment in enumerate(segments) if segment["role"] == "train"]
            kinetic.append(archive["Ekin"][np.isin(archive["segment"], train)])
        n_drawn += len(train)
    mean = np.concatenate(kinetic)
    return (2 * float(mean.mean()) / (degrees_of_freedom(n_atoms) * BOLTZMANN) if len(mean) else float("nan")), n_drawn


def off_temperature(measured_K: float, wanted_K: float, n_drawn: int) -> str:
    """One clause where a run was not at its temperature, else ''; n_drawn: independent components of velocities.

    The mean of n squares of Gaussians spreads by sqrt(2/n) of itself.
    """
    off = abs(measured_K / wanted_K - 1.0)
    if not off > max(FAR_OFF, SURELY * np.sqrt(2.0 / max(n_drawn, 1))):
        return ""
    return (f"its mean temperature was {measured_K:.0f} K where {wanted_K:.0f} K were set: it started far from "
            "equilibrium and was too short to forget that, or its timestep is too long")
