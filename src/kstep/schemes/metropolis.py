"""Self-learning hybrid Monte Carlo: the network proposes, the true energy decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from kstep.config import Temperature
from kstep.errors import UserError
from kstep.schemes.ladder import TemperatureLadder, ladder_of
from kstep.schemes.maxwell import draw_velocities
from kstep.schemes.sampler import (
    SAMPLER_TRAITS,
    Sampler,
    SamplerConfig,
    check_mover,
    check_rungs,
    settled_masses,
    swap_acceptance,
)
from kstep.schemes.state import Info, Proposal, State, kinetic_energy, put_rows, said_besides
from kstep.units import PS_PER_FS, kT

DEFAULT_STEPS = 1000


class MetropolisConfig(SamplerConfig):
    """The keys of metropolis: its sampler may have any masses, lengths and ladder, and stays exact."""

    length_law: Literal["uniform", "fixed"] = Field("uniform", description="k_steps is the mean length, or the length")
    tempering_K: Annotated[list[Temperature], Field(min_length=2, max_length=1000)] | None = Field(
        None, description="a ladder of temperatures whose rungs exchange configurations, the target first")


class Metropolis(Sampler):
    """k velocity-Verlet steps on the network's conservative force, accepted with

        min(1, exp(-[H(x_k, v_k) - H(x_0, v_0)] / kT)),   H = U_true(x) + sum_i m_i v_i^2 / 2

    Velocities are drawn anew before every proposal, the map is reversible and preserves volume,
    so positions sample exp(-U_true/kT) exactly whatever the network's error: Duane et al.,
    Phys. Lett. B 195, 216 (1987).  `masses` are the sampler's: any positive ones leave the
    distribution of positions as it is.  A failed true call is a rejection.

    The length is k steps, or (`length_law` uniform) drawn anew for every proposal from 1 ... 2k - 1,
    without a look at the state, so that no vibration can be in step with it: Mackenzie, Phys.
    Lett. B 226, 369 (1989).  With a ladder, replicas have temperatures of their own and exchange
    configurations after the test.

    A proposal that ends outside the walls is refused, as if U_true were infinite there: exact for what is inside.
    """

    name = "metropolis"
    traits = SAMPLER_TRAITS
    Config = MetropolisConfig

    def __init__(self, carry, masses: np.ndarray, dt_ps: float, k_steps: int, temperature_K: float, *,
                 length_law: str = "fixed", ladder: TemperatureLadder | None = None, needs_forces: bool = True,
                 inside: Callable[[np.ndarray], np.ndarray] | None = None):
        """The test takes energies alone: without needs_forces no true force is asked for, and State.forces is NaN.

        inside(x (S,N,3)) -> (S,): its walls.
        """
        super().__init__(None, carry, masses, dt_ps, k_steps)
        self.inside = inside
        self.length_law, self.needs_forces = length_law, needs_forces
        self.ladder = ladder or TemperatureLadder((temperature_K,))
        self.group = self.ladder.n_rungs

    @classmethod
    def settle_defaults(cls, config, checkpoint, baseline) -> dict:
        """1000 timesteps of the baseline's length, where tuning does not choose them."""
        check_mover(config)
        check_ladder(config)
        settled = settled_masses(config)
        if config.tempering_K:
            settled["temperature_K"] = config.tempering_K[0]
        if not config.tune:
            settled.update(k_steps=config.k_steps or DEFAULT_STEPS, dt_fs=config.dt_fs or baseline.dt_fs)
        return settled

    @classmethod
    def build(cls, config, molecule, *, network, carry, masses, needs_forces) -> Metropolis:
        """With the sampler's masses and its ladder."""
        return cls(carry, masses, config.dt_fs * PS_PER_FS, config.k_steps, config.temperature_K,
                   length_law=config.length_law, ladder=ladder_of(config), needs_forces=needs_forces,
                   inside=config.walls(molecule))

    def temperature_K(self, n_replicas: int) -> np.ndarray:
        """Temperature (R,) in K of each replica's test."""
        return self.ladder.of(n_replicas)

    def draw_velocities(self, state: State, rng: np.random.Generator) -> np.ndarray:
        """Velocities (R,N,3) nm/ps that the next proposal begins with."""
        return draw_velocities(state.n_replicas, self.masses, self.ladder.of(state.n_replicas), rng)

    def draw_length(self, rng: np.random.Generator) -> int:
        """Timesteps of the next proposal."""
        return int(rng.integers(1, 2 * self.k_steps)) if self.length_law == "uniform" else self.k_steps

    def propose(self, state: State, info: Info, rng: np.random.Generator) -> Proposal:
        """New momenta and the network's dynamics for every replica."""
        rows = np.arange(state.n_replicas)
        start = self.draw_velocities(state, rng)
        # the dice are cast here, before the answer is known
        log_u = np.log(rng.random(len(rows)))
        n_steps = self.draw_length(rng)
        positions, velocities = self.carry(state.positions, start, self.masses, self.dt_ps, n_steps)
        return Proposal(rows, positions, velocities, np.full(len(rows), n_steps), {"start": start, "log_u": log_u})

    def settle(self, state: State, info: Info, proposal: Proposal, truth,
               rng: np.random.Generator) -> tuple[State, Info]:
        """Accept or reject each replica on the true energy."""
        rows, start = proposal.rows, proposal.extra["start"]
        with np.errstate(over="ignore", invalid="ignore"):
            delta_H = (truth.energy + kinetic_energy(proposal.velocities, self.masses)
                       - state.energy[rows] - kinetic_energy(start, self.masses))
        delta_H = np.where(np.isfinite(delta_H), delta_H, np.inf)
        if self.inside is not None:
            delta_H = np.where(self.inside(proposal.positions), delta_H, np.nan)  # untested, and never accepted
        accepted = proposal.extra["log_u"] < -delta_H / kT(self.ladder.of(len(rows)))

        def choose(new, old):
            return np.where(accepted.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        state = put_rows(state, rows, positions=choose(proposal.positions, state.positions[rows]),
                         velocities=choose(proposal.velocities, start),
                         energy=choose(truth.energy, state.energy[rows]),
                         forces=choose(truth.forces, state.forces[rows]),
                         **{name: choose(values, getattr(state, name)[rows])
                            for name, values in said_besides(state, truth).items()})
        state, swapped = self.ladder.swap(state, state.step // self.k_steps, rng)
        info = put_rows(info, rows, pending=0, attempts=info.attempts[rows] + 1, inner_steps=proposal.span,
                        failures=info.failures[rows] + truth.failed, accepted=accepted, delta_H=delta_H)
        return state, replace(info, swapped=swapped)

    def count(self, info: Info) -> dict:
        """What acceptance, <exp(-beta dH)> with its error, and the rungs' exchanges are made of."""
        n_rungs, swaps = self.ladder.n_rungs, {}
        for rung in range(n_rungs - 1):
            asked = info.swapped[rung::n_rungs]
            swaps[str(rung)] = [int((asked >= 0).sum()), int((asked == 1).sum())]
        outside = np.isnan(info.delta_H).reshape(-1, n_rungs).sum(axis=0)
        return {**super().count(info), "swaps": swaps, "walls": {str(i): int(n) for i, n in enumerate(outside)}}

    @classmethod
    def summarise(cls, sums: dict) -> dict:
        """And swap_acceptance, of the pairs of rungs; figures: the share that walls refused on each rung."""
        out, walls = {**super().summarise(sums), **swap_acceptance(sums)}, sums.get("walls", {})
        if out and walls:
            out["figures"] = {"refused_at_walls": [walls[rung] * len(walls) / sums["macro_steps"]
                                                   for rung in sorted(walls, key=int)]}
        return out


def check_ladder(config: MetropolisConfig) -> None:
    """UserError for a ladder that cannot be climbed."""
    ladder = config.tempering_K
    if ladder is None:
        return
    check_rungs(config, "tempering_K")
    replicas = config.replicas or Metropolis.default_replicas
    if replicas % len(ladder):
        raise UserError(f"{replicas} replicas cannot be dealt out evenly to the {len(ladder)} rungs of "
                        f"tempering_K; use a multiple of {len(ladder)}")
