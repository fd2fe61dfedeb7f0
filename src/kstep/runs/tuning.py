"""The sampler's free choices, made by measurement before production and then frozen.

Timestep   the longest one at which the network's own dynamics, without any true call, would be
           accepted in `integrator_acceptance` of all proposals: exp(-dH) of its own energy.
Length     as many timesteps as cost what a true call costs, so that neither the network nor the
           physics is most of the cost; never shorter than `shortest_mean_fs`.
Masses     any are right; these only decide how long a timestep can be.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from kstep.forces.pool import Truth
from kstep.runs.loop import initial_state, question, run
from kstep.schemes import Metropolis
from kstep.schemes.ladder import TemperatureLadder
from kstep.schemes.maxwell import draw_velocities
from kstep.schemes.sampler import check_start_energies
from kstep.schemes.state import kinetic_energy
from kstep.units import FS_PER_PS, PS_PER_FS, kT

TIMESTEPS_FS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.5, 4.0)
TRIAL_FS = 100.0  # length of a trial trajectory: energy errors have reached their full size
FEWEST_TRIALS = 256  # trajectories behind each figure: an acceptance of 0.95 is then known to 0.01
FEWEST_AT_ONCE = 16  # of them: a network takes about as long for one trajectory as for ten
DISPLACEMENT_NM = 1e-4  # of the finite differences behind the Hessian
MOST_TIMESTEPS = 5000  # per proposal


class NetworkAsTruth:
    """The network in the place of the true physics: what it samples costs no true call."""

    failures: tuple = ()

    def __init__(self, network):
        self.network = network

    def evaluate(self, positions, rows=None) -> Truth:
        """Energy and forces of the network at positions (R,N,3) nm."""
        with np.errstate(all="ignore"):
            energy, forces = self.network.energy_and_forces(positions)
        return Truth(energy, forces, ~np.isfinite(energy))

    submit = evaluate

    def collect(self, truth: Truth) -> Truth:
        """The answer, which was there at once."""
        return truth


def thermalise(network, carry, positions, masses, ladder: TemperatureLadder, rng, *, n_proposals: int = 8,
               dt_fs: float = 0.5, n_steps: int = 200, inside=None) -> np.ndarray:
    """Positions (R,N,3) that follow the network's potential at the ladder's temperatures, from any start.

    inside: walls that no start leaves (see kstep.schemes.base).
    """
    scheme = Metropolis(carry, masses, dt_fs * PS_PER_FS, n_steps, ladder.temperatures_K[0], length_law="uniform",
                        ladder=ladder, inside=inside)
    pool = NetworkAsTruth(network)
    check_start_energies(pool.evaluate(positions).energy)
    state = initial_state(pool, positions, np.zeros_like(positions))
    return run(scheme, pool, state, rng, n_proposals).positions


def hessian_masses(network, positions: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Masses (N,) Da proportional to each atom's mean curvature d2E/dx2, of the same sum as `masses`.

    Equal curvature over mass is one frequency for all atoms, so that no light atom alone limits the
    timestep.  The diagonal of the Hessian comes from central differences of the network's forces
    at thermal positions (R,N,3), averaged over replicas and directions.
    """
    curvature = np.empty(positions.shape[1:])
    for atom, axis in np.ndindex(curvature.shape):
        shift = np.zeros(positions.shape[1:])
        shift[atom, axis] = DISPLACEMENT_NM
        up, down = (network.energy_and_forces(positions + s)[1][:, atom, axis] for s in (shift, -shift))
        curvature[atom, axis] = (down - up).mean() / (2.0 * DISPLACEMENT_NM)
    of_atom = curvature.mean(axis=1)
    of_atom = np.maximum(of_atom, 0.05 * of_atom.max())  # a nearly free atom needs a mass as well
    return of_atom * (masses.sum() / of_atom.sum())


def integrator_acceptance(network, carry, positions, masses, temperature_K, dt_fs: float, rng) -> float:
    """Mean of min(1, exp(-dH/kT)) of the network's own energy over trial trajectories of 100 fs."""
    copies, found = -(-FEWEST_AT_ONCE // len(positions)), []
    temperature_K = np.tile(np.broadcast_to(temperature_K, len(positions)), copies)
    positions = np.tile(positions, (copies, 1, 1))
    for _ in range(max(1, -(-FEWEST_TRIALS // len(positions)))):
        velocities = draw_velocities(len(positions), masses, temperature_K, rng)
        x, v = carry(positions, velocities, masses, dt_fs * PS_PER_FS, max(1, round(TRIAL_FS / dt_fs)))
        with np.errstate(all="ignore"):
            before = network.energy_and_forces(positions)[0] + kinetic_energy(velocities, masses)
            change = network.energy_and_forces(x)[0] + kinetic_energy(v, masses) - before
            change = np.where(np.isfinite(change), change, np.inf)
            found.append(np.minimum(1.0, np.exp(-change / kT(temperature_K))).mean())
    return float(np.mean(found))


@dataclass(frozen=True)
class Costs:
    """CPU seconds: of one true call, and of one timestep of one replica under the network."""

    true_call_s: float
    inner_step_s: float


def measure_costs(pool, carry, positions, masses, temperature_K, rng, *, n_steps: int = 100,
                  needs_forces: bool = True, call_s: float | None = None) -> Costs:
    """Measure both on the run's own machinery; costs two true calls per replica, with forces where the run needs them,
    or none where call_s, what a true call costs, is known already."""
    asked, velocities = question(needs_forces), draw_velocities(len(positions), masses, temperature_K, rng)

    def cpu_s(work) -> float:
        start = time.process_time() + carry.cpu_s + pool.cpu_s
        work()
        return (time.process_time() + carry.cpu_s + pool.cpu_s - start) / len(positions)

    # the least of three: a worker process may only now be loading what it needs
    inner = min(cpu_s(lambda: carry(positions, velocities, masses, 0.5 * PS_PER_FS, n_steps)) for _ in range(3))
    if call_s is not None:
        return Costs(call_s, inner / n_steps)
    # a first SCF has no guess, and one at the same geometry again would have nothing left to do
    pool.evaluate(positions, **asked)
    moved = carry(positions, velocities, masses, 0.5 * PS_PER_FS, n_steps)[0]
    moved = np.where(np.isfinite(moved).all(axis=(1, 2), keepdims=True), moved, positions)
    return Costs(cpu_s(lambda: pool.evaluate(moved, **asked)), inner / n_steps)


def steps_per_call(costs: Costs, dt_fs: float, shortest_mean_fs: float) -> int:
    """Timesteps of a proposal that cost as much as its true call, at least shortest_mean_fs of them."""
    wanted = round(max(costs.true_call_s / costs.inner_step_s, shortest_mean_fs / dt_fs))
    return min(max(wanted, 1), MOST_TIMESTEPS)


def tune(network, carry, pool, positions, masses, ladder: TemperatureLadder, rng, *, dt_fs: float | None,
         k_steps: int | None, use_hessian: bool, wanted_acceptance: float, shortest_mean_fs: float,
         needs_forces: bool = True, call_s: float | None = None) -> dict:
    """Choose what is None of dt_fs and k_steps for sampling on a ladder, from thermal positions (R,N,3); call_s: CPU
    seconds of a true call, where they are known.

    Returns dt_fs, k_steps, masses_Da (N,) and what they were chosen from, as plain numbers.
    """
    temperature_K = ladder.of(len(positions))
    dt_fs, masses, trials = choose_timestep(network, carry, positions, masses, temperature_K, rng, dt_fs=dt_fs,
                                            use_hessian=use_hessian, wanted_acceptance=wanted_acceptance)
    costs = measure_costs(pool, carry, positions, masses, temperature_K, rng, needs_forces=needs_forces,
                          call_s=call_s)
    return {
        "dt_fs": dt_fs, "k_steps": k_steps or steps_per_call(costs, dt_fs, shortest_mean_fs),
        "integrator_acceptance": {f"{dt:g}": a for dt, a in trials.items()},
        "cpu_s_per_true_call": costs.true_call_s, "cpu_s_per_inner_step": costs.inner_step_s,
        "masses_Da": [float(m) for m in masses], "temperatures_K": list(ladder.temperatures_K)}


def choose_timestep(network, carry, positions, masses, temperature_K, rng, *, dt_fs: float | None, use_hessian: bool,
                    wanted_acceptance: float) -> tuple[float, np.ndarray, dict[float, float]]:
    """(dt_fs, masses (N,) Da, acceptance by timestep tried) from thermal positions (R,N,3); a dt_fs given stays."""
    if use_hessian:
        masses = hessian_masses(network, positions, masses)
    trials: dict[float, float] = {}
    if dt_fs is not None:
        return dt_fs, masses, trials
    for candidate in TIMESTEPS_FS:
        trials[candidate] = integrator_acceptance(network, carry, positions, masses, temperature_K, candidate, rng)
        if trials[candidate] < wanted_acceptance:
            break
    good = [dt for dt, acceptance in trials.items() if acceptance >= wanted_acceptance]
    return max(good, default=TIMESTEPS_FS[0]), masses, trials


def describe(report: dict) -> str:
    """One line about what was chosen and why."""
    return (f"timestep {report['dt_fs']:g} fs, mean length {report['k_steps']} timesteps "
            f"({report['k_steps'] * report['dt_fs'] / FS_PER_PS:.2f} ps): a true call costs "
            f"{report['cpu_s_per_true_call'] * 1e3:.2f} ms, a timestep of the network "
            f"{report['cpu_s_per_inner_step'] * 1e6:.1f} us")
