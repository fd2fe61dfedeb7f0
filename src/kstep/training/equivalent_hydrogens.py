"""Equivalent hydrogens: the relabellings of its atoms that a molecule's own motion can bring about.

The energy does not change when equivalent hydrogens change places, but a network on labelled
atoms must be shown that: a methyl that turned only after training ended would be new to it.
"""

from __future__ import annotations

from itertools import combinations, permutations, product

import numpy as np

from kstep import topology
from kstep.hands import KEEP_THEIR_HAND


def _can_be_its_mirror_image(numbers: np.ndarray, table: list[list[int]], groups: list[list[int]]) -> bool:
    """Whether exchanging two hydrogens at every centre undoes a reflection.

    So it is when every atom whose neighbours have a handedness carries two hydrogens or more of one kind.
    """
    exchanging = {table[group[0]][0] for group in groups}
    for atom, around in enumerate(table):
        handed = len(around) >= 4 or (len(around) == 3 and int(numbers[atom]) in KEEP_THEIR_HAND)
        if handed and atom not in exchanging:
            return False
    return True


def exchange_hydrogens(numbers: np.ndarray, bonds: np.ndarray, rng: np.random.Generator, n: int,
                       masses: np.ndarray | None = None) -> np.ndarray:
    """Random relabellings (n,N): column i names the atom that takes the place of atom i.

    A methyl turns (cyclic exchanges), a methane as a tetrahedron does, an NH2 turns or inverts (swap); the two
    hydrogens of a CH2 within a chain never change places by themselves.  But distances do not tell a molecule from
    its mirror image, and the mirror image of a gauche ethanol is the other gauche ethanol with
    the hydrogens of each group exchanged: where no centre forbids it, half of the relabellings
    are such odd ones (for 500 labels of ethanol that takes a quarter off the energy error).
    masses (N,) Da: isotopes keep their places, as velocities ask; an energy does not know them.
    """
    numbers = np.asarray(numbers)
    groups, can_turn, can_mirror = _exchanges(numbers, bonds, masses)
    mirrored = np.zeros(n, dtype=bool)
    if can_mirror:
        mirrored = rng.random(n) < 0.5
    turns = [rng.integers(len(_turns(len(group))), size=n) if turning else np.zeros(n, dtype=np.int64)
             for group, turning in zip(groups, can_turn)]
    return _orders(len(numbers), groups, turns, mirrored)


def relabellings(numbers: np.ndarray, bonds: np.ndarray, most: int) -> np.ndarray:
    """All that `exchange_hydrogens` draws from, (G,N), each once and the identity among them: a group.

    Where they are more than `most`, the last ones of its turning groups are left where they are: a subgroup.
    """
    numbers = np.asarray(numbers)
    groups, can_turn, can_mirror = _exchanges(numbers, bonds, None)
    reached, ways = 1 + can_mirror, []
    for group, turning in zip(groups, can_turn):
        n_turns = len(_turns(len(group))) if turning else 1
        n_turns = n_turns if reached * n_turns <= most else 1
        reached *= n_turns
        ways.append(range(n_turns))
    chosen = np.array(list(product(*ways, range(1 + can_mirror))), dtype=np.int64)
    orders = _orders(len(numbers), groups, list(chosen.T[:-1]), chosen[:, -1].astype(bool))
    return np.unique(orders, axis=0)


def _exchanges(numbers: np.ndarray, bonds: np.ndarray, masses: np.ndarray | None):
    """Groups of equivalent hydrogens, whether each turns, and whether the molecule can be its mirror image."""
    table = topology.neighbours(len(numbers), bonds)
    groups = topology.equivalent_hydrogens(numbers, bonds, masses)
    can_turn = [len(table[table[group[0]][0]]) - len(group) <= 1 for group in groups]
    return groups, can_turn, bool(groups) and _can_be_its_mirror_image(numbers, table, groups)


def _turns(size: int) -> np.ndarray:
    """Where the hydrogens (T,size) of a turning group of so many can go, first nowhere: a group, mirror images apart.

    Three at most go round.  Four are corners of a tetrahedron, whose turns are the even permutations: round a circle
    they would be its mirror images, and with an exchange of two no group.
    """
    if size < 4:
        return (np.arange(size) + np.arange(size)[:, None]) % size
    return np.array([order for order in permutations(range(size))
                     if sum(a > b for a, b in combinations(order, 2)) % 2 == 0])


def _orders(n_atoms: int, groups: list[list[int]], turns: list[np.ndarray], mirrored: np.ndarray) -> np.ndarray:
    """Relabellings (n,N): each group turned (n,) in one of its ways, two of its hydrogens exchanged where mirrored."""
    labels = np.tile(np.arange(n_atoms), (len(mirrored), 1))
    for group, turn in zip(groups, turns):
        places = _turns(len(group))[turn]
        places[mirrored, :2] = places[mirrored, 1::-1]
        labels[:, group] = np.array(group)[places]
    return labels
