"""All files of a benchmark made into one result: rows, speed-ups, bars, and how the numbers were made."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from pathlib import Path

from kstep.analysis.judge.compare import check_comparable
from kstep.analysis.measure.profile import Profile, characterise
from kstep.analysis.measure.samples import common_rotamers, comparable, counted, effective_samples, series_of
from kstep.errors import UserError
from kstep.files import read_json
from kstep.learning.cold_start import learned_at
from kstep.schemas import Trajectory, load_trajectory
from kstep.study.benchmark import network_reference
from kstep.study.benchmark.agreement import agreement
from kstep.study.benchmark.bars import bars, cold_start
from kstep.study.benchmark.plan import COMPETITOR_FS, DYNAMICS, REFERENCE_FS, RIVAL, TIMESTEPS_FS, Plan, Variant
from kstep.study.benchmark.runner import label_of, metadata_of, read_costs
from kstep.study.benchmark.samplers import beside
from kstep.study.benchmark.scheme_rows import hybrid_row, plain_row
from kstep.study.benchmark.speedup import plain_rates, speed_up
from kstep.study.benchmark.table import table_of
from kstep.units import kT

HOW = (
    "errors of bonds and angles are against plain MD at 0.5 fs, the floor is what two samples of these sizes differ by",
    "stretch shifts are against the shortest plain timestep that was run; a scheme that moves by the network's force "
    "alone shows its spectrum in a run with a shorter macro-step, which leaves its dynamics as it is",
    "CPU seconds per true call of plain MD come from short runs made side by side with the schemes (warm SCF "
    "restarts); the long references may have run on a busy machine, so their seconds are not used",
    "drift is that of the true total energy in NVE without thermostat or rescale; a scheme that redraws velocities "
    "has none",
    "rates per true call and per CPU second are of production; 'training included' spreads labels, training and "
    "burn-in over the samples of this one run",
)

log = logging.getLogger("kstep")


def load(path: Path, reference: Trajectory | None = None) -> Trajectory | None:
    """A trajectory of the benchmark, None if it is not there; another molecule or method is a UserError."""
    if not path.is_file():
        return None
    trajectory = load_trajectory(path)
    if reference is not None:
        try:
            check_comparable(reference, trajectory)
        except UserError as error:
            raise UserError(f"{path}: {error}; choose another --out-dir") from None
    trajectory.forces = trajectory.forces[:0].copy()  # not judged, and a third of the memory
    return trajectory


def judge(plan: Plan, *, seeds: list[int], training_s: float | None, targets: dict | None = None) -> dict:
    """Everything of benchmark.json that comes from files; what is missing is left out and said.

    targets: of this molecule, from `bars.load_targets`; None: it is held to nothing.
    """
    reference = _long_run(plan, REFERENCE_FS)
    competitor = _long_run(plan, COMPETITOR_FS, reference.trajectory)

    def found(path: Path) -> Trajectory | None:
        return load(path, reference.trajectory)

    def of_seeds_there(path_of: Callable[[int], Path]) -> dict[int, Trajectory]:
        return {seed: run for seed in seeds if (run := found(path_of(seed))) is not None}

    timed = {dt: found(plan.timed_path(dt)) for dt in TIMESTEPS_FS}
    # the shortest timestep of the timed runs, whose NVE windows are long enough for a spectrum
    spectrum = next((p for run in timed.values() if run is not None and (p := characterise(run)) is not None), None)
    exact = {variant: of_seeds_there(partial(sampler_path, plan, variant)) for variant in plan.variants}
    profiles = {variant: [p for p in map(characterise, runs.values()) if p is not None]
                for variant, runs in exact.items()}
    plain = series_of(competitor)
    sampled = [series_of(p) for of_variant in profiles.values() for p in of_variant]
    told_apart = common_rotamers([series_of(reference), plain], sampled)
    rotamers, notes = comparable(told_apart) if sampled else counted(told_apart)
    label = _most_crossed(plain, rotamers)
    rows = {}
    for dt, run in timed.items():
        if run is None:
            notes.append(f"plain at {dt:g} fs is left out: {plan.timed_path(dt)} was not made")
            continue
        long = {REFERENCE_FS: reference.trajectory, COMPETITOR_FS: competitor.trajectory}.get(dt, run)
        rows[f"plain {dt:g} fs"] = plain_row(long, run, reference, spectrum, rotamers, label, plan.n_workers)
    to_beat = rows.get(f"plain {COMPETITOR_FS:g} fs")
    if to_beat is None:
        raise UserError(f"{plan.timed_path(COMPETITOR_FS)} does not exist, so a true call has no price; run the "
                        "section plain")
    price = to_beat["cost"]["cpu_s_per_call"]
    costs = read_costs(plan.out)

    def row(run, path, **others):
        command_cpu_s = costs.get(label_of(path, plan.out))
        if command_cpu_s is not None and learned_at(path).is_dir():
            command_cpu_s -= run.metadata.get("cpu_s_training") or 0.0  # a cost of its own
        return hybrid_row(run, reference, spectrum, rotamers, label, price, training_s, command_cpu_s, **others)

    of_variants = {variant: {seed: row(run, sampler_path(plan, variant, seed)) for seed, run in runs.items()}
                   for variant, runs in exact.items() if runs}
    notes += [f"{variant.name}: seeds {', '.join(map(str, lost))} left no file, and its medians are of the others"
              for variant, of_seeds in of_variants.items() if (lost := [s for s in seeds if s not in of_seeds])]
    rows |= {variant.name: _median_row(list(of_seeds.values())) for variant, of_seeds in of_variants.items()}
    for scheme in DYNAMICS:
        nvt, nve, fine = (found(plan.path(scheme, kind)) for kind in ("nvt", "nve", "spectrum"))
        if nvt is not None:
            rows[scheme] = row(nvt, plan.path(scheme, "nvt"), nve=nve, spectrum=fine if fine is not None else nve)
    notes += [f"{name}: the {which} run {status}" for name, of_scheme in rows.items()
              for which, status in (("NVT", of_scheme["status"]), ("NVE", of_scheme["status_nve"]))
              if (status or "").startswith(("broke", "stopped"))]
    network = network_reference.load(plan.network_path) if plan.network_path.is_file() else None
    spread = network and network[1]["certificate"]["spread_kJ_per_mol"]
    if network is not None and not spread <= kT(reference.temperature_K):
        notes.append("the network's own dynamics is not used: its certificate, a spread of E_true - E_ML of "
                     f"{spread:.3g} kJ/mol, is above kT; some of it has left the molecule's true valleys")
        network = None
    rates = plain_rates(plain, to_beat["cost"]["true_calls_per_ps"], rotamers, network)
    learned = of_seeds_there(lambda seed: plan.path("learn", f"seed_{seed}"))
    cold_starts = {seed: row(run, plan.path("learn", f"seed_{seed}")) for seed, run in learned.items()}
    # a cold start is judged by the longest production of its network
    judged = next(iter(of_variants), None)  # the preferred one of those that are there
    of_seeds = of_variants.get(judged, {})
    network_of = itemgetter("checkpoint_sha256")
    produced = [of_seed if network_of(exact[judged][seed].metadata) == network_of(learned[seed].metadata)
                else cold_starts[seed] for seed, of_seed in of_seeds.items() if seed in learned]
    ups = {variant: [speed_up(r, rates, price) for r in of_variant.values()]
           for variant, of_variant in of_variants.items()}
    rival = next((variant for variant in of_variants if variant.scheme == RIVAL), None)
    samplers = [beside(variant, of_variant, ups[variant], {}, None, None) if rival is None or variant.scheme == RIVAL
                else beside(variant, of_variant, ups[variant], of_variants[rival], rival.name,
                            agreement(profiles[variant], profiles[rival], rotamers))
                for variant, of_variant in of_variants.items()]
    result = {
        "schema": "benchmark", "schema_version": 1, "molecule": plan.name,
        "method": reference.trajectory.metadata["method"], "temperature_K": reference.temperature_K,
        "elements": sorted(to_beat["temperature"]),
        "rows": rows, "seeds": list(seeds), "sampler_seeds": list(of_seeds.values()), "samplers": samplers,
        "plain_rates": rates,
        "cold_start": [cold_start(r) for r in cold_starts.values()],
        "from_cold_start": [speed_up(r, rates, price) for r in produced],
        "speed_up": ups.get(judged, []),
        "rotamers": {r.label: [float(c) for c in r.centres_deg] for r in rotamers if r}, "notes": [*notes, *HOW]}
    inner_step = plan.out / "inner_step.json"
    result["inner_step"] = read_json(inner_step) if inner_step.is_file() else None
    result["bars"] = bars(targets or {}, result)
    result["table"] = table_of(rows, result["elements"])
    return result


def sampler_path(plan: Plan, variant: Variant, seed: int) -> Path:
    """The sampler's run of a seed, or else the production of its cold start where that is one of this sampler."""
    given, learned = plan.path(variant.scheme, variant.kind(seed)), plan.path("learn", f"seed_{seed}")
    if given.is_file() or variant.call_cost_s is not None or not learned.is_file():
        return given
    return learned if metadata_of(learned).get("scheme") == variant.scheme else given


def _long_run(plan: Plan, dt_fs: float, reference: Trajectory | None = None) -> Profile:
    """The long plain run at a timestep; UserError where it is not there, or another's."""
    path = plan.plain_path(dt_fs)
    found = load(path, reference)
    if found is None:
        raise UserError(f"{path} does not exist, so there is nothing to compare with; run the section plain")
    if found.metadata.get("molecule") != plan.name:
        raise UserError(f"{path} is of '{found.metadata.get('molecule')}', not of '{plan.name}'")
    if abs(found.metadata["dt_fs"] - dt_fs) > 1e-9:
        raise UserError(f"{path} was run at {found.metadata['dt_fs']:g} fs, not at {dt_fs:g} fs; choose another "
                        "--out-dir")
    profile = characterise(found)
    if profile is None:
        raise UserError(f"{path} holds no production frames; choose another --out-dir")
    return profile


def _most_crossed(plain, rotamers) -> str | None:
    """The torsion whose transition rate plain MD knows best."""
    found = effective_samples(plain, rotamers)["torsions"]
    return max(found, key=lambda name: found[name]["crossings"], default=None)


def _median_row(rows: list[dict]) -> dict:
    """The row of the seed with the median acceptance, the lower of two."""
    ordered = sorted(rows, key=lambda r: r["acceptance"])
    return ordered[(len(ordered) - 1) // 2]
