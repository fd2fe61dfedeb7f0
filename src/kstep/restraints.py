"""Restraints: harmonic potentials W on distances, angles and dihedrals that are added to truth and network alike.

    distance   k/2 (r - r_0)^2               k in kJ/mol/nm^2, r_0 in nm
    angle      k/2 (theta - theta_0)^2       k in kJ/mol/rad^2, theta_0 in degrees
    dihedral   k (1 - cos(phi - phi_0))      k in kJ/mol/rad^2, phi_0 in degrees

A dihedral lives on a circle.  k/2 of the squared wrapped difference would have a kink opposite of phi_0, over which no
timestep keeps the energy; 1 - cos is smooth everywhere, and the same near phi_0, with the same k.  Its most is 2 k.

Since W is added to both, U_true - U_net is what it is without: a network's labels, fits and errors know nothing of W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kstep.dihedrals import dihedrals_deg
from kstep.errors import UserError, did_you_mean

Kind = Literal["distance", "angle", "dihedral"]
N_ATOMS = {"distance": 2, "angle": 3, "dihedral": 4}
UNITS = {"distance": "nm", "angle": "deg", "dihedral": "deg"}
ALLOWED = {"distance": (0.0, 1000.0), "angle": (0.0, 180.0), "dihedral": (-360.0, 360.0)}  # centres
TINY = 1e-12  # nm^2 and nm^4: keeps the force of three atoms in a line a number, where an angle has no gradient

Strict = Annotated[float, Field(allow_inf_nan=False)]


class Restraint(BaseModel):
    """One of them; atoms are counted from 0, centre and k are in the units of its kind, see above."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    atoms: tuple[Annotated[int, Field(ge=0, strict=True)], ...]
    centre: Strict
    k: Annotated[float, Field(gt=0, allow_inf_nan=False)]

    @model_validator(mode="after")
    def _makes_sense(self):
        check_atoms(self.kind, self.atoms)
        low, high = ALLOWED[self.kind]
        if not low <= self.centre <= high:
            raise ValueError(f"the centre of a restrained {self.kind} lies between {low:g} and {high:g} "
                             f"{UNITS[self.kind]}, not at {self.centre:g}")
        return self

    def __str__(self) -> str:
        atoms = "-".join(map(str, self.atoms))
        return f"{self.kind} {atoms} at {self.centre:g} {UNITS[self.kind]} (k = {self.k:g})"


def check_atoms(kind: str, atoms: Sequence[int]) -> None:
    """ValueError unless these are as many different atoms as a coordinate of this kind takes."""
    wanted = N_ATOMS[kind]
    if len(atoms) != wanted or len(set(atoms)) != wanted:
        raise ValueError(f"{'an' if kind == 'angle' else 'a'} {kind} is one of {wanted} different atoms, not of "
                         f"{'-'.join(map(str, atoms)) or 'none'}")


def parse_atoms(kind: str, text: str) -> tuple[int, ...]:
    """Atoms of '0-1-2-3', counted from 0; ValueError for what is none."""
    words = text.split("-")
    if not all(word.isdecimal() and word.isascii() for word in words):
        raise ValueError(f"'{text}' is no list of atoms; write their numbers, counted from 0, such as "
                         f"{'-'.join(map(str, range(N_ATOMS[kind])))}")
    atoms = tuple(int(word) for word in words)
    check_atoms(kind, atoms)
    return atoms


def parse_coordinate(text: str) -> tuple[str, tuple[int, ...]]:
    """Kind and atoms of 'dihedral:0-1-2-3'; ValueError for what is none."""
    kind, _, atoms = text.partition(":")
    if kind not in N_ATOMS:
        raise ValueError(f"'{kind}' is none of {', '.join(N_ATOMS)}{did_you_mean(kind, N_ATOMS)}")
    return kind, parse_atoms(kind, atoms)


def parse_restraint(text: str) -> Restraint:
    """The Restraint of 'dihedral:0-1-2-3:60:200' (kind, atoms, centre, k); ValueError for what is none."""
    parts = text.split(":")
    if len(parts) != 4:
        raise ValueError(f"'{text}' must read kind:atoms:centre:k, such as dihedral:0-1-2-3:60:200")
    kind, atoms = parse_coordinate(":".join(parts[:2]))
    try:
        centre, k = float(parts[2]), float(parts[3])
    except ValueError:
        raise ValueError(f"'{text}': centre and k must be numbers, such as dihedral:0-1-2-3:60:200") from None
    try:
        return Restraint(kind=kind, atoms=atoms, centre=centre, k=k)  # type: ignore[arg-type]  # one of N_ATOMS
    except ValidationError as failure:
        problem = failure.errors()[0]
        key = f"{problem['loc'][0]}: " if problem["loc"] else ""
        raise ValueError(f"'{text}': {key}{problem['msg'].removeprefix('Value error, ')}") from None


def check_restraints(restraints: Sequence[Restraint], n_atoms: int) -> None:
    """UserError for a restraint on an atom that a molecule of n_atoms has not."""
    for restraint in restraints:
        if max(restraint.atoms) >= n_atoms:
            raise UserError(f"the restraint on {restraint} names atom {max(restraint.atoms)}, but the molecule has "
                            f"atoms 0 to {n_atoms - 1}, hydrogens included")


def read_restraints(stored: Any, where: str = "the metadata") -> tuple[Restraint, ...]:
    """The Restraints that the metadata of a file hold (None: there are none); UserError for what are none."""
    try:
        return tuple(Restraint.model_validate(one) for one in stored or ())
    except (ValidationError, TypeError):
        raise UserError(f"{where}: its restraints are no list of kind, atoms, centre and k; run its stage again"
                        ) from None


def values_of(kind: str, atoms: Sequence[int], positions: np.ndarray) -> np.ndarray:
    """A distance in nm, or an angle or dihedral (-180 ... 180) in degrees, (S,) of positions (S,N,3) nm."""
    x = positions[:, list(atoms)]
    if kind == "dihedral":
        return dihedrals_deg(x, np.array([[0, 1, 2, 3]]))[:, 0]
    if kind == "distance":
        return np.linalg.norm(x[:, 1] - x[:, 0], axis=1)
    u, v = x[:, 0] - x[:, 1], x[:, 2] - x[:, 1]
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(u, v), axis=1), np.einsum("si,si->s", u, v)))


def mirrored_alike(restraints: Sequence[Restraint]) -> bool:
    """Whether W of a geometry and of its mirror image are one number: not of a dihedral away from 0 and 180 degrees."""
    return not any(r.kind == "dihedral" and r.centre % 180.0 for r in restraints)


class Bias:
    """The sum W of some restraints; of none it is 0."""

    def __init__(self, restraints: Sequence[Restraint]):
        self.restraints = tuple(restraints)

    def energy(self, positions: np.ndarray) -> np.ndarray:
        """W (R,) in kJ/mol at positions (R,N,3) nm."""
        return self.energy_and_forces(positions)[0]

    def energy_and_forces(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """W (R,) in kJ/mol and its forces (R,N,3) in kJ/mol/nm at positions (R,N,3) nm.

        Where a dihedral or an angle has no gradient, its atoms being in a line, the force stays finite; positions that
        are not finite give what is not.
        """
        energy, forces = np.zeros(len(positions)), np.zeros(positions.shape)
        for restraint in self.restraints:
            atoms = list(restraint.atoms)
            x = positions[:, atoms].transpose(1, 2, 0)  # one row of components for each atom: few and long operations
            with np.errstate(all="ignore"):
                own, slope = _TERMS[restraint.kind](x, restraint.centre, restraint.k)
            energy += own
            for atom, pull in zip(atoms, slope):
                forces[:, atom] -= pull.T
        return energy, forces


def _dot(p, q):
    return p[0] * q[0] + p[1] * q[1] + p[2] * q[2]


def _cross(p, q):
    return np.stack([p[1] * q[2] - p[2] * q[1], p[2] * q[0] - p[0] * q[2], p[0] * q[1] - p[1] * q[0]])


def _distance(x, centre, k):
    """Energy (R,) and gradient, (3,R) of each atom, at x (2,3,R)."""
    bond = x[1] - x[0]
    squared = _dot(bond, bond)
    off = np.sqrt(squared) - centre
    slope = k * off / np.sqrt(np.maximum(squared, TINY)) * bond
    return 0.5 * k * off**2, (-slope, slope)


def _bend(x, centre, k):
    """Energy (R,) and gradient, (3,R) of each atom, at x (3,3,R)."""
    u, v = x[0] - x[1], x[2] - x[1]
    normal = _cross(u, v)
    squared = _dot(normal, normal)
    off = np.arctan2(np.sqrt(squared), _dot(u, v)) - np.radians(centre)
    pull = k * off / np.sqrt(np.maximum(squared, TINY**2))
    first, last = pull / _dot(u, u) * _cross(u, normal), -pull / _dot(v, v) * _cross(v, normal)
    return 0.5 * k * off**2, (first, -first - last, last)


def _dihedral(x, centre, k):
    """Energy (R,) and gradient, (3,R) of each atom, at x (4,3,R).

    That of phi: Blondel & Karplus, J. Comput. Chem. 17, 1132 (1996).
    """
    f, g, h = x[0] - x[1], x[1] - x[2], x[3] - x[2]
    a, b, axis = _cross(f, g), _cross(h, g), np.sqrt(_dot(g, g))
    off = np.arctan2(_dot(_cross(b, a), g) / axis, _dot(a, b)) - np.radians(centre)
    pull = k * np.sin(off)
    per_a = pull / np.maximum(_dot(a, a), TINY**2) * a
    per_b = pull / np.maximum(_dot(b, b), TINY**2) * b
    first, last = -axis * per_a, axis * per_b
    shift = _dot(f, g) / axis * per_a - _dot(h, g) / axis * per_b
    return k * (1.0 - np.cos(off)), (first, shift - first, -shift - last, last)


_TERMS = {"distance": _distance, "angle": _bend, "dihedral": _dihedral}
