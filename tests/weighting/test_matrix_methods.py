"""Methods on the K×P matrix: DB-MTL, MoCo, ExcessMTL, GradDrop."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize

from runner.weighting.db_mtl import DBMTL, dual_balance
from runner.weighting.excess_mtl import ExcessMTL
from runner.weighting.graddrop import GradDrop, pick_sign
from runner.weighting.moco import MoCo, project_simplex
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


METHODS = [DBMTL, MoCo, ExcessMTL, GradDrop]


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


def test_db_mtl_is_algorithm_1():
    method = attached(DBMTL(tasks(3), beta=0.7, beta_sigma=0.5))
    average = torch.zeros(3, SIZE)
    for t, grads in enumerate(stream(4), 1):
        losses = LOSSES * t
        shared, _, heads = method.combine(grads.clone(), losses, EVERYONE)
        beta = 0.7 / t**0.5
        average = beta * average + (1 - beta) * grads / losses[:, None]  # ∇ log L = ∇L/L
        norms = average.norm(dim=1)
        torch.testing.assert_close(shared, (norms.max() * average / norms[:, None]).sum(0))
        torch.testing.assert_close(heads, 1 / losses)


def test_db_mtl_factors():
    torch.testing.assert_close(dual_balance(torch.tensor([1.0, 4.0, 0.0])), torch.tensor([4.0, 1.0, 1.0]))


@pytest.mark.parametrize("seed", range(5))
def test_simplex_projection_is_the_nearest_point(seed):
    vector = torch.from_numpy(2 * random_grads(1, 5, seed).numpy()[0])
    found = minimize(
        lambda x: ((x - vector.numpy()) ** 2).sum(), [0.2] * 5, bounds=[(0, 1)] * 5,
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1}, options={"ftol": 1e-14},
    ).x  # fmt: skip
    torch.testing.assert_close(project_simplex(vector), torch.from_numpy(found), atol=1e-6, rtol=0)


@pytest.mark.parametrize("normalize", ["none", "loss"])
@pytest.mark.parametrize("projection", ["simplex", "softmax"])
def test_moco_is_algorithm_1(normalize, projection):
    method = attached(MoCo(tasks(3), gamma=0.02, rho=0.1, normalize=normalize, projection=projection))
    y, lam = torch.zeros(3, SIZE), torch.full((3,), 1 / 3)
    for t, grads in enumerate(stream(4), 1):
        shared, weights, _ = method.combine(grads.clone(), LOSSES, EVERYONE)
        if normalize == "loss":
            grads = grads / grads.norm(dim=1)[:, None] * LOSSES[:, None]
        y = y - 0.5 / t**0.5 * (y - grads)
        lam = lam - 0.02 / t**0.5 * (y @ y.T + 0.1 * torch.eye(3)) @ lam
        lam = project_simplex(lam) if projection == "simplex" else lam.softmax(0)
        torch.testing.assert_close(weights, lam, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(shared, lam @ y, rtol=1e-4, atol=1e-5)


def test_moco_leaves_the_share_of_an_absent_task_alone():
    method = attached(MoCo(tasks(3)))
    present = torch.tensor([0, 2])
    method.combine(stream(1)[0][present].clone(), LOSSES[present], present)
    assert method.weights[1] == pytest.approx(1 / 3) and method.weights.sum() == pytest.approx(1.0)
    assert method.tracked[1].abs().sum() == 0


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
