"""An openmm.System divided: what stays molecular mechanics when some of its atoms become QM.

Left out, since the QM describes it: every bonded term among QM atoms, every non-bonded pair of QM
atoms, the charges of QM atoms, and terms of three or more atoms that hold no MM atom but the hosts
of link atoms (the capped region has these angles and torsions itself).  The rest stays, the cut
bond and the Lennard-Jones terms between QM and MM included.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from kstep.errors import UserError
from kstep.forces.openmm import ask, make_context, read_system
from kstep.forces.qmmm.coupling import Coupling
from kstep.forces.qmmm.link import Region

TERM = re.compile(r"[pab]\d+")  # attributes that name a term's atoms
BONDED = {"HarmonicBondForce", "HarmonicAngleForce", "PeriodicTorsionForce", "RBTorsionForce", "CMAPTorsionForce",
          "CustomBondForce", "CustomAngleForce", "CustomTorsionForce", "CustomCompoundBondForce"}
# energy kJ/mol and forces (N,3) kJ/mol/nm, of positions (N,3) nm: MM, QM-MM Lennard-Jones, terms over the boundary
MMPart = Callable[[np.ndarray], tuple[float, np.ndarray]]
CHARGE_PRODUCT = "qq"  # a pair parameter of this name is a Coulomb term (forcefields.mmff94)


@dataclass(frozen=True)
class Environment:
    """What is around a region, all that the QM leaves to the force field.

    system_xml: the divided System; field_charges Q (N,) e: what the QM feels of the MM atoms, 0 on QM atoms and hosts;
    region_charges (n+L,) e: the force field's own charges of the region, 0 on link atoms.
    """

    region: Region
    system_xml: str
    field_charges: np.ndarray
    region_charges: np.ndarray

    @classmethod
    def of(cls, spec) -> Environment:
        """That of a spec of backend qmmm (`forces.qmmm_spec`), without its QM."""
        settings = spec.settings
        region = Region.cut(spec.numbers, settings["bonds"], settings["qm_atoms"])
        return divide(settings["system_xml"], settings["bonds"], region, settings["charge"])

    @property
    def field_atoms(self) -> np.ndarray:
        """The MM atoms (m,) whose charges the QM feels."""
        return np.flatnonzero(self.field_charges)

    @property
    def classical(self) -> Coupling:
        """The coupling of mechanical embedding: the force field's own charges of the region."""
        return Coupling(self.region_charges)

    def mm_part(self, platform: str = "CPU") -> MMPart:
        """`openmm.ask` of the divided System; the CPU platform is in single precision, and faster from 50 waters."""
        return partial(ask, make_context(read_system(self.system_xml, len(self.field_charges)), platform))


def divide(system_xml: str, bonds: np.ndarray, region: Region, charge: int = 0) -> Environment:
    """The System without what the QM describes, and the charges on both sides.

    The capped QM has a whole charge, the force field's region need not: what it is off by crosses the cut bonds
    (`across`).  A host's charge is shared out among its MM neighbours (bonds (B,2)).  So the total charge is that
    of the force field.  Raises UserError for a System that is rigid, periodic, or holds forces that
    cannot be divided.
    """
    import openmm

    try:
        system = openmm.XmlSerializer.deserialize(system_xml)
        n = system.getNumParticles()
    except (ValueError, AttributeError, openmm.OpenMMException):
        raise UserError("the environment's XML holds no OpenMM System; write one with XmlSerializer") from None
    if system.getNumConstraints():
        raise UserError(f"the environment has {system.getNumConstraints()} rigid bonds; the schemes need a flexible "
                        "one: createSystem(constraints=None, rigidWater=False)")
    if any(system.isVirtualSite(i) or system.getParticleMass(i)._value <= 0 for i in range(n)):
        raise UserError("the environment has virtual sites or massless particles; use a three-site water such as TIP3P")
    if system.usesPeriodicBoundaryConditions():
        raise UserError("the environment is periodic, and the QM sees no images; use a droplet "
                        "(nonbondedMethod=NoCutoff)")
    is_qm = np.zeros(n, dtype=bool)
    is_qm[region.atoms] = True
    charges = across(_divide_nonbonded(system, region, is_qm), region, charge)
    return Environment(region, _drop_terms(openmm.XmlSerializer.serialize(system), region, is_qm),
                       share_out(charges, bonds, region),
                       np.concatenate([charges[region.atoms], np.zeros(len(region.hosts))]))


def _divide_nonbonded(system, region: Region, is_qm: np.ndarray) -> np.ndarray:
    """Take the QM atoms out of the NonbondedForce in place; returns the charges (N,) it had."""
    import openmm

    charges = np.zeros(system.getNumParticles())
    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            of_force = np.array([force.getParticleParameters(i)[0]._value for i in range(len(charges))])
            charges += of_force
            for i in region.atoms.tolist():
                force.setParticleParameters(i, 0.0, *force.getParticleParameters(i)[1:])
            listed = set()
            for e in range(force.getNumExceptions()):
                i, j, _, sigma, epsilon = force.getExceptionParameters(e)
                if is_qm[i] and is_qm[j]:
                    force.setExceptionParameters(e, i, j, 0.0, 1.0, 0.0)
                    listed.add((min(i, j), max(i, j)))
                elif is_qm[i] or is_qm[j]:
                    force.setExceptionParameters(e, i, j, 0.0, sigma, epsilon)
            atoms = sorted(region.atoms.tolist())
            for i, j in ((i, j) for k, i in enumerate(atoms) for j in atoms[k + 1:]):
                if (i, j) not in listed:
                    force.addException(i, j, 0.0, 1.0, 0.0)
        elif isinstance(force, openmm.CustomBondForce):
            _drop_coulomb(force, is_qm)
    return charges


def _drop_coulomb(force, is_qm: np.ndarray) -> None:
    names = [force.getPerBondParameterName(p) for p in range(force.getNumPerBondParameters())]
    if CHARGE_PRODUCT not in names:
        return
    for b in range(force.getNumBonds()):
        i, j, values = force.getBondParameters(b)
        if is_qm[i] != is_qm[j]:
            values = list(values)
            values[names.index(CHARGE_PRODUCT)] = 0.0
            force.setBondParameters(b, i, j, values)


def across(charges: np.ndarray, region: Region, charge: int) -> np.ndarray:
    """Charges (N,) with what the region's sum is off a whole number moved from its atoms at cut bonds to their hosts.

    That number is `charge`, the QM's, unless the two differ by an electron or more: a region that was ionised
    leaves its environment as it is.
    """
    if not len(region.hosts):
        return charges
    off = charges[region.atoms].sum() - charge
    if abs(off) >= 0.75:  # MMFF94 leaves 0.503 e beyond the C-N bond of an ammonium: no rounding to the nearest
        off -= round(off)
    moved = charges.copy()
    np.subtract.at(moved, region.inside, off / len(region.hosts))  # one QM atom may have several hosts
    moved[region.hosts] += off / len(region.hosts)
    return moved


def share_out(charges: np.ndarray, bonds: np.ndarray, region: Region) -> np.ndarray:
    """Charges (N,) of the QM's field: none on QM atoms and hosts, a host's shared by its MM neighbours."""
    field = charges.copy()
    field[region.atoms] = 0.0
    taken = {*region.atoms.tolist(), *region.hosts.tolist()}
    for host in region.hosts.tolist():
        near = sorted({i + j - host for i, j in np.asarray(bonds).tolist() if host in (i, j)} - taken)
        if not near and abs(field[host]) > 1e-6:
            raise UserError(f"MM atom {host} at the boundary has no MM neighbour to take its charge; move the boundary")
        field[near] += field[host] / max(len(near), 1)
        field[host] = 0.0
    return field


def _drop_terms(xml: str, region: Region, is_qm: np.ndarray) -> str:
    """The XML without the terms that the QM describes; openmm.System itself cannot remove a term."""
    replaced = is_qm.copy()
    replaced[region.hosts] = True
    root = ElementTree.fromstring(xml)
    for force in root.find("Forces"):
        kind = force.get("type")
        if kind not in BONDED | {"NonbondedForce", "CMMotionRemover"}:
            raise UserError(f"the environment holds a {kind}, which cannot be divided between QM and MM; leave it out")
        if kind not in BONDED:
            continue
        for terms in force.iter():
            for term in list(terms):
                atoms = np.unique([int(value) for key, value in term.attrib.items() if TERM.fullmatch(key)]).astype(int)
                if len(atoms) and (is_qm if len(atoms) == 2 else replaced)[atoms].all():
                    terms.remove(term)
    for force in list(root.find("Forces")):
        if force.get("type") == "CMMotionRemover":
            root.find("Forces").remove(force)  # the schemes settle the centre of mass themselves
    return ElementTree.tostring(root, encoding="unicode")
