"""UPGrad and DualProj."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from runner.weighting.dualproj import DualProj
from runner.weighting.upgrad import UPGrad, dual_cone_projections
from tests.weighting.grams import ALL, RANDOM, gram, tasks

REG = 1e-9


@pytest.mark.parametrize("name", [n for n in RANDOM if n.endswith("-0")])
def test_projection_equals_the_primal_problem_by_scipy(name):
    """The nearest x to u with Gx ≥ 0 is u + Gᵀλ with λ ≥ 0 of least ‖u + Gᵀλ‖: NNLS on the vectors themselves."""
    grads = RANDOM[name].numpy()
    rows = dual_cone_projections(gram(RANDOM[name]), REG).numpy()
    for row, g in zip(rows, grads, strict=True):
        multipliers, _ = nnls(grads.T, -g)
        np.testing.assert_allclose(row @ grads, g + multipliers @ grads, atol=1e-5 * np.linalg.norm(grads))
    mean = grads.mean(0)
    multipliers, _ = nnls(grads.T, -mean)
    projected = DualProj(tasks(len(grads)), reg_eps=REG).solve(
        gram(RANDOM[name]), torch.ones(len(grads)), torch.arange(len(grads))
    )
    np.testing.assert_allclose(projected.numpy() @ grads, mean + multipliers @ grads, atol=1e-5 * np.linalg.norm(grads))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("method", [UPGrad, DualProj])
def test_no_task_is_hurt_beyond_the_regularisation(name, method):
    grads = ALL[name]
    coefficients = method(tasks(len(grads))).solve(gram(grads), torch.ones(len(grads)), torch.arange(len(grads)))
    assert coefficients.isfinite().all() and (coefficients >= 0).all()
    # GGv/trace + εv ≥ 0 for the solution v: the violation is at most ε·trace·v
    violation = -(gram(grads) @ coefficients) / gram(grads).trace().clamp_min(1e-300)
    assert (violation <= 1e-4 * coefficients * (1 + 1e-6) + 1e-12).all()


def test_gradients_without_conflict_are_averaged():
    grads = torch.tensor([[1.0, 0], [1.0, 1]], dtype=torch.float64)
    for method in (UPGrad, DualProj):
        for scale, expected in (("paper", 0.5), ("one", 0.5), ("tasks", 1.0)):
            got, _ = method(tasks(2), scale=scale).coefficients(gram(grads), torch.ones(2), torch.arange(2))
            torch.testing.assert_close(got, torch.full((2,), expected))


def test_two_in_conflict_are_the_closed_form():
    """Each loses its part along the other."""
    grads = torch.tensor([[1.0, 0], [-1.0, 1]], dtype=torch.float64)
    rows = dual_cone_projections(gram(grads), REG) @ grads
    expected = torch.stack([torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0])]).double()
    torch.testing.assert_close(rows, expected, rtol=1e-6, atol=1e-6)
