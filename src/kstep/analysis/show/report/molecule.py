"""The molecule as a report shows it: a drawing of its bonds, and frames for the 3D view."""

from __future__ import annotations

from typing import Any

import numpy as np

from kstep.analysis.measure.geometry import symbol
from kstep.analysis.show.formats import to_rdkit
from kstep.errors import UserError
from kstep.schemas import Trajectory
from kstep.units import ANGSTROM_PER_NM

MOST_DRAWN = 120  # atoms; beyond, a drawing of bonds says nothing
MILLI = 1000  # positions travel as whole thousandths of an Angstrom


def drawing(trajectory: Trajectory, numbered: set[int]) -> tuple[str | None, str | None]:
    """An SVG of the bonds, and why there is none, one of them None; numbered: atoms that carry their number.

    Hydrogens on carbon are left out unless numbered.
    """
    from rdkit import Chem
    from rdkit.Chem import rdDepictor
    from rdkit.Chem.Draw import rdMolDraw2D

    if len(trajectory.atom_types) > MOST_DRAWN:
        return None, f"{len(trajectory.atom_types)} atoms are too many to draw"
    try:
        molecule = Chem.RWMol(to_rdkit(trajectory))
    except UserError as error:
        return None, f"no drawing: {error}"
    for atom in molecule.GetAtoms():
        if atom.GetIdx() in numbered:
            atom.SetProp("atomNote", str(atom.GetIdx()))
    for atom in sorted(molecule.GetAtoms(), key=lambda a: -a.GetIdx()):
        if atom.GetAtomicNum() == 1 and atom.GetIsotope() == 0 and atom.GetDegree() == 1 \
                and not atom.HasProp("atomNote"):
            host = atom.GetNeighbors()[0]
            if host.GetAtomicNum() > 1:
                host.SetNumExplicitHs(host.GetNumExplicitHs() + 1)
                molecule.RemoveAtom(atom.GetIdx())
    Chem.SanitizeMol(molecule)
    rdDepictor.Compute2DCoords(molecule)
    canvas = rdMolDraw2D.MolDraw2DSVG(360, 240)
    canvas.drawOptions().clearBackground = False
    canvas.drawOptions().addStereoAnnotation = True
    canvas.drawOptions().annotationFontScale = 0.6
    rdMolDraw2D.PrepareAndDrawMolecule(canvas, molecule)
    canvas.FinishDrawing()
    text = canvas.GetDrawingText()
    return text[text.index("<svg"):], None


def bonds_of(trajectory: Trajectory) -> list[list[int]]:
    """[i, j, order] of every bond, aromatic ones written as double and single; order 1 where no orders are known."""
    from rdkit import Chem

    try:
        molecule = Chem.Mol(to_rdkit(trajectory))
        Chem.Kekulize(molecule, clearAromaticFlags=True)
    except UserError:  # the drawing says why
        return [[int(i), int(j), 1] for i, j in trajectory.bonds]
    return [[b.GetBeginAtomIdx(), b.GetEndAtomIdx(), max(1, int(b.GetBondTypeAsDouble()))] for b in molecule.GetBonds()]


def atoms_of(trajectory: Trajectory) -> dict[str, Any]:
    """Elements and bonds of the 3D view."""
    return {"elements": [symbol(z) if symbol(z)[0] != "Z" else "X" for z in trajectory.atom_types],
            "bonds": bonds_of(trajectory)}


def superposed(positions: np.ndarray, onto: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """Positions (F,N,3) turned and moved so that atoms (n,) lie best on those of `onto` (N,3), which are centred."""
    from scipy.spatial.transform import Rotation

    moved = positions - positions[:, atoms].mean(axis=1, keepdims=True)
    if len(atoms) < 2:
        return moved
    return np.array([Rotation.align_vectors(onto[atoms], x[atoms])[0].apply(x) for x in moved])


def view_of(label: str, positions: np.ndarray, words: list[str]) -> dict[str, Any]:
    """Frames (F,N,3) nm of the 3D view, and what is written below each."""
    whole = np.round(MILLI * ANGSTROM_PER_NM * positions).astype(int)
    return {"label": label, "frames": whole.reshape(len(whole), -1).tolist(), "words": words}
