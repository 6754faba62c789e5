"""Nash-MTL."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from runner.weighting.nash_mtl import NashMTL, bargaining
from tests.weighting.grams import DEGENERATE, RANDOM, gram, tasks


@pytest.mark.parametrize("name", RANDOM)
def test_solves_the_bargaining_equation(name):
    matrix = gram(RANDOM[name])
    alpha = bargaining(matrix)
    assert (alpha > 0).all()
    torch.testing.assert_close(matrix @ alpha / matrix.norm(), 1 / alpha, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["K2-P5-0", "K3-P3-0", "K5-P8-0", "K10-P12-0"])
def test_maximises_the_product_of_gains(name):
    """The Nash bargaining solution by another way: max Σ log(g_kᵀd) over ‖d‖ ≤ 1, without any Gram matrix."""
    grads = RANDOM[name].numpy()
    alpha = bargaining(gram(RANDOM[name])).numpy()
    d = alpha @ grads
    d /= (d @ d) ** 0.5

    def negative(x):
        gains = grads @ x
        if (gains <= 0).any():
            return 1e6, 0 * x
        return -np.log(gains).sum() + 0.5 * len(grads) * x @ x, -grads.T @ (1 / gains) + len(grads) * x

    # The minimum over all x has ‖x‖ = 1 and the same direction: the log of the scale gains K, the penalty costs K‖x‖².
    found = minimize(negative, d * 1.3 + 0.01, jac=True, method="BFGS", options={"gtol": 1e-8}).x
    assert found @ d == pytest.approx(1.0, abs=1e-5)
    assert found @ found == pytest.approx(1.0, abs=1e-5)


def test_the_direction_ignores_the_scale_of_each_loss():
    grads = RANDOM["K5-P8-0"]
    scaled = grads * torch.tensor([1e-6, 1.0, 30.0, 1e6, 0.2])[:, None]
    first, second = (bargaining(gram(g)) @ g for g in (grads, scaled))
    assert torch.cosine_similarity(first, second, dim=0) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("name", DEGENERATE)
def test_survives_degenerate_gradients(name):
    grads = DEGENERATE[name]
    method = NashMTL(tasks(len(grads)))
    weights = method.coefficients(gram(grads), torch.ones(len(grads)), torch.arange(len(grads)))[0].double()
    assert weights.isfinite().all() and (weights > 0).all()
    assert (weights @ grads).norm() <= 1 + 1e-3  # coefficients are float32


def test_clips_the_shared_gradient_alone():
    grads = RANDOM["K3-P50-1"]
    method = NashMTL(tasks(3), max_norm=0.25)
    shared, heads = method.coefficients(gram(grads), torch.ones(3), torch.arange(3))
    assert (shared.double() @ grads).norm() == pytest.approx(0.25, rel=1e-6)
    torch.testing.assert_close(heads, bargaining(gram(grads)).float())
    free, _ = NashMTL(tasks(3), max_norm=0.0).coefficients(gram(grads), torch.ones(3), torch.arange(3))
    torch.testing.assert_close(free, heads)


@pytest.mark.parametrize(("scale", "total"), [("tasks", 3.0), ("one", 1.0)])
def test_scale(scale, total):
    weights, _ = NashMTL(tasks(3), scale=scale, max_norm=0.0).coefficients(
        gram(RANDOM["K3-P50-1"]), torch.ones(3), torch.arange(3)
    )
    assert weights.sum() == pytest.approx(total)
