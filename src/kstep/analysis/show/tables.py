"""The tables of a comparison: which runs are shown, beside what, and the lines that every metric gives them."""

from __future__ import annotations

from kstep.analysis.judge.verdict import Role, Verdict
from kstep.analysis.metrics import ANGLE_ERROR, BOND_ERROR, DRIFT, METRICS
from kstep.analysis.metrics.cells import NOT_DEFINED, Cell, number

Table = tuple[list[str], list[list[str]]]  # header and lines


def table(result: dict, controls: dict[str, dict]) -> Table:
    """One run: metric, value, noise floor, verdict, then one column per control."""
    return (["metric", "this run", "noise floor", "verdict", *controls],
            [line for metric in METRICS for line in metric.rows(result, controls)])


def tables(result: dict, controls: dict[str, dict]) -> list[Table]:
    """The table of a run, then those that metrics have of their own."""
    return [table(result, controls), *filter(None, (metric.table(result) for metric in METRICS))]


def summary_table(molecule: dict) -> Table:
    """One line per run of a molecule."""
    header = ["run", "scheme", "k", "true calls", BOND_ERROR.heading, ANGLE_ERROR.heading, "acceptance or drift",
              "energy / torsion eff. samples per 1000 calls"]
    lines = []
    for name, r in molecule["runs"].items():
        sampling = r["sampling"] or {}
        scheme = r["scheme"] + (f" ({Role.NO_NETWORK})" if r["role"] == Role.NO_NETWORK else "")
        lines.append([name, scheme, number(r["k_steps"]) if r["k_steps"] else "1", str(r["cost"]["true_calls"]),
                      _short(BOND_ERROR, r), _short(ANGLE_ERROR, r), _acceptance_or_drift(r),
                      f"{number(sampling.get('energy_per_1000_calls'))} / "
                      f"{number(sampling.get('slowest_torsion_per_1000_calls'))}"])
    return header, lines


def _short(metric, result: dict) -> str:
    value, floor, verdict = metric.cells(result)
    return Cell(f"{value}, floor {floor.split(' ')[0]}: {verdict}", verdict) if verdict else value


def _acceptance_or_drift(result: dict) -> str:
    if result["proposals"]:
        return f"accepts {number(result['proposals']['acceptance'])}"
    value, _, words = DRIFT.cells(result)
    if words:
        return Cell(f"{value} kJ/mol/ps, {words}", result["drift"]["verdict"])
    certificate = result["certificate"]
    return f"E_true - E_ML spread {number(certificate['spread_kJ_per_mol'])} kJ/mol" if certificate else NOT_DEFINED


def controls_of(name: str, molecule: dict) -> dict[str, dict]:
    """Results shown beside a run: its plain and no-network controls, and the baseline itself."""
    run = molecule["runs"][name]
    out = {label: molecule["runs"][c] for label, c in run.get("control_files", {}).items()}
    reference = molecule["reference"].get(f"{run['temperature_K']:g} K")
    if reference:
        out[Role.BASELINE] = reference
    return out


def shown_runs(molecule: dict) -> list[str]:
    """Hybrids; controls stand beside them, and alone only when there is no hybrid."""
    hybrids = [n for n, r in molecule["runs"].items() if r["role"] == Role.HYBRID]
    return hybrids or list(molecule["runs"])


def verdict_of(cell: str) -> Verdict | None:
    """The verdict that stands behind a cell; None for mere text."""
    return cell if isinstance(cell, Verdict) else getattr(cell, "verdict", None)
