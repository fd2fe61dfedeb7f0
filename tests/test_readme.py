"""Figures in README and the guides come from the benchmark's JSON and from nowhere else."""

import importlib
import json
import re

import numpy as np
import pytest

from conftest import ROOT
from kstep.files import rounded, write_json_compact


def benchmark(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module(name)


@pytest.mark.parametrize("name", ["qmmm", "dft", "molecules", "transfer", "models", "peers"])
def test_a_guide_shows_what_was_measured(name, monkeypatch):
    module = benchmark(name, monkeypatch)
    data = json.loads(module.RESULT.read_text())
    assert module.table(data) in module.GUIDE.read_text(), f"run python benchmarks/{name}.py"


def test_readme_tables_are_those_of_the_benchmark(monkeypatch):
    module = benchmark("tables", monkeypatch)
    text = (ROOT / "README.md").read_text()
    assert module.tables() in text, "run python benchmarks/tables.py --write"


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
    for name in set(re.findall(r"(?:src|configs|benchmarks)/[\w./-]+\.(?:py|yaml|json)", text)):
        assert (ROOT / name).is_file(), name
