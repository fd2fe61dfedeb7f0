"""Free energies as JSON, CSV, a picture, and a line."""

from __future__ import annotations

import csv
import io
import itertools
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from kstep.analysis.measure.free_energy import FreeEnergy
from kstep.analysis.show.plots import RUN, STYLE
from kstep.files import replacing, write_json_atomic, write_text_atomic
from kstep.outputs import MARK, json_with, marked, settle_result

FREE_ENERGY = "free energy (kJ/mol)"  # a column of tables


def file_name(found: FreeEnergy) -> str:
    """'dihedral_0-1-2-3', or both coordinates of a map."""
    return "_".join(c.name.replace(" ", "_") for c in found.coordinates)


def _is_table(path: Path) -> bool:
    with open(path, encoding="utf-8") as lines:
        return FREE_ENERGY in next(lines, "")


OURS = {"json": json_with("coordinates", "free_energy", "density"), "csv": _is_table, "png": marked}


def write(found: FreeEnergy, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write <name>.json, .csv and .png into the folder; their paths.

    UserError where something else than an earlier free energy lies there, which `overwrite` keeps under another name.
    """
    paths = [folder / f"{file_name(found)}.{ending}" for ending in OURS]
    for path, is_ours in zip(paths, OURS.values()):
        settle_result(path, is_ours, overwrite=overwrite)
    write_json_atomic(paths[0], found.as_dict())
    write_text_atomic(paths[1], as_csv(found))
    with plt.rc_context(STYLE), replacing(paths[2]) as temporary:
        figure = draw(found)
        figure.savefig(temporary, format="png", metadata={"Software": MARK})
        plt.close(figure)
    return paths


def as_csv(found: FreeEnergy) -> str:
    """A line for each bin: middle of each coordinate, F, error; empty where a bin has no frames, or no error."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*(f"{c.name} ({c.unit})" for c in found.coordinates), FREE_ENERGY, "error (kJ/mol)"])
    error = found.error if found.error is not None else np.full(found.density.shape, np.inf)
    for place, f, e in zip(itertools.product(*found.centres), found.free_energy.ravel(), error.ravel()):
        table.writerow([*(f"{q:.6g}" for q in place), *(f"{x:.6g}" if np.isfinite(x) else "" for x in (f, e))])
    return text.getvalue()


def draw(found: FreeEnergy):
    """F with a band of one error, or a map."""
    axes = [f"{c.kind} {label} ({c.unit})" for c, label in zip(found.coordinates, found.labels)]
    if len(axes) == 2:
        figure, axis = plt.subplots(figsize=(5, 4.2), layout="constrained")
        shown = axis.pcolormesh(*found.edges, np.ma.masked_invalid(found.free_energy).T, cmap="viridis")
        figure.colorbar(shown, label="free energy (kJ/mol)")
        axis.set(xlabel=axes[0], ylabel=axes[1])
        return figure
    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    f, error, (q,) = found.free_energy, found.error, found.centres
    known = np.where(np.isfinite(f), f, np.nan)
    axis.plot(q, known, color=RUN, lw=1.5)
    if error is not None:
        band = np.where(np.isfinite(error), error, np.nan)
        axis.fill_between(q, known - band, known + band, color=RUN, alpha=0.25, lw=0, label="one standard error")
        axis.legend(loc="upper right")
    axis.set(xlabel=axes[0], ylabel="free energy (kJ/mol)", ylim=(min(0.0, float(np.nanmin(known)) - 0.5), None))
    if found.coordinates[0].is_circular:
        axis.set(xlim=(-180, 180), xticks=range(-180, 181, 60))
    return figure


def in_words(found: FreeEnergy) -> str:
    """Wells and barriers of one coordinate in a line; of a map, how high it goes."""
    name = " x ".join(c.name for c in found.coordinates)
    if len(found.coordinates) > 1:
        f = found.free_energy
        return f"{name}: 0 to {f[np.isfinite(f)].max():.1f} kJ/mol, {np.isfinite(f).mean():.0%} of the map visited"
    unit = found.coordinates[0].unit
    wells, barriers = found.extrema()

    def listed(points) -> str:
        shown = [f"{p['at']:.3g} {unit} at {p['free_energy']:.1f}"
                 + (f" +- {p['error']:.1f}" if p["error"] is not None else "") for p in points]
        return ", ".join(shown) or "none"

    return f"{name}: wells {listed(wells)} kJ/mol; barriers {listed(barriers)}"
