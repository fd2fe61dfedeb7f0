"""Conformers: embedded, minimised, sorted by energy, each kept once."""

from __future__ import annotations

import logging

import numpy as np
import openmm
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers, rdMolAlign

from kstep.dihedrals import dihedrals_deg, far_side, turned, wrap_deg
from kstep.errors import UserError
from kstep.molecules.mmff94 import guessed_parameters
from kstep.molecules.molecule import Molecule
from kstep.molecules.perception import add_conformers
from kstep.units import ANGSTROM_PER_NM, KJ_PER_KCAL, NM_PER_ANGSTROM

_ARRANGEMENTS = {(6, 0): Chem.ChiralType.CHI_OCTAHEDRAL, (5, 0): Chem.ChiralType.CHI_TRIGONALBIPYRAMIDAL,
                 (4, 2): Chem.ChiralType.CHI_SQUAREPLANAR}  # by the number of ligands and lone pairs

log = logging.getLogger("kstep")

DUPLICATE_RMSD_A = 0.25  # over heavy atoms and polar hydrogens
MINIMISER_ITERATIONS = 5000
TURNED = 10  # conformers at most that are turned about a torsion


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
    ranks = list(Chem.CanonicalRankAtoms(molecule, breakTies=False))
    for atom in molecule.GetAtoms():
        around = [ranks[ligand.GetIdx()] for ligand in atom.GetNeighbors()]
        if len(around) >= 5 and max(map(around.count, around)) >= 5:  # all arrangements of these are one
            atom.SetChiralTag(Chem.ChiralType.CHI_UNSPECIFIED)
    after = Chem.MolToSmiles(Chem.RemoveHs(molecule))
    if after != before:
        log.warning("%s: open stereochemistry was settled as %s", name, after)


def embed_conformers(molecule: Chem.Mol, n_conformers: int, seed: int, max_attempts: int, *,
                     from_random: bool = False) -> None:
    """Make ETKDGv3 conformers, and as many without its preferences; if none embeds, or at once, from random places.

    One conformer alone is of ETKDGv3.  Its torsions are those of crystals (Riniker & Landrum, J. Chem. Inf. Model. 55,
    2562 (2015)), where a peptide hardly ever has phi > 0: of 200 alanine dipeptides one is in the form that lies 5
    kJ/mol above the lowest at GFN2-xTB, of 20 without preferences several.  Whoever learns from starts must have seen
    it.  Centres of five or six ligands get their arrangement for the embedding alone (`arrange_hypervalent`).
    """
    arranged = Chem.Mol(molecule)
    arrange_hypervalent(arranged)
    parameters = rdDistGeom.ETKDGv3()
    parameters.randomSeed = seed % (2**31 - 2) + 1  # RDKit: 0 gives every conformer the same seed
    parameters.maxIterations = max_attempts
    parameters.numThreads = 1
    with rdBase.BlockLogs():
        for random_start in (False, True)[from_random:]:
            parameters.useRandomCoords = random_start
            found = []
            for parameters.useExpTorsionAnglePrefs in (True, False)[:n_conformers]:
                if len(rdDistGeom.EmbedMultipleConfs(arranged, n_conformers, parameters)):
                    found += [Chem.Conformer(conformer) for conformer in arranged.GetConformers()]
            if found:
                molecule.RemoveAllConformers()
                for conformer in found:
                    molecule.AddConformer(conformer, assignId=True)
                return
    raise UserError(f"no 3-D structure of '{Chem.MolToSmiles(Chem.RemoveHs(molecule))}' was found in {max_attempts} "
                    "attempts per conformer; check its stereochemistry and rings, or raise --max-attempts")


def arrange_hypervalent(molecule: Chem.Mol) -> None:
    """Name, in place, the arrangement of hypervalent centres that a SMILES leaves open: RDKit piles up their ligands.

    By the number of ligands and lone pairs (VSEPR: Gillespie & Nyholm, Q. Rev. Chem. Soc. 11, 339 (1957)): six of both
    make an octahedron, four ligands with two lone pairs a square, five ligands a bipyramid, which relaxes to a square
    pyramid where that is lower.
    """
    table = Chem.GetPeriodicTable()
    for atom in molecule.GetAtoms():
        outer = table.GetNOuterElecs(atom.GetAtomicNum()) - atom.GetFormalCharge() - atom.GetTotalValence()
        ligands, pairs = atom.GetDegree(), max(0, outer // 2)
        arrangement = _ARRANGEMENTS.get((ligands, pairs if ligands == 4 else 0))
        if arrangement is not None and atom.GetChiralTag() == Chem.ChiralType.CHI_UNSPECIFIED:
            atom.SetChiralTag(arrangement)
            atom.SetIntProp("_chiralPermutation", 1)


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


def locked_torsions(molecule: Molecule, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Torsions (L,4) about single bonds that all of positions (C,N,3) have on one side, and which side (L,) degrees.

    On one side: within 90 degrees of their mean.  An acid's O-H, an ester, an amide: crystals have them so, and
    generators of conformers with them.  In the gas phase an acid turned over may hold a hydrogen bond, and be the
    lowest.
    """
    torsions = molecule.rotatable_torsions()
    order = {tuple(sorted(bond)): order for bond, order in zip(molecule.bonds.tolist(), molecule.bond_orders)}
    single = [order[tuple(sorted(bond))] == 1.0 for bond in torsions[:, 1:3].tolist()]
    torsions = torsions[np.array(single, dtype=bool)]
    angles = dihedrals_deg(positions, torsions)
    middle = np.degrees(np.angle(np.exp(1j * np.radians(angles)).sum(axis=0)))
    locked = (np.abs(wrap_deg(angles - middle)) < 90.0).all(axis=0)
    return torsions[locked], middle[locked]


def turned_over(molecule: Molecule, positions: np.ndarray, torsions: np.ndarray) -> np.ndarray:
    """The first TURNED of positions (C,N,3) with each of torsions (L,4) turned by 180 degrees: (T,N,3)."""
    some, half, n = positions[:TURNED], np.full(min(TURNED, len(positions)), 180.0), len(molecule)
    return np.concatenate([positions[:0], *(turned(some, torsion, far_side(torsion, molecule.bonds, n), half)
                                            for torsion in torsions)])


def of_every_side(kept: list[tuple[int, float]], far: np.ndarray, n: int) -> list[tuple[int, float]]:
    """n of the conformers `kept` (id, energy), by rising energy: the lowest, and the lowest of every side.

    far (L,C): which conformers have a torsion on its other side.  One of each is taken in, in the place of the highest.
    """
    chosen, rest = kept[:n], kept[n:]
    for side in far:
        if len(chosen) > 1 and not side[[conformer for conformer, _ in chosen]].any():
            one = next((entry for entry in rest if side[entry[0]]), None)
            spare = [entry for entry in chosen if not far[:, entry[0]].any()]
            if one is not None and len(spare) > 1:
                chosen.remove(spare[-1])
                chosen.append(one)
    return sorted(chosen, key=lambda entry: entry[1])


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


def graph_of(molecule: Molecule, positions: np.ndarray) -> Chem.Mol:
    """Atoms, bonds and geometries (C,N,3) nm for `select_distinct`; resonance forms of one molecule have the same."""
    graph = Chem.RWMol()
    for number in molecule.numbers:
        atom = Chem.Atom(int(number))
        atom.SetNoImplicit(True)
        graph.AddAtom(atom)
    for i, j in molecule.bonds:
        graph.AddBond(int(i), int(j), Chem.BondType.SINGLE)
    add_conformers(graph, np.asarray(positions) * ANGSTROM_PER_NM)
    return graph.GetMol()


def mmff_variant(molecule: Chem.Mol, force_field: str) -> str | None:
    """The MMFF variant to minimise with first, None where it has no types, or no bond, of this molecule."""
    variant = "MMFF94s" if force_field == "mmff94s" else "MMFF94"
    try:
        return None if guessed_parameters(molecule, variant).bonds else variant
    except UserError:
        return None
