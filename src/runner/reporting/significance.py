"""Is the difference noise? Tests of every setting against the best one, from a few seeds.

Paired by seed where two settings share their seeds (Student's t of the differences: equal seeds see equal initial
weights and examples), else Welch's t. The p values of one metric are Holm-corrected over its comparisons. With fewer
than `FEWEST` seeds nothing is tested: two differences say nothing about their own spread.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

FEWEST = 3
LEVEL = 0.05
Samples = Mapping[int | str, float]
"""Seed → value."""


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of n finite values; NaN where there are too few."""

    mean: float
    std: float
    n: int

    def interval(self, level: float = 0.95) -> float:
        """Half the width of the t-interval of the mean; NaN below two values."""
        if self.n < 2:
            return math.nan
        from scipy.special import stdtrit

        return float(stdtrit(self.n - 1, 0.5 + level / 2)) * self.std / math.sqrt(self.n)


@dataclass(frozen=True)
class Verdict:
    """What a comparison against the best says.

    Attributes:
        mark: "best", "close" (not distinguishable from it), "worse", or "unclear" (too few seeds to tell).
        p: Holm-corrected; NaN where nothing was tested.
        test: "paired" or "welch"; empty where nothing was tested.
    """

    mark: Literal["best", "close", "worse", "unclear"]
    p: float = math.nan
    test: str = ""


def spread(samples: Samples) -> Spread:
    """Mean and standard deviation (n - 1) of the finite values."""
    values = [value for value in samples.values() if math.isfinite(value)]
    if not values:
        return Spread(math.nan, math.nan, 0)
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Spread(mean, math.nan, 1)
    return Spread(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)), len(values))


def compare(a: Samples, b: Samples) -> tuple[float, str]:
    """Two-sided p of equal means, and which test gave it; (NaN, "") with too few seeds.

    Args:
        a, b: seed → value; paired when `FEWEST` or more seeds are in both and none is in one alone.
    """
    a = {seed: value for seed, value in a.items() if math.isfinite(value)}
    b = {seed: value for seed, value in b.items() if math.isfinite(value)}
    if min(len(a), len(b)) < FEWEST:
        return math.nan, ""
    if set(a) == set(b):
        differences = spread({seed: a[seed] - b[seed] for seed in a})
        return _p(differences.mean, differences.std**2 / differences.n, differences.n - 1), "paired"
    x, y = spread(a), spread(b)
    u, v = x.std**2 / x.n, y.std**2 / y.n
    freedom = (u + v) ** 2 / (u**2 / (x.n - 1) + v**2 / (y.n - 1)) if u + v > 0 else math.inf
    return _p(x.mean - y.mean, u + v, freedom), "welch"


def _p(difference: float, variance: float, freedom: float) -> float:
    if variance <= 0:
        return 1.0 if difference == 0 else 0.0
    from scipy.special import ndtr, stdtr

    t = -abs(difference) / math.sqrt(variance)
    return float(min(1.0, 2 * (stdtr(freedom, t) if math.isfinite(freedom) else ndtr(t))))


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979): sorted p values times m, m-1, …, made monotone, at most 1."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    corrected, floor = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        floor = max(floor, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = floor
    return corrected


def verdicts(samples: Sequence[Samples], better: Literal["up", "down"]) -> list[Verdict | None]:
    """The verdict on every row of one column; None for rows without a value, or where there is nothing to compare.

    Args:
        samples: one per row. better: whether more or less is better.
    """
    means = [spread(row).mean for row in samples]
    known = [i for i, mean in enumerate(means) if math.isfinite(mean)]
    found: list[Verdict | None] = [None] * len(samples)
    if len(known) < 2:
        return found
    sign = -1.0 if better == "up" else 1.0
    best = min(known, key=lambda i: sign * means[i])
    tests = {i: compare(samples[i], samples[best]) for i in known if i != best}
    tested = [i for i, (p, _) in tests.items() if not math.isnan(p)]
    corrected = dict(zip(tested, holm([tests[i][0] for i in tested]), strict=True))
    for i in known:
        if means[i] == means[best]:
            found[i] = Verdict("best")
        elif i in corrected:
            found[i] = Verdict("close" if corrected[i] >= LEVEL else "worse", corrected[i], tests[i][1])
        else:
            found[i] = Verdict("unclear")
    return found


def ranks(values: Sequence[float], better: Literal["up", "down"]) -> list[float]:
    """Rank of every value, 1 is best, ties share their mean rank; NaN where there is no value."""
    sign = -1.0 if better == "up" else 1.0
    keys = [sign * value for value in values]
    line = sorted(key for key in keys if math.isfinite(key))
    return [
        (bisect_left(line, key) + bisect_right(line, key) + 1) / 2 if math.isfinite(key) else math.nan for key in keys
    ]
