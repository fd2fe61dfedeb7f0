"""What stands on the report of one run, as plain values for the template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from kstep.analysis.measure.free_energy import Coordinate, free_energy
from kstep.analysis.measure.geometry import on_circle
from kstep.analysis.measure.populations import Conformer, Populations, conformers_of_frames
from kstep.analysis.measure.profile import Profile, characterise
from kstep.analysis.measure.samples import common_rotamers, counted, effective_samples, series_of
from kstep.analysis.measure.spectra import nve_segments
from kstep.analysis.measure.statistics import MOST_R_HAT, split_r_hat
from kstep.analysis.measure.umbrella import gather
from kstep.analysis.metrics.cells import to_its_error
from kstep.analysis.metrics.cost import cost_of
from kstep.analysis.show.report import figures, molecule
from kstep.analysis.show.spectrum import as_text
from kstep.analysis.spectrum import infrared
from kstep.errors import UserError
from kstep.schemas import Trajectory
from kstep.scheme_traits import traits_of
from kstep.topology import neighbours
from kstep.units import kT

FEW, BINS = 3000, (36, 72)  # of a circle; below so many frames wide ones
MOST_FRAMES = 150  # that the 3D view plays
NEAREST = 30  # frames of a conformer that its view plays
MOST_RUNNING = 6  # conformers with a running population


def answer(populations: Populations) -> dict[str, Any]:
    """The first line: whether it is converged and what the populations are, or what is wrong."""
    found = ", ".join(f"{c.label} {percent(c.population, c.population_error)}" for c in populations.conformers[:4])
    more = len(populations.conformers) - 4
    found += f" and {more} more" if more > 0 else ""
    n = len(populations.conformers)
    what = f"{n} conformer{'s' * (n != 1)} of {populations.molecule} at {populations.temperature_K:g} K: {found}"
    return {"good": populations.converged,
            "words": f"Converged. {what}." if populations.converged else f"Not converged. {what}.",
            "problems": [sentence(p) for p in populations.problems], "notes": [sentence(n) for n in populations.notes]}


def sentence(words: str) -> str:
    """With a capital and a full stop."""
    return f"{words[0].upper()}{words[1:]}{'' if words.endswith('.') else '.'}"


def percent(value: float, error: float) -> str:
    """A share and its error in per cent."""
    return f"{to_its_error(100 * value, 100 * error)} %"


def asked(trajectory: Trajectory, populations: Populations) -> list[tuple[str, str]]:
    """What was run: (what, value)."""
    m = trajectory.metadata
    moves = m.get("k_steps") or 1
    lines = [("molecule", str(m.get("molecule"))), ("SMILES", m.get("smiles")), ("method", m.get("method")),
             ("temperature", f"{populations.temperature_K:g} K"),
             ("charge, multiplicity", f"{m['charge']}, {m['multiplicity']}"
              if m.get("charge") is not None and m.get("multiplicity") is not None else None),
             ("scheme", f"{m.get('scheme')}, one true call every {moves} timesteps of {m['dt_fs']:g} fs"
              if moves > 1 and m.get("dt_fs") else m.get("scheme")),
             ("chains", f"{populations.chains}, {populations.frames} frames"),
             ("joined temperatures", ", ".join(f"{T:g} K" for T in populations.rungs_K)
              if len(populations.rungs_K) > 1 else None),
             ("samples", {"true": f"the Boltzmann distribution of {m.get('method')}",
                          "network": "the network's distribution", "none": "no ensemble is promised"}[
                              populations.ensemble]),
             ("status", m.get("status"))]
    return [(what, str(value)) for what, value in lines if value]


def cards(populations: Populations) -> list[dict[str, Any]]:
    """One card for each conformer."""
    alone = len(populations.conformers) == 1
    first = "The only one that was seen" if alone else "The most populated: free energy 0"
    return [{"label": c.label, "population": percent(c.population, c.population_error),
             "share": round(100 * c.population, 2), "lines": list(_lines(c, alone)),
             "free_energy": _free_energy(c) if n else first} for n, c in enumerate(populations.conformers)]


def _free_energy(c: Conformer) -> str:
    kcal = to_its_error(c.free_energy_kcal, c.free_energy_error_kcal)
    return f"Free energy {to_its_error(c.free_energy_kJ, c.free_energy_error_kJ)} kJ/mol ({kcal} kcal/mol)"


def _lines(c: Conformer, alone: bool) -> Iterator[tuple[str, str]]:
    for label, angle in c.wells_deg.items():
        yield label, f"{angle:.0f} deg"
    if c.images == 2:
        yield "mirror image", "counted with it"
    yield "independent samples", f"{c.effective_samples:.0f}"
    if not alone:
        yield "entered", f"{c.entered} times"
    if c.r_hat is not None and not alone:
        yield "R-hat", f"{c.r_hat:.3f}"
    if c.relaxed:
        yield "relaxed energy", (f"{c.relaxed['relative_energy_kJ']:.2f} kJ/mol"
                                 + ("" if c.relaxed["converged"] else ", not converged")
                                 + ("" if c.relaxed["kept"] else ", left its conformer"))


def convergence(profile: Profile) -> list[dict[str, Any]]:
    """Effective samples, R-hat and crossings of the energy and of every torsion with two wells or more."""
    series = series_of(profile)
    rotamers = counted(common_rotamers([series], []))[0]
    found = effective_samples(series, rotamers, jackknife=False)
    r_hat = {"potential energy": float(split_r_hat([e[:, None] for e in series.energy], series.weights)[0])}
    if series.labels:
        values = split_r_hat([on_circle(t) for t in series.torsions], series.weights).reshape(2, -1).max(axis=0)
        r_hat |= dict(zip(series.labels, map(float, values)))
    rows = {"potential energy": found["energy"], **found["torsions"]}
    return [{"name": name, "samples": f"{row['samples']:.0f}", "crossings": row.get("crossings"),
             "r_hat": f"{r_hat[name]:.3f}", "good": bool(r_hat[name] <= MOST_R_HAT)} for name, row in rows.items()]


def torsion_figures(trajectory: Trajectory, profile: Profile, baseline: Trajectory | None) -> list[dict[str, Any]]:
    """Population and free energy along every torsion, the ones with several wells first."""
    samples, beside = gather([trajectory]), None if baseline is None else gather([baseline])
    bins = BINS[len(samples) >= FEW]
    found = []
    for atoms in profile.coordinates.atoms["torsions"].tolist():
        along = Coordinate("dihedral", tuple(atoms))
        own = free_energy(samples, along, bins=bins)
        wells, barriers = own.extrema()
        found.append({"title": own.labels[0], "wells": len(wells), "words": _extrema(wells, barriers),
                      "warnings": [sentence(w) for w in own.warnings],
                      "figure": figures.torsion(own, None if beside is None else
                                                free_energy(beside, along, bins=bins))})
    return sorted(found, key=lambda one: one["wells"] < 2)


def _extrema(wells: list[dict], barriers: list[dict]) -> str:
    """Where wells and barriers lie and how high, kJ/mol."""
    def listed(points: list[dict]) -> str:
        return ", ".join(f"{p['at']:.0f} deg at {to_its_error(p['free_energy'], p['error'])}" for p in points)

    parts = [f"{name}: {listed(points)}" for name, points in (("wells", wells), ("barriers", barriers)) if points]
    return f"{'; '.join(parts)} kJ/mol" if parts else ""


def spectrum_of(trajectory: Trajectory, baseline: Trajectory | None) -> dict[str, Any] | None:
    """The spectrum of dynamics that has stretches without a thermostat, or why it has none; None for a sampler."""
    if not (traits_of(trajectory.metadata).keeps_velocities and nve_segments(trajectory)):
        return None
    try:
        found, unmatched = infrared(trajectory), None
    except UserError as error:
        return {"peaks": [], "problem": sentence(str(error))}
    try:
        found = found if baseline is None else infrared(trajectory, baseline=baseline)
    except UserError as error:
        unmatched = sentence(f"plain MD's is not beside it: {error}")
    unit = " km/mol" if found.absorption is not None else ""
    peaks = [{"at": f"{to_its_error(p.position_cm, p.position_error_cm)} cm-1",
              "area": to_its_error(p.intensity, p.intensity_error) + unit,
              "shift": None if p.shift_cm is None else f"{to_its_error(p.shift_cm, p.shift_error_cm)} cm-1"}
             for p in found.peaks]
    return {"peaks": peaks, "problem": unmatched, "words": as_text(found).splitlines()[0],
            "figure": figures.spectrum(found)}


def running_figure(trajectory: Trajectory, populations: Populations) -> dict[str, Any] | None:
    """Populations so far, chain by chain; None where there is one conformer."""
    shown = populations.conformers[:MOST_RUNNING]
    if len(shown) < 2:
        return None
    frames, conformer = conformers_of_frames(trajectory, populations)
    chains = [np.flatnonzero(trajectory.replica[frames] == r) for r in np.unique(trajectory.replica[frames])]
    chains = [c[np.argsort(trajectory.step[frames[c]], kind="stable")] for c in chains]
    weights = trajectory.weights_of(frames)
    return figures.running([conformer[c] for c in chains], [weights[c] for c in chains], [c.label for c in shown],
                           [(c.population, c.population_error) for c in shown])


def views(trajectory: Trajectory, populations: Populations) -> dict[str, Any]:
    """What the 3D view shows: each conformer, its representative first; and the first chain."""
    t, frames_of_all, conformer = trajectory, *conformers_of_frames(trajectory, populations)
    heavy = np.flatnonzero(_counted_atoms(t))
    sets = {}
    for n, c in enumerate(populations.conformers):
        first = np.asarray(c.relaxed["positions_nm"]) if c.relaxed else t.pos[c.frame]
        first = first - first[heavy].mean(axis=0)
        mine = frames_of_all[conformer == n]
        mine = mine[mine != c.frame]
        moved = molecule.superposed(t.pos[mine], first, heavy) if len(mine) else t.pos[:0]
        away = np.sqrt(((moved - first)[:, heavy] ** 2).sum(axis=-1).mean(axis=-1))
        near = np.sort(np.argsort(away)[:NEAREST])
        said = "relaxed" if c.relaxed else f"representative, {energy_words(t, c.frame)}"
        sets[c.label] = molecule.view_of(
            f"Conformer {c.label}", np.concatenate([first[None], moved[near]]),
            [f"{c.label}: {said}", *(f"{c.label}: {energy_words(t, mine[i])}" for i in near)])
    chain = frames_of_all[t.replica[frames_of_all] == t.replica[frames_of_all].min()]
    chain = chain[np.argsort(t.step[chain], kind="stable")]
    chain = chain[np.unique(np.linspace(0, len(chain) - 1, MOST_FRAMES).astype(int))]
    onto = t.pos[chain[0]] - t.pos[chain[0]][heavy].mean(axis=0)
    names = dict(zip(frames_of_all.tolist(), conformer.tolist()))
    labels = [c.label for c in populations.conformers]
    sets["run"] = molecule.view_of(
        "One chain of the run", molecule.superposed(t.pos[chain], onto, heavy),
        [f"{t.time_ps[f]:.2f} ps, " + (f"conformer {labels[names[int(f)]]}, " if names[int(f)] < len(labels) else
                                       "a rarer conformer, ") + energy_words(t, f) for f in chain])
    return {**molecule.atoms_of(t), "sets": sets}


def energy_words(t: Trajectory, frame: int) -> str:
    """Its true energy above the lowest of the file."""
    return f"{t.Epot[frame] - t.Epot.min():.1f} kJ/mol above the lowest frame"


def _counted_atoms(t: Trajectory) -> np.ndarray:
    """Heavy atoms and hydrogens that are not on carbon, of the region where there is one (N,) bool."""
    table = neighbours(len(t.atom_types), t.bonds)
    counted = np.array([z > 1 or any(t.atom_types[n] not in (1, 6) for n in table[a])
                        for a, z in enumerate(t.atom_types)])
    region = t.metadata.get("qm_atoms")
    if region is not None:
        counted &= np.isin(np.arange(len(counted)), region)
    return counted if counted.any() else np.ones(len(counted), dtype=bool)


def cost(trajectory: Trajectory, rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What it took: (what, value)."""
    m = trajectory.metadata
    spent = cost_of(trajectory, m.get("acceptance"))
    calls, learning = spent["true_calls"], spent["true_calls_training"]
    slowest = min((float(row["samples"]) for row in rows), default=0.0)
    accepted, identity = m.get("acceptance"), m.get("mean_exp_minus_beta_dH")
    cheaper = Counter(m.get("true_calls_training_by_method") or {}) + Counter(spent.get("cheaper_calls", {}))
    del cheaper[m.get("method")]
    lines = [("true calls", f"{calls:,} of the run" + (f", {learning:,} of learning" if learning else "")),
             ("calls of cheaper methods", ", ".join(f"{n:,} of {method}" for method, n in cheaper.items()) or None),
             ("samples per 1000 calls", f"{1000 * slowest / (calls + learning):.0f} of the slowest observable, "
              "learning included" if calls + learning and slowest else None),
             ("CPU time", duration(spent["cpu_s"]) + (f", {duration(m['cpu_s_training'])} of learning"
                                                      if m.get("cpu_s_training") else "")
              if spent["cpu_s"] else None),
             ("wall-clock time", duration(spent["wall_s"]) if spent["wall_s"] else None),
             ("accepted", f"{100 * accepted:.0f} % of the proposals" if accepted is not None else None),
             ("<exp(-dH/kT)>", f"{to_its_error(identity, m.get('mean_exp_minus_beta_dH_error'))}, which is 1 for a "
              "right sampler" if identity is not None else None),
             ("failed true calls", str(spent["failed_true_calls"]) if spent["failed_true_calls"] else None),
             ("machine", (m.get("machine") or {}).get("cpu")),
             ("versions", ", ".join(f"{name} {v}" for name, v in (m.get("versions") or {}).items()))]
    return [(what, value) for what, value in lines if value]


def duration(seconds: float) -> str:
    """In the unit that fits."""
    for most, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < most:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"


def numbered_atoms(profile: Profile) -> set[int]:
    """Atoms that torsions name."""
    return set(profile.coordinates.atoms["torsions"].ravel().tolist())


def report_values(trajectory: Trajectory, populations: Populations, baseline: Trajectory | None) -> dict[str, Any]:
    """All that the template asks for, the comparison apart."""
    profile = characterise(trajectory)
    rows = convergence(profile) if profile else []
    svg, undrawn = molecule.drawing(trajectory, numbered_atoms(profile) if profile else set())
    running = running_figure(trajectory, populations)
    torsions = torsion_figures(trajectory, profile, baseline) if profile else []
    spectrum = spectrum_of(trajectory, baseline)
    entropy = round(populations.entropy_J_per_mol_K, 6)
    return {"title": f"{populations.molecule}: conformers at {populations.temperature_K:g} K",
            "answer": answer(populations), "asked": asked(trajectory, populations), "svg": svg, "undrawn": undrawn,
            "cards": cards(populations), "others": populations.others if populations.others["count"] else None,
            "others_percent": percent(populations.others["population"], populations.others["error"]),
            "entropy": f"{to_its_error(entropy, populations.entropy_error_J_per_mol_K)} J/mol/K",
            "kT": f"{kT(populations.temperature_K):.2f}",
            "torsions": [{key: value for key, value in one.items() if key != "figure"} for one in torsions],
            "spectrum": spectrum and {key: value for key, value in spectrum.items() if key != "figure"},
            "convergence": rows, "has_running": running is not None, "cost": cost(trajectory, rows),
            "caveats": [sentence(c) for c in trajectory.metadata.get("caveats") or []],
            "data": {"molecule": views(trajectory, populations),
                     "figures": {f"torsion-{n}": one["figure"] for n, one in enumerate(torsions)}
                     | ({"spectrum": spectrum["figure"]} if spectrum and "figure" in spectrum else {})
                     | ({"running": running} if running else {})}}


