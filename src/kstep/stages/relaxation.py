"""Geometries relaxed on the true potential: the representatives of a run's conformers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from kstep.analysis.measure.populations import Conformer, Populations, stay_within
from kstep.config import BaselineConfig
from kstep.errors import PhysicsError, UserError
from kstep.forces.base import Physics
from kstep.schemas import Trajectory
from kstep.stages.physics import TruePhysics, open_physics
from kstep.units import ANGSTROM_PER_NM, FORCE_PER_EV_ANGSTROM, KJ_PER_EV, NM_PER_ANGSTROM

FORCE_TOLERANCE = 5.0  # kJ/mol/nm, of the atom that feels most: energies to about 0.1 kJ/mol in the softest torsions
MOST_CALLS = 300  # of one geometry


@dataclass(frozen=True)
class Minimum:
    """positions (N,3) nm, energy kJ/mol, whether the force came below the tolerance, and the true calls it took."""

    positions: np.ndarray
    energy: float
    converged: bool
    true_calls: int


class _Truth(Calculator):
    """A true potential as ASE asks it."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, physics: Physics):
        super().__init__()
        self._physics = physics

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        """Energy in eV and forces in eV/A of the atoms."""
        super().calculate(atoms, properties, system_changes)
        energy, forces = self._physics.energy_and_forces(self.atoms.get_positions() * NM_PER_ANGSTROM)
        self.results = {"energy": energy / KJ_PER_EV, "forces": forces / FORCE_PER_EV_ANGSTROM}


def minimise(physics: Physics, positions: np.ndarray, *, most_calls: int = MOST_CALLS) -> Minimum:
    """The minimum next to positions (N,3) nm by ASE's L-BFGS; PhysicsError where the method has no answer."""
    from ase.optimize import LBFGS  # here, since it takes scipy.optimize along: half a second

    atoms = Atoms(numbers=physics.numbers, positions=positions * ANGSTROM_PER_NM, calculator=_Truth(physics))
    before = physics.true_calls
    converged = LBFGS(atoms, logfile=None).run(fmax=FORCE_TOLERANCE / FORCE_PER_EV_ANGSTROM, steps=most_calls)
    return Minimum(atoms.get_positions() * NM_PER_ANGSTROM, atoms.get_potential_energy() * KJ_PER_EV, bool(converged),
                   physics.true_calls - before)


def physics_of_run(trajectory: Trajectory, config: BaselineConfig, calculator: object = None) -> TruePhysics:
    """The true physics that a run was made with, its atoms in the run's order; config: as it was given to the run.

    UserError where it is another method than the run's, or the molecule cannot be had from its SMILES.
    """
    metadata = trajectory.metadata
    if not metadata.get("smiles") or metadata.get("qm_atoms"):
        raise UserError("only runs of a whole molecule whose SMILES is known can be relaxed")
    opened = open_physics(metadata["smiles"], config, name=metadata["molecule"])
    molecule = opened.molecule
    same = np.array_equal(molecule.numbers, trajectory.atom_types) and np.array_equal(molecule.bonds, trajectory.bonds)
    if opened.is_mm and not same:
        raise UserError("the run's atoms come in another order than those of its SMILES, whose force field does not "
                        "fit them")
    if not opened.is_mm:
        charge, multiplicity = (metadata.get(key) for key in ("charge", "multiplicity"))
        molecule = replace(molecule, numbers=trajectory.atom_types, masses=trajectory.masses, bonds=trajectory.bonds,
                           conformers=trajectory.pos[:1], charge=molecule.charge if charge is None else charge,
                           multiplicity=molecule.multiplicity if multiplicity is None else multiplicity)
    physics = replace(opened, molecule=molecule, calculator=calculator)
    if physics.method != metadata.get("method"):
        raise UserError(f"the run is of {metadata.get('method')} and the physics given is {physics.method}; give the "
                        "config that the run was made with")
    return physics


def relax_conformers(found: Populations, trajectories: list[Trajectory], physics: TruePhysics) -> Populations:
    """The same populations, every conformer's representative relaxed on the physics of its run.

    trajectories: the runs that `found` is of.  What could not be relaxed is named in the notes.
    """
    spec, notes = physics.spec(warm_start=False), list(found.notes)
    spec.require_forces("relaxing on it", "report conformers as they were found")
    truth = spec.build()
    positions = np.concatenate([t.pos for t in trajectories])
    minima: dict[str, Minimum] = {}
    for conformer in found.conformers:
        try:
            minima[conformer.label] = minimise(truth, positions[conformer.frame])
        except PhysicsError as error:
            notes.append(f"conformer {conformer.label} was not relaxed: {error}")
    relaxed = [c for c in found.conformers if c.label in minima]
    if relaxed:
        kept = stay_within(trajectories, found.temperature_K, [c.frame for c in relaxed],
                           np.stack([minima[c.label].positions for c in relaxed]))
        for conformer, stays in zip(relaxed, kept):
            if not stays:
                notes.append(f"the representative of {conformer.label} left its conformer when it was relaxed")
            if not minima[conformer.label].converged:
                notes.append(f"the representative of {conformer.label} is at no minimum after {MOST_CALLS} true calls")
        staying = {c.label: bool(stays) for c, stays in zip(relaxed, kept)}
    notes.append(f"{truth.true_calls} true calls relaxed the representatives")
    first = minima.get(found.conformers[0].label)
    return replace(found, notes=notes, conformers=tuple(
        _with(c, minima[c.label], first, staying[c.label]) if c.label in minima else c for c in found.conformers))


def _with(conformer: Conformer, minimum: Minimum, first: Minimum | None, kept: bool) -> Conformer:
    return replace(conformer, relaxed={
        "positions_nm": minimum.positions.tolist(), "energy_kJ": minimum.energy,
        "relative_energy_kJ": None if first is None else minimum.energy - first.energy,
        "converged": minimum.converged, "true_calls": minimum.true_calls, "kept": kept})
