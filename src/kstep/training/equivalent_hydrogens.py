"""Equivalent hydrogens: the relabellings of its atoms that a molecule's own motion can bring about.

The energy does not change when equivalent hydrogens change places, but a network on labelled
atoms must be shown that: a methyl that turned only after training ended would be new to it.
"""

from __future__ import annotations

import numpy as np

from kstep import topology

STEREO_ELEMENTS_OF_THREE = {15, 16}  # P and S keep their handedness with three neighbours


def _can_be_its_mirror_image(numbers: np.ndarray, table: list[list[int]], groups: list[list[int]]) -> bool:
    """Whether exchanging two hydrogens at every centre undoes a reflection.

    So it is when every atom whose neighbours have a handedness carries two hydrogens or more of one kind.
    """
    exchanging = {table[group[0]][0] for group in groups}
    for atom, around in enumerate(table):
        handed = len(around) >= 4 or (len(around) == 3 and int(numbers[atom]) in STEREO_ELEMENTS_OF_THREE)
        if handed and atom not in exchanging:
            return False
    return True


def exchange_hydrogens(numbers: np.ndarray, bonds: np.ndarray, rng: np.random.Generator, n: int,
                       masses: np.ndarray | None = None) -> np.ndarray:
    """Random relabellings (n,N): column i names the atom that takes the place of atom i.

    A methyl turns (cyclic exchanges), an NH2 turns or inverts (swap); the two hydrogens of a CH2
    within a chain never change places by themselves.  But distances do not tell a molecule from
    its mirror image, and the mirror image of a gauche ethanol is the other gauche ethanol with
    the hydrogens of each group exchanged: where no centre forbids it, half of the relabellings
    are such odd ones (for 500 labels of ethanol that takes a quarter off the energy error).
    masses (N,) Da: isotopes keep their places, as velocities ask; an energy does not know them.
    """
    numbers = np.asarray(numbers)
    table = topology.neighbours(len(numbers), bonds)
    groups = topology.equivalent_hydrogens(numbers, bonds, masses)
    labels = np.tile(np.arange(len(numbers)), (n, 1))
    mirrored = np.zeros(n, dtype=bool)
    if groups and _can_be_its_mirror_image(numbers, table, groups):
        mirrored = rng.random(n) < 0.5
    for group in groups:
        others = len(table[table[group[0]][0]]) - len(group)
        places = np.tile(np.arange(len(group)), (n, 1))
        if others <= 1:
            places = (places + rng.integers(len(group), size=n)[:, None]) % len(group)
        places[mirrored, :2] = places[mirrored, 1::-1]
        labels[:, group] = np.array(group)[places]
    return labels
