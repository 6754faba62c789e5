"""An architecture's penalty reaches the step, once, whatever the weighting does."""

from __future__ import annotations

import torch

from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.launching.rundir import RunDirectory
from runner.launching.signals import StopFlag
from runner.training.assemble import assemble
from runner.training.loop import train
from tests.support import TINY, weights

ONE_STEP = ["architecture=sluice", "trainer.max_steps=1", "optimizer=sgd", "optimizer.momentum=0", "optimizer.lr=0.01"]


def one_step(place, *overrides):
    config = finalize(compose("train", [*TINY, *ONE_STEP, f"output_dir={place}", *overrides]))
    run = RunDirectory.claim(config, "train", [])
    assert train(run, StopFlag()) == 0
    return config, weights(run.path)


def test_the_step_moves_by_the_gradient_of_the_penalty(tmp_path):
    options = ["weighting=mgda", "scheduler=constant", "trainer.accumulation=2"]
    config, with_it = one_step(tmp_path, "architecture.orthogonality=0.5", *options)
    _, without = one_step(tmp_path, "architecture.orthogonality=0", *options)
    model = assemble(config).model
    model.penalty().backward()
    moved = 0
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else -0.01 * parameter.grad
        torch.testing.assert_close(with_it[name] - without[name], expected, atol=1e-6, rtol=1e-3)
        moved += parameter.grad is not None
    assert moved > 0
