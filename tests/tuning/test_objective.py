from __future__ import annotations

import pytest

from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.tuning.objective import read_objective


@pytest.fixture(scope="module")
def config() -> dict:
    return finalize(compose("train", ["mixture=rooms", "tasks=[segmentation,depth]"]), data=False)


RESULT = {
    "headline": {"segmentation": "miou", "depth": "rmse"},
    "directions": {"segmentation": {"miou": "up"}, "depth": {"rmse": "down", "abs_err": "down"}},
    "validation": {"segmentation": {"miou": 0.4}, "depth": {"rmse": 2.0, "abs_err": 1.0, "loss": 1.0}},
}
BETTER = {"segmentation": {"miou": 0.5}, "depth": {"rmse": 1.0, "abs_err": 0.9, "loss": 0.5}}


@pytest.mark.parametrize(
    ("text", "names", "natural", "minimised"),
    [
        ("relative", ["relative change %"], [37.5], [-37.5]),  # (+25 % and -50 % of an error) / 2
        ("segmentation", ["segmentation/miou"], [0.5], [-0.5]),
        ("depth/abs_err", ["depth/abs_err"], [0.9], [0.9]),
        ("depth/loss", ["depth/loss"], [0.5], [0.5]),
        ("pareto", ["segmentation/miou", "depth/rmse"], [0.5, 1.0], [-0.5, 1.0]),
        (["depth/abs_err", "segmentation"], ["depth/abs_err", "segmentation/miou"], [0.9, 0.5], [0.9, -0.5]),
    ],
)
def test_values(config, text, names, natural, minimised):
    objective, problems = read_objective(text, config)
    assert problems == [] and objective.natural(BETTER) is None  # nothing is known yet
    assert objective.learn(RESULT) and not objective.learn(RESULT)
    assert objective.names == names and objective.count == len(natural)
    assert objective.natural(BETTER) == pytest.approx(natural)
    assert objective.minimised(BETTER) == pytest.approx(minimised)
    again, _ = read_objective(text, config)
    again.restore(objective.state())
    assert again.minimised(BETTER) == objective.minimised(BETTER)


def test_the_reference_itself_is_zero_and_what_is_undefined_is_none(config):
    objective, _ = read_objective("relative", config)
    objective.learn(RESULT)
    assert objective.natural(RESULT["validation"]) == [0.0]
    assert objective.natural({"segmentation": {"miou": None}, "depth": {"rmse": 1.0}}) is None
    assert objective.natural({"depth": {"rmse": 1.0}}) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("relativ", "there is no task 'relativ'"),
        ("deph", "there is no task 'deph'"),
        ("depth/rms", "has no metric 'rms'"),
        (["depth", "edge"], "there is no task 'edge'"),  # the mixture has it, but `tasks` leaves it out
        (["depth", "depth"], "twice"),
        ([], "names nothing"),
    ],
)
def test_mistakes(config, text, words):
    _, problems = read_objective(text, config)
    assert len(problems) == 1 and words in problems[0].what


def test_a_front_needs_two_tasks(config):
    one = config | {"mixture": config["mixture"] | {"tasks": {"depth": config["mixture"]["tasks"]["depth"]}}}
    assert "needs several tasks" in read_objective("pareto", one)[1][0].what
