"""The focal loss of single examples, through the forward pass that makes it."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from runner.tasks.base import Task
from runner.tasks.segmentation import Segmentation
from runner.training.forward import Forward
from runner.types import Group
from runner.weighting.focal_sample import FocalSample


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, group, tasks):
        return {task: self.layer(group.inputs["pixels"]) for task in tasks}


@pytest.fixture
def setting():
    torch.manual_seed(0)
    target = torch.randint(4, (3, 5, 5))
    target[0, :4] = -100  # fewer labels in one example
    target[2] = -100  # and none in another
    group = Group("set", {"pixels": torch.randn(3, 3, 5, 5)}, {"seg": target})
    return Net(), {"seg": Segmentation("seg", num_classes=4)}, group, target


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_gradient_is_that_of_the_focal_loss_and_the_value_the_plain_one(setting, gamma):
    net, tasks, group, target = setting
    method = FocalSample(tasks, gamma=gamma)
    forward = Forward(net, tasks, torch.device("cpu"), nullcontext, method.per_example)
    loss = forward.loss_sums([group])["seg"]
    grads = torch.autograd.grad(loss, list(net.parameters()))
    logits = net.layer(group.inputs["pixels"])
    total = 0.0
    for i in (0, 1):
        picked = target[i] >= 0
        mean = nn.functional.cross_entropy(logits[i][:, picked].T, target[i][picked])
        total = total + picked.sum() * (1 - torch.exp(-mean)) ** gamma * mean
    for got, want in zip(grads, torch.autograd.grad(total, list(net.parameters())), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    plain = Forward(net, tasks, torch.device("cpu"), nullcontext).loss_sums([group])["seg"]
    torch.testing.assert_close(loss, plain)


def test_a_task_that_knows_only_its_sum(setting):
    """A task of a plug-in: asked for one example after the other, with the same numbers."""
    net, tasks, group, _ = setting

    class Sums(Task):
        loss_sum, loss_count = Segmentation.loss_sum, Segmentation.loss_count
        element_counts = Segmentation.element_counts

    plain = Sums("seg", out_channels=4, directions={}, headline="loss")
    plain.class_weights, plain.label_smoothing = None, 0.0
    per_example = FocalSample(tasks).per_example
    grads = []
    for task in (tasks["seg"], plain):
        loss = Forward(net, {"seg": task}, torch.device("cpu"), nullcontext, per_example).loss_sums([group])["seg"]
        grads.append(torch.autograd.grad(loss, list(net.parameters())))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_solved_examples_fade_out_and_zero_is_no_nan():
    method = FocalSample({"a": None, "b": None})
    losses = torch.tensor([0.0, 1e-4, 3.0], requires_grad=True)
    (weights,) = torch.autograd.grad(method.focal(losses).sum(), losses)
    assert weights.isfinite().all() and weights[0] < weights[1] < 1e-6 < 0.8 < weights[2]


def test_evaluation_sees_the_plain_loss(setting):
    net, tasks, group, _ = setting
    forward = Forward(net, tasks, torch.device("cpu"), nullcontext, FocalSample(tasks).per_example)
    with torch.no_grad():
        assert torch.equal(
            forward.loss_sums([group])["seg"],
            Forward(net, tasks, torch.device("cpu"), nullcontext).loss_sums([group])["seg"],
        )
