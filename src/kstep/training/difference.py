"""The difference of two potentials of one molecule, from a few dozen energies: a Gaussian process.

Two methods disagree smoothly where each by itself is anything but smooth, so that their difference takes tens of labels
where a potential takes hundreds.  With u_p = ln r_p, one feature per pair of atoms, the difference is

    D(x) = c + sum_n a_n k(x, x_n) [+ forces],   k(x, x') = 1/|G| sum_g exp(-|u(x) - u(g x')|^2 / 2 l^2)

over the relabellings g of equivalent atoms (equivalent_atoms.py), a group, so that D does not know them apart.
It is bounded and goes back to the constant c far from all labels: it digs no hole.  Forces, where both methods have
them, are 3N data more of each label: covariances of the derivatives of a Gaussian process are derivatives of k.

l and the noise are those of the largest likelihood, the size of the process and c being eliminated; the error of each
label's energy predicted from all other labels has a closed form, and is what tells how far D can be trusted.
Features without scales of their own: the logarithm weighs a pair by the relative change of its distance, and of all
that was tried for methanol and ethanol (1/r, r, exp(-r), each scaled to unit spread or not, quadratic forms) left the
smallest error, half of that of quadratic forms in standardised 1/r.

Sources: Rasmussen & Williams, Gaussian Processes for Machine Learning (MIT Press 2006), eqs 2.42 (c), 5.8 (likelihood),
5.12 (leave one out), section 9.4 (derivatives); symmetrised kernels of forces: Chmiela et al., Nat. Commun. 9, 3887
(2018); differences of methods: Ramakrishnan et al., J. Chem. Theory Comput. 11, 2087 (2015).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from scipy.linalg import cho_factor, cho_solve, eigh

LENGTHS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.7, 8.0)  # in rms distances of the features from their mean
NOISES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # of the variance of the process, of forces of that of its slope
MOST_RELABELLINGS = 64
MOST_DATA = 8000  # beyond, later labels count with their energies alone: the matrix of all would take a GB
CHUNK = 4_000_000  # numbers of one array of predictions


@dataclass(frozen=True)
class Difference:
    """D of S labels and G relabellings.

    centres (S G, P): u(g x_n); by_energy (S G,), by_forces (S G, P): what the data of each count, in kJ/mol; constant:
    c, kJ/mol; length: l; left_out (S,): energies of the labels minus what all other labels predict, kJ/mol.
    """

    centres: np.ndarray
    by_energy: np.ndarray
    by_forces: np.ndarray
    constant: float
    length: float
    left_out: np.ndarray

    def energy_and_forces(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """D (S,) kJ/mol and its forces (S,N,3) kJ/mol/nm at positions (S,N,3) nm."""
        parts = np.array_split(positions, max(1, -(-len(positions) * len(self.centres) // CHUNK)))
        found = [self._at(part) for part in parts]
        return np.concatenate([e for e, _ in found]), np.concatenate([f for _, f in found])

    def _at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u, vectors = _features(positions)
        l2, c, v = self.length**2, self.centres, self.by_forces
        apart = (u * u).sum(1)[:, None] + (c * c).sum(1) - 2.0 * u @ c.T
        k = np.exp(-0.5 * np.maximum(apart, 0.0) / l2)
        # a + v.(u - c)/l^2, and dD/du = sum_m k_m [v_m - (u - c_m)(...)] / l^2
        count = self.by_energy + (u @ v.T - (c * v).sum(1)) / l2
        weight = k * count
        slope = (k @ v - u * weight.sum(1)[:, None] + weight @ c) / l2
        return self.constant + weight.sum(1), _on_atoms(-slope, vectors)

    def as_arrays(self) -> dict[str, np.ndarray]:
        """Its fields, for a file."""
        return {each.name: np.asarray(getattr(self, each.name)) for each in fields(self)}

    @classmethod
    def of_arrays(cls, arrays: dict[str, np.ndarray]) -> Difference:
        """From what `as_arrays` gave."""
        return cls(**{each.name: arrays[each.name] if arrays[each.name].ndim else float(arrays[each.name])
                      for each in fields(cls)})


@dataclass(frozen=True)
class _Data:
    """Labels as the process sees them; the last F of the data are forces, of the first F / 3N labels."""

    u: np.ndarray  # (S,P)
    slopes: np.ndarray  # (L,P,3N) du/dx of labels with forces
    images: np.ndarray  # (G,P): the pair that takes the place of each
    y: np.ndarray  # (S + F,)

    @property
    def n_energies(self) -> int:
        return len(self.u)

    def covariance(self, length: float) -> np.ndarray:
        """Of all data (S + F, S + F), for a process of variance 1."""
        n, (n_forces, _, n_moves) = self.n_energies, self.slopes.shape
        out, l2 = np.zeros((len(self.y), len(self.y))), length**2
        for image in self.images:
            other, other_slopes = self.u[:, image], self.slopes[:, image]
            apart = (self.u**2).sum(1)[:, None] + (other**2).sum(1) - 2.0 * self.u @ other.T
            k = np.exp(-0.5 * np.maximum(apart, 0.0) / l2)
            out[:n, :n] += k
            if not n_forces:
                continue
            # cov(E_n, F_m) = -dk/dx_m = -k (u_n - u_m) J_m / l^2
            along = np.einsum("np,mpb->nmb", self.u, other_slopes) - np.einsum("mp,mpb->mb", other[:n_forces],
                                                                               other_slopes)
            mixed = -k[:, :n_forces, None] * along / l2
            out[:n, n:] += mixed.reshape(n, -1)
            # cov(F_n, F_m) = d2k/dx_n dx_m = k J_n [1/l^2 - (u_n - u_m)(u_n - u_m)/l^4] J_m
            own = (np.einsum("npa,np->na", self.slopes, self.u[:n_forces])[:, None]
                   - np.einsum("npa,mp->nma", self.slopes, other[:n_forces]))
            both = np.tensordot(self.slopes, other_slopes, axes=(1, 1)).transpose(0, 2, 1, 3) / l2
            both -= own[:, :, :, None] * along[:n_forces, :, None, :] / l2**2
            both *= k[:n_forces, :n_forces, None, None]
            out[n:, n:] += both.transpose(0, 2, 1, 3).reshape(n_forces * n_moves, -1)
        out[n:, :n] = out[:n, n:].T
        return out / len(self.images)

    def blocks(self) -> list[np.ndarray]:
        """The data of each label."""
        n, n_moves = self.n_energies, self.slopes.shape[2]
        first = [n + label * n_moves for label in range(len(self.slopes))]
        return [np.concatenate([[label], np.arange(first[label], first[label] + n_moves)]) if label < len(first) else
                np.array([label]) for label in range(n)]


def fit_difference(positions: np.ndarray, energies: np.ndarray, forces: np.ndarray | None,
                   orders: np.ndarray) -> Difference:
    """D from labels: positions (S,N,3) nm, energies (S,) kJ/mol and, or None, forces (S,N,3) kJ/mol/nm.

    orders (G,N): relabellings, a group (`equivalent_atoms.relabellings`).  Two labels are the least.
    """
    level = float(np.mean(energies))
    data = _data(positions, np.asarray(energies) - level, forces, orders)
    spread = np.sqrt(np.square(data.u - data.u.mean(0)).sum(1).mean())
    found = max((_likelihood(data, float(spread * length)) for length in LENGTHS), key=lambda best: best[0])
    return _solved(data, *found[1:], level)


def _solved(data: _Data, length: float, noise: float, level: float) -> Difference:
    """The process of that length and noise, given the data; level: kJ/mol, what their energies lack."""
    covariance = data.covariance(length)
    covariance[np.diag_indices_from(covariance)] += noise * _scales(covariance, data.n_energies) ** 2
    factor, constant = cho_factor(covariance), np.zeros(len(data.y))
    constant[:data.n_energies] = 1.0
    of_constant = cho_solve(factor, constant)
    c = float(of_constant @ data.y / (of_constant @ constant))
    weights = cho_solve(factor, data.y - c * constant)
    return Difference(*_collapsed(data, weights), level + c, length, _left_out(data, factor, of_constant, weights))


def _data(positions, energies, forces, orders) -> _Data:
    n_atoms = positions.shape[1]
    u, vectors = _features(positions)
    n_forces = 0 if forces is None else min(len(u), max(0, MOST_DATA - len(u)) // (3 * n_atoms))
    first, second = np.triu_indices(n_atoms, k=1)
    place = np.zeros((n_atoms, n_atoms), dtype=np.int64)
    place[first, second] = place[second, first] = np.arange(len(first))
    slopes = np.zeros((n_forces, len(first), n_atoms, 3))
    slopes[:, np.arange(len(first)), first] = vectors[:n_forces]
    slopes[:, np.arange(len(first)), second] = -vectors[:n_forces]
    of_forces = np.zeros(0) if forces is None else np.asarray(forces)[:n_forces].ravel()
    return _Data(u, slopes.reshape(n_forces, len(first), 3 * n_atoms), place[orders[:, first], orders[:, second]],
                 np.concatenate([energies, of_forces]))


def _features(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ln r (S,P) of all pairs, and its derivative (S,P,3) by the first atom of each."""
    first, second = np.triu_indices(positions.shape[1], k=1)
    vectors = positions[:, first] - positions[:, second]
    squares = (vectors**2).sum(-1)
    return 0.5 * np.log(squares), vectors / squares[..., None]


def _on_atoms(of_pairs: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Forces (S,N,3) of -dD/du (S,P) and du/dx (S,P,3)."""
    n_atoms = round(0.5 + np.sqrt(0.25 + 2.0 * of_pairs.shape[1]))
    first, second = np.triu_indices(n_atoms, k=1)
    by_pair, forces = of_pairs[..., None] * vectors, np.zeros((len(of_pairs), n_atoms, 3))
    np.add.at(forces, (slice(None), first), by_pair)
    np.subtract.at(forces, (slice(None), second), by_pair)
    return forces


def _scales(covariance: np.ndarray, n_energies: int) -> np.ndarray:
    """Square root of the mean variance of energies, and of forces, for each datum."""
    diagonal, scales = np.diag(covariance), np.ones(len(covariance))
    scales[:n_energies] = np.sqrt(diagonal[:n_energies].mean())
    if len(scales) > n_energies:
        scales[n_energies:] = np.sqrt(diagonal[n_energies:].mean())
    return scales


def _likelihood(data: _Data, length: float) -> tuple[float, float, float]:
    """(largest log likelihood over NOISES, length, noise), the size of the process and the constant eliminated."""
    covariance = data.covariance(length)
    scales = _scales(covariance, data.n_energies)
    values, vectors = eigh(covariance / scales / scales[:, None])
    y, one = data.y / scales, (np.arange(len(scales)) < data.n_energies) / scales
    y, one, best = vectors.T @ y, vectors.T @ one, (-np.inf, length, NOISES[-1])
    for noise in NOISES:
        inverse = 1.0 / (np.maximum(values, 0.0) + noise)
        rest = y - one * ((one * inverse) @ y / ((one * inverse) @ one))
        n_free = len(y) - 1
        size = max((rest * inverse) @ rest / n_free, 1e-300)
        value = 0.5 * (np.log(inverse).sum() - np.log((one * inverse) @ one) - n_free * np.log(size))
        value -= np.log(scales).sum()
        best = max(best, (float(value), length, noise))
    return best


def _collapsed(data: _Data, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres, by_energy and by_forces of a Difference."""
    n, n_images = data.n_energies, len(data.images)
    of_forces = weights[n:].reshape(len(data.slopes), data.slopes.shape[2])
    centres, by_forces = [], []
    for image in data.images:
        pull = np.zeros_like(data.u)
        pull[:len(data.slopes)] = -np.einsum("npa,na->np", data.slopes[:, image], of_forces)
        centres.append(data.u[:, image])
        by_forces.append(pull / n_images)
    return np.concatenate(centres), np.tile(weights[:n] / n_images, n_images), np.concatenate(by_forces)


def _left_out(data: _Data, factor, of_constant: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Error (S,) of each label's energy as all others predict it, constant and all: with B = A^-1 - A^-1 1 1' A^-1 /
    1'A^-1 1 it is the first of (B_nn)^-1 (B y)_n, and B y = A^-1 (y - c)."""
    inverse = cho_solve(factor, np.eye(len(weights)))
    inverse -= np.outer(of_constant, of_constant) / of_constant[:data.n_energies].sum()
    return np.array([np.linalg.solve(inverse[np.ix_(rows, rows)], weights[rows])[0] for rows in data.blocks()])
