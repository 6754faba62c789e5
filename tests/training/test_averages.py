"""Running means between two rows of the log."""

from __future__ import annotations

import json

import pytest
import torch

from runner.training.averages import Averages
from runner.weighting.engine import StepReport

NAN = float("nan")


def report(losses: list[float], weights: list[float]) -> StepReport:
    return StepReport(torch.tensor(losses), torch.tensor(weights))


def test_absent_tasks_do_not_count():
    averages = Averages(["a", "b", "c"])
    averages.add(report([1.0, NAN, NAN], [0.5, NAN, NAN]), 2.0, 0.1)
    averages.add(report([3.0, 4.0, NAN], [0.5, 1.0, NAN]), float("inf"), 0.1)
    assert averages.means() == {"a": {"loss": 2.0, "weight": 0.5}, "b": {"loss": 4.0, "weight": 1.0}}
    assert averages.common() == {"grad_norm": 2.0}
    averages.reset()
    assert averages.means() == {} and averages.common() == {}


def test_state_is_exact_through_json():
    averages = Averages(["a"])
    for value in (0.1, 1 / 3, 1e-30):
        averages.add(report([value], [1.0]), value, value)
    other = Averages(["a"])
    other.load_state_dict(json.loads(json.dumps(averages.state_dict())))
    for each in (averages, other):
        each.add(report([0.7], [1.0]), 0.3, 0.2)
    assert other.means() == averages.means() and other.common() == averages.common()
    assert other.means()["a"]["loss"] == pytest.approx((0.1 + 1 / 3 + 0.7) / 4)
