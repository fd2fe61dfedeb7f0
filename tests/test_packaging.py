"""What is installed: lock and conda environments keep to pyproject.toml.  Of the wheel: tests/test_command.py."""

import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
EXTRAS = PROJECT["optional-dependencies"]
INSTALLED = [*PROJECT["dependencies"], *EXTRAS["test"], *EXTRAS["docs"]]


@pytest.mark.parametrize("text", INSTALLED)
def test_every_dependency_is_locked_within_its_range(text):
    wanted = Requirement(text)
    pins = {canonicalize_name(pin.name): pin for pin in map(Requirement, LOCK)}
    pin = pins[canonicalize_name(wanted.name)]
    (exact,) = pin.specifier
    assert exact.operator == "==" and exact.version in wanted.specifier, "run python scripts/make_lock.py"
    assert str(pin.marker) == str(wanted.marker)


def test_a_dependency_of_the_product_has_a_floor_and_a_ceiling():
    for text in PROJECT["dependencies"]:
        assert {one.operator for one in Requirement(text).specifier} == {">=", "<"}, text


def test_the_lock_holds_exact_versions_and_no_place_to_take_them_from():
    for line in LOCK:
        assert "://" not in line and not line.startswith("-") and len(Requirement(line).specifier) == 1, line


@pytest.mark.parametrize("name, more", [("environment.yml", {"wandb", "openff-toolkit"}),
                                        ("environment-gpu.yml", {"cupy", "gpu4pyscf-cuda12x", "pytorch_scatter"})])
def test_an_environment_of_conda_brings_every_dependency(name, more):
    called = {"torch": "pytorch-gpu" if "gpu" in name else "pytorch", "torch_geometric": "pytorch_geometric",
              "tblite": "tblite-python", "xtb": "xtb-python"}
    listed = yaml.safe_load((ROOT / name).read_text())["dependencies"]
    names = {line.partition("=")[0] for line in listed if isinstance(line, str)}
    names |= {line for entry in listed if isinstance(entry, dict) for line in entry["pip"]}
    wanted = {Requirement(line).name for line in PROJECT["dependencies"] + EXTRAS["test"]} - {"setuptools"}
    assert {called.get(one, one) for one in wanted} | more <= names
