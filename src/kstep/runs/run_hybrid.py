"""One hybrid (or plain) run of R replicas of a molecule, from a checkpoint to a trajectory file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kstep.analysis.measure.populations import Populations, populations
from kstep.analysis.show.populations import format_populations
from kstep.errors import PhysicsError, UserError
from kstep.files import Claim, sha256
from kstep.fingerprint import as_written, check_same
from kstep.forces.journal import JournaledPool
from kstep.forces.pool import Pool, make_pool
from kstep.npz import read_npz
from kstep.outputs import set_aside
from kstep.runs import aim
from kstep.runs.accounting import Account
from kstep.runs.counters import weights_of_no_use
from kstep.runs.coverage import check_isomer, check_starts, describe_changes, describe_walls
from kstep.runs.production import Production
from kstep.runs.recorder import (
    BEGIN_ANEW,
    TrajectoryWriter,
    clear_remains,
    has_restart,
    holds_parts,
    parts_of,
    reopen,
)
from kstep.runs.rehearsal import Rehearsal
from kstep.runs.run_network import RunNetwork
from kstep.runs.sampler import settle_sampler
from kstep.runs.settings import HybridRun, start_positions
from kstep.runs.tolerance import OnViolation, Tolerances
from kstep.schemas import Trajectory, load_trajectory
from kstep.schemes import CONTROL, SCHEMES
from kstep.units import FS_PER_PS

MOST_LISTED_FAILURES = 100
FROM_NETWORK = ("coupling", "true_calls_training_by_method", "rungs")  # what a checkpoint says that a run does too

log = logging.getLogger("kstep")


def run_hybrid(run: HybridRun, provenance: dict, machine: dict, on_violation: OnViolation | None = None,
               rehearsal: Rehearsal | None = None) -> dict:
    """Run, write run.out, return its metadata; `on_violation` serves past_tolerance: learn (runs.tolerance),
    `rehearsal` a weighted run whose network may learn what it asks (runs.rehearsal).

    What is there is never replaced: a finished file of the same settings is the result, whether or not `run` resumes;
    UserError for one of others, and for an unfinished one that `run` does not resume.
    """
    claim = Claim(parts_of(run.out), run.out)
    try:
        metadata = _finished(run)
        if metadata is not None:
            return metadata
        return _run(run, claim, provenance, machine, on_violation, rehearsal)
    finally:
        claim.release()


def _run(run: HybridRun, claim: Claim, provenance: dict, machine: dict, on_violation: OnViolation | None,
         rehearsal: Rehearsal | None) -> dict:
    if not (run.resume and has_restart(run.out)):
        if run.keeps_species:
            check_starts(run.molecule, start_positions(run))
        elif run.initial_md is not None and run.hybrid.keep_species:  # false: a sampler of whatever it turns into
            check_isomer(run.molecule, start_positions(run), run.initial_md)
    tolerances = Tolerances(run.hybrid, run.out, on_violation)
    account = Account(run.starts)  # tuning and the start are on it too
    run, network = RunNetwork.of(run)
    try:
        with JournaledPool(make_pool(run.spec, run.n_workers), parts_of(run.out)) as pool, \
                cheaper_pool(run, pool) as cheaper:
            account.charge(pool, network.carry, cheaper, _calls_of_others(run, network, cheaper))
            run, masses, tuning, start = settle_sampler(run, network.network, network.carry, pool, cheaper)
            scheme = SCHEMES[run.hybrid.scheme].build(run.hybrid, run.molecule, network=network.network,
                                                      carry=network.carry, masses=masses, needs_forces=run.keeps_forces)
            if cheaper is not None:
                scheme = scheme.delayed_by(cheaper, run.hybrid.delayed_steps)
            settled = {"tuning": tuning, "inner": network.inner}
            writer = TrajectoryWriter(
                run.out, masses=run.molecule.masses, masses_sampler=scheme.masses, atom_types=run.molecule.numbers,
                bonds=run.molecule.bonds, store_forces=run.keeps_forces, fingerprint=_fingerprint(run),
                restraints=run.spec.restraints, claim=claim)
            production = Production(run, scheme, pool, writer, network, tolerances, account,
                                    rehearsal if run.keeps_forces and cheaper is None else None)
            production.begin(start, settled)
            if production.aim is not None:
                log.info("the run ends at %s", production.aim.stated())
            production.go()
            return _finish(production, settled, provenance, machine)
    finally:
        network.close()


@contextmanager
def cheaper_pool(run: HybridRun, pool: JournaledPool) -> Iterator[Pool | None]:
    """Workers of the truth that a run is delayed by, None without one; what ends the run is seen while they work."""
    if run.delay is None:
        yield None
        return
    with make_pool(run.delay, run.n_workers) as cheaper:
        cheaper.attend = pool.pool.attend
        yield cheaper


def _calls_of_others(run: HybridRun, network: RunNetwork, cheaper: Pool | None) -> dict[str, Callable[[], int]]:
    """By method, what counts the calls of those that judge before the truth, and that propose."""
    found: dict[str, Callable[[], int]] = {}
    if run.delay is not None and cheaper is not None:
        found[run.delay.method] = lambda: cheaper.true_calls
    if run.propose is not None:
        found[run.propose.method] = lambda: network.network.true_calls + network.carry.true_calls
    return found


def _finished(run: HybridRun) -> dict | None:
    """Metadata of the file that an earlier run with the same settings finished, None where there is more to do.

    UserError where its settings were others; what a run measures for itself is not compared.  A file that is to become
    longer, or to know more, is opened again, for `run` to go on with where it resumes.
    """
    is_there = run.out.is_file()  # without a restart file beside it, parts are what a kill has left at its end
    if not is_there or has_restart(run.out):
        if holds_parts(run.out) and not run.resume:
            raise UserError(f"{run.out} is being made by a run that has not finished; --resume goes on with it, "
                            f"{BEGIN_ANEW}")
        return None
    try:
        frames = load_trajectory(run.out)
    except UserError as error:
        raise UserError(f"{error}; it is not replaced: choose another output, or {BEGIN_ANEW}") from None
    metadata = frames.metadata
    asked, there = as_written(_fingerprint(run)), dict(metadata.get("fingerprint", {}))
    if metadata["scheme"] == CONTROL.name and "hybrid" not in there:
        raise UserError(f"{run.out} is there already, made by kstep baseline; choose another output, or {BEGIN_ANEW}")
    given = {key: value for key, value in asked["hybrid"].items() if value not in (None, "auto")}
    there["hybrid"] = {key: value for key, value in there.get("hybrid", {}).items() if key in given}
    other = f"choose another output, or {BEGIN_ANEW}"
    check_same(f"{run.out} is there already, made", there, {**asked, "hybrid": given}, other)
    if metadata["status"] == "finished":
        ends = {key: (metadata["config"].get(key), getattr(run.hybrid, key)) for key in aim.ENDS}
        if all(was == now for was, now in ends.values()):
            log.info("%s is finished already; a larger --steps or aim with --resume goes on with it, %s", run.out,
                     BEGIN_ANEW)
            clear_remains(run.out, calls=True)
            return metadata
        _check_length(run, frames)
    if not run.resume:
        raise UserError(f"{run.out} is there already; --resume goes on with it, {BEGIN_ANEW}")
    if metadata["status"] != "finished":  # it broke, and holds no restart file to go on from
        set_aside(run.out)
        return None
    clear_remains(run.out, calls=False)
    if not reopen(run.out):
        log.warning("%s was finished before the first restart file of its run, which begins anew", run.out)
    return None


def _check_length(run: HybridRun, frames: Trajectory) -> None:
    """UserError where a run of fixed length would be shorter than these frames, which an earlier run has finished."""
    config = frames.metadata["config"]
    held = len(frames.step) // config["replicas"] * config["save_interval_steps"]  # an aim ends where a frame is due
    there = config["steps"] or held - config["burn_in_steps"]
    if run.hybrid.steps is not None and run.hybrid.steps < there:
        raise UserError(f"{run.out} is finished already, with {there} macro-steps, and is not made shorter; ask for "
                        f"more --steps to continue it, choose another output, or {BEGIN_ANEW}")


def _fingerprint(run: HybridRun) -> dict:
    """What a resumed run must share."""
    others = {key: spec.fingerprint for key, spec in (("delay", run.delay), ("propose", run.propose)) if spec}
    return {"hybrid": run.hybrid.model_dump(exclude={*aim.ENDS, "checkpoint_interval"}), "seed": run.seed,
            "smiles": run.molecule.smiles, "method": run.method, "workers": run.n_workers,
            "physics": run.spec.fingerprint | others, "bonds": run.molecule.bonds.tolist(),
            "checkpoint": _sha256(run.checkpoint), **run.facts}


def _finish(production: Production, settled: dict, provenance: dict, machine: dict) -> dict:
    """Write the trajectory with its metadata, which are returned; PhysicsError if the physics broke the run off."""
    run, done, broken, stopped = production.run, production.done, production.broken, production.stopped
    spent, by_method = production.account.closed(production.pool.n_workers), {}
    named = {"delayed_with": run.delay, "proposed_with": run.propose}
    if any(named.values()):
        by_method = {key: spec.method for key, spec in named.items() if spec} | {"true_calls_by_method": {
            run.method: spent["true_calls"], **production.account.calls_of_others}}
    unseen = production.coverage.warning()
    if unseen and broken is None and not run.spec.restraints:  # which keep it from them
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
    facts = production.facts()
    of_starts = run.starts.caveats if run.starts is not None else []
    facts["caveats"] = [*facts["caveats"], *of_starts,
                        *filter(None, [describe_changes(changes, hybrid.replicas), at_walls, useless])]
    network: Any = production.network.network
    of_training = network.metadata if network else {}
    metadata = {
        **facts, "backend": run.spec.backend, "jump_fs": scheme.k_steps * scheme.dt_ps * FS_PER_PS,
        "delta_scale": hybrid.delta_scale, "energy_rescale": hybrid.energy_rescale, "replicas": hybrid.replicas,
        "num_workers": run.n_workers, "device": run.device,
        "checkpoint": str(run.checkpoint) if run.checkpoint else None,
        "checkpoint_sha256": _sha256(run.checkpoint),
        "true_calls_training": int(of_training.get("true_calls_training") or 0),
        "cpu_s_training": of_training.get("cpu_s_training"),
        **{key: value for key, value in of_training.items() if key in FROM_NETWORK}, **settled,
        "rotamers_never_visited": production.coverage.unvisited(), "species_changes": changes,
        "failed_true_calls": production.pool.failures[:MOST_LISTED_FAILURES], "machine": machine,
        "status": f"broke at macro-step {done}: {broken}" if broken else
                  f"stopped at macro-step {done}: {stopped}" if stopped else "finished",
        **({"starts": run.starts.record} if run.starts is not None else {}),
        **({"judge": scheme.frozen} if scheme.frozen else {}), **spent, **by_method, **summary, **provenance}
    frames = production.writer.recorded_frames(metadata)
    if production.aim is not None:
        production.judge(frames)  # all of them, wherever it ended
        metadata["aim"] = production.aim.record()
    known = production.aim.known if production.aim is not None else None
    metadata |= _populations(frames, known.populations if known is not None else None)
    # what a learning run has recorded to learn from is not in its restart file
    if run.out.is_file() and len(read_npz(run.out, only={"step"})["step"]) > len(frames.step):
        set_aside(run.out)  # an aim that was reached sooner than an earlier run of fixed length had ended
    production.writer.finish(metadata, goes_on=metadata["status"] == "finished" and not production.tolerances.learns)
    production.pool.end()
    if broken is not None:
        raise PhysicsError(f"{broken}; the {done} macro-steps before it are in {run.out}")
    return metadata


def _populations(frames: Trajectory, found: Populations | None) -> dict:
    """{"populations": those of the conformers}, which the log shows; {} where no frames are at constant temperature.

    found: those that the run was judged by, if it was.
    """
    if not len(frames.frames_of("train", "reference")):
        return {}
    try:
        found = populations([frames]) if found is None else found
    except UserError as error:
        log.warning("no populations of conformers: %s", error)
        return {}
    log.info("populations\n%s", format_populations(found))
    return {"populations": found.as_dict()}


def _sha256(path: Path | None) -> str | None:
    return sha256(path) if path and Path(path).is_file() else None
