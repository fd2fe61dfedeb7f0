"""Averages at one temperature with errors, from the frames of runs: chains, weighted frames, ladders of temperatures.

The frames of a rung that sampled the true potential U at another temperature count too.  With N_k frames of rung k, the
weight of a frame in averages at beta is that of MBAR,

    w_n = exp(-beta U_n) / sum_k N_k exp(f_k - beta_k U_n),    sum_n w_n exp(f_k - beta_k U_n + beta U_n) = 1,

of which one rung at another temperature is the simplest case (Shirts & Chodera, J. Chem. Phys. 129, 124105 (2008), eqs.
11 and 13).  Where restraints of energy W held the molecule, U_n + W_n stands for U_n in the sum over rungs alone.  An
average A = sum_n w_n a_n changes by phi_n with every frame, to first order and with what the frame does to the f_k; the
sum of phi over the rungs of a ladder, from one time to the next, is a series whose memory (statistics.estimate_means)
gives the error of A, correlated frames, exchanges and weights included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtr, stdtrit  # scipy.stats, which has them too, takes a second to import

from kstep import importance
from kstep.analysis.measure.statistics import estimate_means, split_r_hat
from kstep.analysis.measure.symmetry import are_stereoisomers
from kstep.errors import UserError
from kstep.schemas import Trajectory, join_trajectories
from kstep.scheme_traits import traits_of
from kstep.units import kT

FEWEST_FRAMES = 4  # of a chain
SAME_TEMPERATURE_K = 0.01
ONE_SIGMA = float(ndtr(1.0))
ROUNDING = 1e-12  # of the largest value: an observable that varies by less is constant


@dataclass(frozen=True)
class Average:
    """Averages of C observables: mean, standard error and effective samples (C,), split-R-hat (C,) of the chains.

    The error has Student's factor, so that the answer lies within it in 68 of 100 cases where few samples tell it too.
    """

    mean: np.ndarray
    error: np.ndarray
    effective_samples: np.ndarray
    r_hat: np.ndarray


@dataclass(frozen=True)
class Ensemble:
    """Frames that stand for one temperature.

    trajectory: all files joined; chains: (T_r,K_r) frames of each independent chain, its K_r rungs side by side;
    weight (F,): of all these frames, chain after chain and time after time, of sum 1; rungs_K (K,): the temperatures
    that frames were sampled at; rung (F,): which of them each frame was; follows: what the frames do, "true", "network"
    or "none"; mixture (F,K): W_nk of MBAR (see below), where rungs are joined.
    """

    trajectory: Trajectory
    temperature_K: float
    chains: list[np.ndarray]
    weight: np.ndarray
    rungs_K: np.ndarray
    rung: np.ndarray
    spacing_ps: float
    follows: str
    mixture: np.ndarray | None = None

    @property
    def frames(self) -> np.ndarray:
        """All frames (F,), indices into the trajectory."""
        return np.concatenate([c.ravel() for c in self.chains])

    @property
    def nearest(self) -> int:
        """The rung whose temperature is nearest."""
        return int(np.abs(self.rungs_K - self.temperature_K).argmin())

    def in_time(self) -> list[np.ndarray]:
        """Places (T_r,) in `frames` of the nearest rung's frames in each chain that has it, in time order."""
        out, start = [], 0
        for chain in self.chains:
            places = start + np.arange(chain.size).reshape(chain.shape)
            out += [column for column in places.T if self.rung[column[0]] == self.nearest]
            start += chain.size
        return out

    def diagnose(self) -> dict | None:
        """kstep.importance.diagnose where frames do not all count alike, else None."""
        return None if np.ptp(self.weight) < 1e-12 * self.weight.max() else importance.diagnose(self.weight)

    def doubt(self) -> str | None:
        """Why averages of these weights cannot be trusted, in words, and the way out; None where they can."""
        found = self.diagnose()
        if found is None:
            return None
        if self.trajectory.is_restrained:
            return importance.warning(found, importance.BY_RESTRAINTS)
        there = np.abs(self.rungs_K - self.temperature_K).min() <= SAME_TEMPERATURE_K
        return importance.warning(found, importance.BY_NETWORK if there else importance.BY_TEMPERATURE)

    def average(self, values: np.ndarray, *, shares: bool = False) -> Average:
        """Averages of values (F,C) of `frames`; shares: they are 0 or 1, and few events are no reason to be sure."""
        values = np.asarray(values, dtype=np.float64)
        mean = self.weight @ values
        spread = np.sqrt(self.weight @ (values - mean)**2)
        constant = spread <= ROUNDING * np.abs(values).max(axis=0)
        spread = np.where(constant, 1.0, spread)
        away = self.weight[:, None] * ((values - mean) / spread)  # whatever unit an observable is measured in
        change = self._centred(away)
        if self.mixture is not None:
            change = change + self._by_free_energies(away)
        series, start = [], 0
        n_times = sum(len(c) for c in self.chains)
        for chain in self.chains:
            part = change[start: start + chain.size].reshape(*chain.shape, -1)
            series.append(part.sum(axis=1) * n_times)
            start += chain.size
        squared = np.maximum(estimate_means(series, self.spacing_ps).mean_variance, 1e-300)
        alike = len(values) * importance.effective_share(self.weight)  # constant, or one frame has all the weight
        samples = np.where(constant, alike, 1.0 / squared)
        squared = squared * spread**2
        if shares:
            mean = np.clip(mean, 0.0, 1.0)  # but for rounding
            share = (mean * samples + 0.5) / (samples + 1.0)
            squared = np.where(constant, 0.0, share * (1.0 - share) / samples)
        factor = stdtrit(np.maximum(samples - 1.0, 1.0), ONE_SIGMA)
        return Average(mean, np.where(constant, 0.0, np.sqrt(squared) * factor), samples, self._r_hat(values))

    def _r_hat(self, values: np.ndarray) -> np.ndarray:
        rows = self.in_time()
        own = [self.trajectory.weights_of(self.frames[r]) for r in rows] if self.trajectory.is_weighted else None
        return split_r_hat([values[r] for r in rows], own)

    def _centred(self, change: np.ndarray) -> np.ndarray:
        """`change` (F,C) about its mean in every rung: how many frames a rung has is no chance."""
        out = change.copy()
        for k in range(len(self.rungs_K)):
            out[self.rung == k] -= out[self.rung == k].mean(axis=0)
        return out

    def _by_free_energies(self, weighted: np.ndarray) -> np.ndarray:
        """What frames change in averages (F,C) by way of the f_k; weighted (F,C): w_n (a_n - A).

        The f_k solve F_k = sum_n W_nk - 1 = 0 with W_nk = exp(f_k - u_kn) / sum_l N_l exp(f_l - u_ln), whose derivative
        is dF_k/df_l = delta_kl - N_l (W^T W)_kl; and dA/df_l = -N_l sum_n w_n (a_n - A) W_nl.
        """
        W, counts = self.mixture, np.bincount(self.rung, minlength=len(self.rungs_K)).astype(float)
        response = np.linalg.pinv(np.eye(len(counts)) - (W.T @ W) * counts)
        slope = -counts[:, None] * (W.T @ weighted)
        return -self._centred(W) @ response.T @ slope


def gather(trajectories: list[Trajectory], temperature_K: float | None = None) -> Ensemble:
    """The production frames of runs of one molecule and method, for averages at a temperature (None: their own).

    A ladder on the true potential (`tempering_K`) gives all its rungs; runs at several temperatures are joined, and
    need one that is asked for.  Raises UserError where there are no frames, and for what cannot be joined.
    """
    check_joinable(trajectories)
    if temperature_K is not None and not 0.0 < temperature_K < np.inf:
        raise UserError(f"an average is one at a temperature above 0, and not at {temperature_K:g} K")
    whole = join_trajectories(trajectories) if len(trajectories) > 1 else trajectories[0]
    chains, start = [], 0
    for t in trajectories:
        chains += [start + chain for chain in _chains(t)]
        start += len(t.pos)
    if not chains:
        raise UserError("the run holds no production frames at constant temperature, or fewer than four per chain")
    frames = np.concatenate([c.ravel() for c in chains])
    sampled = np.array([s["temperature_K"] for s in whole.segments])[whole.segment[frames]]
    rungs = _merged(np.unique(sampled))
    rung = np.abs(sampled[:, None] - rungs).argmin(axis=1)
    own = sorted({_target_K(t) for t in trajectories})
    if temperature_K is None and own[-1] - own[0] > SAME_TEMPERATURE_K:
        raise UserError(f"the runs are at {', '.join(f'{T:g}' for T in own)} K; say at which temperature the answer is "
                        "wanted (--temperature, temperature_K)")
    gaps = np.concatenate([np.diff(whole.time_ps[c[:, 0]]) for c in chains])
    found = Ensemble(whole, float(own[0] if temperature_K is None else temperature_K), chains,
                     np.full(len(frames), 1.0 / len(frames)), rungs, rung,
                     float(np.median(gaps[gaps > 0])) if (gaps > 0).any() else 0.0, _follows(trajectories))
    if len(rungs) == 1 and abs(rungs[0] - found.temperature_K) <= SAME_TEMPERATURE_K:
        own_weights = whole.weights_of(frames)
        return replace(found, weight=own_weights / own_weights.sum())
    return _at_temperature(found)


def check_joinable(trajectories: Sequence[Trajectory]) -> None:
    """UserError where runs are not of one molecule, its atoms in one order, and of one method, and where one is given
    twice, or none at all."""
    if not trajectories:
        raise UserError("no run was given; give one, or several of one molecule")
    first = trajectories[0]
    for other in trajectories[1:]:
        if not np.array_equal(first.atom_types, other.atom_types) or pairs_of(first) != pairs_of(other):
            raise UserError(f"a run of {first.metadata.get('molecule')} and one of {other.metadata.get('molecule')} "
                            "cannot be joined: their atoms or bonds differ; give runs of one molecule, with the same "
                            "order of atoms")
        if first.metadata.get("method") != other.metadata.get("method"):
            raise UserError(f"runs of {first.metadata.get('method')} and of {other.metadata.get('method')} cannot be "
                            "joined: they are of two energy surfaces; give runs of one method")
        if apart := told_apart(first, other):
            raise UserError("{} cannot be joined: they are of two {}; give runs of one".format(*apart))
    for number, other in enumerate(trajectories[1:], 1):
        for before, one in enumerate(trajectories[:number], 1):
            check_distinct(one, other, f"runs {before} and {number + 1} of {len(trajectories)}")


def told_apart(one: Trajectory, other: Trajectory) -> tuple[str, str] | None:
    """('a run of ... and one of ...', two of what they are) where runs of the same atoms and bonds are of two charges,
    spins or stereoisomers."""
    for key in ("charge", "multiplicity"):
        first, second = (t.metadata.get(key) for t in (one, other))
        if None not in (first, second) and first != second:
            return f"a run of {key} {first} and one of {key} {second}", "energy surfaces"
    first, second = (t.metadata.get("smiles") for t in (one, other))
    if are_stereoisomers(first, second):
        return f"a run of {first} and one of {second}", "stereoisomers"
    return None


def check_distinct(one: Trajectory, other: Trajectory, what: str) -> None:
    """UserError, which calls them `what`, where two files hold one run, or one goes on with the other: frames that
    count twice are no samples."""
    if _ends_within(one, other) or _ends_within(other, one):
        raise UserError(f"{what} are one run of {one.metadata.get('molecule')}, whose frames would count twice; give "
                        "each run once, the longest file of it")


def _ends_within(one: Trajectory, other: Trajectory) -> bool:
    """Whether the last frame of a run is one of another with the same seed and restraints."""
    seed = one.metadata.get("seed")
    if seed is None or seed != other.metadata.get("seed") or not len(one.pos) or one.restraints != other.restraints:
        return False
    alike = other.step == one.step[-1]
    for energies, last in ((other.Epot, one.Epot[-1]), (other.Ekin, one.Ekin[-1])):
        alike &= np.isclose(energies, last, rtol=0.0, atol=0.0, equal_nan=True)
    return bool((other.pos[alike] == one.pos[-1]).all(axis=(1, 2)).any())


def pairs_of(trajectory: Trajectory) -> set[tuple[int, ...]]:
    """The bonds of a run, in whatever order they stand."""
    return {tuple(sorted(bond)) for bond in trajectory.bonds.tolist()}


def _follows(trajectories: list[Trajectory]) -> str:
    found = {traits_of(t.metadata).ensemble for t in trajectories}
    return found.pop() if len(found) == 1 else "none"


def _target_K(trajectory: Trajectory) -> float:
    """The temperature of a run's production."""
    found = {s["temperature_K"] for i, s in enumerate(trajectory.segments)
             if s["role"] in ("train", "reference") and (trajectory.segment == i).any()}
    if not found:
        raise UserError("the run holds no production frames at constant temperature")
    return float(min(found))


def _chains(trajectory: Trajectory) -> list[np.ndarray]:
    """Frames (T_r,K_r) of each independent chain: a replica, or all rungs of one ladder on the true potential."""
    ladder = (trajectory.metadata.get("config") or {}).get("tempering_K") or ()
    n_rungs = max(1, len(ladder))
    frames = trajectory.frames_of("train", "reference", *(("hot",) if n_rungs > 1 else ()))
    columns = {}
    for replica in np.unique(trajectory.replica[frames]).tolist():
        mine = frames[trajectory.replica[frames] == replica]
        columns[replica] = mine[np.argsort(trajectory.step[mine], kind="stable")]
    if n_rungs == 1:
        return [c[:, None] for c in columns.values() if len(c) >= FEWEST_FRAMES]
    ladders: dict[int, list[np.ndarray]] = {}
    for replica, column in columns.items():
        ladders.setdefault(replica // n_rungs, []).append(column)
    shortest = [min(map(len, rungs)) for rungs in ladders.values()]
    return [np.column_stack([c[:n] for c in rungs]) for rungs, n in zip(ladders.values(), shortest)
            if n >= FEWEST_FRAMES]


def _merged(temperatures_K: np.ndarray) -> np.ndarray:
    """Temperatures that differ by no more than rounding, once each."""
    kept = [float(temperatures_K[0])]
    for T in temperatures_K[1:]:
        if T - kept[-1] > SAME_TEMPERATURE_K:
            kept.append(float(T))
    return np.array(kept)


def _at_temperature(found: Ensemble) -> Ensemble:
    """The same frames with the weights that they have at its temperature."""
    trajectory, frames = found.trajectory, found.frames
    if found.follows != "true":
        leader = "the network" if found.follows == "network" else "no known ensemble"
        raise UserError("frames of another temperature are weighted by the true energy, and this run follows "
                        f"{leader}; sample at the temperature that is wanted instead")
    energy = trajectory.Epot[frames]
    if len(found.rungs_K) == 1:
        own = trajectory.weights_of(frames)
        beta_away = 1.0 / kT(float(found.rungs_K[0])) - 1.0 / kT(found.temperature_K)
        exponent = np.log(np.maximum(own, 1e-300)) + beta_away * energy
        weight = np.exp(exponent - exponent.max())
        return replace(found, weight=weight / weight.sum())
    if trajectory.is_judged_by_weight:
        raise UserError("frames that have weights of their own cannot be joined with those of other temperatures; give "
                        "runs of one temperature alone")
    from pymbar import MBAR

    order = np.argsort(found.rung, kind="stable")  # pymbar wants the frames of one rung beside each other
    held = energy + trajectory.bias[frames] if trajectory.is_restrained else energy  # what every rung sampled
    reduced = held[order] / kT(found.rungs_K)[:, None]
    solved = MBAR(reduced, np.bincount(found.rung), solver_protocol="robust")
    back = np.argsort(order, kind="stable")
    W = np.asarray(solved.W_nk)[back]
    log_mixture = np.log(np.maximum(W[:, 0], 1e-300)) + held / kT(found.rungs_K[0])  # -log of the sum, + f_0
    exponent = log_mixture - energy / kT(found.temperature_K)
    weight = np.exp(exponent - exponent.max())
    return replace(found, weight=weight / weight.sum(), mixture=W)
