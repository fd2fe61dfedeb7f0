"""Equivalent atoms: the relabellings that a molecule's own motion can bring about.

The energy does not change when equivalent atoms change places, but a network on labelled
atoms must be shown that: a methyl or a phenyl that turned only after training ended would be new to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, permutations, product

import numpy as np

from kstep import topology
from kstep.hands import KEEP_THEIR_HAND

MOST_ENDS = 4  # of one atom; how five or six of an octahedron turn is not known here, and they keep their places


def _can_be_its_mirror_image(numbers: np.ndarray, table: list[list[int]], groups: list[list[int]]) -> bool:
    """Whether exchanging two equivalent ends at every centre undoes a reflection.

    So it is when every atom whose neighbours have a handedness carries two ends or more of one kind.
    """
    exchanging = {table[group[0]][0] for group in groups}
    for atom, around in enumerate(table):
        handed = len(around) >= 4 or (len(around) == 3 and int(numbers[atom]) in KEEP_THEIR_HAND)
        if handed and atom not in exchanging:
            return False
    return True


def exchange_equivalent(numbers: np.ndarray, bonds: np.ndarray, rng: np.random.Generator, n: int,
                        masses: np.ndarray | None = None) -> np.ndarray:
    """Random relabellings (n,N): column i names the atom that takes the place of atom i.

    A methyl or a CF3 turns (cyclic exchanges), a methane as a tetrahedron does, an NH2 turns or inverts (swap), a
    phenyl flips; the two hydrogens of a CH2 within a chain never change places by themselves.  But distances do not
    tell a molecule from its mirror image, and the mirror image of a gauche ethanol is the other gauche ethanol with
    the hydrogens of each group exchanged: where no centre forbids it, half of the relabellings
    are such odd ones (for 500 labels of ethanol that takes a quarter off the energy error).
    masses (N,) Da: isotopes keep their places, as velocities ask; an energy does not know them.
    """
    exchanges = _exchanges(numbers, bonds, masses)
    mirrored = rng.random(n) < 0.5 if exchanges.mirror else np.zeros(n, dtype=bool)
    ways = [rng.integers(size, size=n) if size > 1 else np.zeros(n, dtype=np.int64) for size in exchanges.sizes]
    return exchanges.orders(ways, mirrored)


def relabellings(numbers: np.ndarray, bonds: np.ndarray, most: int) -> np.ndarray:
    """All that `exchange_equivalent` draws from, (G,N), each once and the identity among them: a group.

    Where they are more than `most`, the last ones of what turns are left where they are: a subgroup.
    """
    exchanges = _exchanges(numbers, bonds, None)
    reached, ways = 1 + exchanges.mirror, []
    for size in exchanges.sizes:
        kept = size if reached * size <= most else 1
        reached *= kept
        ways.append(range(kept))
    chosen = np.array(list(product(*ways, range(1 + exchanges.mirror))), dtype=np.int64)
    return np.unique(exchanges.orders(list(chosen.T[:-1]), chosen[:, -1].astype(bool)), axis=0)


@dataclass(frozen=True)
class _Exchanges:
    """What may change places, each by itself: groups of ends, in turns (T,size) of their own, and flat rings.

    mirror: whether the molecule can be its mirror image; flips (F,N): of each ring.
    """

    groups: list[list[int]]
    turns: list[np.ndarray]
    mirror: bool
    flips: np.ndarray

    @property
    def sizes(self) -> list[int]:
        """In how many ways each of them can be, those that stay where they are included."""
        return [len(turns) for turns in self.turns] + [2] * len(self.flips)

    def orders(self, ways: list[np.ndarray], mirrored: np.ndarray) -> np.ndarray:
        """Relabellings (n,N): each in one of its ways (n,), two ends of each group exchanged where mirrored (n,)."""
        labels = np.tile(np.arange(self.flips.shape[1]), (len(mirrored), 1))
        for group, turns, way in zip(self.groups, self.turns, ways):
            places = turns[way]
            places[mirrored, :2] = places[mirrored, 1::-1]
            labels[:, group] = np.array(group)[places]
        for flip, way in zip(self.flips, ways[len(self.groups):]):
            turned = way == 1
            labels[turned] = labels[turned][:, flip]
        return labels


def _exchanges(numbers: np.ndarray, bonds: np.ndarray, masses: np.ndarray | None) -> _Exchanges:
    return _found_once(tuple(np.asarray(numbers).tolist()), tuple(np.asarray(bonds, dtype=np.int64).ravel().tolist()),
                       None if masses is None else tuple(np.asarray(masses).tolist()))


@lru_cache(maxsize=64)  # drawn from in every step of a training, and a search for rings takes milliseconds
def _found_once(atoms: tuple[int, ...], pairs: tuple[int, ...], isotopes: tuple[float, ...] | None) -> _Exchanges:
    numbers, bonds = np.array(atoms), np.array(pairs, dtype=np.int64).reshape(-1, 2)
    masses = None if isotopes is None else np.array(isotopes)
    table = topology.neighbours(len(numbers), bonds)
    groups = [group for group in topology.equivalent_ends(numbers, bonds, masses) if len(group) <= MOST_ENDS]
    turns = [_turns(len(group)) if len(table[table[group[0]][0]]) - len(group) <= 1 else
             np.arange(len(group))[None] for group in groups]
    mirror = bool(groups) and _can_be_its_mirror_image(numbers, table, groups)
    return _Exchanges(groups, turns, mirror, topology.ring_flips(numbers, bonds, masses))


def _turns(size: int) -> np.ndarray:
    """Where the ends (T,size) of a turning group of so many can go, first nowhere: a group, mirror images apart.

    Three at most go round.  Four are corners of a tetrahedron, whose turns are the even permutations: round a circle
    they would be its mirror images, and with an exchange of two no group.
    """
    if size < 4:
        return (np.arange(size) + np.arange(size)[:, None]) % size
    return np.array([order for order in permutations(range(size))
                     if sum(a > b for a, b in combinations(order, 2)) % 2 == 0])
