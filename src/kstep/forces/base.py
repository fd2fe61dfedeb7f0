"""The contract of every source of truth, and the guards that stand before each true call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.data import atomic_numbers, covalent_radii

from kstep.config import BaselineConfig, ChargedConfig
from kstep.errors import PhysicsError, UserError
from kstep.units import NM_PER_ANGSTROM

MIN_DISTANCE_NM = 0.05
WATER_NM = ((0.0, 0.0, 0.0), (0.0757, 0.0, 0.0586), (-0.0757, 0.0, 0.0586))
NO_FORCES = "this true potential has no forces; ask for its energy alone"
NOT_FINITE = "the true potential returned a number that is not finite"
SYMBOLS = {number: symbol for symbol, number in atomic_numbers.items()}


class Physics:
    """The true potential of one molecule.

    A backend implements `_compute`, and `_compute_energy` where an energy alone is cheaper; only
    `energy_and_forces` and `energy` call them, and that is where true calls are counted and geometries are
    checked, so nothing bypasses either.  One whose SCF may begin at a replica's last one keeps that in `_last`.
    A method whose forces cannot be had, or not at a price that anyone would pay, says so in `has_forces`, and
    implements `_compute_energy` alone.
    """

    has_forces: bool = True

    def __init__(self, numbers: np.ndarray, masses: np.ndarray):
        self.numbers = np.asarray(numbers, dtype=np.int64)
        self.masses = np.asarray(masses, dtype=np.float64)
        self._true_calls = 0
        self._last: dict[int, Any] = {}  # of each slot
        self._warm_start = False
        self._said: dict[str, np.ndarray] = {}  # by the last true call, besides energy and forces
        radii = covalent_radii[self.numbers] * NM_PER_ANGSTROM
        self._closest_nm = np.maximum(MIN_DISTANCE_NM, 0.5 * (radii[:, None] + radii[None, :]))
        np.fill_diagonal(self._closest_nm, 0.0)

    @property
    def true_calls(self) -> int:
        """How many times the true potential was asked, failures included."""
        return self._true_calls

    def _compute(self, positions: np.ndarray, slot: int) -> tuple[float, np.ndarray]:
        """Energy (kJ/mol) and forces (N,3) (kJ/mol/nm) at positions (N,3) (nm)."""
        raise NotImplementedError

    def _compute_energy(self, positions: np.ndarray, slot: int) -> float:
        """Energy (kJ/mol) at positions (N,3) (nm)."""
        return self._compute(positions, slot)[0]

    def extra(self) -> dict[str, np.ndarray]:
        """Further answers of the true call that just succeeded, by name; of the same shapes at every call.

        "dipole" (3,) e nm, where the backend knows it (`dipole`).
        """
        return self._said

    def dipole(self, positions: np.ndarray, about_origin: np.ndarray, charge: float) -> np.ndarray:
        """The dipole moment (3,) in e nm about the centre of mass, of one about the origin of positions (N,3) nm.

        mu = mu_0 - q R, which of a neutral molecule is mu_0, and of an ion no longer depends on where it is.
        """
        return np.asarray(about_origin, dtype=np.float64) - charge * (self.masses @ positions) / self.masses.sum()

    def forget(self) -> None:
        """Drop whatever was kept from earlier geometries (SCF guesses)."""
        self._last.clear()

    def history(self, slot: int) -> np.ndarray:
        """What a slot's next SCF begins with, for `remember` in another process; empty where it begins afresh."""
        return np.asarray(self._last.get(slot, ()))

    def remember(self, slot: int, history: np.ndarray) -> None:
        """Let a slot's next SCF begin with the `history` of another process, bit for bit."""
        if len(history):
            self._last[slot] = history
        else:
            self._last.pop(slot, None)

    def energy_and_forces(self, positions: np.ndarray, slot: int = 0) -> tuple[float, np.ndarray]:
        """Energy in kJ/mol and forces (N,3) in kJ/mol/nm at positions (N,3) in nm.

        `slot` names the replica, so that a backend may start its SCF from that replica's last
        one.  Raises PhysicsError when the geometry is not one the method can treat or the SCF
        does not converge: never a number in its place; UserError where the method has no forces, which is no true call.
        """
        if not self.has_forces:
            raise UserError(NO_FORCES)
        energy, forces = self._compute(self._admit(positions), slot)
        if np.shape(forces) != (len(self.numbers), 3):  # NumPy would spread (3,) over all atoms
            raise PhysicsError(f"the true potential returned forces of shape {np.shape(forces)}, expected "
                               f"{(len(self.numbers), 3)}")
        if not np.isfinite(energy) or not np.isfinite(forces).all():
            raise PhysicsError(NOT_FINITE)
        return float(energy), forces

    def energy(self, positions: np.ndarray, slot: int = 0) -> float:
        """The same energy, one true call as well, without the price of forces where they have one."""
        energy = float(self._compute_energy(self._admit(positions), slot))
        if not np.isfinite(energy):
            raise PhysicsError(NOT_FINITE)
        return energy

    def batch(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energies (S,) in kJ/mol and forces (S,N,3) in kJ/mol/nm of positions (S,N,3) in nm, a true call each.

        One that `energy_and_forces` would raise PhysicsError for has NaN.
        """
        energy, forces = np.full(len(positions), np.nan), np.full(np.shape(positions), np.nan)
        for i, geometry in enumerate(positions):
            with contextlib.suppress(PhysicsError):
                energy[i], forces[i] = self.energy_and_forces(geometry)
        return energy, forces

    def _admit(self, positions) -> np.ndarray:
        """Count a true call and check its geometry."""
        positions = np.array(positions, dtype=np.float64)
        self._true_calls += 1
        check_geometry(self.numbers, positions, self._closest_nm)
        return positions


@contextmanager
def as_physics_error(what: str) -> Iterator[None]:
    """Every library has errors of its own; a run knows PhysicsError: 'the xTB calculation failed: ...'."""
    try:
        yield
    except PhysicsError:
        raise
    except Exception as error:
        raise PhysicsError(f"{what} failed: {' '.join(str(error).split())}") from None


@dataclass(frozen=True)
class KnownEnergy:
    """What a working installation says of a geometry, by default of water: energy in kJ/mol, right to tolerance.

    keywords() are those of the backend's constructor; numbers (N,), positions (N,3) in nm.
    """

    energy: float
    keywords: Callable[[], dict[str, Any]] = dict
    numbers: tuple[int, ...] = (8, 1, 1)
    positions: tuple[tuple[float, float, float], ...] = WATER_NM
    tolerance: float = 0.01


@dataclass(frozen=True)
class Backend:
    """One source of truth, as its file describes it in `BACKEND`; a line of `forces.BACKENDS` names that.

    physics(numbers, masses, **keywords) is built from a molecule and a config of class `config` (None: it has no YAML
    of its own).  Its keywords: every key of the config that is not one of all configs; charge and multiplicity where
    the config has electrons; system_xml where it `needs_system`; warm_start where its SCF `keeps_history`; and what
    more(molecule, config) says besides, or in place of a key.
    """

    physics: type[Physics]
    config: type[BaselineConfig] | None
    check: Callable[[Any, Any], None] = lambda spec, molecule: spec.build()  # UserError for what cannot be computed
    install: str = "it comes with kstep"  # how to get what it needs
    packages: tuple[str, ...] = ()  # whose versions tell which one it is
    more: Callable[[Any, Any], dict[str, Any]] = lambda molecule, config: {}
    method_keys: str = ""  # that say which energy surface it is, where `method` is no key; "": all of its own
    energy_is_cheaper: bool = False  # an energy alone, by much, than one with forces
    has_forces: Callable[[Mapping[str, Any]], bool] = lambda settings: True  # of a physics with these keywords
    keeps_history: bool = False
    needs_system: bool = False
    is_core: bool = True  # what every installation has
    known: KnownEnergy | None = None

    @property
    def has_electrons(self) -> bool:
        """Whether its config is one that `load_qm_config` reads."""
        return self.config is not None and issubclass(self.config, ChargedConfig)

    @property
    def own_keys(self) -> list[str]:
        """Keys of its config that are not those of every config."""
        return [key for key in self.config.model_fields if key != "backend" and key not in ChargedConfig.model_fields]

    def keywords(self, molecule, config) -> dict[str, Any]:
        """The constructor's keywords that config and molecule (None where there is none) decide."""
        return {key: getattr(config, key) for key in self.own_keys} | self.more(molecule, config)


def check_geometry(numbers: np.ndarray, positions: np.ndarray, closest_nm: np.ndarray) -> None:
    """Refuse a geometry no backend should see: wrong shape, not finite, atoms on top of each other."""
    if positions.shape != (len(numbers), 3):
        raise PhysicsError(f"positions have shape {positions.shape}, expected {(len(numbers), 3)}")
    if not np.isfinite(positions).all():
        raise PhysicsError("positions hold NaN or infinity")
    distance = np.linalg.norm(positions[:, None] - positions[None, :], axis=-1)
    if (distance < closest_nm).any():
        i, j = np.argwhere(distance < closest_nm)[0]
        raise PhysicsError(f"atoms {i} ({SYMBOLS[int(numbers[i])]}) and {j} ({SYMBOLS[int(numbers[j])]}) are "
                           f"{distance[i, j] * 10:.3f} A apart, closer than {closest_nm[i, j] * 10:.2f} A")


def check_start(physics: Physics, conformers: np.ndarray) -> None:
    """Raise UserError when the true potential refuses one of the conformers (C,N,3) nm."""
    for number, positions in enumerate(conformers):
        try:
            physics.energy_and_forces(positions) if physics.has_forces else physics.energy(positions)
        except PhysicsError as error:
            raise UserError(f"the true physics refuses conformer {number} of the molecule: {error}") from None


def check_electrons(numbers: np.ndarray, charge: int, multiplicity: int) -> None:
    """Refuse a charge and multiplicity that no electron count can have."""
    electrons = int(np.sum(numbers)) - charge
    if electrons < 1:
        raise UserError(f"charge {charge:+d} leaves no electrons on a molecule with {int(np.sum(numbers))} protons")
    if abs(charge) > max(4, len(numbers)):
        raise UserError(f"charge {charge:+d} is not plausible for {len(numbers)} atoms; check charge in the config")
    if multiplicity < 1 or multiplicity > electrons + 1 or (electrons + multiplicity) % 2 == 0:
        raise UserError(f"{electrons} electrons (charge {charge:+d}) cannot have spin multiplicity {multiplicity}; "
                        f"use {'an odd' if electrons % 2 == 0 else 'an even'} one")


def check_elements(numbers: np.ndarray, known: int | Sequence[int], method: str) -> None:
    """Refuse elements a method has no parameters for; known: up to which, or a list, it has."""
    has = range(1, known + 1) if isinstance(known, int) else known
    wrong = sorted({int(z) for z in numbers} - {*has})
    if wrong:
        names = ", ".join(SYMBOLS.get(z, str(z)) for z in wrong)
        are = f"H to {SYMBOLS[known]}" if isinstance(known, int) else ", ".join(SYMBOLS[z] for z in sorted(has))
        raise UserError(f"{method} has no parameters for {names}; its elements are {are}")
