"""Who carries a replica through one stretch of a baseline: the project's loop, or OpenMM itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kstep.config import BaselineConfig
from kstep.errors import PhysicsError
from kstep.forces import PhysicsSpec
from kstep.forces.journal import JournaledPool
from kstep.forces.pool import make_pool
from kstep.restraints import Restraint
from kstep.runs.loop import initial_state, macro_step
from kstep.schemes import Plain
from kstep.schemes.langevin import LangevinThermostat
from kstep.schemes.maxwell import remove_centre_of_mass_velocity
from kstep.schemes.state import State
from kstep.units import PS_PER_FS, kT

NOT_BEGUN = -1  # the timestep of a replica that has none yet


@contextmanager
def engine_of(spec: PhysicsSpec, config: BaselineConfig, platform: str | None, folder: Path,
              beat: Callable[[Any, int], None], place: int = 0) -> Iterator[LoopEngine | OpenMMEngine]:
    """OpenMM itself on one of its platforms, or (None) the project's loop over a pool of one.

    place: which worker of a scheduler that is; folder: where its true calls since the last restart file are kept; beat
    is told of the pool and the timestep after each.
    """
    if platform is not None:
        yield OpenMMEngine(spec.settings["system_xml"], spec.masses, platform, config.dt_fs, config.friction_per_ps,
                           spec.restraints)
        return
    if spec.scheduler is None:
        spec = replace(spec, threads=1, call_limit_s=None)  # this process has the threads, its parent the time limit
    with JournaledPool(make_pool(spec, first=place), folder) as pool:
        yield LoopEngine(pool, spec.masses, config.dt_fs, config.friction_per_ps, beat)


class LoopEngine:
    """Plain dynamics with any true potential through the one time loop."""

    restart_interval_steps = 2000

    def __init__(self, pool: JournaledPool, masses, dt_fs: float, friction_per_ps: float,
                 beat: Callable[[Any, int], None] = lambda pool, step: None):
        self.pool, self.beat = pool, beat
        self.scheme = Plain(masses, dt_fs * PS_PER_FS)
        self.friction_per_ps = friction_per_ps
        beat(pool, NOT_BEGUN)  # what is needed is loaded: from here on calls are waited for

    def start(self, positions, velocities) -> State:
        """The State of one replica at positions and velocities (N,3); one true call."""
        return initial_state(self.pool, positions[None], velocities[None])

    @property
    def true_calls(self) -> int:
        """True calls so far, failures included."""
        return self.pool.true_calls

    @property
    def cpu_s(self) -> float:
        """CPU seconds besides this process's: of answers that it was told."""
        return self.pool.cpu_s

    @property
    def wall_s(self) -> float:
        """Seconds that an earlier process spent on answers that this one was told."""
        return self.pool.wall_s

    def forget(self) -> None:
        """Stretches begin without history, so that a resumed run equals an uninterrupted one."""
        self.pool.forget()

    def begin(self, restart: int, *, fresh: bool = False) -> None:
        """True calls come after restart file number `restart` (forces.journal)."""
        self.pool.begin(restart, fresh=fresh)

    def end(self) -> None:
        """The run is whole on disk."""
        self.pool.end()

    def run(self, state: State, stretch, rng, every: int, record) -> State:
        """Carry the state through a stretch; `record(state)` sees every `every`-th frame."""
        thermostat = None
        if stretch.ensemble == "NVT":
            thermostat = LangevinThermostat(stretch.temperature_K, self.friction_per_ps, self.scheme.masses)
        for step in range(1, stretch.n_steps + 1):
            state, _ = macro_step(self.scheme, self.pool, state, rng, thermostat)
            self.beat(self.pool, state.step)
            if step % every == 0:
                record(state)
        return state


class OpenMMEngine:
    """Plain MM dynamics at OpenMM's native speed.

    NVE runs OpenMM's velocity-Verlet CustomIntegrator, so that positions and velocities belong
    to the same instant.  For NVT the Ornstein-Uhlenbeck half-steps go into the same integrator,
    seeded from the run's generator.
    """

    cpu_s = wall_s = 0.0
    restart_interval_steps = 50_000

    def __init__(self, system_xml: str, masses, platform: str, dt_fs: float, friction_per_ps: float,
                 restraints: Sequence[Restraint] = ()):
        import openmm

        from kstep.forces.openmm import VELOCITY_VERLET, add_restraints, make_context, velocity_verlet_integrator

        self.masses = np.asarray(masses)
        system = openmm.XmlSerializer.deserialize(system_xml)
        add_restraints(system, restraints)
        dt_ps = dt_fs * PS_PER_FS
        self._compound = openmm.CompoundIntegrator()
        self._compound.addIntegrator(velocity_verlet_integrator(dt_ps))
        langevin = openmm.CustomIntegrator(dt_ps)
        langevin.addGlobalVariable("kT", 0.0)
        langevin.addGlobalVariable("c", float(np.exp(-0.5 * friction_per_ps * dt_ps)))
        noise = ("v", "c*v + sqrt((1-c*c)*kT/m)*gaussian")
        for step in (noise, *VELOCITY_VERLET, noise):
            langevin.addComputePerDof(*step)
        self._compound.addIntegrator(langevin)
        self._context = make_context(system, platform, integrator=self._compound)
        self._langevin = langevin
        self._error = openmm.OpenMMException
        self.true_calls = 0

    def _state(self, step: int) -> State:
        raw = self._context.getState(positions=True, velocities=True, forces=True, energy=True)
        return State(raw.getPositions(asNumpy=True)._value[None], raw.getVelocities(asNumpy=True)._value[None],
                     np.array([raw.getPotentialEnergy()._value]), raw.getForces(asNumpy=True)._value[None], step)

    def start(self, positions, velocities) -> State:
        """The State of one replica at positions (N,3) nm and velocities (N,3) nm/ps; one true call."""
        self._context.setPositions(positions)
        self._context.setVelocities(velocities)
        self.true_calls += 1
        return self._state(0)

    def forget(self) -> None:
        """OpenMM keeps nothing between stretches."""

    def begin(self, restart: int, *, fresh: bool = False) -> None:
        """Its timesteps are too cheap to be kept."""

    def end(self) -> None:
        """Nothing is kept."""

    def run(self, state: State, stretch, rng, every: int, record) -> State:
        """Carry the state through a stretch; `record(state)` sees every `every`-th frame."""
        thermostatted = stretch.ensemble == "NVT"
        self._compound.setCurrentIntegrator(1 if thermostatted else 0)
        if thermostatted:
            self._langevin.setGlobalVariableByName("kT", kT(stretch.temperature_K))
            self._langevin.setRandomNumberSeed(int(rng.integers(1, 2**31 - 1)))
            self._context.reinitialize()
            self._compound.setCurrentIntegrator(1)
        self._context.setPositions(state.positions[0])
        self._context.setVelocities(state.velocities[0])
        step = state.step
        done = 0
        try:
            while done < stretch.n_steps:
                n = min(every, stretch.n_steps - done)
                self._compound.step(n)
                done += n
                self.true_calls += n
                if done % every == 0:
                    state = self._state(step + done)
                    if not np.isfinite(state.positions).all():
                        raise PhysicsError("MM dynamics left the finite numbers; use a smaller dt_fs")
                    record(state)
        except self._error as error:
            raise PhysicsError(f"OpenMM dynamics broke at step {step + done}: {error}; use a smaller dt_fs") from None
        state = self._state(step + done)
        if thermostatted:  # OpenMM's noise moves the centre of mass; the segments that follow must not
            state = State(state.positions, remove_centre_of_mass_velocity(state.velocities, self.masses),
                          state.energy, state.forces, state.step)
        return state
