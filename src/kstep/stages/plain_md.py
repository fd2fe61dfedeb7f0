"""Plain MD of one or many molecules: OpenMM at its native speed in this process, else one process per replica."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kstep.config import HOW_IT_WORKS, BaselineConfig
from kstep.errors import PhysicsError, UserError
from kstep.files import check_writable
from kstep.forces.base import check_start
from kstep.forces.openmm import fastest_platform, read_system
from kstep.molecules.prepare import ensure_prepared
from kstep.molecules.smiles import read_smiles_file
from kstep.processes import physical_cores
from kstep.progress import progress_bar
from kstep.provenance import provenance
from kstep.runs.baseline import finish_baseline
from kstep.runs.baseline_jobs import ReplicaJob, ReplicaResult, run_jobs, run_replica
from kstep.runs.baseline_plan import plan_baseline
from kstep.schemas import load_trajectory
from kstep.shipped import find_molecules
from kstep.stages.physics import TruePhysics
from kstep.units import PS_PER_FS, PS_PER_NS, SECONDS_PER_DAY

log = logging.getLogger("kstep")


@dataclass(frozen=True)
class PlainMDSettings:
    """targets: (physics, file to write) of each molecule; first_replica: another number gives other seeds and
    conformers.

    n_workers: replicas run at once; resume: keep finished molecules, continue unfinished ones.
    """

    targets: tuple[tuple[TruePhysics, Path], ...]
    seed: int = 0
    first_replica: int = 0
    n_workers: int | None = None
    resume: bool = False
    store_forces: bool = True


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
    another.
    """
    done, problems, wanted = [], [], []
    for physics, out in settings.targets:
        if not (settings.resume and out.is_file()):
            check_writable(out)
            wanted.append((physics, out))
            continue
        try:
            if not physics.is_mm:
                _check_finished(out, physics.config)
            log.info("%s: %s is there already", physics.molecule.name, out)
            done.append(physics.molecule.name)
        except UserError as error:
            problems.append(f"{physics.molecule.name}: {error}")
    for physics, out in wanted:
        if physics.is_mm:  # OpenMM uses every core by itself
            jobs = _jobs(physics, out, settings)
            with _bar(jobs) as tick:
                _join(physics, [run_replica(job, tick) for job in jobs], settings, out)
            done.append(physics.molecule.name)
    if in_processes := [target for target in wanted if not target[0].is_mm]:
        _run_in_processes(in_processes, settings, done, problems)
    return done, problems


def run_one(settings: PlainMDSettings) -> None:
    """`run_plain_md` of one molecule, whose failure is raised."""
    _, problems = run_plain_md(settings)
    if problems:
        raise PhysicsError(problems[0])


def _check_finished(path: Path, config: BaselineConfig) -> None:
    """UserError where a finished trajectory cannot be read or was made with other settings."""
    found = load_trajectory(path).metadata.get("config") or {}
    wanted = json.loads(json.dumps(config.model_dump(exclude=HOW_IT_WORKS)))
    different = [f"{key} {found.get(key)}, not {value}" for key, value in wanted.items() if found.get(key) != value]
    if different:
        raise UserError(f"{path} was made with {', '.join(different)}; use another --out, or run without --resume to "
                        "make it again")


def _piece(out: Path, replica: int) -> Path:
    own = "" if out.stem == "trajectory" else f"{out.stem}_"  # two runs may share a folder
    return out.with_name(f"{own}replica_{replica:03d}.npz")


def _jobs(physics: TruePhysics, out: Path, settings: PlainMDSettings) -> list[ReplicaJob]:
    """One job for each replica of a molecule."""
    platform, store_forces = (_platform(physics), settings.store_forces) if physics.is_mm else (None, True)
    first = settings.first_replica
    return [ReplicaJob(physics.molecule, physics.spec(), physics.config, replica, settings.seed, _piece(out, replica),
                       settings.resume, platform, store_forces)
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
    groups = {}  # by the file of a replica: its molecule's physics, trajectory and finished replicas
    jobs = []
    for physics, out in targets:
        own = _jobs(physics, out, settings)
        groups |= dict.fromkeys((job.out for job in own), (physics, out, []))
        jobs += own
    with _bar(jobs) as tick:
        for result in run_jobs(jobs, settings.n_workers or physical_cores(), tick, _folders(targets)):
            physics, out, finished = groups[result.job.out]
            if result.error:
                problems.append(result.error)
                continue
            finished.append(result)
            if len(finished) == physics.config.replicas:
                _join(physics, finished, settings, out)
                done.append(physics.molecule.name)


def _folders(targets: list[tuple[TruePhysics, Path]]) -> set[Path]:
    """Where a file EXIT ends a run: beside a trajectory, and beside the folders of all molecules."""
    return {folder for _, out in targets for folder in (out.parent, out.parent.parent)}


def _join(physics: TruePhysics, results: list[ReplicaResult], settings: PlainMDSettings, out: Path) -> None:
    """Join a molecule's replicas into its one trajectory file and say how the run went."""
    results = sorted(results, key=lambda r: r.job.replica)
    job, calls, seconds = results[0].job, sum(r.true_calls for r in results), [r.wall_s for r in results]
    facts = ({"backend": "openmm", "platform": job.platform} if physics.is_mm else
             {"backend": physics.config.backend, **{key: job.spec.settings[key] for key in ("charge", "multiplicity")}})
    summary = finish_baseline(
        out, [r.job.out for r in results], physics.molecule, physics.config, seed=settings.seed,
        first_replica=settings.first_replica, true_calls=calls, wall_s=sum(seconds) if physics.is_mm else max(seconds),
        cpu_s=sum(r.cpu_s for r in results), facts={"method": physics.method, **facts, **provenance()},
        species_changes=[{**change, "replica": n} for n, r in enumerate(results) for change in r.species_changes])
    ps_per_day = calls * physics.config.dt_fs * PS_PER_FS / max(sum(seconds), 1e-9) * SECONDS_PER_DAY
    speed = (f"{ps_per_day / PS_PER_NS:.1f} ns/day with every frame kept" if physics.is_mm else
             f"{ps_per_day:.0f} ps/day per core")
    log.info("%s: %s, %s -> %s", physics.molecule.name, summary, speed, out)
