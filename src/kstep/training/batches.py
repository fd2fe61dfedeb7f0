"""A dataset in memory as tensors, from which any choice of windows becomes one ragged batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from kstep import topology
from kstep.models.batch import MoleculeBatch
from kstep.training.equivalent_atoms import exchange_equivalent
from kstep.units import PS_PER_FS


@dataclass
class Targets:
    """What a batch should become: x_k, v_half (A,3); energy (P,), forces (A,3) of its positions.

    angles (G,3), torsions (D,4): atom numbers in the batch, for structural terms.
    """

    energy: torch.Tensor
    forces: torch.Tensor
    x_k: torch.Tensor
    v_half: torch.Tensor
    angles: torch.Tensor
    torsions: torch.Tensor


class _Ragged:
    """Rows of a table that belong to item i: table[ptr[i]:ptr[i+1]]."""

    def __init__(self, table: torch.Tensor, ptr: torch.Tensor):
        self.table, self.ptr = table, ptr
        count = torch.unique(ptr[1:] - ptr[:-1])
        self.even = int(count) if len(count) == 1 else None  # rows of every item, where all have as many

    def rows(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Row numbers of the items, one after another, and the place of the item of each row."""
        start = self.ptr[items]
        if self.even is not None:
            owner = torch.arange(len(items), device=items.device).repeat_interleave(self.even)
            return (start[:, None] + torch.arange(self.even, device=items.device)).reshape(-1), owner
        count = self.ptr[items + 1] - start
        owner = torch.repeat_interleave(torch.arange(len(items), device=items.device), count)
        before = torch.cumsum(count, 0) - count
        return torch.arange(len(owner), device=items.device) + (start - before)[owner], owner

    def count(self, items: torch.Tensor) -> int:
        """Number of rows of the items."""
        return int((self.ptr[items + 1] - self.ptr[items]).sum())


def _all_torsions(n_atoms: int, bonds: np.ndarray) -> np.ndarray:
    """Every bonded quadruple i-j-k-l, methyls and rings included, shape (D,4)."""
    table = topology.neighbours(n_atoms, bonds)
    quads = [(i, j, k, last) for j, k in bonds for i in table[j] for last in table[k]
             if i != k and last != j and i != last]
    return np.array(quads, dtype=np.int64).reshape(-1, 4)


class Windows:
    """The windows of a dataset file on one device, in float64.

    arrays, metadata: as `schemas.load_dataset` returns them.
    """

    def __init__(self, arrays: dict, metadata: dict, device: str = "cpu"):
        def tensor(array):
            return torch.as_tensor(np.asarray(array), device=device)

        self.metadata, self.device = metadata, device
        self.dt_fs = float(arrays["dt_fs"])
        self.ptr = tensor(arrays["ptr"])
        self.molecule = tensor(arrays["molecule_id"])
        self.k_steps = tensor(arrays["k_steps"])
        self.temperature_K = arrays["temperature_K"]
        self.vectors = {k: tensor(arrays[k]) for k in ("x_t", "v_t", "f_t", "x_tk", "f_tk", "v_half")}
        self.energies = {"t": tensor(arrays["epot_t"]), "tk": tensor(arrays["epot_tk"])}
        mol_ptr = tensor(arrays["mol_ptr"])
        self.atoms = _Ragged(torch.arange(int(self.ptr[-1]), device=device), self.ptr)
        self.static = _Ragged(torch.stack([tensor(arrays["atom_types"]).double(), tensor(arrays["masses"])], 1),
                              mol_ptr)
        bonds, bond_ptr = np.asarray(arrays["bonds"]), np.asarray(arrays["bond_ptr"])
        self.bonds = _Ragged(tensor(bonds), tensor(bond_ptr))
        angles, torsions = [], []
        self.of = [self.molecule_of(m, arrays) for m in range(len(bond_ptr) - 1)]
        for own in self.of:
            angles.append(topology.find_angles(len(own["numbers"]), own["bonds"]))
            torsions.append(_all_torsions(len(own["numbers"]), own["bonds"]))
        self.angles, self.torsions = (
            _Ragged(tensor(np.concatenate(tables)), tensor(np.cumsum([0] + [len(t) for t in tables])))
            for tables in (angles, torsions))

    @staticmethod
    def molecule_of(index: int, arrays: dict) -> dict:
        """{"numbers", "masses", "bonds"} of a molecule of a dataset."""
        atoms = slice(arrays["mol_ptr"][index], arrays["mol_ptr"][index + 1])
        bonds = slice(arrays["bond_ptr"][index], arrays["bond_ptr"][index + 1])
        return {"numbers": arrays["atom_types"][atoms], "masses": arrays["masses"][atoms],
                "bonds": arrays["bonds"][bonds]}

    def __len__(self) -> int:
        return len(self.k_steps)

    def exchange_equivalent(self, molecule: int, rng: np.random.Generator, n: int) -> np.ndarray:
        """Random relabellings (n,N) of one molecule's equivalent atoms (equivalent_atoms.py)."""
        own = self.of[molecule]
        return exchange_equivalent(own["numbers"], own["bonds"], rng, n, own["masses"])

    def counts(self, windows: torch.Tensor) -> dict[str, int]:
        """How many things of each kind that a loss averages over lie in the chosen windows (S,)."""
        molecule = self.molecule[windows]
        return {"windows": len(windows), "atoms": self.atoms.count(windows), "bonds": self.bonds.count(molecule),
                "angles": self.angles.count(molecule), "torsions": self.torsions.count(molecule)}

    def batch(self, windows: torch.Tensor, at_end: bool = False, labels: torch.Tensor | None = None,
              turns: torch.Tensor | None = None, structure: bool = True) -> tuple[MoleculeBatch, Targets]:
        """The chosen windows (S,) as one batch; `at_end`: at their end frames, for the energy head alone.

        labels (S,N): the atom of the file that each atom of the batch is taken from (one molecule);
        turns (S,3,3): rotations of all that has a direction; structure: list the angles and torsions.
        """
        rows, graph = self.atoms.rows(windows)
        if labels is not None:
            rows = (self.ptr[windows][:, None] + labels).reshape(-1)
        molecule = self.molecule[windows]
        static, _ = self.static.rows(molecule)
        first_atom = self.ptr[windows + 1] - self.ptr[windows]
        first_atom = torch.cumsum(first_atom, 0) - first_atom

        def vectors(name):
            given = self.vectors[name][rows]
            return given if turns is None else torch.einsum("axy,ay->ax", turns[graph], given)

        def tuples(ragged):
            chosen, owner = ragged.rows(molecule)
            return ragged.table[chosen] + first_atom[owner][:, None]

        end = "tk" if at_end else "t"
        batch = MoleculeBatch(
            numbers=self.static.table[static, 0].long(), masses=self.static.table[static, 1],
            positions=vectors(f"x_{end}"), graph=graph, n_graphs=len(windows),
            bonds=tuples(self.bonds))
        if not at_end:
            batch.velocities = vectors("v_t")
            batch.forces = vectors("f_t")
            batch.tau_ps = self.k_steps[windows] * (self.dt_fs * PS_PER_FS)
        return batch, Targets(
            energy=self.energies[end][windows], forces=vectors(f"f_{end}"),
            x_k=vectors("x_tk"), v_half=vectors("v_half"),
            angles=tuples(self.angles) if structure else self.angles.table[:0],
            torsions=tuples(self.torsions) if structure else self.torsions.table[:0])
