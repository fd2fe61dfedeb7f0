"""configs/learn.yaml: how a network is learned from nothing but the true physics."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kstep.config import Count, Number, Positive, Temperature, Timestep
from kstep.training.train_config import FitConfig

Share = Annotated[float, Field(gt=0, lt=1), Number]


class LearnConfig(FitConfig):
    """The self-learning loop; the keys of FitConfig say how each network is fitted."""

    learn_replicas: Count = 16  # chains while learning
    hot_temperature_K: Temperature = 450.0  # of the bootstrap and of the first rounds
    bootstrap_labels_per_atom: Positive = 12.0  # true calls of plain hot MD before the first network
    bootstrap_dt_fs: Timestep = 1.0
    bootstrap_redraw_steps: Count = 8  # timesteps between velocity redraws
    first_length_fs: Positive = 40.0  # mean length of the first proposals; doubled while they are accepted
    last_length_fs: Positive = 800.0  # of the last: labels far apart; never shorter than what production needs
    inner_dt_fs: Timestep = 1.5  # timestep of the proposals, with hydrogens of learn_hydrogen_mass_Da
    learn_hydrogen_mass_Da: Positive = 4.0
    round_passes: Positive = 100.0  # over all labels in the fit of a round; the last fit makes fit_passes
    round_growth: Share = 0.2  # labels of a round, as a share of those there are
    advance_acceptance: Share = 0.5  # colder and longer proposals from here on
    target_acceptance: Share = 0.85  # of proposals at the target temperature and length, after the last fit
    last_fit_gain: Share = 0.08  # how much the long last fit adds to the acceptance of a round
    heldout_energy_kT: Positive = 0.35  # spread of E_true - E_network over proposals not yet learned from
    verify_proposals: Count = 64  # true calls that must confirm both before learning ends
    max_true_calls: Count = 20000  # then the best network so far is kept, with a warning
