"""CAGrad."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from runner.weighting.cagrad import CAGrad, conflict_averse
from tests.weighting.grams import ALL, RANDOM, gram, tasks


@pytest.mark.parametrize("c", [0.1, 0.4, 0.9, 3.0])
@pytest.mark.parametrize("name", [n for n in RANDOM if not n.startswith("K1-")])
def test_primal_meets_dual(name, c):
    """D is feasible, and the worst-off task's gain equals the dual objective at w: both are optimal."""
    grads = RANDOM[name] / RANDOM[name].norm(dim=1).mean()
    mean = grads.mean(0)
    coefficients = conflict_averse(gram(grads), c)
    d = coefficients @ grads
    radius = c * mean.norm()
    assert (d - mean).norm() <= radius * (1 + 1e-6)
    w = coefficients - 1 / len(grads)
    w = w / w.sum()
    assert w.min() > -1e-9
    combined = w @ grads
    dual = combined @ mean + radius * combined.norm()
    primal = (grads @ d).min()
    assert primal == pytest.approx(float(dual), rel=1e-6, abs=1e-9 * c)


@pytest.mark.parametrize("name", ["K2-P5-0", "K3-P3-0", "K5-P8-0", "K12-P14-0"])
def test_equals_the_authors_formulation_by_scipy(name):
    grads = RANDOM[name]
    matrix, size, c = gram(grads).numpy(), len(grads), 0.5
    mean = np.full(size, 1 / size)
    radius = c * np.sqrt(mean @ matrix @ mean)
    w = minimize(
        lambda x: x @ matrix @ mean + radius * np.sqrt(x @ matrix @ x + 1e-12), mean, bounds=[(0, 1)] * size,
        constraints={"type": "eq", "fun": lambda x: 1 - x.sum()}, options={"ftol": 1e-14, "maxiter": 1000},
    ).x  # fmt: skip
    expected = mean + radius / np.sqrt(w @ matrix @ w) * w
    np.testing.assert_allclose(
        conflict_averse(torch.from_numpy(matrix), c).numpy() @ grads.numpy(), expected @ grads.numpy(),
        atol=2e-4 * np.linalg.norm(mean @ grads.numpy()),
    )  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_stays_within_its_radius_everywhere(name):
    grads = ALL[name]
    coefficients = conflict_averse(gram(grads), 0.4)
    assert coefficients.isfinite().all()
    mean = grads.mean(0)
    assert (coefficients @ grads - mean).norm() <= 0.4 * mean.norm() * (1 + 1e-4) + 1e-12


def test_c_zero_is_the_mean_and_two_alike_point_along_it():
    matrix = gram(RANDOM["K5-P8-0"])
    torch.testing.assert_close(conflict_averse(matrix, 0.0), torch.full((5,), 0.2, dtype=torch.float64))
    alike = torch.full((2, 2), 4.0, dtype=torch.float64)
    assert float(conflict_averse(alike, 0.4).sum()) == pytest.approx(1.4, rel=1e-6)  # g₀ + 0.4‖g₀‖·g₀/‖g₀‖


def test_rescale():
    matrix = gram(RANDOM["K3-P50-1"])
    plain = conflict_averse(matrix, 0.4)
    for rescale, divisor in ((0, 1.0), (1, 1.16), (2, 1.4)):
        got = CAGrad(tasks(3), c=0.4, rescale=rescale).solve(matrix, torch.ones(3), torch.arange(3))
        torch.testing.assert_close(got, plain / divisor)


def test_one_task_is_plain_training():
    weights = CAGrad(tasks(1)).solve(torch.tensor([[4.0]]), torch.ones(1), torch.arange(1))
    assert weights.tolist() == [1.0]
