"""API_REFERENCE.md is what the docstrings say, and there is a docstring to say it."""

import ast
import re
import sys

import kstep
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


def test_the_reference_is_the_front_door_and_no_list_of_everything():
    text = (ROOT / "API_REFERENCE.md").read_text()
    names = re.findall(r"^### (\S+)$", text, flags=re.M)
    assert {f"kstep.{name}" for name in kstep.__all__ if not name.startswith("_")} <= set(names)
    assert 50 <= len(names) <= 70
    for name in names:
        assert f"(#{name.replace('.', '').lower()})" in text, f"{name} is not in the table of contents"
