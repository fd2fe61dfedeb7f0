"""The studies of MODELS.md: how label efficiency is counted, and that the peers are as equivariant as they claim."""

import importlib

import numpy as np
import pytest
import torch

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
