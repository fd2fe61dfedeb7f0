"""Plain MD of one or many molecules: OpenMM at its native speed in this process, else one process per replica."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from kstep.config import HOW_IT_WORKS, BaselineConfig
from kstep.errors import PhysicsError, UserError
from kstep.files import check_name, check_writable
from kstep.fingerprint import as_written, check_same
from kstep.forces.base import check_start
from kstep.forces.openmm import fastest_platform, read_system
from kstep.molecules.prepare import ensure_prepared
from kstep.molecules.restrained import led_to
from kstep.molecules.smiles import read_smiles_file
from kstep.outputs import check_no_input, check_one_of, set_aside
from kstep.processes import physical_cores
from kstep.progress import progress_bar
from kstep.provenance import provenance
from kstep.runs.baseline import finish_baseline
from kstep.runs.baseline_jobs import ReplicaJob, ReplicaResult, run_jobs, run_replica
from kstep.runs.baseline_plan import plan_baseline
from kstep.runs.recorder import BEGIN_ANEW, clear_remains, holds_parts
from kstep.runs.starts import Starts, judged_starts, kept_starts, settle_starts
from kstep.schemas import load_trajectory
from kstep.shipped import find_molecules
from kstep.stages.physics import TruePhysics
from kstep.units import PS_PER_FS, PS_PER_NS, SECONDS_PER_DAY

WAITING_PER_CORE = 8  # processes that wait for the answers of a cluster

log = logging.getLogger("kstep")


@dataclass(frozen=True)
class PlainMDSettings:
    """targets: (physics, file to write) of each molecule; first_replica: another number gives other seeds and
    conformers.

    n_workers: replicas run at once; resume: continue unfinished molecules; overwrite: begin anew, and keep what is
    there under another name.
    """

    targets: tuple[tuple[TruePhysics, Path], ...]
    seed: int = 0
    first_replica: int = 0
    n_workers: int | None = None
    resume: bool = False
    store_forces: bool = True
    overwrite: bool = False

    def going_on(self) -> Self:
        """The same runs, which go on with what interrupted ones left."""
        return replace(self, resume=True)


def physics_of_file(smiles_file: str | Path, names: list[str] | None, config: BaselineConfig, raw: Path,
                    seed: int) -> tuple[list[TruePhysics], list[str]]:
    """The molecules of a SMILES file, prepared below `raw` where they are not, and complaints about those that fail."""
    entries, problems = read_smiles_file(find_molecules(smiles_file), names)
    found = []
    for entry in entries:
        try:
            physics = TruePhysics(ensure_prepared(entry, raw, seed=seed), config, folder=raw / entry.name)
            physics.check()
            found.append(physics)
        except UserError as error:
            problems.append(f"{entry.name}: {error}")
    return found, problems


def run_plain_md(settings: PlainMDSettings) -> tuple[list[str], list[str]]:
    """Write the trajectory of every target.

    Returns the names of the molecules whose file is there, and a sentence for each failure, none of which stops
    another.  What is there is never replaced unasked: a finished file of the same settings is the result.
    """
    check_one_of(settings.resume, settings.overwrite)
    done, problems, wanted = [], [], []
    for physics, out in settings.targets:
        try:
            check_name(physics.molecule.name)
            check_writable(out)
            if physics.is_mm and physics.config.scheduler:
                raise UserError("OpenMM makes the timesteps of a force field by itself; leave --scheduler out")
            if _is_finished(physics, out, settings):
                log.info("%s: %s is there already; %s", physics.molecule.name, out, BEGIN_ANEW)
                done.append(physics.molecule.name)
            else:
                wanted.append((physics, out))
        except UserError as error:
            problems.append(f"{physics.molecule.name}: {error}")
    for physics, out in wanted:
        if physics.is_mm:  # OpenMM uses every core by itself
            starts = judged_starts(physics.molecule)
            jobs = _jobs(physics, out, settings, starts)
            with _bar(jobs) as tick:
                _join(physics, [run_replica(job, tick) for job in jobs], settings, out, starts)
            done.append(physics.molecule.name)
    if in_processes := [target for target in wanted if not target[0].is_mm]:
        _run_in_processes(in_processes, settings, done, problems)
    return done, problems


def run_one(settings: PlainMDSettings) -> None:
    """`run_plain_md` of one molecule, whose failure is raised."""
    _, problems = run_plain_md(settings)
    if problems:
        raise PhysicsError(problems[0])


def _is_finished(physics: TruePhysics, out: Path, settings: PlainMDSettings) -> bool:
    """Whether the trajectory of a molecule is there; what is, is set aside first where it is to be made anew.

    UserError where it cannot be read or was made with other settings, where it is unfinished and not to be gone on
    with, and where it would replace what the molecule is read from.
    """
    pieces = [_piece(out, settings.first_replica + n) for n in range(physics.config.replicas)]
    folder = physics.folder
    check_no_input([out, *pieces], {} if folder is None else {
        "the prepared molecule": folder / "molecule.npz", "its force field": folder / "system.xml"})
    if settings.overwrite:
        for path in (out, *pieces):
            set_aside(path, ".parts", ".starts")
    if not out.is_file():
        begun = [piece for piece in pieces if piece.is_file() or holds_parts(piece)]
        if begun and not settings.resume:
            raise UserError(f"{out} is being made by a run that has not finished ({begun[0].name}); --resume goes on "
                            f"with it, {BEGIN_ANEW}")
        return False
    metadata = load_trajectory(out).metadata
    asked = as_written(_fingerprint(physics, settings))
    written = metadata.get("fingerprint") or {key: metadata[key] for key in asked if key in metadata}
    if isinstance(written.get("config"), dict):
        written["config"] = {key: value for key, value in written["config"].items() if key not in HOW_IT_WORKS}
    check_same(f"{out} was made", written, asked, f"use another --out, or {BEGIN_ANEW}")
    for piece in pieces:  # of a run that was killed after they were joined
        piece.unlink(missing_ok=True)
        clear_remains(piece, calls=True)
    kept_starts(out).unlink(missing_ok=True)
    return True


def _fingerprint(physics: TruePhysics, settings: PlainMDSettings) -> dict:
    """What another run into the same file must share for its result to be this one's."""
    return {"config": physics.config.model_dump(exclude=HOW_IT_WORKS), "seed": settings.seed,
            "first_replica": settings.first_replica, "smiles": physics.molecule.smiles,
            "physics": physics.spec().fingerprint}


def _piece(out: Path, replica: int) -> Path:
    own = "" if out.stem == "trajectory" else f"{out.stem}_"  # two runs may share a folder
    return out.with_name(f"{own}replica_{replica:03d}.npz")


def _jobs(physics: TruePhysics, out: Path, settings: PlainMDSettings, starts: Starts | None) -> list[ReplicaJob]:
    """One job for each replica of a molecule; starts: None: its conformers as they are."""
    platform, store_forces = (_platform(physics), settings.store_forces) if physics.is_mm else (None, True)
    first = settings.first_replica
    held, spec = physics.config.restraints or (), physics.spec()
    if starts is not None:
        starts = replace(starts, molecule=led_to(starts.molecule, held))
    molecule = led_to(physics.molecule, held)
    return [ReplicaJob(molecule, spec, physics.config, replica, settings.seed, _piece(out, replica),
                       settings.resume, platform, store_forces, starts.of(replica) if starts is not None else None)
            for replica in range(first, first + physics.config.replicas)]


def _platform(physics: TruePhysics) -> str:
    """OpenMM's platform, the fastest here where the config leaves it open."""
    spec, start = physics.spec(), physics.molecule.conformers
    check_start(spec.build(), start)
    if physics.config.platform != "auto":
        return physics.config.platform
    platform, timings = fastest_platform(read_system(spec.settings["system_xml"], len(physics.molecule)), start[0])
    log.info("platform %s: %s us/step", platform, ", ".join(f"{k} {v:.0f}" for k, v in timings.items()))
    return platform


@contextmanager
def _bar(jobs: list[ReplicaJob]) -> Iterator[Callable[[int], None]]:
    """A bar over the timesteps of all jobs that shows ps per day beside it; what is given moves it."""
    n_steps = sum(stretch.n_steps for job in jobs for stretch in plan_baseline(job.config))
    with progress_bar(total=n_steps, unit="step", unit_scale=True, desc="plain MD") as bar:

        def tick(n: int) -> None:
            bar.update(n)
            if rate := bar.format_dict["rate"]:
                ps_per_day = rate * jobs[0].config.dt_fs * PS_PER_FS * SECONDS_PER_DAY
                bar.set_postfix_str(f"{ps_per_day:.3g} ps/day", refresh=False)

        yield tick


def _run_in_processes(targets: list[tuple[TruePhysics, Path]], settings: PlainMDSettings, done: list[str],
                      problems: list[str]) -> None:
    """Every replica of every molecule, n_workers at a time; a molecule is joined when its last replica is there."""
    groups = {}  # by the file of a replica: its molecule's physics, trajectory, starts and finished replicas
    waits = any(physics.config.scheduler for physics, _ in targets)  # each process for a worker of the cluster
    jobs, n_workers = [], settings.n_workers or physical_cores() * (WAITING_PER_CORE if waits else 1)
    for physics, out in targets:
        try:
            starts = _starts(physics, out, settings, n_workers)
        except UserError as error:
            problems.append(f"{physics.molecule.name}: {error}")
            continue
        own = _jobs(physics, out, settings, starts)
        groups |= dict.fromkeys((job.out for job in own), (physics, out, starts, []))
        jobs += [replace(job, place=len(jobs) + n) for n, job in enumerate(own)]
    with _bar(jobs) as tick:
        for result in run_jobs(jobs, n_workers, tick, _folders(targets)):
            physics, out, starts, finished = groups[result.job.out]
            if result.error:
                problems.append(result.error)
                continue
            finished.append(result)
            if len(finished) == physics.config.replicas:
                _join(physics, finished, settings, out, starts)
                done.append(physics.molecule.name)


def _folders(targets: list[tuple[TruePhysics, Path]]) -> set[Path]:
    """Where a file EXIT ends a run: beside a trajectory, and beside the folders of all molecules."""
    return {folder for _, out in targets for folder in (out.parent, out.parent.parent)}


def _starts(physics: TruePhysics, out: Path, settings: PlainMDSettings, n_workers: int) -> Starts | None:
    """Relaxed on the true potential: plain dynamics has no walls, and starts even from what does not hold there."""
    physics.spec().require_forces("plain MD", "sample it with a network that was learned --via a cheaper method")
    if not physics.config.relax_starts:
        return None
    return settle_starts(physics.molecule, physics.spec(warm_start=False), wanted=physics.config.replicas,
                         first=settings.first_replica, n_workers=n_workers, must_hold=False, keep=kept_starts(out),
                         resume=settings.resume)


def _join(physics: TruePhysics, results: list[ReplicaResult], settings: PlainMDSettings, out: Path,
          starts: Starts | None) -> None:
    """Join a molecule's replicas into its one trajectory file and say how the run went."""
    results = sorted(results, key=lambda r: r.job.replica)
    job, calls, seconds = results[0].job, sum(r.true_calls for r in results), [r.wall_s for r in results]
    facts = ({"backend": "openmm", "platform": job.platform} if physics.is_mm else
             {"backend": physics.config.backend, **{key: job.spec.settings[key] for key in ("charge", "multiplicity")}})
    summary = finish_baseline(
        out, [r.job.out for r in results], physics.molecule, physics.config, seed=settings.seed,
        first_replica=settings.first_replica, true_calls=calls, wall_s=sum(seconds) if physics.is_mm else max(seconds),
        cpu_s=sum(r.cpu_s for r in results), starts=starts, facts=facts | {
            "method": physics.method, "fingerprint": _fingerprint(physics, settings), **provenance()},
        species_changes=[{**change, "replica": n} for n, r in enumerate(results) for change in r.species_changes])
    kept_starts(out).unlink(missing_ok=True)  # a finished molecule is not begun again
    ps_per_day = calls * physics.config.dt_fs * PS_PER_FS / max(sum(seconds), 1e-9) * SECONDS_PER_DAY
    speed = (f"{ps_per_day / PS_PER_NS:.1f} ns/day with every frame kept" if physics.is_mm else
             f"{ps_per_day:.0f} ps/day per core")
    log.info("%s: %s, %s -> %s", physics.molecule.name, summary, speed, out)
