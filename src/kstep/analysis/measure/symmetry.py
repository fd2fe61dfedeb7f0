"""Exchanges of atoms that bonds do not tell apart, by RDKit's matches of a molecule's graph with itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kstep.errors import UserError
from kstep.topology import is_methyl, neighbours

if TYPE_CHECKING:
    from rdkit import Chem

MOST_EXCHANGES = 20_000  # of equivalent atoms


def are_stereoisomers(one: str | None, other: str | None) -> bool:
    """Whether two SMILES are of one molecule but for what both name of its stereochemistry; isotopes are no matter.

    What only one of them names contradicts nothing.
    """
    if not one or not other or one == other or not all(set(smiles) & set("@/\\") for smiles in (one, other)):
        return False
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        pair = [Chem.MolFromSmiles(smiles) for smiles in (one, other)]
    if None in pair:
        return False
    for molecule in pair:
        for atom in molecule.GetAtoms():
            atom.SetIsotope(0)
            atom.SetAtomMapNum(0)
    if len({Chem.MolToSmiles(molecule, isomericSmiles=False) for molecule in pair}) > 1:
        return False
    return not any(a.HasSubstructMatch(b, useChirality=True) for a, b in (pair, pair[::-1]))


def bond_graph(numbers: np.ndarray, bonds: np.ndarray) -> Chem.Mol:
    """Elements (N,) and which atoms are bonded (B,2), and nothing else: all resonance forms have the same."""
    from rdkit import Chem  # analysis does without it where nothing is symmetric to anything

    graph = Chem.RWMol()
    for atom, around in enumerate(neighbours(len(numbers), bonds)):
        node = Chem.Atom(int(numbers[atom]))
        node.SetIsotope(1 + len(around))  # a label that matches look at: its number of neighbours
        node.SetNoImplicit(True)
        graph.AddAtom(node)
    for i, j in bonds:
        graph.AddBond(int(i), int(j), Chem.BondType.SINGLE)
    Chem.FastFindRings(graph)
    return graph.GetMol()


def equivalent_orders(numbers: np.ndarray, bonds: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """Orders (P,n) of atoms (n,) that bonds do not tell apart, as places in `atoms`; other atoms hang on them."""
    from rdkit import Chem

    whole = bond_graph(numbers, bonds)
    part = Chem.RWMol(whole)
    for atom in sorted(set(range(len(numbers))) - set(map(int, atoms)), reverse=True):
        part.RemoveAtom(atom)
    Chem.FastFindRings(part)
    orders = part.GetSubstructMatches(part, uniquify=False, maxMatches=MOST_EXCHANGES)
    if len(orders) >= MOST_EXCHANGES:
        raise UserError(f"the molecule has {MOST_EXCHANGES} exchanges of equivalent atoms or more, too many to compare "
                        "conformers by")
    return np.array(orders)


def conformer_atoms(numbers: np.ndarray, bonds: np.ndarray, torsions: np.ndarray) -> np.ndarray:
    """The atoms (n,) whose places make a conformer: all but the hydrogens on carbon that no torsion (D,4) turns.

    Of hydrogens that one does, those on the same atom are counted with it; a methyl's never are.
    """
    table = neighbours(len(numbers), bonds)
    ends = {table[h][0] for h in torsions.ravel().tolist() if numbers[h] == 1 and len(table[h]) == 1}
    ends = {a for a in ends if not is_methyl(a, numbers, table)}
    return np.array([a for a in range(len(numbers)) if numbers[a] != 1 or len(table[a]) != 1
                     or numbers[table[a][0]] != 6 or table[a][0] in ends], dtype=np.int64)


def exchanges(numbers: np.ndarray, bonds: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """Atoms (P,N) in the place of the atoms 0 ... N-1 after each exchange of equivalent atoms among `atoms` (n,).

    Every other atom is said to stay where it is, though what hangs on an exchanged atom goes with it.  Raises UserError
    where there are too many.
    """
    orders = equivalent_orders(numbers, bonds, atoms)
    out = np.tile(np.arange(len(numbers)), (len(orders), 1))
    out[:, atoms] = atoms[orders]
    return out
