"""Which results of many molecules are whole and made as wanted, and what they say.

A judge takes a file and returns what is in it, in words.  It raises Missing for what is older than what it is made
from, Other for what was made with other settings, and UserError for what cannot be read, or broke off.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from kstep.analysis.show.batch_table import batch_table
from kstep.config import HOW_IT_WORKS, load_config
from kstep.errors import UserError
from kstep.files import read_json, sha256, write_text_atomic
from kstep.forces import load_qm_config
from kstep.molecules.molecule import Molecule
from kstep.molecules.prepare import read_prepared
from kstep.molecules.smiles import Entry
from kstep.runs.aim import AIMS, BUDGET, ENDS, describe
from kstep.schemas import load_dataset, load_trajectory
from kstep.scheme_traits import traits_of
from kstep.schemes import CONTROL
from kstep.schemes.hybrid_config import HybridConfig, keys_of_others

log = logging.getLogger(__name__)

SHOWN = 3  # conformers in a line
SETTLED_BY_THE_MACHINE = {"inner", "checkpoint_interval"}
# of any config, to make the control of it
PLAIN = {"k_steps": None, "dt_fs": None, **dict.fromkeys((*AIMS, *BUDGET)), **keys_of_others(CONTROL.name)}


class Missing(Exception):
    """A result that is still to be made."""


class Other(Exception):
    """A result of other settings."""


class Found(StrEnum):
    """What lies where a result should: all of it; nothing, or what is out of date; what cannot be read; another's."""

    DONE = "done"
    MISSING = "missing"
    BROKEN = "broken"
    OTHER = "other"


def found(files: Iterable[Path], judge: Callable[[Path], str], *, set_aside: bool = False) -> tuple[Found, str]:
    """What is there of a result and words about it: those of its first file, or of the first that is not done.

    set_aside: rename a broken file to <file>.broken.
    """
    texts = []
    for path in files:
        try:
            if not path.is_file():
                raise Missing
            texts.append(judge(path))
        except Missing:
            return Found.MISSING, ""
        except Other as difference:
            return Found.OTHER, str(difference)
        except KeyError as problem:
            return Found.OTHER, f"{path} lacks {problem} in its metadata; use another OUT_DIR"
        except UserError as problem:
            if set_aside:
                path.replace(path.with_name(f"{path.name}.broken"))
            return Found.BROKEN, str(problem)
    return Found.DONE, texts[0]


def compare_settings(path: Path, made_with: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise Other where a file's settings are not the wanted ones; a wanted null may be anything."""
    different = [f"{key} {made_with[key]}, not {value}" for key, value in wanted.items()
                 if value is not None and key in made_with and made_with[key] != value]
    if different:
        raise Other(f"{path} was made with {', '.join(different)}; use another OUT_DIR")


def judge_prepared(path: Path, entry: Entry | None, structure: Path | None = None) -> str:
    """The prepared molecule of a line of a SMILES file, or of a structure file."""
    if entry is not None:
        try:
            molecule = read_prepared(entry, path.parent.parent)
        except UserError as error:
            raise Other(f"{error}; use another OUT_DIR") from None
    else:
        molecule = Molecule.load(path.parent)
    if structure is not None and structure.stat().st_mtime > path.stat().st_mtime:
        raise Missing
    return f"{len(molecule)} atoms"


def judge_trajectory(path: Path, qm_config: Path | None = None) -> str:
    """A baseline of the wanted QM config; None: of any."""
    metadata = load_trajectory(path).metadata
    if qm_config is not None:
        compare_settings(path, metadata["config"], load_qm_config(qm_config).model_dump(exclude=HOW_IT_WORKS))
    replicas = metadata["config"]["replicas"]
    return f"{replicas} replica{'s' * (replicas != 1)}, {metadata['true_calls']} true calls"


@dataclass(frozen=True)
class HybridWanted:
    """What a hybrid run, or a control of one, must have been made with.

    asked: what is its own in the hybrid config; config: YAML of the rest; checkpoint: its network; learns: whether it
    learned that, which also settles what is left open; may_break: whether a run that breaks is an answer too.
    """

    asked: Mapping[str, Any]
    config: Path
    steps: int | None = None
    checkpoint: Path | None = None
    learns: bool = False
    may_break: bool = False


def judge_hybrid(path: Path, wanted: HybridWanted) -> str:
    """A hybrid run, or a control of one, of the wanted settings and network."""
    metadata = load_trajectory(path).metadata
    broke = metadata["status"].startswith("broke")
    if broke and not wanted.may_break:
        raise UserError(f"{path}: {metadata['status']}")
    config = load_config(HybridConfig, wanted.config, {**wanted.asked, "steps": wanted.steps}).model_dump()
    if wanted.learns and None in (config["dt_fs"], config["k_steps"]):
        config["tune"] = None  # learning tunes what is left open
    compare_settings(path, metadata["config"], {k: v for k, v in config.items() if k not in SETTLED_BY_THE_MACHINE})
    if broke:
        return metadata["status"].split(":")[0]
    checkpoint = wanted.checkpoint
    if checkpoint is not None and checkpoint.is_file() and metadata["checkpoint_sha256"] != sha256(checkpoint):
        raise Other(f"{path} was made with another network than {checkpoint}; use another OUT_DIR")
    words = [f"{metadata['true_calls']} true calls"]
    traits = traits_of(metadata)
    if traits.can_refuse:
        words.append(f"acceptance {metadata['acceptance']:.2f}")
    words += [f"{metadata['tally'][key]} {what}" for key, what in traits.counters.items()]
    if "aim" in metadata:
        words.append(describe(metadata["aim"]))
    return ", ".join(words if metadata["status"] == "finished" else [*words, metadata["status"]])


def judge_dataset(path: Path, members: Sequence[str], md_root: Path, split_by: str) -> str:
    """A dataset of `members` and its splits, made from the trajectories below md_root that lie there now."""
    arrays, metadata = load_dataset(path)
    made_from = {entry["molecule"]: entry["sha256"] for entry in metadata["inputs"]}
    if made_from != {name: sha256(md_root / name / "trajectory.npz") for name in members}:
        raise Missing
    splits = [path.parent / "splits" / f"{part}.json" for part in ("train", "val", "test")]
    if not all(split.is_file() for split in splits):
        raise Missing
    if ("blocks" in read_json(splits[0])) != (split_by == "time"):
        raise Missing
    return f"{len(arrays['frame'])} windows of {metadata['jump_fs']:g} fs, molecules: {len(made_from)}"


def judge_network(path: Path, dataset: Path, model_config: Path) -> str:
    """A finished training of the wanted model config on the dataset that lies there now."""
    from kstep.models import checkpoint as checkpoints

    if not (path.parent / "training.json").is_file():
        raise Missing
    outcome, checkpoint = read_json(path.parent / "training.json"), checkpoints.load(path)
    try:
        checkpoints.check_config(checkpoint, path, model_config)
    except UserError as error:
        raise Other(f"{error}; use another OUT_DIR") from None
    if checkpoint["data_sha256"] != sha256(dataset):
        raise Other(f"{path} learned another dataset than {dataset} is now; use another OUT_DIR")
    return f"validation loss {outcome['best']['val_loss']:.3g} after {outcome['epochs']:.0f} epochs"


def judge_report(path: Path, runs: Path, md: Path) -> str:
    """A report of a molecule's runs as they lie there now; runs, md: their folders, named after it."""
    try:
        judged = json.loads(path.read_text())["molecules"][runs.name]["runs"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no report of {runs.name}") from None
    inputs = [*runs.glob("*.npz"), *md.glob("*.npz")]
    if any(run.stat().st_mtime > path.stat().st_mtime for run in inputs) or \
            set(judged) != {run.name for run in runs.glob("*.npz")}:
        raise Missing
    hybrids = sum(run["role"] == "hybrid" for run in judged.values())
    return f"{hybrids} hybrid{'s' * (hybrids != 1)}, controls: {len(judged) - hybrids}"


def judge_populations(path: Path, hybrid_config: Path, qm_config: Path) -> str:
    """A run that learned its own network, made with these settings, and the populations in it.

    One that ended sooner than it would now is still to go on.
    """
    metadata = load_trajectory(path).metadata
    wanted = load_config(HybridConfig, hybrid_config).model_dump()
    free = {*SETTLED_BY_THE_MACHINE, *ENDS, "tune"}
    compare_settings(path, metadata["config"], {key: value for key, value in wanted.items() if key not in free})
    if (method := load_qm_config(qm_config).surface) != metadata["method"]:
        raise Other(f"{path} was made with {metadata['method']}, not {method}; use another OUT_DIR")
    if metadata["status"] != "finished":
        raise UserError(f"{path}: {metadata['status']}")
    if _wants_more(metadata, wanted):
        raise Missing
    if "populations" not in metadata:
        return f"no populations, {metadata['true_calls']} true calls"
    table = metadata["populations"]
    shares = ", ".join(f"{each['label']} {each['population']:.3f} +- {each['population_error']:.3f}"
                       for each in table["conformers"][:SHOWN])
    more = len(table["conformers"]) - SHOWN
    state = "converged" if table["converged"] else f"NOT CONVERGED: {table['problems'][0]}"
    return (f"{shares}{f' and {more} more' if more > 0 else ''}; {state}; {metadata['true_calls']} true calls, "
            f"{metadata['true_calls_training']} to learn")


def _wants_more(metadata: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a run with the ends of `wanted` is longer than the one that wrote a file."""
    had, reached = metadata["config"], metadata.get("aim", {}).get("reached", False)
    ends = ("steps", *AIMS) if reached else ENDS
    bounds = [(wanted[key], had[key], -1 if key == "population_error" else 1) for key in ends]
    return any(now is not None and before is not None and sign * now > sign * before for now, before, sign in bounds)


def report_table(folder: Path) -> str:
    """The reports below a folder as one table, also written there; its text."""
    text = batch_table({path.parent.name: read_json(path) for path in sorted(folder.glob("*/metrics.json"))})
    write_text_atomic(folder / "table.txt", text + "\n")
    return text


def write_populations(path: Path, runs: Iterable[Path]) -> tuple[int, int]:
    """The conformers of all runs that can be read as one CSV file, a row each: how many, and of how many runs."""
    header = ("molecule", "method", "temperature_K", "conformer", "wells_deg", "population", "population_error",
              "free_energy_kJ_per_mol", "free_energy_error_kJ_per_mol", "effective_samples", "mirror_images",
              "converged", "true_calls", "true_calls_training")
    rows: list[Sequence[Any]] = []
    read = 0
    for run in runs:
        try:
            metadata = load_trajectory(run).metadata
        except UserError as error:
            log.warning("left out of %s: %s", path.name, error)
            continue
        read += 1
        table = metadata.get("populations", {"conformers": []})
        rows += [(table["molecule"], table["method"], table["temperature_K"], each["label"],
                  " ".join(f"{name}={angle:.0f}" for name, angle in each["wells_deg"].items()),
                  each["population"], each["population_error"], each["free_energy_kJ"], each["free_energy_error_kJ"],
                  each["effective_samples"], each["images"], table["converged"], metadata["true_calls"],
                  metadata["true_calls_training"]) for each in table["conformers"]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in rows)
    write_text_atomic(path, text.getvalue())
    return len(rows), read
