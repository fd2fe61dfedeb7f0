"""A spectrum for people and programs: a table of its peaks, and files of json, csv or png."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kstep.analysis.measure.infrared import LOWEST_CM, Peak, Spectrum
from kstep.errors import UserError
from kstep.files import replacing, write_json_atomic, write_text_atomic
from kstep.outputs import MARK, begins_with, json_with, marked

FEWEST_REPLICAS = 3  # below, errors come from parts of one chain
FAR_FROM_TEMPERATURE = 0.1  # kinetic temperatures this far from the one asked for are said


def as_text(spectrum: Spectrum) -> str:
    """What it is of, then a line for each peak, beside plain MD's where there is one."""
    s, plain = spectrum, spectrum.baseline
    kind = "infrared spectrum" if s.absorption is not None else (
        "power spectrum of the velocities (the run has no dipoles)")
    lines = [f"{s.molecule}, {s.method}, {s.scheme}: {kind} at {s.temperature_K:.0f} K, {s.windows} windows of "
             f"{s.window_ps:.3g} ps from {s.replicas} replicas, resolution {s.resolution_cm:.0f} cm-1"]
    if abs(s.temperature_K / s.asked_K - 1.0) > FAR_FROM_TEMPERATURE:
        lines.append(f"its stretches have the kinetic energy of {s.temperature_K:.0f} K, not of {s.asked_K:.0f} K: "
                     "bands lie where they do at that temperature; start from frames in equilibrium (--initial-md)")
    if s.replicas < FEWEST_REPLICAS:
        lines.append(f"errors are over stretches of {s.replicas} {'replica' if s.replicas == 1 else 'replicas'}, which "
                     f"share conformers, and too small: run {FEWEST_REPLICAS} replicas or more")
    header = ["peak / cm-1", f"area / {'km/mol' if s.absorption is not None else 'share'}"]
    rows = [header + (["plain MD / cm-1", "shift / cm-1"] if plain is not None else [])]
    rows += [_cells(peak, plain is not None, s.absorption is not None) for peak in s.peaks]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]
    if not s.peaks:
        lines.append(f"no peak above {LOWEST_CM:.0f} cm-1 rises over the noise; run longer, or more replicas")
    return "\n".join(lines)


def _cells(peak: Peak, beside: bool, in_km_per_mol: bool) -> list[str]:
    cells = [_with_error(peak.position_cm, peak.position_error_cm, 0),
             _with_error(peak.intensity, peak.intensity_error, 1 if in_km_per_mol else 4)]
    if beside and peak.reference_cm is None:
        cells += ["none near", ""]
    elif beside:
        cells += [f"{peak.reference_cm:.0f}", _with_error(peak.shift_cm, peak.shift_error_cm, 0, sign="+")]
    return cells


def _with_error(value: float | None, error: float | None, digits: int, sign: str = "") -> str:
    known = error is not None and np.isfinite(error)
    return f"{value:{sign}.{digits}f}" + (f" +- {error:.{digits}f}" if known else "")


def write(spectrum: Spectrum, path: str | Path) -> Path:
    """Write it as the ending says: .json everything, .csv the curves, .png a picture; UserError for another ending."""
    path = Path(path)
    WRITERS[check_ending(path)](spectrum, path)
    return path


def check_ending(path: str | Path) -> str:
    """The ending of a file that can be written; else UserError."""
    ending = Path(path).suffix.lower()
    if ending not in WRITERS:
        raise UserError(f"{path}: a spectrum is written as {', '.join(WRITERS)}, not as '{ending}'")
    return ending


def _write_json(spectrum: Spectrum, path: Path) -> None:
    write_json_atomic(path, spectrum.as_dict())


def _write_csv(spectrum: Spectrum, path: Path) -> None:
    columns = {"wavenumber_cm": spectrum.wavenumber_cm}
    for name, s in (("", spectrum), ("plain_", spectrum.baseline)):
        if s is not None:
            curves = {"absorption_km_per_mol_cm": s.absorption, "absorption_error": s.absorption_error,
                      "power_cm": s.power, "power_error": s.power_error}
            columns |= {name + key: curve for key, curve in curves.items() if curve is not None}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows([f"{value:.6g}" for value in row] for row in zip(*columns.values()))
    write_text_atomic(path, text.getvalue())


def _write_png(spectrum: Spectrum, path: Path) -> None:
    from kstep.analysis.show.plots import REFERENCE, RUN, STYLE, plt

    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
        shown = spectrum.wavenumber_cm >= LOWEST_CM
        x, highest = spectrum.wavenumber_cm[shown], 0.0
        for s, colour, name in ((spectrum.baseline, REFERENCE, "plain MD"), (spectrum, RUN, spectrum.scheme)):
            if s is not None:
                curve, error = (values[shown] for values in s.curve)
                axis.fill_between(x, curve - error, curve + error, color=colour, alpha=0.3, lw=0)
                axis.plot(x, curve, color=colour, lw=1.0, label=name)
                highest = max(highest, float(np.max(curve + np.nan_to_num(error))))
        for peak in spectrum.peaks:
            axis.annotate(f"{peak.position_cm:.0f}", (peak.position_cm, 1.0), xycoords=("data", "axes fraction"),
                          rotation=90, ha="center", va="top", fontsize=7)
        axis.set(xlabel="wavenumber (cm$^{-1}$)", xlim=(0, 4200), ylim=(0, 1.2 * highest or 1.0),
                 ylabel="absorption (km/mol per cm$^{-1}$)" if spectrum.absorption is not None else
                 "power (share per cm$^{-1}$)")
        axis.legend(loc="center right")
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": MARK})
        plt.close(figure)


WRITERS: dict[str, Callable[[Spectrum, Path], None]] = {".json": _write_json, ".csv": _write_csv, ".png": _write_png}
OURS = {".json": json_with("wavenumber_cm", "peaks"), ".csv": begins_with("wavenumber_cm,"), ".png": marked}
