"""A ladder on the cheap potential of a QM region in its environment: the region is hot, the environment is not."""

import json

import numpy as np
import pytest

import test_qmmm
from conftest import ROOT
from kstep.cli import main
from kstep.forces import qmmm_spec
from kstep.forces.qmmm.coupling import Coupling
from kstep.learning.cold_start import learn_for
from kstep.learning.learn_config import LearnConfig
from kstep.learning.region_target import RegionTarget
from kstep.models.model_config import ModelConfig
from kstep.schemas import load_trajectory
from kstep.schemes.ladder import rungs_between
from kstep.schemes.network_ladder import NetworkLadder
from kstep.stages import region_sampling


@pytest.fixture(scope="module")
def chloroethanol():
    pytest.importorskip("xtb.interface")
    system, x = test_qmmm.droplet("OCCCl", 3)
    return system, x, [0, 1, 4, 5, 6]  # HO-CH2 and a link atom


def test_the_forces_of_an_embedded_network_are_those_of_its_scaled_parts(chloroethanol):
    """Through link atom, response and field, at scales of which no two are alike."""
    system, x, atoms = chloroethanol
    physics = qmmm_spec(system, atoms, test_qmmm.SHARP).build()
    rng = np.random.default_rng(8)
    response = rng.normal(size=(6, 6)) * 1e-5
    coupling = Coupling(rng.normal(size=6) * 0.2, response + response.T, 0.1)

    class Springs:
        metadata = {}

        def energy_and_forces(self, capped):
            apart = capped[:, 1:] - capped[:, :1]
            return 1e3 * (apart**2).sum((1, 2)), 2e3 * np.concatenate([apart.sum(1, keepdims=True), -apart], axis=1)

    network = test_qmmm.embedded(Springs(), physics, coupling)
    parts = network.energy_parts(x[None])
    assert np.abs(parts).min() > 0.1 and parts.sum() == pytest.approx(network.energy_and_forces(x[None])[0][0])
    assert np.array_equal(network.forces(x[None]), network.forces(x[None], np.ones((1, 3))))
    rows = np.stack([x, x + 1e-3 * rng.normal(size=x.shape)])
    scale = np.array([[0.6, 0.35, 1.7], [0.2, 1.0, 0.5]])
    for row, (positions, own) in enumerate(zip(rows, scale)):
        forces = network.forces(rows, scale)[row]
        for atom in (0, 1, 2, 3, 11, 14):  # of the region, host, beyond it, waters
            change = test_qmmm.slope(lambda y: network.energy_parts(y[None])[0], positions, atom, 1)
            assert -change @ own == pytest.approx(forces[atom, 1], abs=1e-2)


def test_an_environment_without_a_number_is_refused_on_every_rung(chloroethanol):
    system, x, atoms = chloroethanol
    physics = qmmm_spec(system, atoms, test_qmmm.SHARP).build()
    network = test_qmmm.embedded(test_qmmm.ExactRegion(physics), physics)

    def lost(positions, velocities, masses, dt_ps, n_steps, scale):
        return np.full_like(positions, np.nan), velocities

    class Finite(test_qmmm.ExactRegion):
        def energy_and_forces(self, capped):
            return np.zeros(len(capped)), np.zeros_like(capped)

    network.network = Finite(physics)
    ladder = NetworkLadder(network, lost, system.masses, 1e-3, (300.0, 500.0), n_moves=2, move_steps=2)
    led = ladder.advance(x[None, None].repeat(2, axis=1), ladder.energy(x[None, None].repeat(2, axis=1)),
                         np.random.default_rng(9))
    assert (led.moves[..., 0] == 2).all() and not led.moves[..., 1].any() and np.isfinite(led.energy).all()


def test_kstep_qmmm_learns_and_samples_on_a_ladder_of_the_solute(tmp_path, monkeypatch):
    """Methanol among two waters; the checkpoint says which rungs were learned, the run how they exchanged."""
    pytest.importorskip("xtb.interface")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(region_sampling, "learn_for", lambda target, out, config, **how: learn_for(
        target, out, test_qmmm.LEARN, **{**how, "model_config": ModelConfig(arch="pair_mlp", pair_hidden=[24, 24])}))
    out = tmp_path / "x.npz"
    assert main(["qmmm", "--smiles", "CO", "--waters", "2", "--scheme", "nested", "--network-ladder", "300", "420",
                 "--learn-calls", "90", "--steps", "4", "--burn-in-steps", "2", "--replicas", "3", "--moves", "3",
                 "--num-workers", "1", "--device", "cpu", "--out", str(out)]) == 0
    rounds = [json.loads(line) for line in (tmp_path / "x.npz.learn/rounds.jsonl").read_text().splitlines()]
    assert rounds and all(row["ladder_K"] == [300.0, 420.0] for row in rounds)
    run = load_trajectory(out)
    config = run.metadata["config"]
    assert config["network_ladder_K"] == [300.0, 420.0] and (config["moves"], config["k_steps"]) == (3, 150)
    assert run.metadata["true_calls"] == 3 * (1 + 2 + 4)
    assert run.metadata["swap_acceptance"][0] > 0.05 and run.metadata["figures"]["inner_acceptance"][1] > 0.5


def test_a_region_learns_the_rungs_that_its_sampling_may_choose():
    about = dict(molecule=None, spec=None, method="", temperatures_K=(300.0,), length_fs=1.0)
    region = type("Capped", (), {"__len__": lambda self: 7})()
    config = LearnConfig(ladder_top_K=600.0)
    assert RegionTarget(**about, region=region).rungs_K(config) == (300.0,)
    assert RegionTarget(**about, region=region, climbs=True).rungs_K(config) == rungs_between(300.0, 600.0, 7)
