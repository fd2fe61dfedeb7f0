"""Which rotamers a chain has visited, of those that conformer generation knows of.

A high acceptance says nothing about a conformer that was never visited; this does.
"""

from __future__ import annotations

import numpy as np

from kstep.dihedrals import dihedrals_deg, wrap_deg
from kstep.molecules.molecule import Molecule

DISTINCT_DEG = 45.0  # two conformers' angles further apart than this are two rotamers
VISITED_DEG = 30.0  # a frame this near has visited a rotamer


class TorsionWatch:
    """The rotamers of a molecule's conformers, ticked off as positions pass by.

    Every rotatable torsion (methyls apart) has as rotamers the distinct angles of the conformers.
    """

    def __init__(self, molecule: Molecule, seen: list | None = None):
        """seen: `self.seen` of an earlier part of the same run."""
        self.torsions = molecule.rotatable_torsions()
        angles = dihedrals_deg(molecule.conformers, self.torsions)
        self.rotamers = [_distinct(column) for column in angles.T]
        self.seen: list[list[bool]] = seen or [[False] * len(r) for r in self.rotamers]

    def see(self, positions: np.ndarray) -> None:
        """Tick off what positions (R,N,3) visit."""
        for d, angles in enumerate(dihedrals_deg(positions, self.torsions).T):
            near = np.abs(wrap_deg(angles[:, None] - self.rotamers[d])) <= VISITED_DEG
            self.seen[d] = [bool(a or b) for a, b in zip(self.seen[d], near.any(axis=0))]

    def unvisited(self) -> list[dict]:
        """{"atoms": [i, j, k, l], "angle_deg": ...} of every rotamer that no position came near."""
        return [{"atoms": [int(a) for a in self.torsions[d]], "angle_deg": round(float(angle), 1)}
                for d, rotamers in enumerate(self.rotamers) for angle, seen in zip(rotamers, self.seen[d]) if not seen]

    def warning(self) -> str | None:
        """What was never visited, in words; None if everything was."""
        unvisited = self.unvisited()
        if not unvisited:
            return None
        places = ", ".join(f"{'-'.join(map(str, u['atoms']))} near {u['angle_deg']:.0f} deg" for u in unvisited)
        return (f"{len(unvisited)} rotamers of the conformers were never visited: {places}; the run may be too short, "
                "or they are none under the true physics")


def _distinct(angles: np.ndarray) -> np.ndarray:
    """One angle of each cluster, in the order given (conformers come best first)."""
    kept: list[float] = []
    for angle in angles:
        if all(abs(wrap_deg(angle - other)) > DISTINCT_DEG for other in kept):
            kept.append(float(angle))
    return np.array(kept)
