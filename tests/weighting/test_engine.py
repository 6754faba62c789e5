"""The engine against plain autograd on the whole batch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from runner.weighting.base import LossWeighting
from runner.weighting.engine import Engine
from runner.weighting.equal import Equal
from runner.weighting.fixed import Fixed
from runner.weighting.pcgrad import PCGrad
from runner.weighting.reach import find_reach
from runner.weighting.step import NonFiniteLoss, identity
from runner.weighting.uncertainty import Uncertainty

TASKS = {
    "a": SimpleNamespace(loss_kind="classification"),
    "b": SimpleNamespace(loss_kind="regression"),
    "c": SimpleNamespace(loss_kind="regression"),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 7), nn.Tanh())
        self.heads = nn.ModuleDict({name: nn.Linear(7, 2) for name in TASKS})

    def forward(self, x_BF: torch.Tensor) -> dict[str, torch.Tensor]:
        z = self.trunk(x_BF)
        return {name: head(z) for name, head in self.heads.items()}


class Geometric(LossWeighting):
    """A method whose weights depend on the losses."""

    linear = False

    def combine(self, losses, present):
        return torch.exp(torch.log(losses).mean())


@pytest.fixture
def setting():
    torch.manual_seed(0)
    net = Net()
    x = torch.randn(12, 5)
    targets = {name: torch.randn(12, 2) for name in TASKS}
    targets["b"][3:9] = float("nan")  # partially labelled, unevenly over the micro-batches
    return net, x, targets


def sums_and_counts(prediction, target):
    labelled = ~target.isnan()
    return ((prediction - target.nan_to_num()) ** 2 * labelled).sum(), labelled.sum().double()


def run_engine(net, weighting, x, targets, micro_batches, names=tuple(TASKS), scale=1.0, step=0):
    reach = find_reach({k: [v] for k, v in net(x[:1]).items()}, list(net.parameters()))
    engine = Engine(
        weighting,
        list(net.parameters()),
        reach,
        micro_batches=micro_batches,
        reduce=identity,
        device=torch.device("cpu"),
        loss_scale=lambda: scale,
    )
    counts = torch.tensor([sums_and_counts(0, targets[k])[1] if k in names else 0.0 for k in TASKS])
    engine.begin(counts, step)
    for rows in torch.arange(len(x)).chunk(micro_batches):
        predictions = net(x[rows])
        engine.backward({k: sums_and_counts(predictions[k], targets[k][rows])[0] for k in names})
    return engine.finish(), [None if p.grad is None else p.grad.clone() for p in net.parameters()]


def full_losses(net, x, targets):
    predictions = net(x)
    out = {}
    for name in TASKS:
        total, count = sums_and_counts(predictions[name], targets[name])
        out[name] = total / count.float()
    return out


def task_gradients(net, losses):
    return {
        k: torch.autograd.grad(loss, list(net.parameters()), retain_graph=True, allow_unused=True)
        for k, loss in losses.items()
    }


@pytest.mark.parametrize("micro_batches", [1, 3, 4])
@pytest.mark.parametrize(
    "weighting",
    [
        Equal(TASKS),
        Equal(TASKS, scale="mean"),
        Fixed(TASKS, weights={"b": 3.0, "c": 0.5}),
        Uncertainty(TASKS, init=0.3),
        Geometric(TASKS),
    ],
    ids=["equal", "equal_mean", "fixed", "uncertainty", "geometric"],
)
def test_loss_weightings_equal_autograd_of_the_total(setting, weighting, micro_batches):
    net, x, targets = setting
    losses = torch.stack(list(full_losses(net, x, targets).values()))
    total = weighting.combine(losses, torch.arange(3))
    own = list(weighting.parameters())
    expected = torch.autograd.grad(total, list(net.parameters()) + own)
    report, grads = run_engine(net, weighting, x, targets, micro_batches)
    torch.testing.assert_close(report.losses, losses.detach().float())
    assert report.cosines.shape == (3, 3) and report.grad_norms.shape == (3,)
    for got, want in zip(grads, expected, strict=False):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    for parameter, want in zip(own, expected[len(grads) :], strict=True):
        torch.testing.assert_close(parameter.grad, want)


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("heads", ["weighted", "unweighted"])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_pcgrad_equals_the_algorithm_on_full_gradients(setting, micro_batches, heads, scale):
    net, x, targets = setting
    net.trunk[0].weight.data.mul_(3)  # so that some pairs conflict
    grads = task_gradients(net, full_losses(net, x, targets))
    shared = {k: torch.cat([g.reshape(-1) for g in grads[k][:2]]).double() for k in TASKS}
    # Algorithm 1, on the vectors themselves, with the same random orders
    generator = torch.Generator().manual_seed(7)
    names = list(TASKS)
    total = torch.zeros_like(shared["a"])
    for i in names:
        g = shared[i].clone()
        for j in torch.randperm(3, generator=generator).tolist():
            if names[j] != i and g @ shared[names[j]] < 0:
                g -= (g @ shared[names[j]]) / (shared[names[j]] @ shared[names[j]]) * shared[names[j]]
        total += g
    report, got = run_engine(net, PCGrad(TASKS, heads=heads, seed=7), x, targets, micro_batches, scale=scale)
    assert (report.cosines < 0).any(), "the test needs a conflict"
    torch.testing.assert_close(
        torch.cat([g.reshape(-1) for g in got[:2]]).double() / scale, total, rtol=1e-5, atol=1e-6
    )
    for k, name in enumerate(TASKS):
        torch.testing.assert_close(report.grad_norms[k].double(), shared[name].norm(), rtol=1e-5, atol=1e-6)
    want = torch.cosine_similarity(shared["a"], shared["b"], dim=0)
    torch.testing.assert_close(report.cosines[0, 1].double(), want, rtol=1e-5, atol=1e-6)
    assert 0 < report.solver_s < 1
    for k, name in enumerate(TASKS):
        weight = report.weights[k] if heads == "weighted" else 1.0
        for position in (2 + 2 * k, 3 + 2 * k):
            torch.testing.assert_close(got[position] / scale, weight * grads[name][position], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "weighting", [Equal(TASKS), Uncertainty(TASKS), PCGrad(TASKS)], ids=["equal", "uncertainty", "pcgrad"]
)
def test_an_absent_task_takes_no_part(setting, weighting):
    net, x, targets = setting
    report, grads = run_engine(net, weighting, x, targets, 2, names=("a", "c"))
    assert report.losses[1].isnan() and report.weights[1].isnan()
    names = [n for n, _ in net.named_parameters()]
    for name, grad in zip(names, grads, strict=True):
        assert (grad is None) == ("heads.b" in name), name
    if isinstance(weighting, Uncertainty):
        assert weighting.log_variance.grad[1] == 0


def test_one_task_equals_plain_training(setting):
    net, x, targets = setting
    only = {"a": targets["a"]}
    loss = sums_and_counts(net(x)["a"], only["a"])
    expected = torch.autograd.grad(loss[0] / loss[1], list(net.trunk.parameters()))
    for weighting in (Equal(TASKS), PCGrad(TASKS)):
        _, grads = run_engine(net, weighting, x, targets, 2, names=("a",))
        for got, want in zip(grads[:2], expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "weighting", [Equal(TASKS), PCGrad(TASKS), Geometric(TASKS)], ids=["equal", "pcgrad", "geometric"]
)
def test_a_loss_that_is_not_finite_names_its_task(setting, weighting):
    net, x, targets = setting
    targets["c"][0, 0] = float("inf")
    with pytest.raises(NonFiniteLoss) as error:
        run_engine(net, weighting, x, targets, 2 if not isinstance(weighting, Geometric) else 1)
    assert error.value.tasks == ["c"]


def test_reach_tells_shared_from_specific(setting):
    net, x, _ = setting
    names = [n for n, _ in net.named_parameters()]
    reach = find_reach({k: [v] for k, v in net(x).items()}, list(net.parameters()))
    assert {names[i] for i in reach.shared} == {"trunk.0.weight", "trunk.0.bias"}
    assert {names[i] for i in reach.specific["b"]} == {"heads.b.weight", "heads.b.bias"}
    assert reach.of([0]) == sorted(reach.reached["a"])


@pytest.mark.parametrize("weighting", [Equal(TASKS), PCGrad(TASKS), PCGrad(TASKS, heads="weighted"), Geometric(TASKS)])
def test_gradients_have_the_layout_of_their_parameters(weighting):
    """Fused optimizers ignore strides: a channels-last gradient of a contiguous weight updates the wrong entries."""

    class Convs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Conv2d(3, 8, 3, padding=1)
            self.heads = nn.ModuleDict({name: nn.Conv2d(8, 8, 3) for name in TASKS})

        def forward(self, x):
            z = self.trunk(x.to(memory_format=torch.channels_last)).tanh()
            return {name: head(z) for name, head in self.heads.items()}

    torch.manual_seed(0)
    net, x = Convs(), torch.randn(2, 3, 6, 6)
    net.trunk.to(memory_format=torch.channels_last)
    reach = find_reach({k: [v] for k, v in net(x).items()}, list(net.parameters()))
    parameters = list(net.parameters())
    engine = Engine(weighting, parameters, reach, micro_batches=1, reduce=identity, device=torch.device("cpu"))
    engine.begin(torch.ones(3))
    losses = {k: v.square().mean() for k, v in net(x).items()}
    grads = torch.autograd.grad(losses["a"], net.heads["a"].weight, retain_graph=True)
    assert grads[0].stride() != net.heads["a"].weight.stride(), "the case that the test is about"
    engine.backward(losses)
    engine.finish()
    for parameter in parameters:
        assert parameter.grad.stride() == parameter.stride()


@pytest.mark.parametrize("heads", ["weighted", "unweighted"])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_a_step_between_solves_applies_the_kept_coefficients(setting, heads, micro_batches):
    net, x, targets = setting
    method = PCGrad(TASKS, heads=heads, every=2)
    net.trunk[0].weight.data.mul_(3)
    first, _ = run_engine(net, method, x, targets, micro_batches)
    grads = task_gradients(net, full_losses(net, x, targets))
    second, got = run_engine(net, method, x, targets, micro_batches, scale=64.0, step=1)
    assert first.cosines.isfinite().all() and second.cosines.isnan().all()
    assert torch.equal(first.weights, second.weights) and (first.weights != 1).any()
    for position in range(2):
        want = sum(w * grads[k][position] for w, k in zip(first.weights, TASKS, strict=True))
        torch.testing.assert_close(got[position] / 64, want, rtol=1e-5, atol=1e-6)
    for k, name in enumerate(TASKS):
        weight = first.weights[k] if heads == "weighted" else 1.0
        for position in (2 + 2 * k, 3 + 2 * k):
            torch.testing.assert_close(got[position] / 64, weight * grads[name][position], rtol=1e-5, atol=1e-6)


def test_squares_beyond_float32_are_no_overflow(setting):
    net, x, targets = setting
    net.trunk[0].weight.data.mul_(3)
    plain, expected = run_engine(net, PCGrad(TASKS), x, targets, 1)
    report, got = run_engine(net, PCGrad(TASKS), x, targets, 1, scale=2.0**110)
    torch.testing.assert_close(report.weights, plain.weights)
    torch.testing.assert_close(got[0] / 2.0**110, expected[0])


def test_an_overflow_of_the_loss_scale_is_not_solved_and_reaches_the_scaler(setting):
    net, x, targets = setting
    targets["a"] = targets["a"] * 100
    method = PCGrad(TASKS, every=2)
    state = {k: v.clone() for k, v in method.state_dict().items()}
    _, grads = run_engine(net, method, x, targets, 1, scale=3e38)
    assert not all(g.isfinite().all() for g in grads)
    for name, value in method.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0, equal_nan=True)


def test_what_a_step_leaves_in_the_buffer_does_not_reach_the_next(setting):
    """The buffer is not cleared: a task that is absent now, or reaches fewer parameters, must not find old numbers."""
    net, x, targets = setting
    reach = find_reach({k: [v] for k, v in net(x[:1]).items()}, list(net.parameters()))
    engine = Engine(
        PCGrad(TASKS), list(net.parameters()), reach, micro_batches=1, reduce=identity, device=torch.device("cpu")
    )
    results = []
    for names in (list(TASKS), ["a", "c"], ["b"], ["a", "c"]):
        counts = torch.tensor([sums_and_counts(0, targets[k])[1] if k in names else 0.0 for k in TASKS])
        engine.begin(counts)
        predictions = net(x)
        engine.backward({k: sums_and_counts(predictions[k], targets[k])[0] for k in names})
        engine.finish()
        results.append([None if p.grad is None else p.grad.clone() for p in net.parameters()])
    _, fresh = run_engine(net, PCGrad(TASKS), x, targets, 1, names=("a", "c"))
    for got, want in zip(results[3], fresh, strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            torch.testing.assert_close(got, want)
