"""Runs the stages of a plan one after another; what is there already is kept.

Each stage is a function called in a spawned process of its own, so that its memory goes back and its CPU seconds, with
those of its workers, imports and tuning, are what the system says of a child: what a user pays for that command.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import resource
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from kstep.errors import PhysicsError, UserError, sentence_of
from kstep.files import sha256, write_json_atomic
from kstep.processes import exit_with_parent
from kstep.schemas import read_metadata
from kstep.study.benchmark.plan import StageCall

COSTS, COMMANDS = "costs.json", "commands.json"
INTERRUPTED = 130
T = TypeVar("T")

log = logging.getLogger("kstep")


class Runner:
    """`logs`: folder for what the stages print.

    costs: CPU seconds of each stage with all its processes, imports and tuning included, kept in
    <out>/costs.json; failures: {result: sentence} of stages that left no file; texts: {run: its command}, for the
    record, which of a kept file is the one that made it (<out>/commands.json); kept: a sentence for each file that
    another command made than would be run now.
    """

    def __init__(self, logs: Path):
        self.logs = logs
        self.failures: dict[Path, str] = {}
        self.texts: dict[str, str] = {}
        self.kept: list[str] = []
        self.costs, self.made = read_costs(logs.parent), read_commands(logs.parent)

    def run(self, call: StageCall, checkpoint: Path | None = None) -> bool:
        """Run unless the result is there; True if it is there now.

        A run that broke leaves what came before it, and that counts as a result.  Raises UserError
        when the file that is there was made with another network than `checkpoint`.
        """
        result, label = call.result, label_of(call.result, self.logs.parent)
        self.texts[label] = call.text
        if result.exists():
            check_same_network(result, checkpoint)
            log.info("kept: %s", result)
            made = self.texts[label] = self.made.get(label, call.text)
            if _without_workers(made) != _without_workers(call.text):
                self.kept.append(f"{label} is kept from another command, which is the one of the record: {made}")
                log.warning("%s", self.kept[-1])
            return True
        self.logs.mkdir(parents=True, exist_ok=True)
        path = self.logs / f"{label.replace('/', '_')}.log"
        log.info("$ %s", call.text)
        self.made[label] = call.text
        write_json_atomic(self.logs.parent / COMMANDS, self.made)
        start, spent = time.perf_counter(), _cpu_s_of_children()
        code = run_apart(call, path)
        # an interrupted run goes on where it stopped, and its first part was paid for too
        self.costs[label] = self.costs.get(label, 0.0) + _cpu_s_of_children() - spent
        write_json_atomic(self.logs.parent / COSTS, self.costs)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if not result.exists():
            self.failures[result] = f"{label}: {_last_line(path)}"
            log.error("%s (all of it in %s)", self.failures[result], path)
            return False
        log.info("%s in %.0f s%s", result, time.perf_counter() - start, f", {_last_line(path)}" if code else "")
        return True


def run_apart(call: StageCall, path: Path) -> int:
    """Call the stage in a process of its own that prints into `path`; 0, or another code where it failed."""
    process = multiprocessing.get_context("spawn").Process(target=_stage, args=(call, path))
    process.start()
    try:
        process.join()
    except KeyboardInterrupt:  # the terminal has told the stage too
        process.join(timeout=10)
        process.terminate()
        process.join()
        return INTERRUPTED
    return process.exitcode


def _stage(call: StageCall, path: Path) -> None:
    exit_with_parent()
    with open(path, "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    logging.basicConfig(level="INFO", format="%(levelname).1s %(message)s", stream=sys.stderr, force=True)
    try:
        call.function(_going_on(call.settings))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except (UserError, PhysicsError, OSError, MemoryError) as error:
        print(f"error: {sentence_of(error)}", file=sys.stderr, flush=True)
        sys.exit(1)


def _going_on(settings: Any) -> Any:
    """The settings of a stage, which goes on with what an interrupted one left."""
    return settings.going_on() if hasattr(settings, "going_on") else settings


def label_of(result: Path, out: Path) -> str:
    """'learn/seed_0' or 'plain_1fs' for a file below the benchmark's folder."""
    relative = result.relative_to(out)
    return relative.parts[0] if result.name == "trajectory.npz" else str(relative.with_suffix(""))


def read_costs(out: Path) -> dict[str, float]:
    """CPU seconds of the commands that were run into `out`, by label."""
    return _written(out / COSTS, float)


def read_commands(out: Path) -> dict[str, str]:
    """The command that made each file of `out`, by label, as far as it was written down."""
    return _written(out / COMMANDS, str)


def _written(path: Path, kind: Callable[[Any], T]) -> dict[str, T]:
    """What was written down by label; {} where nothing was."""
    if not path.is_file():
        return {}
    try:
        return {str(label): kind(value) for label, value in json.loads(path.read_text()).items()}
    except (ValueError, AttributeError, TypeError):
        raise UserError(f"{path} is not what a benchmark wrote; choose another --out-dir") from None


def _without_workers(command: str) -> list[str]:
    """The words of a command but the number of workers, which changes no number of a run."""
    words = shlex.split(command)
    return [word for n, word in enumerate(words) if "--num-workers" not in words[max(0, n - 1):n + 1]]


def _cpu_s_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def check_same_network(result: Path, checkpoint: Path | None) -> None:
    """Refuse a kept file that another network made."""
    if checkpoint is None:
        return
    if metadata_of(result).get("checkpoint_sha256") != sha256(checkpoint):
        raise UserError(f"{result} was made with another network than {checkpoint}; choose another --out-dir")


def metadata_of(result: Path) -> dict:
    """The metadata of a run's file, without its arrays."""
    try:
        return read_metadata(result)
    except UserError:
        raise UserError(f"{result} cannot be read; move it away, and the benchmark makes it again") from None


def training_seconds(checkpoint: Path | None) -> float | None:
    """Wall seconds that 04_train.py wrote beside a checkpoint, None where it did not."""
    record = checkpoint.with_name("training.json") if checkpoint else None
    if record is None or not record.is_file():
        return None
    try:
        return float(json.loads(record.read_text())["wall_s"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{record} is not the record of a training; train the network again") from None


def _last_line(path: Path) -> str:
    lines = [line.split("\r")[-1].strip() for line in path.read_text(errors="replace").splitlines()]
    lines = [line for line in lines if line]
    return lines[-1].removeprefix("error: ") if lines else "it ended without a word"
