"""Two gloo processes equal one process with the same global batch; so do micro-batches."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.support import TINY, rows, train, weights

EXACT = [
    *TINY,
    # Smooth and without BatchNorm. BatchNorm sees the local batch, the one thing that cannot be equal; ReLU and
    # max-pool, momentum and Adam's small second moments blow rounding up from step to step.
    "backbone=vit",
    "backbone.size=tiny",
    "optimizer=sgd",
    "optimizer.momentum=0",
    "optimizer.lr=0.01",
    "trainer.max_steps=20",
    "trainer.eval_every=20",
    "trainer.keep=9",
]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    made = {}

    def get(weighting: str):
        if weighting not in made:
            made[weighting] = train(tmp_path_factory.mktemp("one"), *EXACT, f"weighting={weighting}", "name=one")
        return made[weighting]

    return get


def assert_same(one, other):
    first, second = weights(one), weights(other)
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    a, b = (json.loads((run / "result.json").read_text())["tasks"] for run in (one, other))
    for task in a:
        for metric in a[task]:
            assert b[task][metric] == pytest.approx(a[task][metric], rel=1e-3, abs=1e-3), (task, metric)


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["equal", "uncertainty", "pcgrad", "mgda_ub", "modo", "moml"])
def test_two_processes_equal_one(single, tmp_path, weighting):
    two = train(tmp_path, *EXACT, f"weighting={weighting}", "name=two", "launch.num_processes=2")
    assert json.loads((two / "result.json").read_text())["processes"] == 2
    assert_same(single(weighting), two)


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["mgda_ub", "modo", "auto_lambda", "forum"])
def test_micro_batches_of_other_methods_equal_one_batch(single, tmp_path, weighting):
    many = train(tmp_path, *EXACT, f"weighting={weighting}", "name=many", "trainer.accumulation=4")
    assert_same(single(weighting), many)


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["equal", "pcgrad"])
def test_micro_batches_equal_one_batch(single, tmp_path, weighting):
    many = train(tmp_path, *EXACT, f"weighting={weighting}", "name=many", "trainer.accumulation=4")
    assert_same(single(weighting), many)


@pytest.mark.slow
def test_training_moves_far_more_than_the_tolerance(single):
    """Otherwise the tests above could not fail."""
    run = single("equal")
    first, last = (min(run.glob("checkpoints/step-*")), run / "checkpoints" / "latest")
    a, b = (load_file(path / "model.safetensors") for path in (first, last))
    moved = max(float((a[name] - b[name]).abs().max()) for name in a)
    assert moved > 1e-3, moved


def test_the_training_rows_are_those_of_the_whole_batch(single):
    for row in rows(single("equal")):
        if row["split"] == "train" and row["metric"] == "weight":
            assert row["value"] == 1.0
