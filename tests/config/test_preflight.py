from __future__ import annotations

import subprocess
import sys

import pytest

from runner.config import paths
from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.errors import UserError


def told(*overrides: str) -> list[str]:
    try:
        finalize(compose("train", list(overrides)), data=False)
    except UserError as error:
        return list(map(str, error.problems))
    return []


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.batch_size=8", "trainer.accumulation=2", "launch.num_processes=2"],
        ["trainer.max_steps=null", "trainer.epochs=2"],
        ["trainer.precision=fp16", "launch.device=cuda"],
        ["trainer.precision=bf16", "launch.device=cpu"],
        ["trainer.select=depth/rmse"],
        ["trainer.select=last"],
        ["tasks=[depth]", "trainer.select=depth/delta1"],
        ["trainer.patience=2"],
        ["trainer.ema=0.99"],
        ["name=mtl/seg-13_v1.2"],
        ["head@architecture.dense_head=fcn"],
    ],
)
def test_possible(overrides):
    assert told(*overrides) == []


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (["backbone=bert"], ["the mixture gives images, but the backbone reads text", "see: runner ls backbone"]),
        (["backbone=mlp"], ["the backbone reads tables"]),
        (
            ["trainer.batch_size=9", "trainer.accumulation=2", "launch.num_processes=2"],
            ["trainer.batch_size=9 cannot be divided by", "such as trainer.batch_size=8 or 12"],
        ),
        (["trainer.batch_size=1", "launch.num_processes=2"], ["such as trainer.batch_size=2"]),
        (["trainer.epochs=2"], ["are both set", "trainer.max_steps=null"]),
        (["trainer.max_steps=null"], ["neither trainer.max_steps nor trainer.epochs"]),
        (["trainer.precision=fp16", "launch.device=cpu"], ["needs a GPU", "bf16"]),
        (["tasks=[dpth]"], ["unknown task 'dpth'", "did you mean 'depth'?"]),
        (["tasks=[]"], ["selects no task", "valid: depth"]),
        (["tasks=[depth,depth]"], ["names 'depth' twice"]),
        (["trainer.select=last", "trainer.patience=3"], ["trainer.patience waits", "leave one of the two out"]),
        (["trainer.select=depth"], ["is not auto, last or task/metric"]),
        (["trainer.select=depth/"], ["is not auto, last or task/metric"]),
        (["trainer.select=dept/rmse"], ["unknown task 'dept'", "did you mean 'depth'?"]),
        (["trainer.select=depth/rms"], ["no metric 'rms'", "did you mean 'rmse'?"]),
        (["trainer.select=depth/rmse", "tasks=[segmentation]"], ["unknown task 'depth'", "valid: segmentation"]),
        (["trainer.patience=2", "trainer.eval_every=null"], ["trainer.patience counts evaluations"]),
        (["trainer.ema=1"], ["keep the initial weights"]),
        (["name=../up"], ["cannot be the name of a folder"]),
        (["name=/abs"], ["cannot be the name of a folder"]),
        (["name=' '"], ["cannot be the name of a folder"]),
        (["head@architecture.dense_head=linear"], ["must be a head of kind dense", "see: runner ls head"]),
        (["+head@mixture.tasks.depth.head=linear"], ["'mixture.tasks.depth.head' must be a head of kind dense"]),
    ],
)
def test_impossible(overrides, messages):
    (problem,) = told(*overrides)
    assert all(message in problem for message in messages)


def test_a_wrong_value_is_not_reported_twice():
    (problem,) = told("trainer.batch_size=abc", "trainer.accumulation=3")
    assert "must be an integer" in problem


def test_impossible_and_wrong_are_told_together():
    assert len(told("trainer.epochs=2", "optimizer.lrr=1", "backbone=bert", "tasks=[dpth]")) == 4


def test_missing_data_is_one_problem(monkeypatch):
    monkeypatch.setenv("RUNNER_DATA", "/nowhere")
    with pytest.raises(UserError) as error:
        finalize(compose("train", ["mixture=nyud"]))
    (problem,) = error.value.problems
    assert "/nowhere" in problem.what
    assert "mixture=rooms" in problem.hint


def test_checking_any_mixture_imports_no_torch():
    """Composed, checked and asked for its data, each of them, in one process."""
    code = """
import sys
from runner.config import paths
from runner.config.compose import composer
from runner.config.freeze import finalize, resolve
from runner.config.preflight import check_data
from runner.config.static import Report
from runner.errors import UserError
with composer("train") as compose:
    for option in paths.options("mixture"):
        chosen = [f"mixture={option.name}"]
        try:
            finalize(compose(chosen, False), data=False)
        except UserError:
            pass
        check_data(resolve(compose(chosen, False), Report()))
        print(option.name, sorted({"torch", "transformers", "datasets", "pandas"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{option.name} []" for option in paths.options("mixture")]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["weighting=mgda", "weighting.mode=gram", "trainer.accumulation=2"], "works with trainer.accumulation=1"),
        (["weighting=mgda", "weighting.mode=gram", "launch.num_processes=2"], "works with trainer.accumulation=1"),
        (["weighting=mgda", "weighting.mode=gram", "trainer.compile=true"], "compiles away"),
        (["weighting=mgda_ub", "trainer.compile=true"], "compiles away"),
        (["weighting=mgda_ub", "architecture=single_task"], "one trunk that all tasks share"),
        (["weighting=mgda", "weighting.mode=representation", "weighting.shared=[backbone.*]"], "has no effect"),
        (["weighting=famo", "trainer.log_losses=true"], "does not go with FAMO"),
        (["weighting=modo", "trainer.log_losses=true"], "does not go with MoDo"),
        (["weighting=modo", "trainer.batch_size=6"], "such as trainer.batch_size=4 or 8"),
        (["weighting=sdmgrad", "trainer.batch_size=8", "launch.num_processes=4"], "such as trainer.batch_size=16"),
    ],
)
def test_settings_that_a_weighting_cannot_work_in(overrides, said):
    (problem,) = told(*overrides)
    assert said in problem


@pytest.mark.parametrize(
    "overrides",
    [
        ["weighting=mgda", "weighting.mode=gram"],
        ["weighting=mgda_ub", "trainer.accumulation=2", "launch.num_processes=2"],
        ["weighting=modo", "trainer.batch_size=8", "trainer.accumulation=2", "launch.num_processes=2"],
        ["weighting=mgda", "weighting.shared=[backbone.*]", "trainer.log_losses=true"],
    ],
)
def test_settings_that_a_weighting_works_in(overrides):
    assert told(*overrides) == []
