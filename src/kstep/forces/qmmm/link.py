"""Link atoms: hydrogens that cap the bonds cut between the QM region and its environment.

    x_L = x_Q + d (x_M - x_Q) / |x_M - x_Q|

for a cut bond Q-M; d is fixed, so the bond's own length stays a matter of the force field.  A
force F on the link atom acts on the two real atoms, by the chain rule, as

    F_M += (d/r) (F - n (n.F)),   F_Q += F - (d/r) (F - n (n.F)),   n = (x_M - x_Q) / r

which keeps total force and torque.  Senn & Thiel, Angew. Chem. Int. Ed. 48, 1198 (2009), section 2.3.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from ase.data import covalent_radii

from kstep.errors import UserError
from kstep.units import NM_PER_ANGSTROM

HYDROGEN = 1


@dataclass(frozen=True)
class Region:
    """The QM region of a system of N atoms: `atoms` (n,), and its cut bonds.

    inside, hosts (L,): the QM and the MM atom of each cut bond; lengths_nm (L,): from `inside` to
    the link atom.  Arrays of the capped region hold the atoms first, then the link atoms.
    """

    atoms: np.ndarray
    inside: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    hosts: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    lengths_nm: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def cut(cls, numbers: np.ndarray, bonds: np.ndarray, atoms) -> Region:
        """The region of some atoms of a system with elements numbers (N,) and bonds (B,2).

        Raises UserError for atoms that are not there or named twice, a region that is empty or leaves
        no environment, and bonds no link atom can stand for.
        """
        atoms = np.asarray(atoms, dtype=np.int64).reshape(-1)
        n = len(numbers)
        outside = atoms[(atoms < 0) | (atoms >= n)]
        if len(outside):
            raise UserError(f"QM atom {outside[0]} is not in the system, whose {n} atoms are 0 to {n - 1}")
        unique, counts = np.unique(atoms, return_counts=True)
        if (counts > 1).any():
            raise UserError(f"QM atom {unique[counts > 1][0]} is named twice; regions may not overlap")
        if not len(atoms) or len(atoms) == n:
            raise UserError(f"a QM region of {len(atoms)} of {n} atoms leaves "
                            f"{'nothing for the QM' if not len(atoms) else 'no environment; use the QM backend alone'}")
        is_qm = np.zeros(n, dtype=bool)
        is_qm[atoms] = True
        bonds = np.asarray(bonds, dtype=np.int64).reshape(-1, 2)
        crossing = bonds[is_qm[bonds[:, 0]] != is_qm[bonds[:, 1]]]
        inside = np.where(is_qm[crossing[:, 0]], crossing[:, 0], crossing[:, 1])
        hosts = crossing.sum(1) - inside
        for q, m in zip(inside, hosts):
            if numbers[q] == HYDROGEN or numbers[m] == HYDROGEN:
                raise UserError(f"the QM region cuts the bond of atoms {q} and {m}, one of which is a hydrogen; move "
                                "the boundary to a single bond between heavy atoms")
        shared, links = np.unique(hosts, return_counts=True)
        if (links > 1).any():
            raise UserError(f"MM atom {shared[links > 1][0]} is bonded to two QM atoms, and one link atom cannot "
                            "stand for both; take it into the QM region")
        lengths = (covalent_radii[np.asarray(numbers)[inside]] + covalent_radii[HYDROGEN]) * NM_PER_ANGSTROM
        return cls(atoms, inside, hosts, lengths)

    def capped(self, positions: np.ndarray) -> np.ndarray:
        """Positions (...,n+L,3) of the capped region, from those of all atoms (...,N,3)."""
        region = positions[..., self.atoms, :]
        if not len(self.hosts):
            return region
        bond = positions[..., self.hosts, :] - positions[..., self.inside, :]
        bond *= (self.lengths_nm / np.linalg.norm(bond, axis=-1))[..., None]
        return np.concatenate([region, positions[..., self.inside, :] + bond], axis=-2)

    def spread(self, forces: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Forces (...,N,3) on all atoms, from forces (...,n+L,3) on the capped region."""
        out = np.zeros_like(positions)
        out[..., self.atoms, :] = forces[..., :len(self.atoms), :]
        if len(self.hosts):
            on_link = forces[..., len(self.atoms):, :]
            bond = positions[..., self.hosts, :] - positions[..., self.inside, :]
            r = np.linalg.norm(bond, axis=-1, keepdims=True)
            n = bond / r
            across = (on_link - n * (n * on_link).sum(-1, keepdims=True)) * (self.lengths_nm[:, None] / r)
            for link, (q, m) in enumerate(zip(self.inside, self.hosts)):  # one QM atom may carry several links
                out[..., m, :] += across[..., link, :]
                out[..., q, :] += on_link[..., link, :] - across[..., link, :]
        return out

    def capped_numbers(self, numbers: np.ndarray) -> np.ndarray:
        """Atomic numbers (n+L,) of the capped region."""
        return np.concatenate([np.asarray(numbers)[self.atoms], np.full(len(self.hosts), HYDROGEN)])

    def capped_masses(self, masses: np.ndarray) -> np.ndarray:
        """Masses (n+L,) Da of the capped region, a link atom's that of hydrogen; for its files alone."""
        return np.concatenate([np.asarray(masses)[self.atoms], np.full(len(self.hosts), 1.008)])

    def capped_bonds(self, bonds: np.ndarray) -> np.ndarray:
        """Bonds (b,2) of the capped region in its own numbering."""
        where = {int(atom): i for i, atom in enumerate(self.atoms)}
        own = [(where[i], where[j]) for i, j in np.asarray(bonds).reshape(-1, 2).tolist() if i in where and j in where]
        own += [(where[int(q)], len(self.atoms) + link) for link, q in enumerate(self.inside)]
        return np.array(sorted(tuple(sorted(pair)) for pair in own), dtype=np.int64).reshape(-1, 2)
