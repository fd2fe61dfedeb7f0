"""Conformers: embedded, minimised, sorted by energy, each kept once."""

from __future__ import annotations

import logging

import numpy as np
import openmm
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers, rdMolAlign

from kstep.errors import UserError
from kstep.molecules.mmff94 import mmff_properties
from kstep.units import ANGSTROM_PER_NM, KJ_PER_KCAL, NM_PER_ANGSTROM

log = logging.getLogger("kstep")

DUPLICATE_RMSD_A = 0.25  # over heavy atoms and polar hydrogens
MINIMISER_ITERATIONS = 5000


def settle_stereochemistry(molecule: Chem.Mol, name: str, max_attempts: int) -> None:
    """Decide every open stereocentre in place, as a first structure has it, and say so.

    Conformers of one molecule must be one molecule: left open, RDKit would draw each centre
    anew for each conformer.  The choice does not depend on the user's seed.
    """
    if all(centre.specified != Chem.StereoSpecified.Unspecified for centre in Chem.FindPotentialStereo(molecule)):
        return
    before = Chem.MolToSmiles(Chem.RemoveHs(molecule))
    embed_conformers(molecule, 1, 0, max_attempts)
    Chem.AssignStereochemistryFrom3D(molecule)
    after = Chem.MolToSmiles(Chem.RemoveHs(molecule))
    if after != before:
        log.warning("%s: open stereochemistry was settled as %s", name, after)


def embed_conformers(molecule: Chem.Mol, n_conformers: int, seed: int, max_attempts: int) -> None:
    """Add ETKDGv3 conformers; if none embeds, try again from random coordinates."""
    parameters = rdDistGeom.ETKDGv3()
    parameters.randomSeed = seed % (2**31 - 2) + 1  # RDKit: 0 gives every conformer the same seed
    parameters.maxIterations = max_attempts
    parameters.numThreads = 1
    with rdBase.BlockLogs():
        for random_start in (False, True):
            parameters.useRandomCoords = random_start
            if len(rdDistGeom.EmbedMultipleConfs(molecule, n_conformers, parameters)):
                return
    raise UserError(f"no 3-D structure of '{Chem.MolToSmiles(Chem.RemoveHs(molecule))}' was found in {max_attempts} "
                    "attempts per conformer; check its stereochemistry and rings, or raise --max-attempts")


def minimise_with_rdkit(molecule: Chem.Mol, variant: str | None) -> np.ndarray:
    """Minimise every conformer in place with MMFF, UFF or (no parameters) not at all; kJ/mol."""
    typed = Chem.Mol(molecule)  # typing kekulises it
    if variant is not None:
        results = rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(typed, maxIters=MINIMISER_ITERATIONS,
                                                                mmffVariant=variant)
    elif rdForceFieldHelpers.UFFHasAllMoleculeParams(molecule):
        results = rdForceFieldHelpers.UFFOptimizeMoleculeConfs(typed, maxIters=MINIMISER_ITERATIONS)
    else:
        return np.zeros(molecule.GetNumConformers())
    for relaxed, conformer in zip(typed.GetConformers(), molecule.GetConformers(), strict=True):
        conformer.SetPositions(relaxed.GetPositions())
    unfinished = sum(1 for flag, _ in results if flag)
    if unfinished:
        log.debug("%d of %d conformers stopped before their minimum", unfinished, len(results))
    return np.array([energy for _, energy in results]) * KJ_PER_KCAL


def minimise_with_openmm(molecule: Chem.Mol, system: openmm.System) -> np.ndarray:
    """Minimise every conformer in place in the System's own force field; kJ/mol."""
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference"))
    energies = []
    for conformer in molecule.GetConformers():
        context.setPositions(conformer.GetPositions() * NM_PER_ANGSTROM)
        openmm.LocalEnergyMinimizer.minimize(context, tolerance=1.0, maxIterations=MINIMISER_ITERATIONS)
        state = context.getState(energy=True, positions=True)
        conformer.SetPositions(np.asarray(state.getPositions(asNumpy=True)._value) * ANGSTROM_PER_NM)
        energies.append(state.getPotentialEnergy()._value)
    return np.array(energies)


def select_distinct(molecule: Chem.Mol, energies: np.ndarray) -> list[tuple[int, float]]:
    """Conformer ids and energies by rising energy, without those that repeat a better one.

    Hydrogens on carbon do not count, hydrogens on N, O, S do: ethanol's rotamers differ in one.
    """
    skeleton = Chem.RWMol(Chem.Mol(molecule))
    for atom in reversed(list(molecule.GetAtoms())):
        if atom.GetAtomicNum() == 1 and any(n.GetAtomicNum() == 6 for n in atom.GetNeighbors()):
            skeleton.RemoveAtom(atom.GetIdx())
    Chem.FastFindRings(skeleton)
    ids = [conformer.GetId() for conformer in molecule.GetConformers()]
    kept: list[tuple[int, float]] = []
    for index in np.argsort(energies, kind="stable"):
        new = ids[index]
        if all(rdMolAlign.GetBestRMS(Chem.Mol(skeleton), skeleton, new, old, maxMatches=1000) > DUPLICATE_RMSD_A
               for old, _ in kept):
            kept.append((new, float(energies[index])))
    return kept


def mmff_variant(molecule: Chem.Mol, force_field: str) -> str | None:
    """The MMFF variant to minimise with first, None where RDKit has no types for this molecule."""
    variant = "MMFF94s" if force_field == "mmff94s" else "MMFF94"
    try:
        mmff_properties(Chem.Mol(molecule), variant)
    except UserError:
        return None
    return variant
