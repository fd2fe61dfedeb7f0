"""Bond lengths, angles and torsions of a trajectory, and which of them are one quantity.

The hydrogens of one CH3, CH2 or NH3 group exchange by rotation.  A short run may not have
turned the group yet, and then the mean C-H length of *one* methyl hydrogen still depends on
where the run started.  Bonds and angles that differ only in which hydrogen of such a group they
name are therefore pooled: their average over the group is compared.  (This also pools the two
hydrogens of a CH2 next to a stereocentre, which differ slightly; a difference between them is
not looked for.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kstep.topology import equivalent_hydrogens, find_angles, find_ring_torsions, find_rotatable_torsions

SYMBOLS = {1: "H", 5: "B", 6: "C", 7: "N", 8: "O", 9: "F", 14: "Si", 15: "P", 16: "S", 17: "Cl",
           35: "Br", 53: "I"}


HYDROGENS = {1: "H", 2: "D", 3: "T"}


def symbol(number: int, mass: float | None = None) -> str:
    """Chemical symbol; 'Z26' for an element that organic molecules rarely hold; with a mass in Da H, D or T."""
    if int(number) == 1 and mass is not None:
        return HYDROGENS.get(round(mass), "H")
    return SYMBOLS.get(int(number), f"Z{int(number)}")


def bond_lengths_nm(pos: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Distances (T,P) in nm of atom pairs (P,2) in positions (T,N,3)."""
    d = pos[:, pairs[:, 0]] - pos[:, pairs[:, 1]]
    return np.sqrt(np.einsum("tpi,tpi->tp", d, d))


def angles_deg(pos: np.ndarray, triples: np.ndarray) -> np.ndarray:
    """Angles (T,A) in degrees at the middle atom of triples (A,3); atan2 keeps 180 exact."""
    u = pos[:, triples[:, 0]] - pos[:, triples[:, 1]]
    v = pos[:, triples[:, 2]] - pos[:, triples[:, 1]]
    sine = np.linalg.norm(np.cross(u, v), axis=-1)
    return np.degrees(np.arctan2(sine, np.einsum("tpi,tpi->tp", u, v)))


def on_circle(angles: np.ndarray) -> np.ndarray:
    """Cosines, then sines (T,2D) of angles (T,D) in degrees, which have averages as angles have not."""
    return np.concatenate([np.cos(np.radians(angles)), np.sin(np.radians(angles))], axis=1)


@dataclass(frozen=True)
class Coordinates:
    """The internal coordinates of a molecule.

    Of each kind, "bonds", "angles" and "torsions": atoms (C,2), (C,3) and (C,4); group (C,): index of the pooled
    quantity each belongs to; labels: one readable name per pooled quantity.
    """

    atoms: dict[str, np.ndarray]
    group: dict[str, np.ndarray]
    labels: dict[str, list[str]]

    def weights(self, kind: str) -> np.ndarray:
        """How many bonds, angles or torsions are in each pooled quantity (G,)."""
        return np.bincount(self.group[kind], minlength=len(self.labels[kind])).astype(float)


def find_coordinates(numbers: np.ndarray, bonds: np.ndarray, pool_hydrogens: bool = True,
                     masses: np.ndarray | None = None) -> Coordinates:
    """Bonds, angles and torsions (rotatable ones, then those of rings that pucker), equivalent hydrogens pooled.

    masses (N,) Da: each isotope of hydrogen apart, since its mean bond length is another; None: all are alike.
    """
    numbers = np.asarray(numbers)
    bonds = np.asarray(bonds, dtype=np.int64).reshape(-1, 2)
    representative = np.arange(len(numbers))
    if pool_hydrogens:
        for group in equivalent_hydrogens(numbers, bonds, masses):
            representative[group] = group[0]
    atoms = {"bonds": bonds, "angles": find_angles(len(numbers), bonds),
             "torsions": np.concatenate([find_rotatable_torsions(numbers, bonds), find_ring_torsions(numbers, bonds)])}
    names = [f"{symbol(z, None if masses is None else masses[a])}{a}" for a, z in enumerate(numbers)]
    found = {kind: _group(atoms[kind], representative, names) for kind in ("bonds", "angles")}
    found["torsions"] = (np.arange(len(atoms["torsions"])),
                         ["-".join(names[a] for a in row) for row in atoms["torsions"]])
    return Coordinates(atoms, {kind: group for kind, (group, _) in found.items()},
                       {kind: labels for kind, (_, labels) in found.items()})


def _group(rows, representative, names):
    """Index of the pooled quantity of each bond or angle, and the names of the quantities."""
    keys, members, groups = {}, {}, []
    for row in rows:
        image = tuple(int(representative[a]) for a in row)
        key = min(image, image[::-1])
        groups.append(keys.setdefault(key, len(keys)))
        members[key] = members.get(key, 0) + 1
    labels = ["-".join(names[a] for a in key)
              + (f" (x{members[key]})" if members[key] > 1 else "") for key in keys]
    return np.array(groups, dtype=np.int64), labels


def pool(values: np.ndarray, groups: np.ndarray, n_groups: int) -> np.ndarray:
    """Average columns (T,P) of the same group: (T,G)."""
    matrix = np.zeros((values.shape[1], n_groups))
    matrix[np.arange(len(groups)), groups] = 1.0
    return values @ (matrix / np.maximum(matrix.sum(axis=0), 1.0))


def grouped_histograms(values: np.ndarray, groups: np.ndarray, n_groups: int, lower: float, upper: float,
                       bins: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Counts (G,bins) of columns (T,P) on a fixed grid; values outside fall into the end bins; weights (T,)."""
    index = ((values - lower) * (bins / (upper - lower))).astype(np.int64)
    np.clip(index, 0, bins - 1, out=index)
    index += groups * bins
    of_each = None if weights is None else np.repeat(weights, values.shape[1])
    counts = np.bincount(index.ravel(), weights=of_each, minlength=n_groups * bins)
    return counts.reshape(n_groups, bins).astype(float)


def pair_distance_histogram(pos: np.ndarray, maximum_nm: float, bins: int, frames_per_block: int = 1,
                            weights: np.ndarray | None = None):
    """Counts (blocks, bins) of all intramolecular distances up to `maximum_nm`, block by block; weights (T,)."""
    n_atoms = pos.shape[1]
    pairs = np.column_stack(np.triu_indices(n_atoms, 1))
    n_blocks = max(1, len(pos) // frames_per_block)
    out = np.zeros((n_blocks, bins))
    step = max(1, int(2e6 // max(len(pairs), 1)) // frames_per_block)  # blocks at a time
    for start in range(0, n_blocks, step):
        stop = min(start + step, n_blocks)
        chunk = pos[start * frames_per_block: stop * frames_per_block]
        index = (bond_lengths_nm(chunk, pairs) * (bins / maximum_nm)).astype(np.int64)
        block = np.repeat(np.arange(stop - start), frames_per_block)[: len(chunk), None]
        inside = index < bins
        flat = (index + block * bins)[inside]
        of_each = None if weights is None else np.broadcast_to(
            weights[start * frames_per_block: stop * frames_per_block, None], index.shape)[inside]
        out[start:stop] = np.bincount(flat, weights=of_each, minlength=(stop - start) * bins).reshape(-1, bins)
    return out
