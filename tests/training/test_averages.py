"""Running means between two rows of the log."""

from __future__ import annotations

import json

import pytest
import torch

from runner.training.averages import Averages
from runner.weighting.step import StepReport

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


def compared(cosine: float, norms: list[float], solver_s: float) -> StepReport:
    both = report([1.0] * len(norms), [1.0] * len(norms))
    both.grad_norms = torch.tensor(norms)
    both.cosines = torch.full((len(norms), len(norms)), NAN)
    both.cosines[0, 1] = both.cosines[1, 0] = cosine
    both.solver_s = solver_s
    return both


def test_what_is_between_tasks():
    averages = Averages(["a", "b", "c"])
    for cosine, first in ((0.5, 1.0), (-0.25, 3.0), (-0.5, NAN)):
        averages.add(compared(cosine, [first, 2.0, NAN], 0.01), 1.0, 0.1)
    averages.add(report([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]), 1.0, 0.1)  # a step that looked at no gradients
    assert averages.between() == {"a~b": {"cosine": pytest.approx(-0.25 / 3), "conflict": pytest.approx(2 / 3)}}
    assert averages.means()["a"]["grad_norm"] == 2.0 and averages.means()["b"]["grad_norm"] == 2.0
    assert "grad_norm" not in averages.means()["c"]
    assert averages.common()["solver_share"] == pytest.approx(0.03 / 0.4)


def test_weightings_of_losses_say_nothing_of_gradients():
    averages = Averages(["a", "b"])
    averages.add(report([1.0, 2.0], [1.0, 1.0]), 1.0, 0.1)
    assert averages.between() == {} and set(averages.common()) == {"grad_norm"}
    assert set(averages.means()["a"]) == {"loss", "weight"}


def test_the_state_of_pairs_is_exact_through_json():
    averages = Averages(["a", "b"])
    averages.add(compared(1 / 3, [0.1, 1 / 7], 0.01), 1.0, 0.3)
    other = Averages(["a", "b"])
    other.load_state_dict(json.loads(json.dumps(averages.state_dict())))
    for each in (averages, other):
        each.add(compared(-1 / 9, [0.2, 1 / 11], 0.01), 1.0, 0.1)
    assert other.between() == averages.between() and other.means() == averages.means()
    assert other.common() == averages.common()
