"""A comparison as one report.html that needs nothing else."""

from __future__ import annotations

import base64
import html
from pathlib import Path

from kstep.analysis.judge.verdict import Outcome
from kstep.analysis.metrics import METRICS
from kstep.analysis.show.tables import controls_of, shown_runs, summary_table, tables, verdict_of
from kstep.analysis.show.words import sentence_of
from kstep.files import write_text_atomic

HOW_TO_READ = (
    "Every number stands beside its noise floor: the size it would have if the run sampled "
    "exactly the same thing as plain MD, given how long both ran. The floor is measured on independent plain runs "
    "and has an error of its own. A number up to 1.5 times its floor reads 'within floor': no difference was seen "
    "(up to 2.5 times where the number rests on a single coordinate and so scatters more). "
    "Controls, where there are any, are plain MD with the same number of true calls, and the same scheme without "
    "its network.")

CSS = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; margin: 0 auto; max-width: 62rem;
       padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { border-bottom: 2px solid #0072b2; padding-bottom: .2rem; margin-top: 2.5rem; }
h3 { margin-top: 2rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; margin: .6rem 0; min-width: 52rem; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top; }
th { background: #f2f5f7; } td.within { color: #00634a; } td.above { color: #a33b00; font-weight: 600; }
.verdict { background: #eef5fa; border-left: 4px solid #0072b2; padding: .4rem .8rem; margin: .4rem 0; }
.verdict.lost, .problem { background: #fdf1e9; border-left: 4px solid #d55e00; padding: .4rem .8rem; margin: .4rem 0; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; } figcaption { font-size: .85rem; color: #555; }
dt { font-weight: 600; margin-top: .6rem; } dd { margin: 0; } .note { color: #555; font-size: .9rem; }
@media print { body { max-width: none; font-size: 11pt; } .scroll { overflow: visible; }
  table { font-size: 7.5pt; min-width: 0; }
  th, td { padding: .1rem .25rem; } figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""

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


def _class(cell):
    verdict = verdict_of(cell)
    return {True: ' class="within"', False: ' class="above"', None: ""}[verdict.tone if verdict else None]


def _html_table(table):
    header, rows = table
    e = html.escape
    head = "".join(f"<th>{e(h)}</th>" for h in header)
    body = "".join("<tr>" + "".join(f"<td{_class(c)}>{e(c).replace('+-', '&plusmn;')}</td>" for c in r) + "</tr>"
                   for r in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _sentence(words: str, kind: str) -> str:
    return f'<p class="{kind}">{html.escape(words[0].upper() + words[1:])}.</p>'


def write_page(path: Path, metrics: dict, plot_root: Path, title: str) -> None:
    """One page with all tables and pictures inside it."""
    e = html.escape
    parts = [f"<h1>{e(title)}</h1>", f"<p>{e(HOW_TO_READ)}</p>"]
    parts += [f'<p class="problem">{e(p)}</p>' for p in metrics["problems"]]
    for name, molecule in metrics["molecules"].items():
        first = next(iter(molecule["runs"].values()))
        parts += [f"<h2>{e(name)}</h2>",
                  f'<p class="note">{e(str(first["method"]))}; the reference is {first["reference_replicas"]} '
                  f"independent plain replica{'s' * (first['reference_replicas'] != 1)}.</p>",
                  _html_table(summary_table(molecule))]
        for run in shown_runs(molecule):
            result = molecule["runs"][run]
            parts.append(f"<h3>{e(run)}</h3>")
            parts += [_sentence(sentence_of(v, result["role"]), "verdict lost" if v["outcome"] == Outcome.LOST
                                else "verdict")
                      for v in result["verdicts"]]
            parts += [_sentence(warning, "problem") for warning in result["warnings"]]
            parts += map(_html_table, tables(result, controls_of(run, molecule)))
            for plot, file in result.get("plots", {}).items():
                data = base64.b64encode((plot_root / file).read_bytes()).decode()
                parts.append(f'<figure><img alt="{e(CAPTIONS[plot])}" src="data:image/png;base64,{data}">'
                             f"<figcaption>{e(CAPTIONS[plot])}</figcaption></figure>")
    notes = "".join(f"<dt>{e(k)}</dt><dd>{e(v)}</dd>"
                    for k, v in dict(filter(None, (m.about for m in METRICS))).items())
    parts.append(f"<h2>What the numbers mean</h2><dl>{notes}</dl>")
    write_text_atomic(
        path, f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
              f'content="width=device-width, initial-scale=1"><title>{e(title)}</title><style>{CSS}</style></head>'
              f'<body>{"".join(parts)}</body></html>\n')
