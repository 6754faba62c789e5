"""Every option of configs/weighting keeps the promises of the engine."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

from runner.config.build import build
from runner.config.paths import config_root
from runner.errors import UserError
from runner.weighting.base import CrossWeighting, GradientWeighting, LossWeighting, MatrixWeighting
from runner.weighting.engine import Engine
from runner.weighting.last_layer import LastLayerWeighting
from runner.weighting.reach import find_reach
from runner.weighting.step import identity
from runner.weighting.tracked import TrackedWeighting

OPTIONS = sorted(Path(config_root()).glob("weighting/*.yaml"))
TASKS = {
    "a": SimpleNamespace(loss_kind="classification"),
    "b": SimpleNamespace(loss_kind="regression"),
    "c": SimpleNamespace(loss_kind="regression"),
}


CASES = {path.stem: {} for path in OPTIONS} | {
    f"{path.stem}-{mode}": {"mode": mode}
    for path in OPTIONS
    if "mode" in yaml.safe_load(path.read_text())
    for mode in ("gram", "representation")
}


@pytest.fixture(params=CASES)
def make(request):
    (path,) = (path for path in OPTIONS if path.stem == request.param.partition("-")[0])
    config = yaml.safe_load(path.read_text()) | CASES[request.param]
    return lambda tasks=TASKS: build(config, tasks)


class Net(nn.Module):
    representation = "trunk"

    def __init__(self, tasks) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
        self.heads = nn.ModuleDict({name: nn.Linear(6, 1) for name in tasks})

    def forward(self, x_BF):
        z = self.trunk(x_BF)
        return {name: head(z) for name, head in self.heads.items()}


def world(tasks, seed=0):
    torch.manual_seed(seed)
    net = Net(tasks)
    return net, torch.randn(12, 4), {name: torch.randn(12, 1) for name in tasks}


def step(net, weighting, x, targets, present, micro_batches=1, scale=1.0, number=0, per_epoch=1):
    names = list(targets)
    micro_batches = math.lcm(micro_batches, sum(weighting.parts))
    reach = find_reach({k: [v] for k, v in net(x[:1]).items()}, list(net.parameters()))
    engine = Engine(
        weighting, list(net.parameters()), reach, micro_batches=micro_batches, reduce=identity,
        device=torch.device("cpu"), loss_scale=lambda: scale, model=net, skippable=scale != 1.0,
    )  # fmt: skip
    chunks = torch.arange(len(x)).chunk(micro_batches)
    counts = torch.tensor([[float(len(rows)) if k in present else 0.0 for k in names] for rows in chunks])
    engine.begin(counts, number, per_epoch)
    for rows in chunks:
        predictions = net(x[rows])
        engine.backward({k: (predictions[k] - targets[k][rows]).square().sum() for k in present})
    report = engine.finish()
    if weighting.wants_second_losses:  # as if the step had helped the first tasks most
        fallen = torch.linspace(0.5, 1.0, len(engine.present))
        weighting.after_update(report.losses[engine.present] * fallen, torch.tensor(engine.present))
    return report, [None if p.grad is None else p.grad.clone() / scale for p in net.parameters()]


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_is_one_of_the_six_kinds(make):
    kinds = LossWeighting | GradientWeighting | MatrixWeighting | TrackedWeighting | CrossWeighting | LastLayerWeighting
    assert isinstance(make(), kinds)


@pytest.mark.parametrize(("micro_batches", "scale"), [(3, 1.0), (4, 1.0), (1, 4096.0)])
def test_accumulation_and_loss_scaling_change_nothing(make, micro_batches, scale):
    net, x, targets = world(TASKS)
    weighting = make()
    if weighting.mode == "gram" and micro_batches > 1:
        with pytest.raises(UserError, match=r"needs trainer.accumulation=1"):
            step(net, weighting, x, targets, list(TASKS), micro_batches, scale)
        return
    other = copy.deepcopy(weighting)
    other.load_state_dict(weighting.state_dict())
    report, plain = step(net, weighting, x, targets, list(TASKS))
    again, split = step(net, other, x, targets, list(TASKS), micro_batches, scale)
    assert_same(plain, split)
    torch.testing.assert_close(report.weights, again.weights, rtol=1e-4, atol=1e-6)


def test_one_task_trains_in_the_direction_of_its_own_gradient(make):
    tasks = {"a": TASKS["a"]}
    net, x, targets = world(tasks)
    _, grads = step(net, make(tasks), x, targets, ["a"])
    loss = (net(x)["a"] - targets["a"]).square().mean()
    want = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(net.parameters()))])
    got = torch.cat([g.reshape(-1) for g in grads])
    assert torch.cosine_similarity(got, want, dim=0) == pytest.approx(1.0, abs=1e-5)


def test_an_absent_task_is_left_alone(make):
    net, x, targets = world(TASKS)
    report, grads = step(net, make(), x, targets, ["a", "c"])
    names = [n for n, _ in net.named_parameters()]
    assert all((g is None) == n.startswith("heads.b") for n, g in zip(names, grads, strict=True))
    assert report.weights[1].isnan() and report.weights[[0, 2]].isfinite().all()


def test_state_continues_exactly(make):
    """Five steps, saved, five more: the same as ten; over several epochs, with a task that is absent at times."""
    weighting = make()
    optimizer = torch.optim.SGD(
        [p for g in weighting.parameter_groups() for p in g["params"]] or [nn.Parameter(torch.zeros(1))], 0.1
    )

    def run(method, chosen, seeds):
        out = []
        for seed in seeds:
            net, x, targets = world(TASKS, seed)
            present = list(TASKS) if seed % 3 else ["a", "c"]
            out.append(
                [g for g in step(net, method, x, targets, present, number=seed, per_epoch=2)[1] if g is not None]
            )
            chosen.step()
        return out

    run(weighting, optimizer, range(5))
    saved = {k: v.clone() for k, v in weighting.state_dict().items()}
    other = make()
    other.load_state_dict(saved)
    second = torch.optim.SGD(
        [p for g in other.parameter_groups() for p in g["params"]] or [nn.Parameter(torch.zeros(1))], 0.1
    )
    for first, again in zip(run(weighting, optimizer, range(5, 10)), run(other, second, range(5, 10)), strict=True):
        for a, b in zip(first, again, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_survives_losses_of_any_scale(make, scale):
    net, x, targets = world(TASKS)
    factor = scale**0.5
    small = {k: v * factor for k, v in targets.items()}
    report, grads = step(net, make(), x, small, list(TASKS))
    assert report.losses.isfinite().all()
    assert all(g.isfinite().all() for g in grads if g is not None)
