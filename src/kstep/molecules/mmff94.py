"""MMFF94 and MMFF94s as an openmm.System, from the parameters RDKit assigns.

    E = sum_bonds    143.9325/2 kb dr^2 (1 + cs dr + 7/12 cs^2 dr^2)
      + sum_angles   143.9325/2 ka dt^2 (1 + cb dt)          or 143.9325 ka (1 + cos t), linear
      + sum_angles   143.9325 (kij dr_ij + kkj dr_kj) dt      not at linear centres
      + sum_centres  143.9325/2 koop (chi_1^2 + chi_2^2 + chi_3^2)
      + sum_torsions (V1 (1 + cos p) + V2 (1 - cos 2p) + V3 (1 + cos 3p)) / 2
      + sum_pairs    eps (1.07 R / (r + 0.07 R))^7 (1.12 R^7 / (r^7 + 0.12 R^7) - 2)
      + sum_pairs    332.0716 q_i q_j / (r + 0.05)            times 0.75 for 1-4 pairs

in kcal/mol, A and rad; pairs are three or more bonds apart.  Source: T. A. Halgren, J. Comput.
Chem. 17 (1996) 490, 520, 553, 587, 616; MMFF94s: 20 (1999) 720.

Speed on OpenMM's Reference platform (aspirin, 21 atoms) decided the form of three terms:
stretch-bend and out-of-plane are written in Cartesian coordinates, since `angle()` and
`dihedral()` inside a CustomCompoundBondForce are called, not compiled (3 and 7 times slower);
the torsion is a cubic in its cosine, hence an RBTorsionForce; and non-bonded pairs are
an explicit list, since CustomNonbondedForce with per-type tables is 18 times slower.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import openmm
from rdkit import Chem
from rdkit.Chem import rdForceFieldHelpers

from kstep.errors import UserError
from kstep.units import ANGSTROM_PER_NM, KJ_PER_KCAL, NM_PER_ANGSTROM

VARIANTS = ("MMFF94", "MMFF94s")
RADIAN = math.pi / 180.0

MILLIDYNE_A = 143.9325 * KJ_PER_KCAL  # kJ/mol per mdyn A
COULOMB = 332.0716 * KJ_PER_KCAL * NM_PER_ANGSTROM  # kJ/mol nm/e^2
CUBIC_STRETCH = -2.0 * ANGSTROM_PER_NM  # cs, 1/nm
CUBIC_BEND = -0.006981317 / RADIAN  # cb, 1/rad
SCALE_14 = 0.75
LINEAR_TYPES = (4, 53, 61)  # =C=, =N=, and the triply bonded N+ or C+ between two atoms

# A cosine that rounds past 1 would make acos and asin NaN; RDKit clips, this shrinks.
SHRINK = 1.0 - 1.0e-14


def mmff_properties(molecule: Chem.Mol, variant: str = "MMFF94"):
    """RDKit's MMFF atom types, charges and parameters; UserError when a type is missing.

    RDKit kekulises `molecule` here, and its parameters hold for the kekulised bonds only.
    """
    if variant not in VARIANTS:
        raise UserError(f"unknown MMFF variant '{variant}'; known: {', '.join(VARIANTS)}")
    if any(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms()):
        raise UserError(f"{variant} has no parameters for radicals")
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(molecule, mmffVariant=variant)
    if properties is None:
        elements = sorted({atom.GetSymbol() for atom in molecule.GetAtoms()})
        raise UserError(f"{variant} lacks parameters for an atom of {Chem.MolToSmiles(Chem.RemoveHs(molecule))} "
                        f"(elements {', '.join(elements)})")
    return properties


@dataclass(frozen=True)
class Guesses:
    """Parameters that MMFF94 does not have and RDKit guessed by an empirical rule, each as 'C1=O0 (1.405 A)'."""

    bonds: list[str]
    angles: list[str]
    torsions: list[str]


def guessed_parameters(molecule: Chem.Mol, variant: str = "MMFF94") -> Guesses:
    """Which parameters of a molecule are guesses; UserError when a type is missing.

    RDKit does not say: but those of MMFF94's tables have three decimals, and what a rule computes has more.  A missing
    angle or torsion has a sensible rule (Halgren, J. Comput. Chem. 17 (1996) 616); a missing bond length does not: it
    is that of a single bond (CO2: 1.41 A).
    """
    molecule = Chem.Mol(molecule)
    properties = mmff_properties(molecule, variant)
    bonds, angles, torsions = [], [], []
    for bond in molecule.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        found = properties.GetMMFFBondStretchParams(molecule, i, j)
        if _is_guess(found):
            length = f" ({found[2]:.3f} A)" if found else ""
            bonds.append(f"{_named(molecule, i)}{bond.GetSmarts() or '-'}{_named(molecule, j)}{length}")
    for i, j, k in bonded_angles(molecule):
        if _is_guess(properties.GetMMFFAngleBendParams(molecule, i, j, k)):
            angles.append("-".join(_named(molecule, atom) for atom in (i, j, k)))
    for atoms in torsion_atoms(molecule):
        found = properties.GetMMFFTorsionParams(molecule, *atoms)
        if found and _is_guess(found):
            torsions.append("-".join(_named(molecule, atom) for atom in atoms))
    return Guesses(bonds, angles, torsions)


def _is_guess(found) -> bool:
    """Whether RDKit's (type, constants...) is missing, or has a constant of more than three decimals."""
    return not found or any(abs(1000.0 * value - round(1000.0 * value)) > 1e-6 for value in found[1:])


def _named(molecule: Chem.Mol, atom: int) -> str:
    return f"{molecule.GetAtomWithIdx(atom).GetSymbol()}{atom}"


def build_mmff_system(molecule: Chem.Mol, variant: str = "MMFF94") -> openmm.System:
    """Build the OpenMM System of one molecule with explicit hydrogens.

    Atom order is RDKit's, masses are real (isotopes respected); no constraints, no cutoff, no
    removal of centre-of-mass motion.  Energies in kJ/mol agree with RDKit's own force field to
    rounding.  Raises UserError (a ValueError) when MMFF has no type for an atom.
    """
    if any(atom.GetNumImplicitHs() for atom in molecule.GetAtoms()):
        raise UserError("MMFF needs explicit hydrogens; call rdkit.Chem.AddHs first")
    molecule = Chem.Mol(molecule)  # the caller's keeps its aromatic bonds
    properties = mmff_properties(molecule, variant)
    system = openmm.System()
    for atom in molecule.GetAtoms():
        system.addParticle(atom.GetMass())
    for term in (bond_stretch, angle_bend, linear_bend, stretch_bend, out_of_plane, torsion, nonbonded):
        force, n_terms = term(molecule, properties)
        if n_terms:
            force.setName(f"{variant} {term.__name__}")
            system.addForce(force)
    return system


def bonded_angles(molecule: Chem.Mol) -> Iterator[tuple[int, int, int]]:
    """Every bonded triple i-j-k, once."""
    for centre in molecule.GetAtoms():
        around = [atom.GetIdx() for atom in centre.GetNeighbors()]
        for i, k in itertools.combinations(around, 2):
            yield i, centre.GetIdx(), k


def is_linear(properties, atom: int) -> bool:
    """Whether MMFF94 treats the angle at this atom as a linear one."""
    return properties.GetMMFFAtomType(atom) in LINEAR_TYPES


def bond_stretch(molecule, properties):
    """The quartic bond term as an openmm.Force; r in nm, E in kJ/mol."""
    force = openmm.CustomBondForce(
        f"k*d^2*(1+{CUBIC_STRETCH!r}*d+{7 / 12 * CUBIC_STRETCH**2!r}*d^2); d=r-r0")
    for name in ("k", "r0"):
        force.addPerBondParameter(name)
    for bond in molecule.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        found = properties.GetMMFFBondStretchParams(molecule, i, j)
        if found:
            _, kb, r0_A = found
            force.addBond(i, j, [0.5 * MILLIDYNE_A * kb * ANGSTROM_PER_NM**2, r0_A * NM_PER_ANGSTROM])
    return force, force.getNumBonds()


def angle_bend(molecule, properties):
    """The cubic angle term as an openmm.Force; theta in rad, E in kJ/mol."""
    force = openmm.CustomAngleForce(f"k*d^2*(1+{CUBIC_BEND!r}*d); d=theta-theta0")
    for name in ("k", "theta0"):
        force.addPerAngleParameter(name)
    for i, j, k in bonded_angles(molecule):
        found = properties.GetMMFFAngleBendParams(molecule, i, j, k)
        if found and not is_linear(properties, j):
            _, ka, theta0_deg = found
            force.addAngle(i, j, k, [0.5 * MILLIDYNE_A * ka, theta0_deg * RADIAN])
    return force, force.getNumAngles()


ANGLE_ARMS = "ax=x1-x2; ay=y1-y2; az=z1-z2; bx=x3-x2; by=y3-y2; bz=z3-z2"  # from the vertex, atom 2


def linear_bend(molecule, properties):
    """The term of linear angles, k (1 + cos theta), as an openmm.Force; E in kJ/mol."""
    # CustomAngleForce loses digits near 180 degrees, where these angles live.
    force = openmm.CustomCompoundBondForce(
        3,
        "k*(1+(ax*bx+ay*by+az*bz)/(sqrt(ax^2+ay^2+az^2)*sqrt(bx^2+by^2+bz^2)));"
        + ANGLE_ARMS)
    force.addPerBondParameter("k")
    for i, j, k in bonded_angles(molecule):
        found = properties.GetMMFFAngleBendParams(molecule, i, j, k)
        if found and is_linear(properties, j):
            force.addBond([i, j, k], [MILLIDYNE_A * found[1]])
    return force, force.getNumBonds()


def stretch_bend(molecule, properties):
    """The coupling of an angle with its two bonds as an openmm.Force; E in kJ/mol."""
    force = openmm.CustomCompoundBondForce(
        3,
        "(theta-theta0)*(kij*rij+kkj*rkj-k0);"
        f"theta=acos({SHRINK!r}*(ax*bx+ay*by+az*bz)/(rij*rkj));"
        "rij=sqrt(ax^2+ay^2+az^2); rkj=sqrt(bx^2+by^2+bz^2);"
        + ANGLE_ARMS)
    for name in ("kij", "kkj", "k0", "theta0"):
        force.addPerBondParameter(name)
    for i, j, k in bonded_angles(molecule):
        found = properties.GetMMFFStretchBendParams(molecule, i, j, k)
        if not found or is_linear(properties, j) or not any(found[1:]):
            continue
        kij, kkj = (MILLIDYNE_A * ANGSTROM_PER_NM * constant for constant in found[1:])
        rij, rkj = (properties.GetMMFFBondStretchParams(molecule, end, j)[2] * NM_PER_ANGSTROM for end in (i, k))
        theta0_deg = properties.GetMMFFAngleBendParams(molecule, i, j, k)[2]
        force.addBond([i, j, k], [kij, kkj, kij * rij + kkj * rkj, theta0_deg * RADIAN])
    return force, force.getNumBonds()


def out_of_plane(molecule, properties):
    """All three Wilson angles of a three-coordinate centre: sin chi_c = a.(b x c) / (|a x b| |c|)."""
    force = openmm.CustomCompoundBondForce(
        4,
        "k*(asin(v/sqrt(ab*c2))^2+asin(v/sqrt(bc*a2))^2+asin(v/sqrt(ac*b2))^2);"
        f"v={SHRINK!r}*(px*cx+py*cy+pz*cz);"
        "ab=px^2+py^2+pz^2; px=ay*bz-az*by; py=az*bx-ax*bz; pz=ax*by-ay*bx;"
        "bc=b2*c2-(bx*cx+by*cy+bz*cz)^2; ac=a2*c2-(ax*cx+ay*cy+az*cz)^2;"
        "a2=ax^2+ay^2+az^2; b2=bx^2+by^2+bz^2; c2=cx^2+cy^2+cz^2;"
        "ax=x2-x1; ay=y2-y1; az=z2-z1; bx=x3-x1; by=y3-y1; bz=z3-z1; cx=x4-x1; cy=y4-y1; cz=z4-z1")
    force.addPerBondParameter("k")
    for centre in molecule.GetAtoms():
        around = [atom.GetIdx() for atom in centre.GetNeighbors()]
        if len(around) != 3:
            continue
        koop = properties.GetMMFFOopBendParams(molecule, around[0], centre.GetIdx(), *around[1:])
        if koop:
            force.addBond([centre.GetIdx(), *around], [0.5 * MILLIDYNE_A * koop])
    return force, force.getNumBonds()


def torsion(molecule, properties):
    """Torsions as a cubic in cos(psi), psi = phi - 180 deg (Ryckaert-Bellemans)."""
    force = openmm.RBTorsionForce()
    for atoms in torsion_atoms(molecule):
        found = properties.GetMMFFTorsionParams(molecule, *atoms)
        if found and any(found[1:]):
            v1, v2, v3 = (0.5 * KJ_PER_KCAL * v for v in found[1:])
            force.addTorsion(*atoms, v1 + 2 * v2 + v3, 3 * v3 - v1, -2 * v2, -4 * v3, 0.0, 0.0)
    return force, force.getNumTorsions()


def torsion_atoms(molecule: Chem.Mol) -> Iterator[tuple[int, int, int, int]]:
    """Every i-j-k-l that has a torsion."""
    for bond in molecule.GetBonds():
        if not (may_turn(bond.GetBeginAtom()) and may_turn(bond.GetEndAtom())):
            continue
        j, k = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        for left, right in itertools.product(bond.GetBeginAtom().GetNeighbors(), bond.GetEndAtom().GetNeighbors()):
            i, l = left.GetIdx(), right.GetIdx()  # noqa: E741 (atoms i-j-k-l)
            if i not in (k, l) and l != j:
                yield i, j, k, l


def may_turn(atom: Chem.Atom) -> bool:
    """RDKit gives torsions only to sp2 and sp3 atoms that are not terminal and have no triple bond."""
    return (atom.GetHybridization() in (Chem.HybridizationType.SP2, Chem.HybridizationType.SP3)
            and atom.GetDegree() > 1
            and all(bond.GetBondType() != Chem.BondType.TRIPLE for bond in atom.GetBonds()))


def nonbonded(molecule, properties):
    """Buffered 14-7 (RDKit's R and eps are already scaled for donor-acceptor pairs) and charges."""
    force = openmm.CustomBondForce(
        "k/(s+0.07)^7*(1.12/(s^7+0.12)-2)+qq/(r+0.005); s=r*inverse_R")
    for name in ("inverse_R", "k", "qq"):
        force.addPerBondParameter(name)
    charges = [properties.GetMMFFPartialCharge(i) for i in range(molecule.GetNumAtoms())]
    bonds_apart = Chem.GetDistanceMatrix(molecule)
    for i, j in itertools.combinations(range(molecule.GetNumAtoms()), 2):
        if bonds_apart[i, j] < 3:
            continue
        _, _, R_A, epsilon_kcal = properties.GetMMFFVdWParams(i, j)
        scale = SCALE_14 if bonds_apart[i, j] == 3 else 1.0
        force.addBond(i, j, [ANGSTROM_PER_NM / R_A, 1.07**7 * KJ_PER_KCAL * epsilon_kcal,
                             scale * COULOMB * charges[i] * charges[j]])
    return force, force.getNumBonds()
