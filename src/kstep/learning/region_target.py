"""A QM/MM system as a target: the network learns of its QM region what point charges cannot say.

What the QM itself says is divided in two: the coupling (learning/coupling_fit.py), fitted first, takes what point
charges can say of QM and MM together, and the network learns the rest from the capped region alone:

    E_label = E_QM(x_capped; field) - E_coupling,   F_label likewise

MM enters the true and the cheap potential alike, and is in no label.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from kstep.forces.pool import Truth
from kstep.forces.qmmm.system import Environment
from kstep.learning.coupling_fit import fit_coupling
from kstep.learning.learn_config import LearnConfig
from kstep.learning.target import Target
from kstep.molecules.molecule import Molecule
from kstep.runs.network_dynamics import NetworkFrame
from kstep.runs.qmmm_network import embedded_recipe
from kstep.runs.settings import NetworkRecipe
from kstep.training.labels import Labels

REGION_MOVES = 2  # each judged by itself: a chain stays where it was only if both were refused


@dataclass(frozen=True, kw_only=True)
class RegionTarget(Target):
    """molecule: all atoms; region: the capped QM region; spec: of backend qmmm; inner_dt_fs: production's timestep;
    length_fs: of the proposals that production will make; climbs: on a ladder that is still to be chosen.

    Every timestep of a move costs a call of the environment, so that none is longer than production's.
    """

    region: Molecule
    length_fs: float
    inner_dt_fs: float | None = None  # None: as learning a molecule
    climbs: bool = False
    about: dict = field(default_factory=dict)

    @property
    def labelled(self) -> Molecule:
        """The capped region."""
        return self.region

    @property
    def n_charges(self) -> int:
        """The MM atoms whose charges the QM feels."""
        return len(self.environment.field_atoms)

    @property
    def facts(self) -> dict:
        """What a resumed learning must share."""
        return {**super().facts, "length_fs": self.length_fs, "climbs": self.climbs, **self.about}

    @property
    def recipe(self) -> NetworkRecipe:
        """How dynamics builds the cheap potential of all atoms."""
        return embedded_recipe(self.spec, self.method)

    @cached_property
    def environment(self) -> Environment:
        """What is around the region."""
        return Environment.of(self.spec)

    def rungs_K(self, config: LearnConfig) -> tuple[float, ...]:
        """The temperatures of the sampling, or of the ladder that it may choose: rungs above cost the environment's
        calls, and a ladder heats the solute alone (`qmmm_network.EmbeddedNetwork`)."""
        return super().rungs_K(config) if self.climbs else self.temperatures_K

    def dt_fs(self, config: LearnConfig) -> float:
        """Timestep of the network's moves."""
        return self.inner_dt_fs or config.inner_dt_fs

    def moves(self, config: LearnConfig) -> tuple[int, float]:
        """Moves between two questions, and their length in fs: no longer than production's in all."""
        return REGION_MOVES, self.length_fs / REGION_MOVES

    def known_ground(self, network, labels: Labels, temperature_K: float) -> Callable[[NetworkFrame], np.ndarray]:
        """Everywhere: of the environment labels know nothing."""
        return lambda frame: np.isfinite(frame.energy)

    def rotamers(self) -> None:
        """None: a region cannot be turned within its surroundings."""

    def labels(self, positions: np.ndarray, truth: Truth, temperature_K) -> Labels:
        """What the QM said at positions (r,N,3), on the capped region; extra: the field, and the forces on it."""
        if not truth.extra:  # every call failed
            return Labels.empty(len(self.region))
        said = truth.extra
        return Labels(self.environment.region.capped(positions), said["qm_energy"], said["qm_forces"], temperature_K,
                      {"field": positions[:, self.environment.field_atoms], "field_forces": said["field_forces"]})

    def fit(self, labels: Labels, model, config, **how) -> dict:
        """The checkpoint of coupling and network."""
        sites, near = labels.positions, labels.extra["field"]
        charges = self.environment.field_charges[self.environment.field_atoms]
        coupling = fit_coupling(sites, near, charges, labels.extra["field_forces"])
        energy, forces, _ = coupling.energy_and_forces(sites, near, charges)
        rest = Labels(sites, labels.energies - energy, labels.forces - forces, labels.temperature_K)
        return {**super().fit(rest, model, config, **how), "coupling": coupling.as_lists()}
