"""What the schemes have in common that draw momenta, propose with the network and let the true energy decide."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from kstep.config import Number, Positive
from kstep.errors import UserError
from kstep.scheme_traits import SchemeTraits
from kstep.schemes.base import RunConfig, Scheme
from kstep.schemes.state import Info
from kstep.units import kT

TUNED_HYDROGEN_DA = 4.0
MOST_EXPONENT = 300.0  # whose square, summed over a run, is still a number

SAMPLER_TRAITS = SchemeTraits(head="energy", keeps_velocities=False, sets_temperature=True, can_refuse=True,
                              has_identity=True, needs_forces=False)


class SamplerConfig(RunConfig):
    """Their keys: any masses, and choices that are measured before production."""

    hydrogen_mass_Da: Positive | None = Field(None, description="mass of the sampler's hydrogens")
    hessian_masses: bool = Field(False, description="masses from the diagonal of the network's Hessian")
    tune: bool | None = Field(None, description="what is null of the sampler's choices is chosen by measurement")
    integrator_acceptance: Annotated[float, Field(ge=0.5, lt=1), Number] = Field(
        0.95, description="of the network's own dynamics, at the timestep that tune chooses")
    shortest_mean_fs: Positive = Field(200.0, description="of the mean length that tune chooses")
    keep_species: bool = Field(True, description="walls where a bond breaks, a proton moves or a named stereocentre "
                                                 "turns over")

    def walls(self, molecule) -> Callable[[np.ndarray], np.ndarray] | None:
        """inside(positions (S,N,3) nm) -> (S,) of a Molecule's species, None without walls."""
        return molecule.species().inside if self.keep_species else None


class Sampler(Scheme):
    """A proposal is accepted with min(1, exp(-delta_H/kT)); over all of them <exp(-delta_H/kT)> = 1.

    With walls, one that ends outside is refused untested and its delta_H is NaN.  The proposal is reversible, so as
    many lead out of the walls as in: the identity holds for those that end inside, and for no other choice (with
    exp(-inf) = 0 for the others the mean would be the share that ends inside).  Where the truth has no number, delta_H
    is infinite, and all that is a wall too.
    """

    def temperature_K(self, n_replicas: int) -> np.ndarray:
        """Temperature (R,) in K of each replica's test."""
        raise NotImplementedError

    def count(self, info: Info) -> dict:
        """What acceptance and <exp(-beta dH)> with its error are made of."""
        beta = 1.0 / kT(self.temperature_K(len(info.delta_H)))
        weight = np.exp(np.minimum(-beta * info.delta_H, MOST_EXPONENT))[np.isfinite(info.delta_H)]
        return {"sum_exp": float(weight.sum()), "sum_exp_squared": float((weight**2).sum()),
                "untested": int(np.isinf(info.delta_H).sum()),  # and not at the walls
                "failed_true_calls": int(info.failures.sum())}

    @classmethod
    def summarise(cls, sums: dict) -> dict:
        """acceptance; mean_exp_minus_beta_dH and its error, as if proposals were independent, where any was tested."""
        if not sums["macro_steps"]:
            return {}
        acceptance = {"acceptance": sums["accepted"] / sums["macro_steps"]}
        n = sums["macro_steps"] - sum(sums.get("walls", {}).values()) - sums.get("untested", 0)
        if not n:
            return acceptance
        mean = sums["sum_exp"] / n
        error = float(np.sqrt(max(sums["sum_exp_squared"] / n - mean**2, 0.0) / max(n - 1, 1)))
        return {**acceptance, "mean_exp_minus_beta_dH": mean, "mean_exp_minus_beta_dH_error": error}

    @classmethod
    def progress(cls, sums: dict) -> str:
        """Acceptance so far."""
        return f"acceptance {sums['accepted'] / sums['macro_steps']:.2f}"

    @classmethod
    def last_words(cls, metadata: dict) -> str:
        """Acceptance, identity, and how often chains came to the walls."""
        parts = [f"acceptance {metadata['acceptance']:.3f}"]
        walls = (metadata.get("figures") or {}).get("refused_at_walls", [])
        if "mean_exp_minus_beta_dH" in metadata:
            parts.append(f"<exp(-beta dH)> = {metadata['mean_exp_minus_beta_dH']:.3f} +- "
                         f"{metadata['mean_exp_minus_beta_dH_error']:.3f}")
        if any(walls):
            parts.append(f"{' / '.join(f'{100 * share:.2g}' for share in walls)} % refused at walls")
        return ", ".join(parts)


def swap_acceptance(sums: dict) -> dict:
    """{"swap_acceptance": share of offers that each pair of rungs agreed to}; sums["swaps"]: {pair: [n, agreed]}."""
    pairs = sums.get("swaps")
    if not pairs:
        return {}
    return {"swap_acceptance": [agreed / offered if offered else None
                                for offered, agreed in (pairs[rung] for rung in sorted(pairs, key=int))]}


def settled_masses(config: SamplerConfig) -> dict[str, Any]:
    """hydrogen_mass_Da of the sampler, heavier where it is tuned; UserError for masses that contradict each other."""
    if config.hydrogen_mass_Da is not None and config.hessian_masses:
        raise UserError("hydrogen_mass_Da and hessian_masses both set the sampler's masses; use one of them")
    if config.tune and not config.hessian_masses:
        return {"hydrogen_mass_Da": config.hydrogen_mass_Da or TUNED_HYDROGEN_DA}
    return {"hydrogen_mass_Da": config.hydrogen_mass_Da}


def check_start_energies(energy: np.ndarray) -> None:
    """UserError where what proposes has no energy (R,) kJ/mol at a start, which no move of it would ever leave."""
    lost = int(np.isnan(energy).sum())
    if lost:
        raise UserError(f"what makes the proposals has no energy at {lost} of {len(energy)} start geometries, which no "
                        "chain would leave; start from other geometries, or take another network or --propose-with")


def check_mover(config: SamplerConfig) -> None:
    """UserError where delta_scale leaves no network whose force could move the molecule."""
    if config.delta_scale == 0:
        raise UserError("a sampler moves by the network's force alone, so delta_scale 0 leaves it none; use impulse or "
                        "plain for a run without a network")


def check_rungs(config: Any, key: str) -> None:
    """UserError for a ladder (the list under `key`) that does not rise, or does not begin at the target."""
    ladder = getattr(config, key)
    if any(b <= a for a, b in itertools.pairwise(ladder)):
        raise UserError(f"{key} must rise from the target temperature upwards, not {ladder}")
    if config.temperature_K not in (None, ladder[0]):
        raise UserError(f"temperature_K {config.temperature_K:g} is not the first rung of {key} {ladder}")
