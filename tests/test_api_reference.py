"""API_REFERENCE.md is what the docstrings say, and there is a docstring to say it."""

import ast
import sys

from conftest import ROOT, run_python

SCRIPT = "scripts/make_api_reference.py"


def test_the_reference_is_that_of_the_code():
    finished = run_python(SCRIPT, "--check")
    assert finished.returncode == 0, finished.stderr


def test_the_reference_imports_nothing_of_what_it_describes():
    tree = ast.parse((ROOT / SCRIPT).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


def test_everything_public_has_a_docstring():
    missing = []
    for path in sorted((ROOT / "src/kstep").rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if not isinstance(node, (ast.Module, ast.ClassDef)):
                continue
            if isinstance(node, ast.ClassDef) and node.name.startswith("_"):
                continue
            missing += [f"{path.relative_to(ROOT)}:{child.lineno} {child.name}" for child in node.body
                        if isinstance(child, (ast.FunctionDef, ast.ClassDef)) and not child.name.startswith("_")
                        and not ast.get_docstring(child)]
    assert not missing, "\n".join(missing)


def test_the_table_of_contents_leads_somewhere():
    text = (ROOT / "API_REFERENCE.md").read_text()
    for name in ("kstep.schemas", "kstep.forces.base", "kstep.schemes.jump", "kstep.analysis.measure.statistics"):
        assert f"(#{name.replace('.', '')})" in text and f"\n### {name}\n" in text
