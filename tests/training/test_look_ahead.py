"""Looking ahead: what weightings are told is exact, and nothing of it is left behind."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from runner.training.forward import Forward
from runner.training.look_ahead import LookAhead, label_counts
from runner.types import Group
from runner.weighting.base import Weighting
from runner.weighting.engine import Engine
from runner.weighting.equal import Equal
from runner.weighting.reach import find_reach
from runner.weighting.step import identity


class Squares:
    loss_kind = "regression"

    def loss_sum(self, prediction, target):
        return torch.where(target.isnan(), 0.0, prediction - target.nan_to_num()).square().sum()

    def loss_count(self, target):
        return (~target.isnan()).sum().double()


class Net(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Dropout(dropout), nn.Tanh())
        self.norm = nn.BatchNorm1d(6) if dropout else nn.Identity()
        self.heads = nn.ModuleDict({name: nn.Linear(6, 1) for name in "ab"})

    def forward(self, group, tasks):
        z = self.norm(self.trunk(group.inputs["x"]))
        return {name: self.heads[name](z)[:, 0] for name in tasks}


TASKS = {"a": Squares(), "b": Squares()}


def groups(seed, micro_batches):
    generator = torch.Generator().manual_seed(seed)
    x, a, b = (torch.randn(12, *shape, generator=generator) for shape in ((4,), (), ()))
    b[[0, 3, 4, 11]] = float("nan")
    return [[Group("set", {"x": x[r]}, {"a": a[r], "b": b[r]})] for r in torch.arange(12).chunk(micro_batches)]


def made(weighting: Weighting, net: Net, micro_batches: int, scale: float = 1.0) -> LookAhead:
    forward = Forward(net, TASKS, torch.device("cpu"), nullcontext)
    net.eval()
    reach = find_reach({k: [v] for k, v in net(groups(0, 1)[0][0], ["a", "b"]).items()}, list(net.parameters()))
    net.train()
    engine = Engine(
        weighting, list(net.parameters()), reach, micro_batches=micro_batches, reduce=identity,
        device=torch.device("cpu"), loss_scale=lambda: scale,
    )  # fmt: skip
    stream = SimpleNamespace(state={"step": 0}, close=lambda: None)
    look_ahead = LookAhead(weighting, forward, net, engine, stream)  # type: ignore[arg-type]
    look_ahead.batches = iter([(groups(1, micro_batches), {"step": 1})])
    return look_ahead


class Asks(Equal):
    """A weighting that does in `look_ahead` what a test wants."""

    def look_ahead(self, world):
        self.found = self.ask(world)


def ask(net, micro_batches, question, scale=1.0):
    weighting = Asks(TASKS)
    weighting.ask = question
    look_ahead = made(weighting, net, micro_batches, scale)
    batches = groups(0, micro_batches)
    look_ahead.step(batches, label_counts(batches, TASKS), 0.1, 0)
    assert look_ahead.state == {"step": 1}
    return weighting.found


def by_hand(net, seed, at=None):
    net = copy.deepcopy(net)
    if at is not None:
        torch.nn.utils.vector_to_parameters(
            torch.nn.utils.parameters_to_vector(net.parameters()) + at, net.parameters()
        )
    group = groups(seed, 1)[0][0]
    found = net(group, ["a", "b"])
    losses = [TASKS[k].loss_sum(found[k], group.targets[k]) / TASKS[k].loss_count(group.targets[k]) for k in TASKS]
    rows = []
    for loss in losses:
        grads = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True, allow_unused=True)
        zeros = (torch.zeros_like(p) if g is None else g for g, p in zip(grads, net.parameters(), strict=True))
        rows.append(torch.cat([g.flatten() for g in zeros]))
    return torch.stack(losses).detach().float(), torch.stack(rows)


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize(("examples", "seed"), [("train", 0), ("held_out", 1)])
def test_answers_are_those_of_autograd_on_the_whole_batch(micro_batches, examples, seed):
    torch.manual_seed(0)
    net = Net(0.0)
    at = 0.1 * torch.randn(sum(p.numel() for p in net.parameters()))

    def question(world):
        grad, losses = world.gradient(examples, torch.tensor([2.0, 3.0]), at=at)
        return world.losses(examples), world.gradients(examples), grad, losses, world.present(examples), world.lr

    losses, rows, grad, there, present, lr = ask(net, micro_batches, question, scale=128.0)
    want_losses, want_rows = by_hand(net, seed)
    torch.testing.assert_close(losses, want_losses)
    torch.testing.assert_close(rows, want_rows, rtol=1e-4, atol=1e-6)
    moved_losses, moved_rows = by_hand(net, seed, at)
    torch.testing.assert_close(there, moved_losses)
    torch.testing.assert_close(grad, 2 * moved_rows[0] + 3 * moved_rows[1], rtol=1e-4, atol=1e-6)
    assert present.tolist() == [0, 1] and lr == 0.1


def test_nothing_is_left_behind():
    torch.manual_seed(0)
    net = Net(0.5)
    net.heads["a"].weight.grad = torch.ones(1, 6)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    def question(world):
        at = world.gradients("train")[0]
        return [world.losses("held_out", at=at), world.gradient("train", torch.ones(2), at=-at)[1]]

    ask(net, 3, question)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(net.heads["a"].weight.grad, torch.ones(1, 6)) and net.trunk[0].weight.grad is None


def test_every_pass_draws_the_numbers_of_the_step():
    """Differences between two answers are those of the parameters, not of dropout."""
    torch.manual_seed(0)
    net = Net(0.5)
    first, again = ask(net, 1, lambda world: (world.losses("train"), world.losses("train")))
    assert torch.equal(first, again)
