"""One hybrid (or plain) run of R replicas of a molecule, from a checkpoint to a trajectory file."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from kstep.dynamics.carry import Carrier, ShardedCarrier
from kstep.dynamics.coverage import TorsionWatch
from kstep.dynamics.hybrid_settings import HybridRun, start_positions
from kstep.dynamics.inner import n_shards_of, settle_inner
from kstep.dynamics.langevin import LangevinThermostat
from kstep.dynamics.loop import Clock, initial_state, macro_steps
from kstep.dynamics.maxwell import degrees_of_freedom, draw_velocities
from kstep.dynamics.projection import StretchAndBendProjection
from kstep.dynamics.recorder import TrajectoryWriter, kept_file
from kstep.dynamics.schemes import Checked, Impulse, Jump, Metropolis, Plain
from kstep.dynamics.schemes.jump import JumpLimits
from kstep.dynamics.tally import Tally
from kstep.dynamics.tempering import TemperatureLadder
from kstep.dynamics.tune import describe as describe_tuning
from kstep.dynamics.tune import thermalise, tune
from kstep.dynamics.watch import OnViolation, Watch
from kstep.errors import PhysicsError, UserError
from kstep.files import sha256, write_json_atomic
from kstep.forces.pool import EvaluationPool
from kstep.molecule import Molecule
from kstep.units import FS_PER_PS, PS_PER_FS, kT

MOST_LISTED_FAILURES = 100

log = logging.getLogger("kstep")


def sampler_masses(molecule: Molecule, hydrogen_mass_Da: float | None) -> np.ndarray:
    """Physical masses, or with hydrogens made heavier for the sampler alone."""
    masses = np.array(molecule.masses, dtype=np.float64)
    if hydrogen_mass_Da is not None:
        masses[molecule.numbers == 1] = hydrogen_mass_Da
    return masses


def ladder_of(hybrid) -> TemperatureLadder:
    """The rungs of a run: one at its temperature, or those of tempering_K."""
    return TemperatureLadder(tuple(hybrid.tempering_K or (hybrid.temperature_K,)))


def load_network(checkpoint, numbers, masses, bonds, device, delta_scale, method, inner=None, rows=None):
    """The run's Network; a function of its own so that spawned processes can call it."""
    from kstep.models.network import Network

    return Network.load(checkpoint, numbers, masses, bonds, device=device, delta_scale=delta_scale, method=method,
                        inner=inner, rows=rows)


def build_scheme(run: HybridRun, network, carry, masses):
    """The scheme object of a run; masses (N,) Da are the sampler's (metropolis)."""
    hybrid, molecule = run.hybrid, run.molecule
    dt_ps = hybrid.dt_fs * PS_PER_FS
    if hybrid.scheme == "plain":
        return Plain(molecule.masses, dt_ps)
    if hybrid.scheme == "metropolis":
        return Metropolis(carry, masses, dt_ps, hybrid.k_steps, hybrid.temperature_K, length_law=hybrid.length_law,
                          ladder=ladder_of(hybrid))
    if hybrid.scheme == "impulse":
        project = StretchAndBendProjection(molecule.bonds, molecule.masses) if hybrid.project_residual else None
        return Impulse(network, carry, molecule.masses, dt_ps, hybrid.k_steps, project)
    if hybrid.scheme == "checked":
        return Checked(network, carry, molecule.masses, dt_ps, hybrid.k_steps)
    first = molecule.conformers[0]
    lengths = np.linalg.norm(first[molecule.bonds[:, 0]] - first[molecule.bonds[:, 1]], axis=-1)
    limits = JumpLimits(hybrid.max_disp_nm, lengths + hybrid.max_bond_stretch_nm,
                        hybrid.max_energy_jump_kJ_per_mol, hybrid.max_attempts)
    return Jump(network, molecule.masses, molecule.bonds, dt_ps, hybrid.k_steps, limits, hybrid.energy_rescale)


def network_arguments(run: HybridRun) -> dict:
    """What `load_network` takes for a run."""
    molecule = run.molecule
    return dict(checkpoint=run.checkpoint, numbers=molecule.numbers, masses=molecule.masses, bonds=molecule.bonds,
                device=run.device, delta_scale=run.hybrid.delta_scale, method=run.method,
                rows=-(-run.hybrid.replicas // (_n_halves(run) * n_shards_of(run))))


def go_on_with(checkpoint: Path, run: HybridRun, scheme, carry) -> HybridRun:
    """Put the network of `checkpoint` in the place of a checked run's, while nothing is in flight."""
    run = replace(run, checkpoint=checkpoint)
    arguments = {**network_arguments(run), "inner": run.hybrid.inner}
    scheme.network = load_network(**arguments)
    if isinstance(carry, ShardedCarrier):
        carry.reload(arguments)
    else:
        carry.network = scheme.network
    return run


def run_hybrid(run: HybridRun, provenance: dict, machine: dict, on_violation: OnViolation | None = None) -> dict:
    """Run, write run.out, return its metadata; `on_violation` serves past_tolerance: learn (see `watch`)."""
    hybrid, molecule = run.hybrid, run.molecule
    watch = Watch(hybrid, run.out, on_violation)
    began = time.perf_counter(), time.process_time()  # tuning and the start are on the bill too
    network, carry, inner = None, None, {}
    if hybrid.scheme != "plain":
        run, network, arguments, inner = settle_inner(run, load_network, network_arguments(run), _n_halves(run))
        if hybrid.scheme in ("metropolis", "impulse", "checked"):
            n_shards = n_shards_of(run) if network.device == "cpu" else 1
            carry = ShardedCarrier(load_network, arguments, n_shards) if n_shards > 1 else Carrier(network)
    writer = None
    try:
        with EvaluationPool(run.spec, run.n_workers) as pool:
            run, masses, tuning, start = _settle_sampler(run, network, carry, pool)
            scheme = build_scheme(run, network, carry, masses)
            hybrid = run.hybrid
            writer = TrajectoryWriter(
                run.out, masses=molecule.masses, masses_sampler=scheme.masses, atom_types=molecule.numbers,
                bonds=molecule.bonds,
                fingerprint={"hybrid": hybrid.model_dump(exclude={"steps", "checkpoint_interval"}), "seed": run.seed,
                             "smiles": molecule.smiles, "method": run.method, "workers": run.n_workers,
                             "checkpoint": _sha256(run.checkpoint)})
            settled = {"tuning": tuning, "inner": inner}
            return _run(run, scheme, writer, pool, network, carry, watch, settled, start, began, provenance, machine)
    finally:
        if writer is not None:
            writer.release()
        if isinstance(carry, ShardedCarrier):
            carry.close()


def _settle_sampler(run: HybridRun, network, carry, pool):
    """(run, masses (N,) Da, tuning report or None, start (R,N,3) or None): a tuned run's open choices are measured.

    Its replicas start from what the network's own ensemble makes of the start geometries, which
    costs no true call.  A resumed run goes on with what the first one chose, since a second
    measurement would differ.
    """
    hybrid, molecule = run.hybrid, run.molecule
    masses = sampler_masses(molecule, hybrid.hydrogen_mass_Da)
    if not (hybrid.tune or hybrid.hessian_masses):
        return run, masses, None, None
    kept, ladder = kept_file(run.out, "tuning.json"), ladder_of(hybrid)
    rng = np.random.default_rng([run.seed, 1])
    positions = thermalise(network, carry, start_positions(run), masses, ladder, rng)
    if run.resume and kept.is_file():
        report = json.loads(kept.read_text())
    else:
        report = tune(network, carry, pool, positions, masses, ladder, rng, dt_fs=hybrid.dt_fs, k_steps=hybrid.k_steps,
                      use_hessian=hybrid.hessian_masses, wanted_acceptance=hybrid.integrator_acceptance,
                      shortest_mean_fs=hybrid.shortest_mean_fs)
        log.info("%s", describe_tuning(report))
    hybrid = hybrid.model_copy(update={"dt_fs": report["dt_fs"], "k_steps": report["k_steps"]})
    masses = np.array(report["masses_Da"])
    positions = thermalise(network, carry, positions, masses, ladder, np.random.default_rng([run.seed, 3]),
                           n_proposals=hybrid.burn_in_steps, dt_fs=hybrid.dt_fs, n_steps=hybrid.k_steps)
    return replace(run, hybrid=hybrid), masses, report, positions


def _n_halves(run: HybridRun) -> int:
    """Half-batches in flight: the network carries one while the physics has the other."""
    return 2 if run.hybrid.scheme != "plain" and (run.n_workers > 1 or run.device != "cpu") else 1


def _run(run, scheme, writer, pool, network, carry, watch, settled, start, began, provenance, machine) -> dict:
    """settled: what was measured at the start, {name: report or nothing}; a resumed run reads it back."""
    hybrid, molecule = run.hybrid, run.molecule
    thermostat = None
    if hybrid.thermostat == "langevin" and not scheme.is_thermostatted:
        thermostat = LangevinThermostat(hybrid.temperature_K, hybrid.friction_per_ps, scheme.masses)
    saved = writer.resume() if run.resume else None
    ensemble = "NVT" if thermostat is not None or scheme.is_thermostatted else "NVE"
    ladder = ladder_of(hybrid)
    if saved is None:
        rng = np.random.default_rng(run.seed)
        positions = start if start is not None else start_positions(run)
        state = initial_state(pool, positions,
                              draw_velocities(hybrid.replicas, scheme.masses, ladder.of(hybrid.replicas), rng))
        writer.start_over()  # only now: a start that fails costs an earlier run nothing
        for name, report in settled.items():
            if report:
                write_json_atomic(kept_file(run.out, f"{name}.json"), report)
        burn_in_end = hybrid.burn_in_steps
        done, tally, spent = 0, Tally(), {"true_calls": 0, "wall_s": 0.0, "cpu_s": 0.0, "wall_burn_in_s": 0.0,
                                          "cpu_burn_in_s": 0.0, "true_calls_burn_in": 0, "wall_network_s": 0.0,
                                          "wall_waiting_s": 0.0}
        segments = (_open_segments(writer, "equil", ensemble, ladder, hybrid.replicas, molecule)
                    if hybrid.burn_in_steps else None)
    else:
        state, rng, progress = saved
        done, tally, spent, segments = progress["done"], Tally(progress["tally"]), progress["spent"], progress["segments"]
        burn_in_end = progress["burn_in_end"]
        watch.restore(writer.parts)
        if progress["learned"]:
            run = go_on_with(Path(progress["learned"]), run, scheme, carry)
    coverage = TorsionWatch(molecule.numbers, molecule.bonds, molecule.conformers, saved and progress["rotamers_seen"])
    beta = 1.0 / kT(ladder.of(hybrid.replicas))
    total = hybrid.burn_in_steps + hybrid.steps
    if done > total:
        raise UserError(f"{run.out} is already at macro-step {done}; ask for more --steps to continue it")

    def cpu_seconds():
        return time.process_time() + pool.cpu_s + (carry.cpu_s if carry is not None else 0.0)

    clock = Clock(spent["wall_network_s"], spent["wall_waiting_s"])
    (wall, cpu), calls = began, 0 if saved is None else pool.true_calls

    def account():
        return {**spent,
                "true_calls": spent["true_calls"] + pool.true_calls - calls,
                "wall_s": spent["wall_s"] + time.perf_counter() - wall,
                "cpu_s": spent["cpu_s"] + cpu_seconds() - cpu,
                "wall_network_s": clock.network_s, "wall_waiting_s": clock.waiting_s}

    def begin_production():
        now = account()
        spent["true_calls_burn_in"] = now["true_calls"]
        spent["wall_burn_in_s"], spent["cpu_burn_in_s"] = now["wall_s"], now["cpu_s"]
        return _open_segments(writer, "train" if ensemble == "NVT" else "drift", ensemble, ladder, hybrid.replicas,
                              molecule)

    def restart_file_is_due(done):
        return done % hybrid.checkpoint_interval == 0 and done < total

    if done == burn_in_end and segments is None:
        segments = begin_production()
    broken, stopped, first = None, None, done
    per_step_ps = scheme.k_steps * scheme.dt_ps * hybrid.replicas
    steps = macro_steps(scheme, pool, state, rng, total - done, thermostat=thermostat, n_parts=_n_halves(run), clock=clock,
                        observe=watch.observe, pause=lambda n: watch.is_on or n + first == burn_in_end
                        or restart_file_is_due(n + first))
    with tqdm(total=total, initial=done, unit="step", desc=f"{molecule.name} {scheme.name}") as bar:
        while done < total:
            try:
                state = next(steps)
            except PhysicsError as error:
                if done < max(burn_in_end + 1, hybrid.save_interval_steps):
                    raise  # nothing to keep
                broken = error
                break
            done += 1
            violation = None
            if done > burn_in_end:
                tally.add(state, scheme, beta)
                coverage.see(state.positions[:: ladder.n_rungs])
                violation = watch.violation(tally)
            stopped = None if watch.learns else violation
            if done % hybrid.save_interval_steps == 0 or stopped:  # what it stopped at is worth keeping
                writer.add(state, hybrid.dt_fs, np.arange(hybrid.replicas), segments, hybrid=True)
            learned = watch.learn(violation, done, run.checkpoint, tally) if violation and not stopped else None
            if learned:  # what went before belongs to another network: burn-in, and a new one after it
                run = go_on_with(learned, run, scheme, carry)
                writer.call_burn_in(segments)
                burn_in_end = done + hybrid.burn_in_steps
                segments = _open_segments(writer, "equil", ensemble, ladder, hybrid.replicas, molecule)
            if done == burn_in_end and done < total:
                segments = begin_production()
            if restart_file_is_due(done):
                pool.forget()
                watch.save(writer.parts)
                writer.checkpoint(state, rng, {"done": done, "tally": tally.counts, "spent": account(),
                                               "segments": [int(s) for s in segments], "burn_in_end": burn_in_end,
                                               "learned": str(run.checkpoint) if tally.counts.get("learned") else None,
                                               "rotamers_seen": coverage.seen})
            bar.update()
            if stopped:
                break
            if done % max(1, total // 50) == 0:
                bar.set_postfix_str(tally.progress(done * per_step_ps, account()["wall_s"], scheme.name))
    spent = account()
    spent["wall_production_s"] = spent["wall_s"] - spent["wall_burn_in_s"]
    spent["cpu_production_s"] = spent["cpu_s"] - spent["cpu_burn_in_s"]
    unvisited = coverage.unvisited()
    if unvisited and broken is None:
        log.warning("%d rotamers of the conformers were never visited: %s; the run may be too short, or they are none "
                    "under the true physics", len(unvisited),
                    ", ".join(f"{'-'.join(map(str, u['atoms']))} near {u['angle_deg']:.0f} deg" for u in unvisited))
    # 1: every core that was given to the run worked all the time
    spent["busy_share"] = spent["cpu_production_s"] / max(spent["wall_production_s"] * run.n_workers, 1e-9)
    network = getattr(scheme, "network", network)
    about_network = network.metadata if network else {}
    metadata = {**_facts(run, scheme), "true_calls_training": int(about_network.get("true_calls_training") or 0),
                "cpu_s_training": about_network.get("cpu_s_training"), **settled, "rotamers_never_visited": unvisited,
                "failed_true_calls": pool.failures[:MOST_LISTED_FAILURES], "machine": machine,
                "status": f"broke at macro-step {done}: {broken}" if broken else
                f"stopped at macro-step {done}: {stopped}" if stopped else "finished",
                **spent, **tally.summary(scheme.name), **provenance}
    writer.finish(metadata)
    if broken is not None:
        raise PhysicsError(f"{broken}; the {done} macro-steps before it are in {run.out}")
    return metadata


def _facts(run: HybridRun, scheme) -> dict:
    """The metadata of a run that is known before it starts."""
    hybrid, molecule = run.hybrid, run.molecule
    return {
        "molecule": molecule.name, "smiles": molecule.smiles, "method": run.method, "backend": run.spec.backend,
        "units": "nm ps Da kJ/mol K", "scheme": scheme.name, "k_steps": scheme.k_steps, "dt_fs": hybrid.dt_fs,
        "jump_fs": scheme.k_steps * scheme.dt_ps * FS_PER_PS, "temperature_K": hybrid.temperature_K,
        "seed": run.seed, "config": hybrid.model_dump(), "delta_scale": hybrid.delta_scale,
        "energy_rescale": hybrid.energy_rescale, "replicas": hybrid.replicas, "num_workers": run.n_workers,
        "device": run.device, "checkpoint": str(run.checkpoint) if run.checkpoint else None,
        "checkpoint_sha256": _sha256(run.checkpoint)}


def _open_segments(writer, role, ensemble, ladder, n_replicas, molecule) -> list[int]:
    """One segment per replica; what a rung above the target samples is not the target's ensemble."""
    return [writer.open_segment(r, role if temperature_K == ladder.temperatures_K[0] or role == "equil" else "hot",
                                ensemble, temperature_K, degrees_of_freedom(len(molecule)))
            for r, temperature_K in enumerate(ladder.of(n_replicas))]


def _sha256(path: Path | None) -> str | None:
    return sha256(path) if path and Path(path).is_file() else None
