"""A molecule as the stages hand it on: atoms, bonds, conformers; read and written as molecule.npz."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kstep.errors import UserError
from kstep.files import check_name
from kstep.npz import read_npz, write_npz
from kstep.schemas import check_molecule
from kstep.topology import find_rotatable_torsions

if TYPE_CHECKING:
    from kstep.molecules.species import Species

# what molecule.npz holds, in its metadata and as arrays
_WORDS = ("name", "smiles", "charge", "multiplicity", "force_field")
_LATER_WORDS = {"relaxed_on": ""}  # which older files lack
_ARRAYS = {"numbers": "i8", "masses": "f8", "bonds": "i8", "bond_orders": "f8", "conformers": "f8",
           "conformer_energies": "f8"}


@dataclass(frozen=True)
class Molecule:
    """Atoms with explicit hydrogens, in the order of RDKit or of the file they came from.

    numbers (N,) atomic numbers; masses (N,) Da; bonds (B,2) with i < j; bond_orders (B,)
    (1.5 is aromatic); conformers (C,N,3) nm, best first; conformer_energies (C,) kJ/mol of
    `relaxed_on`, the true potential near whose minima they are, or where that is '' of `force_field`, 0 where they are
    a user's own; total charge in e; spin multiplicity 2S+1; region (n,): the atoms whose torsions matter where that is
    not all of them, as in a QM/MM system; smiles_order (S,): the atom here of each atom of the SMILES, hydrogens added
    by RDKit, where that is not its own number.
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
    region: np.ndarray | None = None
    smiles_order: np.ndarray | None = None
    relaxed_on: str = ""

    def __len__(self) -> int:
        return len(self.numbers)

    def rotatable_torsions(self) -> np.ndarray:
        """Rotatable torsions (D,4) of the region, or of all, methyls apart (`topology.find_rotatable_torsions`)."""
        inside = slice(None) if self.region is None else np.isin(self.bonds, self.region).all(1)
        return find_rotatable_torsions(self.numbers, self.bonds[inside])

    def species(self) -> Species:
        """The walls around it: its bonds, and the stereochemistry that its SMILES names."""
        from kstep.molecules.species import Species  # RDKit, which reading a molecule needs not

        return Species.of(self)

    def save(self, path: str | Path) -> None:
        """Write molecule.npz (schema `molecule`)."""
        text = {"schema": "molecule", "schema_version": 1,
                **{key: getattr(self, key) for key in (*_WORDS, *_LATER_WORDS)}}
        arrays = {key: np.asarray(getattr(self, key), dtype) for key, dtype in _ARRAYS.items()}
        if self.smiles_order is not None:
            arrays["smiles_order"] = np.asarray(self.smiles_order, np.int64)
        write_npz(path, {**arrays, "bonds": arrays["bonds"].reshape(-1, 2), "metadata": np.array(json.dumps(text))})

    @classmethod
    def load(cls, path: str | Path) -> Molecule:
        """Read molecule.npz, or the molecule.npz of a folder such as data/raw/ethanol."""
        path = Path(path)
        if path.is_dir():
            path = path / "molecule.npz"
        if not path.is_file():
            raise UserError(f"{path} does not exist; prepare it with 'python src/00_prep_mols.py'")
        if path.suffix != ".npz":
            raise UserError(f"{path} is not a prepared molecule; prepare it from its SMILES with 00_prep_mols.py "
                            "(kstep prepare) and give the folder that this writes")
        arrays = read_npz(path)
        try:
            text = json.loads(str(arrays["metadata"]))
            if text.get("schema", "molecule") != "molecule":
                raise UserError(f"{path} holds a '{text['schema']}' and no molecule; give a SMILES, a structure file "
                                "or a folder that kstep prepare wrote")
            known: dict[str, Any] = {key: text[key] for key in _WORDS} | {key: arrays[key] for key in _ARRAYS}
            known["smiles_order"] = arrays.get("smiles_order")  # of a structure file's molecule
            known |= {key: str(text.get(key, usual)) for key, usual in _LATER_WORDS.items()}
            molecule = cls(**known | {key: int(text[key]) for key in ("charge", "multiplicity")})
            check_name(molecule.name)
            shapes = {"numbers": (len(molecule),), "masses": (len(molecule),), "bonds": (len(molecule.bonds), 2)}
            for key, shape in shapes.items():
                array = getattr(molecule, key)
                if array.shape != shape or array.dtype.kind not in ("f" if key == "masses" else "i"):
                    raise UserError(f"{path}: '{key}' has shape {array.shape} and dtype {array.dtype}; prepare it "
                                    "again")
            order = molecule.smiles_order
            if order is not None and sorted(order.tolist()) != list(range(len(molecule))):
                raise UserError(f"{path}: 'smiles_order' does not name every atom once; prepare it again")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} is not a molecule file ({error}); prepare it again") from None
        check_molecule(path, molecule.numbers, molecule.masses, molecule.bonds)
        shape = molecule.conformers.shape
        if shape[0] == 0 or shape[1:] != (len(molecule), 3) or not np.isfinite(molecule.conformers).all():
            raise UserError(f"{path}: conformers are not finite coordinates of {len(molecule)} atoms")
        return molecule
