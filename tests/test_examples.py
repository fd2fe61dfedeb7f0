"""The examples that ARCHITECTURE.md names work: each is applied to a copy of the code, tested and run there."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
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
                     "tests/test_models.py::test_a_radius_graph_gives_what_all_pairs_give[sizes1-filter_net]",
                     "tests/test_models.py::test_second_derivative_is_continuous_where_an_atom_crosses_the_cutoff"
                     "[energy-filter_net]"], None),
    "add_a_scheme": (["tests/test_dynamics.py::test_a_harmonic_bond_is_sampled_exactly_with_a_wrong_network"
                      "[GeneralisedHMC]",
                      "tests/test_dynamics.py::test_a_double_well_is_sampled_exactly_with_a_wrong_network[GeneralisedHMC]",
                      "tests/test_dynamics.py::test_proposals_have_unit_mean_boltzmann_factor[GeneralisedHMC]"], None),
    "add_a_metric": (["tests/test_metrics.py::test_a_metric_finds_the_size_of_a_known_difference"
                      "[radius_of_gyration_A-<lambda>]",
                      "tests/test_metrics.py::test_a_metric_of_the_registry_is_in_the_file_the_table_and_the_page"
                      "[radius_of_gyration_A]",
                      "tests/test_metrics.py::test_a_metric_beside_its_floor_is_in_the_benchmark_too"], None),
    "add_an_output_format": (["tests/test_formats.py::test_xyz_with_velocities_holds_both_in_angstrom",
                              "tests/test_formats.py::test_every_format_is_read_back_here"], None),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_guide_names_the_example_and_it_is_short(name):
    text = (ROOT / f"examples/{name}.patch").read_text()
    assert f"examples/{name}.patch" in (ROOT / "ARCHITECTURE.md").read_text()
    assert sum(line.startswith("+") and not line.startswith("+++") for line in text.splitlines()) <= 60
    assert "+++ b/tests/" in text or name == "add_a_model"  # tests run over the registry of networks


def applied(name, tmp_path):
    """A copy of the code with the example in it; a function that runs a command there and returns what it says."""
    for folder in ("src", "tests", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}

    def run(*command):
        finished = subprocess.run(list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True,
                                  text=True)
        assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]
        return finished.stdout + finished.stderr

    run("git", "apply", ROOT / f"examples/{name}.patch")
    return run


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_works(name, tmp_path):
    run = applied(name, tmp_path)
    rows, command = EXAMPLES[name]
    assert f"{len(rows)} passed" in run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *rows)
    if command:
        run(sys.executable, *command)
        assert (tmp_path / "run.npz").is_file()


# A network of water on MMFF94, fitted to a few shaken geometries.
NETWORK = """
import numpy as np
import openmm
from kstep.forces import physics_spec
from kstep.forces.openmm import MDConfig
from kstep.models import checkpoint
from kstep.models.model_config import ModelConfig
from kstep.molecules.prepare import prepare_molecule
from kstep.training.label_fit import fit
from kstep.training.labels import Labels
from kstep.training.train_config import FitConfig

prepared = prepare_molecule("water", "O", seed=0)
water = prepared.molecule
true = physics_spec(water, MDConfig(), system_xml=openmm.XmlSerializer.serialize(prepared.system)).build()
x = water.conformers[0] + 0.004 * np.random.default_rng(0).standard_normal((80, 3, 3))
energy, forces = zip(*map(true.energy_and_forces, x))
model = ModelConfig(arch="pair_mlp", pair_hidden=[32, 32], heads={"energy": True, "jump": False})
checkpoint.save("network.pt", fit(model, water, Labels(x, np.array(energy), np.array(forces), 300.0),
                                  FitConfig(fit_passes=60), method="mmff94", true_calls=80, dt_fs=0.5,
                                  temperature_K=300.0, seed=0).checkpoint)
"""


def test_a_new_scheme_is_right_in_metadata_last_line_judgement_and_report(tmp_path):
    run = applied("add_a_scheme", tmp_path)
    run(sys.executable, "-c", NETWORK)
    run(sys.executable, "src/00_prep_mols.py", "--smiles", "O", "--name", "water", "--out-dir", "raw")
    run(sys.executable, "src/01_run_md_baselines.py", "--molecule", "raw/water", "--config", "configs/md_fast.yaml",
        "--out", "md")
    said = run(sys.executable, "src/06_hybrid_integrate.py", "--molecule", "raw/water", "--checkpoint", "network.pt",
               "--scheme", "generalised_hmc", "--set", "refresh=0.3", "--k-steps", 20, "--replicas", 8, "--steps", 40,
               "--out", "runs/water.npz")
    with np.load(tmp_path / "runs/water.npz") as archive:
        metadata = json.loads(str(archive["metadata"]))
        accepted, delta_H = archive["accepted"][-320:], archive["delta_H"][-320:]
    assert metadata["scheme"] == "generalised_hmc" and metadata["config"]["refresh"] == 0.3
    assert metadata["scheme_traits"]["can_refuse"] and metadata["scheme_traits"]["has_identity"]
    assert metadata["acceptance"] == pytest.approx(accepted.mean()) and 0.1 < metadata["acceptance"] < 1
    weights = np.exp(-delta_H / (8.31446261815324e-3 * 300.0))
    assert metadata["mean_exp_minus_beta_dH"] == pytest.approx(weights.mean())
    assert f"acceptance {metadata['acceptance']:.3f}, <exp(-beta dH)> = " in said
    # the judgement: accepted time is what it covered, and velocities give no drift
    run(sys.executable, "src/05_eval_drift_rdfs.py", "--baseline", "md", "--hybrid-runs", "runs", "--out-dir", "eval")
    judged = json.loads((tmp_path / "eval/metrics.json").read_text())["molecules"]["water"]["runs"]["water.npz"]
    assert judged["proposals"]["acceptance"] == pytest.approx(metadata["acceptance"], rel=1e-4)
    assert judged["proposals"]["exp_minus_beta_dH"] == pytest.approx(metadata["mean_exp_minus_beta_dH"], rel=1e-4)
    covered_ps = metadata["acceptance"] * 8 * 60 * metadata["jump_fs"] * 1e-3
    assert judged["cost"]["simulated_ps"] == pytest.approx(covered_ps, rel=1e-4) and judged["drift"] is None
    assert f"accepts {metadata['acceptance']:.3g}" in (tmp_path / "eval/report.html").read_text()
