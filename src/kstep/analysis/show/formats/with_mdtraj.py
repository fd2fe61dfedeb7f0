"""Trajectories as MDTraj's, and the formats that MDTraj writes."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from kstep.analysis.show.formats.with_rdkit import to_rdkit
from kstep.errors import UserError
from kstep.schemas import Trajectory
from kstep.units import ANGSTROM_PER_NM

WATER = [1, 1, 8]


def to_mdtraj(trajectory: Trajectory):
    """An mdtraj.Trajectory of all frames, replica after replica: nm, ps, bonds; a box makes it periodic.

    Each molecule, if its atoms stand together, is a residue: HOH where it is water, MOL otherwise.  UserError where
    frames have weights, for which MDTraj has no place.
    """
    import mdtraj

    trajectory.check_alike("mdtraj")
    order = np.lexsort((trajectory.step, trajectory.replica))
    found = mdtraj.Trajectory(trajectory.pos[order], _topology(trajectory), time=trajectory.time_ps[order])
    if len(trajectory.box):
        found.unitcell_vectors = trajectory.box[order]
    return found


def _formal_charges(trajectory: Trajectory) -> list[int | None]:
    """Formal charges (N,) by the run's SMILES; None for each where it has none, or one of other bonds."""
    unknown: list[int | None] = [None] * len(trajectory.atom_types)
    if not trajectory.metadata.get("smiles"):
        return unknown
    try:
        return [atom.GetFormalCharge() for atom in to_rdkit(trajectory).GetAtoms()]
    except UserError:  # a file of coordinates may leave them out
        return unknown


def _topology(trajectory: Trajectory):
    import mdtraj

    topology, numbers = mdtraj.Topology(), trajectory.atom_types
    chain, atoms = topology.add_chain(), {}
    n, (first, second) = len(numbers), trajectory.bonds.T
    of = connected_components(coo_array((np.ones(len(first)), (first, second)), shape=(n, n)), directed=False)[1]
    if (np.diff(of) < 0).any():
        of = np.zeros(n, dtype=int)
    residues = [topology.add_residue("HOH" if sorted(numbers[of == c]) == WATER else "MOL", chain, resSeq=c + 1)
                for c in range(of.max() + 1)]
    totals, seen, charges = Counter(zip(of, numbers)), Counter(), _formal_charges(trajectory)
    for i, (number, c) in enumerate(zip(numbers, of)):
        element = mdtraj.element.Element.getByAtomicNumber(int(number))
        seen[c, number] += 1
        name = f"{element.symbol}{seen[c, number]}" if totals[c, number] > 1 else element.symbol
        atoms[i] = topology.add_atom(name[:4], element, residues[c],  # columns of a PDB
                                     formal_charge=charges[i])
    for i, j in trajectory.bonds:
        topology.add_bond(atoms[int(i)], atoms[int(j)])
    return topology


def mdtraj_writer(method: str) -> Callable[[Trajectory, Path], None]:
    """What writes by a method of mdtraj.Trajectory, such as save_pdb."""
    def writer(trajectory: Trajectory, path: Path) -> None:
        with warnings.catch_warnings(action="ignore"):  # about the ending of a temporary name
            getattr(to_mdtraj(trajectory), method)(str(path))

    return writer


def write_hdf5(trajectory: Trajectory, path: Path) -> None:
    """MDTraj's own format; ImportError, which names the package, where PyTables is missing."""
    import tables  # noqa: F401  # MDTraj prints a page about it instead, and raises an ImportError of no name

    mdtraj_writer("save_hdf5")(trajectory, path)


def write_pdb(trajectory: Trajectory, path: Path) -> None:
    """A PDB of one model for each frame, with its box in it: MDAnalysis looks for a box in no other place.

    Its last line is no END, which ASE takes for one frame more, of no atoms, and gives it where no frame is named.
    """
    found = to_mdtraj(trajectory)
    found.save_pdb(str(path))
    boxes = iter(()) if found.unitcell_lengths is None else (
        f"CRYST1{a:9.3f}{b:9.3f}{c:9.3f}{alpha:7.2f}{beta:7.2f}{gamma:7.2f} P 1           1"
        for (a, b, c), (alpha, beta, gamma) in zip(ANGSTROM_PER_NM * found.unitcell_lengths, found.unitcell_angles))
    lines: list[str] = []
    for line in path.read_text().splitlines():
        lines += [line] if line.strip() != "END" else []
        if line.startswith("MODEL"):
            lines += itertools.islice(boxes, 1)
    path.write_text("\n".join([*lines, ""]))
