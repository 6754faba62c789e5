"""Methods on the K×P matrix: ExcessMTL, GradDrop."""

from __future__ import annotations

import pytest
import torch

from runner.weighting.excess_mtl import ExcessMTL
from runner.weighting.graddrop import GradDrop, pick_sign
from tests.weighting.grams import DEGENERATE, random_grads, tasks

SHAPES = [torch.Size([3, 2]), torch.Size([3]), torch.Size([2, 3]), torch.Size([2])]
SIZE = sum(shape.numel() for shape in SHAPES)
LOSSES = torch.tensor([0.5, 2.0, 7.0])
EVERYONE = torch.arange(3)


def attached(method):
    method.attach(SHAPES, torch.device("cpu"))
    return method


def stream(steps: int) -> list[torch.Tensor]:
    return [random_grads(3, SIZE, seed).float() for seed in range(steps)]


METHODS = [ExcessMTL, GradDrop]


@pytest.mark.parametrize("make", METHODS)
@pytest.mark.parametrize("name", DEGENERATE)
def test_survives_degenerate_gradients(make, name):
    grads = DEGENERATE[name].float()
    method = make(tasks(len(grads)))
    method.attach([grads.shape[1:]], torch.device("cpu"))
    for step in range(5):
        method.begin_step(step, 1)
        results = method.combine(grads.clone(), torch.ones(len(grads)), torch.arange(len(grads)))
        assert all(part.isfinite().all() for part in results)


@pytest.mark.parametrize("make", METHODS)
def test_state_continues_exactly_with_a_task_missing_in_between(make):
    def run(method, steps):
        out = []
        for step in steps:
            method.begin_step(step, 1)
            present = EVERYONE if step % 2 == 0 else torch.tensor([0, 2])
            out.append(method.combine(stream(8)[step][present].clone(), LOSSES[present], present)[0])
            for parameter in method.parameters():
                parameter.data -= 0.1 * parameter.grad
        return out

    first = attached(make(tasks(3)))
    run(first, range(4))
    second = make(tasks(3))  # the checkpoint may be read before the engine attaches, or after
    second.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    attached(second)
    third = attached(make(tasks(3)))
    third.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    expected = run(first, range(4, 8))
    for other in (second, third):
        for a, b in zip(run(other, range(4, 8)), expected, strict=True):
            assert torch.equal(a, b)


def test_excess_mtl_is_equations_6_7_and_9():
    method = attached(ExcessMTL(tasks(3), robust_step_size=0.3, warm_up=1))
    squares, warm, weights = torch.zeros(3, SIZE), [], torch.full((3,), 1 / 3)
    for step, grads in enumerate(stream(5)):
        method.begin_step(step, 2)  # two steps an epoch: two of warm-up
        shared, got, _ = method.combine(grads.clone(), LOSSES, EVERYONE)
        squares = squares + grads**2
        excess = (grads**2 / squares.sqrt()).sum(1)
        if step < 2:
            warm.append(excess)
        else:
            weights = weights * torch.exp(0.3 * excess / torch.stack(warm).mean(0))
            weights = weights / weights.sum()
        torch.testing.assert_close(got, weights, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(shared, weights @ grads, rtol=1e-5, atol=1e-6)


def test_graddrop_keeps_one_sign_with_the_share_of_that_sign():
    grads = torch.tensor([[3.0, 1.0, -1.0], [-1.0, 2.0, -2.0]]).repeat(1, 4000)
    uniform = torch.rand(grads.shape[1], generator=torch.Generator().manual_seed(0))
    result = pick_sign(grads, uniform).view(-1, 3)
    assert set(result[:, 0].tolist()) == {3.0, -1.0}
    assert (result[:, 0] == 3.0).float().mean() == pytest.approx(0.75, abs=0.03)  # ½(1 + 2/4)
    assert (result[:, 1] == 3.0).all() and (result[:, 2] == -3.0).all()  # no conflict: the sum
    torch.testing.assert_close(pick_sign(grads, uniform, 1.0), grads.sum(0))
    half = pick_sign(grads, uniform, 0.5).view(-1, 3)
    assert set(half[:, 0].tolist()) == {2.5, 0.5}  # the kept sign, and half of the other


def test_graddrop_draws_anew_each_step():
    method = attached(GradDrop(tasks(3)))
    grads = stream(1)[0]
    draws = [method.combine(grads.clone(), LOSSES, EVERYONE)[0] for _ in range(4)]
    assert not all(torch.equal(draws[0], d) for d in draws[1:])
