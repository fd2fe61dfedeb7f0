"""The conformers of a run for other programs: one structure each, with its population and free energy beside it.

    export_conformers(trajectory, populations, "run_conformers.sdf")

An SDF holds the numbers as properties, (ext)xyz in the comment line of each structure, a PDB as REMARK 250 at its head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kstep.analysis.measure.populations import Conformer, Populations
from kstep.analysis.show.formats import FORMATS, format_of, written
from kstep.analysis.show.formats.with_ase import to_atoms
from kstep.analysis.show.formats.with_rdkit import name_and_properties, to_rdkit, with_positions, write_molecules
from kstep.schemas import PER_FRAME, Trajectory
from kstep.units import KJ_PER_EV


def structures(trajectory: Trajectory, populations: Populations) -> Trajectory:
    """One frame for each conformer, in their order: its representative, relaxed where that was asked for.

    Their weights are left out: a conformer's is its population.
    """
    rows = np.array([conformer.frame for conformer in populations.conformers])
    arrays = {key: getattr(trajectory, key)[rows] for key in PER_FRAME if len(getattr(trajectory, key))}
    arrays |= {"weight": trajectory.weight[:0], "bias": trajectory.bias[:0], "step": np.arange(len(rows)),
               "replica": np.zeros(len(rows), dtype=int)}
    for i, relaxed in enumerate(c.relaxed for c in populations.conformers):
        if relaxed:
            arrays["pos"][i], arrays["Epot"][i] = relaxed["positions_nm"], relaxed["energy_kJ"]
            arrays["vel"][i] = 0.0
    if any(c.relaxed for c in populations.conformers):  # forces of the frames, which are not those of the minima
        arrays["forces"] = trajectory.forces[:0]
    return replace(trajectory, **arrays)


def numbers_of(conformer: Conformer, populations: Populations, energy_kJ: float) -> dict[str, Any]:
    """What is written beside a conformer; free energies and energies in kJ/mol."""
    return {"conformer": conformer.label, "population": conformer.population,
            "population_error": conformer.population_error, "free_energy_kJ_per_mol": conformer.free_energy_kJ,
            "free_energy_error_kJ_per_mol": conformer.free_energy_error_kJ,
            "effective_samples": conformer.effective_samples, "images": conformer.images,
            "temperature_K": populations.temperature_K, "method": populations.method or "",
            "energy_kJ_per_mol": energy_kJ, "relaxed": int(bool(conformer.relaxed)),
            "converged": int(populations.converged)}


def _words(n: dict[str, Any]) -> list[str]:
    return [f"conformer {n['conformer']}, population {n['population']:.4f} +- {n['population_error']:.4f}"
            + ("" if n["converged"] else ", not converged"),
            f"free energy {n['free_energy_kJ_per_mol']:.3f} +- {n['free_energy_error_kJ_per_mol']:.3f} kJ/mol at "
            f"{n['temperature_K']:g} K"]


def _write_sdf(frames: Trajectory, numbers: list[dict], path: Path) -> None:
    molecule, name = to_rdkit(frames), str(frames.metadata.get("molecule", ""))
    write_molecules((name_and_properties(with_positions(molecule, pos), f"{name} {n['conformer']}", n)
                     for pos, n in zip(frames.pos, numbers)), path)


def _write_xyz(frames: Trajectory, numbers: list[dict], path: Path) -> None:
    from ase.io.xyz import write_xyz

    with open(path, "w") as handle:
        for atoms, n in zip(to_atoms(frames), numbers):
            write_xyz(handle, [atoms], comment=", ".join(_words(n)))


def _write_extxyz(frames: Trajectory, numbers: list[dict], path: Path) -> None:
    from ase.io import write

    images = to_atoms(frames)
    for atoms, n in zip(images, numbers):
        atoms.info = n | {"energy_eV": n["energy_kJ_per_mol"] / KJ_PER_EV}
    write(str(path), images, format="extxyz")


def _write_pdb(frames: Trajectory, numbers: list[dict], path: Path) -> None:
    FORMATS["pdb"](frames, path)  # its models count from 0
    remarks = [f"REMARK 250 MODEL {i}: {words}" for i, n in enumerate(numbers) for words in _words(n)]
    path.write_text("\n".join([*remarks, path.read_text()]))


CONFORMER_FORMATS: dict[str, Callable[[Trajectory, list[dict], Path], None]] = {
    "sdf": _write_sdf, "xyz": _write_xyz, "extxyz": _write_extxyz, "pdb": _write_pdb}


def export_conformers(trajectory: Trajectory, populations: Populations, path: str | Path,
                      format: str | None = None, *, overwrite: bool = False) -> Path:
    """Write the conformers of a trajectory, the most populated first; format: of CONFORMER_FORMATS, None: the ending's.

    trajectory: all frames that the populations were counted in.  Raises UserError for a format that has no place for
    the numbers, and where something lies at `path` (see kstep.outputs).
    """
    path = Path(path)
    write = CONFORMER_FORMATS[format_of(path, format, CONFORMER_FORMATS)]
    frames = structures(trajectory, populations)
    numbers = [numbers_of(c, populations, float(energy)) for c, energy in zip(populations.conformers, frames.Epot)]
    return written(path, lambda temporary: write(frames, numbers, temporary), overwrite=overwrite)
