"""What is minimised: a sum of dimensionless terms, each weighed by its lambda.

    energy     <(dE / spread of E)^2>                 force  <(dF / rms of F)^2>
    dx         <|dx| / rms of the remainder>          dv     the same for v_half
    bond       <(dr / 0.001 nm)^2>                    angle  <(dtheta / 1 degree)^2>
    dihedral   <2 (1 - cos dphi)> / (1 degree)^2
    angular_momentum  <|L - L_true|^2 / sum of the squares that atoms off by dx and dv of 1 would add to it>

dx and dv are norms, not squares: at equal steps that trains to a 15 % lower error.  The remainder is what the
cheap propagator of the jump head misses, per element and per length of jump, so that hydrogens and long jumps
do not drown the rest.  bond, angle and dihedral compare the geometry a jump lands in with the true one, and
L = sum_i m_i x_i x v_half,i about the centre of mass its rotation.  The centre of mass and the total momentum
need no term: the learned part of a jump moves neither, so that such a term would have no gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from kstep.errors import UserError
from kstep.training.batches import Targets, Windows
from kstep.training.step_plan import Piece
from kstep.training.train_config import TrainConfig

BOND_UNIT_NM = 0.001
ANGLE_UNIT = math.radians(1.0)
AVERAGED_OVER = {"energy": "windows", "force": "atoms", "direct_force": "atoms", "dx": "atoms", "dv": "atoms",
                 "struct_bond": "bonds", "struct_angle": "angles", "struct_dihedral": "torsions",
                 "angular_momentum": "windows"}


@dataclass(frozen=True)
class Scales:
    """energy: spread of the training energies beyond their references, kJ/mol; force: rms, kJ/mol/nm."""

    energy: float
    force: float


def weights(config) -> dict[str, float]:
    """The lambda of each term; the direct force head shares lambda_force."""
    return {"energy": config.lambda_energy, "force": config.lambda_force, "direct_force": config.lambda_force,
            "dx": config.lambda_dx, "dv": config.lambda_dv, "struct_bond": config.lambda_struct_bond,
            "struct_angle": config.lambda_struct_angle, "struct_dihedral": config.lambda_struct_dihedral,
            "angular_momentum": config.lambda_angular_momentum}


def live(config, model_config) -> list[str]:
    """Names of the terms that weigh something for this network."""
    heads = {"energy": model_config.heads.energy, "force": model_config.heads.energy,
             "direct_force": model_config.heads.energy and model_config.use_force_head}
    return [name for name, weight in weights(config).items() if weight and heads.get(name, model_config.heads.jump)]


def ramp(name: str, progress: float, config) -> float:
    """Factor of a term once a share `progress` of all steps is done: structural ones grow from 0 to 1."""
    if not name.startswith("struct_") or progress >= config.struct_warmup_ratio:
        return 1.0
    return progress / config.struct_warmup_ratio


def check_weights(config, heads) -> None:
    """Refuse a lambda whose head the model lacks, and a loss without any term."""
    given = weights(config)
    if not heads.jump:
        for name in ("struct_bond", "struct_angle", "struct_dihedral", "angular_momentum"):
            if given[name]:
                raise UserError(f"lambda_{name} weighs where a jump lands, but the model has no jump head "
                                "(heads: {jump: true})")
    live = (heads.energy and given["energy"] + given["force"]) or (heads.jump and given["dx"] + given["dv"])
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
    """dx, dv, angular momentum and structural terms of one jump."""
    x_k, v_half = model.jump(batch)
    scale_x, scale_v = model.jump_scales(batch.numbers, batch.tau_ps[batch.graph])
    terms = {"dx": _norm((x_k - targets.x_k) / scale_x).mean(),
             "dv": _norm((v_half - targets.v_half) / scale_v).mean()}
    if config.lambda_angular_momentum:
        terms["angular_momentum"] = _angular_momentum_error(batch, x_k, v_half, targets, scale_x, scale_v).mean()
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


def loss_terms(model, data: Windows, piece: Piece, config: TrainConfig, scales, *, training: bool) -> dict:
    """The piece's part of all loss terms of its step."""
    heads, terms = model.config.heads, {}
    structure = heads.jump and bool(config.lambda_struct_angle or config.lambda_struct_dihedral)
    batch, targets = data.batch(piece.windows, at_end=piece.at_end and not heads.jump, labels=piece.labels,
                                turns=piece.turns, structure=structure)
    if heads.energy:
        frames = (batch, targets)
        if piece.at_end and heads.jump:
            frames = data.batch(piece.windows, at_end=True, turns=piece.turns, structure=False)
        terms |= energy_terms(model, *frames, scales, config, training=training)
    if heads.jump:
        terms |= jump_terms(model, batch, targets, config)
    if piece.shares is None:
        return terms
    return {name: value * piece.shares[AVERAGED_OVER[name]] for name, value in terms.items()}


def total(terms: dict, config) -> torch.Tensor:
    """Sum of lambda times term."""
    weight = weights(config)
    return sum(weight[name] * value for name, value in terms.items())


def _angular_momentum_error(batch, x_k, v_half, targets: Targets, scale_x, scale_v) -> torch.Tensor:
    """(P,) squared error of the angular momentum of each molecule, about its true centre of mass.

    1 where every atom is off by its scale in a direction of its own:
    sum_i m_i^2 (2/3) (|x_i|^2 scale_v,i^2 + |v_i|^2 scale_x,i^2).
    """
    def summed(values):
        return values.new_zeros(batch.n_graphs, values.shape[1]).index_add(0, batch.graph, values)

    mass = batch.masses[:, None]
    centre = (summed(mass * targets.x_k) / summed(mass))[batch.graph]
    x, x_true = x_k - centre, targets.x_k - centre
    wrong = summed(mass * (torch.linalg.cross(x, v_half) - torch.linalg.cross(x_true, targets.v_half)))
    usual = mass.square() * (2 / 3) * ((x_true * scale_v).square() + (targets.v_half * scale_x).square())
    return wrong.square().sum(1) / summed(usual).sum(1)


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
