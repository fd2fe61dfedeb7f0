"""Populations of a molecule's conformers, with errors, from the frames of a run: what a chemist takes home.

A conformer is a combination of wells of the torsions that tell geometries apart (rotatable bonds, rings that pucker).
What equivalent atoms and mirror images make of it is the same conformer (kstep.analysis.measure.symmetry).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Conformer:
    """One conformer of a run.

    label: "A", "B", ... by population; wells_deg: {label of a torsion: its circular mean here, degrees}, of one image;
    population (0 to 1) with its standard error; free_energy_kJ: -kT ln(population / that of the first), kJ/mol, 0 with
    error 0 for the first; effective_samples: independent samples behind its population; entered: how often a chain came
    into it; images: 2 where its mirror image is another geometry of the same molecule, which is counted with it; r_hat:
    split-R-hat of its population (None: not defined); frame: index of its representative into the frames of the
    trajectory (files joined in the order given); relaxed: that frame relaxed on the true potential, where asked for:
    {"positions_nm" (N,3), "energy_kJ", "relative_energy_kJ" (to the first), "true_calls", "converged", "kept": whether
    it is still this conformer}.
    """

    label: str
    wells_deg: dict[str, float]
    population: float
    population_error: float
    free_energy_kJ: float
    free_energy_error_kJ: float
    effective_samples: float
    entered: int
    images: int
    r_hat: float | None
    frame: int
    relaxed: dict[str, Any] | None = None


@dataclass(frozen=True)
class Populations:
    """The conformers of a molecule at one temperature, the most populated first.

    torsions: labels of those that tell conformers apart; one_well: of those seen in one well alone, of which another may
    have been missed; never_crossed: of those seen in two wells or more but crossed by no chain, so that their
    populations are those of the starts; others: {"count", "population", "error"} of the conformers too rare to be
    listed; entropy: of the conformers, J/mol/K, mirror images told apart; chains, frames: what it rests on; rungs_K:
    temperatures joined (one: the run's own); ensemble: what the frames follow, "true", "network" or "none"; weights:
    kstep.importance.diagnose of frames that do not count alike, else None; converged: whether nothing below says
    otherwise; problems: why not, in sentences; notes: what else is to be known, in sentences.
    """

    molecule: str
    smiles: str | None
    method: str | None
    temperature_K: float
    conformers: tuple[Conformer, ...]
    others: dict[str, float]
    entropy_J_per_mol_K: float
    entropy_error_J_per_mol_K: float
    torsions: list[str]
    one_well: list[str]
    never_crossed: list[str]
    chains: int
    frames: int
    rungs_K: list[float]
    ensemble: str
    weights: dict[str, Any] | None
    converged: bool
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and text: what the metadata key `populations` and the JSON file hold."""
        return asdict(self)
