"""Every metric of the registry reaches metrics.json, the table and the page, and finds what is known."""

import html
import json

import numpy as np
import pytest

import synthetic
from kstep.analysis.evaluate import evaluate
from kstep.analysis.judge.compare import compare
from kstep.analysis.judge.verdict import Role, Verdict
from kstep.analysis.measure.geometry import find_coordinates
from kstep.analysis.measure.profile import characterise
from kstep.analysis.metrics import METRICS
from kstep.analysis.metrics.metric import FlooredMetric
from kstep.analysis.show.tables import table, verdict_of
from kstep.analysis.show.text import format_text
from kstep.study.benchmark.scheme_rows import IN_SHORT
from kstep.study.benchmark.table import table_of

CERTIFICATE = {"pairs": 800, "mean_kJ_per_mol": 3.0, "spread_kJ_per_mol": 0.7, "force_rmse_kJ_per_mol_A": 0.4}


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """metrics.json, the text and the page of one run of each kind, and what `evaluate` returned."""
    root = tmp_path_factory.mktemp("metrics")
    synthetic.save(root / "md/ethanol/trajectory.npz", synthetic.ethanol(0, 4, 400, drift=0.0))
    synthetic.save(root / "runs/metropolis.npz", synthetic.ethanol(1, 4, 200, scheme="metropolis"))
    synthetic.save(root / "runs/checked.npz",
                   synthetic.ethanol(2, 4, 200, scheme="checked", drift=0.3, certificate=CERTIFICATE))
    weighted = synthetic.ethanol(3, 4, 200)
    weighted.weight = np.exp(0.5 * np.random.default_rng(0).standard_normal(len(weighted.pos)))
    synthetic.save(root / "runs/weighted.npz", weighted)
    metrics, problems = evaluate(root / "md", root / "runs", root, draw=False)
    assert not problems
    return json.loads((root / "metrics.json").read_text()), format_text(metrics), (root / "report.html").read_text()


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)
def test_a_metric_of_the_registry_is_in_the_file_the_table_and_the_page(metric, judged):
    written, text, page = judged
    assert metric.meaning == written["keys"][metric.name]
    runs = written["molecules"]["ethanol"]["runs"].values()
    found = [run if metric.section is None else run[metric.section] for run in runs]
    assert all(metric.name in each for each in found)
    if all(each[metric.name] is None for each in found):
        assert metric.name == "stretches"  # these frames are too far apart for a spectrum
        return
    labels = [label for run in runs for label in (*metric.lines(run), *((metric.table(run) or ((), ()))[0]))]
    assert labels and all(label in text and html.escape(label) in page for label in labels)
    assert metric.about is None or html.escape(metric.about[0]) in page


def test_metrics_have_names_of_their_own():
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_a_metric_beside_its_floor_is_in_the_benchmark_too():
    entry = {"value": 0.12345, "floor": 0.1, "floor_error": 0.01, "ratio": 1.2, "verdict": "within floor"}
    lines = {line[0]: line[1] for line in table_of({"x": {m.name: entry for m in IN_SHORT}}, [])[1:]}
    for metric in METRICS:
        if isinstance(metric, FlooredMetric):
            assert (f"{metric.label}, {metric.unit} (floor)" in lines) == metric.in_short
    assert lines["bond error, A (floor)"] == "0.12345 (0.10000)"


def lengths_A(run):
    bonds = find_coordinates(run.atom_types, run.bonds, pool_hydrogens=False).atoms["bonds"]
    return 10.0 * np.linalg.norm(run.pos[:, bonds[:, 0]] - run.pos[:, bonds[:, 1]], axis=-1)


# what a molecule blown up by one per cent differs by
@pytest.mark.parametrize("name, expected", [
    ("bond_rmse_A", lambda run: 0.01 * np.sqrt((lengths_A(run).mean(axis=0) ** 2).mean())),
    ("bond_w1_A", lambda run: 0.01 * lengths_A(run).mean()),
    ("angle_rmse_deg", lambda run: 0.0),
    ("potential_kJ_per_mol", lambda run: 0.0),
])
def test_a_metric_finds_the_size_of_a_known_difference(name, expected):
    run, larger = synthetic.ethanol(0, 4, 300), synthetic.ethanol(0, 4, 300)
    larger.pos *= 1.01
    production = run.frames_of("train")
    entry = compare(run, larger)["structure"][name]
    for key in ("pos", "time_ps", "step", "replica"):
        setattr(run, key, getattr(run, key)[production])
    assert entry["value"] == pytest.approx(expected(run), rel=0.02, abs=1e-9)
    assert entry["floor"] > 0 and entry["limit"] >= 1.5
    above = entry["value"] > entry["limit"] * entry["floor"]
    assert entry["verdict"] == (Verdict.ABOVE_FLOOR if above else Verdict.WITHIN_FLOOR)


def test_effective_samples_of_the_report_are_those_of_the_benchmark():
    from kstep.analysis.measure.samples import common_rotamers, effective_samples, series_of

    reference, run = (characterise(synthetic.ethanol(seed, 4, 400)) for seed in (0, 1))
    found = compare(reference, run)
    wells = common_rotamers([series_of(reference)], [series_of(run)])
    expected = effective_samples(series_of(run), wells)
    assert (found["sampling"]["energy"], found["sampling"]["energy_error"]) == tuple(expected["energy"].values())
    (torsion,), (label,) = found["torsions"], expected["torsions"]
    assert (torsion["effective_samples"], torsion["transitions"]) == tuple(
        expected["torsions"][label][key] for key in ("samples", "crossings"))


def test_colours_follow_the_verdict_and_not_its_words():
    result = compare(synthetic.ethanol(0, 4, 200, drift=0.0), synthetic.ethanol(1, 4, 200, drift=1.0))
    tones = {row[0]: verdict_of(row[3]) for row in table(result, {"baseline": {**result, "role": Role.BASELINE}})[1]}
    assert tones["energy drift (kJ/mol/ps)"] == Verdict.DRIFTS and Verdict.DRIFTS.tone is False
    assert tones["true calls"] is None and verdict_of("within floor") is None
    assert all(isinstance(verdict.tone, bool | None) for verdict in Verdict)


def test_a_run_without_production_has_its_cost_and_no_structure():
    run = synthetic.ethanol(1, 4, 100, scheme="metropolis")
    for segment in run.segments:
        segment["role"] = "equil"
    found = compare(synthetic.ethanol(0, 4, 200), run)
    assert found["structure"] is None and found["torsions"] == [] and found["sampling"] is None
    assert found["cost"]["true_calls"] > 0 and found["proposals"]["count"] == len(run.pos)
    assert found["warnings"][-1].startswith("the run holds no production frames")
