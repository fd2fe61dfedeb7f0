"""What makes a geometry no start: another species, an impossible angle, atoms that overlap, an energy out of reach.

A conformer generator turns ring atoms inside out (an sp3 carbon with an angle of 173 degrees, a local minimum hundreds
of kJ/mol up) and piles up the ligands of hypervalent centres.  R is the sum of the covalent radii of two atoms; limits
are those that strained molecules keep well within: tetrahedrane 145 degrees, cyclopropene 150, the bridgeheads of
bicyclo[1.1.1]pentane 1.23 R apart, geminal fluorines 1.9 R.

    species     its bonds, protons and named stereochemistry (molecules.species)
    angle       at B, C, N or Si: wider than 155 degrees with four neighbours, than 165 with three
    contact     atoms that are not bonded nearer than 1.15 R, two terminal N, O or F of one centre than 1.35 R
    energy      above the lowest geometry by more than a window
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from kstep.molecules.molecule import Molecule
from kstep.topology import find_angles, neighbours
from kstep.units import NM_PER_ANGSTROM

WINDOW_KJ = 35.0  # on the true potential: 14 kT at 300 K, so that nothing within reach is lost
FORCE_FIELD_WINDOW_KJ = 100.0  # a force field is off by tens between conformers, and by hundreds turned inside out
WIDEST_DEG = {4: 155.0, 3: 165.0}  # by the number of neighbours
WITH_ANGLES = (5, 6, 7, 14)  # others are linear or hypervalent too
NEAREST, NEAREST_LIGANDS = 1.15, 1.35  # times R
LIGANDS = (7, 8, 9)  # of heavier ones the radii say less: iodines of CI4 are 1.26 R apart


@dataclass(frozen=True)
class Judged:
    """kept (K,): rows of the geometries that are starts, by rising energy; dropped: {"conformer": row, "cause": ...}.

    changed: whether every geometry that was dropped is another species.
    """

    kept: np.ndarray
    dropped: list[dict[str, Any]]
    changed: bool = False


def judge(molecule: Molecule, positions: np.ndarray, energies: np.ndarray, window_kJ: float,
          failures: dict[int, str] | None = None) -> Judged:
    """Which geometries (C,N,3) nm of energies (C,) kJ/mol are starts; failures: rows the method has no number for."""
    checks = _Checks(molecule)
    causes, changed = dict(failures or {}), True
    for row in range(len(positions)):
        if row in causes:
            changed = False
        elif cause := checks.species_fault(positions[row]):
            causes[row] = cause
        elif cause := checks.angle_fault(positions[row]) or checks.contact_fault(positions[row]):
            causes[row], changed = cause, False
    sound = np.array([row for row in range(len(positions)) if row not in causes], dtype=int)
    above = energies[sound] - energies[sound].min() if len(sound) else np.zeros(0)
    for row, height in zip(sound, above):
        if height > window_kJ:
            causes[int(row)], changed = f"{height:.0f} kJ/mol above the lowest", False
    kept = [row for row in sound if int(row) not in causes]
    order = np.argsort(energies[kept], kind="stable") if kept else []
    dropped = [{"conformer": row, "cause": causes[row]} for row in sorted(causes)]
    return Judged(np.array(kept, dtype=int)[order], dropped, changed and bool(causes))


class _Checks:
    def __init__(self, molecule: Molecule):
        numbers, bonds = molecule.numbers, molecule.bonds
        table = neighbours(len(numbers), bonds)
        self.species = molecule.species()
        self.numbers = numbers
        angles = find_angles(len(numbers), bonds)
        widest = np.array([WIDEST_DEG.get(len(table[j]), 180.0) if numbers[j] in WITH_ANGLES else 180.0
                           for _, j, _ in angles])
        self.angles, self.widest = angles[widest < 180.0], widest[widest < 180.0]
        radii = covalent_radii[numbers] * NM_PER_ANGSTROM
        touching = radii[:, None] + radii
        self.nearest = NEAREST * touching
        ends = [[a for a in around if len(table[a]) == 1 and numbers[a] in LIGANDS] for around in table]
        for around in ends:
            self.nearest[np.ix_(around, around)] = NEAREST_LIGANDS * touching[np.ix_(around, around)]
        self.nearest[bonds[:, 0], bonds[:, 1]] = self.nearest[bonds[:, 1], bonds[:, 0]] = 0.0
        np.fill_diagonal(self.nearest, 0.0)

    def species_fault(self, x: np.ndarray) -> str:
        return "; ".join(self.species.changes(x))

    def angle_fault(self, x: np.ndarray) -> str:
        if not len(self.angles):
            return ""
        i, j, k = self.angles.T
        u, v = x[i] - x[j], x[k] - x[j]
        cosine = np.einsum("ad,ad->a", u, v) / (np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1))
        degrees = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))
        worst = int(np.argmax(degrees - self.widest))
        if degrees[worst] <= self.widest[worst]:
            return ""
        return f"the angle {'-'.join(map(self._name, self.angles[worst]))} is {degrees[worst]:.0f} degrees"

    def contact_fault(self, x: np.ndarray) -> str:
        distance = np.linalg.norm(x[:, None] - x, axis=2)
        near = np.argwhere(np.triu(distance < self.nearest))
        if not len(near):
            return ""
        i, j = near[0]
        return f"{self._name(i)} and {self._name(j)} are {distance[i, j] / NM_PER_ANGSTROM:.2f} A apart"

    def _name(self, atom) -> str:
        return f"{chemical_symbols[self.numbers[atom]]}{int(atom)}"


def causes_of(dropped: list[dict[str, Any]], most: int = 3) -> str:
    """'conformer 3: the angle ... is 173 degrees' of the first few that were dropped, and how many more there are."""
    said = "; ".join(f"conformer {each['conformer']}: {each['cause']}" for each in dropped[:most])
    return said + (f"; and {len(dropped) - most} more" if len(dropped) > most else "")
