"""Geometries relaxed on the true potential: the representatives of a run's conformers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kstep.analysis.measure.populations import Populations, stay_within
from kstep.config import BaselineConfig
from kstep.errors import UserError
from kstep.forces.pool import make_pool
from kstep.forces.relaxation import relax
from kstep.schemas import Trajectory
from kstep.stages.physics import TruePhysics, open_physics

FORCE_TOLERANCE = 5.0  # kJ/mol/nm, of the atom that feels most: energies to about 0.1 kJ/mol in the softest torsions
MOST_CALLS = 300  # of one geometry


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
    positions, frames = np.concatenate([t.pos for t in trajectories]), np.array([c.frame for c in found.conformers])
    with make_pool(spec) as pool:
        minima = relax(pool.evaluate, physics.molecule.numbers, positions[frames], tolerance=FORCE_TOLERANCE,
                       most_calls=MOST_CALLS)
    notes += [f"conformer {found.conformers[n].label} was not relaxed: {why}" for n, why in minima.failures.items()]
    rows = np.array([n for n in range(len(frames)) if n not in minima.failures], dtype=int)
    kept = {}
    if len(rows):
        kept = dict(zip(rows, stay_within(trajectories, found.temperature_K, frames[rows].tolist(),
                                          minima.positions[rows])))
    for n, stays in kept.items():
        if not stays:
            notes.append(f"the representative of {found.conformers[n].label} left its conformer when it was relaxed")
        if not minima.converged[n]:
            notes.append(f"the representative of {found.conformers[n].label} is at no minimum after "
                         f"{minima.true_calls[n]} true calls")
    notes.append(f"{minima.true_calls.sum()} true calls relaxed the representatives")
    return replace(found, notes=notes, conformers=tuple(
        replace(conformer, relaxed={
            "positions_nm": minima.positions[n].tolist(), "energy_kJ": float(minima.energies[n]),
            "relative_energy_kJ": float(minima.energies[n] - minima.energies[0]) if 0 in kept else None,
            "converged": bool(minima.converged[n]), "true_calls": int(minima.true_calls[n]), "kept": bool(kept[n])})
        if n in kept else conformer for n, conformer in enumerate(found.conformers)))
