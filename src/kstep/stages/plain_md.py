"""Plain MD of one or many molecules: OpenMM at its native speed in this process, else one process per replica."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from kstep.config import BaselineConfig
from kstep.errors import PhysicsError, UserError
from kstep.files import check_writable
from kstep.forces.base import check_start
from kstep.forces.openmm import fastest_platform
from kstep.molecules.prepare import ensure_prepared, read_smiles_file
from kstep.processes import physical_cores
from kstep.provenance import provenance
from kstep.runs.baseline import finish_baseline
from kstep.runs.baseline_jobs import ReplicaJob, ReplicaResult, run_jobs, run_replica
from kstep.runs.baseline_plan import plan_baseline
from kstep.schemas import load_trajectory
from kstep.shipped import find_molecules
from kstep.stages.physics import TruePhysics
from kstep.units import NS_PER_FS, PS_PER_FS, SECONDS_PER_DAY

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
        if physics.is_mm:
            _run_with_openmm(physics, out, settings)
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
    found, wanted = load_trajectory(path).metadata.get("config") or {}, json.loads(json.dumps(config.model_dump()))
    different = [f"{key} {found.get(key)}, not {value}" for key, value in wanted.items() if found.get(key) != value]
    if different:
        raise UserError(f"{path} was made with {', '.join(different)}; use another --out, or run without --resume to "
                        "make it again")


def _piece(out: Path, replica: int) -> Path:
    own = "" if out.stem == "trajectory" else f"{out.stem}_"  # two runs may share a folder
    return out.with_name(f"{own}replica_{replica:03d}.npz")


def _replicas(settings: PlainMDSettings, config: BaselineConfig) -> range:
    return range(settings.first_replica, settings.first_replica + config.replicas)


def _n_steps(config: BaselineConfig) -> int:
    return sum(stretch.n_steps for stretch in plan_baseline(config))


def _ticker(bar: tqdm, dt_fs: float) -> Callable[[int], None]:
    """Moves a bar of timesteps and shows ps per day beside it."""

    def tick(n: int) -> None:
        bar.update(n)
        if rate := bar.format_dict["rate"]:
            bar.set_postfix_str(f"{rate * dt_fs * PS_PER_FS * SECONDS_PER_DAY:.3g} ps/day", refresh=False)

    return tick


def _run_with_openmm(physics: TruePhysics, out: Path, settings: PlainMDSettings) -> None:
    """All replicas of one molecule, one after another, in this process."""
    import openmm

    molecule, config, spec = physics.molecule, physics.config, physics.spec()
    check_start(spec.build(), molecule.conformers)
    platform = config.platform
    if platform == "auto":
        system = openmm.XmlSerializer.deserialize(spec.settings["system_xml"])
        platform, timings = fastest_platform(system, molecule.conformers[0])
        log.info("platform %s: %s us/step", platform, ", ".join(f"{k} {v:.0f}" for k, v in timings.items()))
    pieces, calls, wall_s, cpu_s = [], 0, 0.0, 0.0
    with tqdm(total=_n_steps(config) * config.replicas, unit="step", unit_scale=True) as bar:
        for replica in _replicas(settings, config):
            done = run_replica(ReplicaJob(molecule, spec, config, replica, settings.seed, _piece(out, replica),
                                          settings.resume, platform, settings.store_forces), _ticker(bar, config.dt_fs))
            pieces.append(done.job.out)
            calls, wall_s, cpu_s = calls + done.true_calls, wall_s + done.wall_s, cpu_s + done.cpu_s
    summary = finish_baseline(
        out, pieces, molecule, config, seed=settings.seed, first_replica=settings.first_replica, true_calls=calls,
        wall_s=wall_s, cpu_s=cpu_s,
        facts={"method": physics.method, "backend": "openmm", "platform": platform, **provenance()})
    ns_per_day = calls * config.dt_fs * NS_PER_FS / wall_s * SECONDS_PER_DAY
    log.info("%s: %s, %.1f ns/day with every frame kept -> %s", molecule.name, summary, ns_per_day, out)


def _run_in_processes(targets: list[tuple[TruePhysics, Path]], settings: PlainMDSettings, done: list[str],
                      problems: list[str]) -> None:
    """Every replica of every molecule, n_workers at a time; a molecule is joined when its last replica is there."""
    groups = {}  # by the file of a replica: its molecule's physics, trajectory and finished replicas
    jobs = []
    for physics, out in targets:
        group = (physics, out, [])
        for replica in _replicas(settings, physics.config):
            jobs.append(ReplicaJob(physics.molecule, physics.spec(), physics.config, replica, settings.seed,
                                   _piece(out, replica), settings.resume))
            groups[jobs[-1].out] = group
    with tqdm(total=sum(_n_steps(job.config) for job in jobs), unit="step", unit_scale=True) as bar:
        for result in run_jobs(jobs, settings.n_workers or physical_cores(), _ticker(bar, jobs[0].config.dt_fs)):
            physics, out, finished = groups[result.job.out]
            if result.error:
                problems.append(result.error)
                continue
            finished.append(result)
            if len(finished) == physics.config.replicas:
                _join(physics, finished, settings, out)
                done.append(physics.molecule.name)


def _join(physics: TruePhysics, results: list[ReplicaResult], settings: PlainMDSettings, out: Path) -> None:
    """Join a molecule's replicas into its one trajectory file and say how the run went."""
    results = sorted(results, key=lambda r: r.job.replica)
    calls = sum(r.true_calls for r in results)
    backend, config = results[0].job.spec.settings, physics.config
    summary = finish_baseline(
        out, [r.job.out for r in results], physics.molecule, config, seed=settings.seed,
        first_replica=settings.first_replica, true_calls=calls, wall_s=max(r.wall_s for r in results),
        cpu_s=sum(r.cpu_s for r in results),
        facts={"method": physics.method, "backend": config.backend, "charge": backend["charge"],
               "multiplicity": backend["multiplicity"], **provenance()})
    seconds = max(sum(r.wall_s for r in results), 1e-9)
    ps_per_day = calls * config.dt_fs * PS_PER_FS / seconds * SECONDS_PER_DAY
    log.info("%s: %s, %.0f ps/day per core -> %s", physics.molecule.name, summary, ps_per_day, out)
