"""Figures in README come from the benchmark's JSON and from nowhere else."""

import importlib.util
import re

from conftest import ROOT


def test_readme_tables_are_those_of_the_benchmark():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks/tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (ROOT / "README.md").read_text()
    assert module.tables() in text, "run python benchmarks/tables.py --write"


def test_every_file_the_readme_names_exists():
    text = (ROOT / "README.md").read_text()
    for name in set(re.findall(r"(?:src|configs|benchmarks)/[\w./-]+\.(?:py|yaml|json)", text)):
        assert (ROOT / name).is_file(), name
