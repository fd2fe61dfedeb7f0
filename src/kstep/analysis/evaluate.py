"""Every run of a folder against its baseline: find, match, judge, write.

Shared by 05_eval_drift_rdfs.py and 05b_eval_qm.py, which differ in their default folders only.
"""

from __future__ import annotations

import gc
import logging
from pathlib import Path

import numpy as np

from kstep.analysis.judge.compare import check_comparable, compare
from kstep.analysis.judge.controls import BASELINE, judge
from kstep.analysis.judge.verdict import Outcome, Role, Verdict
from kstep.analysis.measure.averages import check_distinct
from kstep.analysis.measure.profile import characterise, production_temperature_K
from kstep.analysis.metrics import METRICS
from kstep.analysis.metrics.sampling import rates_of
from kstep.analysis.show import plots
from kstep.analysis.show.page import write_page
from kstep.analysis.show.text import format_text
from kstep.errors import UserError, did_you_mean
from kstep.files import check_writable, read_json, write_json_compact
from kstep.schemas import Trajectory, join_trajectories, load_trajectory, read_metadata
from kstep.scheme_traits import traits_of

log = logging.getLogger("kstep")


def find_trajectories(root: Path, problems: list[str]) -> dict[Path, dict]:
    """Metadata of every trajectory at or below `root`; other schemas (datasets) are passed over.

    A file that cannot be read is added to `problems`.
    """
    root = Path(root)
    if not root.exists():
        raise UserError(f"{root} does not exist; run the stage that writes it first")
    # a folder <run>.npz.parts belongs to a run that has not finished, <run>.npz.learn to what it learned
    files = [root] if root.is_file() else sorted(
        p for p in root.rglob("*.npz")
        if not p.name.startswith(".") and not any(part.endswith((".parts", ".learn")) for part in p.parts))
    found = {}
    for path in files:
        try:
            metadata = read_metadata(path)
        except UserError as error:
            problems.append(str(error))
            continue
        if metadata.get("schema") == "trajectory" and "scheme" not in metadata and not root.is_file():
            log.debug("%s is one replica of an unfinished baseline", path)
        elif metadata.get("schema") == "trajectory":
            found[path] = metadata
        else:
            log.debug("%s holds a '%s', not a trajectory", path, metadata.get("schema"))
    return found


def evaluate(baseline: str | Path, hybrid: str | Path, out_dir: str | Path, *, rdf_maximum_nm: float = 1.0,
             rdf_bins: int = 200, title: str = "Hybrid runs against plain MD", draw: bool = True,
             seed: int = 0) -> tuple[dict, list[str]]:
    """Judge all runs below `hybrid`; writes metrics.json, plots/ and report.html under `out_dir`.

    Returns (metrics, problems): problems are sentences about files that could not be judged;
    every other file was.  Raises UserError when nothing could be judged at all.
    """
    problems: list[str] = []
    out_dir = Path(out_dir)
    baselines, runs = (find_trajectories(Path(root), problems) for root in (baseline, hybrid))
    for found, root, what in ((baselines, baseline, "baseline"), (runs, hybrid, "hybrid")):
        if not found:
            raise UserError(f"{root} holds no trajectory that can be read"
                            + (f" ({problems[0]})" if problems else "") + f"; run a {what} first")
    check_writable(out_dir / "metrics.json")
    _check_own(out_dir)
    options = {"rdf_maximum_nm": rdf_maximum_nm, "rdf_bins": rdf_bins}
    metrics: dict = {"schema": "metrics", "schema_version": 2, "keys": {m.name: m.meaning for m in METRICS},
                     "rdf_maximum_nm": rdf_maximum_nm, "rdf_bins": rdf_bins, "molecules": {}}
    for molecule in sorted({str(m.get("molecule")) for m in runs.values()}):
        mine = {p: m for p, m in runs.items() if str(m.get("molecule")) == molecule}
        try:
            judged = _evaluate_molecule(molecule, mine, baselines, Path(hybrid), out_dir, options, problems, draw,
                                        seed)
        except UserError as error:
            problems.append(str(error))
            continue
        if judged["runs"]:
            metrics["molecules"][molecule] = judged
        gc.collect()
    metrics["problems"] = problems
    if not metrics["molecules"]:
        raise UserError(problems[0] if problems else f"nothing below {hybrid} could be judged")
    write_json_compact(out_dir / "metrics.json", metrics, levels=5, sort_keys=False)
    write_page(out_dir / "report.html", metrics, out_dir, title)
    return metrics, problems


def _check_own(out_dir: Path) -> None:
    """UserError where metrics.json or report.html is there and no evaluation's, whose next one replaces them."""
    there = [out_dir / name for name in ("metrics.json", "report.html") if (out_dir / name).exists()]
    if not there:
        return
    metrics = read_json(there[0]) if there[0].name == "metrics.json" else None
    if not isinstance(metrics, dict) or metrics.get("schema") != "metrics":
        raise UserError(f"{there[0]} is there already, and no evaluation wrote it; choose another --out-dir")


def _load(path: Path) -> Trajectory:
    trajectory = load_trajectory(path)
    for key in ("molecule", "scheme", "method", "segments"):
        if key not in trajectory.metadata:
            raise UserError(f"{path} has no '{key}' in its metadata; run its stage again")
    if not len(trajectory.pos):
        raise UserError(f"{path} holds no frames; run its stage again")
    trajectory.forces = trajectory.forces[:0].copy()  # not judged, and a third of the memory
    return trajectory


def _load_reference(molecule, methods, baselines, problems) -> Trajectory:
    files = [p for p, m in baselines.items() if str(m.get("molecule")) == molecule]
    if not files:
        known = sorted({str(m.get("molecule")) for m in baselines.values()})
        raise UserError(f"molecule '{molecule}' has no baseline{did_you_mean(molecule, known)}")
    plain = [p for p in files if not traits_of(baselines[p]).needs_network]
    if not plain:
        raise UserError(f"'{molecule}' has no run of plain MD among its baselines, only "
                        f"{', '.join(sorted(map(str, files)))}; make one with 'kstep baseline' (01, 01b) and give its "
                        "folder as the baseline")
    wanted = [p for p in plain if baselines[p].get("method") in methods]
    if not wanted:
        there = sorted({str(baselines[p].get("method")) for p in plain})
        raise UserError(f"'{molecule}' was run with {', '.join(sorted(map(str, methods)))} but its baseline with "
                        f"{', '.join(there)}; compare runs of one method")
    loaded = []
    for path in wanted:
        try:
            trajectory = _load(path)
            if loaded:
                check_comparable(loaded[0], trajectory)
                if not np.allclose(loaded[0].masses_sampler, trajectory.masses_sampler):  # velocities belong to them
                    raise UserError("its atoms have other masses than those of another baseline, so that the "
                                    "temperatures and spectra of both together would be of neither; put isotopes into "
                                    "folders of their own")
            for other in loaded:
                check_distinct(other, trajectory, "this and another baseline")
            loaded.append(trajectory)
        except UserError as error:
            problems.append(_naming(path, error))
    if not loaded:
        raise UserError(f"no baseline of '{molecule}' can be read")
    total = {key: sum(t.metadata.get(key) or 0 for t in loaded)
             for key in ("true_calls", "true_calls_training", "wall_s", "cpu_s")}
    joined = join_trajectories(loaded)
    joined.metadata.update(total)
    return joined


def load_baseline(run: Trajectory, baseline: str | Path) -> Trajectory:
    """Plain MD of a run's molecule and method, all such files below `baseline` joined; UserError without one."""
    problems: list[str] = []
    found = find_trajectories(Path(baseline), problems)
    if not found:
        raise UserError(problems[0] if problems else
                        f"{baseline} holds no trajectory; give plain MD of the same molecule")
    joined = _load_reference(str(run.metadata.get("molecule")), {run.metadata.get("method")}, found, problems)
    check_comparable(joined, run)
    return joined


def _naming(path, error):
    return str(error) if str(path) in str(error) else f"{path}: {error}"


def _evaluate_molecule(molecule, files, baselines, root, out_dir, options, problems, draw, seed):
    methods = {m.get("method") for m in files.values()}
    if len(methods) > 1:
        # a reference of one method judges only its own runs
        have = {m.get("method") for m in baselines.values() if str(m.get("molecule")) == molecule
                and not traits_of(m).needs_network}
        for path in [p for p, m in files.items() if m.get("method") not in have]:
            problems.append(f"{path}: '{molecule}' was run with {files[path].get('method')} but its baseline with "
                            f"{', '.join(sorted(map(str, have)))}; compare runs of one method")
            del files[path]
        methods = {m.get("method") for m in files.values()}
    if len(methods) > 1:
        raise UserError(f"the runs of '{molecule}' mix the methods {', '.join(sorted(map(str, methods)))}; "
                        "put each method into a folder of its own")
    reference_trajectory = _load_reference(molecule, methods, baselines, problems)
    references, profiles, trajectories, results = {}, {}, {}, {}
    for path in files:
        name = str(path.relative_to(root)) if root.is_dir() else path.name
        try:
            run = _load(path)
            check_comparable(reference_trajectory, run)
            temperature_K = production_temperature_K(run)
            key = temperature_K if temperature_K is not None else run.metadata.get("temperature_K")
            if key not in references:
                references[key] = characterise(reference_trajectory, temperature_K=key, **options)
            if references[key] is None:
                raise UserError(f"the baseline of '{molecule}' has no production frames at {key:g} K; run it at "
                                "the hybrid's temperature")
            profile = characterise(run, **options)
            results[name] = compare(references[key], profile if profile else run, seed=seed, **options)
            results[name]["file"] = str(path)
            profiles[name], trajectories[name] = profile, run
        except UserError as error:
            problems.append(_naming(path, error))
    judged = {"reference": {}, "runs": results}
    for key, reference in references.items():
        if reference is None:
            continue
        own = _reference_as_control(reference, options, seed)
        judged["reference"][f"{key:g} K"] = own
        for name in (n for n in results if results[n]["temperature_K"] == reference.temperature_K):
            _judge_run(name, results, own)
            hybrids = any(r["role"] == Role.HYBRID for r in results.values())
            if draw and (results[name]["role"] == Role.HYBRID or not hybrids):
                controls = {label: profiles[c] for label, c in results[name]["control_files"].items()
                            if results[c]["role"] == Role.PLAIN and profiles[c]}
                folder = out_dir / "plots" / molecule / name.removesuffix(".npz").replace("/", "_")
                drawn = plots.draw_all(folder, reference, profiles[name], trajectories[name], results[name],
                                       dict(list(controls.items())[:1]))
                results[name]["plots"] = {k: str(p.relative_to(out_dir)) for k, p in drawn.items()}
    return judged


def _reference_as_control(reference, options, seed):
    """The reference's own sampling, drift and cost; calls and seconds by production's share."""
    trajectory = reference.trajectory
    own = compare(reference, reference, seed=seed, **options)
    share = reference.n_frames / len(trajectory.pos)
    stride = -(-sum(np.isin(trajectory.segment, [i]).sum() for i in np.unique(
        trajectory.segment[np.concatenate(reference.replicas)])) // reference.n_frames)
    share = min(1.0, share * stride)
    for key in ("true_calls", "wall_s", "cpu_s"):
        own["cost"][key] = type(own["cost"][key])(own["cost"][key] * share)
    own["role"] = Role.BASELINE
    own["sampling"] |= rates_of(own["sampling"], own["cost"])
    for section in ("structure", "stretches"):
        own[section] = own[section] and {key: {**entry, "verdict": Verdict.REFERENCE}
                                         for key, entry in own[section].items()}
    return own


def _judge_run(name, results, baseline):
    """Choose the controls of a run (nearest budgets first) and write its verdict."""
    run = results[name]
    calls = run["cost"]["true_calls"]

    def distance(other):
        theirs = results[other]["cost"]["true_calls"]
        return abs(np.log(theirs / calls)) if theirs and calls else np.inf

    chosen = {}
    plain = sorted((n for n in results if n != name and results[n]["role"] == Role.PLAIN), key=distance)
    for control in plain[:2]:
        label = f"{results[control]['scheme']}, {results[control]['dt_fs']:g} fs"
        chosen[label if label not in chosen else f"{results[control]['scheme']}, {control}"] = control
    is_hybrid = run["role"] == Role.HYBRID
    bare = [n for n in results if n != name and results[n]["role"] == Role.NO_NETWORK
            and results[n]["scheme"] == run["scheme"]]
    bare.sort(key=lambda n: (results[n]["k_steps"] != run["k_steps"], distance(n)))
    if bare and is_hybrid:
        chosen[Role.NO_NETWORK] = bare[0]
    run["control_files"] = chosen
    controls = {label: results[c] for label, c in chosen.items() if label != Role.NO_NETWORK}
    if is_hybrid:
        plain_s = next(iter({**controls, BASELINE: baseline}.values()))["cost"]["wall_s_per_ps"]
        own_s = run["cost"]["wall_s_per_ps"]
        run["cost"]["times_faster_than_plain"] = plain_s / own_s if plain_s and own_s else None
    run["verdicts"] = judge(run, {**controls, BASELINE: baseline}) if is_hybrid else [{"outcome": Outcome.IS_CONTROL}]
    if is_hybrid and not controls:
        run["warnings"].append("no plain control at the same number of true calls lies beside this run; "
                               "the baseline, scaled to its budget, stands in")


def evaluate_and_print(baseline: Path, hybrid: Path, out_dir: Path, **options) -> int:
    """`evaluate`, its table on the terminal, and the exit code: 2 when a file could not be judged."""
    metrics, problems = evaluate(baseline, hybrid, out_dir, **options)
    print(format_text(metrics))
    print(f"\nwrote {out_dir / 'metrics.json'}, {out_dir / 'plots'}, {out_dir / 'report.html'}")
    for problem in problems:
        log.error("%s", problem)
    if problems:
        log.error("%d file(s) could not be judged; all others were", len(problems))
    return 2 if problems else 0
