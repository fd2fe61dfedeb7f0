"""What the batch scripts ask of Python: which molecules there are, which results are whole, what they say.

    python src/batch_results.py inputs --smiles-file data/qm_molecules.smi --qm-config configs/qm.yaml
    python src/batch_results.py plain-flags --hybrid-config configs/hybrid.yaml  # what it must lose for plain MD
    python src/batch_results.py trajectory --of water outputs/qm/md/water/trajectory.npz

Answers are lines of words between tabs, which scripts/batch.sh reads.  A task is answered by

    done TEXT       all its files are whole and made with these settings; TEXT says what is in the first
    missing         a file is not there, or older than what it is made from
    broken TEXT     a file cannot be read, or its run broke off; it has to be made again
    other TEXT      a file was made with other settings, which nobody should overwrite unasked
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from kstep.analysis.show.batch_table import batch_table
from kstep.config import load_config
from kstep.errors import UserError
from kstep.files import sha256, write_text_atomic
from kstep.forces import load_qm_config
from kstep.molecules.smiles import read_smiles_file
from kstep.schemas import load_dataset, load_trajectory
from kstep.schemes.hybrid_config import HybridConfig, keys_of_others
from utils import make_parser, positive_int, read_json, run_script, setup_logging

SETTLED_BY_THE_MACHINE = {"inner", "checkpoint_interval"}
PLAIN = {"k_steps": None, "dt_fs": None, **keys_of_others("plain")}  # of any config, to make the control of it


class Missing(Exception):
    """A result that is still to be made."""


class Other(Exception):
    """A result of other settings."""


def parse():
    parser = make_parser(__doc__)
    parser.add_argument("what", choices=["inputs", "plain-flags", *JUDGES, "table"], help="what is asked")
    parser.add_argument("--of", nargs="+", action="append", default=[], metavar="TASK FILE",
                        help="a task and the files it ends in; may be repeated")
    parser.add_argument("--set-aside", action="store_true", help="rename a broken file to <file>.broken")
    parser.add_argument("--smiles-file", help="lines of 'SMILES name'")
    parser.add_argument("--molecules", nargs="+", help="only these molecules of the file")
    parser.add_argument("--qm-config", help="YAML that the baselines must have been made with")
    parser.add_argument("--hybrid-config", help="YAML that the hybrids must have been made with")
    parser.add_argument("--steps", type=positive_int, help="macro-steps that they must hold")
    parser.add_argument("--checkpoint", help="network that they must have used; {molecule} stands for the task")
    parser.add_argument("--md-root", type=Path, help="folder of the trajectories that datasets are made from")
    parser.add_argument("--member", action="append", help="molecule of the dataset of task all; may be repeated")
    parser.add_argument("--split-by", help="how datasets must have been split")
    parser.add_argument("--dataset", help="dataset a network must have learned; {molecule} stands for the task")
    parser.add_argument("--model-config", help="YAML that networks must have been built from")
    parser.add_argument("--runs-root", type=Path, help="folder of the runs that reports judge")
    parser.add_argument("--report-root", type=Path, help="folder of <molecule>/metrics.json, for the table")
    return parser.parse_args()


def print_inputs(args) -> None:
    """The molecules of a SMILES file, the lines of it that are none, and the stage for a QM config."""
    if args.qm_config:
        config = load_qm_config(args.qm_config)
        stage = "01c_run_pyscf_baselines.py" if config.backend == "pyscf" else "01b_run_qm_baselines.py"
        print(f"baseline\tsrc/{stage}\t{config.dt_fs:g}")
    entries, problems = read_smiles_file(args.smiles_file, args.molecules)
    for entry in entries:
        print(f"molecule\t{entry.name}")
    for problem in problems:
        line = re.search(r"line (\d+)", problem)
        print(f"problem\t{line.group(0) if line else args.smiles_file}\t{problem}")


def compare_settings(path: Path, found: dict, wanted: dict) -> None:
    """Raise Other where a file's settings are not the wanted ones; a wanted null may be anything."""
    different = [f"{key} {found[key]}, not {value}" for key, value in wanted.items()
                 if value is not None and key in found and found[key] != value]
    if different:
        raise Other(f"{path} was made with {', '.join(different)}; use another OUT_DIR or delete it")


def judge_trajectory(path: Path, task: str, args) -> str:
    metadata = load_trajectory(path).metadata
    if args.qm_config:
        compare_settings(path, metadata["config"], load_qm_config(args.qm_config).model_dump())
    replicas = metadata["config"]["replicas"]
    return f"{replicas} replica{'s' * (replicas != 1)}, {metadata['true_calls']} true calls"


def settings_of(path: Path) -> dict:
    """What a run's name states: jump_k8.npz, jump_k8_bare.npz, plain.npz (baseline's timestep), plain_2fs.npz."""
    scheme, *rest = path.stem.split("_")
    if scheme == "plain":
        return {**PLAIN, "scheme": scheme, "dt_fs": float(rest[0].removesuffix("fs")) if rest else None}
    bare = {"delta_scale": 0.0} if rest[1:] == ["bare"] else {}
    return {"scheme": scheme, "k_steps": int(rest[0].removeprefix("k")), **bare}


def is_control(asked: dict) -> bool:
    """Whether a run is plain MD at a timestep of its own: one that breaks answers what it was run for."""
    return asked["scheme"] == "plain" and asked["dt_fs"] is not None


def judge_hybrid(path: Path, task: str, args) -> str:
    metadata = load_trajectory(path).metadata
    asked = settings_of(path)
    broke = metadata["status"].startswith("broke")
    if broke and not is_control(asked):
        raise UserError(f"{path}: {metadata['status']}")
    wanted = load_config(HybridConfig, args.hybrid_config, {**asked, "steps": args.steps}).model_dump()
    if args.checkpoint is None and None in (wanted["dt_fs"], wanted["k_steps"]):
        wanted["tune"] = None  # learning tunes what is left open (learning/stage.py)
    compare_settings(path, metadata["config"], {k: v for k, v in wanted.items() if k not in SETTLED_BY_THE_MACHINE})
    if broke:
        return metadata["status"].split(":")[0]
    if args.checkpoint and asked["scheme"] != "plain":
        checkpoint = args.checkpoint.replace("{molecule}", task)
        if Path(checkpoint).is_file() and metadata["checkpoint_sha256"] != sha256(checkpoint):
            raise Other(f"{path} was made with another network than {checkpoint}; use another OUT_DIR or delete it")
    words = [f"{metadata['true_calls']} true calls"]
    if metadata["scheme"] == "metropolis":
        words.append(f"acceptance {metadata['acceptance']:.2f}")
    elif metadata["scheme"] == "jump":
        words.append(f"{metadata['tally']['refused_jumps']} jumps refused")
    return ", ".join(words if metadata["status"] == "finished" else [*words, metadata["status"]])


def judge_dataset(path: Path, task: str, args) -> str:
    arrays, metadata = load_dataset(path)
    made_from = {entry["molecule"]: entry["sha256"] for entry in metadata["inputs"]}
    members = args.member if task == "all" else [task]
    if made_from != {name: sha256(args.md_root / name / "trajectory.npz") for name in members}:
        raise Missing
    splits = [path.parent / "splits" / f"{part}.json" for part in ("train", "val", "test")]
    if not all(split.is_file() for split in splits):
        raise Missing
    if args.split_by in ("time", "molecule") and ("blocks" in read_json(splits[0])) != (args.split_by == "time"):
        raise Missing
    return f"{len(arrays['frame'])} windows of {metadata['jump_fs']:g} fs, molecules: {len(made_from)}"


def judge_network(path: Path, task: str, args) -> str:
    from kstep.models import checkpoint as checkpoints

    if not (path.parent / "training.json").is_file():
        raise Missing
    outcome, checkpoint = read_json(path.parent / "training.json"), checkpoints.load(path)
    try:
        checkpoints.check_config(checkpoint, path, args.model_config)
    except UserError as error:
        raise Other(f"{error}; use another OUT_DIR or delete it") from None
    dataset = args.dataset.replace("{molecule}", task)
    if checkpoint["data_sha256"] != sha256(dataset):
        raise Other(f"{path} learned another dataset than {dataset} is now; use another OUT_DIR or delete it")
    return f"validation loss {outcome['best']['val_loss']:.3g} after {outcome['epochs']:.0f} epochs"


def judge_report(path: Path, task: str, args) -> str:
    try:
        judged = json.loads(path.read_text())["molecules"][task]["runs"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no report of {task}") from None
    inputs = [*(args.runs_root / task).glob("*.npz"), *(args.md_root / task).glob("*.npz")]
    if any(run.stat().st_mtime > path.stat().st_mtime for run in inputs) or \
            set(judged) != {run.name for run in (args.runs_root / task).glob("*.npz")}:
        raise Missing
    hybrids = sum(run["role"] == "hybrid" for run in judged.values())
    return f"{hybrids} hybrid{'s' * (hybrids != 1)}, controls: {len(judged) - hybrids}"


JUDGES = {"trajectory": judge_trajectory, "hybrid": judge_hybrid, "dataset": judge_dataset,
          "network": judge_network, "report": judge_report}


def answer(task: str, files: list[str], args) -> tuple[str, str]:
    """(kind, text) of a task: that of its first file that is not done."""
    texts = []
    for path in map(Path, files):
        try:
            if not path.is_file():
                raise Missing
            texts.append(JUDGES[args.what](path, task, args))
        except Missing:
            return "missing", ""
        except Other as difference:
            return "other", str(difference)
        except KeyError as problem:
            return "other", f"{path} lacks {problem} in its metadata; use another OUT_DIR or delete it"
        except UserError as problem:
            if args.set_aside:
                path.replace(path.with_name(f"{path.name}.broken"))
            return "broken", str(problem)
    return "done", texts[0]


def main():
    args = parse()
    setup_logging("warning")
    if args.what == "inputs":
        print_inputs(args)
    elif args.what == "plain-flags":
        given = load_config(HybridConfig, args.hybrid_config)
        for key in (key for key, value in PLAIN.items() if getattr(given, key) != value):
            print(f"--set\n{key}={json.dumps(PLAIN[key])}")
    elif args.what == "table":
        text = batch_table({path.parent.name: read_json(path)
                            for path in sorted(args.report_root.glob("*/metrics.json"))})
        write_text_atomic(args.report_root / "table.txt", text + "\n")
        print(f"\n{text}\n\nwrote {args.report_root / 'table.txt'}")
    for task, *files in args.of:
        print("\t".join([task, *answer(task, files, args)]).replace("\n", " "))


if __name__ == "__main__":
    run_script(main)
