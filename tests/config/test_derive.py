"""Runs that another run implies have one signature, whatever method implies them."""

from __future__ import annotations

import pytest

from runner.config.compose import compose
from runner.config.derive import on_tasks
from runner.config.freeze import finalize
from runner.config.signature import signature, weights_diff


def frozen(*overrides: str) -> dict:
    return finalize(compose("train", ["mixture=rooms", *overrides]))


def single(*overrides: str, task: str = "depth") -> dict:
    return on_tasks(frozen(*overrides), [task], "x")


@pytest.mark.parametrize(
    "method",
    [
        ["weighting=pcgrad"],
        ["weighting=cagrad", "weighting.c=0.2"],
        ["architecture=single_task"],
        ["wrapper=task_sam"],
        ["+reference={depth: {rmse: 0.5}}"],
        ["trainer.select=edge/pixel_f_best"],
        ["baseline=auto"],
        ["tasks=[depth,edge]"],
        ["launch.num_processes=2"],
    ],
)
def test_the_method_of_the_run_that_asks_does_not_matter(method: list[str]) -> None:
    assert weights_diff(single(*method), single()) == []


@pytest.mark.parametrize(
    "setting", ["seed=3", "optimizer.lr=0.02", "backbone.size=34", "trainer.max_steps=7", "mixture.train=99"]
)
def test_the_settings_do(setting: str) -> None:
    assert signature(single(setting)) != signature(single())


def test_a_derived_configuration_is_what_a_user_would_have_typed() -> None:
    typed = frozen("tasks=[depth]", "weighting=equal", "architecture=hard_sharing")
    assert signature(single("weighting=pcgrad")) == signature(typed)


def test_heads_of_the_architecture_are_kept() -> None:
    changed = single("head@architecture.dense_head=deeplab", "architecture=single_task")
    assert changed["architecture"]["dense_head"]["_target_"].endswith("DeepLab")
    assert changed["architecture"]["_target_"].endswith("HardSharing")
