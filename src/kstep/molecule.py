"""A molecule as the stages hand it on: atoms, bonds, conformers; read and written as molecule.npz."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kstep.errors import UserError
from kstep.schemas import read_npz, write_npz


@dataclass(frozen=True)
class Molecule:
    """Atoms in RDKit order with explicit hydrogens.

    numbers (N,) atomic numbers; masses (N,) Da; bonds (B,2) with i < j; bond_orders (B,)
    (1.5 is aromatic); conformers (C,N,3) nm, best first; conformer_energies (C,) kJ/mol of
    `force_field`; total charge in e; spin multiplicity 2S+1.
    """

    name: str
    smiles: str
    numbers: np.ndarray
    masses: np.ndarray
    bonds: np.ndarray
    bond_orders: np.ndarray
    conformers: np.ndarray
    conformer_energies: np.ndarray
    charge: int = 0
    multiplicity: int = 1
    force_field: str = "mmff94"

    def __len__(self) -> int:
        return len(self.numbers)

    def save(self, path: str | Path) -> None:
        """Write molecule.npz (schema `molecule`)."""
        text = {
            "schema": "molecule",
            "schema_version": 1,
            "name": self.name,
            "smiles": self.smiles,
            "charge": self.charge,
            "multiplicity": self.multiplicity,
            "force_field": self.force_field,
        }
        write_npz(path, {
            "numbers": np.asarray(self.numbers, dtype=np.int64),
            "masses": np.asarray(self.masses, dtype=np.float64),
            "bonds": np.asarray(self.bonds, dtype=np.int64).reshape(-1, 2),
            "bond_orders": np.asarray(self.bond_orders, dtype=np.float64),
            "conformers": np.asarray(self.conformers, dtype=np.float64),
            "conformer_energies": np.asarray(self.conformer_energies, dtype=np.float64),
            "metadata": np.array(json.dumps(text)),
        })

    @classmethod
    def load(cls, path: str | Path) -> Molecule:
        """Read molecule.npz, or the molecule.npz of a folder such as data/raw/ethanol."""
        path = Path(path)
        if path.is_dir():
            path = path / "molecule.npz"
        if not path.is_file():
            raise UserError(f"{path} does not exist; prepare it with 'python src/00_prep_mols.py'")
        arrays = read_npz(path)
        try:
            text = json.loads(str(arrays["metadata"]))
            molecule = cls(
                name=text["name"],
                smiles=text["smiles"],
                charge=int(text["charge"]),
                multiplicity=int(text["multiplicity"]),
                force_field=text["force_field"],
                **{k: arrays[k] for k in ("numbers", "masses", "bonds", "bond_orders",
                                          "conformers", "conformer_energies")},
            )
        except (KeyError, json.JSONDecodeError) as error:
            raise UserError(f"{path} is not a molecule file ({error}); prepare it again") from None
        if molecule.conformers.shape[1:] != (len(molecule), 3) or not np.isfinite(molecule.conformers).all():
            raise UserError(f"{path}: conformers are not finite coordinates of {len(molecule)} atoms")
        return molecule
