"""Auto-λ, MOML and FORUM against autograd through the step looked ahead, and brute force."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from runner.errors import UserError
from runner.weighting.auto_lambda import AutoLambda
from runner.weighting.forum import FORUM, constrained_weights
from runner.weighting.mgda import min_norm_weights, normalise
from runner.weighting.moml import MOML, hypergradients

TASKS = {name: SimpleNamespace(loss_kind="regression") for name in "abc"}
SIZE = 7


class World:
    """Smooth losses of a vector θ: L_k on the step's examples, F_k on others; everything by autograd, in float64."""

    lr, epoch = 0.05, 3

    def __init__(self, seed=0, train=(0, 1, 2), held_out=(0, 1, 2)) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.theta = torch.randn(SIZE, generator=generator).double()
        self.targets = {
            examples: torch.randn(3, SIZE, generator=generator).double() for examples in ("train", "held_out")
        }
        self.there = {"train": list(train), "held_out": list(held_out)}

    def of(self, examples, theta):
        return torch.log1p((theta - self.targets[examples]).square().sum(1))[self.there[examples]]

    def point(self, at=None):
        return (self.theta if at is None else self.theta + at.double()).clone().requires_grad_()

    def present(self, examples):
        return torch.tensor(self.there[examples], dtype=torch.int64)

    def losses(self, examples, at=None):
        return self.of(examples, self.point(at)).detach()

    def gradients(self, examples, at=None):
        theta = self.point(at)
        rows = [torch.autograd.grad(loss, theta, retain_graph=True)[0] for loss in self.of(examples, theta)]
        return torch.stack(rows).float()

    def gradient(self, examples, weights, at=None):
        theta = self.point(at)
        losses = self.of(examples, theta)
        return torch.autograd.grad((weights * losses).sum(), theta)[0].float(), losses.detach()

    def ahead(self, weights, step_size):
        """θ' as a function of the weights."""
        theta = self.point()
        (grad,) = torch.autograd.grad((weights * self.of("train", theta)).sum(), theta, create_graph=True)
        return theta - step_size * grad


def test_auto_lambda_is_the_gradient_through_the_step():
    world, method = World(), AutoLambda(TASKS, lr=0.01, primary=["a", "c"])
    weights = method.weights.clone().requires_grad_()
    held_out = world.of("held_out", world.ahead(weights, world.lr))
    (exact,) = torch.autograd.grad(held_out[0] + held_out[2], weights)
    found = []
    method.adam.change = lambda grad, chosen: found.append(grad) or torch.zeros_like(grad)
    method.look_ahead(world)
    torch.testing.assert_close(found[0], exact, rtol=2e-3, atol=1e-6)


def test_auto_lambda_moves_by_adam_and_before_the_step():
    world, method = World(), AutoLambda(TASKS, lr=0.01)
    weights = torch.nn.Parameter(method.weights.clone())
    adam = torch.optim.Adam([weights], 0.01)
    for _ in range(3):
        (weights.grad,) = torch.autograd.grad(world.of("held_out", world.ahead(weights, world.lr)).sum(), weights)
        adam.step()
        method.look_ahead(world)
    torch.testing.assert_close(method.weights, weights.data, rtol=1e-3, atol=1e-6)
    losses = torch.tensor([1.0, 2.0, 3.0])
    assert method.combine(losses, torch.arange(3)).item() == pytest.approx(float(method.weights @ losses.double()))


def test_auto_lambda_refuses_unknown_primary_tasks():
    with pytest.raises(UserError, match=r"unknown task 'aa' in weighting.primary"):
        AutoLambda(TASKS, primary=["aa"])


@pytest.mark.parametrize("norm", ["none", "l2", "loss"])
def test_moml_follows_mgda_of_the_gradients_through_the_step(norm):
    world, method = World(1), MOML(TASKS, lr=0.01, norm=norm)
    method.xi.copy_(torch.tensor([0.3, -0.2, 0.1]))
    xi = method.xi.clone().requires_grad_()
    held_out = world.of("held_out", world.ahead(xi.softmax(0), world.lr))
    exact = torch.stack([torch.autograd.grad(loss, xi, retain_graph=True)[0] for loss in held_out])
    products = world.gradients("held_out", at=(world.ahead(xi.softmax(0), world.lr) - world.theta).detach())
    mine = hypergradients((products @ world.gradients("train").T).double(), xi.detach().softmax(0), world.lr)
    torch.testing.assert_close(mine, exact, rtol=1e-4, atol=1e-8)
    solution = min_norm_weights(normalise(exact @ exact.T, held_out.detach(), norm))
    found = []
    method.adam.change = lambda grad, chosen: found.append(grad) or torch.zeros_like(grad)
    method.look_ahead(world)
    torch.testing.assert_close(found[0], solution @ exact, rtol=1e-3, atol=1e-7)


def random_problem(seed, tasks=4):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(tasks, 9))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    q = rng.normal(size=9) * 10.0 ** rng.uniform(-2, 2) + (2 * rows.mean(0) if seed % 2 else 0)
    return rows, q


@pytest.mark.parametrize("seed", range(8))
def test_forum_weights_solve_the_dual_problem(seed):
    rows, q = random_problem(seed)
    rho = [0.02, 0.1, 1.0][seed % 3]
    square = float(q @ q)

    def value(w):
        return 0.5 * np.sum((w[:-1] @ rows + w[-1] * q) ** 2) - w[-1] * rho * square

    weights = constrained_weights(rows @ rows.T, rows @ q, square, rho)
    nu = max(rho - weights @ (rows @ q) / square, 0.0)
    mine = value(np.append(weights, nu))
    assert weights.min() >= -1e-12 and weights.sum() == pytest.approx(1.0)
    best = min(
        minimize(
            value, start, bounds=[(0, None)] * 5, constraints={"type": "eq", "fun": lambda w: w[:-1].sum() - 1},
            options={"ftol": 1e-15, "maxiter": 500},
        ).fun
        for start in (np.full(5, 0.25), np.array([1.0, 0, 0, 0, rho]))
    )  # fmt: skip
    grid = (np.array(p) / 6 for p in itertools.product(range(7), repeat=4) if sum(p) == 6)
    best = min(best, min(value(np.append(w, max(rho - w @ (rows @ q) / square, 0))) for w in grid))
    assert mine <= best + 1e-6 * (1 + abs(best))


def test_forum_is_algorithm_1():
    world = World(2)
    method = FORUM(TASKS, rho=0.1, eta=0.02, inner_step=3, lr=0.01)
    method.xi.copy_(torch.tensor([0.5, 0.0, -0.3]))
    weights = method.xi.softmax(0)
    grads, _ = world.gradient("train", weights)
    theta = world.theta.clone()
    for _ in range(3):
        point = theta.clone().requires_grad_()
        (g,) = torch.autograd.grad((weights * world.of("train", point)).sum(), point)
        theta = theta - 0.02 * g
    xi = method.xi.clone().requires_grad_()
    q = (xi.softmax(0) * (world.of("train", world.theta) - world.of("train", theta))).sum()
    (slope,) = torch.autograd.grad(q, xi)
    whole = torch.cat([slope, grads.double()])
    upper = world.gradients("held_out").double()
    upper = torch.cat([torch.zeros(3, 3), upper / upper.norm(dim=1, keepdim=True)], 1)
    square = float(whole @ whole)
    lam = torch.from_numpy(constrained_weights((upper @ upper.T).numpy(), (upper @ whole).numpy(), square, 0.1))
    lam = 4**-0.75 * lam  # epoch 3, from an average of zero
    nu = max(0.1 - float(lam @ upper @ whole) / square, 0.0)
    changes = []
    method.adam.change = lambda grad, chosen: changes.append(grad) or torch.zeros_like(grad)
    method.look_ahead(world)
    assert method.nu == pytest.approx(nu, rel=1e-4)
    torch.testing.assert_close(method.extra_gradient().double(), (lam @ upper)[3:], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(changes[0], nu * slope, rtol=1e-3, atol=1e-7)
    total = method.combine(torch.ones(3), torch.arange(3))
    assert total.item() == pytest.approx(nu, rel=1e-4)


@pytest.mark.parametrize("make", [AutoLambda, MOML, FORUM])
def test_tasks_may_be_absent_from_either_kind_of_examples(make):
    method = make(TASKS, **({"rho": 10.0} if make is FORUM else {}))  # so that ν > 0 and ξ moves
    before = {k: v.clone() for k, v in method.state_dict().items()}
    method.look_ahead(World(train=(0, 2), held_out=(1, 2)))
    name = "weights" if make is AutoLambda else "xi"
    now, old = getattr(method, name), before[name]
    assert now[1] == old[1] and (now[[0, 2]] != old[[0, 2]]).any()
    for world in (World(train=()), World(held_out=())):
        method.look_ahead(world)
        assert torch.equal(getattr(method, name), now)


@pytest.mark.parametrize("make", [AutoLambda, MOML, FORUM])
def test_gradients_that_are_not_finite_move_nothing(make):
    method, world = make(TASKS), World()
    world.targets["held_out"][1] = float("inf")
    before = {k: v.clone() for k, v in method.state_dict().items()}
    method.look_ahead(world)
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
