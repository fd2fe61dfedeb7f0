"""One table over the reports of many molecules: a row per run, controls below the hybrid they belong to."""

from __future__ import annotations

from kstep.analysis.judge.verdict import Role
from kstep.analysis.metrics import ANGLE_ERROR, BOND_ERROR
from kstep.analysis.metrics.cells import number
from kstep.analysis.show.text import aligned

HEADER = ["molecule", "run", "jump (fs)", "true calls", "fewer calls", "faster (wall)", "bond error (A)", "floor",
          "angle error (deg)", "floor", "drift (kJ/mol/ps)", "acceptance"]


def batch_table(reports: dict[str, dict]) -> str:
    """Lines of text from {name: metrics.json}.

    fewer calls: baseline timesteps covered per true call.  faster (wall): wall seconds per ps of the
    plain control at the baseline's timestep, over those of the run; both as measured on the machine
    that made them.  Floors are what two samples of plain MD of these sizes differ by.
    """
    rows = []
    for report in reports.values():
        for molecule, judged in report["molecules"].items():
            runs = judged["runs"]
            plain = runs.get("plain.npz", {}).get("cost", {}).get("wall_s_per_ps")
            for name in sorted(runs, key=lambda n: (runs[n]["role"] != Role.HYBRID, n)):
                rows.append(_row(molecule, name.removesuffix(".npz"), runs[name], plain))
    return "\n".join(aligned((HEADER, rows)))


def _row(molecule: str, name: str, run: dict, plain_wall_s_per_ps: float | None) -> list[str]:
    cost, drift = run["cost"], run["drift"]
    bond, bond_floor, _ = BOND_ERROR.cells(run)
    angle, angle_floor, _ = ANGLE_ERROR.cells(run)
    wall = cost["wall_s_per_ps"]
    return [molecule, name, number(run["jump_fs"]), str(cost["true_calls"]), number(cost["calls_saved_factor"], 2),
            number(plain_wall_s_per_ps / wall if plain_wall_s_per_ps and wall else None, 2),
            bond, bond_floor.split(" ")[0], angle, angle_floor.split(" ")[0],
            number(drift["drift_kJ_per_mol_ps"] if drift else None),
            number((run["proposals"] or {}).get("acceptance"))]
