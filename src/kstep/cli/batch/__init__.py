"""A stage for every molecule of a list: what is finished is skipped, what was cut short goes on, one table at the end.

    kstep batch populations --smiles-file mine.smi --out-dir outputs/mine --max-jobs 8
    kstep batch baseline --structure structures/ --max-jobs 8 --dry-run
    kstep batch sample --scheduler tcp://node01:8786

baseline, dataset, train, sample and evaluate are the five steps of QM_WORKFLOW.md, and run_qm_trajectories.sh,
make_qm_dataset.sh, train_qm.sh, run_hybrid_qm.sh and eval_qm.sh are their faces; populations goes from SMILES to
conformers.  Every flag is also an environment variable.  Ctrl-C ends all jobs, which leave what the same command goes
on with; a job that fails stops no other.  Exit code: 0 all finished, 1 some failed, 2 a setting is wrong and nothing
was run, 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from inspect import cleandoc
from pathlib import Path
from typing import Any

from kstep.cli.batch.settings import add_settings, filled_from
from kstep.cli.flags import HelpFormatter
from kstep.interruption import Stopped, restarts_requested

NAMELESS = "-"  # the row of a line that is no molecule
LOOKS_APART_S, PATIENCE_S, LAST_PATIENCE_S = 1.0, 60.0, 5.0


def add_flags(parser, numbered: str | None = None) -> None:
    """Flags of `kstep batch`: those of each stage."""
    from kstep.cli.batch.stages import STAGES

    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for name, kind in STAGES.items():
        words = cleandoc(kind.__doc__)
        add_settings(stages.add_parser(name, help=words.partition("\n")[0], description=words,
                                       formatter_class=HelpFormatter), kind)
    parser.set_defaults(log_level="warning")


def run(args) -> int:
    """Run the tasks, print the table, and say how it went."""
    from kstep.cli.batch.jobs import TaskRow, log_of
    from kstep.cli.batch.stages import STAGES
    from kstep.files import check_writable, write_text_atomic
    from kstep.study.batch import Found

    stage = filled_from(STAGES[args.stage], vars(args), os.environ)
    rows = [TaskRow(NAMELESS, "failed", problem) for problem in stage.read_sources()]
    if stage.scheduler is not None:
        stage.placed(Path.cwd())
    tasks, without = stage.tasks()
    rows += [TaskRow(task, "failed", text) for task, text in without.items()]
    known, todo = {}, []
    for task in tasks:
        answers = [(command, *command.found()) for command in stage.commands(task)]
        other = next((text for _, kind, text in answers if kind is Found.OTHER), None)
        if other is not None:
            known[task] = TaskRow(task, "failed", other)
        elif all(kind is Found.DONE for _, kind, _ in answers):
            known[task] = TaskRow(task, "skipped", next(text for command, _, text in answers if command.tells))
        else:
            todo.append(task)
    stopped = None
    if stage.dry_run:
        print_commands(stage, todo)
        known |= {task: TaskRow(task, "planned") for task in todo}
    else:
        check_writable(log_of(stage, "any"))
        made, stopped = run_tasks(stage, todo) if todo else ({}, None)
        known |= made
    rows += [known[task] for task in tasks]
    text = table(rows)
    print(f"\n{text}", flush=True)
    if not stage.dry_run:
        write_text_atomic(stage.at("logs", f"{stage.script}.txt"), text + "\n")
        if not stopped and (more := stage.afterwards()):
            print(f"\n{more}")
    missing = sum(not row.is_well for row in rows)
    if missing:
        print(f"{missing} of {len(rows)} did not finish", file=sys.stderr)
    return stopped.code if stopped else int(missing > 0)


def print_commands(stage, tasks: list[str]) -> None:
    """What would be run."""
    from kstep.cli.batch.jobs import shown
    from kstep.study.batch import Found

    for task in tasks:
        for command in stage.commands(task):
            if command.found()[0] is not Found.DONE:
                print(f"$ {shown(command.words)}")


def run_tasks(stage, tasks: list[str]):
    """{task: its row}, and by what the batch was ended before they were through (None: by nothing).

    Ctrl-C or SIGTERM ends every job as SIGTERM does, a second one kills them; SIGUSR1 is passed on.
    """
    from kstep.cli.batch.jobs import STOPPED, Place, TaskRow, perform, signal_batch
    from kstep.cli.batch.workers import workers

    place, rows, stopped = Place(Path.cwd(), uuid.uuid4().hex), {}, None
    with workers(len(tasks), stage.max_jobs, stage.scheduler) as who:
        pending = {who.executor.submit(perform, stage, task, place): task for task in tasks}

        def collect(limit_s: float = float("inf")) -> None:
            for task, row in _rows(pending, who, place, limit_s):
                rows[task] = row
                print(f"{task}: {row.status} in {_number(row.seconds)} s ({_number(row.cpu_s)} s CPU): {row.text}",
                      flush=True)

        try:
            collect()
        except KeyboardInterrupt as first:
            stopped = first if isinstance(first, Stopped) else Stopped()
            try:
                who.everywhere(signal_batch, place.batch, signal.SIGTERM)
                collect(PATIENCE_S)
            except KeyboardInterrupt:
                pass
            if pending:
                who.everywhere(signal_batch, place.batch, signal.SIGKILL)
                collect(LAST_PATIENCE_S)
    return {task: rows.get(task, TaskRow(task, "stopped", STOPPED)) for task in tasks}, stopped


def _rows(pending: dict[Future, str], who, place, limit_s: float) -> Iterator[tuple[str, Any]]:
    """(task, its row) as they come, which are pending no more, for so long at most."""
    from kstep.cli.batch.jobs import STOPPED, TaskRow, signal_batch

    asked, waited = restarts_requested(), 0.0
    while pending and waited < limit_s:
        ready, _ = wait(pending, timeout=LOOKS_APART_S, return_when=FIRST_COMPLETED)
        waited += 0 if ready else LOOKS_APART_S
        if asked != (asked := restarts_requested()):
            who.everywhere(signal_batch, place.batch, signal.SIGUSR1)
        for future in ready:
            task = pending.pop(future)
            try:
                row = future.result()
            except CancelledError:
                row = TaskRow(task, "stopped", f"the scheduler is gone; {STOPPED}")
            except Exception as error:  # a worker's own: it was killed too often, it lacks kstep
                said = str(error).splitlines()[0] if str(error) else repr(error)
                row = TaskRow(task, "failed", f"its worker failed: {said}")
            yield task, row


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def table(rows) -> str:
    """What became of every task, a line each."""
    from kstep.analysis.show.text import aligned

    cells = [[row.task, row.status, _number(row.seconds), _number(row.cpu_s), row.text] for row in rows]
    return "\n".join(aligned((["molecule", "status", "seconds", "CPU s", "result"], cells)))
