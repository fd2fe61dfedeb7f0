"""Infrared spectra of methanol and ethanol: `impulse` with a true call every 2 fs beside plain MD at 0.5 fs.

Both are NVE stretches of the same total length, plain MD's from its own equilibration, impulse's from plain MD's frames
with velocities drawn anew.  A peak agrees where it lies within 10 cm-1 of plain MD's, or within the error of the two.

    python benchmarks/spectra.py                 # about an hour on two cores
    python benchmarks/spectra.py --molecules methanol --ps 4 --replicas 4 --work outputs/spectra_try
"""

from __future__ import annotations

import argparse
from pathlib import Path

from kstep.analysis.measure.infrared import Spectrum
from kstep.analysis.show.spectrum import as_text, write
from kstep.files import write_json_compact
from kstep.front import load
from kstep.result import Result
from running import RESULTS, ROOT, provenance, sh

SMILES = {"methanol": "CO", "ethanol": "CCO"}
DT_FS, K_STEPS = 0.5, 4
STRETCH_PS = 4.0  # without a redraw
AGREES_CM = 10.0


def runs(name: str, work: Path, *, total_ps: float, replicas: int, seed: int = 0) -> tuple[Path, Path]:
    """Files of plain MD and of impulse, each of `total_ps` in NVE, made where they are not there."""
    plain, network = work / "plain" / name / "trajectory.npz", work / f"{name}.learn" / "network.pt"
    impulse = work / f"{name}_impulse.npz"
    sh(plain, "-m", "kstep", "baseline", SMILES[name], "--name", name, "--config", "qm", "--out", work / "plain",
       "--replicas", replicas, "--seed", seed, *settings(dt_fs=DT_FS, length_ps=total_ps / replicas,
                                                         redraw_interval_ps=STRETCH_PS, equilibration_ps=2,
                                                         hot_length_ps=0))
    sh(network, "-m", "kstep", "learn", SMILES[name], "--name", name, "--out", work / name, "--seed", seed)
    stretches = max(1, round(total_ps / STRETCH_PS))
    steps = round(total_ps / stretches * 1000 / DT_FS / K_STEPS)
    sh(impulse, "-m", "kstep", "sample", SMILES[name], "--name", name, "--config", "qm", "--checkpoint", network,
       "--scheme", "impulse", "--dt-fs", DT_FS, "--k-steps", K_STEPS, "--thermostat", "none", "--initial-md", plain,
       "--burn-in-steps", 0, "--steps", steps, "--replicas", stretches, "--seed", seed, "--out", impulse)
    return plain, impulse


def settings(**keys) -> list[str]:
    """--set of each."""
    return [word for key, value in keys.items() for word in ("--set", f"{key}={value:g}")]


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
    parser.add_argument("--ps", type=float, default=160.0, help="of each run, all replicas together")
    parser.add_argument("--replicas", type=int, default=8, help="of plain MD; of impulse, one for each stretch")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs/spectra", help="folder of the runs")
    parser.add_argument("--result", type=Path, default=RESULTS / "spectra.json")
    args = parser.parse_args()
    found = {}
    for name in args.molecules:
        plain, run = map(load, runs(name, args.work, total_ps=args.ps, replicas=args.replicas))
        spectrum = run.spectrum(plain)
        print(as_text(spectrum), flush=True)
        for ending in (".json", ".csv", ".png"):
            write(spectrum, args.work / f"{name}{ending}")
        found[name] = compared(spectrum, run, plain)
    write_json_compact(args.result, {"dt_fs": DT_FS, "k_steps": K_STEPS, "ps": args.ps, "molecules": found,
                                     **provenance()})
    print({name: f"{m['agree']} of {m['of']} peaks agree, {len(m['found_by_plain_md_alone'])} of plain MD's are missed"
           for name, m in found.items()}, "->", args.result)


if __name__ == "__main__":
    main()
