"""One hybrid (or plain) run of R replicas of a molecule, from a checkpoint to a trajectory file."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from kstep.dynamics.carry import Carrier, ShardedCarrier
from kstep.dynamics.hybrid_settings import HybridRun, start_positions
from kstep.dynamics.langevin import LangevinThermostat
from kstep.dynamics.loop import initial_state, macro_step
from kstep.dynamics.maxwell import degrees_of_freedom, draw_velocities
from kstep.dynamics.recorder import TrajectoryWriter
from kstep.dynamics.schemes import Jump, Metropolis, Plain
from kstep.dynamics.schemes.jump import JumpLimits
from kstep.dynamics.tally import Tally
from kstep.errors import PhysicsError, UserError
from kstep.files import sha256
from kstep.forces.pool import EvaluationPool
from kstep.molecule import Molecule
from kstep.units import FS_PER_PS, PS_PER_FS, kT

MOST_LISTED_FAILURES = 100


def sampler_masses(molecule: Molecule, hydrogen_mass_Da: float | None) -> np.ndarray:
    """Physical masses, or with hydrogens made heavier for the sampler alone."""
    masses = np.array(molecule.masses, dtype=np.float64)
    if hydrogen_mass_Da is not None:
        masses[molecule.numbers == 1] = hydrogen_mass_Da
    return masses


def load_network(checkpoint, numbers, masses, bonds, device, delta_scale, method):
    """The run's Network; a function of its own so that spawned processes can call it."""
    from kstep.models.network import Network

    return Network.load(checkpoint, numbers, masses, bonds, device=device, delta_scale=delta_scale, method=method)


def build_scheme(run: HybridRun, network, carry):
    """The scheme object of a run."""
    hybrid, molecule = run.hybrid, run.molecule
    dt_ps = hybrid.dt_fs * PS_PER_FS
    if hybrid.scheme == "plain":
        return Plain(molecule.masses, dt_ps)
    if hybrid.scheme == "metropolis":
        return Metropolis(carry, sampler_masses(molecule, hybrid.hydrogen_mass_Da), dt_ps, hybrid.k_steps,
                          hybrid.temperature_K)
    first = molecule.conformers[0]
    lengths = np.linalg.norm(first[molecule.bonds[:, 0]] - first[molecule.bonds[:, 1]], axis=-1)
    limits = JumpLimits(hybrid.max_disp_nm, lengths + hybrid.max_bond_stretch_nm,
                        hybrid.max_energy_jump_kJ_per_mol, hybrid.max_attempts)
    return Jump(network, molecule.masses, molecule.bonds, dt_ps, hybrid.k_steps, limits, hybrid.energy_rescale)


def run_hybrid(run: HybridRun, provenance: dict, machine: dict) -> dict:
    """Run, write run.out, return its metadata."""
    hybrid, molecule = run.hybrid, run.molecule
    network, carry = None, None
    if hybrid.scheme != "plain":
        arguments = dict(checkpoint=run.checkpoint, numbers=molecule.numbers, masses=molecule.masses,
                         bonds=molecule.bonds, device=run.device, delta_scale=hybrid.delta_scale, method=run.method)
        network = load_network(**arguments)
        if hybrid.scheme == "metropolis":
            n_shards = min(run.n_workers, hybrid.replicas) if network.device == "cpu" else 1
            carry = ShardedCarrier(load_network, arguments, n_shards) if n_shards > 1 else Carrier(network)
    scheme = build_scheme(run, network, carry)
    thermostat = None
    if hybrid.thermostat == "langevin" and not scheme.is_thermostatted:
        thermostat = LangevinThermostat(hybrid.temperature_K, hybrid.friction_per_ps, scheme.masses)
    writer = TrajectoryWriter(
        run.out, masses=molecule.masses, masses_sampler=scheme.masses, atom_types=molecule.numbers,
        bonds=molecule.bonds,
        fingerprint={"hybrid": hybrid.model_dump(exclude={"steps", "checkpoint_interval"}), "seed": run.seed,
                     "smiles": molecule.smiles, "method": run.method, "workers": run.n_workers,
                     "checkpoint": _sha256(run.checkpoint)})
    try:
        with EvaluationPool(run.spec, run.n_workers) as pool:
            return _run(run, scheme, thermostat, writer, pool, network, provenance, machine)
    finally:
        writer.release()
        if isinstance(carry, ShardedCarrier):
            carry.close()


def _run(run, scheme, thermostat, writer, pool, network, provenance, machine) -> dict:
    hybrid, molecule = run.hybrid, run.molecule
    saved = writer.resume() if run.resume else None
    ensemble = "NVT" if thermostat is not None or scheme.is_thermostatted else "NVE"
    production = "train" if ensemble == "NVT" else "drift"
    if saved is None:
        rng = np.random.default_rng(run.seed)
        positions = start_positions(run)
        state = initial_state(pool, positions,
                              draw_velocities(hybrid.replicas, scheme.masses, hybrid.temperature_K, rng))
        writer.start_over()  # only now: a start that fails costs an earlier run nothing
        done, tally, spent = 0, Tally(), {"true_calls": 0, "wall_s": 0.0, "cpu_s": 0.0, "wall_burn_in_s": 0.0,
                                          "true_calls_burn_in": 0}
        segments = _open_segments(writer, "equil", ensemble, hybrid, molecule) if hybrid.burn_in_steps else None
    else:
        state, rng, progress = saved
        done, tally, spent, segments = progress["done"], Tally(progress["tally"]), progress["spent"], progress["segments"]
    beta = 1.0 / kT(hybrid.temperature_K)
    total = hybrid.burn_in_steps + hybrid.steps
    if done > total:
        raise UserError(f"{run.out} is already at macro-step {done}; ask for more --steps to continue it")
    carry = getattr(scheme, "carry", None)

    def cpu_seconds():
        return time.process_time() + pool.cpu_s + (carry.cpu_s if carry is not None else 0.0)

    wall, cpu, calls = time.perf_counter(), cpu_seconds(), 0 if saved is None else pool.true_calls

    def account():
        return {**spent,
                "true_calls": spent["true_calls"] + pool.true_calls - calls,
                "wall_s": spent["wall_s"] + time.perf_counter() - wall,
                "cpu_s": spent["cpu_s"] + cpu_seconds() - cpu}

    broken = None
    per_step_ps = scheme.k_steps * scheme.dt_ps * hybrid.replicas
    with tqdm(total=total, initial=done, unit="step", desc=f"{molecule.name} {scheme.name}") as bar:
        while done < total:
            if done == hybrid.burn_in_steps:
                now = account()
                spent["true_calls_burn_in"] = now["true_calls"]
                spent["wall_burn_in_s"] = now["wall_s"]
                segments = _open_segments(writer, production, ensemble, hybrid, molecule)
            try:
                state = macro_step(scheme, pool, state, rng, thermostat)
            except PhysicsError as error:
                if done < max(hybrid.burn_in_steps + 1, hybrid.save_interval_steps):
                    raise  # nothing to keep
                broken = error
                break
            done += 1
            if done > hybrid.burn_in_steps:
                tally.add(state, scheme, beta)
            if done % hybrid.save_interval_steps == 0:
                writer.add(state, hybrid.dt_fs, np.arange(hybrid.replicas), segments, hybrid=True)
            if done % hybrid.checkpoint_interval == 0 and done < total:
                pool.forget()
                writer.checkpoint(state, rng, {"done": done, "tally": tally.counts, "spent": account(),
                                               "segments": [int(s) for s in segments]})
            bar.update()
            if done % max(1, total // 50) == 0:
                bar.set_postfix_str(tally.progress(done * per_step_ps, account()["wall_s"], scheme.name))
    spent = account()
    spent["wall_production_s"] = spent["wall_s"] - spent["wall_burn_in_s"]
    trained_on = int(network.metadata.get("true_calls_training") or 0) if network else 0
    metadata = {**_facts(run, scheme), "true_calls_training": trained_on,
                "failed_true_calls": pool.failures[:MOST_LISTED_FAILURES], "machine": machine,
                "status": "finished" if broken is None else f"broke at macro-step {done}: {broken}",
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


def _open_segments(writer, role, ensemble, hybrid, molecule) -> list[int]:
    return [writer.open_segment(r, role, ensemble, hybrid.temperature_K, degrees_of_freedom(len(molecule)))
            for r in range(hybrid.replicas)]


def _sha256(path: Path | None) -> str | None:
    return sha256(path) if path and Path(path).is_file() else None
