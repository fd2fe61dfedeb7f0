"""What makes a geometry the molecule that its SMILES names: its bonds, its protons, its named stereochemistry.

Everything is a function of one geometry alone, without memory, so that a sampler may use it as a hard wall and stays
exact for the species inside.  Walls are generous: nothing thermal, hot rungs of a ladder included, comes to one without
being on its way to another molecule.  R is the sum of the covalent radii of two atoms (Cordero et al., Dalton Trans.
2832 (2008), as in ase.data):

    a bond is broken       r > 1.5 R
    a bond is new          r < 1.25 R, between atoms other than hydrogen that are neither bonded nor share a neighbour
    a hydrogen has moved   r / R is smaller to some other atom than to its own

Stereocentres and double bonds are walls where the SMILES names them (@ @@ / \\): the sign of the volume that the
neighbours span, and that of the cosine of the torsion.  A nitrogen of three neighbours inverts freely.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from rdkit import Chem

from kstep.molecules.molecule import Molecule
from kstep.molecules.smiles import rdkit_of
from kstep.topology import neighbours
from kstep.units import NM_PER_ANGSTROM

BROKEN = 1.5  # times the sum of covalent radii
FORMED = 1.25

_TURNS = {Chem.ChiralType.CHI_TETRAHEDRAL_CCW: 1.0, Chem.ChiralType.CHI_TETRAHEDRAL_CW: -1.0}
_SIDES = {Chem.BondStereo.STEREOZ: 1.0, Chem.BondStereo.STEREOCIS: 1.0,
          Chem.BondStereo.STEREOE: -1.0, Chem.BondStereo.STEREOTRANS: -1.0}
# names that may tell a molecule from its mirror image, and that no wall here holds; apart, as RDKit's numbers are alike
_HANDED_CENTRES = {Chem.ChiralType.CHI_OCTAHEDRAL, Chem.ChiralType.CHI_TRIGONALBIPYRAMIDAL, Chem.ChiralType.CHI_ALLENE}
_HANDED_BONDS = {Chem.BondStereo.STEREOATROPCW, Chem.BondStereo.STEREOATROPCCW}


@dataclass(frozen=True)
class Stereo:
    """What a SMILES names of its stereochemistry.

    centres (C,4): three neighbours of a centre and the fourth, or the centre itself where it has three; volumes (C,):
    sign of (p - s) . (q - s) x (r - s) of its p, q, r, s; names (C,): the centres; torsions (D,4): along double bonds;
    sides (D,): 1 for Z, -1 for E.  known: whether there was a SMILES of these atoms to read it from; handed: whether it
    names what may have another mirror image and is none of these, such as an octahedral centre.
    """

    centres: np.ndarray
    volumes: np.ndarray
    names: np.ndarray
    torsions: np.ndarray
    sides: np.ndarray
    known: bool
    handed: bool = False


class Species:
    """The walls around a molecule; of a molecule with a region, around the region alone."""

    def __init__(self, numbers: np.ndarray, bonds: np.ndarray, stereo: Stereo, atoms: np.ndarray):
        """numbers (N,); bonds (B,2); atoms (n,): those that it is about."""
        self.stereo, self._atoms = stereo, np.asarray(atoms, dtype=np.int64)
        self._numbers = numbers
        place = {int(atom): n for n, atom in enumerate(self._atoms)}
        own = [(place[int(i)], place[int(j)]) for i, j in bonds if int(i) in place and int(j) in place]
        radii = covalent_radii[numbers[self._atoms]] * NM_PER_ANGSTROM
        touching = radii[:, None] + radii
        self._longest, self._closest = _limits(numbers[self._atoms], own, touching)
        # a hydrogen of one bond alone has an atom that it belongs to
        table, light = neighbours(len(radii), np.array(own).reshape(-1, 2)), numbers[self._atoms] == 1
        self._hydrogens = np.array([h for h in np.flatnonzero(light) if len(table[h]) == 1], dtype=np.int64)
        self._owners = np.array([table[h][0] for h in self._hydrogens], dtype=np.int64)
        self._per_touching = touching[self._hydrogens] ** -2.0

    @classmethod
    def of(cls, molecule: Molecule) -> Species:
        """The species that a molecule's bonds and its SMILES name."""
        atoms = np.arange(len(molecule)) if molecule.region is None else np.asarray(molecule.region)
        return cls(molecule.numbers, molecule.bonds, _named_stereo(molecule, atoms), atoms)

    @property
    def achiral(self) -> bool:
        """Whether no stereocentre is named, so that the mirror image is the same species."""
        return self.stereo.known and not len(self.stereo.centres) and not self.stereo.handed

    def inside(self, positions: np.ndarray) -> np.ndarray:
        """Whether (S,) geometries (S,N,3) nm are this species; one that is not finite is not."""
        x = np.asarray(positions, dtype=np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            squared = self._squared_distances(x)
            good = np.asarray(((squared <= self._longest) & (squared >= self._closest)).all(axis=(1, 2)))
            if len(self._hydrogens):
                nearness = self._nearness(squared)
                own = np.take_along_axis(nearness, self._owners[None, :, None], axis=2)
                good &= (nearness >= own).all(axis=(1, 2))
            if len(self.stereo.centres):
                good &= (self._volumes(x) > 0).all(axis=1)
            if len(self.stereo.torsions):
                good &= (self._sides(x) > 0).all(axis=1)
        return good

    def changes(self, positions: np.ndarray) -> list[str]:
        """What is another species in one geometry (N,3) nm, in clauses; atoms are counted from 0."""
        x = np.asarray(positions, dtype=np.float64)[None]
        if not np.isfinite(x).all():
            return ["positions are not finite"]
        squared = self._squared_distances(x)[0]
        found, gone = [], set()
        if len(self._hydrogens):
            nearness = self._nearness(squared[None])[0]
            for h, owner, near in zip(self._hydrogens, self._owners, nearness):
                if (near < near[owner]).any():
                    found.append(f"{self._name(h)} sits on {self._name(int(near.argmin()))} now")
                    gone.add(frozenset((int(h), int(owner))))
        for i, j in np.argwhere(np.triu(squared > self._longest)):
            if frozenset((int(i), int(j))) not in gone:
                found.append(f"the bond {self._name(i)}-{self._name(j)} is broken")
        found += [f"a bond {self._name(i)}-{self._name(j)} has formed"
                  for i, j in np.argwhere(np.triu(squared < self._closest))]
        return found + self.turned_over(positions)

    def turned_over(self, positions: np.ndarray) -> list[str]:
        """What of its named stereochemistry is another in one geometry (N,3) nm, in clauses."""
        x, stereo = np.asarray(positions, dtype=np.float64)[None], self.stereo
        found = []
        if len(stereo.centres):
            found += [f"the stereocentre {self._symbol(centre)} is turned over"
                      for centre in stereo.names[self._volumes(x)[0] <= 0]]
        if len(stereo.torsions):
            wrong = self._sides(x)[0] <= 0
            found += [f"the double bond {self._symbol(j)}={self._symbol(k)} went from "
                      f"{'Z to E' if side > 0 else 'E to Z'}"
                      for (_, j, k, _), side in zip(stereo.torsions[wrong], stereo.sides[wrong])]
        return found

    def _squared_distances(self, x: np.ndarray) -> np.ndarray:
        """Squared distances (S,n,n) nm^2; infinite from an atom to itself."""
        near = x if len(self._atoms) == x.shape[1] else x[:, self._atoms]
        near = near - near.mean(axis=1, keepdims=True)  # so that the differences below lose no digits
        products = near @ near.transpose(0, 2, 1)
        own = np.einsum("sii->si", products)
        squared = own[:, :, None] + own[:, None] - 2.0 * products
        np.einsum("sii->si", squared)[:] = np.inf
        return squared

    def _nearness(self, squared: np.ndarray) -> np.ndarray:
        """(r / R)^2 (S,H,n) of hydrogens to every atom."""
        return squared[:, self._hydrogens] * self._per_touching

    def _volumes(self, x: np.ndarray) -> np.ndarray:
        """Volumes (S,C) that centres span, positive where they are as named."""
        p, q, r, s = (x[:, self.stereo.centres[:, n]] for n in range(4))
        return np.einsum("sck,sck->sc", p - s, np.cross(q - s, r - s)) * self.stereo.volumes

    def _sides(self, x: np.ndarray) -> np.ndarray:
        """Cosines (S,D) of torsions times something positive, themselves positive where they are as named."""
        i, j, k, m = (x[:, self.stereo.torsions[:, n]] for n in range(4))
        normals = np.cross(j - i, k - j), np.cross(k - j, m - k)
        return np.einsum("sck,sck->sc", *normals) * self.stereo.sides

    def _symbol(self, atom) -> str:
        return f"{chemical_symbols[self._numbers[atom]]}{int(atom)}"

    def _name(self, place) -> str:
        return self._symbol(self._atoms[place])


def _limits(numbers: np.ndarray, bonds: list[tuple[int, int]], touching: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squares (n,n) of the longest and of the closest distances of atoms; infinity and 0 where there is no limit."""
    longest, closest = np.full(touching.shape, np.inf), np.zeros(touching.shape)
    heavy = numbers != 1
    apart = heavy[:, None] & heavy & ~np.eye(len(numbers), dtype=bool)
    table = neighbours(len(numbers), np.array(bonds).reshape(-1, 2))
    related = bonds + [pair for around in table for pair in itertools.combinations(around, 2)]
    for i, j in related:
        apart[i, j] = apart[j, i] = False
    for i, j in bonds:
        longest[i, j] = longest[j, i] = (BROKEN * touching[i, j]) ** 2
    closest[apart] = (FORMED * touching[apart]) ** 2
    return longest, closest


def _named_stereo(molecule: Molecule, atoms: np.ndarray) -> Stereo:
    """What its SMILES names, of centres and double bonds all of whose neighbours are among `atoms`.

    One that is missing or of other atoms (see `rdkit_of`) names nothing.
    """
    named = rdkit_of(molecule)
    handed = named is not None and (any(atom.GetChiralTag() in _HANDED_CENTRES for atom in named.GetAtoms())
                                    or any(bond.GetStereo() in _HANDED_BONDS for bond in named.GetBonds()))
    centres, torsions = [], []
    for atom in named.GetAtoms() if named is not None else ():
        turn = _TURNS.get(atom.GetChiralTag())
        around = [bond.GetOtherAtomIdx(atom.GetIdx()) for bond in atom.GetBonds()]
        inverts = atom.GetAtomicNum() == 7 and len(around) == 3
        if turn and not inverts and len(around) in (3, 4) and np.isin([atom.GetIdx(), *around], atoms).all():
            # seen from the first of four, or from where the fourth would be: RDKit counts a lone pair as the last
            corners = [*around, atom.GetIdx()][:4]
            centres.append((corners, turn, atom.GetIdx()))
    for bond in named.GetBonds() if named is not None else ():
        side = _SIDES.get(bond.GetStereo())
        if side:
            left, right = bond.GetStereoAtoms()
            torsion = [left, bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), right]
            if np.isin(torsion, atoms).all():
                torsions.append((torsion, side))
    return Stereo(np.array([c for c, _, _ in centres], dtype=np.int64).reshape(-1, 4),
                  np.array([turn for _, turn, _ in centres]), np.array([n for _, _, n in centres], dtype=np.int64),
                  np.array([t for t, _ in torsions], dtype=np.int64).reshape(-1, 4),
                  np.array([side for _, side in torsions]), named is not None, handed)
