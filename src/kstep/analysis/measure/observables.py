"""Observables of one's own, averaged over the frames of runs: functions of positions, and a few by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kstep.analysis.measure.averages import Average, Ensemble, gather
from kstep.analysis.measure.geometry import angles_deg, bond_lengths_nm
from kstep.analysis.measure.statistics import FEWEST_SAMPLES, MOST_R_HAT
from kstep.errors import UserError, did_you_mean
from kstep.schemas import Trajectory
from kstep.units import DEBYE_PER_E_NM

CHUNK = 10_000  # frames at a time
PROBED = 5  # frames that are given in two orders, and without the first, to see that each has a value of its own

WAY_OUT = "(--one-by-one, one_by_one=True)"

Function = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Observed:
    """The average of an observable at a temperature.

    mean, error, effective_samples and r_hat (split-R-hat of the chains) have the shape of one frame's value, a number
    where that is one; frames, chains: what it rests on; follows: what the frames do, "true", "network" or "none";
    weights: kstep.importance.diagnose of frames that do not count alike, else None; warning: why these weights, and
    with them its error, are not to be trusted, and the way out (None: they are).
    """

    mean: np.ndarray | float
    error: np.ndarray | float
    effective_samples: np.ndarray | float
    r_hat: np.ndarray | float
    temperature_K: float
    frames: int
    chains: int
    follows: str
    weights: dict[str, Any] | None = None
    warning: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in vars(self).items()}

    @property
    def converged(self) -> bool:
        """Whether the chains agree on every part of it, enough independent samples stand behind each, and the weights
        can be trusted."""
        return bool(self.warning is None and np.all(np.asarray(self.r_hat) <= MOST_R_HAT)
                    and np.all(np.asarray(self.effective_samples) >= FEWEST_SAMPLES))


def distance(first: int, second: int) -> Function:
    """Distance in nm of two atoms."""
    return lambda x: bond_lengths_nm(x, np.array([[first, second]]))[:, 0]


def angle(first: int, middle: int, last: int) -> Function:
    """Angle in degrees at the middle one of three atoms."""
    return lambda x: angles_deg(x, np.array([[first, middle, last]]))[:, 0]


def radius_of_gyration(masses: np.ndarray) -> Function:
    """Radius of gyration in nm, by masses (N,): the root of sum m r^2 / sum m about the centre of mass."""
    share = masses / masses.sum()

    def radius(x: np.ndarray) -> np.ndarray:
        away = x - np.einsum("n,fni->fi", share, x)[:, None]
        return np.sqrt(np.einsum("n,fni,fni->f", share, away, away))

    return radius


def average(trajectories: list[Trajectory], function: Function | str, temperature_K: float | None = None, *,
            one_by_one: bool = False) -> Observed:
    """Average of a function of positions (F,N,3) nm, which returns (F,) or (F,...), over runs of one molecule.

    function: or a name of NAMED; one_by_one: it takes the positions (N,3) of a single frame instead, and returns a
    number or an array.  Frames have the weights that they have at the temperature (averages.gather).  Raises UserError
    where the function does not answer frame by frame, or gives what is no number.
    """
    return observe(gather(trajectories, temperature_K), function, one_by_one=one_by_one)


def observe(ensemble: Ensemble, function: Function | str, *, one_by_one: bool = False) -> Observed:
    """The same of frames that are gathered already."""
    trajectory, frames = ensemble.trajectory, ensemble.frames
    if isinstance(function, str):
        if function not in NAMED:
            raise UserError(f"no observable is called '{function}'{did_you_mean(function, NAMED)}; give a function")
        return _observed(ensemble, NAMED[function](trajectory, frames))
    if one_by_one:
        function = _of_each(function)
    _check_by_frame(function, trajectory.pos[frames[:: max(1, len(frames) // PROBED)][:PROBED]])
    return _observed(ensemble, _chunked(function, trajectory, frames))


def _chunked(function: Function, trajectory: Trajectory, frames: np.ndarray) -> np.ndarray:
    return np.concatenate([_called(function, trajectory.pos[frames[start: start + CHUNK]])
                           for start in range(0, len(frames), CHUNK)])


def _radius_of_gyration(trajectory: Trajectory, frames: np.ndarray) -> np.ndarray:
    """nm, by physical masses."""
    return _chunked(radius_of_gyration(trajectory.masses), trajectory, frames)


def _dipole(trajectory: Trajectory, frames: np.ndarray) -> np.ndarray:
    """Length of the dipole moment, debye."""
    stored = getattr(trajectory, "dipole", None)
    if stored is None or not len(stored):
        raise UserError("the run stored no dipole moments; average what its positions tell")
    return DEBYE_PER_E_NM * np.linalg.norm(stored[frames], axis=1)


NAMED = {"radius_of_gyration": _radius_of_gyration, "dipole": _dipole}  # of (trajectory, frames (F,))


def _observed(ensemble: Ensemble, values: np.ndarray) -> Observed:
    if not np.isfinite(values).all():
        raise UserError(f"the observable is no finite number in {int((~np.isfinite(values)).sum())} values")
    found: Average = ensemble.average(values.reshape(len(values), -1))
    shape = values.shape[1:]
    columns = (found.mean, found.error, found.effective_samples, found.r_hat)
    mean, error, samples, r_hat = (c.reshape(shape) if shape else float(c[0]) for c in columns)
    return Observed(mean, error, samples, r_hat, ensemble.temperature_K, len(values), len(ensemble.chains),
                    ensemble.follows, ensemble.diagnose(), ensemble.doubt())


def _of_each(function: Function) -> Function:
    return lambda x: np.array([function(frame) for frame in x])


def _called(function: Function, x: np.ndarray) -> np.ndarray:
    """Values (F,...) of positions (F,N,3), which the function gets a copy of."""
    try:
        values = np.asarray(function(x.copy()))
        if np.iscomplexobj(values):
            raise ValueError("its values are complex, and an average is one of real numbers")
        values = np.asarray(values, dtype=np.float64)
    except Exception as error:  # whatever a user's function does
        raise UserError(f"the function failed on positions {x.shape}: {type(error).__name__}: {error}") from None
    if values.ndim == 0 or len(values) != len(x):
        raise UserError(f"the function gave values {values.shape} for positions {x.shape}; it must give one value (or "
                        f"row) per frame, or be called one by one {WAY_OUT}")
    return values


def _check_by_frame(function: Function, x: np.ndarray) -> None:
    """UserError where a frame's value depends on the frames beside it: positions[0] is a frame, not an atom."""
    first, turned, fewer = _called(function, x), _called(function, x[::-1]), _called(function, x[1:])
    if not all(np.allclose(one, other, rtol=1e-9, atol=1e-12, equal_nan=True)
               for one, other in ((first, turned[::-1]), (first[1:], fewer))):
        raise UserError("the function's value of a frame depends on the other frames; it gets positions (F,N,3), where "
                        f"atom a is positions[:, a]; or have it called one by one {WAY_OUT}")
