"""Which evaluation is the best."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest

from runner.errors import UserError
from runner.training.selection import Selection

TASKS = {
    "seg": SimpleNamespace(directions={"miou": "up"}),
    "depth": SimpleNamespace(directions={"abs_err": "down"}),
}


def results(miou: float = 0.5, seg_loss: float = 1.0, abs_err: float = 1.0, depth_loss: float = 1.0):
    return {"seg": {"loss": seg_loss, "miou": miou}, "depth": {"loss": depth_loss, "abs_err": abs_err}}


def test_up_and_down_metrics():
    up, down = Selection("seg/miou", TASKS, None), Selection("depth/abs_err", TASKS, None)
    for step, value in ((1, 0.5), (2, 0.7), (3, 0.6)):
        up.update(step, results(miou=value))
        down.update(step, results(abs_err=value))
    assert (up.best_step, up.best_score) == (2, 0.7)
    assert (down.best_step, down.best_score) == (1, 0.5)


def test_auto_weighs_tasks_relative_to_the_first_evaluation():
    selection = Selection("auto", TASKS, None)
    selection.update(1, results(seg_loss=2.0, depth_loss=1000.0))
    assert selection.score == 1.0
    selection.update(2, results(seg_loss=1.0, depth_loss=1000.0))
    assert selection.score == 0.75 and selection.best_step == 2
    selection.update(3, results(seg_loss=2.0, depth_loss=900.0))
    assert selection.score == pytest.approx(0.95) and selection.best_step == 2


def test_patience_counts_evaluations_without_a_better_one():
    selection = Selection("seg/miou", TASKS, 2)
    for step, value in enumerate((0.1, 0.2, 0.2, 0.1)):
        assert not selection.exhausted
        selection.update(step, results(miou=value))
    assert selection.exhausted and selection.best_step == 1


def test_a_score_that_is_not_a_number_never_wins():
    selection = Selection("seg/miou", TASKS, None)
    selection.update(1, results(miou=math.nan))
    assert selection.best_step == 1  # something must be the best
    selection.update(2, results(miou=0.1))
    assert selection.best_step == 2
    selection.update(3, results(miou=math.nan))
    assert selection.best_step == 2


def test_last_takes_the_last():
    selection = Selection("last", TASKS, None)
    for step, loss in enumerate((3.0, 1.0, 2.0, float("nan"))):
        selection.update(step, results(seg_loss=loss, depth_loss=loss))
        assert selection.best_step == step and selection.waited == 0 and not selection.exhausted
    assert "relative_loss" in selection.extra()[""]


def test_state_survives_json():
    selection = Selection("auto", TASKS, 3)
    selection.update(1, results(seg_loss=0.1, depth_loss=1 / 3))
    selection.update(2, results(seg_loss=0.3, depth_loss=1 / 3))
    other = Selection("auto", TASKS, 3)
    other.load_state_dict(json.loads(json.dumps(selection.state_dict())))
    selection.update(3, results(seg_loss=0.05))
    other.update(3, results(seg_loss=0.05))
    assert other.state_dict() == selection.state_dict()


@pytest.mark.parametrize(("select", "said"), [("sge/miou", "seg"), ("seg/miuo", "miou"), ("seg", "miou")])
def test_names_that_do_not_exist(select, said):
    with pytest.raises(UserError, match=said):
        Selection(select, TASKS, None)
