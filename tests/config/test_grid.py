"""The jobs of a sweep: which there are, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.config.compose import compose
from runner.config.grid import Grid, check, expand
from runner.errors import UserError


def grid(*overrides: str, config_dir: str | None = None) -> Grid:
    return expand(compose("train", list(overrides), config_dir, multirun=True))


def points(*overrides: str) -> list[list[str]]:
    return [point.overrides for point in grid(*overrides).points]


def test_the_product_in_the_order_of_the_command_line():
    assert points("+experiment=demo", "seed=1,2", "weighting=equal,pcgrad") == [
        ["+experiment=demo", "seed=1", "weighting=equal"],
        ["+experiment=demo", "seed=1", "weighting=pcgrad"],
        ["+experiment=demo", "seed=2", "weighting=equal"],
        ["+experiment=demo", "seed=2", "weighting=pcgrad"],
    ]


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("seed=range(0,3)", ["0", "1", "2"]),
        ("seed=choice(3,1,3)", ["3", "1"]),
        ("optimizer.lr=sort(0.2,0.1)", ["0.1", "0.2"]),
        ("optimizer.lr=range(0.1,0.3,step=0.1)", ["0.1", "0.2"]),
        ("sampler=glob([r*,u*])", ["round_robin", "uniform"]),
        ("tasks=[depth,edge],[depth]", ["[depth,edge]", "[depth]"]),
        ("name='a,b','c'", ["'a,b'", "'c'"]),
        ("seed=tag(a,choice(1,2))", ["1", "2"]),
    ],
)
def test_every_kind_of_values(override, values):
    key = override.partition("=")[0]
    assert points(override) == [[f"{key}={value}"] for value in values]
    assert grid(override).axes == {key: values}


def test_one_value_is_no_axis_unless_it_is_written_as_a_sweep():
    assert grid("name='a,b'", "seed=choice(4)").axes == {"seed": ["4"]}
    assert points() == [[]]
    assert points("~sampler.nothing") == [["~sampler.nothing"]]


def test_params_of_a_preset_and_the_command_line_wins():
    presets = grid("+experiment=demo", "+sweep=weightings", "weighting=equal,mgda")
    assert presets.axes == {"seed": ["0", "1", "2"], "weighting": ["equal", "mgda"]}
    assert grid("sweep=seeds").axes == {"seed": ["0", "1", "2", "3", "4"]}


def test_what_makes_it_the_same_sweep():
    first = grid("+experiment=demo", "seed=0,1", "launch.jobs=2", "optimizer.lr=0.1").identity
    assert first == grid("optimizer.lr=0.1", "experiment=demo", "seed=1,2,3").identity
    assert first == grid("+experiment=demo", "optimizer.lr=0.1", "seed=5,6", "output_dir=x", "tracking=jsonl").identity
    assert first != grid("+experiment=demo", "optimizer.lr=0.2", "seed=0,1").identity
    assert first != grid("+experiment=demo", "optimizer.lr=0.1", "seed=0").identity


def test_what_compares_methods():
    assert grid("weighting=equal,pcgrad").compares
    assert grid("architecture=choice(hard_sharing)").compares
    assert not grid("seed=0,1", "optimizer.lr=0.1,0.2").compares


def test_problems_of_all_jobs_are_told_once_each_with_their_jobs():
    wrong = grid("seed=1,2", "trainer.max_steps=5,-5", "trainer.batch_size=3,4", "trainer.accumulation=2")
    with pytest.raises(UserError) as error:
        check(wrong, None)
    texts = [problem.what for problem in error.value.problems]
    assert len(texts) == 2
    assert "(job 0 and 3 more: seed=1 trainer.max_steps=5 trainer.batch_size=3)" in texts[0]
    assert "(job 2 and 3 more: seed=1 trainer.max_steps=-5 trainer.batch_size=3)" in texts[1]
    with pytest.raises(UserError) as error:
        check(grid("seed=1,2", "optimizer.lr=x"), None)
    assert "job" not in error.value.problems[0].what


def test_points_are_what_composing_each_alone_gives():
    from runner.config.freeze import finalize

    many = grid("+experiment=demo", "weighting=equal,cagrad", "seed=1,2", "name=run${seed}")
    check(many, None)
    for point in many.points:
        assert point.config == finalize(compose("train", point.overrides))
    assert [point.config["name"] for point in many.points] == ["run1", "run2", "run1", "run2"]
    assert many.points[0].config["mixture"] is not many.points[1].config["mixture"]


def test_hydras_numbers_of_jobs_resolve():
    named = grid("seed=5,6", "name=run${hydra:job.num}")
    check(named, None)
    assert [point.config["name"] for point in named.points] == ["run0", "run1"]


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("seed=range(3,3)", "gives no value"),
        ("hydra.sweeper.max_batch_size=2", "no effect"),
        ("hydra/sweeper=basic", "no effect"),
    ],
)
def test_what_cannot_be_swept(override, hint):
    with pytest.raises(UserError, match=hint):
        grid("seed=1,2", override)


def test_a_file_that_is_a_list_is_refused():
    folder = Path("own/experiment")
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\n- optimizer.lr: 1\n")
    with pytest.raises(UserError, match=r"mine\.yaml is a list"):
        compose("train", ["+experiment=mine"], "own")
    (folder / "mine.yaml").write_text("lr\n")
    with pytest.raises(UserError, match="is a single value"):
        compose("train", ["+experiment=mine"], "own")
