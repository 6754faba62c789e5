"""The K×P matrix: what the backward passes write into it, and what it makes of its first row."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from runner.weighting import buffer
from runner.weighting.buffer import TaskGradients, combination


class Net(nn.Module):
    """A layer whose weight is used twice, one that a single loss reaches, and a convolution in channels-last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1).to(memory_format=torch.channels_last)
        self.layer, self.alone = nn.Linear(3, 3), nn.Linear(3, 3)

    def losses(self, x):
        z = self.conv(x.to(memory_format=torch.channels_last)).mean((2, 3))
        twice = self.layer(self.layer(z).tanh())
        return [twice.square().sum(), (self.alone(z) * twice).sum(), z.detach().sum() + self.layer(z.detach()).sum()]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.mark.parametrize("large", [1, 10, 2**16])
def test_rows_hold_the_gradients_whatever_counts_as_large(net, large, monkeypatch):
    """Two micro-batches of two steps; unreached parameters are zero; no hook stays behind."""
    monkeypatch.setattr(buffer, "_LARGE", large)
    shared, others = list(net.parameters())[:-1], [net.alone.bias]
    grads = TaskGradients(3, shared, torch.device("cpu"))
    for seed in range(2):
        torch.manual_seed(seed)
        batches = torch.randn(2, 4, 2, 5, 5)
        grads.begin()
        want = torch.zeros_like(grads.matrix_KP)
        for x in batches:
            losses = net.losses(x)
            for k, loss in enumerate(losses):
                (other,) = grads.backward(k, loss, others, retain_graph=True)
                found = torch.autograd.grad(loss, [*shared, *others], retain_graph=True, allow_unused=True)
                rows = [torch.zeros_like(p) if g is None else g for p, g in zip(shared, found, strict=False)]
                want[k] += torch.cat([row.reshape(-1) for row in rows])
                assert (other is None) == (found[-1] is None)
                assert other is None or torch.equal(other, found[-1])
        torch.testing.assert_close(grads.finish(), want)
    assert not any(p._backward_hooks for p in shared)


def test_a_backward_pass_that_fails_leaves_no_hook(net, monkeypatch):
    monkeypatch.setattr(buffer, "_LARGE", 1)
    grads = TaskGradients(1, list(net.parameters()), torch.device("cpu"))
    loss = net.losses(torch.randn(4, 2, 5, 5))[0]
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        grads.backward(0, loss, [], retain_graph=False)
    assert not any(p._backward_hooks for p in net.parameters())


def test_the_combination_takes_the_first_rows_place(net, monkeypatch):
    monkeypatch.setattr(buffer, "_COLUMNS", {"cpu": 7})
    parameters = list(net.parameters())
    grads = TaskGradients(4, parameters, torch.device("cpu"))
    matrix_KP = torch.randn_like(grads.matrix_KP)
    grads.matrix_KP.copy_(matrix_KP)
    weights_K = torch.tensor([0.5, -1.0, 0.0, 2.0])
    parts = grads.combine(weights_K)
    assert [part.shape for part in parts] == [p.shape for p in parameters]
    flat = torch.cat([part.reshape(-1) for part in parts])
    torch.testing.assert_close(flat, weights_K @ matrix_KP)
    assert torch.equal(grads.matrix_KP[1:], matrix_KP[1:])
    grads.begin()
    assert not grads.finish().any()  # nothing of it counts in the next step
    torch.testing.assert_close(combination(weights_K, matrix_KP), weights_K @ matrix_KP)
