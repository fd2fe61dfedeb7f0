"""What is to be learned: a molecule under its true potential, and everything in learning that depends on what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kstep.forces import PhysicsSpec
from kstep.forces.pool import Pool, Truth
from kstep.learning.ending import CALLS_PER_ENERGY, CALLS_PER_TORSION
from kstep.learning.learn_config import LearnConfig
from kstep.learning.turned_torsions import RandomRotamers, turned_starts
from kstep.molecules.molecule import Molecule
from kstep.runs.network_dynamics import NetworkFrame
from kstep.runs.network_geometries import KnownGround
from kstep.runs.run_network import recipe_of
from kstep.runs.settings import NetworkRecipe
from kstep.schemes.ladder import rungs_between
from kstep.schemes.nested import means_of
from kstep.training.labels import Labels

FAR_KT_PER_MODE = 1.0  # labels farther up are of broken molecules, and no ground to be on


@dataclass(frozen=True, kw_only=True)
class Target:
    """A molecule under a true potential, for sampling on a ladder of one or more temperatures.

    Chains start at molecule.conformers, whose potential energy is that of starts_K (0: minima).  Another kind of target
    overrides what differs for it, as `region_target.RegionTarget` does: what a label is, how a network comes from
    labels, how dynamics loads it.  walls, mirror, turns: what the sampling will have besides moves (schemes.nested);
    call_cost_s: seconds of a true call that learning reckons with, None: those that it measures; starts_spent:
    true_calls, wall_s and cpu_s that its starts cost before, where no run counts them.
    """

    molecule: Molecule
    spec: PhysicsSpec
    method: str
    temperatures_K: tuple[float, ...]
    starts_K: float = 0.0
    device: str = "cpu"
    walls: bool = True
    mirror: bool = True
    turns: int = 8
    call_cost_s: float | None = None
    starts_spent: dict[str, float] = field(default_factory=dict)

    @property
    def labelled(self) -> Molecule:
        """What the labels and the network are of."""
        return self.molecule

    @property
    def n_charges(self) -> int:
        """Point charges around it, in whose field its labels are."""
        return 0

    @property
    def facts(self) -> dict:
        """What a resumed learning must share."""
        return {"smiles": self.molecule.smiles, "method": self.method, "physics": self.spec.fingerprint,
                "temperatures_K": self.temperatures_K,
                "walls": self.walls, "mirror": self.mirror, "turns": self.turns}

    @property
    def recipe(self) -> NetworkRecipe:
        """How dynamics builds the network of a checkpoint, in any process."""
        return recipe_of(self.molecule, self.method, self.spec.restraints)

    @property
    def calls_per_sample(self) -> float:
        """Taken proposals until what is slowest about the molecule is another: a torsion, where it has any."""
        return CALLS_PER_TORSION if len(self.molecule.rotatable_torsions()) else CALLS_PER_ENERGY

    def surface(self, pool: Pool) -> Pool:
        """What is to be learned, of a pool of its spec."""
        return pool

    def rungs_K(self, config: LearnConfig) -> tuple[float, ...]:
        """Temperatures that chains explore: those of the sampling, or a ladder of the network above the only one."""
        if len(self.temperatures_K) > 1:
            return self.temperatures_K
        return rungs_between(self.temperatures_K[0], config.ladder_top_K, len(self.labelled))

    def dt_fs(self, config: LearnConfig) -> float:
        """Timestep of the network's moves."""
        return config.inner_dt_fs

    def moves(self, config: LearnConfig) -> tuple[int, float]:
        """How many moves of the network lie between two questions to the truth, and their mean length in fs."""
        return config.learn_moves, config.learn_move_fs

    def means(self, network) -> dict[str, Any]:
        """What chains explore with besides moves."""
        return means_of(self.molecule, network, walls=self.walls, mirror=self.mirror, turns=self.turns)

    def known_ground(self, network, labels: Labels, temperature_K: float) -> Callable[[NetworkFrame], np.ndarray]:
        """What tells whether chains still are on ground that the labels cover."""
        usual = labels.weights(FAR_KT_PER_MODE) == 1.0
        return KnownGround(network, labels.positions[usual], self.molecule.bonds, temperature_K).holds

    def turned(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Some of the chains (R,N,3) with a torsion turned over: rows (T,), positions (T,N,3)."""
        return turned_starts(positions, self.molecule.bonds, self.molecule.rotatable_torsions())

    def rotamers(self) -> RandomRotamers | None:
        """What draws rotamers at random; None where there is nothing to turn."""
        torsions = self.molecule.rotatable_torsions()
        return RandomRotamers(self.molecule.numbers, self.molecule.bonds, torsions) if len(torsions) else None

    def labels(self, positions: np.ndarray, truth: Truth, temperature_K) -> Labels:
        """What the truth without restraints said at positions (r,N,3), as labels; temperature_K: one number or (r,)."""
        return Labels(positions, *truth.bare, temperature_K)

    def fit(self, labels: Labels, model, config, **how) -> dict:
        """The checkpoint of a network fitted to labels; how: what `training.fit.fit` takes besides."""
        from kstep.training.label_fit import fit

        return fit(model, self.labelled, labels, config, method=self.method, temperature_K=self.temperatures_K[0],
                   **how).checkpoint
