"""When a run ends that is given no length: where it knows enough, or where its budget is spent.

It knows enough when the slowest torsion and the energy have `effective_samples` independent samples, when no
conformer's population is off by more than `population_error`, or both, whichever is asked for, and in any case the
chains, which started apart, agree (split-R-hat) on the energy, every torsion and every conformer of 2 % and more.
Conformers are those of kstep.analysis.measure.populations, the table that the run ends with.  Judged are the frames
of production, after 4 of each chain and then whenever there are 15 % more.  Where that happens does not depend on aim
or budget, so that a run which goes on with a larger one is the run that had it at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kstep import importance
from kstep.analysis.measure.geometry import find_coordinates, on_circle
from kstep.analysis.measure.populations import Populations, populations
from kstep.analysis.measure.profile import production_frames, weights_of
from kstep.analysis.measure.samples import Series, common_rotamers, counted, effective_samples
from kstep.analysis.measure.statistics import FEWEST_SAMPLES, MOST_ERROR, MOST_R_HAT, split_r_hat
from kstep.dihedrals import dihedrals_deg
from kstep.errors import UserError
from kstep.schemas import Trajectory
from kstep.units import SECONDS_PER_HOUR

AIMS, BUDGET = ("effective_samples", "population_error"), ("max_true_calls", "max_hours")
ENDS = ("steps", *AIMS, *BUDGET)  # the keys that say when a run ends, and nothing else
DEFAULT_STEPS, DEFAULT_SAMPLES, DEFAULT_TRUE_CALLS = 200, 200, 20_000
FEWEST_FRAMES, GROWTH = 4, 1.15  # of each chain before it is judged, and from one time to the next
ENERGY = "energy"


def settle_end(hybrid, scheme) -> dict[str, Any]:
    """When a run ends, {key: value} for the nulls of a HybridConfig; scheme: the class of its scheme.

    With neither steps nor an aim, a scheme that samples the true ensemble aims at 200 samples and populations to 0.02,
    any other one makes 200 macro-steps.  UserError for a fixed length that has an aim too, for an aim that such a
    scheme cannot have, and for a budget that pays for no judgement.
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
        settled |= {"effective_samples": DEFAULT_SAMPLES, "population_error": MOST_ERROR}
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
    split-R-hat of the energy, of every torsion and of every conformer of 2 % and more; population_error: largest
    standard error of a conformer's population; one_well: labels of torsions that every chain saw in one well; problems:
    why the populations are not converged, in clauses; weights: why those of the frames say little, if they do;
    populations: the whole table that this is judged by.
    """

    samples: dict[str, float]
    r_hat: dict[str, float]
    population_error: float
    one_well: list[str]
    problems: tuple[str, ...] = ()
    weights: str | None = None
    populations: Populations | None = None

    @property
    def slowest(self) -> str:
        """What has the fewest samples; a number that is none counts as no sample."""
        return min(self.samples, key=lambda name: np.nan_to_num(self.samples[name], nan=-np.inf))

    @property
    def apart(self) -> str:
        """What the chains agree on least; a split-R-hat that is not defined is no agreement."""
        return max(self.r_hat, key=lambda name: np.nan_to_num(self.r_hat[name], nan=np.inf))


def assess(frames: Trajectory) -> Known | None:
    """What the production frames of a run tell; None where its chains are too short to tell anything.

    Raises UserError where none of the frames weighs anything.
    """
    series = series_of_run(frames)
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
    conformers = populations([frames])
    if len(conformers.conformers) > 1:
        r_hat |= {f"conformer {c.label}": np.inf if c.r_hat is None else c.r_hat for c in conformers.common}
    return Known(samples, r_hat, population_error(conformers, samples[ENERGY]),
                 [label for label, wells in zip(series.labels, rotamers) if wells is None],
                 tuple(conformers.problems), None if conformers.weights is None else
                 importance.warning(conformers.weights), conformers)


def series_of_run(frames: Trajectory) -> Series:
    """Energies and torsions of each chain at the target temperature; of a QM/MM region's torsions, if there is one."""
    replicas, facts = production_frames(frames), frames.metadata
    region = [*(facts.get("qm_atoms") or range(len(frames.atom_types))), *(facts.get("link_hosts") or ())]
    found = find_coordinates(frames.atom_types, frames.bonds[np.isin(frames.bonds, region).all(axis=1)])
    gaps = np.concatenate([np.diff(frames.time_ps[rows]) for rows in replicas] or [np.zeros(0)])
    return Series([frames.Epot[rows] for rows in replicas],
                  [dihedrals_deg(frames.pos[rows], found.atoms["torsions"]) for rows in replicas],
                  found.labels["torsions"], float(np.median(gaps)) if len(gaps) else 0.0,
                  weights_of(frames, replicas) if replicas else None)


def population_error(found: Populations, energy_samples: float) -> float:
    """Largest standard error of a conformer's population.

    What was seen in one well only may have another, which n independent samples would miss if it held less than about
    1/n; the error is that at least, with the samples of the energy for n.
    """
    unseen = 1.0 / energy_samples if found.one_well or len(found.conformers) < 2 else 0.0
    return max(found.largest_error, unseen)


class Aim:
    """The aim and the budget of one run, and what is known of it; hybrid: its settled config."""

    def __init__(self, hybrid):
        self.hybrid = hybrid
        self.known: Known | None = None
        self.is_spent = False
        self._untold = "too few frames after burn-in to tell"

    def is_judged(self, macro_steps: int) -> bool:
        """Whether a run is judged after so many macro-steps of production."""
        return macro_steps > 0 and judged_after(macro_steps - 1, self.hybrid.save_interval_steps) == macro_steps

    def pays_for(self, true_calls: int, seconds: float) -> bool:
        """Whether the budget allows that much in all."""
        most_calls, most_hours = self.hybrid.max_true_calls, self.hybrid.max_hours
        return ((most_calls is None or true_calls <= most_calls)
                and (most_hours is None or seconds <= most_hours * SECONDS_PER_HOUR))

    def judge(self, frames: Trajectory) -> None:
        """Take stock of the frames so far."""
        try:
            self.known = assess(frames)
        except UserError as error:
            self.known, self._untold = None, str(error)

    def shortfall(self) -> str | None:
        """What is missing, in words; None where the aim is reached."""
        known, hybrid = self.known, self.hybrid
        if known is None:
            return self._untold
        fewest, wanted, error = known.samples[known.slowest], hybrid.effective_samples, hybrid.population_error
        if wanted is not None and not fewest >= wanted:
            return f"{fewest:.0f} of {wanted} effective samples of {_named(known.slowest)}"
        if error is not None and not known.population_error <= error:
            return f"populations with an error of {known.population_error:.2g}, not {error:g}"
        if not known.r_hat[known.apart] <= MOST_R_HAT:
            return f"chains that do not agree, R-hat {known.r_hat[known.apart]:.2f} of {_named(known.apart)}"
        if known.problems and self._is_strict():
            return f"populations that are not converged: {known.problems[0]}"
        return known.weights

    def _is_strict(self) -> bool:
        """Whether it asks for no less than populations that are called converged."""
        samples, error = self.hybrid.effective_samples, self.hybrid.population_error
        return (samples is None or samples >= FEWEST_SAMPLES) and (error is None or error <= MOST_ERROR)

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
    if observable == ENERGY:
        return "the energy"
    return observable if observable.startswith("conformer ") else f"torsion {observable}"


def describe(record: dict[str, Any]) -> str:
    """How a run with this `Aim.record` ended, in words."""
    alone = record.get("one_well")
    note = f", in one well all the time: {', '.join(alone)}" if alone else ""
    if record["reached"]:
        return f"aim reached: {record['why']}{note}"
    flags = " or ".join(f"--{key.replace('_', '-')}" for key in record["budget"])
    return f"short of its aim: {record['why']}{note}" + (
        f"; --resume with a larger {flags} goes on" if record["budget_spent"] else "")
