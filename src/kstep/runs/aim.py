"""When a run ends that is given no length: where it knows enough, or where its budget is spent.

It knows enough when the slowest torsion and the energy have `effective_samples` independent samples, or when no
rotamer's population is off by more than `population_error`, and in either case the chains, which started apart, agree
(split-R-hat).  Judged are the production frames at the target temperature, after 4 frames of each chain and then
whenever there are 15 % more.  Where that happens does not depend on aim or budget, so that a run which goes on with a
larger one is the run that had it at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kstep import importance
from kstep.analysis.measure.geometry import find_coordinates, on_circle
from kstep.analysis.measure.samples import Rotamers, Series, common_rotamers, counted, effective_samples
from kstep.analysis.measure.statistics import MOST_R_HAT, estimate_means, split_r_hat
from kstep.dihedrals import dihedrals_deg, wrap_deg
from kstep.errors import UserError
from kstep.units import SECONDS_PER_HOUR

AIMS, BUDGET = ("effective_samples", "population_error"), ("max_true_calls", "max_hours")
ENDS = ("steps", *AIMS, *BUDGET)  # the keys that say when a run ends, and nothing else
DEFAULT_STEPS, DEFAULT_SAMPLES, DEFAULT_TRUE_CALLS = 200, 200, 20_000
FEWEST_FRAMES, GROWTH = 4, 1.15  # of each chain before it is judged, and from one time to the next
ENERGY = "energy"


def settle_end(hybrid, scheme) -> dict[str, Any]:
    """When a run ends, {key: value} for the nulls of a HybridConfig; scheme: the class of its scheme.

    With neither steps nor an aim, a scheme that samples the true ensemble aims at 200 samples, any other one makes 200
    macro-steps.  UserError for a fixed length that has an aim too, for an aim that such a scheme cannot have, and for a
    budget that pays for no judgement.
    """
    given = {key: getattr(hybrid, key) for key in (*AIMS, *BUDGET) if getattr(hybrid, key) is not None}
    first = next((f"{key} {value:g}" for key, value in given.items()), None)
    if hybrid.steps is not None:
        if first:
            raise UserError(f"steps {hybrid.steps} is a fixed length, and {first} is for a run that ends when it knows "
                            "enough; leave one of them null")
        return {}
    if not (scheme.traits.ensemble == "true" and scheme.traits.sets_temperature):
        if first:
            raise UserError(f"{first} is for schemes that draw their momenta and sample the true ensemble, which "
                            f"{scheme.name} does not; give it a length with steps")
        return {"steps": DEFAULT_STEPS}
    replicas = hybrid.replicas or scheme.default_replicas
    least = replicas * (1 + (hybrid.burn_in_steps or 0) + FEWEST_FRAMES * hybrid.save_interval_steps)
    if hybrid.max_true_calls is not None and hybrid.max_true_calls < least:
        raise UserError(f"max_true_calls {hybrid.max_true_calls} are too few to judge anything: start, burn-in and "
                        f"{FEWEST_FRAMES} frames of {replicas} replicas take {least}")
    settled: dict[str, Any] = {}
    if not given.keys() & set(AIMS):
        settled["effective_samples"] = DEFAULT_SAMPLES
    if not given.keys() & set(BUDGET):
        settled["max_true_calls"] = DEFAULT_TRUE_CALLS
    return settled


def most_macro_steps(hybrid) -> int:
    """Macro-steps that a settled run may make, burn-in included; one limited in hours alone counts as a default one."""
    if hybrid.steps is not None:
        return (hybrid.burn_in_steps or 0) + hybrid.steps
    return max(1, (hybrid.max_true_calls or DEFAULT_TRUE_CALLS) // hybrid.replicas)


def judged_after(macro_steps: int, save_interval: int) -> int:
    """The next number of production macro-steps, above `macro_steps`, after which a run is judged."""
    return next(n for n in _judged(save_interval) if n > macro_steps)


def _judged(save_interval: int) -> Iterator[int]:
    frames = FEWEST_FRAMES
    while True:
        yield frames * save_interval
        frames = max(frames + 1, math.ceil(GROWTH * frames))


@dataclass(frozen=True)
class Known:
    """What is known of a molecule from the frames so far.

    samples: effective samples of the energy and of every torsion seen in two wells or more, by label; r_hat:
    split-R-hat of the energy and of every torsion; population_error: largest standard error of a rotamer's population;
    one_well: labels of torsions that every chain saw in one well.
    """

    samples: dict[str, float]
    r_hat: dict[str, float]
    population_error: float
    one_well: list[str]

    @property
    def slowest(self) -> str:
        """What has the fewest samples; a number that is none counts as no sample."""
        return min(self.samples, key=lambda name: np.nan_to_num(self.samples[name], nan=-np.inf))

    @property
    def apart(self) -> str:
        """What the chains agree on least; a split-R-hat that is not defined is no agreement."""
        return max(self.r_hat, key=lambda name: np.nan_to_num(self.r_hat[name], nan=np.inf))


def assess(series: Series) -> Known | None:
    """What the series of a run's chains tell; None where they are too short to tell anything."""
    if min(map(len, series.energy), default=0) < FEWEST_FRAMES:
        return None
    rotamers = counted(common_rotamers([series], []))[0]
    found = effective_samples(series, rotamers, jackknife=False)
    samples = {ENERGY: found["energy"]["samples"],
               **{label: entry["samples"] for label, entry in found["torsions"].items()}}
    r_hat = {ENERGY: float(split_r_hat([e[:, None] for e in series.energy], series.weights)[0])}
    if series.labels:
        of_torsions = split_r_hat([on_circle(t) for t in series.torsions], series.weights).reshape(2, -1).max(axis=0)
        r_hat |= dict(zip(series.labels, map(float, of_torsions)))
    return Known(samples, r_hat, population_error(series, rotamers, samples[ENERGY]),
                 [label for label, wells in zip(series.labels, rotamers) if wells is None])


def population_error(series: Series, rotamers: list[Rotamers | None], energy_samples: float) -> float:
    """Largest standard error of a population among the wells of all torsions.

    It is the larger of what the chains' means scatter by (from four chains on) and what the memory of the series
    gives.  What was seen in one well only may have another, which n independent samples would miss if it held less
    than about 1/n; the error is that, with the samples of the energy for n.
    """
    errors = [_well_error([t[:, d] for t in series.torsions], wells.centres_deg, series.spacing_ps,
                          series.weights) for d, wells in enumerate(rotamers) if wells is not None]
    return max(errors if len(errors) == len(rotamers) > 0 else [*errors, 1.0 / energy_samples])


def _well_error(angles: list[np.ndarray], centres_deg: np.ndarray, spacing_ps: float,
                weights: list[np.ndarray] | None = None) -> float:
    inside = [np.eye(len(centres_deg))[np.abs(wrap_deg(a[:, None] - centres_deg)).argmin(axis=1)] for a in angles]
    found = estimate_means(inside, spacing_ps, weights)
    error = found.standard_error
    if len(inside) >= 4:
        error = np.maximum(error, found.replica_means.std(axis=0, ddof=1) / np.sqrt(len(inside)))
    return float(error.max())


class Aim:
    """The aim and the budget of one run, and the frames that it is judged by.

    hybrid: its settled config; molecule: a Molecule, of whose region, if it has one, the torsions count; n_rungs:
    replica r is at the target temperature where r mod n_rungs is 0; spacing_ps: between two frames.
    """

    def __init__(self, hybrid, molecule, n_rungs: int, spacing_ps: float):
        self.hybrid, self.n_rungs, self.spacing_ps = hybrid, n_rungs, spacing_ps
        inside = slice(None) if molecule.region is None else np.isin(molecule.bonds, molecule.region).all(axis=1)
        found = find_coordinates(molecule.numbers, molecule.bonds[inside])
        self.torsions, self.labels = found.atoms["torsions"], found.labels["torsions"]
        self.known: Known | None = None
        self.is_spent = False
        self._angles: list[np.ndarray] = []
        self._energies: list[np.ndarray] = []
        self._weights: list[np.ndarray] = []

    def add(self, positions: np.ndarray, energy: np.ndarray, weight: np.ndarray | None = None) -> None:
        """One production frame of all replicas: positions (R,N,3) nm, energy (R,) kJ/mol; weight (R,), empty: 1."""
        weighs = weight is not None and len(weight) > 0
        self._weights.append(np.array(weight[:: self.n_rungs]) if weighs else np.ones(len(energy[:: self.n_rungs])))
        self._angles.append(dihedrals_deg(positions[:: self.n_rungs], self.torsions))
        self._energies.append(np.array(energy[:: self.n_rungs]))

    def series(self) -> Series:
        """The frames so far, chain by chain."""
        weights = np.array(self._weights).T
        return Series(list(np.array(self._energies).T), list(np.array(self._angles).transpose(1, 0, 2)), self.labels,
                      self.spacing_ps, list(weights / weights.mean()) if np.ptp(weights) > 0 else None)

    def is_judged(self, macro_steps: int) -> bool:
        """Whether a run is judged after so many macro-steps of production."""
        return macro_steps > 0 and judged_after(macro_steps - 1, self.hybrid.save_interval_steps) == macro_steps

    def pays_for(self, true_calls: int, seconds: float) -> bool:
        """Whether the budget allows that much in all."""
        most_calls, most_hours = self.hybrid.max_true_calls, self.hybrid.max_hours
        return ((most_calls is None or true_calls <= most_calls)
                and (most_hours is None or seconds <= most_hours * SECONDS_PER_HOUR))

    def judge(self) -> None:
        """Take stock of the frames so far."""
        self.known = assess(self.series()) if self._energies else None

    def shortfall(self) -> str | None:
        """What is missing, in words; None where the aim is reached."""
        known, hybrid = self.known, self.hybrid
        if known is None:
            return "too few frames after burn-in to tell"
        fewest, wanted, error = known.samples[known.slowest], hybrid.effective_samples, hybrid.population_error
        if wanted is not None and not fewest >= wanted:
            return f"{fewest:.0f} of {wanted} effective samples of {_named(known.slowest)}"
        if error is not None and not known.population_error <= error:
            return f"populations with an error of {known.population_error:.2g}, not {error:g}"
        if not known.r_hat[known.apart] <= MOST_R_HAT:
            return f"chains that do not agree, R-hat {known.r_hat[known.apart]:.2f} of {_named(known.apart)}"
        if len(np.unique(self._weights)) > 1:
            return importance.warning(importance.diagnose(np.concatenate(self._weights)))
        return None

    def stated(self) -> str:
        """Aim and budget, in words."""
        hybrid = self.hybrid
        aims = [f"{hybrid.effective_samples} effective samples of the slowest torsion and the energy"
                if hybrid.effective_samples is not None else "",
                f"populations with an error of {hybrid.population_error:g}"
                if hybrid.population_error is not None else ""]
        return f"{' and '.join(filter(None, aims))}, R-hat <= {MOST_R_HAT}, within {self._budget()}, learning apart"

    def _budget(self) -> str:
        most_calls, most_hours = self.hybrid.max_true_calls, self.hybrid.max_hours
        return " and ".join(filter(None, [f"{most_calls:,} true calls" if most_calls is not None else "",
                                          f"{most_hours:g} hours" if most_hours is not None else ""]))

    def record(self) -> dict[str, Any]:
        """For the metadata: wanted, budget, reached, what is known, and why it ended there, in words."""
        known, missing = self.known, self.shortfall()
        asked = {keys: {key: getattr(self.hybrid, key) for key in names if getattr(self.hybrid, key) is not None}
                 for keys, names in (("wanted", AIMS), ("budget", BUDGET))}
        numbers = {} if known is None else {
            "effective_samples": known.samples,
            "r_hat": {name: value if np.isfinite(value) else None for name, value in known.r_hat.items()},
            "population_error": known.population_error, "one_well": known.one_well}
        why = self._reached() if missing is None else missing + (f" within {self._budget()}" if self.is_spent else "")
        return {**asked, "reached": missing is None, "budget_spent": self.is_spent, **numbers, "why": why}

    def _reached(self) -> str:
        known = self.known
        slow = [f"{known.samples[known.slowest]:.0f} effective samples of {_named(known.slowest)}"]
        if known.slowest != ENERGY:
            slow = [f"{slow[0]} (slowest)", f"{known.samples[ENERGY]:.0f} of the energy"]
        if self.hybrid.population_error is not None:
            slow.append(f"populations with an error of {known.population_error:.2g}")
        return ", ".join([*slow, f"R-hat {known.r_hat[known.apart]:.2f}"])


def _named(observable: str) -> str:
    return "the energy" if observable == ENERGY else f"torsion {observable}"


def describe(record: dict[str, Any]) -> str:
    """How a run with this `Aim.record` ended, in words."""
    alone = record.get("one_well")
    note = f", in one well all the time: {', '.join(alone)}" if alone else ""
    if record["reached"]:
        return f"aim reached: {record['why']}{note}"
    flags = " or ".join(f"--{key.replace('_', '-')}" for key in record["budget"])
    return f"short of its aim: {record['why']}{note}" + (
        f"; --resume with a larger {flags} goes on" if record["budget_spent"] else "")
