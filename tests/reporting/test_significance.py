"""Tests and corrections against scipy.stats and against the definition."""

from __future__ import annotations

import math
from itertools import chain, combinations

import numpy as np
import pytest
from scipy import stats

from runner.reporting.significance import compare, holm, ranks, spread, verdicts


def samples(seed: int, n: int, mean: float = 0.0, first: int = 0) -> dict[int | str, float]:
    return {first + i: float(x) for i, x in enumerate(np.random.default_rng(seed).normal(mean, 1, n))}


@pytest.mark.parametrize("n", [3, 4, 10])
def test_equal_seeds_are_paired(n):
    a, b = samples(1, n), samples(2, n, 0.7)
    p, test = compare(a, b)
    assert test == "paired"
    assert p == pytest.approx(stats.ttest_rel(list(a.values()), list(b.values())).pvalue)


@pytest.mark.parametrize(("n", "m"), [(3, 5), (4, 4), (8, 3)])
def test_other_seeds_are_compared_by_welch(n, m):
    a, b = samples(1, n), samples(2, m, 0.7, first=100)
    p, test = compare(a, b)
    assert test == "welch"
    assert p == pytest.approx(stats.ttest_ind(list(a.values()), list(b.values()), equal_var=False).pvalue)


def test_pairing_follows_the_seed_and_not_the_order():
    a = {0: 1.0, 1: 2.0, 2: 4.0}
    b = {2: 4.1, 0: 1.2, 1: 2.1}
    assert compare(a, b)[0] == pytest.approx(stats.ttest_rel([1.0, 2.0, 4.0], [1.2, 2.1, 4.1]).pvalue)


def test_too_few_seeds_are_not_tested():
    assert math.isnan(compare(samples(1, 2), samples(2, 9))[0])
    assert math.isnan(compare({0: 1.0, 1: 2.0, 2: math.nan}, samples(2, 3))[0])


def test_without_noise():
    same = dict.fromkeys(range(3), 1.0)
    assert compare(same, same)[0] == 1.0
    assert compare(same, dict.fromkeys(range(3), 2.0))[0] == 0.0
    assert compare(same, dict.fromkeys(range(5, 8), 2.0)) == (0.0, "welch")


def test_holm_is_closed_testing_with_bonferroni():
    values = [0.01, 0.04, 0.03, 0.005, 0.5, 0.03]
    everything = range(len(values))
    subsets = list(chain.from_iterable(combinations(everything, k) for k in range(1, len(values) + 1)))
    # A hypothesis is rejected when every intersection it is part of is; so its p is the largest of theirs.
    wanted = [max(min(1.0, len(s) * min(values[i] for i in s)) for s in subsets if k in s) for k in everything]
    assert holm(values) == pytest.approx(wanted)
    assert holm([]) == []


def test_spread_and_interval():
    values = samples(3, 6)
    found = spread(values | {99: math.nan})
    assert (found.mean, found.std, found.n) == pytest.approx(
        (np.mean(list(values.values())), np.std(list(values.values()), ddof=1), 6)
    )
    low, high = stats.t.interval(0.95, 5, found.mean, found.std / math.sqrt(6))
    assert found.interval() == pytest.approx((high - low) / 2)
    assert math.isnan(spread({0: 1.0}).std) and math.isnan(spread({0: 1.0}).interval())


def test_verdicts_mark_the_best_the_close_and_the_few():
    rows = [
        {0: 0.50, 1: 0.51, 2: 0.52, 3: 0.50},
        {0: 0.49, 1: 0.52, 2: 0.515, 3: 0.50},
        {0: 0.10, 1: 0.11, 2: 0.12, 3: 0.11},
        {0: 0.45},
        {},
    ]
    found = verdicts(rows, "up")
    assert [verdict.mark if verdict else None for verdict in found] == ["best", "close", "worse", "unclear", None]
    raw = [compare(rows[i], rows[0])[0] for i in (1, 2)]
    assert [found[1].p, found[2].p] == pytest.approx(holm(raw))
    assert [v.mark for v in verdicts(rows[:3], "down")] == ["worse", "worse", "best"]


def test_one_row_has_nothing_to_be_compared_with():
    assert verdicts([{0: 1.0, 1: 2.0, 2: 3.0}], "up") == [None]


def test_ranks_are_those_of_scipy():
    values = [0.3, 0.1, 0.3, 0.9, 0.2]
    assert ranks(values, "down") == pytest.approx(stats.rankdata(values))
    assert ranks(values, "up") == pytest.approx(stats.rankdata([-v for v in values]))
    assert math.isnan(ranks([1.0, math.nan], "up")[1])
