"""configs/learn.yaml: how a network is learned from nothing but the true physics."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kstep.config import Count, NonNegative, Number, Positive, Temperature, Timestep
from kstep.training.train_config import FitConfig

FEW_LABELS = 500  # up to which a fit makes all its passes
Share = Annotated[float, Field(gt=0, le=1), Number]


class LearnConfig(FitConfig):
    """The self-learning loop; the keys of FitConfig say how each network is fitted."""

    learn_replicas: Count = 16  # chains while learning, on the rungs of as many ladders as that makes
    ladder_top_K: Temperature = 600.0  # of the network's ladder, whose rungs are all learned
    hot_temperature_K: Temperature = 450.0  # of true dynamics: the bootstrap, and the search for holes
    bootstrap_labels_per_atom: Positive = 8.0  # true calls of plain hot MD before the first network
    bootstrap_dt_fs: Timestep = 1.5  # of true dynamics, with hydrogens of learn_hydrogen_mass_Da
    bootstrap_redraw_steps: Count = 8  # timesteps between velocity redraws
    inner_dt_fs: Timestep = 1.5  # timestep of the network's moves
    learn_hydrogen_mass_Da: Positive = 4.0
    learn_moves: Count = 5  # of the network, between two questions to the truth
    learn_move_fs: Positive = 100.0  # mean length of a move
    round_growth: Share = 0.4  # labels of a round, as a share of those there are
    round_passes: Positive = 100.0  # over all labels, in the fit of a round; the last: fit_passes, or 2 or 4 times that
    samples_wanted: Count = 200  # independent samples of the slowest torsion that the network is to serve for
    fit_cost_calls: NonNegative | None = None  # of fit and chains of a round per label, in true calls; null: measured
    hole_kT: Positive = 10.0  # E_true - E_network this far from its median is a hole, or a false wall
    search_steps: Count = 6  # timesteps of hot true dynamics, from every start, that look for them
    verify_proposals: Count = 96  # states of the ladder that must show none, before learning ends
    max_true_calls: Count = 20000  # then the best network so far is kept, with a warning
    least_share: NonNegative = 0.1  # of the weights of a run: below, what it asked is learned too; 0: never
    difference_batch: Count = 10  # --via: labels of the dear truth between two fits of its difference to the cheap one

    def passes(self, wanted: float, n_labels: int) -> float:
        """Over n_labels: `wanted` while they are few.

        Of more labels each is seen less often, so that a fit's steps grow as their two-thirds power.
        """
        return wanted * min(1.0, (FEW_LABELS / n_labels) ** (1 / 3))
