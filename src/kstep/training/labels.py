"""Labels: geometries with their true energy and forces, and nothing that joins one to the next.

A self-learning run turns every true evaluation into one.  On disk they are a `dataset` file
(kstep/schemas.py) whose windows go nowhere: k = 1, end equal to start, velocities zero, and
`dynamics: false` in the metadata, so that 04_train.py trains any energy head on them and
refuses a jump head.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kstep.errors import UserError
from kstep.molecules.molecule import Molecule
from kstep.schemas import load_dataset, save_dataset
from kstep.topology import neighbours
from kstep.training.windows import N_BLOCKS
from kstep.units import kT

FIELDS = ("positions", "energies", "forces", "temperature_K")
EXTRA = "extra_"  # before the names of `Labels.extra` in a file


@dataclass
class Labels:
    """S labels of one molecule of N atoms, in the order they were made.

    positions (S,N,3) nm; energies (S,) kJ/mol; forces (S,N,3) kJ/mol/nm; temperature_K (S,)
    of the sampling that led to each; extra {name: (S,...)}: what else a target needs to make a network of them
    (a QM region's field), and no training by itself knows.
    """

    positions: np.ndarray
    energies: np.ndarray
    forces: np.ndarray
    temperature_K: np.ndarray
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        for name in FIELDS:
            setattr(self, name, np.array(getattr(self, name), dtype=np.float64))
        n = len(self.energies)
        if self.temperature_K.ndim == 0:
            self.temperature_K = np.full(n, float(self.temperature_K))
        if self.positions.ndim != 3 or self.positions.shape[2] != 3 or self.forces.shape != self.positions.shape \
                or self.energies.shape != (len(self.positions),) or self.temperature_K.shape != (n,):
            raise ValueError(f"labels need positions and forces (S,N,3), energies and temperature_K (S,), got "
                             f"{self.positions.shape}, {self.forces.shape}, {self.energies.shape}, "
                             f"{self.temperature_K.shape}")

    @classmethod
    def empty(cls, n_atoms: int) -> Labels:
        """No labels yet, of a molecule of n_atoms."""
        return cls(np.zeros((0, n_atoms, 3)), np.zeros(0), np.zeros((0, n_atoms, 3)), np.zeros(0))

    def __len__(self) -> int:
        return len(self.energies)

    def append(self, positions, energies, forces, temperature_K) -> int:
        """Add labels (temperature_K: one number or (s,)) as `join` does."""
        return self.join(Labels(positions, energies, forces, temperature_K))

    def join(self, new: Labels) -> int:
        """Add other labels and return how many were added.

        Rows without a finite energy and force, which failed true calls leave, are left out.
        """
        new = new.select(np.isfinite(new.energies) & np.isfinite(new.forces).all((1, 2))
                         & np.isfinite(new.positions).all((1, 2)))
        if new.positions.shape[1:] != self.positions.shape[1:]:
            raise ValueError(f"labels of {new.positions.shape[1]} atoms do not join those of "
                             f"{self.positions.shape[1]}")
        if len(new):
            self.extra = {name: np.concatenate([self.extra[name], values]) if len(self) else values
                          for name, values in new.extra.items()}
        for name in FIELDS:
            setattr(self, name, np.concatenate([getattr(self, name), getattr(new, name)]))
        return len(new)

    def select(self, rows) -> Labels:
        """The labels of some rows (indices, a slice or a mask), copied."""
        return Labels(**{name: getattr(self, name)[rows] for name in FIELDS},
                      extra={name: values[rows] for name, values in self.extra.items()})

    def weights(self, limit_kT_per_dof: float) -> np.ndarray:
        """How much each label counts (S,): 1 for what thermal motion reaches, little far above.

            w = min(1, (limit / (E - E_min))^4),   limit = limit_kT_per_dof (3N - 6) k T

        A molecule of f = 3N - 6 nearly harmonic modes lies f kT / 2 above its minimum, give or
        take sqrt(f / 2) kT; the limit 1 kT per mode is 3 standard deviations up for 9 atoms and 5
        for 21.  Beyond it are proposals that went wrong: they still say where a wall is, but
        their weighted squared error falls with their energy, however high that is.
        """
        if not len(self):
            return np.zeros(0)
        n_dof = max(1, 3 * self.positions.shape[1] - 6)
        above = self.energies - self.energies.min()
        limit = limit_kT_per_dof * n_dof * np.array([kT(t) for t in self.temperature_K])
        return (limit / np.maximum(above, limit)) ** 4

    def sha256(self) -> str:
        """Hash of all labels in their order."""
        digest = hashlib.sha256()
        for array in (*(getattr(self, name) for name in FIELDS), *self.extra.values()):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path, molecule: Molecule, *, method: str, true_calls: int, dt_fs: float,
             seed: int = 0) -> None:
        """Write a `dataset` file; true_calls: what the labels cost, failed calls included.

        dt_fs is the timestep of the run that made them, for the record.  Blocks for splits in
        time are tenths of the labels in their order.
        """
        n, n_atoms = len(self), len(molecule)
        if n == 0:
            raise UserError(f"there is no label to write to {path}")
        if self.positions.shape[1] != n_atoms:
            raise ValueError(f"labels of {self.positions.shape[1]} atoms are not of '{molecule.name}' ({n_atoms})")
        x, f = self.positions.reshape(-1, 3), self.forces.reshape(-1, 3)
        still = np.zeros_like(x)
        arrays = {
            "x_t": x, "v_t": still, "f_t": f, "x_tk": x, "v_tk": still, "f_tk": f, "v_half": still,
            "ptr": np.arange(n + 1) * n_atoms, "epot_t": self.energies, "epot_tk": self.energies,
            "temperature_K": self.temperature_K, "molecule_id": np.zeros(n, dtype=np.int64),
            "frame": np.arange(n), "block": np.arange(n) * N_BLOCKS // n, "k_steps": np.ones(n, dtype=np.int64),
            "dt_fs": np.array(float(dt_fs)), "mol_ptr": np.array([0, n_atoms]),
            "atom_types": molecule.numbers, "masses": molecule.masses, "bonds": molecule.bonds,
            "bond_ptr": np.array([0, len(molecule.bonds)]), "charge": np.array([molecule.charge]),
            "multiplicity": np.array([molecule.multiplicity]),
            **{EXTRA + name: values for name, values in self.extra.items()},
        }
        save_dataset(path, arrays, {
            "units": "nm ps Da kJ/mol", "dynamics": False, "method": method, "k_steps": 1, "dt_fs": float(dt_fs),
            "jump_fs": float(dt_fs), "stride": 1, "roles": ["label"], "n_blocks": N_BLOCKS, "rotations": 0,
            "seed": seed, "inputs": [], "true_calls": int(true_calls), "dropped": {}, "extra": sorted(self.extra),
            "molecules": [{"name": molecule.name, "smiles": molecule.smiles, "method": method}],
        })

    @classmethod
    def load(cls, path: str | Path, of: Molecule | None = None, n_charges: int = 0) -> tuple[Labels, dict]:
        """The labels of a dataset file of one molecule (of windows: their start frames), and its metadata.

        of: UserError unless they are of this molecule, atom by atom, among so many point charges around it.
        """
        arrays, metadata = load_dataset(path)
        names = [m["name"] for m in metadata["molecules"]]
        if len(names) != 1:
            raise UserError(f"{path} holds {len(names)} molecules ({', '.join(names)}); labels are of one")
        n_atoms = len(arrays["atom_types"])
        x, f = (arrays[key].reshape(-1, n_atoms, 3) for key in ("x_t", "f_t"))
        extra = {name.removeprefix(EXTRA): values for name, values in arrays.items() if name.startswith(EXTRA)}
        if of is not None:
            _check_are_of(path, arrays, extra, of, n_charges)
        return cls(x, arrays["epot_t"], f, arrays["temperature_K"], extra), metadata


def _check_are_of(path: str | Path, arrays: dict, extra: dict, molecule: Molecule, n_charges: int) -> None:
    """UserError where labels are of other atoms, in another order, of other electrons or other surroundings."""
    numbers, name = arrays["atom_types"], molecule.name
    if len(numbers) != len(molecule):
        raise UserError(f"{path} holds labels of another molecule than {name}")
    if (not np.array_equal(numbers, molecule.numbers)
            or neighbours(len(numbers), arrays["bonds"]) != neighbours(len(numbers), molecule.bonds)):
        raise UserError(f"{path} holds labels of another molecule than {name}, or of its atoms in another order, as "
                        "another SMILES has them")
    for key in ("charge", "multiplicity"):
        there, wanted = int(arrays[key][0]), getattr(molecule, key)
        if there != wanted:
            raise UserError(f"{path} holds labels of {key} {there}, and {name} has {key} {wanted}")
    around = extra["field"].shape[1] if "field" in extra else 0
    if around != n_charges:
        raise UserError(f"{path} holds labels among {around} point charges, and there are {n_charges} around {name}: "
                        "give labels of the same surroundings, or none")
