"""FairGrad."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from runner.weighting.fairgrad import FairGrad, fair_weights
from runner.weighting.mgda import min_norm_weights
from runner.weighting.nash_mtl import bargaining
from tests.weighting.grams import DEGENERATE, RANDOM, gram, tasks


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("name", RANDOM)
def test_solves_its_equation(name, alpha):
    matrix = gram(RANDOM[name])
    w = fair_weights(matrix, alpha)
    torch.testing.assert_close(matrix @ w, w ** (-1 / alpha), rtol=1e-5, atol=0)


def test_equals_the_authors_least_squares():
    matrix = gram(RANDOM["K5-P8-0"]).numpy()
    found = least_squares(lambda x: matrix @ x - x**-0.5, np.full(5, 0.2), bounds=(0, np.inf), xtol=1e-15, ftol=1e-15)
    np.testing.assert_allclose(fair_weights(torch.from_numpy(matrix), 2.0).numpy(), found.x, rtol=1e-5)


def test_alpha_one_is_the_bargaining_solution_and_a_large_alpha_comes_close_to_mgda():
    grads = RANDOM["K4-P6-2"] / RANDOM["K4-P6-2"].norm(dim=1)[:, None]
    matrix = gram(grads)
    fair, nash = fair_weights(matrix, 1.0), bargaining(matrix)
    torch.testing.assert_close(fair / fair.sum(), nash / nash.sum())
    direction = fair_weights(matrix, 200.0) @ grads
    assert torch.cosine_similarity(direction, min_norm_weights(matrix) @ grads, dim=0) > 0.999


@pytest.mark.parametrize("name", DEGENERATE)
def test_survives_degenerate_gradients(name):
    grads = DEGENERATE[name]
    method = FairGrad(tasks(len(grads)))
    weights = method.coefficients(gram(grads), torch.ones(len(grads)), torch.arange(len(grads)))[0].double()
    assert weights.isfinite().all() and (weights > 0).all()
    assert (weights @ grads).norm() <= 1 + 1e-3  # coefficients are float32


def test_one_task_is_plain_training_with_clipping():
    for norm, expected in ((0.5, 1.0), (4.0, 0.25)):
        weights = FairGrad(tasks(1)).coefficients(torch.tensor([[norm**2]]).double(), torch.ones(1), torch.arange(1))[0]
        assert weights.tolist() == [expected]


def test_doubling_all_losses_shrinks_the_weights_as_the_equation_says():
    matrix = gram(RANDOM["K3-P50-1"])
    # 4 GG w' = w'^(−1/α) with w' = s·w gives 4 s = s^(−1/α)
    torch.testing.assert_close(fair_weights(4 * matrix, 2.0), fair_weights(matrix, 2.0) * 4 ** (-1 / 1.5))
