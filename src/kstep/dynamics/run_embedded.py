"""One run of a QM/MM system, plain or metropolis, from start geometries to a trajectory file."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kstep.dynamics.langevin import LangevinThermostat
from kstep.dynamics.loop import initial_state, macro_steps
from kstep.dynamics.maxwell import degrees_of_freedom, draw_velocities
from kstep.dynamics.recorder import TrajectoryWriter
from kstep.dynamics.tally import Tally
from kstep.forces.pool import EvaluationPool
from kstep.units import FS_PER_PS, kT

FRICTION_PER_PS = 5.0


@dataclass(frozen=True)
class EmbeddedRun:
    """What a run is: starts (R,N,3) nm, physical masses (N,) Da, spec of the true physics, and where it goes.

    thermostat: around `plain`; without, it is NVE.
    """

    spec: object
    starts: np.ndarray
    masses: np.ndarray
    bonds: np.ndarray
    temperature_K: float
    steps: int
    burn_in_steps: int
    out: Path
    seed: int = 0
    thermostat: bool = False


def run_embedded(run: EmbeddedRun, scheme, facts: dict) -> dict:
    """Run `scheme` for burn-in and production, write run.out, return its metadata (facts and what was measured)."""
    rng = np.random.default_rng([run.seed, 5])
    n_replicas, began, cpu = len(run.starts), time.perf_counter(), time.process_time()
    is_nve = scheme.name == "plain" and not run.thermostat
    thermostat = LangevinThermostat(run.temperature_K, FRICTION_PER_PS, scheme.masses) if run.thermostat else None
    writer = TrajectoryWriter(run.out, masses=run.masses, masses_sampler=scheme.masses, atom_types=run.spec.numbers,
                              bonds=run.bonds, fingerprint=facts, store_forces=False)
    writer.start_over()
    tally = Tally()
    dt_fs = scheme.dt_ps * FS_PER_PS
    try:
        with EvaluationPool(run.spec, 1) as pool:
            state = initial_state(pool, run.starts, draw_velocities(n_replicas, scheme.masses, run.temperature_K, rng))

            def stretch(state, n, role):
                segments = [writer.open_segment(r, role, "NVE" if is_nve else "NVT", run.temperature_K,
                                                degrees_of_freedom(len(run.masses))) for r in range(n_replicas)]
                for state in macro_steps(scheme, pool, state, rng, n, thermostat=thermostat):
                    writer.add(state, dt_fs, np.arange(n_replicas), segments, hybrid=True)
                    if role != "equil":
                        tally.add(state, scheme, 1.0 / kT(run.temperature_K))
                return state

            if run.burn_in_steps:
                state = stretch(state, run.burn_in_steps, "equil")
            burn_in = {"true_calls_burn_in": pool.true_calls, "wall_burn_in_s": time.perf_counter() - began,
                       "cpu_burn_in_s": time.process_time() - cpu}
            stretch(state, run.steps, "drift" if is_nve else "train")
            metadata = {**facts, "units": "nm ps Da kJ/mol K", "scheme": scheme.name, "k_steps": scheme.k_steps,
                        "dt_fs": dt_fs, "jump_fs": scheme.k_steps * dt_fs, "temperature_K": run.temperature_K,
                        "seed": run.seed, "replicas": n_replicas, "true_calls": pool.true_calls, **burn_in,
                        "wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu,
                        "failed_true_calls": pool.failures[:100], "status": "finished", **tally.summary(scheme.name)}
        writer.finish(metadata)
    finally:
        writer.release()
    return metadata
