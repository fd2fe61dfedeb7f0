"""The studies: how label efficiency is counted, that peers are as equivariant as they claim, what a step costs."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from conftest import ROOT


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def test_labels_needed_lie_between_the_counts_that_bracket_the_bar(module):
    crossing = module("transfer").crossing
    counts = np.array([10.0, 100.0, 1000.0])
    errors = 100.0 / counts  # a straight line between logarithms
    assert crossing(counts, errors, 100.0 / 30) == pytest.approx(30)
    assert crossing(counts, errors, 1.0) == pytest.approx(100)
    assert crossing(counts, errors, 50.0) == 10.0  # good with the fewest that were tried
    assert crossing(counts, errors, 0.01) is None


@pytest.mark.parametrize("n_times", [1, 8])
@pytest.mark.parametrize("with_force", [False, True])
def test_peers_turn_move_and_permute_with_the_molecule(module, n_times, with_force):
    torch.manual_seed(0)
    net = module("peer_networks").Predictor(2, n_times=n_times, hidden=8, layers=2, with_force=with_force).double()
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    x, v, f = (torch.randn(3, 4, 3, dtype=torch.float64) for _ in range(3))
    elements = torch.eye(2, dtype=torch.float64)[[0, 1, 1, 0]]
    edges = torch.rand(4, 4, 2, dtype=torch.float64)
    edges = edges + edges.transpose(0, 1)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for here, there in zip(net(elements, x, v, f, edges), net(elements, x @ turn, v @ turn, f @ turn, edges)):
            assert here.shape == (n_times, 3, 4, 3)
            assert (here @ turn - there).abs().max() < 1e-10 * here.abs().max()
        here = net(elements, x, v, f, edges)[0]
        there = net(elements[order], x[:, order], v[:, order], f[:, order], edges[order][:, order])[0]
        assert (here[:, :, order] - there).abs().max() < 1e-10 * here.abs().max()


@pytest.mark.parametrize("n_atoms", [5, 6])
def test_the_limit_of_the_inner_loop_counts_the_products_that_are_made(module, n_atoms):
    inner_loop = module("inner_loop")
    net, n_rows = inner_loop.network(n_atoms, "cpu"), 7
    x = net.native(inner_loop.chain(n_atoms, n_rows))
    with FlopCounterMode(display=False) as counted:
        net.forces(x)
    assert counted.get_total_flops() == n_rows * inner_loop.operations(n_atoms, net.model.config.pair_hidden)


def test_the_inner_loop_is_timed_beside_its_limits(module, tmp_path, monkeypatch):
    inner_loop, threads, out = module("inner_loop"), torch.get_num_threads(), tmp_path / "inner_loop.json"
    monkeypatch.setattr(inner_loop, "SQUARE", {"cpu": (256,)})
    monkeypatch.setattr(sys, "argv", ["inner_loop.py", "--atoms", "5", "12", "--rows", "2", "16", "--least-s", "0.05",
                                      "--out", str(out)])
    try:
        inner_loop.main()
    finally:
        torch.set_num_threads(threads)
    found = json.loads(out.read_text())
    for n_atoms, row in found["atoms"].items():
        assert row["pairs"] == {"5": 10, "12": 66}[n_atoms]
        limit = row["limit_products_us"] + row["limit_passes_us"]
        assert row["step_us"]["2"] > row["step_us"]["16"] > limit > 0  # what a call costs is shared by its replicas
    small, large = (found["atoms"][n] for n in ("5", "12"))
    assert large["limit_passes_us"] > small["limit_passes_us"]
    spec = importlib.util.spec_from_file_location("benchmark_tables", ROOT / "benchmarks/tables.py")
    tables = importlib.util.module_from_spec(spec)  # PyTables is called tables too
    spec.loader.exec_module(tables)
    text = tables.inner_loop(found)
    assert text.index("| 5 | 10 |") < text.index("| 12 | 66 |") and f"{small['step_us']['16']:.3g}" in text
