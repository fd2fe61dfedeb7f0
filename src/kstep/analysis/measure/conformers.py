"""Which conformer each frame is: wells of the torsions, with equivalent atoms and mirror images counted as one.

A geometry x is described by the wells that its torsions lie in and by the hands of its centres: the signs of

    (a - c) . (b - c) x (d - c)        of three neighbours a, b, d of a centre c,

which no motion short of breaking a bond changes, but which differ between an axial and an equatorial group on the
same ring, or between the two labellings of an isopropyl's methyls.  Exchanging equivalent atoms gives the same geometry
other wells and hands; the mirror image has all angles and hands turned round, and the same energy.  A conformer is the
set of descriptions that one geometry has in this way, named by the largest of them.  Mirror images are joined only
where a file holds both hands of every centre or has none that exchanges do not undo: a named stereocentre keeps its
conformers apart from those of its enantiomer by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kstep.analysis.measure.geometry import symbol
from kstep.analysis.measure.torsions import core_states, find_borders, find_rotamers, well_of
from kstep.dihedrals import dihedrals_deg, wrap_deg
from kstep.hands import hands
from kstep.topology import find_ring_torsions, find_rotatable_torsions, neighbours

CHUNK = 20_000  # frames at a time


def find_conformer_torsions(numbers: np.ndarray, bonds: np.ndarray) -> tuple[np.ndarray, list[str], int]:
    """Torsions (D,4) whose wells make conformers, their labels, and how many, the first of them, are one to a bond.

    The rotatable ones and those of puckering rings; and for a middle atom of theirs that is a nitrogen with three
    neighbours, the angle between two of these, seen along the bond to the third: 180 degrees where they are in a plane,
    one well, and about 120 or -120 where a lone pair points to one side of it or the other.  There are none about a
    carbon of two neighbours, which is straight.
    """
    numbers, table = np.asarray(numbers), neighbours(len(numbers), bonds)
    rows = np.concatenate([find_rotatable_torsions(numbers, bonds), find_ring_torsions(numbers, bonds)]).tolist()
    rows = [row for row in rows if not any(numbers[a] == 6 and len(table[a]) == 2 for a in row[1:3])]
    pyramids: dict[int, list[int]] = {}
    for i, j, k, last in rows:
        for end, middle, before in ((last, k, j), (i, j, k)):
            if numbers[middle] == 7 and len(table[middle]) == 3:
                third = next(a for a in table[middle] if a not in (end, before))
                pyramids.setdefault(middle, [end, before, middle, third])
    n = len(rows)
    rows += pyramids.values()
    return (np.array(rows, dtype=np.int64).reshape(-1, 4),
            ["-".join(f"{symbol(numbers[a])}{a}" for a in row) for row in rows], n)


def _distinct(rows: np.ndarray, *, reversible: bool) -> tuple[np.ndarray, np.ndarray]:
    """The distinct of rows (P,D,4), shape (U,4), and where each is found (P,D); reversible: a b c d = d c b a."""
    flat = rows.reshape(-1, 4)
    if reversible:
        flat = np.where((flat[:, :1] > flat[:, 3:]), flat[:, ::-1], flat)
    found, where = np.unique(flat, axis=0, return_inverse=True)
    return found, where.reshape(rows.shape[:2])


@dataclass(frozen=True)
class Assignment:
    """The conformers of F frames.

    conformer (F,): index of each frame's; images (G,): 2 for a conformer with a mirror image of its own; angles (F,D):
    its torsions in degrees, as the exchange that names the conformer has them; wells: centres (W,) in degrees of every
    torsion; core (F,): the conformer last entered within the cores of all wells, -1 before the first and -2 for one
    that no frame was assigned to; labels, torsions (D,4): of the D torsions.
    """

    conformer: np.ndarray
    images: np.ndarray
    angles: np.ndarray
    wells: list[np.ndarray]
    core: np.ndarray
    labels: list[str]
    torsions: np.ndarray

    def in_order(self, order: np.ndarray) -> Assignment:
        """The same of frames taken in another order (F,)."""
        return replace(self, conformer=self.conformer[order], angles=self.angles[order], core=self.core[order])


class Describer:
    """Angles and hands of frames under every exchange of equivalent atoms.

    torsions (D,4); centres (V,4); orders (P,N): the atoms in the place of 0 ... N-1 after each exchange.
    """

    def __init__(self, torsions: np.ndarray, centres: np.ndarray, orders: np.ndarray):
        self._quadruples, columns = _distinct(orders[:, torsions], reversible=True)
        self._centres, signs = _distinct(orders[:, centres], reversible=False)
        both = np.unique(np.concatenate([columns, signs], axis=1), axis=0)
        own = np.concatenate([columns[0], signs[0]])  # the exchange that changes nothing comes first
        both = np.concatenate([own[None], both[(both != own).any(axis=1)]])
        self.columns, self.signs = both[:, : len(torsions)], both[:, len(torsions):]

    def measure(self, pos: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Angles (F,U) in degrees and hands (F,V') of all images, of frames (F,) of positions (T,N,3)."""
        parts = [frames[start: start + CHUNK] for start in range(0, len(frames), CHUNK)]
        return (np.concatenate([dihedrals_deg(pos[p], self._quadruples) for p in parts]),
                np.concatenate([hands(pos[p], self._centres) for p in parts]))


def assign(pos: np.ndarray, chains: list[np.ndarray], weights: np.ndarray, torsions: np.ndarray, labels: list[str],
           centres: np.ndarray, orders: np.ndarray, *, alone: bool = True) -> Assignment:
    """The conformers of frames of positions (T,N,3) nm.

    chains: frames (T_r,) of each chain in time order, all of which follow each other in what is returned; weights (F,)
    of these frames, from which the wells are found; orders (P,N): see `symmetry.exchanges`, the first of them the
    identity or any other; alone: no surroundings tell a mirror image from the geometry itself.
    """
    frames = np.concatenate(chains)
    describer = Describer(torsions, centres, orders)
    angles, signs = describer.measure(pos, frames)
    mirrored = alone and _mirror_images_belong(signs, describer.signs)
    found = [_wells(angles[:, np.unique(describer.columns[:, d])], weights, mirrored) for d in range(len(torsions))]
    wells, borders = [centres for centres, _ in found], [each for _, each in found]
    descriptions = _Descriptions(describer, wells, mirrored)
    ends = np.cumsum([len(c) for c in chains])[:-1]

    def within(angle, d):
        return well_of(angle, borders[d])

    def entered(angle, d):
        return np.concatenate([core_states(part, wells[d]) for part in np.split(angle, ends)])

    keys, exchange, turned, images = descriptions.of(angles, signs, within)
    names, conformer = np.unique(keys, return_inverse=True)
    held = np.zeros((len(names), 2))
    np.add.at(held, (conformer, images - 1), weights)
    core_keys, *_ = descriptions.of(angles, signs, entered)
    place = np.minimum(np.searchsorted(names, core_keys), len(names) - 1)
    known = names[place] == core_keys
    unknown = np.where(descriptions.is_open(core_keys), -1, -2)
    own = turned[:, None] * np.take_along_axis(angles, describer.columns[exchange], axis=1)
    return Assignment(conformer, 1 + held.argmax(axis=1), own, wells, np.where(known, place, unknown), labels,
                      torsions)


def _mirror_images_belong(signs: np.ndarray, columns: np.ndarray) -> bool:
    """Whether some frame's mirror image, by its hands (F,V'), is the same molecule as some frame."""
    if not columns.shape[1]:
        return True
    rows = np.unique(signs, axis=0)

    def named(hand):
        return {max(tuple((hand * row[c]).tolist()) for c in columns) for row in rows}

    return bool(named(1) & named(-1))


def _wells(angles: np.ndarray, weights: np.ndarray, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
    """Centres and borders (W,) of the wells of all images (F,U) of one torsion, symmetric where mirror images belong;
    no borders of a single one."""
    histogram = np.histogram(angles, 360, (-180.0, 180.0),
                             weights=np.broadcast_to(weights[:, None], angles.shape))[0]
    histogram = histogram + histogram[::-1] if mirrored else histogram
    centres = find_rotamers(histogram)
    if len(centres) < 2:
        return np.zeros(1) if not len(centres) else centres, np.zeros(0)
    if mirrored:  # a peak that lies on two bins is found in the first of them
        partner = -centres[np.abs(wrap_deg(centres[:, None] + centres)).argmin(axis=1)]
        centres = wrap_deg(centres + 0.5 * wrap_deg(partner - centres))
    centres = np.sort(centres)
    return centres, find_borders(histogram, centres)


class _Descriptions:
    """Names of frames: for each exchange, in both hands, the wells and hands as bytes above 0, the largest taken."""

    OPEN = 1  # a torsion that has been in no core yet

    def __init__(self, describer: Describer, wells: list[np.ndarray], mirrored: bool):
        self._describer, self._wells, self._hands = describer, wells, (1, -1) if mirrored else (1,)

    def of(self, angles: np.ndarray, signs: np.ndarray, place_of):
        """Names (F,), exchange (F,), hand (F,) that gives it, and 1 or 2 images (F,); place_of(angle (F,), torsion)."""
        places: dict[tuple[int, int, int], int] = {}
        columns = []
        for hand in self._hands:
            for d, centres in enumerate(self._wells):
                for u in np.unique(self._describer.columns[:, d]):
                    places[hand, d, int(u)] = len(columns)
                    columns.append(place_of(hand * angles[:, u], d) + 1 + self.OPEN if len(centres) > 1
                                   else np.full(len(angles), 1 + self.OPEN))
        n_wells = len(columns)
        table = np.column_stack([*columns, signs + 2]).astype(np.uint8) if columns or signs.shape[1] else (
            np.ones((len(angles), 1), dtype=np.uint8))
        rows, inverse = np.unique(table, axis=0, return_inverse=True)
        names, exchange, turned = None, np.zeros(len(rows), dtype=np.int64), np.ones(len(rows), dtype=np.int64)
        best = {}
        for hand in self._hands:
            for g, (wells, centres) in enumerate(zip(self._describer.columns, self._describer.signs)):
                chosen = rows[:, [places[hand, d, int(u)] for d, u in enumerate(wells)]]
                seen = rows[:, [n_wells + v for v in centres]]
                parts = np.concatenate([chosen, seen if hand == 1 else 4 - seen,
                                        np.ones((len(rows), 1), dtype=np.uint8)], axis=1)
                key = np.ascontiguousarray(parts).view(f"S{parts.shape[1]}").ravel()
                best[hand] = key if hand not in best else np.where(key > best[hand], key, best[hand])
                if names is None:
                    names = key
                    continue
                better = key > names
                names, exchange = np.where(better, key, names), np.where(better, g, exchange)
                turned = np.where(better, hand, turned)
        images = np.full(len(rows), 1) if len(best) < 2 else 1 + (best[1] != best[-1])
        inverse = inverse.ravel()
        return names[inverse], exchange[inverse], turned[inverse], images[inverse]

    def is_open(self, names: np.ndarray) -> np.ndarray:
        """Whether (F,) some torsion has been in no core yet."""
        n = len(self._wells)
        if not n:
            return np.zeros(len(names), dtype=bool)
        return (names.view(np.uint8).reshape(len(names), -1)[:, :n] == self.OPEN).any(axis=1)
