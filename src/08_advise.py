"""Is md-kstep worth it here?  Times one true call and one inner step, predicts both bills, gives a verdict.

    python src/08_advise.py --molecule data/raw/ethanol --qm-config configs/qm.yaml --samples 10000
    python src/08_advise.py --molecule data/raw/ethanol --checkpoint outputs/checkpoints/best.pt --out advice.json
    python src/08_advise.py --molecule data/raw/aspirin --md-config configs/md.yaml

With a checkpoint a short pilot run is made (or read: --pilot) and the prediction is meant to hold within 30 %;
before anything is trained it rests on measured costs, classical dynamics and earlier cold starts, and is meant to
hold within a factor of 2 (a torsion's time within 10: barriers of force fields differ).  "do not bother" is an answer.
"""

from pathlib import Path

import numpy as np

from kstep.config import load_config, parse_assignments
from kstep.errors import UserError
from kstep.files import check_writable
from kstep.forces import load_qm_config, physics_spec
from kstep.forces.openmm import MDConfig
from kstep.forces.pool import physical_cores
from kstep.molecules.molecule import Molecule
from kstep.runs.settings import HybridRun, settle_settings
from kstep.schemas import load_trajectory
from kstep.schemes.hybrid_config import HybridConfig
from kstep.schemes.metropolis import TUNED_HYDROGEN_DA
from kstep.study.advice import check, cost_model as model, survey
from utils import (
    add_common_arguments,
    log,
    machine,
    make_parser,
    pick_device,
    positive_float,
    positive_int,
    provenance,
    run_script,
    setup_logging,
    write_json_atomic,
)


def parse():
    parser = make_parser(__doc__)
    parser.add_argument("--molecule", required=True, help="prepared folder such as data/raw/ethanol")
    physics = parser.add_mutually_exclusive_group()
    physics.add_argument("--qm-config", help="YAML of the true physics, xTB (default: configs/qm.yaml)")
    physics.add_argument("--md-config", help="YAML of the true physics, OpenMM")
    parser.add_argument("--checkpoint", help="network from 04_train.py or --learn; without it, before any training")
    parser.add_argument("--pilot", help="metropolis run of that checkpoint (06, 06b); without it, one is made")
    parser.add_argument("--samples", type=positive_float, default=10_000, help="effective samples wanted")
    parser.add_argument("--plain-dt-fs", type=positive_float, default=1.0, help="timestep of plain MD, fs")
    parser.add_argument("--hybrid-config", default="configs/hybrid.yaml", help="YAML of the sampler")
    parser.add_argument("--model-config", default="configs/model_pair_mlp.yaml",
                        help="network that would be trained; times the inner step when there is no checkpoint")
    parser.add_argument("--replicas", type=positive_int, default=64, help="chains of the sampler")
    parser.add_argument("--pilot-steps", type=positive_int, default=80, help="macro-steps of the pilot run")
    parser.add_argument("--most-cpu", type=positive_float, default=60.0, dest="most_cpu_s",
                        help="about the CPU seconds for plain dynamics, and for chains, without true calls")
    parser.add_argument("--num-workers", type=positive_int, help="processes for true calls (default: all cores)")
    parser.add_argument("--check", nargs="+", default=[], metavar="RUN",
                        help="finished runs (.npz, metropolis or plain) to hold the prediction against")
    parser.add_argument("--out", help="write everything to this JSON file")
    add_common_arguments(parser, device=True, overrides=True)
    return parser.parse_args()


def describe_task(args) -> survey.Task:
    """What would be run, from the command line and the configs."""
    molecule = Molecule.load(args.molecule)
    overrides = {"scheme": "metropolis", "tune": True, "replicas": args.replicas, "steps": args.pilot_steps}
    hybrid = load_config(HybridConfig, args.hybrid_config, {**overrides, **parse_assignments(args.assignments)})
    if args.md_config:
        baseline = load_config(MDConfig, args.md_config)
        spec = physics_spec(molecule, baseline, system_xml=Path(args.molecule) / "system.xml")
        method, n_workers = molecule.force_field, args.num_workers or 1
    else:
        baseline = load_qm_config(args.qm_config or "configs/qm.yaml")
        spec = physics_spec(molecule, baseline, warm_start=True)
        method, n_workers = baseline.method, args.num_workers or physical_cores()
    if args.checkpoint:
        from kstep.models import checkpoint as checkpoints

        hybrid = settle_settings(hybrid, checkpoints.load(args.checkpoint), baseline)
    else:
        hybrid = hybrid.model_copy(update={
            "temperature_K": hybrid.temperature_K or baseline.temperature_K,
            "hydrogen_mass_Da": hybrid.hydrogen_mass_Da or TUNED_HYDROGEN_DA})
    run = HybridRun(molecule, spec, method, hybrid, Path(args.checkpoint) if args.checkpoint else None,
                    Path("pilot.npz"), args.seed, n_workers, pick_device(args.device) if args.checkpoint else "cpu")
    return survey.Task(run, args.plain_dt_fs, baseline.redraw_interval_ps, args.most_cpu_s)


def look(args, task: survey.Task) -> survey.Survey:
    """The survey, with or without a network."""
    rng = np.random.default_rng([args.seed, 8])
    if not args.checkpoint:
        if args.pilot:
            raise UserError("--pilot needs --checkpoint, the network that the pilot run used")
        from kstep.models.model_config import ModelConfig

        system = Path(args.molecule) / "system.xml"
        if not system.is_file():
            raise UserError(f"{system} does not exist, and without it or --checkpoint nothing here tells how fast the "
                            "molecule moves; prepare it with 00_prep_mols.py")
        return survey.without_network(task, load_config(ModelConfig, args.model_config), system.read_text(), rng)
    if args.pilot:
        pilot = load_trajectory(args.pilot)
        survey.check_pilot(pilot, task.run, args.pilot)
    else:
        pilot = survey.run_pilot(task, provenance(), machine())
    return survey.with_network(task, pilot, rng)


def main():
    args = parse()
    setup_logging(args.log_level)
    if args.out:
        check_writable(args.out)
    task = describe_task(args)
    finished = [(path, load_trajectory(path)) for path in args.check]
    seen = look(args, task)
    plain, sampler, learning = seen.plain, seen.sampler, seen.learning
    forecast = {o: model.predict(args.samples, o, plain, sampler, learning, task.run.n_workers, seen.factor[o])
                for o in model.OBSERVABLES}
    forecast = {o: row for o, row in forecast.items() if row is not None}

    call_s, inner_s = seen.facts["cpu_s_per_true_call"], seen.facts["cpu_s_per_inner_step"]
    print(f"{task.run.molecule.name}, {task.run.method}, {task.run.n_workers} cores: a true call costs "
          f"{model.seconds(call_s)}, a step of plain MD {model.seconds(plain.cpu_s_per_step)}, a timestep of the "
          f"network {model.seconds(inner_s)} per replica.")
    if "pilot" in seen.facts:
        log.info("pilot: %d true calls, %s of CPU", seen.facts["pilot"]["true_calls"],
                 model.seconds(seen.facts["pilot"]["cpu_s"]))
    print(f"Scheme for sampling: metropolis, dt {sampler.dt_fs:g} fs, k = {sampler.k_steps} (mean "
          f"{sampler.k_steps * sampler.dt_fs:.0f} fs), acceptance {sampler.acceptance:.2f}. "
          f"The network {'took' if learning.paid else 'should take'} {learning.true_calls} true calls and "
          f"{model.seconds(learning.cpu_s)} of CPU.")
    print(survey.about_lengths(seen))
    print(model.table(forecast, plain, learning))
    for o, row in forecast.items():
        print(model.explain("slowest torsion" if o == "torsion" else "potential energy", row, seen.factor[o]))
    per_ps = model.cpu_s_per_ps(plain, call_s, inner_s)
    print("For spectra and rates, which metropolis does not give, a ps of one replica costs "
          + ", ".join(f"{scheme} {model.seconds(s)}" for scheme, s in per_ps.items()) + " of CPU.")
    never = seen.facts["plain_dynamics"]["never_crossed"]
    if never:
        print(f"Not crossed by plain dynamics here, so left out: {', '.join(never)}; consider --tempering in 06b.")
    print("These figures are meant to hold within " + ("30 %." if learning.paid else "a factor of 2; a torsion's within "
          "10, since they rest on a force field's barriers (learn, then ask again with --checkpoint)."))
    for done in (checks := [check.against(seen, run, args.samples, path) for path, run in finished]):
        print("check, " + check.say(done))
    if args.out:
        write_json_atomic(args.out, {
            "molecule": task.run.molecule.name, "method": task.run.method, "num_workers": task.run.n_workers,
            "samples": args.samples, "machine": machine(), **provenance(), **model.as_dict(plain, sampler, learning),
            "factor": seen.factor, "lengths": seen.lengths, "facts": seen.facts, "cpu_s_per_ps": per_ps,
            "forecast": forecast, "checks": checks})
        log.info("-> %s", args.out)


if __name__ == "__main__":
    run_script(main)
