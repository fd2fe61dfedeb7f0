"""Plain MD with OpenMM at its native speed: baseline, reference and training data for MM.

Per replica: equilibration, production in NVE stretches between velocity redraws, optional NVE
windows for the drift and an optional hot stretch.  Positions and velocities belong to the same
instant (a velocity-Verlet integrator, not leapfrog).  Writes <out>/<name>/trajectory.npz.

    python src/01_run_md_baselines.py --molecule data/raw/aspirin --config configs/md.yaml --out data/md
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from kstep.config import load_config, parse_assignments
from kstep.errors import UserError
from kstep.files import check_writable
from kstep.forces import physics_spec
from kstep.forces.base import check_start
from kstep.forces.openmm import MDConfig, fastest_platform
from kstep.molecules.molecule import Molecule
from kstep.runs.baseline import finish_baseline
from kstep.runs.baseline_jobs import ReplicaJob, run_replica
from kstep.runs.baseline_plan import plan_baseline
from kstep.units import NS_PER_FS, SECONDS_PER_DAY
from utils import (
    add_common_arguments,
    log,
    make_parser,
    non_negative_int,
    positive_int,
    provenance,
    run_script,
    setup_logging,
)


def parse():
    parser = make_parser(__doc__)
    parser.add_argument("--molecule", required=True, help="prepared folder such as data/raw/aspirin")
    parser.add_argument("--config", default="configs/md.yaml", help="YAML of temperature (K), dt_fs, lengths (ps) ...")
    parser.add_argument("--out", default="data/md", help="folder for <name>/trajectory.npz")
    parser.add_argument("--replicas", type=positive_int, help="independent seeds (default: the config's)")
    parser.add_argument("--first-replica", type=non_negative_int, default=0,
                        help="number of the first replica: another number gives other seeds and conformers")
    parser.add_argument("--store-forces", action=argparse.BooleanOptionalAction, default=True,
                        help="keep forces in the file (training needs them)")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint, keep finished files")
    add_common_arguments(parser, overrides=True)
    return parser.parse_args()


def main():
    args = parse()
    setup_logging(args.log_level)
    config = load_config(MDConfig, args.config, {**parse_assignments(args.assignments), "replicas": args.replicas})
    molecule = Molecule.load(args.molecule)
    spec = physics_spec(molecule, config, system_xml=Path(args.molecule) / "system.xml")
    out = Path(args.out) / molecule.name / "trajectory.npz"
    if args.resume and out.is_file():
        log.info("%s is there already", out)
        return 0
    n_steps = sum(stretch.n_steps for stretch in plan_baseline(config))
    if n_steps == 0:
        raise UserError(f"{args.config}: every length is zero; set length_ps")

    check_start(spec.build(), molecule.conformers)
    check_writable(out)
    import openmm

    platform = config.platform
    if platform == "auto":
        platform, timings = fastest_platform(openmm.XmlSerializer.deserialize(spec.settings["system_xml"]),
                                              molecule.conformers[0])
        log.info("platform %s: %s us/step", platform, ", ".join(f"{k} {v:.0f}" for k, v in timings.items()))

    pieces, calls, wall_s, cpu_s = [], 0, 0.0, 0.0
    with tqdm(total=n_steps * config.replicas, unit="step", unit_scale=True) as bar:
        for replica in range(args.first_replica, args.first_replica + config.replicas):
            piece = out.with_name(f"replica_{replica:03d}.npz")
            done = run_replica(ReplicaJob(molecule, spec, config, replica, args.seed, piece, args.resume, platform,
                                          args.store_forces), bar.update)
            pieces.append(piece)
            calls, wall_s, cpu_s = calls + done.true_calls, wall_s + done.wall_s, cpu_s + done.cpu_s
    summary = finish_baseline(
        out, pieces, molecule, config, seed=args.seed, first_replica=args.first_replica, true_calls=calls,
        wall_s=wall_s, cpu_s=cpu_s,
        facts={"method": molecule.force_field, "backend": "openmm", "platform": platform, **provenance()})
    ns_per_day = calls * config.dt_fs * NS_PER_FS / wall_s * SECONDS_PER_DAY
    log.info("%s: %s, %.1f ns/day with every frame kept -> %s", molecule.name, summary, ns_per_day, out)
    return 0


if __name__ == "__main__":
    run_script(main)
