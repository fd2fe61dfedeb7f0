"""Which rotamers a chain has visited, of those that conformer generation knows of; whether it still is the molecule.

A high acceptance says nothing about a conformer that was never visited, and a smooth energy nothing about a proton that
has moved; these do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kstep.dihedrals import dihedrals_deg, wrap_deg
from kstep.errors import UserError
from kstep.molecules.molecule import Molecule

log = logging.getLogger("kstep")

LOOK_PS = 0.02  # between looks at the bonds: a bond that breaks takes longer to be whole again
MANY_AT_WALLS = 0.1  # of the moves at the target temperature: thermal motion does not come there

DISTINCT_DEG = 45.0  # two conformers' angles further apart than this are two rotamers
VISITED_DEG = 30.0  # a frame this near has visited a rotamer


class TorsionWatch:
    """The rotamers of a molecule's conformers, ticked off as positions pass by.

    Every rotatable torsion (methyls apart) has as rotamers the distinct angles of the conformers.
    """

    def __init__(self, molecule: Molecule, seen: list | None = None):
        """seen: `self.seen` of an earlier part of the same run."""
        self.torsions = molecule.rotatable_torsions()
        angles = dihedrals_deg(molecule.conformers, self.torsions)
        self.rotamers = [_distinct(column) for column in angles.T]
        self.seen: list[list[bool]] = seen or [[False] * len(r) for r in self.rotamers]

    def see(self, positions: np.ndarray) -> None:
        """Tick off what positions (R,N,3) visit."""
        for d, angles in enumerate(dihedrals_deg(positions, self.torsions).T):
            near = np.abs(wrap_deg(angles[:, None] - self.rotamers[d])) <= VISITED_DEG
            self.seen[d] = [bool(a or b) for a, b in zip(self.seen[d], near.any(axis=0))]

    def unvisited(self) -> list[dict]:
        """{"atoms": [i, j, k, l], "angle_deg": ...} of every rotamer that no position came near."""
        return [{"atoms": [int(a) for a in self.torsions[d]], "angle_deg": round(float(angle), 1)}
                for d, rotamers in enumerate(self.rotamers) for angle, seen in zip(rotamers, self.seen[d]) if not seen]

    def warning(self) -> str | None:
        """What was never visited, in words; None if everything was."""
        unvisited = self.unvisited()
        if not unvisited:
            return None
        places = ", ".join(f"{'-'.join(map(str, u['atoms']))} near {u['angle_deg']:.0f} deg" for u in unvisited)
        return (f"{len(unvisited)} rotamers of the conformers were never visited: {places}; the run may be too short, "
                "or they are none under the true physics")


class SpeciesWatch:
    """When dynamics without walls stops being of the molecule that its SMILES names: first said aloud, then recorded.

    changes: {"replica": ..., "time_ps": ..., "what": ...} of each replica, once.
    """

    def __init__(self, molecule: Molecule, say: Callable[[str], None] = log.warning):
        """say: where the first change is said."""
        self.name, self.species, self.say = molecule.name, molecule.species(), say
        self.changes: list[dict] = []
        self._looked_ps: float | None = None

    @property
    def kept(self) -> dict:
        """What a restart file holds of it, plain JSON."""
        return {"changes": self.changes, "looked_ps": self._looked_ps}

    def go_on(self, kept: dict | None) -> None:
        """Take up what an earlier part of the same run kept; None: it kept nothing."""
        if kept is not None:
            self.changes, self._looked_ps = list(kept["changes"]), kept["looked_ps"]

    def see(self, positions: np.ndarray, time_ps: float, replicas: np.ndarray) -> None:
        """Look at positions (R,N,3) of replicas (R,), unless it is less than LOOK_PS since the last look."""
        if self._looked_ps is not None and time_ps < self._looked_ps + LOOK_PS:
            return
        self._looked_ps = time_ps
        known = {change["replica"] for change in self.changes}
        for row in np.flatnonzero(~self.species.inside(positions)):
            replica = int(replicas[row])
            if replica in known:
                continue
            what = "; ".join(self.species.changes(positions[row]))
            if not self.changes:
                self.say(f"{self.name} is no longer the molecule of its SMILES: {what} (replica {replica}, "
                         f"{time_ps:.2f} ps)")
            self.changes.append({"replica": replica, "time_ps": round(float(time_ps), 6), "what": what})


def describe_changes(changes: list[dict], n_replicas: int) -> str:
    """One clause about the changes of a SpeciesWatch; '' without any."""
    if not changes:
        return ""
    first = min(changes, key=lambda change: change["time_ps"])
    return (f"the molecule changed in {len(changes)} of {n_replicas} replicas, first at {first['time_ps']:.2f} ps: "
            f"{first['what']}")


def describe_walls(refused: list[float]) -> str:
    """One clause about a sampler whose chains meet the walls of the molecule at every turn; '' where they do not.

    refused: share of moves that walls refused, of each rung, the target first.
    """
    if not refused or refused[0] <= MANY_AT_WALLS:
        return ""
    return (f"{100 * refused[0]:.0f} % of the moves at the target temperature would have ended in another molecule: it "
            "hardly holds under this potential (keep_species: false samples whatever it turns into), or the network "
            "lets it fall apart")


def check_starts(molecule: Molecule, positions: np.ndarray) -> None:
    """UserError where a start (R,N,3) nm of a sampler with walls is outside of them, since no chain would come in."""
    species = molecule.species()
    for row in np.flatnonzero(~species.inside(positions))[:1]:
        raise UserError(f"the start of replica {row} is not the {molecule.name} of its SMILES "
                        f"({'; '.join(species.changes(positions[row]))}); start from other geometries, or sample "
                        "without these walls (keep_species: false)")


def check_isomer(molecule: Molecule, positions: np.ndarray, source: str | Path) -> None:
    """UserError where a start (R,N,3) nm that was taken from a file is another stereoisomer than the SMILES names.

    No dynamics comes back from there, and all that is said of the run would be said of the wrong molecule.
    """
    species = molecule.species()
    for x in positions:
        if changes := species.turned_over(x):
            raise UserError(f"{source} is a trajectory of another stereoisomer than {molecule.name} "
                            f"({'; '.join(changes)}); start from one of its own, or name the isomer that is meant")


def _distinct(angles: np.ndarray) -> np.ndarray:
    """One angle of each cluster, in the order given (conformers come best first)."""
    kept: list[float] = []
    for angle in angles:
        if all(abs(wrap_deg(angle - other)) > DISTINCT_DEG for other in kept):
            kept.append(float(angle))
    return np.array(kept)
