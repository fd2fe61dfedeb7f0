"""Infrared spectra of methanol and ethanol: `impulse` with a true call every 2 fs beside plain MD at 0.5 fs.

Both are NVE stretches of the same length, and both begin alike: with frames of an exact run, which has learned the
network, and with the velocities that one seed draws.  So they differ by the dynamics alone, not by the energy that a
stretch happens to have, and start from the ensemble itself, whatever it takes to get there.  A peak agrees where it
lies within 10 cm-1 of plain MD's, or within the error of the two.

    python benchmarks/spectra.py                 # about half an hour
    python benchmarks/spectra.py --molecules methanol --stretches 4 --work outputs/spectra_try
"""

from __future__ import annotations

import argparse
from pathlib import Path

from kstep.analysis.measure.infrared import Spectrum
from kstep.analysis.show.spectrum import as_text, write
from kstep.files import write_json_compact
from kstep.front import load
from kstep.result import Result
from kstep.units import FS_PER_PS
from running import RESULTS, ROOT, provenance, sh

SMILES = {"methanol": "CO", "ethanol": "CCO"}
DT_FS, K_STEPS = 0.5, 4
STRETCH_PS = 4.0  # without a redraw
AGREES_CM = 10.0


def runs(name: str, work: Path, stretches: int, seed: int = 0) -> tuple[Path, Path]:
    """Files of plain MD and of impulse, each of so many stretches, made where they are not there."""
    exact, plain, impulse = (work / f"{name}_{what}.npz" for what in ("exact", "plain", "impulse"))
    of_molecule = ("-m", "kstep", "sample", SMILES[name], "--name", name, "--config", "qm", "--seed", seed, "--out")
    sh(exact, *of_molecule, exact, "--learn")
    together = ("--initial-md", exact, "--thermostat", "none", "--dt-fs", DT_FS, "--burn-in-steps", 0, "--replicas",
                stretches)
    steps = round(STRETCH_PS * FS_PER_PS / DT_FS)
    sh(plain, *of_molecule, plain, *together, "--scheme", "plain", "--steps", steps, "--set",
       f"save_interval_steps={K_STEPS}")
    sh(impulse, *of_molecule, impulse, *together, "--scheme", "impulse", "--k-steps", K_STEPS, "--steps",
       steps // K_STEPS, "--checkpoint", f"{exact}.learn/network.pt")
    return plain, impulse


def compared(spectrum: Spectrum, run: Result, plain: Result) -> dict:
    """What is kept of a run's spectrum beside plain MD's, and how many of its peaks agree."""
    peaks = [{**vars(peak), "agrees": agrees(peak)} for peak in spectrum.peaks]
    base = spectrum.baseline
    shared = {peak["reference_cm"] for peak in peaks}
    return {"peaks": peaks, "plain_peaks": [vars(peak) for peak in base.peaks],
            "agree": sum(peak["agrees"] for peak in peaks), "of": len(peaks),
            "not_found_by_plain_md": sum(peak["reference_cm"] is None for peak in peaks),
            "found_by_plain_md_alone": [peak.position_cm for peak in base.peaks if peak.position_cm not in shared],
            "method": spectrum.method, "resolution_cm": spectrum.resolution_cm, "windows": spectrum.windows,
            "plain_windows": base.windows, "temperature_K": spectrum.temperature_K,
            "plain_temperature_K": base.temperature_K, "unit": spectrum.unit, "true_calls": run.true_calls,
            "plain_true_calls": plain.true_calls, "true_calls_training": run.metadata["true_calls_training"],
            "status": run.metadata["status"]}


def agrees(peak) -> bool:
    """Whether plain MD has it too, within 10 cm-1 or the error of their difference."""
    return peak.shift_cm is not None and abs(peak.shift_cm) <= max(AGREES_CM, peak.shift_error_cm)


def main() -> None:
    """Write benchmarks/results/spectra.json, and curves and pictures beside the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", nargs="+", choices=SMILES, default=list(SMILES))
    parser.add_argument("--stretches", type=int, default=40, help=f"of {STRETCH_PS:g} ps each, by either run")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs/spectra", help="folder of the runs")
    parser.add_argument("--result", type=Path, default=RESULTS / "spectra.json")
    args = parser.parse_args()
    found = {}
    for name in args.molecules:
        plain, run = map(load, runs(name, args.work, args.stretches))
        spectrum = run.spectrum(plain)
        print(as_text(spectrum), flush=True)
        for ending in (".json", ".csv", ".png"):
            write(spectrum, args.work / f"{name}{ending}")
        found[name] = compared(spectrum, run, plain)
    write_json_compact(args.result, {"dt_fs": DT_FS, "k_steps": K_STEPS, "ps": args.stretches * STRETCH_PS,
                                     "molecules": found, **provenance()})
    print({name: f"{m['agree']} of {m['of']} peaks agree, {len(m['found_by_plain_md_alone'])} of plain MD's are missed"
           for name, m in found.items()}, "->", args.result)


if __name__ == "__main__":
    main()
