"""GradNorm, and the pass that follows each loss back to the last shared layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from runner.weighting.engine import Engine
from runner.weighting.gradnorm import GradNorm, weight_gradient
from runner.weighting.last_layer import last_layer
from runner.weighting.reach import find_reach
from runner.weighting.step import identity
from tests.weighting.grams import DEGENERATE, tasks

NAMES = list(tasks(3))
LOSSES = torch.tensor([0.5, 2.0, 7.0])
NORMS = torch.tensor([1.0, 3.0, 0.2])
EVERYONE = torch.arange(3)


class Net(nn.Module):
    """Counts how often the gradient goes through its first layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 6)
        self.heads = nn.ModuleDict({name: nn.Linear(6, 1) for name in NAMES})
        self.backwards = 0

    def forward(self, x_BF):
        z = torch.tanh(self.first(x_BF))
        if z.requires_grad:
            z.register_hook(self.count)
        z = torch.tanh(self.last(z))
        return {name: head(z) for name, head in self.heads.items()}

    def count(self, grad):
        self.backwards += 1


def losses_of(net, x_BF, targets):
    return {name: (made - targets[name]).square().mean() for name, made in net(x_BF).items()}


def data():
    torch.manual_seed(1)
    return torch.randn(12, 4), {name: (n + 1) * torch.randn(12, 1) for n, name in enumerate(NAMES)}


def engine_of(net, method, x_BF):
    parameters = list(net.parameters())
    reach = find_reach({k: [v] for k, v in net(x_BF[:1]).items()}, parameters)
    return Engine(method, parameters, reach, micro_batches=1, reduce=identity, device=torch.device("cpu"), model=net)


def step(engine, net, x_BF, targets, number=0):
    engine.begin(torch.full((3,), float(len(x_BF))), number)
    engine.backward({name: loss * len(x_BF) for name, loss in losses_of(net, x_BF, targets).items()})
    return engine.finish()


def test_gradient_is_autograds():
    norms, ratios = torch.tensor([3.0, 0.5, 1.0]), torch.tensor([0.9, 0.4, 0.7])
    w = torch.tensor([0.8, 1.5, 0.7], requires_grad=True)
    scaled = w * norms
    target = (scaled.mean() * (ratios / ratios.mean()) ** 1.5).detach()
    (scaled - target).abs().sum().backward()
    torch.testing.assert_close(weight_gradient(w.detach(), norms, ratios, 1.5), w.grad)


@pytest.mark.parametrize("heads", ["weighted", "unweighted"])
def test_steps_are_algorithm_1(heads):
    """The model's gradient is that of Σ w_k L_k, the weights' that of L_grad, both by autograd, over six steps."""
    (x_BF, targets), net, other = data(), Net(), Net()
    method = GradNorm(tasks(3), lr=0.1, heads=heads)
    engine = engine_of(net, method, x_BF)
    optimizer = torch.optim.SGD([*net.parameters(), *method.parameters()], lr=0.05)
    w, initial = torch.ones(3), None
    for number in range(6):
        report = step(engine, net, x_BF, targets, number)
        losses = torch.stack(list(losses_of(other, x_BF, targets).values()))
        initial = losses.detach() if initial is None else initial
        grads = [torch.cat([g.flatten() for g in torch.autograd.grad(loss, other.last.parameters(), retain_graph=True)])
                 for loss in losses]  # fmt: skip
        norms = torch.stack([g.norm() for g in grads])
        torch.testing.assert_close(report.grad_norms, norms)
        torch.testing.assert_close(report.cosines[0, 1], torch.cosine_similarity(grads[0], grads[1], dim=0))
        leaf = w.clone().requires_grad_()
        ratios = losses.detach() / initial
        target = ((leaf * norms).mean() * (ratios / ratios.mean()) ** method.alpha).detach()
        (leaf * norms - target).abs().sum().backward()
        torch.testing.assert_close(method.weights.grad, leaf.grad)
        torch.testing.assert_close(report.weights, w)
        wanted = torch.autograd.grad((w * losses).sum(), list(other.parameters()), retain_graph=True)
        plain = torch.autograd.grad(losses.sum(), list(other.parameters()))
        for mine, theirs, weighted, unweighted in zip(
            net.parameters(), other.named_parameters(), wanted, plain, strict=True
        ):
            grad = unweighted if heads == "unweighted" and theirs[0].startswith("heads") else weighted
            torch.testing.assert_close(mine.grad, grad)
            theirs[1].data -= 0.05 * grad
        optimizer.step()
        w = w - 0.05 * leaf.grad
        w = w.clamp_min(1e-3) * (3 / w.clamp_min(1e-3).sum())
        assert (w - 1).abs().max() > 1e-3
    torch.testing.assert_close(method.initial_losses, initial)


def test_only_one_backward_pass_goes_through_the_model():
    (x_BF, targets), net = data(), Net()
    engine = engine_of(net, GradNorm(tasks(3)), x_BF)
    step(engine, net, x_BF, targets)
    assert net.backwards == 1
    assert sum(p.numel() for p in engine.main.grads.parameters) == 6 * 8 + 6


def test_last_layer_is_a_matrix_and_its_bias():
    net = Net()
    assert [id(p) for p in last_layer(list(net.last.parameters()))] == [id(p) for p in net.last.parameters()]
    shared = [*net.first.parameters(), *net.last.parameters()]
    assert [id(p) for p in last_layer(shared)] == [id(p) for p in net.last.parameters()]
    vectors = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]
    assert last_layer(vectors) == vectors
    assert last_layer([]) == []


@pytest.mark.parametrize("name", DEGENERATE)
def test_survives_degenerate_gradients(name):
    norms = DEGENERATE[name].float().norm(dim=1)
    method, present = GradNorm(tasks(len(norms))), torch.arange(len(norms))
    for number in range(5):
        method.begin_step(number, 1)
        method.update(norms, torch.ones(len(norms)), present)
        assert method.weights.grad.isfinite().all() and method.current(present).isfinite().all()


def test_an_overflow_of_the_loss_scale_moves_nothing():
    (x_BF, targets), net = data(), Net()
    method = GradNorm(tasks(3))
    engine = engine_of(net, method, x_BF)
    engine.loss_scale = lambda: 1e38
    step(engine, net, x_BF, {name: 100 * target for name, target in targets.items()})
    assert not all(p.grad.isfinite().all() for p in net.parameters())
    assert method.weights.grad is None and method.initial_losses.isnan().all()


def test_state_continues_exactly_with_a_task_missing_in_between():
    def run(method, numbers):
        out = []
        for number in numbers:
            method.begin_step(number, 1)
            present = EVERYONE if number % 2 == 0 else torch.tensor([0, 2])
            out.append(method.current(present).clone())
            method.update(NORMS[present] * (number + 1), LOSSES[present] / (number + 1), present)
            method.weights.data -= 0.1 * method.weights.grad
        return out

    first, second = GradNorm(tasks(3)), GradNorm(tasks(3))
    run(first, range(4))
    second.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    for a, b in zip(run(second, range(4, 8)), run(first, range(4, 8)), strict=True):
        assert torch.equal(a, b)


def test_the_sum_stays_k_and_no_weight_falls_below_zero():
    method = GradNorm(tasks(3))
    method.weights.data = torch.tensor([5.0, -1.0, 1.0])
    method.begin_step(1, 1)
    assert method.weights.sum().item() == pytest.approx(3.0) and method.weights.min() > 0


def test_evens_out_the_norms():
    """With constant gradients and alpha 0, the weights approach the inverse norms."""
    method, norms = GradNorm(tasks(3), alpha=0.0), torch.tensor([3.0, 0.5, 1.0])
    optimizer = torch.optim.SGD(method.parameters(), lr=1e-3)
    for number in range(4000):
        method.begin_step(number, 1)
        method.update(norms, LOSSES, EVERYONE)
        optimizer.step()
    scaled = method.weights.detach() * norms
    assert scaled.max() / scaled.min() < 1.05
