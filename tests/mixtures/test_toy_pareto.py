"""The toy problem: its functions against the published ones, and through the real loop."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from runner.architectures.heads.toy_objective import ToyObjective, objectives, pareto_set
from runner.backbones.toy_point import STARTS, ToyPoint
from runner.config.build import build
from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.errors import UserError
from runner.launching.rundir import RunDirectory
from runner.launching.signals import StopFlag
from runner.mixtures.toy_pareto import ToyPareto
from runner.specs import FeatureSpec, InputSpec
from runner.training.loop import train
from runner.types import Features


def published(x1: float, x2: float) -> tuple[float, float]:
    """Appendix D.1 of the CAGrad paper, number by number."""
    c1 = max(math.tanh(0.5 * x2), 0.0)
    c2 = max(math.tanh(-0.5 * x2), 0.0)
    f1 = math.log(max(abs(0.5 * (-x1 - 7.0) - math.tanh(-x2)), 0.000005)) + 6.0
    f2 = math.log(max(abs(0.5 * (-x1 + 3.0) - math.tanh(x2) + 2.0), 0.000005)) + 6.0
    g1 = ((-x1 + 7.0) ** 2 + 0.1 * (-x2 - 8.0) ** 2) / 10.0 - 20.0
    g2 = ((-x1 - 7.0) ** 2 + 0.1 * (-x2 - 8.0) ** 2) / 10.0 - 20.0
    return c1 * f1 + c2 * g1, c1 * f2 + c2 * g2


def test_the_objectives_are_the_published_ones():
    rng = np.random.default_rng(0)
    points = [*STARTS, (-7.0, 1e-9), (5.0, 3.0), *rng.uniform(-12, 12, (50, 2)).tolist()]
    got = objectives(torch.tensor(points, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(got, [published(*point) for point in points], rtol=1e-10, atol=1e-10)


def test_nothing_is_better_than_the_front_in_both():
    front = objectives(pareto_set(10001)).numpy()
    axis = np.linspace(-15, 15, 101)
    grid = torch.tensor(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2))
    values = objectives(grid).numpy()
    for value in values[values.sum(1) < -20]:  # the others are far above
        assert not (value < front - 1e-3).all(1).any(), "this point would be better than one of the front"
        assert (front <= value + 5e-3).all(1).any(), "nothing on the front is as good as this point"


def head(objective: int, scale: float = 1.0) -> ToyObjective:
    return ToyObjective(FeatureSpec(dim=2), 3, objective=objective, scale=scale)


def test_the_head_gives_value_and_point():
    point = torch.tensor([[9.0, -1.0]])
    value, x1, x2 = head(1, 0.1)(Features(pooled=point))[0].tolist()
    assert value == pytest.approx(0.1 * published(9.0, -1.0)[0], rel=1e-5) and (x1, x2) == (9.0, -1.0)


@pytest.mark.parametrize(("start", "expected"), [(3, STARTS[3]), ([1.5, -2.0], (1.5, -2.0))])
def test_starts(start, expected):
    made = ToyPoint(InputSpec("table", num_numeric=1), start=start)
    assert tuple(made.point.tolist()) == expected
    assert made({"numeric": torch.zeros(3, 1)}).pooled.shape == (3, 2)


@pytest.mark.parametrize("start", [5, [1.0], [1.0, 2.0, 3.0]])
def test_wrong_starts(start):
    with pytest.raises(UserError, match="start"):
        ToyPoint(InputSpec("table", num_numeric=1), start=start)


def test_tasks_with_labels_are_refused():
    tasks = {"a": {"_target_": "runner.tasks.binary.Binary"}, "b": {"_target_": "runner.tasks.objective.Objective"}}
    problems = ToyPareto("data", tasks=tasks).check()
    assert [p.what.partition(" ")[0] for p in problems] == ["'mixture.tasks.a'"]


def trained(tmp_path, *overrides):
    common = ["+experiment=toy_pareto", "trainer.eval_every=10", "trainer.max_steps=20", "trainer.log_every=10"]
    quiet = ["tracking.console=quiet", "tracking.plots=false", f"output_dir={tmp_path}", "launch.device=cpu"]
    run = RunDirectory.claim(finalize(compose("train", [*common, *quiet, *overrides])), "train", [])
    assert train(run, StopFlag()) == 0
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return {(r["step"], r["task"], r["metric"]): r["value"] for r in rows if r["split"] == "validation"}


def test_a_run_is_adam_on_the_sum(tmp_path):
    """Twenty steps of the real loop with equal weights, against torch alone."""
    found = trained(tmp_path, "weighting=equal", "backbone.start=2")
    x = torch.tensor(STARTS[2], requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=5e-3)
    for _ in range(20):
        optimizer.zero_grad()
        (objectives(x[None])[0] * torch.tensor([0.1, 1.0])).sum().backward()
        optimizer.step()
    assert found[20, "f1", "x1"] == pytest.approx(x[0].item(), abs=1e-5)
    assert found[20, "f2", "x2"] == pytest.approx(x[1].item(), abs=1e-5)
    assert found[20, "f1", "value"] == pytest.approx(0.1 * published(*x.tolist())[0], abs=1e-4)


def test_gradient_methods_see_both_objectives(tmp_path):
    """Between the two minima the larger objective pulls equal weights to its side, the bargain goes the other way."""
    between = "backbone.start=[-5,-8]"
    equal, nash = (trained(tmp_path / w, f"weighting={w}", between)[20, "f1", "x1"] for w in ("equal", "nash_mtl"))
    assert equal < -5.05 and nash > -4.95


def test_the_option_is_complete():
    config = finalize(compose("train", ["+experiment=toy_pareto"]))
    task = build(config["mixture"]["tasks"]["f1"], "f1")
    assert task.out_channels == 3 and task.directions == {"value": "down"}
