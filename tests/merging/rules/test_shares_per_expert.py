"""Densities that differ between experts: each task vector is thinned as it would be alone."""

from __future__ import annotations

import pytest
import torch

from runner.errors import UserError
from runner.merging.memory import merge_in_memory
from runner.merging.rules.task_arithmetic import TaskArithmetic
from runner.merging.rules.ties import Ties
from runner.merging.sources import Models
from runner.merging.transforms.base import Transform
from runner.merging.transforms.drop import Dare, Magprune
from runner.merging.transforms.trim import Breadcrumbs, Trim

GENERATOR = torch.Generator().manual_seed(0)
BASE = {name: torch.randn(12, 10, generator=GENERATOR) for name in ("a.weight", "b.weight")}
EXPERTS = [{name: value + torch.randn(12, 10, generator=GENERATOR) for name, value in BASE.items()} for _ in range(2)]


def merged(merge, experts=(0, 1)):
    models = Models.in_memory({str(t): EXPERTS[t] for t in experts}, BASE)
    return merge_in_memory(merge, models).tensors


PAIRS = {
    "Trim": lambda d: Trim(density=d),
    "Trim, whole model, rescaled": lambda d: Trim(density=d, scope="model", rescale=True),
    "Breadcrumbs": lambda d: Breadcrumbs(largest=0.1, smallest=d),
}


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_the_sum_of_two_thinned_alone(make):
    both = merged(TaskArithmetic(scale=1.0, pre=[make([0.5, 0.2])]))
    first = merged(TaskArithmetic(scale=1.0, pre=[make(0.5)]), [0])
    second = merged(TaskArithmetic(scale=1.0, pre=[make(0.2)]), [1])
    for name, value in BASE.items():
        torch.testing.assert_close(both[name], first[name] + second[name] - value)


@pytest.mark.parametrize(
    ("make", "lists"),
    [(lambda d: Dare(rate=d), [0.5, 0.0]), (lambda d: Magprune(density=d, spread=0.1), [0.5, 1.0])],
    ids=["Dare", "Magprune"],
)
def test_random_drops_of_one_expert_alone(make, lists):
    """The second expert is left whole; the first loses what it loses with the same rate for both."""
    both = merged(TaskArithmetic(scale=1.0, pre=[make(lists)]))
    same = merged(TaskArithmetic(scale=1.0, pre=[make(lists[0])], weights=[1.0, 0.0]))
    for name, value in EXPERTS[1].items():
        torch.testing.assert_close(both[name], same[name] + value - BASE[name])


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_ties(scope):
    """With one sign everywhere nothing is elected away: the sum of what each keeps."""
    up = [{name: BASE[name] + (expert[name] - BASE[name]).abs() for name in BASE} for expert in EXPERTS]
    found = merge_in_memory(
        Ties(density=[0.5, 0.1], scope=scope, aggregate="sum"), Models.in_memory({"0": up[0], "1": up[1]}, BASE)
    ).tensors
    for name, value in BASE.items():
        kept = []
        for expert, density in zip(up, (0.5, 0.1), strict=True):
            ranked = torch.cat([(expert[n] - BASE[n]).flatten() for n in (BASE if scope == "model" else [name])])
            bar = ranked.sort(descending=True).values[round(density * len(ranked)) - 1]
            tau = expert[name] - value
            kept.append(torch.where(tau >= bar, tau, 0.0))
        torch.testing.assert_close(found[name], value + sum(kept))


def test_density_by_tensor():
    found = merged(Ties(density=[0.5, 0.1], density_at={"a.*": [0.2, 0.3], "re:^b": 1.0}, scope="tensor"))
    alone = merged(Ties(density=[0.2, 0.3], scope="tensor"))
    whole = merged(Ties(density=1.0))
    torch.testing.assert_close(found["a.weight"], alone["a.weight"])
    torch.testing.assert_close(found["b.weight"], whole["b.weight"])


@pytest.mark.parametrize(
    ("merge", "expected"),
    [
        (Ties(density=[0.5, 0.1, 0.2]), "merge.density has 3 values for 2 experts"),
        (Ties(density_at={"a.*": 0.5}), "set merge.scope=tensor"),
        (Ties(density_at={"a.*": 1.5}, scope="tensor"), "merge.density_at 'a.*' must be from 0 to 1"),
        (TaskArithmetic(pre=[Dare(rate=[0.5])]), "rate of Dare has 1 values for 2 experts"),
        (TaskArithmetic(pre=[Magprune(spread=[0.1, 0.1, 0.1])]), "spread of Magprune has 3 values"),
        (TaskArithmetic(pre=[Breadcrumbs(smallest=[0.5])]), "smallest has 1 values"),
        (TaskArithmetic(post=[Dare(rate=[0.5, 0.5])]), "changes one merged task vector"),
    ],
)
def test_lists_of_another_length(merge, expected):
    problems = merge.check(("0", "1"), True)
    assert expected in str(UserError(problems))


def test_rates_are_looked_at_one_by_one():
    for make in (lambda: Dare(rate=[0.5, 1.0]), lambda: Magprune(density=[0.5, 0.05], spread=0.2)):
        with pytest.raises(UserError):
            make()
    assert isinstance(Dare(rate=[0.5, 0.6]), Transform)
