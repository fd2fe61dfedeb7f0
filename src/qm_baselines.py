"""Plain MD of the molecules of a SMILES file, one process per replica: what 01b and 01c share."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from tqdm import tqdm

from kstep.config import ChargedConfig, parse_assignments
from kstep.errors import UserError
from kstep.files import check_writable
from kstep.forces import check_spec, physics_spec
from kstep.forces.pool import physical_cores
from kstep.molecules.prepare import ensure_prepared, read_smiles_file
from kstep.runs.baseline import finish_baseline
from kstep.runs.baseline_jobs import ReplicaJob, run_jobs
from kstep.runs.baseline_plan import plan_baseline
from kstep.schemas import load_trajectory
from kstep.units import PS_PER_FS, SECONDS_PER_DAY
from utils import add_common_arguments, log, non_negative_int, positive_int, provenance


def add_baseline_arguments(parser: argparse.ArgumentParser, *, config: str, out: str) -> None:
    """Flags of a QM baseline script, with its own defaults of --config and --out."""
    parser.add_argument("--smiles-file", default="data/qm_molecules.smi", help="lines of 'SMILES name'")
    parser.add_argument("--molecule", action="append", metavar="NAME",
                        help="run only this molecule of the file; may be repeated (default: all)")
    parser.add_argument("--config", default=config, help="YAML of temperature, lengths (ps), method ...")
    parser.add_argument("--raw", default="data/raw", help="folder of prepared molecules; what is missing is prepared")
    parser.add_argument("--out", default=out, help="folder for <name>/trajectory.npz")
    parser.add_argument("--replicas", type=positive_int, help="independent seeds per molecule (default: the config's)")
    parser.add_argument("--first-replica", type=non_negative_int, default=0,
                        help="number of the first replica: another number gives other seeds and conformers")
    parser.add_argument("--num-workers", type=positive_int, default=physical_cores(),
                        help="replicas run at once, one process and one thread each")
    parser.add_argument("--resume", action="store_true",
                        help="keep finished molecules and continue unfinished ones from their last checkpoint")
    add_common_arguments(parser, overrides=True)


def baseline_overrides(args) -> dict:
    """The flags that are keys of the config."""
    return {**parse_assignments(args.assignments), "replicas": args.replicas}


def select_molecules(args, config):
    """Prepared molecules of the SMILES file, and the complaints about those that could not be."""
    entries, problems = read_smiles_file(args.smiles_file, args.molecule)
    molecules = []
    for entry in entries:
        try:
            molecule = ensure_prepared(entry, Path(args.raw), seed=args.seed)
            # a wrong charge is found here, not later
            check_spec(physics_spec(molecule, config, warm_start=True), molecule)
            molecules.append(molecule)
        except UserError as error:
            problems.append(f"{entry.name}: {error}")
    return molecules, problems


def check_finished(path: Path, config: ChargedConfig) -> None:
    """UserError where a finished trajectory cannot be read or was made with other settings."""
    found, wanted = load_trajectory(path).metadata.get("config") or {}, json.loads(json.dumps(config.model_dump()))
    different = [f"{key} {found.get(key)}, not {value}" for key, value in wanted.items() if found.get(key) != value]
    if different:
        raise UserError(f"{path} was made with {', '.join(different)}; use another --out, or run without --resume to "
                        "make it again")


def merge(molecule, config, results, args, out):
    """Join a molecule's replicas into its one trajectory file and say how the run went."""
    results = sorted(results, key=lambda r: r.job.replica)
    calls = sum(r.true_calls for r in results)
    settings = results[0].job.spec.settings
    summary = finish_baseline(
        out, [r.job.out for r in results], molecule, config, seed=args.seed, first_replica=args.first_replica,
        true_calls=calls, wall_s=max(r.wall_s for r in results), cpu_s=sum(r.cpu_s for r in results),
        facts={"method": config.method, "backend": config.backend, "charge": settings["charge"],
               "multiplicity": settings["multiplicity"], **provenance()})
    seconds = max(sum(r.wall_s for r in results), 1e-9)
    ps_per_day = calls * config.dt_fs * PS_PER_FS / seconds * SECONDS_PER_DAY
    log.info("%s: %s, %.0f ps/day per core -> %s", molecule.name, summary, ps_per_day, out)


def run_baselines(args: argparse.Namespace, config: ChargedConfig) -> int:
    """Run every molecule and replica, write <out>/<name>/trajectory.npz, return the exit code."""
    molecules, problems = select_molecules(args, config)
    out = Path(args.out)
    jobs, names = [], {}
    for molecule in molecules:
        final = out / molecule.name / "trajectory.npz"
        if args.resume and final.is_file():
            try:
                check_finished(final, config)
                log.info("%s: %s is there already", molecule.name, final)
            except UserError as error:
                problems.append(f"{molecule.name}: {error}")
            continue
        names[molecule.name] = molecule
        for replica in range(args.first_replica, args.first_replica + config.replicas):
            piece = final.with_name(f"replica_{replica:03d}.npz")
            jobs.append(ReplicaJob(molecule, physics_spec(molecule, config, warm_start=True), config, replica,
                                   args.seed, piece, args.resume))
    n_steps = sum(stretch.n_steps for stretch in plan_baseline(config))
    if n_steps == 0:
        raise UserError(f"{args.config}: every length is zero; set length_ps")
    for name in names:
        check_writable(out / name / "trajectory.npz")
    finished = {name: [] for name in names}
    start = time.perf_counter()
    with tqdm(total=n_steps * len(jobs), unit="step", unit_scale=True, disable=not jobs) as bar:
        for result in run_jobs(jobs, args.num_workers, bar.update) if jobs else ():
            name = result.job.molecule.name
            if result.error:
                problems.append(result.error)
                continue
            finished[name].append(result)
            if len(finished[name]) == config.replicas:
                merge(names[name], config, finished[name], args, out / name / "trajectory.npz")
    log.info("%d of %d molecules in %.0f s -> %s", len(molecules) - len({p.split(',')[0] for p in problems}),
             len(molecules), time.perf_counter() - start, out)
    for problem in problems:
        log.error("%s", problem)
    return 2 if problems else 0

