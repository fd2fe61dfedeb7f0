"""Free energies along torsions, angles and distances, with errors from independent chains.

    F(q) = -kT ln p(q),   p: the density of q without restraints, under the weights of `umbrella.Samples`

F is of the density of q itself: along a distance r it holds the -2 kT ln r of the shell, which a potential of mean
force between free particles has taken out.  F is 0 where it is lowest, bins that one chain alone speaks for left out:
a frame far up a restraint weighs much.

The error of F in a bin is that of -kT ln p there: a jackknife that leaves chains out (of every window some, and MBAR is
solved again), times Student's factor for so few groups, so that 68 % lie within one error.  Quenouille, Biometrika 43,
353 (1956).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.signal import find_peaks
from scipy.special import ndtr, stdtrit

from kstep.analysis.measure.geometry import on_circle, symbol
from kstep.analysis.measure.statistics import split_r_hat
from kstep.analysis.measure.umbrella import Samples
from kstep.errors import UserError
from kstep.restraints import UNITS, parse_atoms, parse_coordinate, values_of
from kstep.topology import find_rotatable_torsions
from kstep.units import kT

BINS = 36  # of a circle: 10 degrees
MOST_R_HAT = 1.05
MOST_OF_ONE = 0.7  # of the weight in a bin, that may be one group of chains' where the bin is known
LEAST_PROMINENCE_KT = 0.5  # of a well or a barrier, and twice the error


@dataclass(frozen=True)
class Coordinate:
    """What a free energy is along; kind: distance, angle or dihedral; atoms are counted from 0."""

    kind: str
    atoms: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Coordinate:
        """Of 'dihedral:0-1-2-3' or 'distance:3-7'; ValueError for what is none."""
        return cls(*parse_coordinate(text))

    @classmethod
    def of_kind(cls, kind: str, text: str) -> Coordinate:
        """Of a kind and '0-1-2-3'."""
        return cls(kind, parse_atoms(kind, text))

    @property
    def name(self) -> str:
        """'dihedral 0-1-2-3'."""
        return f"{self.kind} {'-'.join(map(str, self.atoms))}"

    @property
    def unit(self) -> str:
        """nm or deg."""
        return UNITS[self.kind]

    @property
    def is_circular(self) -> bool:
        """Whether its first bin is beside its last."""
        return self.kind == "dihedral"

    def label(self, numbers: np.ndarray) -> str:
        """'C0-C1-C2-C3', by the elements (N,) of the molecule."""
        return "-".join(f"{symbol(numbers[a])}{a}" for a in self.atoms)

    def values(self, samples: Samples) -> np.ndarray:
        """Its value (S,) at every frame, nm or deg; UserError for atoms that the molecule has not."""
        if max(self.atoms) >= len(samples.numbers):
            raise UserError(f"{self.name} names atom {max(self.atoms)}, but {samples.molecule} has atoms 0 to "
                            f"{len(samples.numbers) - 1}, hydrogens included")
        return values_of(self.kind, self.atoms, samples.positions)

    def edges(self, values: np.ndarray, bins: int) -> np.ndarray:
        """Borders (B+1,) of bins: of the whole circle, or of what values (S,) span."""
        if self.is_circular:
            return np.linspace(-180.0, 180.0, bins + 1)
        low, high = float(values.min()), float(values.max())
        return np.linspace(low, high if high > low else low + 1e-3, bins + 1)


@dataclass(frozen=True)
class FreeEnergy:
    """F on a grid of one coordinate or of two.

    edges: borders of the bins of each; density (B,) or (B,C): p, 1/unit of each; free_energy of that shape, kJ/mol,
    infinite in a bin without frames; error of that shape, None with too few chains; known, of that shape: bins whose
    weight is not one chain's alone, over which p is normalised; deleted (G,...): p without each group of chains;
    r_hat: split-R-hat of the chains (of the worst window); frames, and effective_frames, of which each weighs alike;
    warnings: what to doubt, in sentences.
    """

    coordinates: tuple[Coordinate, ...]
    labels: tuple[str, ...]
    edges: tuple[np.ndarray, ...]
    temperature_K: float
    density: np.ndarray
    known: np.ndarray
    deleted: np.ndarray | None
    r_hat: float
    frames: int
    effective_frames: float
    windows: int
    overlap: np.ndarray
    warnings: tuple[str, ...]

    @property
    def centres(self) -> tuple[np.ndarray, ...]:
        """Middles of the bins of each coordinate."""
        return tuple(0.5 * (e[1:] + e[:-1]) for e in self.edges)

    @property
    def free_energy(self) -> np.ndarray:
        """-kT ln p, 0 at `lowest`."""
        with np.errstate(divide="ignore"):
            return -kT(self.temperature_K) * (np.log(self.density) - np.log(self.density[self.lowest]))

    @property
    def lowest(self) -> tuple[int, ...]:
        """The bin of the greatest density among those that are known."""
        place = np.argmax(np.where(self.known, self.density, 0.0))
        return tuple(int(i) for i in np.unravel_index(place, self.density.shape))

    @property
    def error(self) -> np.ndarray | None:
        """Standard error of -kT ln p, infinite in a bin without frames."""
        if self.deleted is None:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = self._jackknife(self.deleted) / self.density
        return np.where(self.density > 0, kT(self.temperature_K) * relative, np.inf)

    def difference(self, a, b) -> tuple[float, float | None]:
        """F of bin a less F of bin b, and its error, which knows that both come from the same frames."""
        value = float(self.free_energy[a] - self.free_energy[b])
        if self.deleted is None or not np.isfinite(value):
            return value, None
        of_logs = self.deleted[(slice(None), *np.atleast_1d(a))] / self.density[a] - (
            self.deleted[(slice(None), *np.atleast_1d(b))] / self.density[b])
        return value, kT(self.temperature_K) * float(self._jackknife(of_logs))

    @staticmethod
    def _jackknife(deleted: np.ndarray) -> np.ndarray:
        """Standard error (...) from estimates (G,...) without each of G groups."""
        n = len(deleted)
        spread = (n - 1) / n * ((deleted - deleted.mean(axis=0)) ** 2).sum(axis=0)
        return np.sqrt(spread) * stdtrit(n - 1, ndtr(1.0))

    def extrema(self) -> tuple[list[dict], list[dict]]:
        """Wells and barriers of one coordinate: {"at", "free_energy", "error"} relative to the lowest bin.

        They stand out by half a kT, and by twice the median error and their own.  None is listed in a bin that is not
        known: one without frames is a barrier, as high as a single frame would put it and higher than both its sides,
        and one that a single chain saw is no lower than both its sides.
        """
        f, error = self.free_energy, self.error
        (lowest,), known = self.lowest, self.known
        least, own = LEAST_PROMINENCE_KT * kT(self.temperature_K), np.zeros(len(f))
        if error is not None:
            least, own = max(least, 2.0 * float(np.median(error[known]))), np.where(known, 2.0 * error, 0.0)
        beside = _higher_side(f, known, self.coordinates[0].is_circular)
        one_frame = kT(self.temperature_K) * np.log(max(1.0, self.effective_frames * self.density[lowest] * (
            self.edges[0][lowest + 1] - self.edges[0][lowest])))
        unseen = np.maximum(one_frame, beside + least)
        high = np.where(known, f, np.maximum(beside, np.where(np.isfinite(f), f, unseen)))
        n, circular = len(f), self.coordinates[0].is_circular
        walls = [high.max() + 20 * least]
        tiled = np.tile(high, 3) if circular else np.concatenate([walls, high, walls])
        middle = slice(n, 2 * n) if circular else slice(1, n + 1)

        def found(series) -> list[int]:
            peaks, about = find_peaks(series, prominence=least)
            inside = zip((peaks - middle.start).tolist(), about["prominences"].tolist())
            return [p for p, prominence in inside if 0 <= p < n and known[p] and prominence >= own[p]]

        def told(bin_: int) -> dict:
            value, off = self.difference(bin_, lowest)
            return {"at": float(self.centres[0][bin_]), "free_energy": value, "error": off}

        return [told(b) for b in found(-tiled)], [told(b) for b in found(tiled)]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON: None where a bin has no frames."""
        def plain(array):
            return None if array is None else np.where(np.isfinite(array), array, np.nan).astype(object).tolist()

        def without_nan(value):
            if isinstance(value, list):
                return [without_nan(one) for one in value]
            return None if isinstance(value, float) and not np.isfinite(value) else value

        out = {"coordinates": [{"kind": c.kind, "atoms": list(c.atoms), "label": label, "unit": c.unit,
                                "centres": centres.tolist()}
                               for c, label, centres in zip(self.coordinates, self.labels, self.centres)],
               "of": "-kT ln of the density of the coordinates, without a Jacobian taken out; lowest bin 0",
               "unit": "kJ/mol", "temperature_K": self.temperature_K,
               "free_energy": without_nan(plain(self.free_energy)), "error": without_nan(plain(self.error)),
               "density": self.density.tolist(), "known": self.known.tolist(),
               "split_r_hat": without_nan(float(self.r_hat)), "frames": self.frames,
               "effective_frames": self.effective_frames, "windows": self.windows,
               "overlap": self.overlap.tolist() if self.windows > 1 else None, "warnings": list(self.warnings)}
        if len(self.coordinates) == 1:
            wells, barriers = self.extrema()
            out |= {"wells": wells, "barriers": barriers}
        return out


def _higher_side(f: np.ndarray, known: np.ndarray, circular: bool) -> np.ndarray:
    """For every bin (B,), the higher of the nearest known values on its two sides."""
    n = len(f)
    tiled, there = np.tile(f, 3), np.flatnonzero(np.tile(known, 3))
    if not circular:
        there = there[(there >= n) & (there < 2 * n)]
    place = np.searchsorted(there, np.arange(n, 2 * n))
    left, right = there[np.clip(place - 1, 0, len(there) - 1)], there[np.clip(place, 0, len(there) - 1)]
    return np.maximum(tiled[left], tiled[right])


def rotatable(samples: Samples) -> list[Coordinate]:
    """The rotatable torsions of the molecule, methyls apart."""
    return [Coordinate("dihedral", tuple(int(a) for a in atoms))
            for atoms in find_rotatable_torsions(samples.numbers, samples.bonds)]


def free_energy(samples: Samples, *coordinates: Coordinate, bins: int = BINS) -> FreeEnergy:
    """F along one coordinate, or on the plane of two, with `bins` bins of each."""
    values = [c.values(samples) for c in coordinates]
    edges = tuple(c.edges(v, bins) for c, v in zip(coordinates, values))
    places = [np.clip(np.searchsorted(e, v, side="right") - 1, 0, bins - 1) for e, v in zip(edges, values)]
    flat = np.ravel_multi_index(places, (bins,) * len(places))
    size = float(np.prod([e[1] - e[0] for e in edges]))

    def density(weights: np.ndarray) -> np.ndarray:
        return np.bincount(flat, weights, bins ** len(places)).reshape((bins,) * len(places)) / size

    whole, deleted, warnings = density(samples.weights), None, samples.warnings()
    known = whole > 0
    if samples.groups is None:
        warnings.append("fewer than four independent chains: there are no errors; run more replicas")
    else:
        groups = np.unique(samples.groups)
        of_one = np.max([density(samples.weights * (samples.groups == g)) for g in groups], axis=0)
        several = known & (of_one <= MOST_OF_ONE * whole)
        known = several if several.any() else known
        deleted = np.array([density(samples.weights_without(g)) for g in groups])
        deleted /= (deleted[:, known].sum(axis=1) * size).reshape(-1, *[1] * len(places))
    whole = whole / (whole[known].sum() * size)
    r_hat, worst = _agreement(samples, coordinates, values)
    if not r_hat <= MOST_R_HAT:
        where = f" in window {worst}" if samples.n_windows > 1 else ""
        warnings.append(f"not converged: chains do not agree{where}, split-R-hat {r_hat:.2f}")
    return FreeEnergy(coordinates, tuple(c.label(samples.numbers) for c in coordinates), edges, samples.temperature_K,
                      whole, known, deleted, r_hat, len(samples), samples.effective_frames,
                      samples.n_windows, samples.overlap, tuple(warnings))


def _agreement(samples: Samples, coordinates, values) -> tuple[float, int]:
    """Split-R-hat of the coordinates between the chains of a window, the worst of all, and whose it is."""
    columns = np.concatenate([on_circle(v[:, None]) if c.is_circular else v[:, None]
                              for c, v in zip(coordinates, values)], axis=1)
    worst = (-np.inf, 0)
    for k in range(samples.n_windows):
        rows = [np.flatnonzero((samples.window == k) & (samples.chain == c))
                for c in np.unique(samples.chain[samples.window == k])]
        weights = None
        if samples.n_windows == 1 and np.ptp(samples.weights) > 0:
            weights = [samples.weights[r] * len(samples) for r in rows]
        found = float(np.nan_to_num(split_r_hat([columns[r] for r in rows], weights), nan=np.inf).max())
        worst = max(worst, (found, k))
    return worst
