"""Self-learning hybrid Monte Carlo: the network proposes, the true energy decides."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from kstep.config import Number, Positive, Temperature
from kstep.errors import UserError
from kstep.scheme_traits import SchemeTraits
from kstep.schemes.base import RunConfig, Scheme
from kstep.schemes.ladder import TemperatureLadder, ladder_of
from kstep.schemes.maxwell import draw_velocities
from kstep.schemes.state import Info, Proposal, State, kinetic_energy, put_rows
from kstep.units import PS_PER_FS, kT

DEFAULT_STEPS = 1000
TUNED_HYDROGEN_DA = 4.0


class MetropolisConfig(RunConfig):
    """The keys of metropolis: its sampler may have any masses, lengths and ladder, and stays exact."""

    length_law: Literal["uniform", "fixed"] = Field("uniform", description="k_steps is the mean length, or the length")
    hydrogen_mass_Da: Positive | None = Field(None, description="mass of the sampler's hydrogens")
    hessian_masses: bool = Field(False, description="masses from the diagonal of the network's Hessian")
    tempering_K: Annotated[list[Temperature], Field(min_length=2, max_length=1000)] | None = Field(
        None, description="a ladder of temperatures whose rungs exchange configurations, the target first")
    tune: bool = Field(False, description="dt_fs and k_steps chosen by measurement where they are null")
    integrator_acceptance: Annotated[float, Field(ge=0.5, lt=1), Number] = Field(
        0.95, description="of the network's own dynamics, at the timestep that tune chooses")
    shortest_mean_fs: Positive = Field(200.0, description="of the mean length that tune chooses")


class Metropolis(Scheme):
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
    """

    name = "metropolis"
    traits = SchemeTraits(head="energy", keeps_velocities=False, sets_temperature=True, can_refuse=True,
                          has_identity=True, needs_forces=False)
    Config = MetropolisConfig

    def __init__(self, carry, masses: np.ndarray, dt_ps: float, k_steps: int, temperature_K: float, *,
                 length_law: str = "fixed", ladder: TemperatureLadder | None = None, needs_forces: bool = True):
        """The test takes energies alone: without needs_forces no true force is asked for, and State.forces is NaN."""
        super().__init__(None, carry, masses, dt_ps, k_steps)
        self.length_law, self.needs_forces = length_law, needs_forces
        self.ladder = ladder or TemperatureLadder((temperature_K,))
        self.group = self.ladder.n_rungs

    @classmethod
    def settle_defaults(cls, config, checkpoint, baseline) -> dict:
        """1000 timesteps of the baseline's length, where tuning does not choose them."""
        check_sampler(config)
        hydrogen_mass_Da = config.hydrogen_mass_Da
        if config.tune and not config.hessian_masses:
            hydrogen_mass_Da = hydrogen_mass_Da or TUNED_HYDROGEN_DA
        settled = {"hydrogen_mass_Da": hydrogen_mass_Da}
        if config.tempering_K:
            settled["temperature_K"] = config.tempering_K[0]
        if not config.tune:
            settled.update(k_steps=config.k_steps or DEFAULT_STEPS, dt_fs=config.dt_fs or baseline.dt_fs)
        return settled

    @classmethod
    def build(cls, config, molecule, *, network, carry, masses, needs_forces) -> Metropolis:
        """With the sampler's masses and its ladder."""
        return cls(carry, masses, config.dt_fs * PS_PER_FS, config.k_steps, config.temperature_K,
                   length_law=config.length_law, ladder=ladder_of(config), needs_forces=needs_forces)

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
        accepted = proposal.extra["log_u"] < -delta_H / kT(self.ladder.of(len(rows)))

        def choose(new, old):
            return np.where(accepted.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        state = put_rows(state, rows, positions=choose(proposal.positions, state.positions[rows]),
                         velocities=choose(proposal.velocities, start),
                         energy=choose(truth.energy, state.energy[rows]),
                         forces=choose(truth.forces, state.forces[rows]))
        state, swapped = self.ladder.swap(state, state.step // self.k_steps, rng)
        info = put_rows(info, rows, pending=0, attempts=info.attempts[rows] + 1, inner_steps=proposal.span,
                        failures=info.failures[rows] + truth.failed, accepted=accepted, delta_H=delta_H)
        return state, replace(info, swapped=swapped)

    def count(self, info: Info) -> dict:
        """What acceptance, <exp(-beta dH)> with its error, and the rungs' exchanges are made of."""
        beta, n_rungs = 1.0 / kT(self.ladder.of(len(info.delta_H))), self.ladder.n_rungs
        weight = np.exp(np.minimum(-beta * info.delta_H, 700.0))
        swaps = {}
        for rung in range(n_rungs - 1):
            asked = info.swapped[rung::n_rungs]
            swaps[str(rung)] = [int((asked >= 0).sum()), int((asked == 1).sum())]
        return {"sum_exp": float(weight.sum()), "sum_exp_squared": float((weight**2).sum()),
                "failed_true_calls": int(info.failures.sum()), "swaps": swaps}

    @classmethod
    def summarise(cls, sums: dict) -> dict:
        """acceptance; mean_exp_minus_beta_dH and its error, as if proposals were independent; swap_acceptance."""
        n = sums["macro_steps"]
        if not n:
            return {}
        mean = sums["sum_exp"] / n
        error = float(np.sqrt(max(sums["sum_exp_squared"] / n - mean**2, 0.0) / max(n - 1, 1)))
        out = {"acceptance": sums["accepted"] / n, "mean_exp_minus_beta_dH": mean,
               "mean_exp_minus_beta_dH_error": error}
        if sums["swaps"]:
            out["swap_acceptance"] = [agreed / offered if offered else None for offered, agreed in
                                      (sums["swaps"][rung] for rung in sorted(sums["swaps"], key=int))]
        return out

    @classmethod
    def progress(cls, sums: dict) -> str:
        """Acceptance so far."""
        return f"acceptance {sums['accepted'] / sums['macro_steps']:.2f}"

    @classmethod
    def last_words(cls, metadata: dict) -> str:
        """Acceptance and identity."""
        return (f"acceptance {metadata['acceptance']:.3f}, <exp(-beta dH)> = "
                f"{metadata['mean_exp_minus_beta_dH']:.3f} +- {metadata['mean_exp_minus_beta_dH_error']:.3f}")


def check_sampler(config: MetropolisConfig) -> None:
    """UserError for masses that contradict each other and ladders that cannot be climbed."""
    if config.hydrogen_mass_Da is not None and config.hessian_masses:
        raise UserError("hydrogen_mass_Da and hessian_masses both set the sampler's masses; use one of them")
    ladder = config.tempering_K
    if ladder is None:
        return
    if any(b <= a for a, b in itertools.pairwise(ladder)):
        raise UserError(f"tempering_K must rise from the target temperature upwards, not {ladder}")
    if config.temperature_K not in (None, ladder[0]):
        raise UserError(f"temperature_K {config.temperature_K:g} is not the first rung of tempering_K {ladder}")
    if config.replicas % len(ladder):
        raise UserError(f"{config.replicas} replicas cannot be dealt out evenly to the {len(ladder)} rungs of "
                        f"tempering_K; use a multiple of {len(ladder)}")
