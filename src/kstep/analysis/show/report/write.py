"""The report of one run as a file."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from kstep.analysis.evaluate import evaluate, load_baseline
from kstep.analysis.measure.populations import Populations, populations as count_populations
from kstep.analysis.show.page import glossary, render, run_section
from kstep.analysis.show.report.libraries import packed
from kstep.analysis.show.report.sections import report_values
from kstep.errors import UserError
from kstep.files import check_writable, write_text_atomic
from kstep.outputs import check_no_input, marked, settle_result
from kstep.schemas import load_trajectory


def report_path(run: Path) -> Path:
    """Where the report of a run goes by itself."""
    return run.with_name(f"{run.stem}_report.html")


def write_report(run: Path, path: Path | None = None, *, baseline: Path | None = None,
                 populations: Populations | None = None, seed: int = 0, overwrite: bool = False) -> Populations:
    """Write the report of a run file, and return the populations that it shows (given, or counted in the run).

    path: the HTML file (None: report_path).  baseline: plain MD of the same molecule and method, a file or a folder of
    them, to stand beside it; overwrite: keep under another name what lies at `path` and is no report, which is refused
    otherwise.  Raises UserError where the page would replace a run, the run has no frames to count, the baseline is
    another molecule's or method's, or the JavaScript that it carries is not installed.
    """
    path = path or report_path(run)
    check_writable(path)
    check_no_input([path], {"the run": run, "--baseline": baseline})
    if path.suffix == ".npz":
        raise UserError(f"{path.name} is a name of runs; give the page one that ends in .html")
    settle_result(path, marked, {}, overwrite=overwrite)
    if baseline is not None and run.resolve() == baseline.resolve():
        raise UserError(f"{run} would be judged against itself; give another run, or another baseline")
    trajectory = load_trajectory(run)
    found = populations if populations is not None else count_populations([trajectory])
    plain = load_baseline(trajectory, baseline) if baseline is not None else None
    values = report_values(trajectory, found, plain)
    values["compared"] = _compared(run, baseline, seed) if baseline is not None else None
    data = json.dumps(values.pop("data"), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    write_text_atomic(path, render("run.html", **values, data=data, about=glossary() if baseline is not None else {},
                                   file=run.name, libraries={name: packed(name) for name in ("chemiscope", "plotly")}))
    return found


def _compared(run: Path, baseline: Path, seed: int) -> dict[str, Any]:
    """The comparison with plain MD, as the page of many runs shows it."""
    with tempfile.TemporaryDirectory() as folder:
        metrics, problems = evaluate(baseline, run, folder, seed=seed)
        if problems or len(metrics["molecules"]) != 1:
            raise UserError(problems[0] if problems else f"{run} could not be judged against {baseline}")
        (molecule,) = metrics["molecules"].values()
        return run_section(molecule, next(iter(molecule["runs"])), Path(folder))
