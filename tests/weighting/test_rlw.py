from __future__ import annotations

import pytest
import torch

from runner.weighting.rlw import RLW, draw
from tests.weighting.cases import reloaded, run, tasks

DISTRIBUTIONS = ["normal", "uniform", "dirichlet", "bernoulli", "constrained_bernoulli"]


def many(distribution, k, n=4000):
    generator = torch.Generator().manual_seed(0)
    return torch.stack([draw(distribution, k, generator) for _ in range(n)])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_weights_are_on_the_simplex_and_fair(distribution, k):
    drawn = many(distribution, k)
    if distribution == "bernoulli":  # the authors leave coins as they fall
        assert set(drawn.unique().tolist()) <= {0.0, 1.0}
        drawn = drawn / drawn.sum(1, keepdim=True)
    torch.testing.assert_close(drawn.sum(1), torch.ones(len(drawn), dtype=torch.float64))
    assert (drawn >= 0).all()
    assert (drawn.mean(0) - 1 / k).abs().max() < 0.03


def test_normal_and_uniform_are_a_softmax():
    """The log-ratio of two weights is the difference of the raw numbers: variance 2, or 2/12 within ±1."""
    normal, uniform = many("normal", 3).log(), many("uniform", 3).log()
    assert (normal[:, 0] - normal[:, 1]).var().item() == pytest.approx(2.0, rel=0.1)
    difference = uniform[:, 0] - uniform[:, 1]
    assert difference.var().item() == pytest.approx(2 / 12, rel=0.1) and difference.abs().max() <= 1


def test_dirichlet_is_a_softmax_of_numbers_uniform_over_the_simplex():
    """A number of Dirichlet(1, …, 1) is Beta(1, K-1): P(x > a) = (1-a)^(K-1); the logs of a softmax give it back."""
    logs = many("dirichlet", 4).log()
    drawn = (logs - logs.mean(1, keepdim=True) + 0.25)[:, 0]
    for x in (0.1, 0.3, 0.6):
        assert (drawn > x).double().mean().item() == pytest.approx((1 - x) ** 3, abs=0.03)


def test_bernoulli_draws_every_nonempty_subset_equally_often():
    subsets = (many("bernoulli", 3, 7000) > 0).long() @ torch.tensor([1, 2, 4])
    counts = torch.bincount(subsets, minlength=8)
    assert counts[0] == 0 and (counts[1:] - 1000).abs().max() < 130


def test_constrained_bernoulli_chooses_one():
    drawn = many("constrained_bernoulli", 3)
    assert ((drawn == 1).sum(1) == 1).all() and ((drawn == 0).sum(1) == 2).all()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_draws_follow_the_seed_and_the_checkpoint_and_change_every_step(distribution):
    losses = [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]] * 8
    whole = run(RLW(tasks(6), distribution=distribution, seed=5), losses)
    assert not all(torch.equal(whole[0], w) for w in whole)
    stopped = RLW(tasks(6), distribution=distribution, seed=5)
    run(stopped, losses[:3])
    rest = run(reloaded(stopped, RLW(tasks(6), distribution=distribution, seed=99)), losses[3:], start=3)
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], rest, strict=True))
    other = run(RLW(tasks(6), distribution=distribution, seed=6), losses)
    assert not all(torch.equal(a, b) for a, b in zip(whole, other, strict=True))


def test_the_weights_of_a_step_hold_until_the_next():
    weighting = RLW(tasks(3))
    weighting.begin_step(0, 1)
    first = [weighting.combine(torch.tensor([1.0, 2.0, 3.0]), torch.arange(3)) for _ in range(2)]
    assert first[0] == first[1]
    weighting.begin_step(1, 1)
    assert weighting.combine(torch.tensor([1.0, 2.0, 3.0]), torch.arange(3)) != first[0]


def test_the_global_generator_is_not_touched():
    state = torch.get_rng_state()
    for distribution in DISTRIBUTIONS:
        run(RLW(tasks(3), distribution=distribution), [[1.0, 1.0, 1.0]] * 3)
    assert torch.equal(torch.get_rng_state(), state)
