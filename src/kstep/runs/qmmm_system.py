"""A QM region in its surroundings as runs and learning take it: all atoms as a molecule, and the region as another."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kstep.errors import UserError
from kstep.forces import PhysicsSpec, qmmm_spec
from kstep.forces.openmm import with_restraints
from kstep.forces.qmmm.link import Region
from kstep.molecules.droplet import Surroundings, settle
from kstep.molecules.molecule import Molecule
from kstep.restraints import Restraint, check_restraints

log = logging.getLogger("kstep")

SETTLE_PS = 2.0  # of Langevin dynamics in the force field, before each start


@dataclass(frozen=True)
class QMMMSystem:
    """molecule: all N atoms, its conformers the settled starts; region: the capped region, as its network knows it;
    spec: the true physics; facts: what a run's metadata says of it."""

    molecule: Molecule
    region: Molecule
    spec: PhysicsSpec
    facts: dict


def embed(name: str, surroundings: Surroundings, qm_atoms, config, *, smiles: str = "",
          smiles_order: np.ndarray | None = None, multiplicity: int = 1,
          embedding: str = "electrostatic", n_starts: int = 1, seed: int = 0, facts: dict | None = None,
          restraints: Sequence[Restraint] = ()) -> QMMMSystem:
    """The system whose atoms qm_atoms are QM as `config` (a QMConfig or PyscfConfig) says, with n_starts settled.

    smiles: of what is no water, smiles_order as in a Molecule; multiplicity: of the region, whose charge is that of its
    atoms, where the config names neither; facts: more of them for the metadata; restraints: on any of the atoms, under
    which the starts settle too.  Raises UserError for a region that cannot be cut out or computed.
    """
    check_restraints(restraints, len(surroundings.numbers))
    own = surroundings.charge_of(qm_atoms)
    if surroundings.bond_orders is not None and config.charge not in (None, own):  # else own is the force field's guess
        raise UserError(f"charge: {config.charge} of the config contradicts the QM region, whose formal charges add up "
                        f"to {own:+d}; leave it null, or name the ion that is meant")
    spec = qmmm_spec(surroundings, qm_atoms, config, charge=own, multiplicity=multiplicity, embedding=embedding)
    spec = replace(spec, restraints=tuple(restraints))
    physics: Any = spec.build()  # refused now, not after the settling
    region = physics.region
    log.info("%d atoms, %d of them QM, %d link atoms; %s by %s, %s embedding", len(surroundings.numbers),
             len(region.atoms), len(region.hosts), config.method, spec.settings["engine"], embedding)
    held = replace(surroundings, system_xml=with_restraints(surroundings.system_xml, restraints))
    starts = settle(held, config.temperature_K, SETTLE_PS, seed, n_starts)
    orders = surroundings.bond_orders
    molecule = Molecule(name, smiles, surroundings.numbers, surroundings.masses, surroundings.bonds,
                        np.ones(len(surroundings.bonds)) if orders is None else orders, starts, np.zeros(n_starts),
                        round(float(np.sum(surroundings.charges))), multiplicity, "none",
                        np.concatenate([region.atoms, region.hosts]), smiles_order)
    capped = capped_molecule(region, surroundings, starts, spec.settings["charge"], spec.settings["multiplicity"])
    return QMMMSystem(molecule, capped, spec, {
        "qm_atoms": [int(a) for a in qm_atoms], "link_hosts": region.hosts.tolist(), "embedding": embedding,
        **(facts or {})})


def capped_molecule(region: Region, surroundings: Surroundings, positions: np.ndarray, charge: int,
                    multiplicity: int) -> Molecule:
    """The capped region as a Molecule for its network: its atoms, then link atoms; positions (S,N,3) nm of all."""
    bonds, geometries = region.capped_bonds(surroundings.bonds), region.capped(positions)
    return Molecule("region", "", region.capped_numbers(surroundings.numbers),
                    region.capped_masses(surroundings.masses),
                    bonds, np.ones(len(bonds)), geometries, np.zeros(len(geometries)), charge, multiplicity, "none")
