"""A comparison as text for the terminal."""

from __future__ import annotations

from kstep.analysis.show.tables import controls_of, shown_runs, summary_table, tables
from kstep.analysis.show.words import sentence_of


def format_text(metrics: dict) -> str:
    """The whole report: a table of all runs of a molecule, then each run's."""
    lines = []
    for name, molecule in metrics["molecules"].items():
        lines += ["", name, "=" * len(name), *aligned(summary_table(molecule))]
        for run in shown_runs(molecule):
            result = molecule["runs"][run]
            lines += ["", f"{name}: {run} ({result['scheme']}, {result['replicas']} replicas, "
                      f"{result['production_frames']} frames, {result['temperature_K']:g} K)"]
            for each in tables(result, controls_of(run, molecule)):
                lines += [*aligned(each), ""]
            lines.pop()
            lines += [f"warning: {w}" for w in result["warnings"]]
            lines += [f"verdict: {sentence_of(v, result['role'])}" for v in result["verdicts"]]
    return "\n".join(lines)


def aligned(table: tuple[list[str], list[list[str]]]) -> list[str]:
    """Lines of equal columns, the header ruled off."""
    header, rows = table
    widths = [max(len(row[c]) for row in (header, *rows)) for c in range(len(header))]
    ruled = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in (header, *rows)]
    return [ruled[0], "-" * len(ruled[0]), *ruled[1:]]
