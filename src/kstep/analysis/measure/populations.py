"""Populations of a molecule's conformers, with errors, from the frames of a run: what a chemist takes home.

A conformer is a combination of wells of the torsions that tell geometries apart (rotatable bonds, rings that pucker).
What equivalent atoms and mirror images make of it is the same conformer (kstep.analysis.measure.symmetry).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from kstep.analysis.measure.averages import Average, Ensemble, gather
from kstep.analysis.measure.conformers import Assignment, assign, find_conformer_torsions
from kstep.analysis.measure.statistics import FEWEST_SAMPLES, MOST_ERROR, MOST_R_HAT
from kstep.analysis.measure.symmetry import conformer_atoms, exchanges
from kstep.analysis.measure.torsions import core_states, count_transitions
from kstep.dihedrals import wrap_deg
from kstep.errors import UserError
from kstep.hands import find_centres
from kstep.schemas import Trajectory
from kstep.topology import ring_bonds
from kstep.units import BOLTZMANN, J_PER_KJ, KJ_PER_KCAL, kT

SMALLEST = 0.005  # population of a conformer that is listed
RARE = 0.02  # population below which a conformer's error says all: chains need not have come into it often


@dataclass(frozen=True)
class Conformer:
    """One conformer of a run.

    label: "A", "B", ... by population; wells_deg: {label of a torsion: its circular mean here, degrees}, of one image;
    population (0 to 1) with its standard error; free_energy_kJ: -kT ln(population / that of the first), kJ/mol, 0 with
    error 0 for the first; effective_samples: independent samples behind its population; entered: how often a chain came
    into it; images: 2 where its mirror image is another geometry of the same molecule, which is counted with it; r_hat:
    split-R-hat of its population (None: not defined); frame: index of its representative into the frames of the
    trajectory (files joined in the order given); relaxed: that frame relaxed on the true potential, where asked for:
    {"positions_nm" (N,3), "energy_kJ", "relative_energy_kJ" (to the first), "true_calls", "converged", "kept": whether
    it is still this conformer}.
    """

    label: str
    wells_deg: dict[str, float]
    population: float
    population_error: float
    free_energy_kJ: float
    free_energy_error_kJ: float
    effective_samples: float
    entered: int
    images: int
    r_hat: float | None
    frame: int
    relaxed: dict[str, Any] | None = None

    @property
    def free_energy_kcal(self) -> float:
        """The same in kcal/mol."""
        return self.free_energy_kJ / KJ_PER_KCAL

    @property
    def free_energy_error_kcal(self) -> float:
        """The same in kcal/mol."""
        return self.free_energy_error_kJ / KJ_PER_KCAL


@dataclass(frozen=True)
class Populations:
    """The conformers of a molecule at one temperature, the most populated first.

    torsions: labels of those that tell conformers apart; one_well: of those seen in one well alone, of which another
    may have been missed; never_crossed: of those with two wells or more (mirror images counted, where these belong)
    between which no chain crossed, so that their populations are those of the starts; others: {"count", "population",
    "error"} of the conformers too rare to be listed; entropy: of the conformers, J/mol/K, mirror images told apart;
    chains, frames: what it rests on; rungs_K: temperatures joined (one: the run's own); ensemble: what the frames
    follow, "true", "network" or "none"; weights: kstep.importance.diagnose of frames that do not count alike, else
    None; converged: whether nothing below says otherwise; problems: why not, in clauses; notes: what else is to be
    known, in sentences.  The chains must agree on conformers of 2 % and more, which need 50 independent samples too,
    and no error may be above the one that the run itself was to come down to (population_error of its config), for
    conformers below 2 % of a run without such an aim above 0.02.  Where a single conformer was seen and a torsion that
    no chain turned over, the energy needs 50 independent samples: a chain of few sees no other one.
    """

    molecule: str
    smiles: str | None
    method: str | None
    temperature_K: float
    conformers: tuple[Conformer, ...]
    others: dict[str, float]
    entropy_J_per_mol_K: float
    entropy_error_J_per_mol_K: float
    torsions: list[str]
    one_well: list[str]
    never_crossed: list[str]
    chains: int
    frames: int
    rungs_K: list[float]
    ensemble: str
    weights: dict[str, Any] | None
    converged: bool
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def common(self) -> tuple[Conformer, ...]:
        """Conformers that chains must agree on: of 2 % and more, the first one in any case."""
        return _common(self.conformers)

    @property
    def largest_error(self) -> float:
        """Of the populations of all conformers, those too rare to be listed together."""
        return max(self.others["error"], *(c.population_error for c in self.conformers))

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and text: what the metadata key `populations` and the JSON file hold."""
        return asdict(self)

    def __str__(self) -> str:
        from kstep.analysis.show.populations import format_populations

        return format_populations(self)


def populations(trajectories: list[Trajectory], temperature_K: float | None = None, *,
                smallest: float = SMALLEST) -> Populations:
    """Populations of the conformers in runs of one molecule and method, at a temperature (None: the runs' own).

    Frames at other temperatures count where they sample the true potential (averages.gather); conformers below
    `smallest` are summed up.  The errors are those of independent chains, whose memory and weights are heeded.  Raises
    UserError where there are no frames at constant temperature, and for runs that cannot be joined.
    """
    ensemble = gather(trajectories, temperature_K)
    metadata = ensemble.trajectory.metadata
    assigned, n_bonds, notes = _assigned(ensemble)
    n = len(assigned.images)
    shares = np.bincount(assigned.conformer, ensemble.weight, minlength=n)
    listed = [int(c) for c in np.argsort(-shares, kind="stable") if shares[c] >= smallest]
    listed = listed or [int(shares.argmax())]
    averages, F, F_error = _populations_of(ensemble, assigned, listed)
    entropy = _entropy(ensemble, assigned, shares)
    entered = _entered(ensemble, assigned)
    rest = np.flatnonzero(~np.isin(np.arange(n), listed) & (shares > 0))
    conformers = tuple(
        Conformer(label=name_of(place), wells_deg=_wells_of(ensemble, assigned, c),
                  population=float(averages.mean[place]), population_error=float(averages.error[place]),
                  free_energy_kJ=float(F[place]), free_energy_error_kJ=float(F_error[place]),
                  effective_samples=float(averages.effective_samples[place]), entered=int(entered[c]),
                  images=int(assigned.images[c]), r_hat=_finite(averages.r_hat[place]),
                  frame=_representative(ensemble, assigned, c))
        for place, c in enumerate(listed))
    one_well, never_crossed = _uncrossed(ensemble, assigned, n_bonds)
    if one_well:
        notes.append(f"seen in one well all the time, so that another may have been missed: {', '.join(one_well)}")
    if never_crossed and len(conformers) < 2:
        notes.append("no chain left its wells, so that other conformers may have been missed: "
                     f"{', '.join(never_crossed)}")
    others = {"count": len(rest), "population": float(averages.mean[-1]) if len(rest) else 0.0,
              "error": float(averages.error[-1]) if len(rest) else 0.0}
    stuck = [label for label in never_crossed if label in _told_apart(assigned)]
    problems = _problems(ensemble, conformers, others, stuck, one_well + never_crossed)
    notes += _of_rare_ones(conformers)
    return Populations(
        molecule=metadata["molecule"], smiles=metadata.get("smiles"), method=metadata.get("method"),
        temperature_K=ensemble.temperature_K, conformers=conformers, others=others,
        entropy_J_per_mol_K=float(entropy.mean[0]),
        entropy_error_J_per_mol_K=_entropy_error(float(entropy.error[0]), conformers),
        torsions=[label for label, wells in zip(assigned.labels, assigned.wells) if len(wells) > 1],
        one_well=one_well, never_crossed=never_crossed, chains=len(ensemble.chains), frames=len(ensemble.weight),
        rungs_K=[float(T) for T in ensemble.rungs_K], ensemble=ensemble.follows, weights=ensemble.diagnose(),
        converged=not problems, problems=problems, notes=notes)


def stay_within(trajectories: list[Trajectory], temperature_K: float | None, frames: list[int],
                positions: np.ndarray) -> np.ndarray:
    """Whether each of positions (C,N,3) nm is the same conformer as the frame (C,) that it comes from."""
    ensemble = gather(trajectories, temperature_K)
    conformer = _assigned(ensemble, positions)[0].conformer
    place = {int(frame): n for n, frame in enumerate(ensemble.frames)}
    return conformer[len(ensemble.weight):] == conformer[[place[frame] for frame in frames]]


def conformers_of_frames(trajectory: Trajectory, found: Populations) -> tuple[np.ndarray, np.ndarray]:
    """Frames (F,) of a run at the temperature of its populations, chain after chain in time, and their conformers.

    Conformers (F,) are places in found.conformers, the number of those for one that is not listed.
    """
    ensemble = gather([trajectory], found.temperature_K)
    assigned, frames, chosen = _assigned(ensemble)[0], ensemble.frames, np.concatenate(ensemble.in_time())
    place = np.full(len(assigned.images), len(found.conformers))
    for n, conformer in enumerate(found.conformers):
        place[assigned.conformer[np.flatnonzero(frames == conformer.frame)]] = n
    return frames[chosen], place[assigned.conformer[chosen]]


def name_of(place: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    letters = ""
    place += 1
    while place:
        place, rest = divmod(place - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _assigned(ensemble: Ensemble, beside: np.ndarray | None = None) -> tuple[Assignment, int, list[str]]:
    """The conformer of every frame, how many torsions are one to a bond, and what to know of it, in sentences.

    beside: geometries (C,N,3) nm that are to be told apart too, after the frames, without a weight.
    """
    t, notes = ensemble.trajectory, []
    region = t.metadata.get("qm_atoms")
    bonds = t.bonds if region is None else t.bonds[np.isin(t.bonds, region).all(axis=1)]
    torsions, labels, n_bonds = find_conformer_torsions(t.atom_types, bonds)
    atoms = conformer_atoms(t.atom_types, bonds, torsions)
    orders = np.arange(len(t.atom_types))[None]
    linked, handed = bool(t.metadata.get("link_hosts")), _has_hands_outside(t, region)
    if handed and not linked:
        notes.append("what is around the region may be chiral, so that mirror images were not taken for equivalent")
    if linked:
        notes.append("the region hangs on the rest of the system, so that neither atoms of it nor mirror images were "
                     "taken for equivalent")
    else:
        atoms = atoms if region is None else np.intersect1d(atoms, region)
        try:
            orders = exchanges(t.atom_types, t.bonds, atoms)
        except UserError as error:
            notes.append(f"conformers that equivalent atoms make of each other are told apart: {error}")
    places, start = [], 0
    for chain in ensemble.chains:  # every rung of a ladder is a series of its own
        places += list((start + np.arange(chain.size).reshape(chain.shape)).T)
        start += chain.size
    extra = beside if beside is not None else t.pos[:0]
    frames = np.concatenate([ensemble.frames, len(t.pos) + np.arange(len(extra))])
    weight = np.concatenate([ensemble.weight, np.zeros(len(extra))])
    places += list(len(ensemble.weight) + np.arange(len(extra))[:, None])
    found = assign(np.concatenate([t.pos, extra]) if len(extra) else t.pos, [frames[p] for p in places],
                   weight[np.concatenate(places)], torsions, labels, find_centres(t.atom_types, bonds, atoms), orders,
                   alone=not linked and not handed)
    return found.in_order(np.argsort(np.concatenate(places), kind="stable")), n_bonds, notes


def _has_hands_outside(t: Trajectory, region: list[int] | None) -> bool:
    """Whether anything around a region may be chiral: a host, a solvent, which tell its mirror images apart."""
    if region is None:
        return False
    outside = np.setdiff1d(conformer_atoms(t.atom_types, t.bonds, np.zeros((0, 4), dtype=np.int64)), region)
    return len(find_centres(t.atom_types, t.bonds, outside)) > 0


def _populations_of(ensemble: Ensemble, assigned: Assignment,
                    listed: list[int]) -> tuple[Average, np.ndarray, np.ndarray]:
    """Averages of the listed conformers and of all others (C+1,); free energies and errors (C,) kJ/mol."""
    inside = assigned.conformer[:, None] == np.array(listed)
    inside = np.column_stack([inside, ~inside.any(axis=1)])
    found = ensemble.average(inside, shares=True)
    p = found.mean[:-1]
    beta_F = ensemble.average(inside[:, 0:1] / p[0] - inside[:, :-1] / p)  # to first order in the populations
    error = kT(ensemble.temperature_K) * beta_F.error
    error[0] = 0.0
    return found, kT(ensemble.temperature_K) * np.log(p[0] / p), error


def _entropy(ensemble: Ensemble, assigned: Assignment, shares: np.ndarray) -> Average:
    """-R sum p ln p over conformers, each half of a pair of mirror images on its own, J/mol/K."""
    p = np.round(shares / assigned.images, 12)  # of a single one rounding leaves neither 1 nor an entropy of 0
    surprise = -np.log(np.where(p > 0, p, 1.0))
    return ensemble.average(BOLTZMANN * J_PER_KJ * surprise[assigned.conformer][:, None])


def _entropy_error(first_order: float, conformers: tuple[Conformer, ...]) -> float:
    """Standard error of the entropy, J/mol/K, with the second order of errors s of populations p.

        S(p + d) = S(p) + first order - R sum d^2 / (2 p),   so that   s_S^2 = s_1^2 + R^2 / 2 sum (s^2 / p)^2

    The first order alone is zero where all populations are alike, however little is known of them.
    """
    relative = np.array([c.population_error**2 / c.population for c in conformers])
    return float(np.hypot(first_order, BOLTZMANN * J_PER_KJ * np.sqrt(0.5 * (relative**2).sum())))


def _entered(ensemble: Ensemble, assigned: Assignment) -> np.ndarray:
    """How often (G,) the chains at the temperature came into each conformer from another one."""
    count = np.zeros(len(assigned.images), dtype=np.int64)
    for places in ensemble.in_time():
        core = assigned.core[places]
        core = core[core != -1]
        new = core[1:][np.diff(core) != 0]
        np.add.at(count, new[new >= 0], 1)
    return count


def _wells_of(ensemble: Ensemble, assigned: Assignment, conformer: int) -> dict[str, float]:
    """Circular mean of every torsion with two wells or more within a conformer, degrees."""
    mine = assigned.conformer == conformer
    circle = np.exp(1j * np.radians(assigned.angles[mine]))
    means = np.degrees(np.angle(ensemble.weight[mine] @ circle))
    return {label: float(mean) for label, mean, wells in zip(assigned.labels, means, assigned.wells) if len(wells) > 1}


def _representative(ensemble: Ensemble, assigned: Assignment, conformer: int) -> int:
    """The frame, as near the temperature as there is one, whose torsions are nearest to the conformer's means."""
    mine = np.flatnonzero(assigned.conformer == conformer)
    cold = mine[ensemble.rung[mine] == ensemble.nearest]
    mine = cold if len(cold) else mine
    chosen = np.array([d for d, wells in enumerate(assigned.wells) if len(wells) > 1], dtype=np.int64)
    means = np.array(list(_wells_of(ensemble, assigned, conformer).values()))
    away = wrap_deg(assigned.angles[np.ix_(mine, chosen)] - means)
    return int(ensemble.frames[mine[(away**2).sum(axis=1).argmin()]])


def _uncrossed(ensemble: Ensemble, assigned: Assignment, n_bonds: int) -> tuple[list[str], list[str]]:
    """Labels of torsions in one well, one to a bond, and of those in several wells that no chain crossed between.

    A bond of a ring that goes through zero puckers to both sides in one wide well: nothing of it is missed.
    """
    bonds = ensemble.trajectory.bonds
    in_rings = set(map(frozenset, bonds[ring_bonds(len(ensemble.trajectory.atom_types), bonds)].tolist()))
    one_well = [label for label, wells, atoms, angle in
                zip(assigned.labels[:n_bonds], assigned.wells, assigned.torsions.tolist(), assigned.angles.T)
                if len(wells) < 2 and not (frozenset(atoms[1:3]) in in_rings and _on_both_sides(ensemble, angle))]
    rows = ensemble.in_time()
    never = [label for d, (label, wells) in enumerate(zip(assigned.labels, assigned.wells)) if len(wells) > 1
             and not sum(count_transitions(assigned.angles[places, d], wells) for places in rows)]
    return one_well, never


def _on_both_sides(ensemble: Ensemble, angle: np.ndarray) -> bool:
    """Whether a torsion (F,) is often above zero and often below."""
    positive = float(ensemble.weight[angle > 0].sum() / ensemble.weight.sum())
    return RARE <= positive <= 1.0 - RARE


def _told_apart(assigned: Assignment) -> list[str]:
    """Labels of torsions that are in the cores of several wells where mirror images are one, so that some are to be
    crossed; a frame in the middle between two of them is in none."""
    return [label for label, angle, wells in zip(assigned.labels, assigned.angles.T, assigned.wells)
            if len(set(core_states(angle, wells).tolist()) - {-1}) > 1]


def _common(conformers: tuple[Conformer, ...]) -> tuple[Conformer, ...]:
    return tuple(c for c in conformers if c.population >= RARE or c is conformers[0])


def _apart(conformer: Conformer) -> bool:
    return conformer.r_hat is None or conformer.r_hat > MOST_R_HAT


def _of_rare_ones(conformers: tuple[Conformer, ...]) -> list[str]:
    """A sentence on conformers below 2 % that would not be converged if they were common."""
    rare = [c for c in conformers if c not in _common(conformers)
            and (_apart(c) or c.effective_samples < FEWEST_SAMPLES or not c.entered)]
    if not rare:
        return []
    told = [f"{c.label} ({c.effective_samples:.0f} independent samples, entered {c.entered} times, R-hat "
            f"{'not defined' if c.r_hat is None else format(c.r_hat, '.2f')})" for c in rare]
    return [f"of conformers below {100 * RARE:g} % little more is known than their errors: {', '.join(told)}"]


def _too_wide(ensemble: Ensemble, conformers: tuple[Conformer, ...], others: dict[str, float]) -> str | None:
    """The error that is above what the run was to come down to, or for rare conformers above MOST_ERROR; or None."""
    aimed = (ensemble.trajectory.metadata.get("config") or {}).get("population_error")
    judged = conformers if aimed is not None else [c for c in conformers if c not in _common(conformers)]
    errors = [(c.population_error, f"conformer {c.label}") for c in judged]
    if aimed is not None and others["count"]:
        errors.append((others["error"], "the rarer conformers together"))
    most = MOST_ERROR if aimed is None else aimed
    error, name = max(errors, default=(0.0, ""))
    return f"{name} to +- {error:.2g} alone, not {most:g}" if error > most else None


def _problems(ensemble: Ensemble, conformers: tuple[Conformer, ...], others: dict[str, float],
              stuck: list[str], kept: list[str]) -> list[str]:
    """Why these populations are not converged, in clauses; kept: labels of torsions that no chain turned over."""
    out = []
    if ensemble.follows != "true":
        out.append("the frames follow the network's potential, not the method's" if ensemble.follows == "network"
                   else "the scheme promises no ensemble")
    if len(conformers) > 1:
        common = _common(conformers)
        apart = max(common, key=lambda c: np.inf if c.r_hat is None else c.r_hat)
        few = min(common, key=lambda c: c.effective_samples)
        if _apart(apart):
            value = "infinite or not defined" if apart.r_hat is None else f"{apart.r_hat:.2f}"
            out.append(f"the chains do not agree on conformer {apart.label}: R-hat {value}, above {MOST_R_HAT:g}")
        if few.effective_samples < FEWEST_SAMPLES:
            out.append(f"conformer {few.label} rests on {few.effective_samples:.0f} independent samples, fewer than "
                       f"{FEWEST_SAMPLES}")
        unentered = [c.label for c in common if not c.entered]
        if unentered:
            out.append(f"no chain came into {', '.join(unentered)}: only chains that began there saw it")
    elif kept:
        energies = ensemble.trajectory.Epot[ensemble.frames][:, None]
        samples = float(ensemble.average(energies).effective_samples[0])
        if samples < FEWEST_SAMPLES:
            out.append(f"{samples:.0f} independent samples of the energy, fewer than {FEWEST_SAMPLES}, are too few to "
                       f"have seen another well of {', '.join(kept)}")
    wide = _too_wide(ensemble, conformers, others)
    if wide:
        out.append(f"the population is known of {wide}")
    if stuck and len(conformers) > 1:
        out.append(f"no chain crossed between the wells of {', '.join(stuck)}")
    doubt = ensemble.doubt()
    if doubt is not None:
        out.append(doubt)
    return out
