"""The second forward of a step sees the new weights and leaves nothing behind."""

from __future__ import annotations

import copy
import random
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from runner.randomness import rng_state
from runner.training.forward import Forward
from runner.training.second_forward import buffers_kept, random_replayed, second_losses
from runner.types import Group
from runner.weighting.engine import Engine
from runner.weighting.equal import Equal
from runner.weighting.reach import find_reach
from runner.weighting.step import identity


class Squares:
    loss_kind = "regression"

    def loss_sum(self, prediction, target):
        return torch.where(target.isnan(), 0.0, prediction - target).square().sum()


class Counter(nn.Module):
    """A layer that keeps something of its own in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x):
        self.seen += len(x)
        return x


class Net(nn.Module):
    def __init__(self, names):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv1d(3, 8, 1),
            nn.BatchNorm1d(8),
            nn.Dropout(0.5),
            nn.InstanceNorm1d(8, track_running_stats=True),
            nn.BatchNorm1d(8, momentum=None),
            Counter(),
            nn.Flatten(),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(32, 1) for name in names})

    def forward(self, group, tasks):
        z = self.trunk(group.inputs["x"])
        if random.random() + np.random.rand() > 5:  # other generators than torch's are drawn from as well
            z = z * 0
        return {name: self.heads[name](z) for name in tasks}


NAMES = ["a", "b", "c"]


@pytest.fixture
def setting():
    torch.manual_seed(0)
    model = Net(NAMES).train()
    cpu = torch.device("cpu")
    forward = Forward(model, {name: Squares() for name in NAMES}, cpu, nullcontext)

    def group(name, tasks):
        return Group(name, {"x": torch.randn(6, 3, 4)}, {task: torch.randn(6, 1) for task in tasks})

    # "c" is absent; the two micro-batches hold different groups
    micro_batches = [[group("one", ["a", "b"]), group("two", ["b"])], [group("one", ["a", "b"])]]
    probe = copy.deepcopy(model)
    outputs = probe(group("probe", NAMES), NAMES)
    reach = find_reach({k: [v] for k, v in outputs.items()}, list(probe.parameters()))
    tasks = {name: SimpleNamespace(loss_kind="regression") for name in NAMES}
    engine = Engine(Equal(tasks), list(model.parameters()), reach, micro_batches=2, reduce=identity, device=cpu)
    return model, forward, micro_batches, engine


def first(forward, micro_batches, engine):
    engine.begin(torch.tensor([12.0, 18.0, 0.0]))
    rng = rng_state()
    for batch in micro_batches:
        engine.backward(forward.loss_sums(batch))
    return engine.finish(), rng


def test_with_the_same_weights_it_repeats_the_first_bit_for_bit(setting):
    model, forward, micro_batches, engine = setting
    report, rng = first(forward, micro_batches, engine)
    again = second_losses(forward, model, micro_batches, engine, rng)
    assert torch.equal(again, report.losses[[0, 1]])
    plain = second_losses(forward, model, micro_batches, engine, rng_state())
    assert not torch.equal(plain, again), "without replayed dropout the losses should differ"


def test_it_leaves_nothing_behind(setting):
    model, forward, micro_batches, engine = setting
    _, rng = first(forward, micro_batches, engine)
    buffers = {k: v.clone() for k, v in model.named_buffers()}
    assert buffers["trunk.1.num_batches_tracked"] == 3 and buffers["trunk.5.seen"] == 18
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    before = rng_state()
    second_losses(forward, model, micro_batches, engine, rng)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    for p, grad in zip(model.parameters(), grads, strict=True):
        assert (p.grad is None) == (grad is None)
        assert grad is None or torch.equal(p.grad, grad)
    after = rng_state()
    assert torch.equal(before["torch"], after["torch"])
    assert before["python"] == after["python"]
    assert torch.equal(before["numpy"][1], after["numpy"][1]) and before["numpy"][2:] == after["numpy"][2:]
    assert model.training and all(module.training for module in model.modules())


def test_it_sees_the_new_weights_and_sums_over_ranks(setting):
    model, forward, micro_batches, engine = setting
    _, rng = first(forward, micro_batches, engine)
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.1 * (0 if p.grad is None else p.grad)
    # the same again by hand, on a copy
    other = copy.deepcopy(model)
    sums = dict.fromkeys(NAMES, 0.0)
    with random_replayed(rng):
        for batch in micro_batches:
            for group in batch:
                for name, prediction in other(group, list(group.targets)).items():
                    sums[name] += (prediction - group.targets[name]).square().sum().item()
    again = second_losses(forward, model, micro_batches, engine, rng)
    torch.testing.assert_close(again, torch.tensor([sums["a"] / 12, sums["b"] / 18]))
    engine.reduce = lambda tensor: tensor.mul_(2)  # as if another rank held the same
    torch.testing.assert_close(second_losses(forward, model, micro_batches, engine, rng), 2 * again)


def test_both_come_back_after_an_error():
    model = nn.BatchNorm1d(2)
    torch.manual_seed(3)
    state = torch.get_rng_state()

    def fail():
        model(torch.rand(4, 2))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), buffers_kept(model), random_replayed(rng_state()):
        fail()
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(model.running_mean, torch.zeros(2))
