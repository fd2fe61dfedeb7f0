"""What a scheme is: two pure functions around the one true call, and everything it says of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from kstep.config import (
    BaselineConfig,
    Config,
    Count,
    NonNegative,
    Number,
    Positive,
    Replicas,
    Temperature,
    Timestep,
    Whole,
)
from kstep.restraints import Restraint
from kstep.scheme_traits import SchemeTraits
from kstep.schemes.state import Info, Proposal, State
from kstep.units import PS_PER_FS


class RunConfig(Config):
    """The keys of configs/hybrid.yaml that runs with any scheme read."""

    scheme: str | None = None  # null: see kstep.schemes.PREFERRED
    k_steps: Count | None = None  # null: the scheme's own default
    dt_fs: Timestep | None = None  # null: the baseline's
    steps: Count | None = None  # macro-steps = true calls per replica; null: see kstep.runs.aim.settle_end
    effective_samples: Count | None = None  # aim: of the slowest torsion and of the energy
    population_error: Annotated[float, Field(gt=0, lt=0.5), Number] | None = None  # aim: of any conformer's population
    max_true_calls: Count | None = None  # within which the aim is to be reached
    max_hours: Positive | None = None
    burn_in_steps: Whole | None = None  # macro-steps marked as equilibration; null: the scheme's own default
    replicas: Replicas | None = None  # null: the scheme's own default
    temperature_K: Temperature | None = None  # null: the baseline's
    restraints: tuple[Restraint, ...] | None = None  # null: the baseline's
    thermostat: Literal["none", "langevin"] = "langevin"  # around schemes that set no temperature themselves
    friction_per_ps: NonNegative = 5.0
    delta_scale: NonNegative = 1.0  # scales the learned correction
    inner: Literal["auto", "numpy", "eager", "sparse", "compiled",
                   "graphs"] = "auto"  # how the network's force is computed
    store_forces: bool | None = None  # true forces in the trajectory; null: unless they would cost extra
    save_interval_steps: Count = 1  # macro-steps between stored frames
    checkpoint_interval: Count = 100  # macro-steps between restart files


class Scheme:
    """Two functions of (state, info) around the one true call, and what others ask of them.

    name: what --scheme and metadata call it; traits: what it needs and promises; Config: RunConfig with the keys
    that are its own; default_fs: about how long a macro-step is where k_steps is null; default_burn_in (None: it says
    so when it settles its other defaults) and default_replicas: of the keys that are null.

    Each one has network (None where it reads none); carry(x, v, masses, dt_ps, n_steps), the network's dynamics (see
    kstep.runs.network_dynamics); masses (N,) Da of the velocities it keeps; dt_ps; k_steps (baseline timesteps of a
    macro-step); group (replicas that must stay in one half-batch); needs_forces (whether true calls ask for forces);
    inside(x (S,N,3) nm) -> (S,), the walls that none of its replicas leaves (None: there are none).
    """

    name: ClassVar[str]
    traits: ClassVar[SchemeTraits]
    Config: ClassVar[type[RunConfig]] = RunConfig
    default_fs: ClassVar[float | None] = None
    default_burn_in: ClassVar[int | None] = 20
    default_replicas: ClassVar[int] = 16

    group: int = 1
    needs_forces: bool = True
    inside: Callable[[np.ndarray], np.ndarray] | None = None
    freezes: ClassVar[bool] = False  # whether burn-in decides something of it
    frozen: dict[str, Any] | None = None  # what `freeze` has settled, plain JSON for the restart file and the metadata

    def __init__(self, network, carry, masses: np.ndarray, dt_ps: float, k_steps: int):
        self.network, self.carry, self.dt_ps, self.k_steps = network, carry, dt_ps, k_steps
        self.masses = np.asarray(masses, dtype=np.float64)

    def propose(self, state: State, info: Info, rng: np.random.Generator) -> Proposal:
        """Where the true potential is asked next, for every pending replica; no true call."""
        raise NotImplementedError

    def settle(self, state: State, info: Info, proposal: Proposal, truth,
               rng: np.random.Generator) -> tuple[State, Info]:
        """What the answer makes of it: a kick, a test, or only a record.  truth: kstep.forces.pool.Truth."""
        raise NotImplementedError

    def freeze(self, gaps: np.ndarray) -> None:
        """Settle what the first half of burn-in decides; gaps (P,2) kJ/mol: Info.gap of all its macro-steps."""

    @classmethod
    def settle_defaults(cls, config: Any, checkpoint: dict | None, baseline: BaselineConfig) -> dict[str, Any]:
        """What it puts in the place of its nulls, {key: value}; UserError for what contradicts itself or does nothing.

        config: its Config, as given; checkpoint: the loaded network, None without one.
        """
        dt_fs = config.dt_fs or baseline.dt_fs
        return {"dt_fs": dt_fs, "k_steps": config.k_steps or max(1, round((cls.default_fs or dt_fs) / dt_fs))}

    @classmethod
    def build(cls, config: Any, molecule, *, network, carry, masses: np.ndarray, needs_forces: bool) -> Scheme:
        """The scheme of a run with a settled config; here, one that moves by the network's force.

        molecule: a Molecule of all atoms that move; network, carry: None without one (see
        kstep.runs.network_dynamics); masses (N,) Da: the sampler's; needs_forces: whether true forces are kept.
        """
        return cls(network, carry, molecule.masses, config.dt_fs * PS_PER_FS, config.k_steps)

    def delayed_by(self, pool, n_steps: int) -> Scheme:
        """The same behind a cheaper truth that judges n_steps of it per true call, of a scheme that explores."""
        raise NotImplementedError

    @classmethod
    def means(cls, config: Any, molecule, network) -> dict[str, Any]:
        """What a scheme that explores the network has for that besides moves: arguments of a NetworkLadder."""
        return {}

    def count(self, info: Info) -> dict[str, Any]:
        """What one macro-step adds to its sums: numbers, or dicts and lists of numbers, by name; a pure function."""
        return {}

    @classmethod
    def summarise(cls, sums: dict[str, Any]) -> dict[str, Any]:
        """Fractions and means for the metadata, from the sums of a run: keys of RunRecord, the rest under "figures"."""
        return {}

    @classmethod
    def progress(cls, sums: dict[str, Any]) -> str:
        """How its proposals fare so far, for the progress bar; '' says nothing."""
        return ""

    @classmethod
    def last_words(cls, metadata: dict[str, Any]) -> str:
        """What is its own in the line about a finished run; '' says nothing."""
        return ", ".join(f"{metadata['tally'][key]} {words}" for key, words in cls.traits.counters.items())

    @classmethod
    def caveats(cls, config: Any) -> list[str]:
        """What a run with this config does not promise, in sentences; its metadata keep them for the report."""
        return []
