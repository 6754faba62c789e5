"""MoDo and SDMGrad: independent parts of a batch, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from runner.weighting.engine import Engine
from runner.weighting.modo import MoDo
from runner.weighting.reach import find_reach
from runner.weighting.sdmgrad import SDMGrad, direction_weights
from runner.weighting.solvers import min_norm, simplex_minimum
from runner.weighting.step import identity

TASKS = {name: SimpleNamespace(loss_kind="regression") for name in "abc"}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
        self.heads = nn.ModuleDict({name: nn.Linear(6, 2) for name in TASKS})

    def forward(self, x):
        z = self.trunk(x)
        return {name: head(z) for name, head in self.heads.items()}


def world():
    torch.manual_seed(0)
    net = Net()
    x, targets = torch.randn(16, 5), {name: torch.randn(16, 2) for name in TASKS}
    targets["b"][[1, 5, 6, 11]] = float("nan")
    return net, x, targets


def loss_of(prediction, target):
    labelled = ~target.isnan()
    return ((prediction - target.nan_to_num()) ** 2 * labelled).sum(), float(labelled.sum())


def run(net, method, x, targets, micro_batches=4, scale=1.0, patterns=None):
    parameters = list(net.parameters())
    reach = find_reach({k: [v] for k, v in net(x[:1]).items()}, parameters)
    reach = reach.restrict([n for n, _ in net.named_parameters()], patterns)
    engine = Engine(
        method, parameters, reach, micro_batches=micro_batches, reduce=identity, device=torch.device("cpu"),
        loss_scale=lambda: scale,
    )  # fmt: skip
    chunks = torch.arange(len(x)).chunk(micro_batches)
    engine.begin(torch.tensor([[loss_of(0, targets[k][rows])[1] for k in TASKS] for rows in chunks]))
    for rows in chunks:
        found = net(x[rows])
        engine.backward({k: loss_of(found[k], targets[k][rows])[0] for k in TASKS})
    return engine.finish(), [p.grad.clone() / scale for p in parameters]


def part_gradients(net, x, targets, rows):
    found = net(x[rows])
    out = []
    for name in TASKS:
        total, count = loss_of(found[name], targets[name][rows])
        grads = torch.autograd.grad(total / count, list(net.trunk.parameters()), retain_graph=True)
        out.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(out).double()


@pytest.mark.parametrize("micro_batches", [4, 8, 16])
@pytest.mark.parametrize("scale", [1.0, 512.0])
@pytest.mark.parametrize("heads", ["weighted", "unweighted"])
def test_modo_is_algorithm_1_on_three_parts(micro_batches, scale, heads):
    net, x, targets = world()
    method = MoDo(TASKS, gamma=0.05, rho=0.1, heads=heads)
    report, got = run(net, method, x, targets, micro_batches, scale)
    first, second, third = (part_gradients(net, x, targets, rows) for rows in (slice(0, 4), slice(4, 8), slice(8, 16)))
    lam = torch.full((3,), 1 / 3, dtype=torch.float64)
    cross = second @ first.T
    assert (cross - cross.T).abs().max() > 1e-3, "independent samples: the matrix is not symmetric"
    moved = lam - 0.05 * (cross + 0.1 * torch.eye(3)) @ lam
    shift = (moved.sum() - 1) / 3
    assert (moved > shift).all(), "the projection is the plain shift here"
    torch.testing.assert_close(report.weights.double(), moved - shift, rtol=1e-4, atol=1e-6)
    trunk = torch.cat([g.flatten() for g in got[:2]]).double()
    torch.testing.assert_close(trunk, (moved - shift) @ third, rtol=1e-4, atol=1e-5)
    found = net(x)
    for n, name in enumerate(TASKS):  # heads follow the whole batch
        total, count = loss_of(found[name], targets[name])
        (want,) = torch.autograd.grad(total / count, net.heads[name].weight, retain_graph=True)
        want = want * (report.weights[n] if heads == "weighted" else 1.0)
        torch.testing.assert_close(got[2 + 2 * n], want, rtol=1e-4, atol=1e-6)


def test_parameters_that_do_not_count_as_shared_follow_the_whole_batch():
    net, x, targets = world()
    _, got = run(net, MoDo(TASKS), x, targets, patterns=["trunk.0.weight"])
    found = net(x)
    total = sum(s / c for s, c in (loss_of(found[k], targets[k]) for k in TASKS))
    (want,) = torch.autograd.grad(total, net.trunk[0].bias)
    torch.testing.assert_close(got[1], want, rtol=1e-4, atol=1e-6)


def test_a_task_without_a_label_in_one_part_keeps_its_share():
    net, x, targets = world()
    targets["b"][4:8] = float("nan")
    method = MoDo(TASKS, gamma=0.05)
    report, grads = run(net, method, x, targets)
    assert method.weights[1] == pytest.approx(1 / 3) and method.weights[0] != pytest.approx(1 / 3)
    assert method.weights.sum() == pytest.approx(1.0) and report.weights.isfinite().all()
    assert all(g.isfinite().all() for g in grads)


def test_sdmgrad_takes_its_projected_steps():
    """Algorithm 1 with the authors' momentum, the projection by sorting written out."""
    rng = np.random.default_rng(0)
    cross = rng.normal(size=(3, 3)) * 0.1 + 0.5 * np.eye(3)
    w, velocity = np.full(3, 1 / 3), np.zeros(3)
    for _ in range(20):
        velocity = 0.5 * velocity + cross @ w + 0.3 * cross.mean(1)
        v = w - 10.0 * velocity
        u = np.sort(v)[::-1]
        rho = np.nonzero(u * np.arange(1, 4) > np.cumsum(u) - 1)[0][-1]
        w = np.clip(v - (np.cumsum(u)[rho] - 1) / (rho + 1), 0, None)
    found = direction_weights(torch.from_numpy(cross), torch.full((3,), 1 / 3).double(), 0.3, 20, 10.0)
    np.testing.assert_allclose(found.numpy(), w, atol=1e-7)


@pytest.mark.parametrize("lamda", [0.0, 0.6])
def test_sdmgrad_converges_to_the_direction_oriented_optimum(lamda):
    rows = np.random.default_rng(1).normal(size=(4, 6)) + 0.5
    gram = rows @ rows.T / 10
    found = direction_weights(torch.from_numpy(gram), torch.full((4,), 0.25).double(), lamda, 3000, 0.05).numpy()
    want = simplex_minimum(lambda w: (gram @ w + lamda * gram.mean(1), gram), np.ones(4))
    np.testing.assert_allclose(found, want, atol=1e-4)
    if lamda == 0:
        np.testing.assert_allclose(found, min_norm(gram), atol=1e-4)


def test_sdmgrad_in_the_engine():
    net, x, targets = world()
    method = SDMGrad(TASKS, lamda=0.3)
    report, got = run(net, method, x, targets)
    first, second, third = (part_gradients(net, x, targets, rows) for rows in (slice(0, 4), slice(4, 8), slice(8, 16)))
    cross = second @ first.T
    unit = cross.diagonal().clamp_min(0).sqrt().mean() ** 2
    w = direction_weights(cross / unit, torch.full((3,), 1 / 3).double(), 0.3, 20, 10.0)
    want = (w @ third + 0.3 * third.mean(0)) / 1.3
    torch.testing.assert_close(torch.cat([g.flatten() for g in got[:2]]).double(), want, rtol=1e-3, atol=1e-4)
    assert report.weights.sum() == pytest.approx(1.0, abs=1e-5)


def test_products_with_a_negative_diagonal_move_nothing_or_stay_finite():
    method = SDMGrad(TASKS)
    method.update(-torch.eye(3).double(), torch.arange(3))
    torch.testing.assert_close(method.weights, torch.full((3,), 1 / 3).double())
    method.update(torch.diag(torch.tensor([-1.0, 2, 3])).double(), torch.arange(3))
    assert method.weights.isfinite().all() and method.weights.sum() == pytest.approx(1.0)
