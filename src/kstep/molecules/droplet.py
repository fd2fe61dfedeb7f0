"""A molecule in a droplet of flexible TIP3P water, or whatever a PDB file holds, as one openmm.System.

The molecule has MMFF94 within, and towards the water charges (MMFF94's) and Lennard-Jones terms by
element (GAFF's: Wang et al., J. Comput. Chem. 25, 1157 (2004), table 1).  A soft wall keeps
the droplet together; it acts between the molecule's innermost atom and the water oxygens,

    E = k/2 max(0, r - r_wall)^2,

so that it moves and turns with the droplet and conserves momentum.  No periodic box, no constraints:
the schemes want plain Hamiltonian dynamics, hence the flexible water of OpenMM's tip3p.xml.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit
from rdkit import Chem
from scipy.spatial import cKDTree

from kstep.errors import UserError
from kstep.molecules.mmff94 import mmff_properties
from kstep.molecules.prepare import Prepared
from kstep.units import KJ_PER_KCAL, NM_PER_ANGSTROM

WATER = "amber14/tip3p.xml"
PROTEIN = "amber14-all.xml"
WATERS_PER_NM3 = 33.4
WALL_KJ_PER_NM2 = 1000.0
WALL_ROOM_NM = 0.1  # between the droplet as it is cut and its wall
CLASH_NM = 0.23  # a water with an atom this near the molecule is left out
# r_min / 2 in A, well depth in kcal/mol
LENNARD_JONES = {"C": (1.908, 0.1094), "N": (1.824, 0.17), "O": (1.721, 0.2104), "F": (1.75, 0.061),
                 "P": (2.1, 0.2), "S": (2.0, 0.25), "Cl": (1.948, 0.265), "Br": (2.22, 0.32), "I": (2.35, 0.40),
                 "H": (1.487, 0.0157), "polar H": (0.6, 0.0157)}
MOST_WATERS = 2000
CLOSEST_NM = 0.05  # of two atoms of a PDB file


@dataclass(frozen=True)
class Surroundings:
    """N atoms under one force field: numbers (N,), masses (N,) Da, bonds (B,2), positions (N,3) nm, System as XML.

    charges (N,) e: formal ones, or the force field's own where a file names none; bond_orders (B,): None where a file
    names none.
    """

    numbers: np.ndarray
    masses: np.ndarray
    bonds: np.ndarray
    positions: np.ndarray
    system_xml: str
    charges: np.ndarray
    bond_orders: np.ndarray | None = None

    def check_cut(self, atoms) -> None:
        """UserError where the border of some atoms crosses a bond that is not single: no hydrogen can stand for it."""
        inside = np.isin(self.bonds, list(atoms))
        orders = np.ones(len(self.bonds)) if self.bond_orders is None else self.bond_orders
        crosses = inside[:, 0] != inside[:, 1]
        for (i, j), order in zip(self.bonds[crosses], orders[crosses]):
            if order > 1:
                raise UserError(f"the QM region cuts the bond of atoms {i} and {j}, which has order {order:g}; move "
                                "the boundary to a single bond between heavy atoms")

    def charge_of(self, atoms) -> int:
        """The whole charge of some atoms; indices that are not there are for `Region.cut` to refuse."""
        return round(float(sum(self.charges[a] for a in atoms if 0 <= a < len(self.charges))))


def solvate(prepared: Prepared, n_waters: int) -> Surroundings:
    """The molecule's best conformer among the n_waters waters nearest to it; 0: alone.

    Raises UserError where Lennard-Jones terms or MMFF94 parameters are missing.
    """
    if not 0 <= n_waters <= MOST_WATERS:
        raise UserError(f"a droplet of {n_waters} waters cannot be built; use 0 to {MOST_WATERS}")
    if prepared.system is None or not prepared.molecule.force_field.startswith("mmff"):
        raise UserError("the molecule in a droplet needs MMFF94, which has no parameters for "
                        f"'{prepared.molecule.smiles}'")
    molecule, system = prepared.molecule, openmm.XmlSerializer.clone(prepared.system)
    n = len(molecule)
    centre = molecule.conformers[0] - molecule.conformers[0].mean(0)
    waters, radius = _waters_around(centre, n_waters)
    nonbonded = openmm.NonbondedForce()
    for charge, (sigma, epsilon) in zip(_charges(prepared.rdkit), _lennard_jones(prepared.rdkit)):
        nonbonded.addParticle(charge, sigma, epsilon)
    for i in range(n):  # MMFF94 has the molecule's own pairs
        for j in range(i + 1, n):
            nonbonded.addException(i, j, 0.0, 1.0, 0.0)
    numbers, masses, bonds = molecule.numbers, molecule.masses, molecule.bonds
    orders = np.concatenate([molecule.bond_orders, np.ones(2 * n_waters)])
    if n_waters:
        numbers = np.concatenate([numbers, np.tile([8, 1, 1], n_waters)])
        oxygens = n + 3 * np.arange(n_waters)
        bonds = np.concatenate([bonds, *([[o, o + 1], [o, o + 2]] for o in oxygens)])
        water_masses = _add_waters(system, nonbonded, n_waters)
        masses = np.concatenate([masses, water_masses])
        system.addForce(_wall(int(np.argmin(np.linalg.norm(centre, axis=1))), oxygens, radius + WALL_ROOM_NM))
    system.addForce(nonbonded)
    return Surroundings(numbers, masses, np.asarray(bonds, dtype=np.int64), np.concatenate([centre, waters]),
                        openmm.XmlSerializer.serialize(system),
                        np.array([a.GetFormalCharge() for a in prepared.rdkit.GetAtoms()] + [0] * (3 * n_waters)),
                        orders)


def _charges(rdkit: Chem.Mol) -> list[float]:
    properties = mmff_properties(Chem.Mol(rdkit))
    return [properties.GetMMFFPartialCharge(i) for i in range(rdkit.GetNumAtoms())]


def _lennard_jones(rdkit: Chem.Mol) -> list[tuple[float, float]]:
    """(sigma nm, epsilon kJ/mol) of every atom."""
    found = []
    for atom in rdkit.GetAtoms():
        symbol = atom.GetSymbol()
        if symbol == "H" and atom.GetNeighbors() and atom.GetNeighbors()[0].GetSymbol() not in ("C", "P"):
            symbol = "polar H"
        if symbol not in LENNARD_JONES:
            raise UserError(f"there is no Lennard-Jones term for {symbol} in water here; known: "
                            f"{', '.join(s for s in LENNARD_JONES if ' ' not in s)}")
        half_r_min_A, depth_kcal = LENNARD_JONES[symbol]
        found.append((2.0 ** (5 / 6) * half_r_min_A * NM_PER_ANGSTROM, depth_kcal * KJ_PER_KCAL))
    return found


def _waters_around(centre: np.ndarray, n_waters: int) -> tuple[np.ndarray, float]:
    """Positions (3 n_waters, 3) of the waters nearest to the molecule's centre, and how far they reach, nm."""
    if not n_waters:
        return np.zeros((0, 3)), 0.0
    reach = np.linalg.norm(centre, axis=1).max()
    volume = n_waters / WATERS_PER_NM3 + 4.19 * (reach + 0.2) ** 3
    side = 2.0 * (volume / 4.19) ** (1 / 3) + 0.6
    modeller = app.Modeller(app.Topology(), [] * unit.nanometer)
    modeller.addSolvent(app.ForceField(WATER), boxSize=openmm.Vec3(side, side, side) * unit.nanometer, neutralize=False)
    all_waters = np.array(modeller.positions.value_in_unit(unit.nanometer)).reshape(-1, 3, 3)
    all_waters -= all_waters.mean((0, 1))
    apart = np.linalg.norm(all_waters[:, :, None] - centre, axis=-1).min((1, 2))
    free = all_waters[apart > CLASH_NM]
    distance = np.linalg.norm(free[:, 0], axis=1)
    nearest = np.argsort(distance, kind="stable")[:n_waters]
    return free[nearest].reshape(-1, 3), float(distance[nearest].max())


def _add_waters(system, nonbonded, n_waters: int) -> np.ndarray:
    """Append flexible waters to the System and the NonbondedForce; returns their masses."""
    topology = app.Topology()
    chain = topology.addChain()
    for _ in range(n_waters):
        residue = topology.addResidue("HOH", chain)
        oxygen, *hydrogens = (topology.addAtom(name, app.Element.getBySymbol(name[0]), residue)
                              for name in ("O", "H1", "H2"))
        for hydrogen in hydrogens:
            topology.addBond(oxygen, hydrogen)
    waters = app.ForceField(WATER).createSystem(topology, nonbondedMethod=app.NoCutoff, rigidWater=False)
    n, m = system.getNumParticles(), waters.getNumParticles()
    masses = np.array([waters.getParticleMass(i)._value for i in range(m)])
    for mass in masses:
        system.addParticle(mass)
    for force in waters.getForces():
        if isinstance(force, openmm.NonbondedForce):
            for i in range(m):
                nonbonded.addParticle(*force.getParticleParameters(i))
            for e in range(force.getNumExceptions()):
                i, j, *rest = force.getExceptionParameters(e)
                nonbonded.addException(n + i, n + j, *rest)
        elif isinstance(force, openmm.HarmonicBondForce):
            bonds = openmm.HarmonicBondForce()
            for b in range(force.getNumBonds()):
                i, j, *rest = force.getBondParameters(b)
                bonds.addBond(n + i, n + j, *rest)
            system.addForce(bonds)
        elif isinstance(force, openmm.HarmonicAngleForce):
            angles = openmm.HarmonicAngleForce()
            for a in range(force.getNumAngles()):
                i, j, k, *rest = force.getAngleParameters(a)
                angles.addAngle(n + i, n + j, n + k, *rest)
            system.addForce(angles)
    return masses


def _wall(anchor: int, oxygens, radius_nm: float):
    wall = openmm.CustomBondForce(f"{0.5 * WALL_KJ_PER_NM2!r}*max(0,r-wall)^2")
    wall.addPerBondParameter("wall")
    wall.setName("wall")
    for oxygen in oxygens:
        wall.addBond(anchor, int(oxygen), [radius_nm])
    return wall


def read_pdb(path: str | Path) -> Surroundings:
    """All atoms of a PDB file with amber14 and flexible TIP3P; UserError for residues they do not know."""
    if not Path(path).is_file():
        raise UserError(f"PDB file {path} does not exist")
    if not any(line.startswith((b"ATOM", b"HETATM")) for line in Path(path).read_bytes().splitlines()):
        raise UserError(f"{path} holds no atoms; give a PDB file with ATOM or HETATM lines")
    try:
        pdb = app.PDBFile(str(path))
        system = app.ForceField(PROTEIN, WATER).createSystem(pdb.topology, nonbondedMethod=app.NoCutoff,
                                                             constraints=None, rigidWater=False)
    except Exception as error:  # OpenMM reports a bad file with whatever its parser met
        raise UserError(f"{path} cannot be built with amber14 and TIP3P: {str(error).splitlines()[0].rstrip('. ')}; "
                        "give a file of amino acids, nucleotides, ions and waters with all hydrogens") from None
    atoms = list(pdb.topology.atoms())
    positions = np.array(pdb.positions.value_in_unit(unit.nanometer))
    _check_positions(path, positions)
    nonbonded = next(force for force in system.getForces() if isinstance(force, openmm.NonbondedForce))
    return Surroundings(
        np.array([atom.element.atomic_number for atom in atoms]),
        np.array([system.getParticleMass(i)._value for i in range(len(atoms))]),
        np.array([sorted((a.index, b.index)) for a, b in pdb.topology.bonds()], dtype=np.int64).reshape(-1, 2),
        positions, openmm.XmlSerializer.serialize(system),
        np.array([nonbonded.getParticleParameters(i)[0]._value for i in range(len(atoms))]))


def _check_positions(path, positions: np.ndarray) -> None:
    """Refuse coordinates that no minimiser turns into a molecule: not finite, or atoms on top of each other."""
    if not np.isfinite(positions).all():
        raise UserError(f"{path} holds coordinates that are NaN or infinity")
    near = cKDTree(positions).query_pairs(CLOSEST_NM)
    if near:
        i, j = min(near)
        apart_A = np.linalg.norm(positions[i] - positions[j]) / NM_PER_ANGSTROM
        raise UserError(f"{path}: atoms {i} and {j} (from 0) are {apart_A:.2f} A apart; give coordinates in A, and "
                        "each atom once")


def settle(surroundings: Surroundings, temperature_K: float, length_ps: float, seed: int,
           n_starts: int = 1) -> np.ndarray:
    """n_starts geometries (n_starts,N,3): minimised, then length_ps of Langevin dynamics each, in the force field."""
    system = openmm.XmlSerializer.deserialize(surroundings.system_xml)
    integrator = openmm.LangevinMiddleIntegrator(temperature_K, 5.0, 0.0005)
    integrator.setRandomNumberSeed(seed + 1)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(surroundings.positions)
    openmm.LocalEnergyMinimizer.minimize(context, 10.0, 500)
    context.setVelocitiesToTemperature(temperature_K, seed + 1)
    starts = []
    for _ in range(n_starts):
        integrator.step(max(1, round(length_ps / 0.0005)))
        x = context.getState(getPositions=True).getPositions(asNumpy=True)._value
        starts.append(x - np.average(x, axis=0, weights=surroundings.masses))
    return np.array(starts)
