"""What a hybrid run does, settled before it starts: flags, YAML and checkpoint checked against each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kstep.config import BaselineConfig
from kstep.errors import UserError
from kstep.files import check_writable
from kstep.forces import PhysicsSpec
from kstep.forces.pool import physical_cores
from kstep.molecules.molecule import Molecule
from kstep.schemas import load_trajectory
from kstep.schemes.hybrid_config import WITHOUT_NETWORK, HybridConfig
from kstep.units import kT

DEFAULT_METROPOLIS_STEPS = 1000
TUNED_HYDROGEN_DA = 4.0
DEFAULT_JUMP_FS = {"impulse": 2.0, "checked": 16.0}
# Keys that plain MD refuses or reads otherwise than the hybrid it is a control of; at their defaults it takes any config.
NOT_FOR_PLAIN = ("k_steps", "dt_fs", "hydrogen_mass_Da", "hessian_masses", "tempering_K", "tune", "project_residual",
                 "max_energy_spread_kJ_per_mol", "max_force_rmse_kJ_per_mol_A", "past_tolerance")


@dataclass(frozen=True)
class NetworkRecipe:
    """How any process builds the network of a run: load(**arguments, checkpoint=, device=, delta_scale=, rows=, inner=).

    load: a function of a module, so that spawned processes find it; it returns something with the face of
    kstep.models.network.Network.  arguments: picklable, and the same for the whole run.
    """

    load: Callable
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HybridRun:
    """Everything a run needs; `hybrid` has no nulls left (see `settle_settings`).

    molecule: all N atoms that move, whose masses, bonds and elements the trajectory holds; starts (S,N,3) nm:
    start geometries that replicas take in turn, None for the conformers or initial_md; recipe: how its network
    is built, None for a network of the molecule itself; facts: what else its metadata says of it, which a resumed
    run must share.
    """

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
    starts: np.ndarray | None = None
    recipe: NetworkRecipe | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def keeps_forces(self) -> bool:
        """Whether true forces go into the trajectory; metropolis asks for them only to keep them."""
        if self.hybrid.store_forces is not None:
            return self.hybrid.store_forces
        return not (self.hybrid.scheme == "metropolis" and self.spec.energy_is_cheaper)


def settle_settings(hybrid: HybridConfig, checkpoint: dict | None, baseline: BaselineConfig) -> HybridConfig:
    """Fill the nulls of a HybridConfig from a loaded checkpoint and the baseline's config."""
    if hybrid.scheme not in WITHOUT_NETWORK and checkpoint is None:
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
        if not hybrid.tune:
            k_steps, dt_fs = k_steps or DEFAULT_METROPOLIS_STEPS, dt_fs or baseline.dt_fs
    elif scheme in DEFAULT_JUMP_FS:
        if not checkpoint["config"]["heads"]["energy"]:
            raise UserError(f"{scheme} needs a conservative force, and this checkpoint has only a jump head; train one "
                            "with heads: {energy: true}")
        dt_fs = dt_fs or baseline.dt_fs
        k_steps = k_steps or max(1, round(DEFAULT_JUMP_FS[scheme] / dt_fs))
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
    hydrogen_mass_Da = hybrid.hydrogen_mass_Da
    if scheme == "metropolis":
        check_sampler(hybrid)
        if hybrid.tune and not hybrid.hessian_masses:
            hydrogen_mass_Da = hydrogen_mass_Da or TUNED_HYDROGEN_DA
    else:
        for key in ("hydrogen_mass_Da", "hessian_masses", "tempering_K", "tune"):
            if getattr(hybrid, key):
                raise UserError(f"{key} changes the dynamics, or needs its exact test; only metropolis may use it")
    temperature_K = hybrid.temperature_K or (hybrid.tempering_K or [baseline.temperature_K])[0]
    _refuse_what_would_do_nothing(hybrid, scheme)
    return hybrid.model_copy(update={"scheme": scheme, "k_steps": k_steps, "dt_fs": dt_fs,
                                     "hydrogen_mass_Da": hydrogen_mass_Da, "temperature_K": temperature_K})


def check_start(initial_md: str | Path | None, frame: int | None) -> None:
    """Refuse a frame without the trajectory it is in."""
    if frame is not None and not initial_md:
        raise UserError("--frame needs --initial-md, the trajectory to take it from")


def check_sampler(hybrid: HybridConfig) -> None:
    """Refuse masses that contradict each other and ladders that cannot be climbed."""
    if hybrid.hydrogen_mass_Da is not None and hybrid.hessian_masses:
        raise UserError("hydrogen_mass_Da and hessian_masses both set the sampler's masses; use one of them")
    ladder = hybrid.tempering_K
    if ladder is None:
        return
    if any(b <= a for a, b in zip(ladder, ladder[1:])):
        raise UserError(f"tempering_K must rise from the target temperature upwards, not {ladder}")
    if hybrid.temperature_K not in (None, ladder[0]):
        raise UserError(f"temperature_K {hybrid.temperature_K:g} is not the first rung of tempering_K {ladder}")
    if hybrid.replicas % len(ladder):
        raise UserError(f"{hybrid.replicas} replicas cannot be dealt out evenly to the {len(ladder)} rungs of "
                        f"tempering_K; use a multiple of {len(ladder)}")


def _refuse_what_would_do_nothing(hybrid: HybridConfig, scheme: str) -> None:
    """Settings of one scheme must not be given to another in silence."""
    if hybrid.project_residual and scheme != "impulse":
        raise UserError(f"project_residual shapes the kicks of impulse, and {scheme} has none; leave it false")
    limits = (hybrid.max_energy_spread_kJ_per_mol, hybrid.max_force_rmse_kJ_per_mol_A)
    if scheme != "checked" and (any(limits) or hybrid.past_tolerance != "stop"):
        raise UserError("max_energy_spread_kJ_per_mol, max_force_rmse_kJ_per_mol_A and past_tolerance belong to "
                        f"checked; {scheme} does not watch them")
    if hybrid.past_tolerance == "learn" and not any(limits):
        raise UserError("past_tolerance: learn needs a tolerance; set max_energy_spread_kJ_per_mol or "
                        "max_force_rmse_kJ_per_mol_A")
    if scheme in DEFAULT_JUMP_FS and hybrid.energy_rescale:
        raise UserError(f"energy_rescale belongs to jump; {scheme} keeps its own energy")
    if scheme == "checked" and hybrid.delta_scale == 0:
        raise UserError("checked moves by the network's force alone, so delta_scale 0 leaves it none; use impulse for "
                        "a run without a network")


def prepare_run(molecule: Molecule, make_spec: Callable[[HybridConfig], PhysicsSpec], method: str, hybrid: HybridConfig,
                baseline: BaselineConfig, *, out: str | Path, checkpoint: str | Path | None = None,
                model_config: str | Path | None = None, seed: int = 0, n_workers: int | None = None, device: str = "cpu",
                resume: bool = False, initial_md: str | Path | None = None, frame: int | None = None,
                starts: np.ndarray | None = None, recipe: NetworkRecipe | None = None,
                facts: dict[str, Any] | None = None) -> HybridRun:
    """A HybridRun: what is asked, checked against the checkpoint, and what it leaves open filled in.

    make_spec: the true physics for the settled config; method: its name; hybrid, baseline: as read from YAML, nulls
    and all; model_config: a YAML that the checkpoint must have been built from; n_workers None: all cores; the rest
    as in HybridRun.  Raises UserError for what contradicts itself or would do nothing.
    """
    loaded = None
    if hybrid.scheme not in WITHOUT_NETWORK and checkpoint:
        from kstep.models import checkpoint as checkpoints

        loaded = checkpoints.load(checkpoint)
        if model_config:
            checkpoints.check_config(loaded, checkpoint, model_config)
    check_start(initial_md, frame)
    hybrid = settle_settings(hybrid, loaded, baseline)
    check_writable(out)
    return HybridRun(
        molecule=molecule, spec=make_spec(hybrid), method=method, hybrid=hybrid,
        checkpoint=Path(checkpoint) if checkpoint and loaded is not None else None, out=Path(out), seed=seed,
        n_workers=n_workers or physical_cores(), device=device, resume=resume,
        initial_md=Path(initial_md) if initial_md else None, frame=frame, starts=starts, recipe=recipe,
        facts=facts or {})


def share_replicas(energies: np.ndarray, n_replicas: int, temperature_K: float) -> np.ndarray:
    """Conformer (R,) that each replica starts from; energies (C,) kJ/mol, best first.

    Every conformer gets a replica while there are enough of them, so that none is overlooked; the
    others follow exp(-E/kT), since a chain may take long to leave a conformer it should not be in.
    """
    energies = np.asarray(energies)
    weights = np.exp(-(energies - energies.min()) / kT(temperature_K))
    wanted = weights / weights.sum() * n_replicas
    counts = np.zeros(len(energies), dtype=int)
    counts[:n_replicas] = 1
    for _ in range(n_replicas - counts.sum()):
        counts[np.argmax(wanted - counts)] += 1
    return np.repeat(np.arange(len(energies)), counts)


def start_positions(run: HybridRun) -> np.ndarray:
    """Positions (R,N,3) nm: run.starts, conformers by their Boltzmann weight, or frames of an MD trajectory.

    Without --frame the replicas are spread evenly over the production frames.
    """
    n = run.hybrid.replicas
    if run.starts is not None:
        return run.starts[np.arange(n) % len(run.starts)]
    if run.initial_md is None:
        share = share_replicas(run.molecule.conformer_energies, n, run.hybrid.temperature_K)
        return run.molecule.conformers[share].copy()
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
