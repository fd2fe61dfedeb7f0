"""What is minimised: a sum of dimensionless terms, each weighed by its lambda.

    energy     <(dE / spread of E)^2>                 force  <(dF / rms of F)^2>
    dx         <|dx| / rms of the remainder>          dv     the same for v_half
    bond       <(dr / 0.001 nm)^2>                    angle  <(dtheta / 1 degree)^2>
    dihedral   <2 (1 - cos dphi)> / (1 degree)^2

dx and dv are norms, not squares: at equal steps that trains to a 15 % lower error.  The remainder is what the
cheap propagator of the jump head misses, per element and per length of jump, so that hydrogens and long jumps
do not drown the rest.  bond, angle and dihedral compare the geometry a jump lands in with the true one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from kstep.errors import UserError
from kstep.training.batches import Targets

BOND_UNIT_NM = 0.001
ANGLE_UNIT = math.radians(1.0)
AVERAGED_OVER = {"energy": "windows", "force": "atoms", "direct_force": "atoms", "dx": "atoms", "dv": "atoms",
                 "struct_bond": "bonds", "struct_angle": "angles", "struct_dihedral": "torsions"}


@dataclass(frozen=True)
class Scales:
    """energy: spread of the training energies beyond their references, kJ/mol; force: rms, kJ/mol/nm."""

    energy: float
    force: float


def check_weights(config, heads) -> None:
    """Refuse a lambda whose head the model lacks, and a loss without any term."""
    if not heads.jump:
        for name in ("lambda_struct_bond", "lambda_struct_angle", "lambda_struct_dihedral"):
            if getattr(config, name):
                raise UserError(f"{name} weighs where a jump lands, but the model has no jump head "
                                "(heads: {jump: true})")
    live = (heads.energy and config.lambda_energy + config.lambda_force) or (
        heads.jump and config.lambda_dx + config.lambda_dv)
    if not live:
        raise UserError("every lambda of the model's heads is 0; there is nothing to train")


def energy_terms(model, batch, targets: Targets, scales: Scales, config, *, training: bool) -> dict:
    """energy and force terms, and sums for the report; `training` keeps the graph for backward."""
    energy, forces = model.energy_and_forces(batch, create_graph=training)
    de, df = energy - targets.energy, forces - targets.forces
    terms = {"energy": (de / scales.energy).square().mean(), "force": (df / scales.force).square().mean()}
    if model.config.use_force_head:
        direct = model.direct_forces(batch) - targets.forces
        terms["direct_force"] = (direct / scales.force).square().mean()
    return terms


def jump_terms(model, batch, targets: Targets, config) -> dict:
    """dx, dv and structural terms of one jump."""
    x_k, v_half = model.jump(batch)
    scale_x, scale_v = model.jump_scales(batch.numbers, batch.tau_ps[batch.graph])
    terms = {"dx": _norm((x_k - targets.x_k) / scale_x).mean(),
             "dv": _norm((v_half - targets.v_half) / scale_v).mean()}
    if config.lambda_struct_bond and len(batch.bonds):
        change = _lengths(x_k, batch.bonds) - _lengths(targets.x_k, batch.bonds)
        terms["struct_bond"] = (change / BOND_UNIT_NM).square().mean()
    if config.lambda_struct_angle and len(targets.angles):
        change = _angles(x_k, targets.angles) - _angles(targets.x_k, targets.angles)
        terms["struct_angle"] = (change / ANGLE_UNIT).square().mean()
    if config.lambda_struct_dihedral and len(targets.torsions):
        cosine, sine = _torsion(x_k, targets.torsions)
        cosine_true, sine_true = _torsion(targets.x_k, targets.torsions)
        apart = 1 - cosine * cosine_true - sine * sine_true  # 1 - cos(phi - phi_true)
        terms["struct_dihedral"] = 2 * apart.mean() / ANGLE_UNIT**2
    return terms


def total(terms: dict, config) -> torch.Tensor:
    """Sum of lambda times term; the direct force head shares lambda_force."""
    weight = {"direct_force": config.lambda_force}
    return sum(weight.get(name, getattr(config, f"lambda_{name}", 0.0)) * value for name, value in terms.items())


def _norm(vector):
    # The shift keeps the gradient of a vanishing error finite.
    return (vector.square().sum(-1) + 1e-12).sqrt()


def _lengths(x, pairs):
    return (x[pairs[:, 0]] - x[pairs[:, 1]]).norm(dim=-1)


def _angles(x, triples):
    a, b = x[triples[:, 0]] - x[triples[:, 1]], x[triples[:, 2]] - x[triples[:, 1]]
    # atan2 stays differentiable at 180 degrees, arccos does not.
    return torch.atan2(torch.linalg.cross(a, b).square().sum(-1).clamp(min=1e-20).sqrt(), (a * b).sum(-1))


def _torsion(x, quads):
    """cos and sin of the dihedral angles (D,)."""
    i, j, k, last = (x[quads[:, c]] for c in range(4))
    axis = k - j
    m, n = torch.linalg.cross(j - i, axis), torch.linalg.cross(axis, last - k)
    size = (m.square().sum(-1) * n.square().sum(-1)).clamp(min=1e-30).sqrt()
    cosine = (m * n).sum(-1) / size
    sine = (torch.linalg.cross(m, n) * axis).sum(-1) / (size * axis.norm(dim=-1))
    return cosine, sine
