from __future__ import annotations

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from runner.tuning.space import read_space


def axis(line: str):
    space, problems = read_space([line])
    assert problems == []
    return space.axes[0]


@pytest.mark.parametrize(
    ("line", "distribution"),
    [
        ("optimizer.lr=interval(0.1,1)", FloatDistribution(0.1, 1)),
        ("optimizer.lr=tag(log,interval(1e-5,1e-2))", FloatDistribution(1e-5, 1e-2, log=True)),
        ("trainer.batch_size=int(interval(2,8))", IntDistribution(2, 8)),
        ("trainer.batch_size=int(tag(log,interval(2,512)))", IntDistribution(2, 512, log=True)),
        ("trainer.batch_size=tag(log,int(interval(2,512)))", IntDistribution(2, 512, log=True)),
        ("trainer.batch_size=range(2,9,2)", IntDistribution(2, 8, step=2)),
        ("trainer.batch_size=range(8,0,-2)", IntDistribution(2, 8, step=2)),
        ("optimizer.weight_decay=range(0,1,0.25)", FloatDistribution(0, 0.75, step=0.25)),
        ("weighting=equal,pcgrad", CategoricalDistribution(("equal", "pcgrad"))),
        ("weighting=choice(equal,pcgrad)", CategoricalDistribution(("equal", "pcgrad"))),
        ("mixture.size=[32,32],[64,64]", CategoricalDistribution(("[32,32]", "[64,64]"))),
        ("+trainer.ema=null,0.9", CategoricalDistribution(("null", "0.9"))),
    ],
)
def test_hydras_sweep_syntax_is_understood(line, distribution):
    assert axis(line).distribution() == distribution


def test_a_glob_means_the_options_of_a_group():
    assert axis("optimizer=glob(adam*)").choices == ("adam", "adamw")


@pytest.mark.parametrize(
    ("line", "value", "text"),
    [
        ("optimizer.lr=tag(log,interval(1e-5,1e-2))", 0.00031622776, "0.00031623"),
        ("optimizer.lr=tag(log,interval(1e-5,1e-2))", 1.00000001e-05, "1e-05"),
        ("optimizer.lr=interval(0.123454,1)", 0.123454, "0.123454"),  # rounding does not leave the interval
        ("trainer.batch_size=int(interval(2,8))", 5, "5"),
        ("optimizer.weight_decay=range(0,1,0.1)", 0.30000000000000004, "0.3"),
        ("weighting=equal,pcgrad", "pcgrad", "pcgrad"),
    ],
)
def test_values_become_readable_overrides(line, value, text):
    assert axis(line).text(value) == text


def test_fixed_overrides_stay_and_sizes_are_counted():
    lines = ["+experiment=demo", "weighting=equal,pcgrad", "seed=3", "trainer.batch_size=int(interval(2,4))"]
    space, problems = read_space(lines)
    assert problems == [] and space.fixed == ("+experiment=demo", "seed=3")
    assert space.size == 6
    points = [space.overrides(point) for point in space.grid()]
    assert len(points) == 6 and points[1] == ["weighting=equal", "trainer.batch_size=3"]
    assert read_space(["optimizer.lr=interval(0,1)"])[0].size is None


def test_corners_show_every_value_and_where_they_can_every_combination():
    space, _ = read_space(["weighting=equal,pcgrad,mgda", "optimizer.lr=interval(0.1,1)"])
    assert len(list(space.corners(6))) == 6
    few = list(space.corners(5))
    assert len(few) == 4 and {line for point in few for line in point} == {
        "weighting=equal", "weighting=pcgrad", "weighting=mgda", "optimizer.lr=0.1", "optimizer.lr=1.0",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["seed=1"], "there is nothing to tune"),
        (["seed=0,1,2"], "the seed is not a hyperparameter"),
        (["launch.device=cpu,cuda"], "does not affect what is learned"),
        (["optimizer.lr=interval(1,0.1)"], "from a smaller to a larger"),
        (["optimizer.lr=tag(log,interval(0,1))"], "cannot begin at 0"),
        (["optimizer.lr=tag(lg,interval(0.1,1))"], "unknown tag 'lg'"),
        (["optimizer.lr=tag(log,choice(1,2))"], "goes with interval"),
        (["trainer.batch_size=range(3,3)"], "has no value"),
        (["trainer.batch_size=range(3,4)"], "has a single value"),
        (["weighting=choice(equal)"], "has a single value"),
        (["weighting=equal,equal"], "names equal twice"),
        (["optimizer.lr=1,2", "optimizer.lr=interval(0,1)"], "two search spaces"),
    ],
)
def test_mistakes(lines, words):
    _, problems = read_space(lines)
    assert len(problems) == 1 and words in problems[0].what


def test_all_mistakes_at_once():
    _, problems = read_space(["seed=0,1", "optimizer.lr=interval(1,0)", "weighting=equal,equal"])
    assert len(problems) == 3
