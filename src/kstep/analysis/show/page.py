"""A comparison as one report.html that needs nothing else, and the templates that all pages are made of."""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kstep.analysis.judge.verdict import Outcome
from kstep.analysis.metrics import METRICS
from kstep.analysis.show.tables import controls_of, shown_runs, summary_table, tables, verdict_of
from kstep.analysis.show.words import sentence_of
from kstep.files import write_text_atomic

if TYPE_CHECKING:
    from jinja2 import Environment

HOW_TO_READ = (
    "Every number stands beside its noise floor: the size it would have if the run sampled "
    "exactly the same thing as plain MD, given how long both ran. The floor is measured on independent plain runs "
    "and has an error of its own. A number up to 1.5 times its floor reads 'within floor': no difference was seen "
    "(up to 2.5 times where the number rests on a single coordinate and so scatters more). "
    "Controls, where there are any, are plain MD with the same number of true calls, and the same scheme without "
    "its network.")

CAPTIONS = {
    "energy": "Potential energy along the run and its distribution.",
    "rdf": "Atom-atom distances; below, the difference with twice its standard error shaded.",
    "bonds": "Bond lengths; if there are more than twelve, those that differ most.",
    "angles": "Angles; if there are more than twelve, those that differ most.",
    "torsions": "Rotatable torsions.",
    "temperature": "Temperature of each element with two standard errors.",
    "proposals": "Energy error of the proposals, and acceptance along the run.",
    "drift": "True total energy in NVE windows.",
    "spectrum": "Vibrational spectrum from NVE windows of the same length.",
}



def _tone(cell: str) -> bool | None:
    """Whether the verdict behind a cell is good; None for mere text."""
    verdict = verdict_of(cell)
    return verdict.tone if verdict else None


@cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(loader=PackageLoader("kstep.analysis.show"), autoescape=True, undefined=StrictUndefined,
                        trim_blocks=True, lstrip_blocks=True)
    found.filters |= {"tone": _tone, "plus_minus": lambda text: str(text).replace("+-", "\N{PLUS-MINUS SIGN}")}
    return found


def render(template: str, **values: Any) -> str:
    """A page from one of templates/; every value is escaped."""
    return _templates().get_template(template).render(**values)


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def run_section(molecule: dict, name: str, plot_root: Path) -> dict[str, Any]:
    """What comparison.html shows of one run of a molecule of metrics.json; plots lie below `plot_root`."""
    result = molecule["runs"][name]
    return {"name": name, "tables": tables(result, controls_of(name, molecule)),
            "verdicts": [{"words": _sentence(sentence_of(v, result["role"])), "lost": v["outcome"] == Outcome.LOST}
                         for v in result["verdicts"]],
            "warnings": [_sentence(w) for w in result["warnings"]],
            "plots": [{"caption": CAPTIONS[plot], "png": base64.b64encode((plot_root / file).read_bytes()).decode()}
                      for plot, file in result.get("plots", {}).items()]}


def glossary() -> dict[str, str]:
    """What the numbers of a comparison mean: {heading: words}."""
    return dict(filter(None, (metric.about for metric in METRICS)))


def write_page(path: Path, metrics: dict, plot_root: Path, title: str) -> None:
    """One page with all tables and pictures inside it."""
    molecules = []
    for name, molecule in metrics["molecules"].items():
        first = next(iter(molecule["runs"].values()))
        molecules.append({"name": name, "method": first["method"], "replicas": first["reference_replicas"],
                          "summary": summary_table(molecule),
                          "runs": [run_section(molecule, run, plot_root) for run in shown_runs(molecule)]})
    write_text_atomic(path, render("evaluation.html", title=title, how_to_read=HOW_TO_READ, molecules=molecules,
                                   problems=metrics["problems"], about=glossary()))
