"""The house stays as ARCHITECTURE.md draws it: imports run one way, every setting does something.

Unused imports and names that are not there are found by ruff and mypy, which run_tests.sh runs first.
"""

import ast
import functools
import inspect
import re
from pathlib import Path

import pytest
import yaml

from kstep.config import BaselineConfig
from kstep.forces import BACKENDS, find_backend
from kstep.forces.aimnet2 import Aimnet2Config
from kstep.forces.ase import AseConfig
from kstep.forces.openmm import MDConfig
from kstep.forces.pyscf import PyscfConfig
from kstep.forces.tblite import QMConfig
from kstep.learning.learn_config import LearnConfig
from kstep.models.model_config import Heads, ModelConfig
from kstep.schemes import SCHEMES
from kstep.schemes.hybrid_config import HybridConfig
from kstep.training.train_config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
FILES = sorted(SOURCE.rglob("*.py"))
PACKAGE = sorted((SOURCE / "kstep").rglob("*.py"))

GROUND = {"errors", "units", "topology", "dihedrals", "files", "processes", "config", "npz", "schemas", "scheme_traits",
          "run_record", "provenance", "shipped", "importance", "restraints", "fingerprint", "outputs", "interruption",
          "progress", "hands"}
# What each part of the package may import besides itself; the ground is listed stone by stone.
MAY_IMPORT = {
    "interruption": set(), "progress": set(), "hands": {"topology"},
    "errors": set(), "units": set(), "topology": set(), "dihedrals": {"topology"}, "processes": set(),
    "scheme_traits": set(), "shipped": set(), "importance": set(), "files": {"errors"},
    "fingerprint": {"errors"}, "outputs": {"errors", "files"},
    "provenance": {"processes"},
    "config": {"errors", "shipped", "restraints"}, "restraints": {"errors", "dihedrals"},
    "npz": {"errors", "files"}, "run_record": {"errors"},
    "schemas": {"errors", "files", "npz", "scheme_traits", "run_record", "restraints", "units"},
    "molecules": GROUND, "forces": GROUND | {"molecules"}, "models": GROUND,
    "schemes": GROUND, "training": GROUND | {"molecules", "models"},
    "runs": GROUND | {"molecules", "forces", "models", "schemes", "analysis"},
    "analysis": {"schemas", "scheme_traits", "topology", "dihedrals", "hands", "units", "errors", "files",
                 "importance", "restraints", "outputs"},
    "learning": GROUND | {"molecules", "forces", "models", "schemes", "runs", "training"},
    "stages": GROUND | {"molecules", "forces", "models", "schemes", "runs", "training", "learning", "analysis"},
    "study": GROUND | {"molecules", "forces", "models", "schemes", "runs", "training", "learning", "stages",
                       "analysis"},
    "result": GROUND | {"analysis", "runs"},
    "front": GROUND | {"molecules", "forces", "schemes", "learning", "stages", "analysis", "result"},
    "__main__": {"cli"},
    "cli": GROUND | {"molecules", "forces", "models", "schemes", "runs", "training", "learning", "stages", "study",
                     "analysis", "result", "front"},
}
FULL_CONFIGS = {"md.yaml": MDConfig, "qm.yaml": QMConfig, "qm_pyscf.yaml": PyscfConfig, "qm_ase.yaml": AseConfig,
                "qm_aimnet2.yaml": Aimnet2Config,
                "hybrid.yaml": HybridConfig, "model.yaml": ModelConfig,
                "train.yaml": TrainConfig, "learn.yaml": LearnConfig}


def name_of(path):
    return str(path.relative_to(SOURCE))


def part_of(path):
    """'analysis' for src/kstep/analysis/plots.py, 'units' for src/kstep/units.py."""
    return path.relative_to(SOURCE / "kstep").parts[0].removesuffix(".py")


@functools.cache
def tree_of(path):
    """A file of ours, parsed; hundreds of tests look at the same ones."""
    return ast.parse(path.read_text())


@functools.cache
def imports(path):
    """(dotted name, whether it stands at module level) of everything a file imports, lazily or not."""
    tree = tree_of(path)
    top = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(f"{node.module}.{alias.name}", id(node) in top) for alias in node.names]
    return found


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_imports_run_one_way(path):
    own = part_of(path)
    for name, _ in imports(path):
        if name.startswith("kstep."):
            other = name.split(".")[1]
            if own != "__init__":
                assert other in {own, "__version__"} | MAY_IMPORT[own], f"{name_of(path)} imports {name}"


NAMELESS = ("runs", "schemes", "training", "schemas", "stages", "study", "cli", "front", "result")


@pytest.mark.parametrize("path", [p for p in PACKAGE if part_of(p) in NAMELESS], ids=name_of)
def test_nobody_asks_for_a_scheme_by_its_name(path):
    """Others ask its traits, or the registry; `jump` is the name of a head as well."""
    names = {name: kind.__module__ for name, kind in SCHEMES.items() if name != "jump"}
    own = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Constant) and node.value in names:
            assert names[node.value] == own, f"{name_of(path)}, line {node.lineno} asks for {node.value}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_torch_waits_for_the_network(path):
    """A baseline, a force field and a report must start without loading torch; a truth that is a network loads it."""
    allowed = {"learner.py", "network_check.py", "network_training.py"}
    in_package = path in PACKAGE
    if path.name in allowed or (in_package and part_of(path) in ("models", "training")):
        return
    for name, top in imports(path):
        if name.split(".")[0] == "torch":
            assert (not in_package or path.name == "aimnet2.py") and not top, f"{name_of(path)} imports {name}"
        if in_package and name.startswith("kstep.models"):
            assert not top, f"{name_of(path)} must import {name} where it is used"


BELOW_CLI = [path for path in PACKAGE if part_of(path) != "cli"]


@pytest.mark.parametrize("path", BELOW_CLI, ids=name_of)
def test_the_command_line_ends_at_cli(path):
    """Below it settings are typed objects: nothing parses flags, reads `args.x`, or calls a script by its path."""
    tree = tree_of(path)
    assert not {name.split(".")[0] for name, _ in imports(path)} & {"argparse", "runpy", "optparse", "click"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.value.id not in ("args", "namespace"), f"{name_of(path)}, line {node.lineno}: args.{node.attr}"
    started = {ast.unparse(call) for call in ast.walk(tree) if isinstance(call, ast.Call)
               and ast.unparse(call.func).startswith(("subprocess.", "os.system", "os.exec", "os.spawn"))}
    assert not [call for call in started if "executable" in call or ".py" in call], f"{name_of(path)}: {started}"


@pytest.mark.parametrize("path", sorted(SOURCE.glob("0*.py")), ids=name_of)
def test_a_numbered_script_is_a_thin_face(path):
    docstring, *code = tree_of(path).body
    assert code[-1].end_lineno - docstring.end_lineno <= 12
    assert not any(name.split(".")[0] == "argparse" for name, _ in imports(path))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_games_with_the_import_path(path):
    """Numbered scripts are run, never imported, and nothing bends sys.path."""
    tree = tree_of(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("sys", "path"), f"{name_of(path)}, line {node.lineno}"
    assert not {name.split(".")[0] for name, _ in imports(path)} & {"importlib_resources", "runpy", "imp"}
    if name_of(path) not in ("kstep/__init__.py", "kstep/cli/__init__.py"):  # which load what their own table names
        assert not any(name.startswith(("importlib.import_module", "importlib.util")) for name, _ in imports(path))


@functools.cache
def attributes_read():
    """Names of all attributes that some file of the package or a script reads."""
    return {node.attr for path in FILES for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


def keywords_used(kind):
    """The arguments of the constructors that a backend's config feeds, as far as their files use them."""
    used = set()
    for backend in map(find_backend, BACKENDS):
        if backend.config is kind:
            tree = tree_of(Path(inspect.getsourcefile(backend.physics)))
            names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            used |= set(inspect.signature(backend.physics).parameters) & names
    return used


@pytest.mark.parametrize("kind", [BaselineConfig, MDConfig, QMConfig, PyscfConfig, AseConfig, HybridConfig, ModelConfig,
                                  Heads, TrainConfig, LearnConfig])
def test_every_setting_does_something(kind):
    unread = set(kind.model_fields) - attributes_read() - keywords_used(kind)
    assert not unread, f"{kind.__name__}: no code reads {', '.join(sorted(unread))}"


@pytest.mark.parametrize("name", FULL_CONFIGS)
def test_full_configs_list_every_setting_and_explain_it(name):
    text = (ROOT / "configs" / name).read_text()
    listed = set(yaml.safe_load(text))
    assert listed == set(FULL_CONFIGS[name].model_fields)
    for line in text.splitlines():
        if re.match(r"\s*\w+:", line) and not re.match(r"heads:\s*$", line):
            assert re.search(r"\s#\s*\S", line), f"configs/{name}: '{line.strip()}' has no comment"
