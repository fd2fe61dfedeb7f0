"""Write API_REFERENCE.md, the Python interface, from the docstrings of src/kstep, without importing any of it.

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
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
RESULT = ROOT / "API_REFERENCE.md"
WIDTH = 96  # columns of a signature
ENTITIES = str.maketrans({"<": "&lt;", ">": "&gt;", "|": "&#124;"})
SECTIONS = {  # title: (what it is for, names)
    "The front door": ("`import kstep` gives these, and they are the stages of the command line.", [
        "kstep.prepare", "kstep.sample", "kstep.simulate", "kstep.learn", "kstep.evaluate", "kstep.load",
        "kstep.export", "kstep.populations", "kstep.average", "kstep.Result", "kstep.front.Report", "kstep.Molecule",
        "kstep.UserError", "kstep.errors.PhysicsError"]),
    "Settings": ("The keys of `configs/*.yaml`, and keywords of the front door; those of a scheme are in its own file.",
                 [
        "kstep.schemes.base.RunConfig", "kstep.learning.learn_config.LearnConfig", "kstep.config.BaselineConfig",
        "kstep.forces.tblite.QMConfig", "kstep.forces.pyscf.PyscfConfig", "kstep.forces.ase.AseConfig",
        "kstep.forces.openmm.MDConfig", "kstep.models.model_config.ModelConfig",
        "kstep.training.train_config.TrainConfig", "kstep.config.load_config"]),
    "Files": ("Every .npz says its schema; keys, shapes and units are in `kstep.schemas`.", [
        "kstep.schemas.Trajectory", "kstep.schemas.load_trajectory", "kstep.schemas.save_trajectory",
        "kstep.schemas.load_dataset", "kstep.schemas.save_dataset", "kstep.run_record.RunRecord",
        "kstep.models.checkpoint.load"]),
    "The true physics": ("To call a potential yourself, or to add one.", [
        "kstep.forces.base.Physics", "kstep.forces.base.Backend", "kstep.forces.find_backend",
        "kstep.forces.load_qm_config", "kstep.forces.physics_spec", "kstep.forces.calculator_spec",
        "kstep.forces.qmmm_spec", "kstep.forces.local_pool.EvaluationPool", "kstep.forces.pool.Truth"]),
    "Schemes": ("What happens around one true call: to drive dynamics yourself, or to add a scheme.", [
        "kstep.schemes.base.Scheme", "kstep.scheme_traits.SchemeTraits", "kstep.scheme_traits.traits_of",
        "kstep.schemes.state.State", "kstep.schemes.state.Info", "kstep.schemes.state.Proposal",
        "kstep.schemes.metropolis.Metropolis", "kstep.schemes.impulse.Impulse", "kstep.schemes.checked.Checked",
        "kstep.schemes.jump.Jump", "kstep.schemes.plain.Plain", "kstep.schemes.langevin.LangevinThermostat",
        "kstep.runs.loop.initial_state", "kstep.runs.loop.macro_steps", "kstep.runs.loop.run"]),
    "Networks": ("To build, carry with, and fit one.", [
        "kstep.models.build_model", "kstep.models.network.Network", "kstep.runs.network_dynamics.make_carrier",
        "kstep.training.labels.Labels", "kstep.training.label_fit.fit", "kstep.learning.learner.learn"]),
    "Analysis": ("To measure and judge trajectories of your own, or to add a metric or a format.", [
        "kstep.analysis.measure.profile.characterise", "kstep.analysis.judge.compare.compare",
        "kstep.analysis.measure.samples.effective_samples", "kstep.analysis.measure.statistics.noise_floor",
        "kstep.analysis.measure.statistics.split_r_hat", "kstep.analysis.metrics.metric.Metric",
        "kstep.analysis.show.formats.export"]),
}
WRITTEN = "Written by `python scripts/make_api_reference.py` from the docstrings; do not edit. "
HEAD = f"""# API reference

{WRITTEN}The names that a program of yours
would use; everything else has its docstring in the source. Shapes: R replicas, N atoms, B bonds, T and F frames, P
molecules or pairs, A atoms of a batch. Inside, all quantities are in nm, ps, Da, kJ/mol, elementary charges and K. A
user's mistake raises `UserError`, physics that fails `PhysicsError`; both are one sentence.
"""


def found(path: str) -> tuple[Path, ast.ClassDef | ast.FunctionDef]:
    """The file where a name is defined (it may be imported where it is offered), and what stands there."""
    module, _, name = path.rpartition(".")
    file = SOURCE.joinpath(*module.split("."))
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    tree = ast.parse(file.read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return file, node
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and name in {alias.name for alias in node.names}:
            return found(f"{node.module}.{name}")
    raise SystemExit(f"error: {path} is not there; correct SECTIONS in {Path(__file__).name}")


def public(body: list[ast.stmt], kind) -> Iterator[ast.stmt]:
    """The statements of a kind whose name has no underscore before it."""
    return (node for node in body if isinstance(node, kind) and not node.name.startswith("_"))


def signature(function: ast.FunctionDef, *, of_class: str | None = None, result: bool = True) -> str:
    """`name(arguments) -> result` as written, without self; a long one has a line for each argument."""
    arguments = function.args
    decorators = {ast.unparse(d) for d in function.decorator_list}
    if of_class and "staticmethod" not in decorators:
        first = "posonlyargs" if arguments.posonlyargs else "args"
        arguments = ast.arguments(**{**dict(ast.iter_fields(arguments)), first: getattr(arguments, first)[1:]})
    name = of_class if of_class and function.name == "__init__" else function.name
    end = f" -> {ast.unparse(function.returns)}" if function.returns and result else ""
    if decorators & {"property", "cached_property", "functools.cached_property"}:
        return f"{name}{end}"
    lines = [f"{name}("]
    for word in re.split(r"(?<=,) (?![^(\[]*[)\]])", ast.unparse(arguments)):
        if len(lines[-1]) + len(word) > WIDTH:
            lines.append(" " * len(name))
        lines[-1] += word if lines[-1].endswith("(") else f" {word}"
    return "\n".join(lines) + f"){end}"


def prose(text: str) -> str:
    """Plain text as Markdown, so that nothing in it becomes a mark or a tag; `code` stays code."""
    pieces = re.split(r"(`[^`\n]+`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*_\[\]\\#])", r"\\\1", p).translate(ENTITIES) for p in pieces)


def described(node) -> list[str]:
    """The docstring of a node as Markdown."""
    return markdown(ast.get_docstring(node) or "")


def markdown(docstring: str) -> list[str]:
    """A docstring: its sentences as text, its equations, tables and examples as they are written."""
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


def fields(cls: ast.ClassDef, file: Path) -> list[str]:
    """Annotated class attributes as they are written: the fields of dataclasses and configs, with their comments."""
    lines = file.read_text().splitlines()
    rows = [node for node in cls.body if isinstance(node, ast.AnnAssign) and not node.target.id.startswith("_")]
    if not rows:
        return []
    return ["```python", *(line[4:].split("  # type:")[0] for node in rows
                           for line in lines[node.lineno - 1:node.end_lineno]), "```", ""]


def describe_class(cls: ast.ClassDef, path: str, file: Path) -> Iterator[str]:
    start = next((f for f in cls.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
    yield from (f"### {path}", "")
    yield from described(cls)
    if start:
        yield from ("```python", signature(start, of_class=cls.name, result=False), "```", "")
        yield from described(start)
    yield from fields(cls, file)
    for method in public(cls.body, ast.FunctionDef):
        yield from (f"#### `{' '.join(signature(method, of_class=cls.name).split())}`", "")
        yield from described(method)


def describe(path: str) -> Iterator[str]:
    file, node = found(path)
    if isinstance(node, ast.ClassDef):
        yield from describe_class(node, path, file)
    else:
        yield from (f"### {path}", "", "```python", signature(node), "```", "")
        yield from described(node)


def anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def reference() -> str:
    """The whole file."""
    contents, body = [], []
    for title, (purpose, names) in SECTIONS.items():
        links = ", ".join(f"[{name.rpartition('.')[2]}](#{anchor(name)})" for name in names)
        contents.append(f"- [{title}](#{anchor(title)}): {links}")
        body += [f"## {title}", "", purpose, ""]
        for name in names:
            body += describe(name)
    return "\n".join([HEAD, *contents, "", *body]).rstrip("\n") + "\n"


def places() -> dict[str, tuple[Path, ast.ClassDef | ast.FunctionDef]]:
    """{dotted name where it is defined: its file, and what stands there} of all names, in their order."""
    out = {}
    for _, names in SECTIONS.values():
        for file, node in map(found, names):
            module = ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
            out[f"{module}.{node.name}"] = file, node
    return out


def for_mkdocstrings() -> str:
    """The same names as a page of the documentation site."""
    paths, body = iter(places()), []
    for title, (purpose, names) in SECTIONS.items():
        body += [f"## {title}", "", purpose, "", *(f"::: {next(paths)}\n" for _ in names)]
    return "\n".join([HEAD.replace(WRITTEN, ""), *body])


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
