"""One run of a QM/MM system with any scheme but jump, from start geometries or a restart file to a trajectory."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kstep.errors import UserError
from kstep.forces.pool import EvaluationPool
from kstep.runs.counters import Tally
from kstep.runs.loop import initial_state, macro_steps
from kstep.runs.recorder import TrajectoryWriter, kept_file
from kstep.schemes.langevin import LangevinThermostat
from kstep.schemes.maxwell import degrees_of_freedom, draw_velocities
from kstep.units import FS_PER_PS

FRICTION_PER_PS = 5.0
RESTART_S = 30.0  # between two restart files

log = logging.getLogger("kstep")


@dataclass(frozen=True)
class EmbeddedRun:
    """What a run is: starts (R,N,3) nm, physical masses (N,) Da, spec of the true physics, and where it goes.

    thermostat: around schemes that set no temperature themselves; without, they are NVE.  resume: go on from the
    restart file beside `out`, where there is one; it continues bit by bit.
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
    resume: bool = False


def run_embedded(run: EmbeddedRun, scheme, facts: dict, background: dict | None = None) -> dict:
    """Run `scheme` for burn-in and production, write run.out, return its metadata.

    facts: what the run is, which a resumed one must share; background: what else the metadata shall say.
    """
    dt_fs = scheme.dt_ps * FS_PER_PS
    facts = {**facts, "units": "nm ps Da kJ/mol K", "scheme": scheme.name, "k_steps": scheme.k_steps, "dt_fs": dt_fs,
             "jump_fs": scheme.k_steps * dt_fs, "temperature_K": run.temperature_K, "seed": run.seed,
             "replicas": len(run.starts), "thermostat": run.thermostat, "steps": run.steps,
             "burn_in_steps": run.burn_in_steps, "masses_sampler": np.asarray(scheme.masses).tolist()}
    writer = TrajectoryWriter(run.out, masses=run.masses, masses_sampler=scheme.masses, atom_types=run.spec.numbers,
                              bonds=run.bonds, fingerprint=facts, store_forces=False)
    if run.resume and (metadata := writer.finished()):
        log.info("%s is finished already", run.out)
        return metadata
    if run.resume and run.out.is_file() and not kept_file(run.out, "checkpoint.npz").is_file():
        raise UserError(f"{run.out} is finished, with other settings; choose another output, or run without --resume "
                        "to make it again")
    try:
        with EvaluationPool(run.spec, 1) as pool:
            course = _Course(run, scheme, writer, pool)
            course.go()
        metadata = {**facts, **(background or {}), **course.spent(), **course.burn_in,
                    "failed_true_calls": pool.failures[:100], "status": "finished",
                    **course.tally.summary()}
        writer.finish(metadata)
    finally:
        writer.release()
    return metadata


class _Course:
    """A run on its way: `done` macro-steps, the first run.burn_in_steps of them burn-in."""

    def __init__(self, run: EmbeddedRun, scheme, writer: TrajectoryWriter, pool):
        self.run, self.scheme, self.writer, self.pool = run, scheme, writer, pool
        self.began = {"true_calls": pool.true_calls, "wall_s": time.perf_counter(), "cpu_s": time.process_time()}
        self.before = dict.fromkeys(self.began, 0)
        self.thermostat = None
        if run.thermostat:
            self.thermostat = LangevinThermostat(run.temperature_K, FRICTION_PER_PS, scheme.masses)
        saved = writer.resume() if run.resume else None
        if saved is None:
            self.rng = np.random.default_rng([run.seed, 5])
            self.state = initial_state(pool, run.starts, draw_velocities(len(run.starts), scheme.masses,
                                                                         run.temperature_K, self.rng))
            writer.start_over()
            self.done, self.segments, self.tally, self.burn_in = 0, None, Tally(scheme), self._spent_so_far()
        else:
            self.state, self.rng, progress = saved
            self.done, self.segments, self.burn_in = progress["done"], progress["segments"], progress["burn_in"]
            self.tally, self.before = Tally(scheme, progress["tally"]), progress["spent"]
            log.info("going on after %d macro-steps", self.done)

    def spent(self) -> dict:
        """True calls, wall and CPU seconds of this run, those before a cut included."""
        now = {"true_calls": self.pool.true_calls, "wall_s": time.perf_counter(), "cpu_s": time.process_time()}
        return {key: self.before[key] + now[key] - self.began[key] for key in now}

    def _spent_so_far(self) -> dict:
        spent = self.spent()
        return {"true_calls_burn_in": spent["true_calls"], "wall_burn_in_s": spent["wall_s"],
                "cpu_burn_in_s": spent["cpu_s"]}

    def go(self) -> None:
        """What is left of the macro-steps."""
        run, scheme, first, total = self.run, self.scheme, self.done, self.run.burn_in_steps + self.run.steps
        self.restart, self.is_due = time.perf_counter(), False
        steps = macro_steps(scheme, self.pool, self.state, self.rng, total - first, thermostat=self.thermostat,
                            pause=lambda n: first + n == run.burn_in_steps or self._is_due())
        for self.state, info in steps:
            if self.done in (0, run.burn_in_steps):
                self._open(produces=self.done == run.burn_in_steps)
            self.done += 1
            self.writer.add(self.state, scheme.dt_ps * FS_PER_PS, np.arange(len(run.starts)), self.segments, info)
            if self.done > run.burn_in_steps:
                self.tally.add(self.state, info)
            if self.done == run.burn_in_steps:
                self.burn_in = self._spent_so_far()
            if self.is_due and self.done < total:
                self._write_restart_file()

    def _open(self, produces: bool) -> None:
        run = self.run
        is_nve = not (run.thermostat or self.scheme.traits.sets_temperature)
        role = ("drift" if is_nve else "train") if produces else "equil"
        self.segments = [self.writer.open_segment(r, role, "NVE" if is_nve else "NVT", run.temperature_K,
                                                  degrees_of_freedom(len(run.masses))) for r in range(len(run.starts))]

    def _is_due(self) -> bool:
        """Whether a restart file follows the macro-step in flight, so that none other may be."""
        self.is_due = time.perf_counter() - self.restart >= RESTART_S
        return self.is_due

    def _write_restart_file(self) -> None:
        self.writer.checkpoint(self.state, self.rng, {
            "done": self.done, "segments": [int(s) for s in self.segments], "tally": self.tally.counts,
            "spent": self.spent(), "burn_in": self.burn_in})
        self.restart = time.perf_counter()
