"""QM/MM as a source of truth: the one contract of `Physics`, for all atoms of region and environment."""

from __future__ import annotations

from typing import Any

import numpy as np

from kstep.errors import UserError, did_you_mean
from kstep.forces.base import WATER_NM, Backend, KnownEnergy, Physics
from kstep.forces.openmm import read_system
from kstep.forces.qmmm.embedding import ENGINES, Answer, Field
from kstep.forces.qmmm.link import Region
from kstep.forces.qmmm.system import divide

EMBEDDINGS = ("electrostatic", "mechanical")


class QMMMPhysics(Physics):
    """N atoms, some of them QM, all others in an OpenMM System without a periodic box.

        electrostatic   E = E_QM(x_capped; Q, x_MM) + E_MM(x)             the charges polarise the QM
        mechanical      E = E_QM(x_capped) + sum_ij q_i Q_j / r_ij + E_MM(x)   q: the force field's charges

    system_xml: the force field of all atoms as if none were QM (see `system.divide`); bonds (B,2): where
    they are cut; qm_atoms: the region; charge, multiplicity: of the capped region; engine: what computes it,
    with the settings of that backend.  What the QM itself said goes with every answer (`extra`): labels of a network
    come from there.
    """

    def __init__(self, numbers, masses, *, system_xml: str, bonds, qm_atoms, charge: int = 0, multiplicity: int = 1,
                 embedding: str = "electrostatic", engine: str = "xtb", platform: str = "Reference", **settings):
        super().__init__(numbers, masses)
        if embedding not in EMBEDDINGS:
            raise UserError(f"unknown embedding '{embedding}'{did_you_mean(embedding, EMBEDDINGS)}")
        if engine not in ENGINES:
            raise UserError(f"backend '{engine}' computes no forces on point charges; a QM region needs one of "
                            f"{', '.join(ENGINES)}")
        read_system(system_xml, len(self.numbers))
        self.region = Region.cut(self.numbers, bonds, qm_atoms)
        self.environment = divide(system_xml, bonds, self.region, charge)
        self.field_atoms = self.environment.field_atoms
        self.field_charges = self.environment.field_charges[self.field_atoms]
        engine_of_region: Any = ENGINES[engine]
        self._qm: Any = engine_of_region(
            self.region.capped_numbers(self.numbers), self.region.capped_masses(self.masses), charge=charge,
            multiplicity=multiplicity, **settings)
        self._mm = self.environment.mm_part(platform)
        self._coupling = self.environment.classical if embedding == "mechanical" else None

    def extra(self) -> dict[str, np.ndarray]:
        """The QM's own: qm_energy kJ/mol, qm_forces (n+L,3) on the capped region, field_forces (m,3) on the charges."""
        answer = self._answer
        return {"qm_energy": np.asarray(answer.energy), "qm_forces": answer.forces, "field_forces": answer.field_forces}

    def field_at(self, positions: np.ndarray) -> Field:
        """The charges around the region at positions (N,3)."""
        return Field(self.numbers[self.field_atoms], self.field_charges, positions[self.field_atoms])

    def _compute(self, positions, slot):
        self._answer = answer = self._ask(self.region.capped(positions), self.field_at(positions))
        energy, forces = self._mm(positions)
        forces = forces + self.region.spread(answer.forces, positions)
        forces[self.field_atoms] += answer.field_forces
        return energy + answer.energy, forces

    def _ask(self, capped: np.ndarray, field: Field) -> Answer:
        if self._coupling is None:
            return self._qm.in_field(capped, field)
        none = np.zeros(0)
        alone = self._qm.in_field(capped, Field(none, none, none.reshape(0, 3)))
        energy, on_sites, on_field = self._coupling.energy_and_forces(capped, field.positions, field.charges)
        return Answer(alone.energy + float(energy), alone.forces + on_sites, on_field)


def _water_in_water() -> dict:
    from kstep.molecules.droplet import solvate
    from kstep.molecules.prepare import prepare_molecule

    pair = solvate(prepare_molecule("water", "O"), 1)
    return {"system_xml": pair.system_xml, "bonds": pair.bonds.tolist(), "qm_atoms": [0, 1, 2], "engine": "pyscf",
            "functional": "HF", "basis": "STO-3G"}


BACKEND = Backend(
    QMMMPhysics, None, packages=("openmm", "pyscf"), install="pip install openmm, and pyscf or xtb for the QM",
    known=KnownEnergy(-196801.8857, _water_in_water, numbers=(8, 1, 1) * 2,
                      positions=(*WATER_NM, *((x, 0.29, z) for x, _, z in WATER_NM))))
