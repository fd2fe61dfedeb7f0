"""What the batch scripts ask: which molecules there are, which results are whole and made as wanted, what they say.

A task is answered by

    done TEXT       all its files are whole and made with these settings; TEXT says what is in the first
    missing         a file is not there, or older than what it is made from
    broken TEXT     a file cannot be read, or its run broke off; it has to be made again
    other TEXT      a file was made with other settings, which nobody should overwrite unasked
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from kstep.analysis.show.batch_table import batch_table
from kstep.config import HOW_IT_WORKS, load_config
from kstep.errors import UserError
from kstep.files import read_json, sha256, write_text_atomic
from kstep.forces import load_qm_config
from kstep.molecules.smiles import read_smiles_file
from kstep.runs.aim import AIMS, BUDGET, describe
from kstep.schemas import load_dataset, load_trajectory
from kstep.scheme_traits import traits_of
from kstep.schemes import CONTROL
from kstep.schemes.hybrid_config import HybridConfig, keys_of_others

SETTLED_BY_THE_MACHINE = {"inner", "checkpoint_interval"}
# of any config, to make the control of it
PLAIN = {"k_steps": None, "dt_fs": None, **dict.fromkeys((*AIMS, *BUDGET)), **keys_of_others(CONTROL.name)}


class Missing(Exception):
    """A result that is still to be made."""


class Other(Exception):
    """A result of other settings."""


@dataclass(frozen=True)
class Wanted:
    """What results must have been made with; None: anything.  {molecule} in checkpoint and dataset stands for the task.

    qm_config, hybrid_config, model_config: YAML files; steps: macro-steps of a hybrid; md_root: folder of the
    trajectories that datasets are made from; members: molecules of the dataset of task all; runs_root: folder of the
    runs that reports judge.
    """

    qm_config: str | None = None
    hybrid_config: str | None = None
    model_config: str | None = None
    steps: int | None = None
    checkpoint: str | None = None
    dataset: str | None = None
    md_root: Path | None = None
    runs_root: Path | None = None
    members: tuple[str, ...] = ()
    split_by: str | None = None


def inputs(smiles_file: str, names: list[str] | None, qm_config: str | None) -> list[tuple[str, ...]]:
    """The stage of a QM config with its timestep, the molecules of a SMILES file, and the lines of it that are none."""
    lines: list[tuple[str, ...]] = []
    if qm_config:
        config = load_qm_config(qm_config)
        stage = "01c_run_pyscf_baselines.py" if config.backend == "pyscf" else "01b_run_qm_baselines.py"
        lines.append(("baseline", f"src/{stage}", f"{config.dt_fs:g}"))
    entries, problems = read_smiles_file(smiles_file, names)
    lines += [("molecule", entry.name) for entry in entries]
    for problem in problems:
        line = re.search(r"line (\d+)", problem)
        lines.append(("problem", line.group(0) if line else smiles_file, problem))
    return lines


def plain_flags(hybrid_config: str) -> list[str]:
    """The flags that take from a hybrid config what plain MD would refuse."""
    given = load_config(HybridConfig, hybrid_config)
    return [word for key, value in PLAIN.items() if getattr(given, key) != value
            for word in ("--set", f"{key}={json.dumps(value)}")]


def table(report_root: Path) -> str:
    """The reports below a folder as one table, also written there; its text."""
    text = batch_table({path.parent.name: read_json(path) for path in sorted(report_root.glob("*/metrics.json"))})
    write_text_atomic(report_root / "table.txt", text + "\n")
    return text


def compare_settings(path: Path, found: dict, wanted: dict) -> None:
    """Raise Other where a file's settings are not the wanted ones; a wanted null may be anything."""
    different = [f"{key} {found[key]}, not {value}" for key, value in wanted.items()
                 if value is not None and key in found and found[key] != value]
    if different:
        raise Other(f"{path} was made with {', '.join(different)}; use another OUT_DIR")


def judge_trajectory(path: Path, task: str, wanted: Wanted) -> str:
    """A baseline of the wanted QM config."""
    metadata = load_trajectory(path).metadata
    if wanted.qm_config:
        compare_settings(path, metadata["config"], load_qm_config(wanted.qm_config).model_dump(exclude=HOW_IT_WORKS))
    replicas = metadata["config"]["replicas"]
    return f"{replicas} replica{'s' * (replicas != 1)}, {metadata['true_calls']} true calls"


def settings_of(path: Path) -> dict:
    """What a run's name states: jump_k8.npz, jump_k8_bare.npz, plain.npz (baseline's timestep), plain_2fs.npz."""
    scheme, *rest = path.stem.split("_")
    if scheme == CONTROL.name:
        return {**PLAIN, "scheme": scheme, "dt_fs": float(rest[0].removesuffix("fs")) if rest else None}
    bare = {"delta_scale": 0.0} if rest[1:] == ["bare"] else {}
    return {"scheme": scheme, "k_steps": int(rest[0].removeprefix("k")), **bare}


def is_control(asked: dict) -> bool:
    """Whether a run is plain MD at a timestep of its own: one that breaks answers what it was run for."""
    return asked["scheme"] == CONTROL.name and asked["dt_fs"] is not None


def judge_hybrid(path: Path, task: str, wanted: Wanted) -> str:
    """A hybrid run, or a control of one, of the wanted settings and network."""
    metadata = load_trajectory(path).metadata
    asked = settings_of(path)
    broke = metadata["status"].startswith("broke")
    if broke and not is_control(asked):
        raise UserError(f"{path}: {metadata['status']}")
    config = load_config(HybridConfig, wanted.hybrid_config, {**asked, "steps": wanted.steps}).model_dump()
    if wanted.checkpoint is None and None in (config["dt_fs"], config["k_steps"]):
        config["tune"] = None  # learning tunes what is left open
    compare_settings(path, metadata["config"], {k: v for k, v in config.items() if k not in SETTLED_BY_THE_MACHINE})
    if broke:
        return metadata["status"].split(":")[0]
    if wanted.checkpoint and asked["scheme"] != CONTROL.name:
        checkpoint = wanted.checkpoint.replace("{molecule}", task)
        if Path(checkpoint).is_file() and metadata["checkpoint_sha256"] != sha256(checkpoint):
            raise Other(f"{path} was made with another network than {checkpoint}; use another OUT_DIR")
    words = [f"{metadata['true_calls']} true calls"]
    traits = traits_of(metadata)
    if traits.can_refuse:
        words.append(f"acceptance {metadata['acceptance']:.2f}")
    words += [f"{metadata['tally'][key]} {what}" for key, what in traits.counters.items()]
    if "aim" in metadata:
        words.append(describe(metadata["aim"]))
    return ", ".join(words if metadata["status"] == "finished" else [*words, metadata["status"]])


def judge_dataset(path: Path, task: str, wanted: Wanted) -> str:
    """A dataset and its splits, made from the trajectories that lie there now."""
    arrays, metadata = load_dataset(path)
    made_from = {entry["molecule"]: entry["sha256"] for entry in metadata["inputs"]}
    members = list(wanted.members) if task == "all" else [task]
    if made_from != {name: sha256(wanted.md_root / name / "trajectory.npz") for name in members}:
        raise Missing
    splits = [path.parent / "splits" / f"{part}.json" for part in ("train", "val", "test")]
    if not all(split.is_file() for split in splits):
        raise Missing
    if wanted.split_by in ("time", "molecule") and ("blocks" in read_json(splits[0])) != (wanted.split_by == "time"):
        raise Missing
    return f"{len(arrays['frame'])} windows of {metadata['jump_fs']:g} fs, molecules: {len(made_from)}"


def judge_network(path: Path, task: str, wanted: Wanted) -> str:
    """A finished training of the wanted model config on the dataset that lies there now."""
    from kstep.models import checkpoint as checkpoints

    if not (path.parent / "training.json").is_file():
        raise Missing
    outcome, checkpoint = read_json(path.parent / "training.json"), checkpoints.load(path)
    try:
        checkpoints.check_config(checkpoint, path, wanted.model_config)
    except UserError as error:
        raise Other(f"{error}; use another OUT_DIR") from None
    dataset = wanted.dataset.replace("{molecule}", task)
    if checkpoint["data_sha256"] != sha256(dataset):
        raise Other(f"{path} learned another dataset than {dataset} is now; use another OUT_DIR")
    return f"validation loss {outcome['best']['val_loss']:.3g} after {outcome['epochs']:.0f} epochs"


def judge_report(path: Path, task: str, wanted: Wanted) -> str:
    """A report of the runs that lie there now."""
    try:
        judged = json.loads(path.read_text())["molecules"][task]["runs"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no report of {task}") from None
    inputs = [*(wanted.runs_root / task).glob("*.npz"), *(wanted.md_root / task).glob("*.npz")]
    if any(run.stat().st_mtime > path.stat().st_mtime for run in inputs) or \
            set(judged) != {run.name for run in (wanted.runs_root / task).glob("*.npz")}:
        raise Missing
    hybrids = sum(run["role"] == "hybrid" for run in judged.values())
    return f"{hybrids} hybrid{'s' * (hybrids != 1)}, controls: {len(judged) - hybrids}"


JUDGES = {"trajectory": judge_trajectory, "hybrid": judge_hybrid, "dataset": judge_dataset,
          "network": judge_network, "report": judge_report}


def answer(kind: str, task: str, files: list[str], wanted: Wanted, *, set_aside: bool = False) -> tuple[str, str]:
    """(answer, text) of a task whose files JUDGES[kind] judges: that of its first file that is not done.

    set_aside: rename a broken file to <file>.broken.
    """
    texts = []
    for path in map(Path, files):
        try:
            if not path.is_file():
                raise Missing
            texts.append(JUDGES[kind](path, task, wanted))
        except Missing:
            return "missing", ""
        except Other as difference:
            return "other", str(difference)
        except KeyError as problem:
            return "other", f"{path} lacks {problem} in its metadata; use another OUT_DIR"
        except UserError as problem:
            if set_aside:
                path.replace(path.with_name(f"{path.name}.broken"))
            return "broken", str(problem)
    return "done", texts[0]
