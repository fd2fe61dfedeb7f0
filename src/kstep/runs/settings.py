"""What a hybrid run does, settled before it starts: flags, YAML and checkpoint checked against each other."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kstep.config import BaselineConfig
from kstep.errors import UserError
from kstep.files import check_name, check_writable
from kstep.forces import PhysicsSpec
from kstep.molecules.molecule import Molecule
from kstep.molecules.restrained import led_to
from kstep.processes import physical_cores
from kstep.restraints import Restraint
from kstep.runs.aim import settle_end
from kstep.runs.starts import Starts
from kstep.schemas import load_trajectory
from kstep.scheme_traits import SchemeTraits
from kstep.schemes import CONTROL, PREFERRED, SAMPLERS, SCHEMES
from kstep.schemes.hybrid_config import HybridConfig, preferred, refuse_keys_of_others
from kstep.schemes.sampler import SamplerConfig
from kstep.topology import neighbours
from kstep.units import kT

log = logging.getLogger("kstep")


@dataclass(frozen=True)
class NetworkRecipe:
    """How any process builds the network of a run.

    load(**arguments, checkpoint=, device=, delta_scale=, rows=, inner=) returns something with the face of
    kstep.models.network.Network; it is a function of a module, so that spawned processes find it.
    arguments: picklable, and the same for the whole run.
    """

    load: Callable
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HybridRun:
    """Everything a run needs; `hybrid` has no nulls left (see `settle_settings`).

    molecule: all N atoms that move, whose masses, bonds and elements the trajectory holds and whose conformers
    replicas start from; recipe: how its network is built, None for a network of the molecule itself; facts: what
    else its metadata says of it (keys of a RunRecord), which a resumed run must share; starts: where its molecule's
    conformers come from, and what that cost; delay: a cheaper truth that judges proposals before `spec` is asked
    (schemes.delayed), energies of which depend on x alone; propose: a cheap potential, as true, in the place of the
    network (runs.proposal_potential).
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
    recipe: NetworkRecipe | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    starts: Starts | None = None
    delay: PhysicsSpec | None = None
    propose: PhysicsSpec | None = None

    @property
    def traits(self) -> SchemeTraits:
        """What its scheme needs and promises."""
        return SCHEMES[self.hybrid.scheme].traits

    @property
    def keeps_species(self) -> bool:
        """Whether its sampler has walls around the molecule; other dynamics is only watched."""
        return issubclass(SCHEMES[self.hybrid.scheme].Config, SamplerConfig) and self.hybrid.keep_species

    @property
    def keeps_forces(self) -> bool:
        """Whether true forces go into the trajectory; a scheme that needs none asks for them only to keep them."""
        if self.hybrid.store_forces is not None:
            return self.hybrid.store_forces
        return self.traits.needs_forces or (self.spec.has_forces and not self.spec.energy_is_cheaper)


A_POTENTIAL = "energy"  # the head of a network that is one
OF_NETWORKS = {"inner": "auto", "delta_scale": 1.0, "past_tolerance": "stop"}  # keys that mean nothing without one

# what a checkpoint lacks, and what it then has, by the head that a scheme needs
MISSING = {"energy": "a conservative force, and this checkpoint has only a jump head",
           "jump": "a jump head, and this checkpoint has only a conservative force"}


def settle_settings(hybrid: HybridConfig, checkpoint: dict | None, baseline: BaselineConfig) -> HybridConfig:
    """Fill the nulls of a HybridConfig from a loaded checkpoint and the baseline's config."""
    heads = checkpoint["config"]["heads"] if checkpoint is not None else {}
    fitting = [s for s in PREFERRED if heads.get(s.traits.head)] or PREFERRED
    kind = SCHEMES[hybrid.scheme] if hybrid.scheme else preferred(hybrid, fitting)
    if kind.traits.needs_network and checkpoint is None:
        raise UserError(f"scheme {kind.name} needs a network; give --checkpoint, learn one with "
                        f"--learn, or use --scheme {CONTROL.name}")
    if kind.traits.head and not heads.get(kind.traits.head):
        raise UserError(f"{kind.name} needs {MISSING[kind.traits.head]}; train one with heads: "
                        f"{{{kind.traits.head}: true}}, or use another --scheme")
    refuse_keys_of_others(hybrid, kind.name)
    if kind.traits.sets_temperature and hybrid.thermostat == "none":
        others = ", ".join(name for name, other in SCHEMES.items() if not other.traits.sets_temperature)
        raise UserError(f"thermostat: none is a run at constant energy, and {kind.name} draws its own momenta at the "
                        f"temperature; leave it out, or take --scheme {others}")
    hybrid = hybrid.model_copy(update={
        "scheme": kind.name, "replicas": hybrid.replicas or kind.default_replicas,
        "burn_in_steps": kind.default_burn_in if hybrid.burn_in_steps is None else hybrid.burn_in_steps})
    settled = {"temperature_K": hybrid.temperature_K or baseline.temperature_K,
               "restraints": baseline.restraints if hybrid.restraints is None else hybrid.restraints,
               **settle_end(hybrid, kind)}
    return hybrid.model_copy(update={**settled, **kind.settle_defaults(hybrid, checkpoint, baseline)})


def restraints_of(hybrid: HybridConfig, baseline: BaselineConfig) -> tuple[Restraint, ...]:
    """Those of the run, or of the baseline where the run says nothing of them."""
    return tuple((baseline.restraints if hybrid.restraints is None else hybrid.restraints) or ())


def check_start(initial_md: str | Path | None, frame: int | None) -> None:
    """Refuse a frame without the trajectory it is in."""
    if frame is not None and not initial_md:
        raise UserError("--frame needs --initial-md, the trajectory to take it from")


def check_forces(hybrid: HybridConfig, spec: PhysicsSpec) -> None:
    """Refuse a settled run that would ask for forces which its truth does not have."""
    if SCHEMES[hybrid.scheme].traits.needs_forces:
        others = " or ".join(f"--scheme {kind.name}" for kind in SAMPLERS)
        spec.require_forces(f"scheme {hybrid.scheme}", f"sample on energies alone, by {others}")
    if hybrid.store_forces:
        spec.require_forces("store_forces", "leave it out")


def check_before_learning(hybrid: HybridConfig, baseline: BaselineConfig, spec: PhysicsSpec,
                          delay: PhysicsSpec | None) -> None:
    """Refuse what `prepare_run` would refuse of a run whose network is yet to be learned, while it has cost nothing."""
    settled = settle_settings(hybrid, {"config": {"heads": {A_POTENTIAL: True}}}, baseline)
    check_forces(settled, spec)
    settle_delay(settled, spec, delay)


def settle_delay(hybrid: HybridConfig, spec: PhysicsSpec, delay: PhysicsSpec | None) -> HybridConfig:
    """A settled config whose run is delayed by a cheaper truth, or by none; UserError for one that does not fit."""
    if delay is None:
        if hybrid.delayed_steps is not None:
            raise UserError("delayed_steps are judged by a cheaper method; name it with --delay-with, or leave them "
                            "null")
        return hybrid
    if not SCHEMES[hybrid.scheme].traits.explores:
        others = " or ".join(f"--scheme {name}" for name, kind in SCHEMES.items() if kind.traits.explores)
        raise UserError(f"scheme {hybrid.scheme} does not ask a cheaper method first; leave --delay-with out, or take "
                        f"{others}")
    check_cheaper("--delay-with", delay, spec)
    return hybrid.model_copy(update={"delayed_steps": hybrid.delayed_steps or 1})


def check_cheaper(flag: str, cheaper: PhysicsSpec, spec: PhysicsSpec, what: str = "the truth itself") -> None:
    """UserError where what a flag names is `what`, or of another molecule's electrons."""
    if (cheaper.backend, cheaper.method) == (spec.backend, spec.method):
        raise UserError(f"{flag} is {spec.method}, {what}; name a cheaper method, or leave it out")
    for key in ("charge", "multiplicity"):
        if cheaper.settings.get(key, spec.settings.get(key)) != spec.settings.get(key, cheaper.settings.get(key)):
            raise UserError(f"{cheaper.method} of {flag} has {key} {cheaper.settings[key]}, and the truth "
                            f"{spec.settings[key]}; give both the same")


def without_network(hybrid: HybridConfig, checkpoint: str | Path | None) -> HybridConfig:
    """The config of a run whose proposals a cheap potential makes; UserError for what only a network could do.

    Nothing is tuned unless that is asked for, since trials cost calls here.
    """
    if checkpoint:
        raise UserError("--propose-with names a method in the place of a network; leave --checkpoint out, or "
                        "--propose-with")
    movers = {name: kind for name, kind in SCHEMES.items() if kind.traits.head == A_POTENTIAL}
    if hybrid.scheme is not None and hybrid.scheme not in movers:
        raise UserError(f"scheme {hybrid.scheme} does not move by a potential; leave --propose-with out, or take one "
                        f"of {', '.join(movers)}")
    for key, value in OF_NETWORKS.items():
        if getattr(hybrid, key) != value:
            raise UserError(f"{key} {getattr(hybrid, key)} is about a network, and --propose-with has none; leave it "
                            f"{json.dumps(value)}")
    can_tune = hybrid.scheme is None or "tune" in movers[hybrid.scheme].Config.model_fields
    return hybrid.model_copy(update={"tune": bool(hybrid.tune)}) if can_tune else hybrid


def check_proposal(propose: PhysicsSpec, spec: PhysicsSpec, delay: PhysicsSpec | None) -> None:
    """UserError for a potential that cannot propose to a truth, or to the cheaper one that judges before it."""
    check_cheaper("--propose-with", propose, spec)
    if delay is not None:
        check_cheaper("--propose-with", propose, delay, "as --delay-with is")
    propose.require_forces("what proposes moves by them", "take another method for --propose-with")


def prepare_run(molecule: Molecule, make_spec: Callable[[HybridConfig], PhysicsSpec], method: str, hybrid: HybridConfig,
                baseline: BaselineConfig, *, out: str | Path, checkpoint: str | Path | None = None,
                model_config: str | Path | None = None, seed: int = 0, n_workers: int | None = None,
                device: str = "cpu", resume: bool = False, initial_md: str | Path | None = None,
                frame: int | None = None,
                recipe: NetworkRecipe | None = None, facts: dict[str, Any] | None = None,
                starts: Starts | None = None, delay: PhysicsSpec | None = None,
                propose: PhysicsSpec | None = None) -> HybridRun:
    """A HybridRun: what is asked, checked against the checkpoint, and what it leaves open filled in.

    make_spec: the true physics for the settled config; method: its name; hybrid, baseline: as read from YAML, nulls
    and all; model_config: a YAML that the checkpoint must have been built from; n_workers None: all cores; the rest
    as in HybridRun.  Raises UserError for what contradicts itself or would do nothing.
    """
    loaded = None
    if checkpoint and (hybrid.scheme is None or SCHEMES[hybrid.scheme].traits.needs_network):
        from kstep.models import checkpoint as checkpoints

        loaded = checkpoints.load(checkpoint)
        if model_config:
            checkpoints.check_config(loaded, checkpoint, model_config)
        if recipe is None and propose is None:  # said now, and not when starts have cost true calls
            checkpoints.check_fits(loaded, checkpoint, molecule.numbers, molecule.bonds, method=method)
    elif checkpoint:
        log.warning("scheme %s asks the truth at every step: the network %s is not used", hybrid.scheme, checkpoint)
    check_start(initial_md, frame)
    check_name(molecule.name)
    if propose is not None:
        hybrid, loaded = without_network(hybrid, checkpoint), {"config": {"heads": {A_POTENTIAL: True}}}
    hybrid = settle_settings(hybrid, loaded, baseline)
    check_writable(out)
    spec = replace(make_spec(hybrid), restraints=hybrid.restraints or ())
    check_forces(hybrid, spec)
    delay, propose = (each and replace(each, restraints=spec.restraints) for each in (delay, propose))
    hybrid = settle_delay(hybrid, spec, delay)
    if propose is not None:
        check_proposal(propose, spec, delay)
    if recipe is None:  # else starts have settled under the restraints
        molecule = led_to(molecule, spec.restraints)
    return HybridRun(
        molecule=molecule, spec=spec, method=method, hybrid=hybrid,
        checkpoint=Path(checkpoint) if checkpoint and loaded is not None else None, out=Path(out), seed=seed,
        n_workers=n_workers or physical_cores(), device=device, resume=resume,
        initial_md=Path(initial_md) if initial_md else None, frame=frame, recipe=recipe, facts=facts or {},
        starts=starts, delay=delay, propose=propose)


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
    """Positions (R,N,3) nm: conformers by their Boltzmann weight, or frames of an MD trajectory.

    Without --frame the replicas are spread evenly over the production frames.
    """
    n = run.hybrid.replicas
    if run.initial_md is None:
        share = share_replicas(run.molecule.conformer_energies, n, run.hybrid.temperature_K)
        return run.molecule.conformers[share].copy()
    return frames_of(run.molecule, run.initial_md, run.frame, n)


def frames_of(molecule: Molecule, initial_md: Path, frame: int | None, n: int) -> np.ndarray:
    """n frames (n,N,3) nm of a trajectory of the molecule; UserError where it has none to start from."""
    trajectory = load_trajectory(initial_md)
    n_atoms = len(molecule)
    if (not np.array_equal(trajectory.atom_types, molecule.numbers)
            or neighbours(n_atoms, trajectory.bonds) != neighbours(n_atoms, molecule.bonds)):
        raise UserError(f"{initial_md} is a trajectory of another molecule than {molecule.name}")
    if frame is not None:
        if not -len(trajectory.pos) <= frame < len(trajectory.pos):
            raise UserError(f"frame {frame} is not in {initial_md}, which has {len(trajectory.pos)} frames")
        return np.repeat(trajectory.pos[frame][None], n, axis=0)
    frames = trajectory.frames_of("train", "reference")
    if not len(frames):
        raise UserError(f"{initial_md} has no production frames; give --frame")
    frames = frames[np.argsort(trajectory.replica[frames], kind="stable")]
    if trajectory.is_weighted:
        return trajectory.pos[trajectory.drawn(frames, n)].copy()
    return trajectory.pos[frames[np.linspace(0, len(frames) - 1, n).astype(int)]].copy()
