"""Trajectories as ASE's Atoms, and the formats that ASE writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from kstep.schemas import Trajectory
from kstep.scheme_traits import traits_of
from kstep.units import ANGSTROM_PER_NM, FORCE_PER_EV_ANGSTROM, KJ_PER_EV, PS_PER_ASE_TIME


def written_weights(trajectory: Trajectory) -> np.ndarray:
    """Weights (T,) that a file gives its frames, which free them of restraints; empty where all count alike."""
    t = trajectory
    return t.weights_of(np.arange(len(t.pos))) if t.is_restrained else t.weight


def to_atoms(trajectory: Trajectory) -> list:
    """One ase.Atoms per frame, replica after replica: A, eV, eV/A, ASE's unit of time; a calculator holds the results.

    info: replica, step, time_ps, and weight where frames have one.  Velocities are there where the scheme's dynamics
    has any; a box makes it periodic.
    """
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    t, moves, images = trajectory, traits_of(trajectory.metadata).keeps_velocities, []
    weights = written_weights(t)
    for frame in np.lexsort((t.step, t.replica)):
        atoms = Atoms(numbers=t.atom_types, positions=t.pos[frame] * ANGSTROM_PER_NM, masses=t.masses)
        if len(t.box):
            atoms.set_cell(t.box[frame] * ANGSTROM_PER_NM)
            atoms.set_pbc(True)
        if moves:
            atoms.set_velocities(t.vel[frame] * ANGSTROM_PER_NM * PS_PER_ASE_TIME)
        results = {"forces": t.forces[frame] / FORCE_PER_EV_ANGSTROM} if len(t.forces) else {}
        atoms.calc = SinglePointCalculator(atoms, energy=float(t.Epot[frame]) / KJ_PER_EV, **results)
        atoms.info |= {"replica": int(t.replica[frame]), "step": int(t.step[frame]), "time_ps": float(t.time_ps[frame])}
        if t.is_weighted:
            atoms.info["weight"] = float(weights[frame])
        images.append(atoms)
    return images


def ase_writer(name: str) -> Callable[[Trajectory, Path], None]:
    """What writes the format that ASE calls `name`."""
    def writer(trajectory: Trajectory, path: Path) -> None:
        from ase.io import write

        write(str(path), to_atoms(trajectory), format=name)

    return writer
