"""Figures in README and the guides come from the benchmark's JSON and from nowhere else."""

import importlib
import json
import re

import pytest

from conftest import ROOT


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


def test_every_file_the_readme_names_exists():
    text = (ROOT / "README.md").read_text()
    for name in set(re.findall(r"(?:src|configs|benchmarks)/[\w./-]+\.(?:py|yaml|json)", text)):
        assert (ROOT / name).is_file(), name
