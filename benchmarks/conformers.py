"""Conformers of one molecule: frames relaxed in batches, told apart, counted, and found again in another's list.

Two geometries are the same conformer where their energies agree and their heavy atoms lie on each other, after the best
rotation and the best exchange of equivalent atoms, and for an achiral molecule its mirror image too.  Hydrogens do not
count: what differs in one of them alone differs in energy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase.data import covalent_radii

from kstep.analysis.measure.symmetry import bond_graph, equivalent_orders
from kstep.errors import UserError
from kstep.molecules.molecule import Molecule
from kstep.topology import neighbours
from kstep.units import ANGSTROM_PER_NM, NM_PER_ANGSTROM, kT

SAME_RMSD_A = 0.3
SAME_ENERGY_KJ = 0.5  # per mol
BONDED = 1.3  # times the sum of covalent radii, in a relaxed geometry

FORCE_TOLERANCE = 5.0  # kJ/mol/nm, of the atom that feels most: energies to about 0.1 kJ/mol in the softest torsions
MEMORY = 30  # pairs of steps and changes of force that L-BFGS keeps
FIRST_CURVATURE = 7.0e5  # kJ/mol/nm^2, before it knows better; about that of a bond
LONGEST_STEP_NM, SHORTEST_STEP_NM = 0.015, 1e-7  # of any atom
ENERGY_NOISE_KJ = 1e-3  # by which a network's single precision may seem to go up

EnergyAndForces = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Relaxed:
    """positions (S,N,3) nm, energy (S,) kJ/mol, converged (S,): whether the force came below the tolerance."""

    positions: np.ndarray
    energy: np.ndarray
    converged: np.ndarray


def relax(energy_and_forces: EnergyAndForces, positions: np.ndarray, *, tolerance: float = FORCE_TOLERANCE,
          most_steps: int = 1000) -> Relaxed:
    """Minima next to positions (S,N,3) nm by L-BFGS, all geometries at once, each with a history of its own.

    energy_and_forces((s,N,3)) -> (s,) kJ/mol, (s,N,3) kJ/mol/nm; NaN where there is no answer.  A step that goes uphill
    or gets none is taken back, and shorter ones follow.  Source: Nocedal & Wright, Numerical Optimization, algorithm
    7.4.
    """
    x = np.array(positions, dtype=np.float64).reshape(len(positions), -1)
    shape = positions.shape[1:]

    def ask(y):
        energy, forces = energy_and_forces(y.reshape(-1, *shape))
        lost = ~(np.isfinite(energy) & np.isfinite(forces).all(axis=(1, 2)))
        return np.where(lost, np.inf, energy), np.where(lost[:, None], 0.0, forces.reshape(len(y), -1))

    energy, force = ask(x)
    converged = np.zeros(len(x), dtype=bool)
    rows = np.flatnonzero(np.isfinite(energy))  # still on their way; what follows has a row for each of them
    memory, longest = _Memory.of(len(rows), x.shape[1]), np.full(len(rows), LONGEST_STEP_NM)
    for _ in range(most_steps):
        strongest = _of_atoms(force[rows]).max(axis=1)
        converged[rows] = strongest <= tolerance
        going = ~converged[rows] & (longest > SHORTEST_STEP_NM)
        rows, memory, longest = rows[going], memory.of_rows(going), longest[going]
        if not len(rows):
            break
        step = memory.direction(force[rows])
        step *= np.minimum(1.0, longest / np.maximum(_of_atoms(step).max(axis=1), 1e-300))[:, None]
        new_energy, new_force = ask(x[rows] + step)
        good = new_energy <= energy[rows] + ENERGY_NOISE_KJ
        memory.learn(step, force[rows] - new_force, good)
        longest = np.where(good, np.minimum(1.5 * longest, LONGEST_STEP_NM), 0.25 * _of_atoms(step).max(axis=1))
        taken = rows[good]
        x[taken], energy[taken], force[taken] = x[taken] + step[good], new_energy[good], new_force[good]
    return Relaxed(x.reshape(positions.shape), np.where(np.isfinite(energy), energy, np.nan), converged)


def _of_atoms(vectors: np.ndarray) -> np.ndarray:
    """Lengths (S,N) of the atoms' parts of vectors (S,3N)."""
    return np.linalg.norm(vectors.reshape(len(vectors), -1, 3), axis=2)


@dataclass
class _Memory:
    """Of L-BFGS, oldest first: steps and changes (MEMORY,S,3N), weight (MEMORY,S) 1 / (s . y), 0: none; scale (S,)."""

    steps: np.ndarray
    changes: np.ndarray
    weight: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, n_rows: int, size: int) -> _Memory:
        """Nothing known yet."""
        empty = np.zeros((MEMORY, n_rows, size))
        return cls(empty, empty.copy(), np.zeros((MEMORY, n_rows)), np.full(n_rows, 1.0 / FIRST_CURVATURE))

    def of_rows(self, rows: np.ndarray) -> _Memory:
        """That of some rows (S,) alone."""
        if rows.all():
            return self
        return _Memory(self.steps[:, rows], self.changes[:, rows], self.weight[:, rows], self.scale[rows])

    def learn(self, step: np.ndarray, change: np.ndarray, good: np.ndarray) -> None:
        """A step (S,3N) and by how much the force fell along it; a row whose step was not `good` forgets everything."""
        product = np.einsum("sd,sd->s", step, change)
        squared = np.einsum("sd,sd->s", change, change)
        curved = good & (product > 1e-12 * squared / FIRST_CURVATURE)
        for kept, new in ((self.steps, step), (self.changes, change),
                          (self.weight, np.divide(1.0, product, out=np.zeros_like(product), where=curved))):
            kept[:-1] = kept[1:]
            kept[-1] = new
        self.weight[:, ~good] = 0.0
        self.scale = np.where(curved, np.divide(product, squared, out=np.ones_like(product), where=curved), self.scale)
        self.scale = np.where(good, self.scale, 1.0 / FIRST_CURVATURE)

    def direction(self, force: np.ndarray) -> np.ndarray:
        """Where to go (S,3N) under force (S,3N): the inverse Hessian, as far as it is known, times the force."""
        out, parts = force.copy(), []
        for step, change, weight in zip(self.steps[::-1], self.changes[::-1], self.weight[::-1], strict=True):
            parts.append(weight * np.einsum("sd,sd->s", step, out))
            out -= parts[-1][:, None] * change
        out *= self.scale[:, None]
        for step, change, weight, part in zip(self.steps, self.changes, self.weight, parts[::-1], strict=True):
            out += (part - weight * np.einsum("sd,sd->s", change, out))[:, None] * step
        uphill = np.einsum("sd,sd->s", out, force) <= 0
        out[uphill] = force[uphill] / FIRST_CURVATURE
        return out


def bonds_of(numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Bonds (B,2) of a relaxed geometry (N,3) nm by its distances."""
    radii = covalent_radii[numbers] * NM_PER_ANGSTROM
    distance = np.linalg.norm(positions[:, None] - positions, axis=2)
    first, second = np.triu_indices(len(numbers), k=1)
    near = distance[first, second] < BONDED * (radii[first] + radii[second])
    return np.column_stack([first[near], second[near]])


def order_of(molecule: Molecule, numbers: np.ndarray, positions: np.ndarray) -> np.ndarray | None:
    """Which of the atoms (N,) of a geometry (N,3) nm each of a molecule's is; None where it has other bonds."""
    bonds = bonds_of(numbers, positions)
    if len(numbers) != len(molecule) or len(bonds) != len(molecule.bonds):
        return None
    match = bond_graph(numbers, bonds).GetSubstructMatch(bond_graph(molecule.numbers, molecule.bonds))
    return np.array(match) if match else None


def as_named(molecule: Molecule, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Geometries (C,N,3), or their mirror images where those are what the SMILES names; which are (C,); if mirrored.

    Enantiomers have the same energies, so that a list of one is a list of the other.
    """
    species = molecule.species()
    inside, mirrored = (species.inside(x) for x in (positions, -positions))
    if mirrored.sum() > inside.sum():
        return -positions, mirrored, True
    return positions, inside, False


class Likeness:
    """When two geometries of a molecule are one conformer (see above)."""

    def __init__(self, molecule: Molecule, *, rmsd_A: float = SAME_RMSD_A, energy_kJ: float = SAME_ENERGY_KJ):
        self.rmsd_A, self.energy_kJ = rmsd_A, energy_kJ
        self.mirror = molecule.species().achiral
        self._heavy = np.flatnonzero(molecule.numbers != 1)
        self._orders = equivalent_orders(molecule.numbers, molecule.bonds, self._heavy)
        table = neighbours(len(molecule), molecule.bonds)
        polar = [h for h in np.flatnonzero(molecule.numbers == 1)
                 if not any(molecule.numbers[n] == 6 for n in table[h])]
        self._shape = np.array(sorted([*self._heavy, *polar]))  # ethanol's rotamers differ in a hydrogen of this kind
        self._shape_orders = equivalent_orders(molecule.numbers, molecule.bonds, self._shape)

    def rmsd(self, x: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Heavy-atom RMSD (S,) A of a geometry (N,3) nm to others (S,N,3)."""
        same, mirrored = _rmsd_A(x[self._heavy], others[:, self._heavy], self._orders)
        return np.minimum(same, mirrored) if self.mirror else same

    def images(self, x: np.ndarray) -> int:
        """How many minima geometry (N,3) stands for: by other numberings of equivalent atoms, and mirrored.

        Those that leave it as it is are no others (pentane: tt is one, tg four, g+g+ two); polar hydrogens count.
        """
        shape = x[self._shape]
        each = np.array([_rmsd_A(shape, shape[None], order[None]) for order in self._shape_orders])[..., 0]
        allowed = each if self.mirror else each[:, :1]
        return allowed.size // int((allowed <= self.rmsd_A).sum())

    def find(self, x: np.ndarray, energy: float, others: np.ndarray, energies: np.ndarray) -> int | None:
        """The nearest of others (S,N,3), energies (S,) kJ/mol, that is the same conformer as x (N,3); None: none is."""
        close = np.flatnonzero(np.abs(energies - energy) <= self.energy_kJ)
        if not len(close):
            return None
        distance = self.rmsd(x, others[close])
        return int(close[distance.argmin()]) if distance.min() < self.rmsd_A else None

    def group(self, positions: np.ndarray, energies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Conformer (S,) of geometries (S,N,3) nm, energies (S,) kJ/mol; the lowest geometry (G,) of each, best first.

        One without energy (NaN) is no conformer, -1.
        """
        conformer, lowest = np.full(len(energies), -1), []
        for row in np.argsort(energies, kind="stable"):
            if not np.isfinite(energies[row]):
                break  # the last ones
            found = self.find(positions[row], energies[row], positions[lowest], energies[lowest])
            if found is None:
                found = len(lowest)
                lowest.append(int(row))
            conformer[row] = found
        return conformer, np.array(lowest, dtype=int)


def _rmsd_A(x: np.ndarray, others: np.ndarray, orders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest RMSD (S,) A of x (n,3) nm to others (S,n,3) over orders (P,n) and rotations, and of its mirror image.

        RMSD^2 = (|x|^2 + |y|^2 - 2 (s1 + s2 +- s3)) / n,  s the singular values of x^T y, the sign that of its
    determinant, or for the mirror image the other one (Kabsch, Acta Cryst. A 32, 922 (1976)).
    """
    x, others = x - x.mean(axis=0), others - others.mean(axis=1, keepdims=True)
    best = np.full((2, len(others)), -np.inf)
    for order in orders:
        product = np.einsum("ni,snj->sij", x[order], others)
        values, sign = np.linalg.svd(product, compute_uv=False), np.sign(np.linalg.det(product))
        for row, hand in enumerate((sign, -sign)):
            best[row] = np.maximum(best[row], values[:, 0] + values[:, 1] + hand * values[:, 2])
    squared = (x**2).sum() + (others**2).sum(axis=(1, 2)) - 2.0 * best
    return tuple(np.sqrt(np.maximum(squared, 0.0) / len(x)) * ANGSTROM_PER_NM)


def boltzmann(energies: np.ndarray, images: np.ndarray, temperature_K: float) -> np.ndarray:
    """Static populations (G,) of conformers by energies (G,) kJ/mol alone, images (G,) of each counted."""
    weights = images * np.exp(-(energies - energies.min()) / kT(temperature_K))
    return weights / weights.sum()


def read_ensemble(path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Atomic numbers (N,), positions (C,N,3) nm and energies (C,) hartree of an xyz file with energies as comments."""
    from ase.data import atomic_numbers

    try:
        lines = path.read_text().splitlines()
        n = int(lines[0])
        blocks = [lines[i:i + n + 2] for i in range(0, len(lines) - n - 1, n + 2)]
        words = [[line.split() for line in block[2:]] for block in blocks]
        symbols = {tuple(row[0] for row in rows) for rows in words}
        numbers = np.array([atomic_numbers[symbol] for symbol in symbols.pop()])
        positions = np.array([[row[1:4] for row in rows] for rows in words], dtype=float).reshape(-1, n, 3)
        energies = np.array([float(block[1].split()[0]) for block in blocks])
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, IndexError) as error:
        raise UserError(f"{path} is no xyz file with an energy (hartree) on each comment line ({error})") from None
    if symbols:
        raise UserError(f"{path} holds geometries of different atoms; give the conformers of one molecule")
    return numbers, positions * NM_PER_ANGSTROM, energies
