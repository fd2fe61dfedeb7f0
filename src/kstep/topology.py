"""Angles, torsions and rings that follow from a bond list.

Everything here is a function of `bonds (B,2)` and `numbers (N,)` alone, so that a trajectory
file, which carries both, can be judged without the molecule it came from.
"""

from __future__ import annotations

import itertools

import numpy as np

LINEAR_OF_TWO = {4, 6, 12, 29, 30, 36, 47, 48, 54, 79, 80}  # atomic numbers that hold two neighbours on one line
FEWEST_NEIGHBOURS = {6: 4, 14: 4, 7: 3, 15: 3, 8: 2, 16: 2}  # of a saturated atom, by atomic number


def neighbours(n_atoms: int, bonds: np.ndarray) -> list[list[int]]:
    """Sorted bonded neighbours of each atom."""
    table: list[list[int]] = [[] for _ in range(n_atoms)]
    for i, j in np.asarray(bonds, dtype=int).reshape(-1, 2):
        table[i].append(int(j))
        table[j].append(int(i))
    return [sorted(row) for row in table]


def find_angles(n_atoms: int, bonds: np.ndarray) -> np.ndarray:
    """All bonded triples i-j-k with i < k, shape (A,3); j is the vertex."""
    triples = [(i, j, k) for j, around in enumerate(neighbours(n_atoms, bonds))
               for i, k in itertools.combinations(around, 2)]
    return np.array(triples, dtype=np.int64).reshape(-1, 3)


def reachable(start: int, table: list[list[int]], without: tuple[int, int]) -> set[int]:
    """Atoms that bonds lead to from `start`, itself among them, without the bond of two atoms."""
    seen, front = {start}, [start]
    while front:
        front = [a for f in front for a in table[f] if a not in seen and {f, a} != {*without}]
        seen.update(front)
    return seen


def bonds_between(n_atoms: int, bonds: np.ndarray, most: int) -> np.ndarray:
    """Bonds (N,N) on the shortest way from one atom to another; `most` where there are more, or no way."""
    joined = np.zeros((n_atoms, n_atoms), dtype=bool)
    first, second = np.asarray(bonds, dtype=int).reshape(-1, 2).T
    joined[first, second] = joined[second, first] = True
    near, found = np.eye(n_atoms, dtype=bool), np.full((n_atoms, n_atoms), most)
    for n in range(most):
        found[near & (found == most)] = n
        near = near | (near @ joined)
    return found


def ring_bonds(n_atoms: int, bonds: np.ndarray) -> np.ndarray:
    """True for each bond whose removal leaves its ends connected, shape (B,)."""
    table = neighbours(n_atoms, bonds)
    pairs = np.asarray(bonds, dtype=int).reshape(-1, 2).tolist()
    return np.array([j in reachable(i, table, (i, j)) for i, j in pairs], dtype=bool)


def is_methyl(atom: int, numbers: np.ndarray, table: list[list[int]]) -> bool:
    """True for a carbon with three hydrogens."""
    return int(numbers[atom]) == 6 and sum(int(numbers[n]) == 1 for n in table[atom]) == 3


def is_linear(atom: int, numbers: np.ndarray, table: list[list[int]]) -> bool:
    """True for an atom that holds its two neighbours on one line.

    So do carbon (alkynes, nitriles, allenes), metals and noble gases of two neighbours, and a nitrogen one of whose two
    is an end of nitrogen or carbon (azides, diazo compounds, isonitriles); bent nitrogens have no such end.
    """
    around, z = table[atom], int(numbers[atom])
    if len(around) != 2:
        return False
    ends = {int(numbers[a]) for a in around if len(table[a]) == 1}
    return z in LINEAR_OF_TWO or (z == 7 and bool(ends & {6, 7}))


def find_rotatable_torsions(numbers: np.ndarray, bonds: np.ndarray) -> np.ndarray:
    """One dihedral i-j-k-l per acyclic bond j-k that is not a methyl, shape (D,4).

    The outer atoms are the heaviest, then lowest-numbered, neighbours.  Double bonds are
    included: whether a torsion has more than one rotamer is a question for the trajectory,
    not for the topology.  A bond of a linear atom (`is_linear`) has none: about 180 degrees a
    dihedral means nothing.
    """
    numbers = np.asarray(numbers)
    bonds = np.asarray(bonds, dtype=int).reshape(-1, 2)
    table = neighbours(len(numbers), bonds)
    torsions = []
    for (j, k), cyclic in zip(bonds, ring_bonds(len(numbers), bonds)):
        left = [a for a in table[j] if a != k]
        right = [a for a in table[k] if a != j]
        if cyclic or not left or not right or is_linear(j, numbers, table) or is_linear(k, numbers, table):
            continue
        if is_methyl(j, numbers, table) or is_methyl(k, numbers, table):
            continue
        i = min(left, key=lambda a: (-numbers[a], a))
        last = min(right, key=lambda a: (-numbers[a], a))
        torsions.append((i, int(j), int(k), last))
    return np.array(torsions, dtype=np.int64).reshape(-1, 4)


def find_ring_torsions(numbers: np.ndarray, bonds: np.ndarray) -> np.ndarray:
    """One dihedral i-j-k-l within the smallest ring of every ring bond j-k that can pucker, shape (D,4).

    Both ends of such a bond are saturated (carbon or silicon with four neighbours, nitrogen or phosphorus with three or
    more, oxygen or sulphur with two), and the ring has four atoms or more.
    """
    numbers = np.asarray(numbers)
    bonds = np.asarray(bonds, dtype=int).reshape(-1, 2)
    table = neighbours(len(numbers), bonds)
    saturated = [len(table[a]) >= FEWEST_NEIGHBOURS.get(int(z), 9) for a, z in enumerate(numbers)]
    torsions = []
    for (j, k), cyclic in zip(bonds.tolist(), ring_bonds(len(numbers), bonds)):
        if cyclic and saturated[j] and saturated[k]:
            ring = _shortest_path(j, k, table)
            if len(ring) >= 4:
                torsions.append((ring[1], j, k, ring[-2]))
    return np.array(torsions, dtype=np.int64).reshape(-1, 4)


def _shortest_path(start: int, end: int, table: list[list[int]]) -> list[int]:
    """Atoms from `start` to `end`, both included, on the shortest way that is not the bond between them."""
    before, front = {start: start}, [start]
    while end not in before:
        reached = []
        for a in front:
            for b in table[a]:
                if b not in before and {a, b} != {start, end}:
                    before[b] = a
                    reached.append(b)
        front = reached
    path = [end]
    while path[-1] != start:
        path.append(before[path[-1]])
    return path[::-1]


def equivalent_hydrogens(numbers: np.ndarray, bonds: np.ndarray, masses: np.ndarray | None = None) -> list[list[int]]:
    """Groups of two or more hydrogens on the same heavy atom (CH3, CH2, NH2, NH3+): see `equivalent_ends`."""
    return [group for group in equivalent_ends(numbers, bonds, masses) if numbers[group[0]] == 1]


def equivalent_ends(numbers: np.ndarray, bonds: np.ndarray, masses: np.ndarray | None = None) -> list[list[int]]:
    """Groups of two or more atoms of one element that are bound to the same heavy atom and to nothing else.

    Besides hydrogens those are the fluorines of CF3, the oxygens of a carboxylate, a nitro or a sulphonyl group.
    masses (N,) Da: each isotope is a group of its own; None: they are alike, as for energies.
    """
    table, kinds, groups = neighbours(len(numbers), bonds), _kinds(numbers, masses), []
    for atom, around in enumerate(table):
        if numbers[atom] > 1:
            ends = [n for n in around if len(table[n]) == 1]
            groups += [[n for n in ends if kinds[n] == kind] for kind in sorted({kinds[n] for n in ends})]
    return [group for group in groups if len(group) > 1]


def ring_flips(numbers: np.ndarray, bonds: np.ndarray, masses: np.ndarray | None = None) -> np.ndarray:
    """Relabellings (F,N) by half a turn of a flat ring about the bond that carries it, each its own inverse.

    A phenyl has one, and so has a ring that is substituted in para, or alike on both sides by single atoms; benzene,
    which nothing carries, has none.  No two rings share what they move, so that they flip in any order.
    Column i names the atom that takes the place of atom i.  masses (N,) Da: isotopes keep their places; None: they are
    alike.
    """
    table, kinds, flips = neighbours(len(numbers), bonds), _kinds(numbers, masses), []
    for bond, cyclic in zip(np.asarray(bonds, dtype=int).reshape(-1, 2).tolist(), ring_bonds(len(numbers), bonds)):
        for outside, axis in (bond, bond[::-1]):
            inside = [a for a in table[axis] if a != outside]
            carried = not cyclic and len(table[outside]) > 1 and len(inside) == 2
            if carried and inside[0] in reachable(axis, table, (axis, inside[0])):
                order = _flip(_shortest_path(axis, inside[0], table), table, kinds)
                flips += [order] if order is not None else []
    return np.unique(np.array(flips, dtype=np.int64).reshape(-1, len(numbers)), axis=0)


def _flip(ring: list[int], table: list[list[int]], kinds: list[tuple[int, int]]) -> np.ndarray | None:
    """The half turn of a ring about its first atom; None where it is not flat, or what changes places is not alike."""
    order = np.arange(len(table))
    if any(len(table[a]) > 3 for a in ring):
        return None
    for a, b in zip(ring[1:], ring[:0:-1]):
        carried = [[n for n in table[atom] if n not in ring] for atom in (a, b)]
        alike = [[(kinds[n], len(table[n])) for n in ends] for ends in carried]
        if a != b and (kinds[a] != kinds[b] or alike[0] != alike[1] or any(degree > 1 for _, degree in alike[0])):
            return None
        order[[a, *carried[0]]] = [b, *carried[1]]
    return order


def _kinds(numbers: np.ndarray, masses: np.ndarray | None) -> list[tuple[int, int]]:
    """Element and, with masses (N,) Da, isotope of each atom."""
    isotopes = np.zeros(len(numbers)) if masses is None else np.rint(masses)
    return [(int(z), int(isotope)) for z, isotope in zip(numbers, isotopes)]
