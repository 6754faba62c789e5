"""ConFIG."""

from __future__ import annotations

import pytest
import torch

from runner.weighting.config import ConFIG, conflict_free
from tests.weighting.grams import ALL, RANDOM, gram, tasks


@pytest.mark.parametrize("name", RANDOM)
def test_is_the_papers_formula_on_the_vectors(name):
    grads = RANDOM[name]
    direction = torch.linalg.pinv(grads / grads.norm(dim=1)[:, None]).sum(1)
    direction /= direction.norm()
    expected = (grads @ direction).sum() * direction
    torch.testing.assert_close(conflict_free(gram(grads)) @ grads, expected, rtol=1e-5, atol=1e-6 * float(grads.norm()))


@pytest.mark.parametrize("name", RANDOM)
def test_cosines_with_all_gradients_are_equal_and_positive(name):
    grads = RANDOM[name]
    cosines = torch.cosine_similarity(grads, conflict_free(gram(grads)) @ grads, dim=1)
    assert cosines.min() > 0 and (cosines.max() - cosines.min()) < 1e-6


@pytest.mark.parametrize("name", ALL)
def test_is_finite_everywhere(name):
    assert conflict_free(gram(ALL[name])).isfinite().all()


def test_opposite_gradients_have_no_such_direction_and_parallel_ones_are_summed():
    opposite = torch.tensor([[1.0, 0], [-3.0, 0]], dtype=torch.float64)
    torch.testing.assert_close(conflict_free(gram(opposite)), torch.zeros(2, dtype=torch.float64))
    parallel = torch.tensor([[1.0, 1], [3.0, 3]], dtype=torch.float64)
    torch.testing.assert_close(conflict_free(gram(parallel)) @ parallel, parallel.sum(0))
    whole = ConFIG(tasks(2)).solve(gram(parallel), torch.ones(2), torch.arange(2))
    torch.testing.assert_close(whole @ parallel, parallel.sum(0))
