"""One hybrid (or plain) run of R replicas of a molecule, from a checkpoint to a trajectory file."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from kstep.config import HybridConfig
from kstep.dynamics.carry import Carrier, ShardedCarrier
from kstep.dynamics.langevin import LangevinThermostat
from kstep.dynamics.loop import initial_state, macro_step
from kstep.dynamics.maxwell import degrees_of_freedom, draw_velocities
from kstep.dynamics.recorder import TrajectoryWriter
from kstep.dynamics.schemes import Jump, Metropolis, Plain
from kstep.dynamics.schemes.jump import JumpLimits
from kstep.errors import UserError
from kstep.files import sha256
from kstep.forces import PhysicsSpec
from kstep.forces.pool import EvaluationPool, physical_cores
from kstep.molecule import Molecule
from kstep.schemas import load_trajectory
from kstep.units import FS_PER_PS, PS_PER_FS, SECONDS_PER_DAY, kT

DEFAULT_METROPOLIS_STEPS = 1000
MOST_LISTED_FAILURES = 100


@dataclass(frozen=True)
class HybridRun:
    """Everything a run needs; `hybrid` has no nulls left (see `settle_settings`)."""

    molecule: Molecule
    spec: PhysicsSpec
    method: str
    hybrid: HybridConfig
    checkpoint: Path | None
    out: Path
    seed: int = 0
    n_workers: int = 1
    device: str = "cpu"
    resume: bool = False
    initial_md: Path | None = None
    frame: int | None = None


def settle_settings(hybrid: HybridConfig, checkpoint: dict | None, baseline) -> HybridConfig:
    """Fill the nulls of a HybridConfig from a loaded checkpoint and the baseline's config."""
    if hybrid.scheme != "plain" and checkpoint is None:
        raise UserError(f"scheme {hybrid.scheme or 'metropolis'} needs a network; give --checkpoint, or use "
                        "--scheme plain")
    scheme = hybrid.scheme or ("metropolis" if checkpoint["config"]["heads"]["energy"] else "jump")
    k_steps, dt_fs = hybrid.k_steps, hybrid.dt_fs
    if scheme == "plain":
        if k_steps not in (None, 1):
            raise UserError("plain asks the true force at every step, so k is 1; for longer steps set dt_fs")
        k_steps, dt_fs = 1, dt_fs or baseline.dt_fs
    elif scheme == "metropolis":
        if not checkpoint["config"]["heads"]["energy"]:
            raise UserError("metropolis needs a conservative force, and this checkpoint has only a jump head; train "
                            "one with heads: {energy: true}")
        k_steps, dt_fs = k_steps or DEFAULT_METROPOLIS_STEPS, dt_fs or baseline.dt_fs
    else:
        if not checkpoint["config"]["heads"]["jump"]:
            raise UserError("this checkpoint has no jump head; train one with heads: {jump: true}, or use "
                            "--scheme metropolis")
        k_steps, dt_fs = k_steps or checkpoint["k_steps"], dt_fs or checkpoint["dt_fs"]
        if abs(dt_fs - checkpoint["dt_fs"]) > 1e-9:
            raise UserError(f"the checkpoint jumps timesteps of {checkpoint['dt_fs']} fs, not {dt_fs} fs")
        if k_steps not in checkpoint["spans"]:
            raise UserError(f"the checkpoint jumps k = {checkpoint['k_steps']} timesteps, not {k_steps}; "
                            f"use --k-steps {checkpoint['k_steps']} or train on dataset_k{k_steps}.npz")
    if hybrid.hydrogen_mass_Da is not None and scheme != "metropolis":
        raise UserError("hydrogen_mass_Da changes the dynamics; only metropolis may use it")
    return hybrid.model_copy(update={"scheme": scheme, "k_steps": k_steps, "dt_fs": dt_fs,
                                     "temperature_K": hybrid.temperature_K or baseline.temperature_K})


def sampler_masses(molecule: Molecule, hydrogen_mass_Da: float | None) -> np.ndarray:
    """Physical masses, or with hydrogens made heavier for the sampler alone."""
    masses = np.array(molecule.masses, dtype=np.float64)
    if hydrogen_mass_Da is not None:
        masses[molecule.numbers == 1] = hydrogen_mass_Da
    return masses


def start_positions(run: HybridRun) -> np.ndarray:
    """Positions (R,N,3) nm: conformers in turn, or frames of an MD trajectory.

    Without --frame the replicas are spread evenly over the production frames.
    """
    n = run.hybrid.replicas
    if run.initial_md is None:
        conformers = run.molecule.conformers
        return conformers[np.arange(n) % len(conformers)].copy()
    trajectory = load_trajectory(run.initial_md)
    if not np.array_equal(trajectory.atom_types, run.molecule.numbers):
        raise UserError(f"{run.initial_md} is a trajectory of another molecule than {run.molecule.name}")
    if run.frame is not None:
        if not -len(trajectory.pos) <= run.frame < len(trajectory.pos):
            raise UserError(f"frame {run.frame} is not in {run.initial_md}, which has {len(trajectory.pos)} frames")
        return np.repeat(trajectory.pos[run.frame][None], n, axis=0)
    frames = trajectory.frames_of("train", "reference")
    if not len(frames):
        raise UserError(f"{run.initial_md} has no production frames; give --frame")
    frames = frames[np.argsort(trajectory.replica[frames], kind="stable")]
    return trajectory.pos[frames[np.linspace(0, len(frames) - 1, n).astype(int)]].copy()


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


class Tally:
    """Counts over all production macro-steps; goes into the metadata and the restart file."""

    def __init__(self, saved: dict | None = None):
        self.counts = saved or {"macro_steps": 0, "accepted": 0, "failed_true_calls": 0, "refused_jumps": 0,
                                "plain_steps": 0, "sum_exp": 0.0, "sum_exp_squared": 0.0, "attempts": {}}

    def add(self, state, scheme, beta: float) -> None:
        """Count one macro-step of every replica."""
        c = self.counts
        c["macro_steps"] += state.n_replicas
        c["accepted"] += int(state.accepted.sum())
        if scheme.name == "metropolis":
            weight = np.exp(np.minimum(-beta * state.delta_H, 700.0))
            c["sum_exp"] += float(weight.sum())
            c["sum_exp_squared"] += float((weight**2).sum())
            c["failed_true_calls"] += int(state.failures.sum())
        elif scheme.name == "jump":
            c["refused_jumps"] += int(state.failures.sum())
            c["plain_steps"] += int((scheme.k_steps - state.inner_steps).sum())
        for attempts in state.attempts:
            c["attempts"][str(int(attempts))] = c["attempts"].get(str(int(attempts)), 0) + 1

    def summary(self, scheme_name: str) -> dict:
        """Fractions and means for the metadata."""
        c = self.counts
        out = {"tally": c}
        if scheme_name == "metropolis" and c["macro_steps"]:
            n = c["macro_steps"]
            mean = c["sum_exp"] / n
            out["acceptance"] = c["accepted"] / n
            out["mean_exp_minus_beta_dH"] = mean
            out["mean_exp_minus_beta_dH_error"] = float(
                np.sqrt(max(c["sum_exp_squared"] / n - mean**2, 0.0) / max(n - 1, 1)))
        return out


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
        if isinstance(carry, ShardedCarrier):
            carry.close()


def _run(run, scheme, thermostat, writer, pool, network, provenance, machine) -> dict:
    hybrid, molecule = run.hybrid, run.molecule
    saved = writer.resume() if run.resume else None
    ensemble = "NVT" if thermostat is not None or scheme.is_thermostatted else "NVE"
    production = "train" if ensemble == "NVT" else "drift"
    if saved is None:
        writer.start_over()
        rng = np.random.default_rng(run.seed)
        positions = start_positions(run)
        state = initial_state(pool, positions,
                              draw_velocities(hybrid.replicas, scheme.masses, hybrid.temperature_K, rng))
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

    jump_ps = scheme.k_steps * scheme.dt_ps
    with tqdm(total=total, initial=done, unit="step", desc=f"{molecule.name} {scheme.name}") as bar:
        while done < total:
            if done == hybrid.burn_in_steps:
                now = account()
                spent["true_calls_burn_in"] = now["true_calls"]
                spent["wall_burn_in_s"] = now["wall_s"]
                segments = _open_segments(writer, production, ensemble, hybrid, molecule)
            state = macro_step(scheme, pool, state, rng, thermostat)
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
                bar.set_postfix_str(_speed(done, jump_ps, hybrid.replicas, account()["wall_s"], scheme, tally))
    spent = account()
    spent["wall_production_s"] = spent["wall_s"] - spent["wall_burn_in_s"]
    metadata = {
        "molecule": molecule.name, "smiles": molecule.smiles, "method": run.method, "backend": run.spec.backend,
        "units": "nm ps Da kJ/mol K", "scheme": scheme.name, "k_steps": scheme.k_steps, "dt_fs": hybrid.dt_fs,
        "jump_fs": jump_ps * FS_PER_PS, "temperature_K": hybrid.temperature_K, "seed": run.seed,
        "config": hybrid.model_dump(), "delta_scale": hybrid.delta_scale, "energy_rescale": hybrid.energy_rescale,
        "replicas": hybrid.replicas, "num_workers": run.n_workers, "device": run.device,
        "checkpoint": str(run.checkpoint) if run.checkpoint else None, "checkpoint_sha256": _sha256(run.checkpoint),
        "true_calls_training": int(network.metadata.get("true_calls_training") or 0) if network else 0,
        "failed_true_calls": pool.failures[:MOST_LISTED_FAILURES], "status": "finished", "machine": machine, **spent, **tally.summary(scheme.name), **provenance}
    writer.finish(metadata)
    return metadata


def _open_segments(writer, role, ensemble, hybrid, molecule) -> list[int]:
    return [writer.open_segment(r, role, ensemble, hybrid.temperature_K, degrees_of_freedom(len(molecule)))
            for r in range(hybrid.replicas)]


def _speed(done, jump_ps, replicas, seconds, scheme, tally) -> str:
    ps_per_day = done * jump_ps * replicas / max(seconds, 1e-9) * SECONDS_PER_DAY
    text = f"{ps_per_day:.3g} ps/day"
    if scheme.name == "metropolis" and tally.counts["macro_steps"]:
        text += f", acceptance {tally.counts['accepted'] / tally.counts['macro_steps']:.2f}"
    if scheme.name == "jump" and tally.counts["macro_steps"]:
        text += f", refused {tally.counts['refused_jumps']}"
    return text


def _sha256(path: Path | None) -> str | None:
    return sha256(path) if path and Path(path).is_file() else None


def prepare_run(args, molecule: Molecule, make_spec: Callable[[HybridConfig], PhysicsSpec], method: str,
                hybrid: HybridConfig, baseline, device: str) -> HybridRun:
    """Check the command line of 06/06b against the checkpoint and fill in what it leaves open."""
    checkpoint = None
    if hybrid.scheme != "plain" and args.checkpoint:
        from kstep.models import checkpoint as checkpoints

        checkpoint = checkpoints.load(args.checkpoint)
        if args.model_config:
            checkpoints.check_config(checkpoint, args.checkpoint, args.model_config)
    if args.frame is not None and not args.initial_md:
        raise UserError("--frame needs --initial-md, the trajectory to take it from")
    hybrid = settle_settings(hybrid, checkpoint, baseline)
    return HybridRun(
        molecule=molecule, spec=make_spec(hybrid), method=method, hybrid=hybrid,
        checkpoint=Path(args.checkpoint) if checkpoint is not None else None, out=Path(args.out), seed=args.seed,
        n_workers=args.num_workers or physical_cores(), device=device, resume=args.resume,
        initial_md=Path(args.initial_md) if args.initial_md else None, frame=args.frame)


def describe(metadata: dict) -> str:
    """One line about a finished run."""
    ps = metadata["tally"]["macro_steps"] * metadata["jump_fs"] / FS_PER_PS
    text = (f"{metadata['molecule']} {metadata['scheme']} k={metadata['k_steps']}: {ps:.1f} ps over "
            f"{metadata['replicas']} replicas, {metadata['true_calls']} true calls, "
            f"{ps / max(metadata['wall_production_s'], 1e-9) * SECONDS_PER_DAY:.3g} ps/day")
    if "acceptance" in metadata:
        text += (f", acceptance {metadata['acceptance']:.3f}, <exp(-beta dH)> = "
                 f"{metadata['mean_exp_minus_beta_dH']:.3f} +- {metadata['mean_exp_minus_beta_dH_error']:.3f}")
    if metadata["scheme"] == "jump":
        text += f", {metadata['tally']['refused_jumps']} jumps refused, {metadata['tally']['plain_steps']} plain steps"
    return text
