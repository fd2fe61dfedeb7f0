"""Every loss term by hand: a falling loss alone does not show that it points at the target."""

from types import SimpleNamespace

import pytest
import torch

from kstep.training import losses
from kstep.training.batches import Targets
from kstep.training.train_config import TrainConfig


class Answers:
    """A model that answers what it is told."""

    def __init__(self, energy, forces, x_k, v_half):
        self.config = SimpleNamespace(use_force_head=True)
        self.energy_and_forces = lambda batch, create_graph=False: (energy, forces)
        self.direct_forces = lambda batch: 3 * forces
        self.jump = lambda batch: (x_k, v_half)
        self.jump_scales = lambda numbers, tau: (torch.full((4, 1), 0.002), torch.full((4, 1), 0.5))


def test_terms_are_distances_to_the_targets_in_their_units():
    torch.manual_seed(0)
    truth = Targets(torch.randn(2).double(), torch.randn(4, 3).double(), torch.randn(4, 3).double(),
                    torch.randn(4, 3).double(), torch.zeros(0, 3).long(), torch.zeros(0, 4).long())
    batch = SimpleNamespace(numbers=torch.ones(4).long(), tau_ps=torch.ones(2), graph=torch.tensor([0, 0, 1, 1]),
                            bonds=torch.zeros(0, 2).long())
    off = torch.tensor([3.0, 0.0, 4.0]).double()
    exact = Answers(truth.energy, truth.forces, truth.x_k, truth.v_half)
    wrong = Answers(truth.energy + 6.0, truth.forces + off, truth.x_k + 0.001 * off, truth.v_half - 0.1 * off)
    scales, config = losses.Scales(energy=2.0, force=10.0), TrainConfig()
    terms = [{**losses.energy_terms(model, batch, truth, scales, config, training=False),
              **losses.jump_terms(model, batch, truth, config)} for model in (exact, wrong)]
    for name in ("energy", "force", "dx", "dv"):
        assert float(terms[0][name]) < 1e-5, name
    assert float(terms[1]["energy"]) == pytest.approx(9.0)  # (6 / 2)^2
    assert float(terms[1]["force"]) == pytest.approx(25 / 3 / 100)  # mean square of a component / 10^2
    assert float(terms[0]["direct_force"]) == pytest.approx(float((2 * truth.forces / 10).square().mean()))
    assert float(terms[1]["dx"]) == pytest.approx(0.005 / 0.002, rel=1e-6)
    assert float(terms[1]["dv"]) == pytest.approx(0.5 / 0.5, rel=1e-6)
