"""Write API_REFERENCE.md from the signatures and docstrings of src/kstep, without importing any of it.

    python scripts/make_api_reference.py            write it
    python scripts/make_api_reference.py --check    exit code 1 if the file is not what would be written
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
RESULT = ROOT / "API_REFERENCE.md"
GROUND = "kstep"
PACKAGES = {  # in the order in which imports run
    GROUND: "units, files, configs and the records that all others pass on",
    "kstep.molecules": "SMILES to conformers and an OpenMM System",
    "kstep.forces": "the true physics",
    "kstep.models": "networks",
    "kstep.runs": "schemes and the time loop",
    "kstep.training": "windows, losses, the training loop",
    "kstep.learning": "from a cold start to a frozen network",
    "kstep.analysis": "trajectories measured, compared and reported",
    "kstep.study.benchmark": "which runs a benchmark is made of, and their result",
    "kstep.study.advice": "what a run will cost, with and without a network",
}
HEAD = """# API reference

Written by `python scripts/make_api_reference.py` from the docstrings; do not edit. Public modules, classes and
functions of `kstep`, grouped by package. Shapes: R replicas, N atoms, B bonds, T frames, P molecules or pairs, A atoms
of a batch. Inside, all quantities are in nm, ps, Da, kJ/mol, elementary charges and K. A user's mistake raises
`UserError`, physics that fails `PhysicsError`; both are one sentence.
"""


@dataclass(frozen=True)
class Module:
    """One file: dotted name, parsed."""

    name: str
    tree: ast.Module

    @property
    def package(self) -> str:
        parts = self.name.split(".")
        return ".".join(parts[:2]) if len(parts) > 1 and ".".join(parts[:2]) in PACKAGES else GROUND


def modules() -> list[Module]:
    """All public modules, sorted by name."""
    found = []
    for path in sorted((SOURCE / "kstep").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if not any(part.startswith("_") and part != "__init__" for part in parts):
            found.append(Module(".".join(part for part in parts if part != "__init__"), ast.parse(path.read_text())))
    return sorted(found, key=lambda module: module.name)


def public(body: list[ast.stmt], kind) -> Iterator[ast.stmt]:
    """The statements of a kind whose name has no underscore before it."""
    return (node for node in body if isinstance(node, kind) and not node.name.startswith("_"))


def signature(function: ast.FunctionDef, name: str | None = None, *, is_method: bool = False) -> str:
    """`name(arguments) -> result` as written, without self."""
    arguments = function.args
    decorators = {ast.unparse(d) for d in function.decorator_list}
    if is_method and "staticmethod" not in decorators:
        arguments = ast.arguments(**{**dict(ast.iter_fields(arguments)), **(
            {"posonlyargs": arguments.posonlyargs[1:]} if arguments.posonlyargs else {"args": arguments.args[1:]})})
    result = f" -> {ast.unparse(function.returns)}" if function.returns and name is None else ""
    if is_method and decorators & {"property", "cached_property", "functools.cached_property"}:
        return f"{name or function.name}{result}"
    return f"{name or function.name}({ast.unparse(arguments)}){result}"


def prose(text: str) -> str:
    """Plain text as Markdown, so that nothing in it becomes a mark; `code` stays code."""
    pieces = re.split(r"(`[^`\n]+`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*_<>|\[\]\\#])", r"\\\1", p) for p in pieces)


def described(node) -> list[str]:
    """A docstring: its sentences as text, its equations, tables and examples as they are written."""
    docstring = ast.get_docstring(node)
    if not docstring:
        return []
    lines = []
    for paragraph in inspect.cleandoc(docstring).split("\n\n"):
        paragraph = paragraph.strip("\n")
        if not re.search(r"^( {2,}|>>>|- )|\S {3,}\S", paragraph, flags=re.M):
            lines += [prose(paragraph), ""]
        elif lines[-2:] == ["```", ""]:
            lines[-2:] = ["", paragraph, "```", ""]
        else:
            lines += ["```text", paragraph, "```", ""]
    return lines


def fields(cls: ast.ClassDef) -> list[str]:
    """Annotated class attributes: the fields of dataclasses and configs, with their comments left out."""
    rows = [node for node in cls.body if isinstance(node, ast.AnnAssign) and not node.target.id.startswith("_")]
    if not rows:
        return []
    return ["```python", *(ast.unparse(node) for node in rows), "```", ""]


def describe_class(cls: ast.ClassDef) -> Iterator[str]:
    start = next((f for f in cls.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
    bases = f"({', '.join(map(ast.unparse, cls.bases))})" if cls.bases else ""
    yield from (f"#### class `{cls.name}{bases}`", "")
    yield from described(cls)
    yield from fields(cls)
    if start:
        yield from ("```python", signature(start, cls.name, is_method=True), "```", "")
        yield from described(start)
    for method in public(cls.body, ast.FunctionDef):
        yield from (f"##### `{cls.name}.{signature(method, is_method=True)}`", "")
        yield from described(method)


def describe(module: Module) -> Iterator[str]:
    yield from (f"### {module.name}", "")
    yield from described(module.tree)
    for cls in public(module.tree.body, ast.ClassDef):
        yield from describe_class(cls)
    for function in public(module.tree.body, ast.FunctionDef):
        yield from (f"#### `{signature(function)}`", "")
        yield from described(function)


def anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def reference() -> str:
    """The whole file."""
    by_package = {name: [] for name in PACKAGES}
    for module in modules():
        by_package[module.package].append(module)
    contents, body = [], []
    for name, members in by_package.items():
        contents.append(f"- [{name}](#{anchor(name + ' package')}): {PACKAGES[name]}")
        contents += [f"  - [{m.name}](#{anchor(m.name)})" for m in members]
        body += [f"## {name} package", ""]
        for member in members:
            body += describe(member)
    return "\n".join([HEAD, *contents, "", *body]).rstrip("\n") + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only")
    args = parser.parse_args()
    text = reference()
    if args.check:
        if not RESULT.is_file() or RESULT.read_text() != text:
            print(f"error: {RESULT.name} is out of date; run python scripts/make_api_reference.py", file=sys.stderr)
            return 1
        return 0
    RESULT.write_text(text)
    print(f"{RESULT}: {text.count(chr(10))} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
