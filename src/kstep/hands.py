"""Hands: on which side of a centre its neighbours stand, which no motion short of breaking a bond changes.

The hand of a centre c is the sign of (a - c) . (b - c) x (d - c) of three neighbours a, b, d.  Atoms of one element
that bonds do not tell apart may stand either way: the two hydrogens of a CH2, the three of a methyl, an isopropyl's
methyls.  To the molecule that is all the same; to whatever knows atoms by number it is another molecule.
"""

from __future__ import annotations

import numpy as np

from kstep.topology import neighbours

KEEP_THEIR_HAND = (15, 16)  # phosphorus and sulphur of three neighbours, which do not invert
MOST_NEIGHBOURS = 4  # whose exchange turns a hand round


def find_centres(numbers: np.ndarray, bonds: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """Atoms with a hand (V,4): the centre and three of its neighbours, all among `atoms` (n,).

    Of an allene, whose ends stand across each other and do not turn: one end, what it carries, the other end, and what
    that carries.
    """
    kept, rows, table = set(map(int, atoms)), [], neighbours(len(numbers), bonds)
    for centre, around in enumerate(table):
        if int(numbers[centre]) == 6 and len(around) == 2 and all(len(table[a]) == 3 for a in around):
            carried = [[a for a in table[end] if a in kept and a != centre] for end in around]
            if all(carried):
                rows.append([around[1], carried[0][0], around[0], carried[1][0]])
        fixed = len(around) >= 4 or (len(around) == 3 and int(numbers[centre]) in KEEP_THEIR_HAND)
        counted = [a for a in around if a in kept]
        if fixed and centre in kept and len(counted) >= 3:
            rows.append([centre, *counted[:3]])
    return np.array(rows, dtype=np.int64).reshape(-1, 4)


def hands(pos: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Signs (T,V), 1 or -1, of the volumes that three neighbours of each centre (V,4) span in positions (T,N,3)."""
    a, b, d = (pos[:, centres[:, n]] - pos[:, centres[:, 0]] for n in (1, 2, 3))
    return np.where(np.einsum("tvi,tvi->tv", a, np.cross(b, d)) > 0, 1, -1).astype(np.int8)


def numbered_alike(positions: np.ndarray, numbers: np.ndarray, bonds: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Geometries (C,N,3) with equivalent atoms numbered as in the first, so that they differ by motion alone.

    Generators of conformers number them by chance.  A molecule with two CH2 and two methyls then comes in eight
    numberings, between which no motion leads, and a network that knows atoms by number learns each by itself.  What is
    exchanged are two neighbours of a centre that carry the same, without rings.  A geometry whose other centres are the
    mirror image of the first's gets the numbering of that; one that differs in a part of them, another stereoisomer,
    is left as it is.  masses (N,) Da: isotopes keep their places.
    """
    centres = find_centres(numbers, bonds, np.arange(len(numbers)))
    if len(positions) < 2 or not len(centres):
        return positions
    kinds, table = list(zip(numbers.tolist(), np.rint(masses).astype(int).tolist())), neighbours(len(numbers), bonds)
    exchange = [_exchange_at(row, table, kinds) for row in centres]
    fixed = np.array([order is None for order in exchange])
    by_size = sorted(np.flatnonzero(~fixed), key=lambda v: -int((exchange[v] != np.arange(len(numbers))).sum()))
    first, out = hands(positions[:1], centres)[0], positions.copy()
    for x in out[1:]:
        same = hands(x[None], centres[fixed])[0] * first[fixed]
        wanted = first * (same[0] if len(same) else 1)
        for v in by_size:  # what a larger exchange moves along is put right after it
            moved = x[exchange[v]]
            if (hands(x[None], centres[[v]])[0, 0] != wanted[v]
                    and (hands(moved[None], centres[fixed])[0] == wanted[fixed]).all()):
                x[:] = moved
    return out


def _exchange_at(centre: np.ndarray, table: list[list[int]], kinds: list[tuple[int, int]]) -> np.ndarray | None:
    """The order (N,) that exchanges two neighbours of a centre, see `find_centres`, with all they carry; None where no
    two carry the same."""
    ends = [centre[0]] if int(centre[2]) in table[centre[0]] else [centre[0], centre[2]]  # the latter: of an allene
    best: dict[int, int] | None = None
    for end in map(int, ends):
        if len(table[end]) > MOST_NEIGHBOURS:
            continue
        trees = {a: _tree(a, end, table, kinds, {end}) for a in table[end]}
        for a in table[end]:
            for b in table[end]:
                if a < b and trees[a] is not None and trees[a] == trees[b]:
                    pairs = _paired(a, b, end, end, table, kinds)
                    if best is None or len(pairs) < len(best):
                        best = pairs
    if best is None:
        return None
    order = np.arange(len(table))
    for a, b in best.items():
        order[a], order[b] = b, a
    return order


def _tree(atom: int, before: int, table, kinds, seen: set[int]) -> tuple | None:
    """What hangs on an atom, `before` apart, in a form that is the same for the same; None where a ring closes."""
    if atom in seen:
        return None
    seen.add(atom)
    found = [_tree(a, atom, table, kinds, seen) for a in table[atom] if a != before]
    return None if None in found else (kinds[atom], tuple(sorted(found)))


def _paired(a: int, b: int, above_a: int, above_b: int, table, kinds) -> dict[int, int]:
    """Which atom of the tree at b takes the place of each of the tree at a."""
    pairs = {a: b}
    rest = [sorted((c for c in table[atom] if c != above), key=lambda c: (_tree(c, atom, table, kinds, set()), c))
            for atom, above in ((a, above_a), (b, above_b))]
    for c, d in zip(*rest):
        pairs |= _paired(c, d, a, b, table, kinds)
    return pairs
