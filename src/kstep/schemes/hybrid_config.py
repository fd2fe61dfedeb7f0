"""configs/hybrid.yaml: every key of a hybrid run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kstep.config import Config, Count, NonNegative, Number, Positive, Replicas, Temperature, Timestep, Whole

Scheme = Literal["metropolis", "impulse", "checked", "jump", "plain"]
WITHOUT_NETWORK = {"plain"}  # schemes that ask the true force alone


class HybridConfig(Config):
    """configs/hybrid.yaml: what 06 and 06b do with a network."""

    scheme: Scheme | None = None  # null: metropolis if it can
    k_steps: Count | None = None  # null: 1000 for metropolis, 2 fs for impulse, 16 fs for checked, jump's own
    dt_fs: Timestep | None = None  # null: the baseline's
    steps: Count = 200  # macro-steps = true calls per replica
    burn_in_steps: Whole = 20  # macro-steps marked as equilibration
    replicas: Replicas = 16
    temperature_K: Temperature | None = None  # null: the baseline's
    thermostat: Literal["none", "langevin"] = "langevin"  # around all but metropolis
    friction_per_ps: NonNegative = 5.0
    delta_scale: NonNegative = 1.0  # scales the learned correction
    max_attempts: Count = 3
    max_disp_nm: Positive = 0.1  # per macro-step and atom (jump)
    max_bond_stretch_nm: Positive = 0.05  # beyond the longest bond length seen at the start
    max_energy_jump_kJ_per_mol: Positive = 20.0  # of the true total energy (jump)
    energy_rescale: bool = False  # hides drift; reported when on
    length_law: Literal["uniform", "fixed"] = "uniform"  # metropolis: k_steps is the mean, or the length
    hydrogen_mass_Da: Positive | None = None  # metropolis: free masses of the sampler
    hessian_masses: bool = False  # metropolis: masses from the diagonal of the network's Hessian
    tempering_K: Annotated[list[Temperature], Field(min_length=2, max_length=1000)] | None = None  # a ladder
    tune: bool = False  # metropolis: choose dt_fs and k_steps by measurement where they are null
    integrator_acceptance: Annotated[float, Field(ge=0.5, lt=1), Number] = 0.95  # of the timestep tuning chooses
    shortest_mean_fs: Positive = 200.0  # of the mean length tuning chooses
    project_residual: bool = False  # impulse: kicks that change no bond length or angle distance
    max_energy_spread_kJ_per_mol: Positive | None = None  # checked: of E_true - E_ML; null: no limit
    max_force_rmse_kJ_per_mol_A: Positive | None = None  # checked: of the network's force; null: no limit
    past_tolerance: Literal["stop", "learn"] = "stop"  # checked: what happens then
    inner: Literal["auto", "numpy", "eager", "compiled", "graphs"] = "auto"  # how the network's force is computed
    store_forces: bool | None = None  # true forces in the trajectory; null: unless they would cost extra
    save_interval_steps: Count = 1  # macro-steps between stored frames
    checkpoint_interval: Count = 100  # macro-steps between restart files
