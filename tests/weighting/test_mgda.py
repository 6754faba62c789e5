"""MGDA."""

from __future__ import annotations

import pytest
import torch

from runner.weighting.mgda import MGDA, min_norm_weights, normalise
from tests.weighting.grams import RANDOM, gram, tasks


def test_orthogonal_gradients_get_weights_of_the_inverse_squares():
    grads = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    expected = torch.tensor([1, 1 / 4, 1 / 16], dtype=torch.float64)
    torch.testing.assert_close(min_norm_weights(gram(grads)), expected / expected.sum())


@pytest.mark.parametrize("norm", ["none", "l2", "loss", "loss+"])
def test_normalisation_decides_the_weights_alone(norm):
    grads = RANDOM["K4-P6-2"]
    losses = torch.tensor([0.1, 3.0, 20.0, 0.5])
    unit = {"none": grads, "l2": grads / grads.norm(dim=1)[:, None], "loss": grads / losses[:, None]}
    unit["loss+"] = unit["l2"] / losses[:, None]
    torch.testing.assert_close(normalise(gram(grads), losses, norm), gram(unit[norm]).double(), rtol=1e-6, atol=0)
    weights = MGDA(tasks(4), norm=norm).solve(gram(grads), losses, torch.arange(4))
    torch.testing.assert_close(weights, min_norm_weights(gram(unit[norm]).double()), rtol=1e-5, atol=1e-8)


def test_scale_is_the_sum_of_the_weights():
    matrix = gram(RANDOM["K5-P8-0"])
    for scale, total in (("paper", 1.0), ("one", 1.0), ("tasks", 5.0)):
        weights, _ = MGDA(tasks(5), scale=scale).coefficients(matrix, torch.ones(5), torch.arange(5))
        assert weights.sum() == pytest.approx(total)


def test_a_zero_gradient_or_loss_divides_nothing_by_zero():
    matrix = gram(torch.tensor([[0.0, 0], [1.0, 2]], dtype=torch.float64))
    for norm in ("l2", "loss", "loss+"):
        weights = MGDA(tasks(2), norm=norm).solve(matrix, torch.tensor([0.0, 1.0]), torch.arange(2))
        torch.testing.assert_close(weights, torch.tensor([1.0, 0.0], dtype=torch.float64))
