"""Frames of a trajectory for other programs: as ASE Atoms, as an MDTraj trajectory, and as the files that these write.

A format is a line in FORMATS: its name is the file's extension, its writer gets a Trajectory, frame numbers and a path.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kstep.errors import UserError, did_you_mean
from kstep.files import replacing
from kstep.schemas import Trajectory
from kstep.units import ANGSTROM_PER_NM, FORCE_PER_EV_ANGSTROM, KJ_PER_EV


def to_atoms(trajectory: Trajectory, frames: np.ndarray) -> list:
    """ASE Atoms of frames (F,): A, with the true energy (eV) and, where they were stored, forces (eV/A)."""
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    out = []
    for frame in frames:
        atoms = Atoms(numbers=trajectory.atom_types, positions=trajectory.pos[frame] * ANGSTROM_PER_NM,
                      masses=trajectory.masses)
        known = {"energy": trajectory.Epot[frame] / KJ_PER_EV}
        if len(trajectory.forces):
            known["forces"] = trajectory.forces[frame] / FORCE_PER_EV_ANGSTROM
        atoms.calc = SinglePointCalculator(atoms, **known)
        atoms.info.update(time_ps=float(trajectory.time_ps[frame]), replica=int(trajectory.replica[frame]))
        out.append(atoms)
    return out


def to_mdtraj(trajectory: Trajectory, frames: np.ndarray):
    """An mdtraj.Trajectory of frames (F,), nm and ps, with the molecule as its one residue."""
    import mdtraj

    topology = mdtraj.Topology()
    residue = topology.add_residue("MOL", topology.add_chain())
    for number in trajectory.atom_types:
        element = mdtraj.element.Element.getByAtomicNumber(int(number))
        topology.add_atom(f"{element.symbol}{topology.n_atoms}", element, residue)
    atoms = list(topology.atoms)
    for i, j in trajectory.bonds:
        topology.add_bond(atoms[i], atoms[j])
    return mdtraj.Trajectory(trajectory.pos[frames], topology, time=trajectory.time_ps[frames])


def _by_ase(name: str):
    def write(trajectory, frames, path):
        from ase.io import write as ase_write

        ase_write(path, to_atoms(trajectory, frames), format=name)

    return write


def _by_mdtraj(method: str):
    def write(trajectory, frames, path):
        getattr(to_mdtraj(trajectory, frames), method)(str(path))

    return write


FORMATS = {"extxyz": _by_ase("extxyz"), "xyz": _by_ase("xyz"), "pdb": _by_mdtraj("save_pdb"),
           "dcd": _by_mdtraj("save_dcd"), "xtc": _by_mdtraj("save_xtc")}


def write_frames(trajectory: Trajectory, frames: np.ndarray, path: str | Path, name: str | None = None) -> Path:
    """Write frames (F,) to `path` in the format of that name (None: of its extension); whole or not at all."""
    path = Path(path)
    name = name or path.suffix.removeprefix(".")
    if name not in FORMATS:
        raise UserError(f"{path}: no format '{name}'{did_you_mean(name, FORMATS)}")
    with replacing(path) as temporary:
        named = temporary.with_suffix(f".{name}")  # writers look at the extension
        try:
            FORMATS[name](trajectory, frames, named)
            named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)
    return path
