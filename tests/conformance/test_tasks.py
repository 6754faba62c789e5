"""What every option of configs/task keeps to."""

from __future__ import annotations

import ast
import importlib
import inspect
import math
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from runner.errors import RunFailed, UserError
from runner.tasks.base import Task
from tests.tasks.cases import CONFIGS, NAMES, batch, join, make, measured, unlabelled


@pytest.fixture(params=NAMES)
def task(request: pytest.FixtureRequest) -> Task:
    return make(request.param)


def test_expected_options() -> None:
    assert set(NAMES) >= {
        *("segmentation", "human_parts", "saliency", "depth", "normals", "edge"),
        *("classification", "multi_label", "binary", "regression", "token_tagging"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_config_opens_with_what_a_person_needs(name: str) -> None:
    lines = (CONFIGS / f"{name}.yaml").read_text().splitlines()
    comments = list(lines[: lines.index(next(x for x in lines if x.startswith("_target_")))])
    assert comments[0].startswith("# ")
    assert comments[0].endswith(".")
    assert [c.split(":")[0] for c in comments[1:]] in (["# cost", "# run"], ["# paper", "# cost", "# run"])
    assert all("  # " in line for line in lines if ":" in line and not line.startswith(("#", "_target_")))


@pytest.mark.parametrize("name", NAMES)
def test_config_defaults_equal_the_signature(name: str) -> None:
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    module, _, attribute = config.pop("_target_").rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), attribute)).parameters
    keys = {k: p.default for k, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert list(config) == list(keys)
    for key, value in config.items():
        default = keys[key]
        assert value == (
            "???" if default is inspect.Parameter.empty else list(default) if isinstance(default, tuple) else default
        )


@pytest.mark.parametrize("name", NAMES)
def test_kinds_are_readable_without_importing(name: str) -> None:
    module, _, attribute = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["_target_"].rpartition(".")
    file = CONFIGS.parents[1] / "src" / (module.replace(".", "/") + ".py")
    cls = next(n for n in ast.parse(file.read_text()).body if isinstance(n, ast.ClassDef) and n.name == attribute)
    constants = {n.targets[0].id: n.value.value for n in cls.body if isinstance(n, ast.Assign)}  # type: ignore[attr-defined]
    assert constants["kind"] in ("dense", "pooled", "token")
    assert constants["loss_kind"] in ("classification", "regression")


def test_metrics_have_directions_and_a_headline(task: Task) -> None:
    values = measured(task, [batch(task, 6, 0)])
    assert set(values) == set(task.directions)
    assert set(task.directions.values()) <= {"up", "down"}
    assert task.headline in task.directions
    assert all(isinstance(value, float) and math.isfinite(value) for value in values.values())
    hint = get_type_hints(type(task).__init__)["headline"]
    choices = {x for h in (hint, *get_args(hint)) for x in get_args(h) if isinstance(x, str)}
    assert choices >= set(task.directions)


@pytest.mark.parametrize("name", NAMES)
def test_headline_can_be_chosen(name: str) -> None:
    for metric in [*make(name).directions, "loss"]:
        assert make(name, headline=metric).headline == metric
    with pytest.raises(UserError, match="no metric 'nonsense'"):
        make(name, headline="nonsense")


@pytest.mark.parametrize("name", NAMES)
def test_head_of_its_own(name: str) -> None:
    assert make(name).head is None
    assert make(name, head={"_target_": "runner.x.Y", "width": 3}).head == {"_target_": "runner.x.Y", "width": 3}


def test_loss_does_not_depend_on_the_split(task: Task) -> None:
    parts = [batch(task, n, seed) for seed, n in enumerate((1, 4, 2))]
    whole = join(parts)
    torch.testing.assert_close(sum(task.loss_sum(p, t) for p, t in parts), task.loss_sum(*whole), rtol=1e-5, atol=1e-5)
    assert sum(float(task.loss_count(t)) for _, t in parts) == float(task.loss_count(whole[1])) > 0


def test_gradient_of_an_example_does_not_depend_on_the_others(task: Task) -> None:
    prediction, target = batch(task, 5, 1)
    together = _gradient(task, prediction, target)
    alone = torch.cat([_gradient(task, prediction[i : i + 1], target[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


VARIANTS = [
    *((name, {}) for name in NAMES),
    ("segmentation", {"class_weights": [0.5, 2.0, 1.0, 0.0], "label_smoothing": 0.1}),
    ("classification", {"class_weights": [1.0, 2.0, 3.0, 0.0, 0.5, 1.0, 1.0], "label_smoothing": 0.2}),
    ("token_tagging", {"class_weights": [0.1, 1.0, 1.0, 1.0, 1.0]}),
    ("multi_label", {"positive_weight": 3.0}),
    ("edge", {"positive_weight": None}),
    *(("depth", {"loss": loss, "space": "log"}) for loss in ("l2", "berhu", "silog")),
    ("normals", {"loss": "l1"}),
    ("regression", {"loss": "smooth_l1"}),
]


@pytest.mark.parametrize(("name", "changes"), VARIANTS, ids=str)
def test_losses_of_examples_are_those_of_batches_of_one(name: str, changes: dict) -> None:
    task = make(name, **changes)
    prediction, target = batch(task, 5, 4)
    target[3] = unlabelled(target[3])
    prediction.requires_grad_()
    losses_B, counts_B = task.example_losses(prediction, target), task.example_counts(target)
    torch.testing.assert_close(losses_B, Task.example_losses(task, prediction, target))
    assert torch.equal(counts_B, Task.example_counts(task, target))
    assert losses_B[3] == counts_B[3] == 0
    weights_B = torch.arange(1.0, 6.0)  # the gradient of each, not only of their sum
    got, want = (
        torch.autograd.grad((weights_B * losses).sum(), prediction)[0]
        for losses in (losses_B, Task.example_losses(task, prediction, target))
    )
    torch.testing.assert_close(got, want)


def test_unlabelled_elements_do_not_count(task: Task) -> None:
    prediction, target = batch(task, 4, 2)
    labelled = task.loss_sum(prediction, target)
    more_p, more_t = torch.cat([prediction, prediction]), torch.cat([target, unlabelled(target)])
    torch.testing.assert_close(task.loss_sum(more_p, more_t), labelled, rtol=1e-6, atol=0)
    assert task.loss_count(more_t) == task.loss_count(target)
    gradient = _gradient(task, more_p, more_t)
    assert torch.count_nonzero(gradient[4:]) == 0
    assert torch.count_nonzero(gradient[:4]) > 0


def test_nothing_labelled(task: Task) -> None:
    prediction, target = batch(task, 3, 3)
    target = unlabelled(target)
    prediction.requires_grad_()
    loss = task.loss_sum(prediction, target)
    loss.backward()
    assert loss.item() == 0.0
    assert prediction.grad is not None
    assert torch.count_nonzero(prediction.grad) == 0
    assert task.loss_count(target) == 0
    assert all(math.isnan(value) for value in measured(task, [(prediction, target)]).values())


def test_no_batch_at_all(task: Task) -> None:
    values = measured(task, [])
    assert set(values) == set(task.directions)
    assert all(math.isnan(value) for value in values.values())


def test_loss_is_float32_inside(task: Task) -> None:
    prediction, target = batch(task, 4, 4)
    half = prediction.bfloat16()
    assert task.loss_sum(half, target).dtype == torch.float32
    torch.testing.assert_close(task.loss_sum(half, target), task.loss_sum(half.float(), target), rtol=0, atol=0)
    assert task.loss_count(target).dtype == torch.float64
    assert measured(task, [(half, target)]) == pytest.approx(measured(task, [(half.float(), target)]))


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e4, 1e12])
def test_extreme_predictions_give_finite_losses_and_gradients(task: Task, size: float) -> None:
    prediction, target = batch(task, 4, 5)
    prediction = (prediction.sign() * size).requires_grad_()
    loss = task.loss_sum(prediction, target)
    loss.backward()
    assert loss.isfinite()
    assert prediction.grad is not None
    assert prediction.grad.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_predictions_that_are_not_finite_surface(task: Task, bad: float) -> None:
    prediction, target = batch(task, 4, 6, missing=0.0)
    assert not task.loss_sum(torch.full_like(prediction, bad), target).isfinite()
    if math.isnan(bad):
        position = next(iter(torch.nonzero(~_missing(task, target))))
        one = prediction.clone()
        one[_at(task, position)] = bad
        assert task.loss_sum(one, target).isnan()


def test_metrics_do_not_depend_on_the_batches(task: Task) -> None:
    parts = [batch(task, n, seed) for seed, n in enumerate((1, 4, 2))]
    assert measured(task, parts) == pytest.approx(measured(task, [join(parts)]), rel=1e-12)
    assert measured(task, parts[::-1]) == pytest.approx(measured(task, parts), rel=1e-12)


def test_reset_and_inference_mode(task: Task) -> None:
    prediction, target = batch(task, 20, 7)
    metrics = task.metrics()
    metrics.update(*batch(task, 3, 8))
    with torch.inference_mode():
        metrics.reset()
        metrics.update(prediction[:2], target[:2])
    metrics.update(prediction[2:], target[2:])
    assert metrics.compute() == pytest.approx(measured(task, [(prediction, target)]))
    assert metrics.compute() == metrics.compute()


def test_unlabelled_elements_do_not_change_metrics(task: Task) -> None:
    prediction, target = batch(task, 5, 9)
    more = [(prediction, target), (prediction, unlabelled(target))]
    assert measured(task, more) == pytest.approx(measured(task, [(prediction, target)]), rel=1e-12)


def test_directions_by_learning(task: Task) -> None:
    """Minimising the loss moves every metric the way its direction says."""
    torch.manual_seed(0)
    prediction, target = batch(task, 6, 10)
    prediction.requires_grad_()
    before = measured(task, [(prediction, target)])
    optimizer = torch.optim.Adam([prediction], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        (task.loss_sum(prediction, target) / task.loss_count(target)).backward()
        optimizer.step()
    after = measured(task, [(prediction, target)])
    for metric, direction in task.directions.items():
        assert (after[metric] > before[metric]) == (direction == "up"), metric


def test_pictures_and_words(task: Task) -> None:
    prediction, target = (x[0].numpy() for x in batch(task, 2, 11))
    if task.kind == "dense":
        for picture in (task.render(target, False), task.render(prediction, True)):
            assert picture.shape == (*target.shape[-2:], 3)
            assert picture.dtype == np.uint8
        gone = np.full_like(target, -100 if target.dtype == np.int64 else np.nan)
        assert task.render(gone, False).max() == 0
        with pytest.raises(NotImplementedError):
            task.describe(target, False)
    else:
        assert task.describe(prediction, True)
        assert task.describe(target, False)
        assert task.describe(np.full_like(target, -100 if target.dtype == np.int64 else np.nan), False)
        with pytest.raises(NotImplementedError):
            task.render(target, False)


def test_shapes_that_do_not_fit_are_refused(task: Task) -> None:
    prediction, target = batch(task, 3, 12)
    wrong = [prediction[:2], torch.cat([prediction, prediction], -1 if task.kind != "dense" else 1)]
    for bad in wrong:
        with pytest.raises(RunFailed, match=task.name):
            task.loss_sum(bad, target)


def _gradient(task: Task, prediction: Tensor, target: Tensor) -> Tensor:
    leaf = prediction.clone().requires_grad_()
    task.loss_sum(leaf, target).backward()
    assert leaf.grad is not None
    return leaf.grad


def _missing(task: Task, target: Tensor) -> Tensor:
    """Elements without a label; depth 0 is none either."""
    if target.dtype == torch.int64:
        return target == -100
    return target.isnan() | (target <= 0) if task.name == "depth" else target.isnan()


def _at(task: Task, position: Tensor) -> tuple[int, ...]:
    """The place in a prediction of an element of its target."""
    index = tuple(position.tolist())
    classes = task.name in ("segmentation", "human_parts", "classification")
    if classes:
        return (index[0], 0, *index[1:])
    return (*index, 0) if task.name in ("binary", "regression", "token_tagging") else index


def _dense(task: Task) -> tuple[np.ndarray, np.ndarray]:
    prediction, target = batch(task, 1, 30)
    return prediction[0].numpy(), target[0].numpy()


def test_a_dense_task_says_what_its_colours_and_errors_mean(task: Task) -> None:
    if task.kind != "dense":
        return
    prediction, target = _dense(task)
    values = task.values(prediction)
    assert values.shape[-2:] == target.shape[-2:]
    assert values.dtype in (np.uint8, np.uint16, np.float32)
    error = task.error(prediction, target)
    assert error.shape == (*target.shape[-2:], 3)
    assert error.dtype == np.uint8
    black = (error == 0).all(-1)
    missing = _missing(task, torch.from_numpy(target)[None])[0].numpy()
    assert np.array_equal(black, missing.reshape(-1, *black.shape).any(0))
    for legend in (task.legend(), task.legend([values]), task.error_legend()):
        assert legend.swatches or legend.bar is not None


def test_a_dense_task_errs_less_where_it_is_right(task: Task) -> None:
    """The picture of the errors of a prediction that fits is another one than that of its opposite."""
    if task.kind != "dense":
        return
    prediction, target = _dense(task)
    assert not np.array_equal(task.error(prediction, target), task.error(-prediction, target))
