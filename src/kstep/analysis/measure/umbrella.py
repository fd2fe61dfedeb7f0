"""Frames of one run or of many, held by restraints or free, as weighted samples of the ensemble without restraints.

One ensemble of samples: a frame weighs its own weight times exp(W/kT).  Several, such as the windows of an umbrella
sampling, are joined by MBAR of their reduced energies beta (U + W_k), of which U cancels:

    w_n = 1 / sum_k N_k exp(f_k - beta W_k(x_n)),   f_k from the same equation

Shirts & Chodera, J. Chem. Phys. 129, 124105 (2008); pymbar solves it.  Windows that share no configurations cannot be
set against each other, which the overlap matrix shows: Klimovich, Shirts & Mobley, J. Comput.-Aided Mol. Des. 29, 397
(2015), who ask for 0.03 between neighbours.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.special import logsumexp

from kstep.analysis.measure.averages import check_joinable
from kstep.analysis.measure.profile import MOST_FRAMES, production_frames, production_temperature_K
from kstep.errors import UserError
from kstep.importance import BY_NETWORK, BY_RESTRAINTS, diagnose, effective_share, warning
from kstep.restraints import Bias, Restraint
from kstep.schemas import Trajectory
from kstep.scheme_traits import traits_of
from kstep.units import kT

LEAST_OVERLAP = 0.03
FEWEST_CHAINS = 4  # of every window, for an error
SAME_TEMPERATURE_K = 0.5
MOST_GROUPS = 20  # of chains, each left out once


@dataclass(frozen=True)
class Samples:
    """S frames of K ensembles that differ in restraints alone, at one temperature.

    positions (S,N,3) nm; window (S,): which of `windows`, the K sets of restraints; chain (S,): which of the window's
    chains, in time order; log_weight (S,): of frames that are no chain of their own (all 0 where K > 1); reduced_bias
    (K,S): W_k/kT of each set at each frame; notes: what a reader must know of the runs, in sentences.
    """

    positions: np.ndarray
    window: np.ndarray
    chain: np.ndarray
    log_weight: np.ndarray
    reduced_bias: np.ndarray
    windows: tuple[tuple[Restraint, ...], ...]
    temperature_K: float
    molecule: str
    numbers: np.ndarray
    bonds: np.ndarray
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def n_windows(self) -> int:
        """K sets of restraints."""
        return len(self.windows)

    @property
    def chains_per_window(self) -> np.ndarray:
        """Chains (K,) of each window."""
        return np.array([len(np.unique(self.chain[self.window == k])) for k in range(self.n_windows)])

    @cached_property
    def groups(self) -> np.ndarray | None:
        """Group (S,) of each frame, of which each holds chains of every window; None: too few chains for an error."""
        fewest = int(self.chains_per_window.min())
        return self.chain % min(fewest, MOST_GROUPS) if fewest >= FEWEST_CHAINS else None

    @cached_property
    def _solution(self):
        return self._solve(np.ones(len(self), dtype=bool), None)

    @cached_property
    def weights(self) -> np.ndarray:
        """Weights (S,) of the ensemble without restraints, which sum to 1."""
        return self._weights(np.ones(len(self), dtype=bool))

    def weights_without(self, group: int) -> np.ndarray:
        """The same of what is left without the chains of a group, of which every frame weighs 0."""
        assert self.groups is not None
        return self._weights(self.groups != group)

    def _weights(self, kept: np.ndarray) -> np.ndarray:
        out = np.zeros(len(self))
        if self.n_windows == 1:
            exponent = self.log_weight[kept] + self.reduced_bias[0, kept]
        else:
            mbar = self._solution if kept.all() else self._solve(kept, self._solution.f_k)
            log_n = np.log(np.bincount(self.window[kept], minlength=self.n_windows))
            exponent = -logsumexp((mbar.f_k + log_n)[:, None] - self.reduced_bias[:, kept], axis=0)
        out[kept] = np.exp(exponent - logsumexp(exponent))
        return out

    def _solve(self, kept: np.ndarray, start: np.ndarray | None):
        logging.getLogger("pymbar").setLevel(logging.ERROR)  # it greets with what it would like to be installed
        from pymbar import MBAR

        order = np.flatnonzero(kept)[np.argsort(self.window[kept], kind="stable")]
        counts = np.bincount(self.window[kept], minlength=self.n_windows)
        return MBAR(self.reduced_bias[:, order], counts, initial_f_k=start)

    @cached_property
    def overlap(self) -> np.ndarray:
        """Overlap (K,K): how much of window k's frames, in MBAR's eyes, might as well be window l's."""
        if self.n_windows == 1:
            return np.ones((1, 1))
        return np.asarray(self._solution.compute_overlap()["matrix"])

    @property
    def effective_frames(self) -> float:
        """How many frames that weigh alike would say as much, if all were independent."""
        return effective_share(self.weights) * len(self)

    def warnings(self) -> list[str]:
        """What makes these weights doubtful, in sentences."""
        if self.n_windows == 1:
            held = len(self.windows[0]) > 0
            own = self.weights * len(self)
            said = warning(diagnose(own), BY_RESTRAINTS if held else BY_NETWORK) if np.ptp(own) > 0 else None
            return [*self.notes, *([said] if said else [])]
        notes = [*self.notes, *self._of_common_restraints()]
        joined = np.maximum(self.overlap, self.overlap.T) >= LEAST_OVERLAP
        n_parts, part = connected_components(joined, directed=False)
        if n_parts == 1:
            return notes
        parts = [", ".join(str(k) for k in np.flatnonzero(part == p)) for p in range(n_parts)]
        return [*notes, f"windows fall into {n_parts} parts without overlap (below {LEAST_OVERLAP:g}): "
                f"{' | '.join(parts)}; free energies between parts mean nothing, add windows or restrain less"]

    def _of_common_restraints(self) -> list[str]:
        """What is wrong with weighing out the restraints that all windows share, which no other window makes up for."""
        common = [r for r in self.windows[0] if all(r in window for window in self.windows)]
        if not common:
            return []
        reduced = Bias(common).energy(self.positions) / kT(self.temperature_K)
        said = warning(diagnose(np.exp(reduced - reduced.max())), "restrain less in what all windows share")
        held = "; ".join(map(str, common))
        return [f"all windows are held by {held}, and what is shown is without: {said}"] if said else []


def gather(trajectories: Sequence[Trajectory]) -> Samples:
    """The production frames of runs of one molecule, one method and one temperature, as Samples.

    Runs under the same restraints are chains of one window.  Where there are several windows, frames with weights of
    their own are drawn by weight.  UserError for runs that do not belong together, or hold no production.
    """
    first = trajectories[0]
    temperatures_K = [_temperature_K(t) for t in trajectories]
    check_joinable(trajectories)
    lowest, highest = min(temperatures_K), max(temperatures_K)
    if highest - lowest > SAME_TEMPERATURE_K:
        raise UserError(f"runs at {lowest:g} and {highest:g} K cannot be joined: give runs at one temperature")
    windows = tuple(dict.fromkeys(t.restraints for t in trajectories))
    chains = [production_frames(t, temperatures_K[0]) for t in trajectories]
    if not all(chains):
        raise UserError(f"the run of {first.metadata.get('molecule')} has no production frames to average over")
    stride = -(-sum(len(c) for own in chains for c in own) // MOST_FRAMES)
    parts, window, chain, log_weight = [], [], [], []
    taken = dict.fromkeys(windows, 0)
    for t, own in zip(trajectories, chains):
        own = [frames[::stride] for frames in own]
        # each file's weights have a factor of their own
        weight = t.weight if t.is_judged_by_weight else np.ones(len(t.pos))
        mean = weight[np.concatenate(own)].mean()
        if len(windows) > 1 and t.is_judged_by_weight:
            own = _drawn(own, weight)
        for frames in own:
            logs = np.zeros(len(frames)) if len(windows) > 1 else _log(weight[frames] / mean)
            parts.append(t.pos[frames])
            window.append(np.full(len(frames), windows.index(t.restraints)))
            chain.append(np.full(len(frames), taken[t.restraints]))
            log_weight.append(logs)
            taken[t.restraints] += 1
    positions = np.concatenate(parts)
    reduced_bias = np.array([Bias(restraints).energy(positions) for restraints in windows]) / kT(temperatures_K[0])
    follows = {traits_of(t.metadata).ensemble for t in trajectories} - {"true"}
    notes = ("the run does not sample the true potential exactly (see its caveats), nor does what is shown here",
             ) if follows else ()
    return Samples(positions, np.concatenate(window), np.concatenate(chain), np.concatenate(log_weight), reduced_bias,
                   windows, temperatures_K[0], str(first.metadata.get("molecule")), first.atom_types, first.bonds,
                   notes)


def _log(weights: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(weights)


def _drawn(chains: list[np.ndarray], weight: np.ndarray) -> list[np.ndarray]:
    """Frames of the chains of a file that count alike, as many as its weights are worth (systematic resampling).

    Of each chain as many as it weighs beside the others: where they have not mixed, that says how often their places
    are visited.
    """
    frames, ends = np.concatenate(chains), np.cumsum([len(c) for c in chains])
    own = weight[frames]
    n, reached = max(1, int(effective_share(own) * len(own))), np.cumsum(own)
    if not reached[-1] > 0:
        return []
    drawn = np.searchsorted(reached, (np.arange(n) + 0.5) / n * reached[-1])
    parts = np.split(frames[drawn], np.searchsorted(drawn, ends[:-1]))
    return [part for part in parts if len(part)]


def _temperature_K(t: Trajectory) -> float:
    temperature_K = production_temperature_K(t)
    if temperature_K is None:
        raise UserError(f"the run of {t.metadata.get('molecule')} has no production frames to average over")
    return temperature_K
