"""Metrics against scikit-learn, scipy, torchmetrics and numpy on all elements at once."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk

from runner.errors import UserError
from runner.tasks import metrics as own
from runner.tasks import variants
from runner.tasks.normals import median_of_histogram
from runner.tasks.token_tagging import entities, is_bio
from tests.tasks.cases import BIO, batch, make, measured


def _case(name: str, n: int = 8, seed: int = 0, **changes: Any) -> tuple[dict[str, float], np.ndarray, np.ndarray, Any]:
    """(metrics over three uneven batches, predictions, targets, task)."""
    task = make(name, **changes)
    prediction, target = batch(task, n, seed)
    borders = [slice(0, 1), slice(1, n - 2), slice(n - 2, n)]
    values = measured(task, [(prediction[b], target[b]) for b in borders])
    return values, prediction.double().numpy(), target.numpy(), task


@pytest.mark.parametrize("name", ["segmentation", "human_parts"])
def test_segmentation(name: str) -> None:
    values, x, y, _ = _case(name)  # the last class is in no target, only in predictions
    said, true = x.argmax(1)[y >= 0], y[y >= 0]
    assert values["miou"] == pytest.approx(sk.jaccard_score(true, said, average="macro"))
    assert values["pixel_acc"] == pytest.approx(sk.accuracy_score(true, said))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of the class without a target
        assert values["mean_acc"] == pytest.approx(sk.balanced_accuracy_score(true, said))


def test_classes_that_occur_nowhere_are_left_out_of_the_mean() -> None:
    task = make("segmentation", num_classes=9)
    target = torch.tensor([[[0, 0], [1, -100]]])
    prediction = torch.nn.functional.one_hot(torch.tensor([[[0, 1], [1, 5]]]), 9).movedim(-1, 1).float()
    assert measured(task, [(prediction, target)])["miou"] == pytest.approx(0.5)  # 1/2 for both; 5 is not labelled
    from torchmetrics.classification import MulticlassJaccardIndex

    theirs = MulticlassJaccardIndex(9, ignore_index=-100)(prediction, target)
    assert float(theirs) == pytest.approx(0.5)


def test_counts_are_those_of_a_confusion_matrix() -> None:
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    rng = torch.Generator().manual_seed(0)
    said, true = torch.randint(0, 5, (2, 400), generator=rng)
    true[::7] = -100
    matrix = multiclass_confusion_matrix(said, true, 5, ignore_index=-100)
    expected = torch.stack([matrix.diag(), matrix.sum(0), matrix.sum(1)])
    assert torch.equal(own.class_counts(said, true, 5, -100), expected)


def test_classification() -> None:
    values, x, y, task = _case("classification", n=200)
    known = y >= 0
    said, true = x.argmax(1)[known], y[known]
    assert values["accuracy"] == pytest.approx(sk.accuracy_score(true, said))
    assert values["f1"] == pytest.approx(sk.f1_score(true, said, average="macro"))
    assert values["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(true, said))
    assert values["mcc"] == pytest.approx(sk.matthews_corrcoef(true, said))
    assert values["top5_accuracy"] == pytest.approx(sk.top_k_accuracy_score(true, x[known], k=5, labels=range(7)))
    assert "top5_accuracy" not in make("classification", num_classes=5).directions
    assert task.loss_kind == "classification"


def test_matthews_of_a_constant_side_is_undefined() -> None:
    task = make("classification", num_classes=2)
    values = measured(task, [(torch.tensor([[1.0, 0.0]] * 4), torch.tensor([0, 1, 0, 1]))])
    assert math.isnan(values["mcc"])
    assert values["accuracy"] == 0.5


def test_multi_label() -> None:
    values, x, y, _ = _case("multi_label", n=60)
    f1s, areas, right, said_n, true_n, same, total = [], [], 0, 0, 0, 0, 0
    for i in range(3):
        known = ~np.isnan(y[:, i])
        said, true = x[known, i] >= 0, y[known, i] == 1
        f1s.append(sk.f1_score(true, said))
        areas.append(sk.roc_auc_score(true, x[known, i]))
        right, said_n, true_n = right + (said & true).sum(), said_n + said.sum(), true_n + true.sum()
        same, total = same + (said == true).sum(), total + known.sum()
    assert values["f1"] == pytest.approx(np.mean(f1s))
    assert values["f1_micro"] == pytest.approx(2 * right / (said_n + true_n))
    assert values["accuracy"] == pytest.approx(same / total)
    assert values["auroc"] == pytest.approx(np.mean(areas))


def test_multi_label_leaves_out_labels_that_say_nothing() -> None:
    """Label 0 never occurs, label 1 is never given, label 2 is ranked perfectly."""
    nan = math.nan
    target = torch.tensor([[0.0, nan, 1.0], [0.0, nan, 0.0], [0.0, nan, nan]])
    prediction = torch.tensor([[-1.0, 5.0, 2.0], [-2.0, 5.0, 1.0], [-3.0, 5.0, 9.0]])
    values = measured(make("multi_label"), [(prediction, target)])
    assert values == pytest.approx({"f1": 2 / 3, "f1_micro": 2 / 3, "accuracy": 4 / 5, "auroc": 1.0})


def test_binary() -> None:
    values, x, y, _ = _case("binary", n=120)  # predictions have one decimal: many ties
    known = ~np.isnan(y)
    scores, true = x[known, 0], y[known] == 1
    assert values["auroc"] == pytest.approx(sk.roc_auc_score(true, scores))
    assert values["average_precision"] == pytest.approx(sk.average_precision_score(true, scores))
    assert values["accuracy"] == pytest.approx(sk.accuracy_score(true, scores >= 0))
    assert values["f1"] == pytest.approx(sk.f1_score(true, scores >= 0))


def test_binary_with_one_kind_of_label() -> None:
    task, scores = make("binary"), torch.tensor([[1.0], [-1.0]])
    negative = measured(task, [(scores, torch.zeros(2))])
    assert math.isnan(negative["auroc"])
    assert math.isnan(negative["average_precision"])
    assert negative["accuracy"] == 0.5
    positive = measured(task, [(scores, torch.ones(2))])
    assert math.isnan(positive["auroc"])
    assert positive["average_precision"] == 1.0


def test_confident_scores_keep_their_order() -> None:
    """In float32 the sigmoid of 18 and of 20 is 1: a perfect ranking would look like a tie."""
    values = measured(make("binary"), [(torch.tensor([[18.0], [20.0]]), torch.tensor([0.0, 1.0]))])
    assert values["auroc"] == 1.0


def test_regression() -> None:
    values, x, y, _ = _case("regression", n=90, shift=1.5, scale=2.0)
    known = ~np.isnan(y)
    said, true = x[known, 0] * 2.0 + 1.5, y[known].astype(float)
    assert values["mae"] == pytest.approx(sk.mean_absolute_error(true, said))
    assert values["rmse"] == pytest.approx(math.sqrt(sk.mean_squared_error(true, said)))
    assert values["pearson"] == pytest.approx(stats.pearsonr(said, true).statistic)
    assert values["spearman"] == pytest.approx(stats.spearmanr(said, true).statistic)


@pytest.mark.parametrize("said", [[[1.0], [1.0], [1.0]], [[1.0]]])
def test_correlation_of_constants_is_undefined(said: list[list[float]]) -> None:
    values = measured(make("regression"), [(torch.tensor(said), torch.arange(float(len(said))))])
    assert math.isnan(values["pearson"])
    assert math.isnan(values["spearman"])
    assert math.isfinite(values["mae"])


def test_correlation_survives_an_offset_and_a_scale() -> None:
    """A large mean or a tiny scale must not drown the correlation (as an epsilon in the denominator does)."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=50), rng.normal(size=50)
    expected = stats.pearsonr(a, b).statistic
    assert float(own.correlation(torch.from_numpy(a * 1e-9), torch.from_numpy(b))) == pytest.approx(expected)
    assert float(own.correlation(torch.from_numpy(a + 1e6), torch.from_numpy(b))) == pytest.approx(expected, rel=1e-6)


def test_ranks() -> None:
    values = np.random.default_rng(0).integers(0, 20, 200).astype(float)
    assert np.array_equal(own.mid_ranks(torch.from_numpy(values)).numpy(), stats.rankdata(values))


@pytest.mark.parametrize("space", ["metres", "log", "inverse"])
def test_depth(space: str) -> None:
    values, x, y, _ = _case("depth", space=space)
    metres = {"metres": lambda v: v, "log": np.exp, "inverse": lambda v: 1 / np.maximum(v, 1e-3)}[space](x)
    with np.errstate(invalid="ignore"):
        p, t = metres[y > 0], y[y > 0].astype(float)
    assert values["abs_err"] == pytest.approx(abs(p - t).mean())
    assert values["rel_err"] == pytest.approx((abs(p - t) / t).mean())
    assert values["rmse"] == pytest.approx(math.sqrt(((p - t) ** 2).mean()))
    p = np.maximum(p, 1e-3)  # some predictions are below 0
    assert values["rmse_log"] == pytest.approx(math.sqrt(((np.log(p) - np.log(t)) ** 2).mean()))
    for i in (1, 2, 3):
        assert values[f"delta{i}"] == pytest.approx((np.maximum(p / t, t / p) < 1.25**i).mean())


def test_normals() -> None:
    values, x, y, _ = _case("normals", n=40)
    x, y = np.moveaxis(x, 1, -1).reshape(-1, 3), np.moveaxis(y, 1, -1).reshape(-1, 3).astype(float)
    known = ~np.isnan(y).any(1)
    cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    angle = np.degrees(np.arccos(np.clip(cosine[known], -1, 1)))
    assert values["mean"] == pytest.approx(angle.mean(), rel=1e-6)
    assert values["median"] == pytest.approx(np.median(angle), abs=0.01)
    for limit in (11.25, 22.5, 30):
        assert values[f"within_{limit:g}"] == pytest.approx((angle < limit).mean())


def test_normals_are_exact_at_the_ends() -> None:
    """Angles of 0°, 180° and 0.001°; the arc cosine of a float32 is off by up to 0.03° there."""
    target = torch.tensor([0.6, 0.0, 0.8]).reshape(1, 3, 1, 1)
    small = torch.tensor([0.6 + 0.8 * math.radians(1e-3), 0.0, 0.8 - 0.6 * math.radians(1e-3)]).reshape(1, 3, 1, 1)
    task = make("normals")
    assert measured(task, [(7 * target, target)])["mean"] == pytest.approx(0, abs=1e-5)
    assert measured(task, [(-target, target)])["mean"] == pytest.approx(180)
    assert measured(task, [(small, target)])["mean"] == pytest.approx(1e-3, rel=1e-2)
    assert measured(task, [(-target, target)])["median"] == pytest.approx(180, abs=0.01)


@pytest.mark.parametrize("values", [[3.1], [1.0, 2.0], [1.0, 170.0], [5.0] * 7 + [90.0] * 7, [0.0, 0.0, 44.4, 180.0]])
def test_median(values: list[float]) -> None:
    counts = np.histogram(values, bins=18000, range=(0, 180))[0]
    assert median_of_histogram(torch.from_numpy(counts).double(), 0.01) == pytest.approx(np.median(values), abs=0.01)


def _f(true: np.ndarray, share: np.ndarray, threshold: float, beta_squared: float) -> float:
    return float(sk.fbeta_score(true, share >= threshold, beta=math.sqrt(beta_squared), zero_division=0))


def test_saliency_and_edge() -> None:
    thresholds = np.arange(1, 20) * 0.05
    for name, beta_squared in (("saliency", 0.3), ("saliency", 1.0), ("edge", 1.0)):
        changes = {"beta_squared": beta_squared} if name == "saliency" else {}
        values, x, y, _ = _case(name, seed=5, **changes)
        known = ~np.isnan(y)
        share, true = 1 / (1 + np.exp(-x[known])), y[known] == 1
        best = max(_f(true, share, threshold, beta_squared) for threshold in thresholds)
        if name == "edge":
            assert values["pixel_f_best"] == pytest.approx(best)
            assert values["pixel_f_50"] == pytest.approx(_f(true, share, 0.5, 1.0))
        else:
            assert values["max_f"] == pytest.approx(best)
            assert values["mae"] == pytest.approx(abs(share - true).mean(), rel=1e-6)


def test_the_sigmoid_is_applied_once() -> None:
    """Logits of probability 0.4: with a second sigmoid every pixel would pass 0.5."""
    prediction = torch.full((1, 1, 2, 2), math.log(0.4 / 0.6))
    target = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    assert measured(make("saliency"), [(prediction, target)])["mae"] == pytest.approx((0.6 + 3 * 0.4) / 4)
    assert measured(make("edge"), [(prediction, target)])["pixel_f_50"] == 0.0


def test_a_threshold_counts_what_reaches_it() -> None:
    """A logit of exactly 0 has probability 0.5 and is said to be positive."""
    target = torch.tensor([[[[1.0, 0.0, 0.0]]]])
    assert measured(make("edge"), [(torch.tensor([[[[0.0, -1e-6, -9.0]]]]), target)])["pixel_f_50"] == 1.0


def test_maps_without_a_positive_pixel_have_no_f() -> None:
    prediction, target = torch.randn(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    assert math.isnan(measured(make("saliency"), [(prediction, target)])["max_f"])
    assert math.isfinite(measured(make("saliency"), [(prediction, target)])["mae"])


@pytest.mark.parametrize("name", ["binary", "regression", "depth", "normals", "saliency"])
def test_predictions_that_are_nan_show_in_the_metrics(name: str) -> None:
    task = make(name)
    prediction, target = batch(task, 6, 0)
    values = measured(task, [(torch.full_like(prediction, torch.nan), target)])
    metric = {"binary": "auroc", "regression": "spearman", "depth": "rmse", "normals": "mean", "saliency": "mae"}[name]
    assert math.isnan(values[metric])


def test_token_tagging() -> None:
    values, x, y, _ = _case("token_tagging", n=30)
    known = y >= 0
    said, true = x.argmax(-1), y
    assert values["accuracy"] == pytest.approx(sk.accuracy_score(true[known], said[known]))
    assert values["f1"] == pytest.approx(sk.f1_score(true[known], said[known], average="macro"))
    right = found = wanted = 0
    for s, t, k in zip(said, true, known, strict=True):
        a, b = _brute_entities([BIO[i] for i in s[k]]), _brute_entities([BIO[i] for i in t[k]])
        right, found, wanted = right + len(a & b), found + len(a), wanted + len(b)
    assert right > 0
    assert values["span_f1"] == pytest.approx(2 * right / (found + wanted))


def _brute_entities(tags: list[str]) -> set[tuple[str, int, int]]:
    """Every (i, j) such that tags[i:j] is one entity that cannot be made longer."""
    found = set()
    for i in range(len(tags)):
        for j in range(i + 1, len(tags) + 1):
            kind = tags[i][2:]
            opens = tags[i][0] == "B" or (tags[i][0] == "I" and (i == 0 or tags[i - 1][2:] != kind))
            goes_on = all(tag == f"I-{kind}" for tag in tags[i + 1 : j])
            ends = j == len(tags) or tags[j] != f"I-{kind}"
            if opens and goes_on and ends:
                found.add((kind, i, j))
    return found


def test_entities_by_hand() -> None:
    tags = ["B-per", "I-per", "O", "I-loc", "B-loc", "I-per", "B-per", "B-per", "I-per"]
    expected = {("per", 0, 2), ("loc", 3, 4), ("loc", 4, 5), ("per", 5, 6), ("per", 6, 7), ("per", 7, 9)}
    assert entities(tags) == expected == _brute_entities(tags)
    assert entities([]) == set()
    assert is_bio(["O", "B-x"])
    assert not is_bio(["NOUN", "VERB", "O"])


def test_tags_that_are_not_bio_have_no_span_f1() -> None:
    task = make("token_tagging", class_names=["NOUN", "VERB", "DET", "ADJ", "X"])
    assert list(task.directions) == ["accuracy", "f1"]
    assert task.headline == "accuracy"
    assert make("token_tagging").headline == "span_f1"


VARIANTS = {
    "segmentation": ["miou_batch", "pixel_acc_image", "miou_image_median"],
    "human_parts": ["mean_acc_batch"],
    "depth": ["rmse_image", "delta1_batch", "abs_err_batch_median"],
    "normals": ["median_batch", "within_30_image", "median_image_median"],
    "saliency": ["max_f_batch", "mae_image"],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_means_and_medians_of_the_metric_of_parts(name: str) -> None:
    task, plain = make(name, variants=VARIANTS[name]), make(name)
    batches = [batch(task, n, seed) for seed, n in enumerate((3, 1, 2))]
    values = measured(task, batches)
    overall = measured(plain, batches)
    assert set(values) == set(task.directions) == {*overall, *VARIANTS[name]}
    assert {metric: values[metric] for metric in overall} == overall
    images = [(p[i : i + 1], t[i : i + 1]) for p, t in batches for i in range(len(t))]
    for variant in VARIANTS[name]:
        metric, ending = variants.split_name(variant)
        found = [measured(plain, [part])[metric] for part in (batches if "_batch" in ending else images)]
        expected = np.median(found) if ending.endswith("_median") else np.mean(found)
        assert values[variant] == pytest.approx(expected)
        assert task.directions[variant] == task.directions[metric]


def test_parts_without_a_label_do_not_count_in_variants() -> None:
    task = make("depth", variants=["rmse_image"])
    prediction, target = batch(task, 2, 0)
    alone = measured(task, [(prediction[:1], target[:1])])["rmse_image"]
    target[1] = torch.nan
    assert measured(task, [(prediction, target)])["rmse_image"] == pytest.approx(alone)


def test_unknown_variants_are_refused_together() -> None:
    with pytest.raises(UserError) as caught:
        make("normals", variants=["median_batc", "mean", "miou_batch"])
    assert [p.what.split("'")[3] for p in caught.value.problems] == ["median_batc", "mean", "miou_batch"]
    assert "median_batch" in caught.value.problems[0].hint


def test_absent_classes_count_as_zero_where_released_code_has_it_so() -> None:
    target = torch.tensor([[[0, 0], [1, -100]]])
    prediction = torch.nn.functional.one_hot(torch.tensor([[[0, 1], [1, 5]]]), 10).movedim(-1, 1).float()
    task = make("segmentation", num_classes=10, variants=["miou_all", "miou_batch"])
    values = measured(task, [(prediction, target)])
    assert set(values) == set(task.directions)
    assert values["miou"] == pytest.approx(0.5)
    assert values["miou_all"] == pytest.approx(2 * 0.5 / 10)
