"""The examples that ARCHITECTURE.md names work: each is applied to a copy of the code, tested and run there."""

import os
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT

METHANOL = ("--smiles", "CO", "--num-workers", 2, "--replicas", 2, "--steps", 4, "--burn-in-steps", 0,
            "--out", "run.npz")
# example, the test rows that it adds, and a command that its reader would try next
EXAMPLES = {
    "add_a_backend": (["tests/test_forces.py::test_backend_keeps_the_contract[elastic]"],
                      ["src/06b_hybrid_integrate_qm.py", "--qm-config", "configs/qm_elastic.yaml", "--scheme", "plain",
                       *METHANOL]),
    "add_a_model": (["tests/test_models.py::test_rotation_reflection_translation_and_permutation_change_nothing"
                     "[filter_net-bounded]",
                     "tests/test_models.py::test_forces_are_minus_the_gradient_of_the_energy[filter_net]",
                     "tests/test_models.py::test_second_derivative_is_continuous_where_an_atom_crosses_the_cutoff"
                     "[energy-filter_net]"], None),
    "add_a_scheme": (["tests/test_dynamics.py::test_energy_error_falls_as_the_timestep_to_the_order[Yoshida-4-0.5]",
                      "tests/test_dynamics.py::test_dynamics_without_a_network_is_time_reversible_and_keeps_the_"
                      "momentum[Yoshida]"],
                     ["src/06b_hybrid_integrate_qm.py", "--scheme", "yoshida", "--thermostat", "none", *METHANOL]),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_guide_names_the_example_and_it_is_short(name):
    text = (ROOT / f"examples/{name}.patch").read_text()
    assert f"examples/{name}.patch" in (ROOT / "ARCHITECTURE.md").read_text()
    assert sum(line.startswith("+") and not line.startswith("+++") for line in text.splitlines()) <= 60
    assert "+++ b/tests/" in text


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_works(name, tmp_path):
    for folder in ("src", "tests", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}

    def run(*command):
        finished = subprocess.run(list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True,
                                  text=True)
        assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]
        return finished.stdout

    run("git", "apply", ROOT / f"examples/{name}.patch")
    rows, command = EXAMPLES[name]
    assert f"{len(rows)} passed" in run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *rows)
    if command:
        run(sys.executable, *command)
        assert (tmp_path / "run.npz").is_file()
