"""Aligned-MTL."""

from __future__ import annotations

import pytest
import torch

from runner.weighting.aligned_mtl import AlignedMTL, aligned
from tests.weighting.grams import ALL, RANDOM, float32_gram, gram, tasks

WELL = [n for n in RANDOM if n.endswith("-0")]


@pytest.mark.parametrize("name", WELL)
@pytest.mark.parametrize("mode", ["min", "median", "rmse"])
def test_is_the_sum_of_the_polar_factor(name, mode):
    """G = UΣVᵀ has the nearest matrix with equal singular values σUVᵀ; its rows are summed."""
    grads = RANDOM[name]
    u, s, v = torch.linalg.svd(grads, full_matrices=False)
    sigma = {"min": s.min(), "median": s.median(), "rmse": s.square().mean().sqrt()}[mode]
    if mode == "median" and len(s) % 2 == 0:
        sigma = s.square().sort().values[len(s) // 2 - 1 : len(s) // 2 + 1].mean().sqrt()
    torch.testing.assert_close(aligned(gram(grads), mode) @ grads, sigma * (u @ v).sum(0), rtol=1e-6, atol=1e-9)


def test_orthogonal_gradients_are_brought_to_the_shortest():
    grads = torch.diag(torch.tensor([1.0, 5.0, 25.0], dtype=torch.float64))
    torch.testing.assert_close(aligned(gram(grads)), torch.tensor([1.0, 0.2, 0.04], dtype=torch.float64))


@pytest.mark.parametrize("make", [gram, float32_gram])
def test_rounding_errors_are_no_singular_value(make):
    """Two parallel gradients have rank one: the sum of aligned gradients is not shrunk to nothing."""
    grads = torch.tensor([[1.0, 1 / 3, 0.2], [2.0, 2 / 3, 0.4]], dtype=torch.float64)
    result = aligned(make(grads)) @ grads
    # σ = ‖(1, 2)‖·‖g‖, U = (1, 2)/√5: the sum is 3/√5·σ·g/‖g‖ = 3g
    torch.testing.assert_close(result, 3 * grads[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_is_finite_everywhere(name):
    assert aligned(gram(ALL[name])).isfinite().all()


def test_scale():
    matrix = gram(RANDOM["K5-P8-0"])
    plain, _ = AlignedMTL(tasks(5)).coefficients(matrix, torch.ones(5), torch.arange(5))
    one, _ = AlignedMTL(tasks(5), scale="one").coefficients(matrix, torch.ones(5), torch.arange(5))
    torch.testing.assert_close(one, plain / plain.abs().sum())
