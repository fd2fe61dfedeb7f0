"""README is short and its Python runs; figures come from the JSON of the benchmarks and from nowhere else."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from conftest import ROOT
from kstep.files import rounded, write_json_compact

# What makes the Python of README fast, and leaves it the same: as written, as run.
FASTER = {"learn=True": "learn=FAST, tune=False, k_steps=50, steps=6, burn_in_steps=1, replicas=8",
          "length_ps=10": "length_ps=0.05, replicas=2"}
FAST = {"bootstrap_labels_per_atom": 4, "learn_moves": 2, "learn_move_fs": 20, "learn_replicas": 8,
        "round_passes": 5, "fit_passes": 10, "search_steps": 1, "verify_proposals": 8, "max_true_calls": 60}


def benchmark(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    own = f"benchmark_{name}"  # PyTables is called tables too
    spec = importlib.util.spec_from_file_location(own, ROOT / "benchmarks" / f"{name}.py")
    module = sys.modules[own] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["qmmm", "dft", "molecules", "transfer", "models", "peers", "ragged", "gpu"])
def test_a_guide_shows_what_was_measured(name, monkeypatch):
    module = benchmark(name, monkeypatch)
    data = json.loads(module.RESULT.read_text())
    assert module.table(data) in module.GUIDE.read_text(), f"run python benchmarks/{name}.py"


def test_what_dft_calls_metropolis_is_metropolis(monkeypatch, tmp_path):
    """Its record and its table name the scheme, which is no longer the one that is taken by itself."""
    module, commands = benchmark("dft", monkeypatch), []
    monkeypatch.setattr(module, "sh", lambda result, *words: commands.append([str(word) for word in words]))
    (tmp_path / "network_dynamics.npz").write_bytes(b"")
    module.run(tmp_path)
    (hybrid,) = [words for words in commands if "--learn" in words]
    assert hybrid[hybrid.index("--scheme") + 1] == "metropolis"


def test_a_torsion_that_was_never_foretold_has_no_ratio(monkeypatch):
    """Plain dynamics that never crossed it gives no forecast, though the run has samples of it."""
    check = {"scheme": "nested", "energy": {"predicted_over_measured": 1.25},
             "torsion": {"predicted_cpu_s": None, "measured_cpu_s": 3.0, "predicted_over_measured": None}}
    text = benchmark("tables", monkeypatch).advise({"ester": {"cold": {"factor": 2.0, "checks": [check]}}})
    assert "| ester | cold | nested | 1.25 (2) | n/a |" in text


def test_the_page_of_results_shows_what_was_measured(monkeypatch):
    module = benchmark("tables", monkeypatch)
    assert module.tables() in module.GUIDE.read_text(), "run python benchmarks/tables.py --write"


def test_figures_and_picture_of_the_readme_are_what_was_measured(monkeypatch):
    module = benchmark("readme", monkeypatch)
    assert module.figures(module.read) in module.GUIDE.read_text(), "run python benchmarks/readme.py"
    assert module.PICTURE.read_text() == module.svg(module.read("exact_and_fast")), "run python benchmarks/readme.py"


def test_the_readme_is_short_and_shows_its_picture():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 150 and "](docs/speed.svg)" in text


def test_the_python_of_the_readme_runs(tmp_path):
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.M | re.S)
    assert len(block.splitlines()) <= 12
    for written, run in FASTER.items():
        assert written in block, f"README no longer says {written!r}"
        block = block.replace(written, run)
    (tmp_path / "ten_lines.py").write_text(f"FAST = {FAST}\n{block}")
    finished = subprocess.run([sys.executable, "ten_lines.py"], cwd=tmp_path, capture_output=True, text=True,
                              timeout=600, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "acceptance" in finished.stdout and "verdict" in finished.stdout
    for name in ("ethanol.npz", "plain.npz", "ethanol.extxyz", "evaluation/report.html"):
        assert (tmp_path / name).is_file(), name


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/results").glob("*.json")), ids=lambda path: path.stem)
def test_a_published_record_is_rounded_and_compact(path, tmp_path):
    write_json_compact(tmp_path / "again.json", json.loads(path.read_text()))
    assert path.read_text() == (tmp_path / "again.json").read_text(), "write it with kstep.files.write_json_compact"


def test_rounding_moves_no_figure_that_is_printed():
    rng = np.random.default_rng(0)
    values = [*(rng.normal(size=2000) * 10.0 ** rng.integers(-6, 6, 2000)).tolist(), 2.83348, -4.417482, 0.285 + 1e-16]
    for value, short in zip(values, rounded(values), strict=True):
        assert abs(short - value) <= 1.01 * 10.0 ** (np.floor(np.log10(abs(value))) - 4)
        assert all(f"{short:.{digits}g}" == f"{value:.{digits}g}" for digits in range(1, 5)), value


def test_rounding_leaves_what_is_no_measurement():
    assert rounded({"calls": 252004, "ok": True, "none": None, "name": "x", "pair": (0.123456789, 0.0)}) == \
        {"calls": 252004, "ok": True, "none": None, "name": "x", "pair": [0.12346, 0.0]}


def test_every_file_the_readme_names_exists():
    text = (ROOT / "README.md").read_text()
    for name in set(re.findall(r"(?:src|configs|docs)/[\w./-]+\.(?:py|yaml|json|svg|md)", text)):
        assert (ROOT / name).is_file(), name
