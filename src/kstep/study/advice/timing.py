"""What one timestep of plain MD, one true call and one timestep of a network cost here, in CPU seconds."""

from __future__ import annotations

import time

import numpy as np

from kstep.forces.openmm import fastest_platform, make_context, read_system
from kstep.forces.pool import make_pool
from kstep.runs.loop import initial_state, run
from kstep.runs.tuning import Costs, measure_costs
from kstep.schemes import Plain
from kstep.schemes.maxwell import draw_velocities
from kstep.units import PS_PER_FS

STEPS_TIMED = {"QM": 25, "MM": 1000}
STRETCHES = 5  # of that many steps; the fastest counts


def plain_step_s(spec, positions, masses, dt_fs: float, temperature_K: float, rng) -> float:
    """CPU seconds of one timestep of plain MD: OpenMM's own loop for MM, the time loop with a warm SCF otherwise.

    The least of several stretches: what others do on the machine only adds.
    """
    if spec.backend == "openmm":
        system = read_system(spec.settings["system_xml"], len(positions))
        platform = spec.settings["platform"]
        if platform == "auto":
            platform = fastest_platform(system, positions)[0]
        context = make_context(system, platform, dt_fs * PS_PER_FS)
        context.setPositions(positions)
        context.setVelocitiesToTemperature(temperature_K, int(rng.integers(1, 2**31 - 1)))
        # a GPU works while its process waits
        clock = time.process_time if platform in ("Reference", "CPU") else time.perf_counter

        def steps(n):
            context.getIntegrator().step(n)
            context.getState(getEnergy=True)

        return _least_s(steps, STEPS_TIMED["MM"], clock)
    with make_pool(spec, 1) as pool:
        state = initial_state(pool, positions[None], draw_velocities(1, masses, temperature_K, rng))
        scheme = Plain(masses, dt_fs * PS_PER_FS)

        def steps(n):
            nonlocal state
            state = run(scheme, pool, state, rng, n)

        # a worker of its own (threads, call_limit_s, a scheduler) is not in this process's time
        return _least_s(steps, STEPS_TIMED["QM"], lambda: time.process_time() + pool.cpu_s)


def _least_s(steps, n: int, clock) -> float:
    """Seconds per step of the fastest of STRETCHES stretches of n steps, after one that warms up."""
    steps(n)
    spent = []
    for _ in range(STRETCHES):
        start = clock()
        steps(n)
        spent.append((clock() - start) / n)
    return min(spent)


def step_and_call_s(settings, carry, mover, positions, masses, rng) -> Costs:
    """Costs of a true call at geometries that `mover` reaches, and of a timestep of `carry` at the batch size of a run.

    settings: the HybridRun; positions (R,N,3) thermal; masses (N,) Da of the sampler.
    """
    batch = max(1, settings.hybrid.replicas // (1 if settings.n_workers == 1 else 2 * settings.n_workers))
    positions = np.resize(positions, (batch, *positions.shape[1:]))
    with make_pool(settings.spec, settings.n_workers) as pool:
        found = [measure_costs(pool, c, positions, masses, settings.hybrid.temperature_K, rng)
                 for c in ({id(c): c for c in (carry, mover)}).values()]
    return Costs(found[-1].true_call_s, found[0].inner_step_s)
