"""Suppression, thinning and correspondence against plain loops, brute force, scipy and the Berkeley program."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, optimize, sparse
from scipy.sparse import csgraph

from runner.errors import UserError
from runner.tasks.boundaries import metric as metric_module
from runner.tasks.boundaries.counts import THRESHOLDS, boundary_counts
from runner.tasks.boundaries.matching import maximum_matchings
from runner.tasks.boundaries.metric import BoundaryMetrics, boundary_scores
from runner.tasks.boundaries.suppression import suppress
from runner.tasks.boundaries.thinning import thin_map
from tests.tasks.cases import make, measured

# ---- the published procedure, written out one pixel at a time -------------------------------------------------------


def plain_suppress(edge: np.ndarray) -> np.ndarray:
    """gradient2, convTri and edgesNmsMex(E, O, 1, 5, 1.01) of Dollár's toolboxes, in double precision."""
    triangle = np.array([1, 2, 3, 4, 5, 4, 3, 2, 1]) / 25
    smooth = ndimage.correlate1d(ndimage.correlate1d(edge, triangle, axis=0), triangle, axis=1)  # mirrored borders
    dy, dx = np.gradient(smooth)
    dxx, dxy, dyy = np.gradient(dx, axis=1), np.gradient(dx, axis=0), np.gradient(dy, axis=0)
    angle = np.mod(np.arctan(dyy * np.sign(-dxy) / (dxx + 1e-5)), np.pi)
    height, width = edge.shape

    def at(x: float, y: float) -> float:
        x, y = min(max(x, 0), width - 1.001), min(max(y, 0), height - 1.001)
        i, j = int(x), int(y)
        u, v = x - i, y - j
        upper = edge[j, i] * (1 - u) + edge[j, i + 1] * u
        return float(upper * (1 - v) + (edge[j + 1, i] * (1 - u) + edge[j + 1, i + 1] * u) * v)

    kept = edge.copy()
    for y in range(height):
        for x in range(width):
            c, s = math.cos(angle[y, x]), math.sin(angle[y, x])
            if any(1.01 * edge[y, x] < at(x + d * c, y + d * s) for d in (-1, 1)):
                kept[y, x] = 0
    border = min(5, height // 2, width // 2)
    for i in range(border):
        for part in (kept[:, i], kept[:, width - 1 - i], kept[i], kept[height - 1 - i]):
            part *= i / border
    return kept


def plain_thin(binary: np.ndarray) -> np.ndarray:
    """Lam, Lee and Suen 1992, p. 879, as the documentation of MATLAB's bwmorph states it."""
    on = np.pad(binary.astype(int), 1)
    ring = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
    while True:
        before = on.copy()
        for turn in (0, 1):
            gone = []
            for y, x in zip(*np.nonzero(on), strict=True):
                n = [0, *(on[y + dy, x + dx] for dy, dx in ring)]  # n[1] … n[8]
                n.append(n[1])
                crossings = sum(not n[2 * i - 1] and (n[2 * i] or n[2 * i + 1]) for i in range(1, 5))
                first = sum(bool(n[2 * k - 1] or n[2 * k]) for k in range(1, 5))
                second = sum(bool(n[2 * k] or n[2 * k + 1]) for k in range(1, 5))
                if turn == 0:
                    side = (n[2] or n[3] or not n[8]) and n[1]
                else:
                    side = (n[6] or n[7] or not n[4]) and n[5]
                if crossings == 1 and 2 <= min(first, second) <= 3 and not side:
                    gone.append((y, x))
            for place in gone:
                on[place] = 0
        if (on == before).all():
            return on[1:-1, 1:-1].astype(bool)


def pairs(predicted: np.ndarray, true: np.ndarray, max_dist: float) -> np.ndarray:
    """(n, m) whether a predicted and a true pixel may be matched."""
    a, b = np.argwhere(predicted), np.argwhere(true)
    reach = max_dist * math.hypot(*true.shape)
    return ((a[:, None] - b[None]) ** 2).sum(-1) <= reach**2


def largest(possible: np.ndarray) -> int:
    """Hopcroft and Karp's, by scipy."""
    return int((csgraph.maximum_bipartite_matching(sparse.csr_matrix(possible)) >= 0).sum()) if possible.size else 0


def wavy(seed: int, shape: tuple[int, int] = (36, 44)) -> tuple[np.ndarray, np.ndarray]:
    """(strength uint8, truth): a smooth random map, and truth edges along level lines of a shifted one."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=shape), 3)
    field /= field.std()
    other = field + 0.3 * ndimage.gaussian_filter(rng.normal(size=shape), 2) / 0.15
    strength = 1 / (1 + np.exp(-3 + 6 * np.abs(other) + 0.3 * rng.normal(size=shape)))
    truth = (field > 0) != (np.roll(field, 1, 1) > 0)
    return (255 * strength).astype(np.uint8), truth


# ---- the parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "seed"), [((40, 31), 0), ((17, 50), 1), ((7, 6), 2), ((3, 3), 3)])
def test_suppression_is_the_published_one(shape: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    edge = ndimage.gaussian_filter(rng.random(shape), 1.2)
    expected, found = plain_suppress(edge), suppress(edge.astype(np.float32))
    close = np.abs(expected - found) < 1e-5
    assert close.mean() > 0.998  # ties fall either way in single precision
    if min(shape) > 10:
        assert 0.05 < (found > 0).mean() < 0.5


def test_suppression_leaves_a_ridge_one_pixel_wide_whatever_its_direction() -> None:
    y, x = np.mgrid[:61, :61] - 30.0
    for degrees in range(5, 180, 15):  # at exactly 0 the published direction is undefined, and thinning does the work
        turn = math.radians(degrees)
        distance = np.abs(x * math.sin(turn) - y * math.cos(turn))
        kept = suppress(np.exp(-(distance**2) / 8).astype(np.float32))[10:-10, 10:-10] > 0.02
        assert distance[10:-10, 10:-10][kept].max() < 1.2
        assert 35 < kept.sum() < 80


def test_maps_too_small_for_a_ridge_have_none() -> None:
    assert not suppress(np.ones((2, 9), np.float32)).any()
    assert not suppress(np.ones((1, 1), np.float32)).any()


@pytest.mark.parametrize("seed", range(4))
def test_thinning_is_that_of_bwmorph(seed: int) -> None:
    rng = np.random.default_rng(seed)
    blobs = ndimage.gaussian_filter(rng.normal(size=(30, 37)), seed) > 0
    assert np.array_equal(thin_map(blobs), plain_thin(blobs))


def test_thinning_by_hand() -> None:
    bar = np.zeros((5, 9), bool)
    bar[1:4, 1:8] = True
    assert np.array_equal(np.argwhere(thin_map(bar)), [[2, c] for c in range(2, 7)])
    assert thin_map(np.ones((1, 1), bool)).all()
    assert not thin_map(np.zeros((4, 4), bool)).any()


def test_matching_of_sets_that_come_and_go() -> None:
    """Pixels vanish at lower thresholds as thinning makes them: every size is that of a matching from scratch."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        possible = rng.random((40, 30)) < rng.choice([0.04, 0.08, 0.2])
        possible[:, rng.random(30) < 0.3] = False  # some are within nobody's reach
        on = (np.arange(25)[None] < rng.integers(0, 26, (40, 1))) & (rng.random((40, 25)) < 0.85)
        start = np.concatenate([[0], possible.sum(1).cumsum()])
        sizes = maximum_matchings(on.astype(np.uint8), start, np.nonzero(possible)[1], 30)
        assert sizes.tolist() == [largest(possible[on[:, k]]) for k in range(25)]


def test_matching_gives_as_many_pairs_as_the_benchmarks_assignment() -> None:
    """The cheapest assignment where a pair costs its distance and a pixel alone 100 times the largest distance."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        a, b = np.argwhere(rng.random((9, 9)) < 0.3), np.argwhere(rng.random((9, 9)) < 0.3)
        distance = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
        possible = distance <= 2.0
        n, m = possible.shape
        cost = np.full((n + m, n + m), 1e9)
        cost[:n, :m] = np.where(possible, distance, 1e9)
        cost[:n, m:][np.diag_indices(n)] = 200.0
        cost[n:, :m][np.diag_indices(m)] = 200.0
        cost[n:, m:] = 0.0
        rows, columns = optimize.linear_sum_assignment(cost)
        assigned = int(((rows < n) & (columns < m)).sum())
        start = np.concatenate([[0], possible.sum(1).cumsum()])
        sizes = maximum_matchings(np.ones((n, 1), np.uint8), start, np.nonzero(possible)[1], m)
        assert sizes.tolist() == [assigned]


# ---- the whole ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "max_dist"), [(0, 0.02), (1, 0.05), (2, 0.11)])
def test_counts_are_those_of_every_threshold_by_itself(seed: int, max_dist: float) -> None:
    strength, truth = wavy(seed)
    counts = boundary_counts(strength, truth.astype(np.uint8), max_dist)
    kept, thinned = suppress(strength.astype(np.float32) / np.float32(255)), thin_map(truth)
    assert (counts[2] == thinned.sum()).all()
    for k in range(0, 99, 7):
        predicted = thin_map(kept > THRESHOLDS[k])
        assert counts[1, k] == predicted.sum()
        assert counts[0, k] == largest(pairs(predicted, thinned, max_dist))
    assert 20 < counts[0, 0] < counts[1, 0]


BERKELEY = {
    (10, 0.02): [319, 306, 288, 263],
    (11, 0.05): [384, 374, 354, 323],
    (12, 0.05): [412, 405, 390, 352],
    (13, 0.02): [290, 271, 244, 200],
}
"""Pixels that BSDS500's correspondPixels, compiled, matches between the same maps at 0.05, 0.3, 0.55 and 0.8.

Its random connections between outliers lose it a pair here and there: 0 to 2 of these."""


@pytest.mark.parametrize("case", BERKELEY)
def test_counts_are_those_of_the_benchmarks_own_program(case: tuple[int, float]) -> None:
    strength, truth = wavy(case[0], (60, 80))
    counts = boundary_counts(strength, truth.astype(np.uint8), case[1])
    more = counts[0, [4, 29, 54, 79]] - BERKELEY[case]
    assert more[:3].tolist() == [0, 0, 0]
    assert 0 <= more[3] <= 2


def test_padding_is_cut_off_and_unknown_pixels_are_off() -> None:
    strength, truth = wavy(3)
    plain = boundary_counts(strength, truth.astype(np.uint8), 0.03)
    padded_truth = np.pad(truth.astype(np.uint8), ((5, 3), (0, 9)), constant_values=2)
    padded = boundary_counts(np.pad(strength, ((5, 3), (0, 9)), constant_values=255), padded_truth, 0.03)
    assert np.array_equal(plain, padded)
    hidden = truth.astype(np.uint8)
    hidden[10:20, 10:30] = 2
    fewer = boundary_counts(strength, hidden, 0.03)
    assert (fewer <= plain + 2).all()
    assert fewer[1, 0] < plain[1, 0]
    assert not boundary_counts(strength, np.full(truth.shape, 2, np.uint8), 0.03).any()


def test_scores_by_hand() -> None:
    """Three distinct operating points; the best is 2·60/(80 + 100)."""
    counts = np.zeros((3, 99))
    counts[2] = 100
    counts[:2, :40] = [[90], [300]]
    counts[:2, 40:70] = [[60], [80]]
    counts[:2, 70:] = [[0], [0]]
    best = np.array([70.0, 80.0, 100.0])
    values = boundary_scores({"boundary": torch.from_numpy(counts), "boundary_best": torch.from_numpy(best)})
    assert values["ods_f"] == pytest.approx(120 / 180)
    assert values["ois_f"] == pytest.approx(140 / 180)
    levels = np.arange(101) / 100
    curve = np.interp(levels, [0.0, 0.6, 0.9], [1.0, 0.75, 0.3]) * (levels <= 0.9)
    assert values["ap"] == pytest.approx(curve.sum() / 100)


def test_a_perfect_and_a_shifted_prediction() -> None:
    y, x = torch.meshgrid(torch.arange(60) - 30.0, torch.arange(80) - 40.0, indexing="ij")
    distance = ((x.square() + y.square()).sqrt() - 20).abs()[None, None]
    truth = (distance < 0.6).float()
    blurred = 6 - distance.square()
    values = measured(make("edge", max_dist=0.0101), [(blurred, truth)])  # one pixel
    assert values["ods_f"] > 0.95
    assert values["ois_f"] == values["ods_f"]
    assert values["pixel_f_best"] < 0.9
    far = measured(make("edge", max_dist=0.0101), [(blurred.roll(5, -2), truth)])
    near = measured(make("edge", max_dist=0.06), [(blurred.roll(5, -2), truth)])
    assert far["ods_f"] < 0.5
    assert near["ods_f"] > 0.95


def test_without_the_correspondence() -> None:
    task = make("edge", max_dist=None, headline="pixel_f_best")
    assert set(task.directions) == {"pixel_f_best", "pixel_f_50"}
    assert not isinstance(task.metrics(), BoundaryMetrics)
    with pytest.raises(UserError, match="no metric 'ods_f'"):
        make("edge", max_dist=None)


def test_helper_processes_count_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_module, "SMALL", 0)
    cases = [wavy(seed) for seed in range(4)]
    prediction = torch.stack([torch.from_numpy(s / 255.0).clamp(0.01, 0.99).logit()[None] for s, _ in cases]).float()
    truth = torch.stack([torch.from_numpy(t)[None] for _, t in cases]).float()
    results = []
    for processes in (0, 2):
        monkeypatch.setattr(metric_module, "spare_cores", lambda processes=processes: processes)
        metrics = make("edge").metrics()
        assert isinstance(metrics, BoundaryMetrics)
        assert metrics.processes == processes
        metrics.update(prediction[:1], truth[:1])
        metrics.reset()
        metrics.update(prediction[:3], truth[:3])
        metrics.update(prediction[3:], truth[3:])
        assert len(metrics._waiting) <= 2 * processes
        results.append(metrics.compute())
        assert metrics.compute() == results[-1]
    assert results[0] == results[1]
