"""A GPU computes what a CPU does; the cases marked `cuda` need one, the others run the same lines without it."""

import copy

import numpy as np
import pytest
import torch

from kstep.models.network import Network
from kstep.models.symmetry import shake
from kstep.schemas import load_dataset
from kstep.training.batches import Windows
from kstep.training.window_training import train
from trainings import EGNN, FACTS, make_dataset, prepare, rows_of

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.fixture(scope="module")
def methanol(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("methanol"), "methanol")


@pytest.mark.parametrize("device", DEVICES)
def test_a_jump_is_the_same_on_every_device(methanol, device):
    model = prepare(methanol, EGNN)["model"]
    shake(model, torch.Generator().manual_seed(1), 0.1)  # a fresh one corrects nothing
    arrays, _ = load_dataset(methanol / "dataset_k4.npz")
    molecule, n = Windows.molecule_of(0, arrays), 5
    shape = (n, len(molecule["numbers"]), 3)
    x, v, f = (arrays[key][:n * shape[1]].reshape(shape) for key in ("x_t", "v_t", "f_t"))
    fast, exact = (Network(own, **molecule, metadata=FACTS, device=where)
                   for own, where in ((copy.deepcopy(model), device), (copy.deepcopy(model).double(), "cpu")))
    for span in (4, np.array([4, 2, 4, 1, 2])):
        for got, expected, moved in zip(fast.jump(x, v, f, span), exact.jump(x, v, f, span), (x, v)):
            assert np.abs(expected - moved).max() > 1e-3  # it goes somewhere
            assert np.abs(got - expected).max() < 1e-4 * np.abs(expected - moved).max()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("amp, tolerance", [(False, 1e-3), (True, 0.1)])
def test_a_training_is_the_same_on_every_device(methanol, tmp_path, device, amp, tolerance):
    losses = []
    for where, mixed in (("cpu", False), (device, amp)):
        out = tmp_path / f"{where}_{mixed}"
        train(**prepare(methanol, EGNN, where, amp=mixed, log_interval_steps=1), out_dir=out, max_steps=3)
        losses.append(rows_of(out, "train")[-1]["train_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    assert device == "cuda" or (losses[0] != losses[1]) == amp
