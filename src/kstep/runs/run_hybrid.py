"""One hybrid (or plain) run of R replicas of a molecule, from a checkpoint to a trajectory file."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from kstep.errors import PhysicsError, UserError
from kstep.files import sha256
from kstep.forces.journal import JournaledPool
from kstep.forces.pool import EvaluationPool
from kstep.runs import aim
from kstep.runs.accounting import Account
from kstep.runs.counters import weights_of_no_use
from kstep.runs.coverage import check_starts, describe_changes, describe_walls
from kstep.runs.production import Production
from kstep.runs.recorder import TrajectoryWriter, facts_of_run, kept_file, reopen
from kstep.runs.run_network import RunNetwork
from kstep.runs.sampler import settle_sampler
from kstep.runs.settings import HybridRun, start_positions
from kstep.runs.tolerance import OnViolation, Tolerances
from kstep.schemas import load_trajectory
from kstep.schemes import SCHEMES
from kstep.units import FS_PER_PS

MOST_LISTED_FAILURES = 100

log = logging.getLogger("kstep")


def run_hybrid(run: HybridRun, provenance: dict, machine: dict, on_violation: OnViolation | None = None) -> dict:
    """Run, write run.out, return its metadata; `on_violation` serves past_tolerance: learn (runs.tolerance)."""
    metadata = _finished(run)
    if metadata is not None:
        log.info("%s is finished already", run.out)
        return metadata
    if run.keeps_species and not (run.resume and kept_file(run.out, "checkpoint.npz").is_file()):
        check_starts(run.molecule, start_positions(run))
    tolerances = Tolerances(run.hybrid, run.out, on_violation)
    account = Account()  # tuning and the start are on it too
    run, network = RunNetwork.of(run)
    writer = None
    try:
        with JournaledPool(EvaluationPool(run.spec, run.n_workers), kept_file(run.out, "")) as pool:
            account.charge(pool, network.carry)
            run, masses, tuning, start = settle_sampler(run, network.network, network.carry, pool)
            scheme = SCHEMES[run.hybrid.scheme].build(run.hybrid, run.molecule, network=network.network,
                                                      carry=network.carry, masses=masses, needs_forces=run.keeps_forces)
            settled = {"tuning": tuning, "inner": network.inner}
            writer = TrajectoryWriter(
                run.out, masses=run.molecule.masses, masses_sampler=scheme.masses, atom_types=run.molecule.numbers,
                bonds=run.molecule.bonds, store_forces=run.keeps_forces, fingerprint=_fingerprint(run))
            production = Production(run, scheme, pool, writer, network, tolerances, account)
            production.begin(start, settled)
            if production.aim is not None:
                log.info("the run ends at %s", production.aim.stated())
            production.go()
            return _finish(production, settled, provenance, machine)
    finally:
        if writer is not None:
            writer.release()
        network.close()


def _finished(run: HybridRun) -> dict | None:
    """Metadata of the file that an earlier run with the same settings finished, where `run` resumes it, else None.

    UserError where its settings were others; what a run measures for itself is not compared.  A file that is to become
    longer, or to know more, is opened again, for `run` to go on with.
    """
    if not run.resume or not run.out.is_file() or kept_file(run.out, "checkpoint.npz").is_file():
        return None
    metadata = load_trajectory(run.out).metadata
    asked, there = json.loads(json.dumps(_fingerprint(run))), metadata.get("fingerprint", {})
    given = {key: value for key, value in asked.pop("hybrid").items() if value not in (None, "auto")}
    changed = [key for key in asked if there.get(key) != asked[key]]
    changed += [key for key in given if there.get("hybrid", {}).get(key) != given[key]]
    if changed:
        raise UserError(f"{run.out} is finished, with other settings ({', '.join(changed)}); choose another output, or "
                        "run without --resume to make it again")
    if metadata["status"] != "finished":
        return None
    if all(metadata["config"].get(key) == getattr(run.hybrid, key) for key in aim.ENDS):
        return metadata
    if not reopen(run.out):
        log.warning("%s was finished before the first restart file of its run, which begins anew", run.out)
    return None


def _fingerprint(run: HybridRun) -> dict:
    """What a resumed run must share."""
    return {"hybrid": run.hybrid.model_dump(exclude={*aim.ENDS, "checkpoint_interval"}), "seed": run.seed,
            "smiles": run.molecule.smiles, "method": run.method, "workers": run.n_workers,
            "checkpoint": _sha256(run.checkpoint), **run.facts}


def _finish(production: Production, settled: dict, provenance: dict, machine: dict) -> dict:
    """Write the trajectory with its metadata, which are returned; PhysicsError if the physics broke the run off."""
    run, done, broken, stopped = production.run, production.done, production.broken, production.stopped
    spent = production.account.closed(run.n_workers)
    unseen = production.coverage.warning()
    if unseen and broken is None:
        log.warning("%s", unseen)
    hybrid, scheme = run.hybrid, production.scheme
    changes = production.species.changes if production.species is not None else []
    summary = production.tally.summary()
    at_walls = describe_walls(summary.get("figures", {}).get("refused_at_walls", []))
    if at_walls:
        log.warning("%s", at_walls)
    useless = weights_of_no_use(summary)
    if useless:
        log.warning("%s", useless)
    facts = facts_of_run(run.molecule, scheme, hybrid, k_steps=scheme.k_steps, method=run.method, seed=run.seed)
    facts["caveats"] = [*facts["caveats"], *filter(None, [describe_changes(changes, hybrid.replicas), at_walls,
                                                          useless])]
    network: Any = production.network.network
    of_training = network.metadata if network else {}
    metadata = {
        **facts, "backend": run.spec.backend, "jump_fs": scheme.k_steps * scheme.dt_ps * FS_PER_PS,
        "delta_scale": hybrid.delta_scale, "energy_rescale": hybrid.energy_rescale, "replicas": hybrid.replicas,
        "num_workers": run.n_workers, "device": run.device,
        "checkpoint": str(run.checkpoint) if run.checkpoint else None,
        "checkpoint_sha256": _sha256(run.checkpoint), **run.facts,
        "true_calls_training": int(of_training.get("true_calls_training") or 0),
        "cpu_s_training": of_training.get("cpu_s_training"),
        **{key: value for key, value in of_training.items() if key == "coupling"}, **settled,
        "rotamers_never_visited": production.coverage.unvisited(), "species_changes": changes,
        "failed_true_calls": production.pool.failures[:MOST_LISTED_FAILURES], "machine": machine,
        "status": f"broke at macro-step {done}: {broken}" if broken else
                  f"stopped at macro-step {done}: {stopped}" if stopped else "finished",
        **({"judge": scheme.frozen} if scheme.frozen else {}), **spent, **summary, **provenance}
    if production.aim is not None:
        metadata["aim"] = production.aim.record()
    # what a learning run has recorded to learn from is not in its restart file
    production.writer.finish(metadata, goes_on=metadata["status"] == "finished" and not production.tolerances.learns)
    production.pool.end()
    if broken is not None:
        raise PhysicsError(f"{broken}; the {done} macro-steps before it are in {run.out}")
    return metadata


def _sha256(path: Path | None) -> str | None:
    return sha256(path) if path and Path(path).is_file() else None
