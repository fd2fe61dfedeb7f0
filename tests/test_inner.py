"""The ways to compute a network's force agree, the fastest is taken, and a resumed run keeps it."""

import copy
import shutil
import time
import tracemalloc

import numpy as np
import pytest
import torch

from kstep.errors import UserError
from kstep.forces import physics_spec
from kstep.forces.tblite import QMConfig
from kstep.models import build_model, execution as inner
from kstep.models.model_config import ModelConfig
from kstep.models.network import Network
from kstep.models.pair_mlp_numpy import FastPairMLP
from kstep.models.symmetry import shake
from kstep.runs import production
from kstep.runs.run_hybrid import run_hybrid
from kstep.runs.settings import HybridRun
from kstep.schemas import load_trajectory
from kstep.schemes.hybrid_config import HybridConfig
from test_pair_mlp import BONDS, MASSES, NUMBERS, make_checkpoint, make_model, positions


def egnn(arch="egnn"):
    torch.manual_seed(0)
    model = build_model(ModelConfig(arch=arch, heads={"energy": True, "jump": False}, elements=[1, 6, 8], hidden_dim=12,
                                    vector_dim=6, num_layers=2, num_rbf=8, attention_heads=2))
    model.fit_normalisation({"force_rms": 1500.0})
    shake(model, torch.Generator().manual_seed(1), 0.1)
    return model


def transformer():
    return egnn("transformer_egnn")


def network_of(model, way, **more):
    return Network(model, NUMBERS, MASSES, BONDS, metadata={"spans": [1]}, inner=way, **more)


def all_agree(model, way, x, **more):
    """A way against the same network in float64; both sizes, called twice, and the input left alone."""
    exact = network_of(copy.deepcopy(model).double(), "eager")
    network = network_of(model, way, **more)
    for n in (len(x), 3, len(x)):
        kept = x[:n].copy()
        energy, forces = network.energy_and_forces(x[:n])
        expected_energy, expected_forces = exact.energy_and_forces(x[:n])
        assert np.array_equal(x[:n], kept)
        assert energy.shape == (n,) and forces.shape == x[:n].shape
        assert np.abs(energy - expected_energy).max() < 2e-3
        assert np.abs(forces - expected_forces).max() < 3e-5 * np.abs(expected_forces).max()


@pytest.mark.parametrize("make, way", [(make_model, "numpy"), (make_model, "eager"), (egnn, "eager"),
                                       (egnn, "sparse"), (transformer, "eager")])
def test_every_way_gives_the_network(make, way):
    all_agree(make(), way, positions(5))


@pytest.mark.parametrize("make", [make_model, egnn, transformer])
@pytest.mark.parametrize("rows", [None, 2, 8])
def test_what_is_compiled_is_the_network_with_its_gradient(make, rows, monkeypatch):
    """The traced graph, run without inductor, which takes a minute; in pieces of `rows`."""
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)
    all_agree(make(), "compiled", positions(5), rows=rows)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_inductor_gives_the_network(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    all_agree(make_model(), "compiled", positions(4), rows=4)


@pytest.mark.cuda
@pytest.mark.parametrize("make", [make_model, egnn, transformer])
@pytest.mark.parametrize("way", ["eager", "graphs"])
def test_gpu_gives_the_network(make, way):
    all_agree(make(), way, positions(5), device="cuda")


@pytest.mark.parametrize("make, way", [(egnn, "eager"), (make_model, "numpy")])
def test_matrix_products_keep_full_float32(make, way):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        network_of(make(), way)
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_way_that_cannot_be_is_refused():
    with pytest.raises(UserError, match="pair_mlp alone"):
        network_of(egnn(), "numpy")
    with pytest.raises(UserError, match="CUDA"):
        network_of(egnn(), "graphs")


class Slow:
    """A network whose force takes a known time on a known device."""

    native = staticmethod(lambda x: x)

    def __init__(self, seconds, device="cpu"):
        self.seconds, self.device, self.sizes = seconds, device, []

    def forces(self, x):
        self.sizes.append(len(x))
        time.sleep(self.seconds)


def choose(seconds, monkeypatch, n_atoms=2, **more):
    monkeypatch.setattr(inner, "TRIAL_S", 0.02)
    networks, tried = {way: Slow(s) for way, s in seconds.items()}, []

    def load(way):
        tried.append(way)
        return networks[way]

    return inner.choose(load, np.zeros((4, n_atoms, 3)), list(seconds), **more), tried, networks


def test_the_fastest_way_is_taken(monkeypatch):
    for seconds, fastest in [((0.002, 0.005), "numpy"), ((0.005, 0.002), "eager")]:
        (choice, network), _, networks = choose(dict(zip(("numpy", "eager"), seconds)), monkeypatch)
        assert choice.way == fastest and network is networks[fastest]
        assert choice.us[fastest] == pytest.approx(2000 / 4, rel=0.5)
        assert fastest in str(choice).split("(")[0]


def test_between_equals_the_first_is_taken(monkeypatch):
    """The same settings on the same machine should give the same bits, whatever else it is doing."""
    (choice, _), _, _ = choose({"numpy": 0.0055, "eager": 0.005}, monkeypatch)
    assert choice.way == "numpy" and choice.us["eager"] < choice.us["numpy"]


def test_compiling_is_tried_only_where_a_run_is_long_enough(monkeypatch):
    seconds = {"eager": 0.005, "compiled": 0.001}
    steps = inner.WORTH_COMPILING_S / 0.005
    (short, _), tried, _ = choose(seconds, monkeypatch, n_steps=0.5 * steps)
    assert short.way == "eager" and tried == ["eager"] and "not tried" in short.left_out["compiled"]
    (long, _), tried, _ = choose(seconds, monkeypatch, n_steps=2 * steps)
    assert long.way == "compiled" and tried == ["eager", "compiled"] and not long.left_out


def test_pairs_are_listed_only_where_a_molecule_reaches_beyond_the_cutoff(monkeypatch):
    seconds = {"eager": 0.005, "sparse": 0.001}
    (small, _), tried, _ = choose(seconds, monkeypatch, n_atoms=inner.WORTH_LISTING - 1)
    assert small.way == "eager" and tried == ["eager"] and "not tried" in small.left_out["sparse"]
    (large, _), tried, _ = choose(seconds, monkeypatch, n_atoms=inner.WORTH_LISTING)
    assert large.way == "sparse" and tried == ["eager", "sparse"] and not large.left_out


def test_a_way_that_fails_leaves_the_others(monkeypatch):
    monkeypatch.setattr(inner, "TRIAL_S", 0.02)

    def load(way):
        if way != "eager":
            raise RuntimeError("CppCompileError")
        return Slow(0.001)

    choice, _ = inner.choose(load, np.zeros((4, 2, 3)), ["eager", "compiled"])
    assert choice.way == "eager" and "RuntimeError" in choice.left_out["compiled"]
    with pytest.raises(UserError, match="no way"):
        inner.choose(load, np.zeros((4, 2, 3)), ["compiled"])


def test_a_gpu_is_timed_on_the_replicas_of_all_processes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(inner, "TRIAL_S", 0.01)
    networks = {"numpy": Slow(0.002), "eager": Slow(0.003, "cuda")}
    choice, _ = inner.choose(networks.get, np.zeros((4, 2, 3)), ["numpy", "eager"], n_shards=3)
    assert set(networks["numpy"].sizes) == {4} and set(networks["eager"].sizes) == {12}
    assert choice.way == "numpy" and choice.us["eager"] == pytest.approx(3000 / 12, rel=0.5)


def test_64_replicas_of_40_atoms_fit_in_little_memory():
    numbers = np.array([6] * 40)
    model = build_model(ModelConfig(arch="pair_mlp", pair_hidden=[256, 256]), {"numbers": numbers, "bonds": [[0, 1]]})
    x = np.random.default_rng(0).normal(size=(64, 40, 3))
    tracemalloc.start()
    FastPairMLP(model).energy_and_forces(x)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 1e6 < peak < 50e6


def go(water, folder, name, *, way="auto", chosen=None, resume=False, cut_at=None):
    """A run of eight macro-steps of water; `chosen`: what a measurement would say; cut after a macro-step."""
    path = folder / "best.pt"
    if not path.is_file():
        torch.manual_seed(0)
        model = build_model(ModelConfig(arch="pair_mlp", pair_hidden=[8]), vars(water))
        x = water.conformers[0] + np.random.default_rng(0).normal(scale=0.003, size=(50, 3, 3))
        model.fit_normalisation({"positions": x, "energies": 5.0 * np.random.default_rng(1).normal(size=50)})
        molecule = {key: torch.as_tensor(getattr(water, key)) for key in ("numbers", "masses", "bonds")}
        make_checkpoint(path, model, molecule=molecule, elements=[1, 8], method="GFN2-xTB")
    config = QMConfig()
    hybrid = HybridConfig(scheme="metropolis", k_steps=4, dt_fs=0.5, steps=6, burn_in_steps=2, replicas=3,
                          temperature_K=300.0, checkpoint_interval=2, inner=way)
    spec = physics_spec(water, config, warm_start=False)
    run = HybridRun(water, spec, "GFN2-xTB", hybrid, path, folder / f"{name}.npz",
                    seed=3, resume=resume)
    steps = production.macro_steps

    def cut(*arguments, **more):
        for n, state in enumerate(steps(*arguments, **more)):
            if n == cut_at:
                raise KeyboardInterrupt
            yield state

    def say(load, x, ways, *_):
        assert chosen is not None, "a choice was measured again"
        return inner.Choice(chosen, {chosen: 1.0}), load(chosen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(production, "macro_steps", cut)
        patch.setattr(inner, "choose", say)
        return run_hybrid(run, {}, {})


def test_a_resumed_run_keeps_the_way_that_was_measured(water, tmp_path):
    whole = go(water, tmp_path, "whole", way="eager")
    with pytest.raises(KeyboardInterrupt):
        go(water, tmp_path, "cut", chosen="eager", cut_at=5)
    resumed = go(water, tmp_path, "cut", resume=True)
    assert resumed["inner"] == {"way": "eager", "us": {"eager": 1.0}, "left_out": {}}
    assert resumed["config"]["inner"] == "eager" and whole["config"]["inner"] == "eager"
    a, b = (load_trajectory(tmp_path / f"{name}.npz") for name in ("whole", "cut"))
    assert np.array_equal(a.pos, b.pos) and np.array_equal(a.delta_H, b.delta_H)
    other = go(water, tmp_path, "other", chosen="numpy")
    assert other["config"]["inner"] == "numpy"
    assert not np.array_equal(load_trajectory(tmp_path / "other.npz").pos, b.pos)  # the last bits do differ
    with pytest.raises(KeyboardInterrupt):
        go(water, tmp_path, "again", chosen="eager", cut_at=5)
    with pytest.raises(UserError, match="other settings"):
        go(water, tmp_path, "again", way="numpy", resume=True)


def test_ways_fit_network_and_device():
    assert inner.possible_ways("egnn", "cpu")[0] == "eager" and "numpy" not in inner.possible_ways("egnn", "cuda")
    assert inner.possible_ways("pair_mlp", "cuda")[:3] == ["numpy", "eager", "graphs"]
    assert "sparse" in inner.possible_ways("egnn", "cpu") and "graphs" not in inner.possible_ways("egnn", "cpu")
    assert "sparse" not in inner.possible_ways("transformer_egnn", "cpu")
