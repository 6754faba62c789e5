"""Methods on averages of the gradients, DB-MTL and MoCo: their algorithms, and the two ways of moving the averages."""

from __future__ import annotations

import copy

import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from runner.weighting import buffer
from runner.weighting.db_mtl import DBMTL, dual_balance
from runner.weighting.engine import Engine
from runner.weighting.moco import MoCo, project_simplex
from runner.weighting.reach import find_reach
from runner.weighting.step import identity
from runner.weighting.tracked import TrackedPass
from tests.training.wrappers.worlds import Ranks
from tests.weighting.grams import DEGENERATE, random_grads, tasks

LOSSES = torch.tensor([0.5, 2.0, 7.0])
SIZE = 14
WAYS = pytest.mark.parametrize("skippable", [False, True], ids=["direct", "gathered"])
SHARED = ("first", "second")


class Given(nn.Module):
    """Losses whose values and gradients are given: shared parameters, one that the last task does not reach, heads."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cut = max(1, size - 2)
        self.first, self.second = nn.Parameter(torch.randn(self.cut)), nn.Parameter(torch.randn(size - self.cut, 1))
        self.broken = False
        self.heads = nn.ParameterList(torch.randn(2) for _ in range(count))

    def losses(self, grads, losses, present):
        last = len(self.heads) - 1
        out = {}
        for k in present:
            value = (self.first * grads[k][: self.cut]).sum() + self.heads[k].sum()
            if k != last or last < 2:
                value = value + (self.second * grads[k][self.cut :, None]).sum()
            out[f"t{k}"] = value - value.detach() + losses[k]
            if self.broken and k == 1:  # a zero whose gradient is not finite
                out[f"t{k}"] = out[f"t{k}"] + (self.first[0] * 0).sqrt()
        return out


def reachable(grads):
    """What of the rows the losses of `Given` depend on."""
    if len(grads) > 2:
        grads = grads.clone()
        grads[-1, -2:] = 0
    return grads


class World:
    def __init__(self, method, grads, *, skippable, pieces=1, scale=1.0, reduce=identity, log=False, patterns=None):
        self.count, self.pieces = len(grads), pieces
        self.net, self.method = Given(*grads.shape), method
        named = dict(self.net.named_parameters())
        reach = find_reach(
            {k: [v] for k, v in self.net.losses(grads, torch.ones(self.count), range(self.count)).items()},
            list(named.values()),
        ).restrict(list(named), patterns)
        self.engine = Engine(
            method, list(named.values()), reach, micro_batches=pieces, reduce=reduce, device=torch.device("cpu"),
            loss_scale=lambda: scale, model=self.net, log=log, skippable=skippable,
        )  # fmt: skip
        self.scale = scale

    def step(self, grads, losses, present=None, share=1.0):
        """Gradients by name; a rank brings `share` of the losses and their gradients."""
        present = list(range(self.count)) if present is None else present
        self.engine.begin(torch.tensor([float(k in present) for k in range(self.count)]))
        for _ in range(self.pieces):
            part = share / self.pieces
            self.engine.backward({k: v * part for k, v in self.net.losses(grads, losses, present).items()})
        self.report = self.engine.finish()
        return {n: p.grad / self.scale for n, p in self.net.named_parameters() if p.grad is not None}

    def shared(self, grads, losses, present=None):
        found = self.step(grads, losses, present)
        return torch.cat([found[n].flatten() for n in SHARED])


def stream(steps, count=3):
    return [random_grads(count, SIZE, seed).float() for seed in range(steps)]


@WAYS
@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("heads", ["weighted", "unweighted"])
def test_db_mtl_is_algorithm_1(skippable, pieces, heads):
    method = DBMTL(tasks(3), beta=0.7, beta_sigma=0.5, heads=heads)
    world = World(method, stream(1)[0], skippable=skippable, pieces=pieces)
    average = torch.zeros(3, SIZE)
    for t, grads in enumerate(stream(4), 1):
        losses = LOSSES * t
        found = world.step(grads, losses)
        beta = 0.7 / t**0.5
        average = beta * average + (1 - beta) * reachable(grads) / losses[:, None]  # ∇ log L = ∇L/L
        norms = average.norm(dim=1)
        want = (norms.max() * average / norms[:, None]).sum(0)
        torch.testing.assert_close(torch.cat([found[n].flatten() for n in SHARED]), want, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(method.tracked, average, rtol=1e-5, atol=1e-6)
        for k in range(3):
            factor = norms.max() / norms[k] if heads == "weighted" else 1.0
            torch.testing.assert_close(found[f"heads.{k}"], (factor / losses[k]).expand(2))


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


@WAYS
@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("normalize", ["none", "loss"])
@pytest.mark.parametrize("projection", ["simplex", "softmax"])
def test_moco_is_algorithm_1(normalize, projection, pieces, skippable):
    method = MoCo(tasks(3), gamma=0.02, rho=0.1, normalize=normalize, projection=projection)
    world = World(method, stream(1)[0], skippable=skippable, pieces=pieces)
    y, lam = torch.zeros(3, SIZE), torch.full((3,), 1 / 3)
    for t, grads in enumerate(stream(4), 1):
        shared = world.shared(grads, LOSSES)
        grads = reachable(grads)
        if normalize == "loss":
            grads = grads / grads.norm(dim=1)[:, None] * LOSSES[:, None]
        y = y - 0.5 / t**0.5 * (y - grads)
        lam = lam - 0.02 / t**0.5 * (y @ y.T + 0.1 * torch.eye(3)) @ lam
        lam = project_simplex(lam) if projection == "simplex" else lam.softmax(0)
        torch.testing.assert_close(world.report.weights, lam, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(shared, lam @ y, rtol=1e-4, atol=1e-5)


@WAYS
def test_an_absent_task_keeps_its_average_and_its_share(skippable):
    method = MoCo(tasks(3))
    world = World(method, stream(1)[0], skippable=skippable)
    world.step(stream(1)[0], LOSSES)
    before = copy.deepcopy(method.state_dict())
    world.step(stream(2)[1], LOSSES, [0, 2])
    assert torch.equal(method.tracked[1], before["tracked"][1]) and method.weights[1] == before["weights"][1]
    assert method.weights.sum() == pytest.approx(1.0)
    assert not torch.equal(method.tracked[0], before["tracked"][0])


MAKE = {
    "db_mtl": lambda: DBMTL(tasks(3), beta_sigma=0.3),
    "db_mtl-scaled": lambda: DBMTL(tasks(3), heads="weighted", scale="one"),
    "moco": lambda: MoCo(tasks(3), heads="weighted", scale="tasks"),
}
PRESENT = [[0, 1, 2], [0, 2], [1], [0, 1, 2], [1, 2]]


def run(world, steps=range(5), share=1.0):
    out = []
    for t in steps:
        out.append(world.step(stream(5)[t], LOSSES * (1 + t), PRESENT[t], share) | {"weights": world.report.weights})
    return out


def same(one, other, **tolerance):
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(a[name], b[name], equal_nan=True, **tolerance)


@pytest.mark.parametrize(
    ("name", "log"), [("db_mtl", False), ("db_mtl-scaled", False), ("moco", False), ("moco", True)]
)
@pytest.mark.parametrize("patterns", [None, ["first"]])
@pytest.mark.parametrize("large", [1, 2**16])
def test_both_ways_are_the_same_over_steps_with_absent_tasks(name, log, patterns, large, monkeypatch):
    make = MAKE[name]
    monkeypatch.setattr(buffer, "_LARGE", large)
    settings = {"log": log, "patterns": patterns}
    worlds = [
        World(make(), stream(1)[0], skippable=False, **settings),
        World(make(), stream(1)[0], skippable=True, **settings),
        World(make(), stream(1)[0], skippable=True, pieces=2, scale=64.0, **settings),
    ]
    assert [isinstance(w.engine.main, TrackedPass) and w.engine.main.direct for w in worlds] == [True, False, False]
    first, *others = (run(world) for world in worlds)
    for other, world in zip(others, worlds[1:], strict=True):
        same(first, other, rtol=2e-5, atol=1e-6)
        same([worlds[0].method.state_dict()], [world.method.state_dict()], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@pytest.mark.parametrize("count", [2, 3])
def test_ranks_move_one_average_directly(make, count):
    """Every rank brings its part of the losses; one of them has none of a task."""
    alone = World(make(), stream(1)[0], skippable=False)
    want = run(alone)
    ready = [World(make(), stream(1)[0], skippable=False) for _ in range(count)]

    def work(rank, reduce):
        ready[rank].engine.reduce = reduce
        return run(ready[rank], share=1 / count)

    results = Ranks(count).run(work)
    for found, world in zip(results, ready, strict=True):
        same(found, results[0], rtol=0, atol=0)
        same(found, want, rtol=2e-5, atol=1e-6)
        assert torch.equal(world.method.tracked, ready[0].method.tracked)
    same([ready[0].method.state_dict()], [alone.method.state_dict()], rtol=2e-5, atol=1e-6)


@WAYS
@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_state_continues_exactly_whenever_it_is_loaded(make, skippable):
    first = World(make(), stream(1)[0], skippable=skippable)
    run(first, range(2))
    state = {k: v.clone() for k, v in first.method.state_dict().items()}
    before = make()
    before.load_state_dict(state)
    worlds = [World(method, stream(1)[0], skippable=skippable) for method in (before, make())]
    worlds[1].method.load_state_dict(state)
    expected = run(first, range(2, 5))
    for world in worlds:
        same(run(world, range(2, 5)), expected, rtol=0, atol=0)
        assert torch.equal(world.method.tracked, first.method.tracked)


def test_the_average_is_the_only_k_by_p_buffer():
    """Where a step cannot be skipped; the gradient of a step lies in memory of its own, which the next may not move."""
    world = World(DBMTL(tasks(3)), stream(1)[0], skippable=False)
    world.step(stream(1)[0], LOSSES)
    kept = world.net.first.grad.clone()
    held = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for part in (world.engine.main, world.engine.main.rows, world.method)
        for t in vars(part).values()
        if isinstance(t, torch.Tensor)
    }
    held[world.method.tracked.data_ptr()] = world.method.tracked.untyped_storage().nbytes()
    assert world.engine.main.gathered is None
    assert sum(held.values()) < 4 * 3 * SIZE + 100
    world.method.tracked.zero_()
    assert torch.equal(world.net.first.grad, kept)


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@pytest.mark.parametrize("pieces", [1, 2])
def test_a_step_that_may_be_skipped_moves_nothing(make, pieces):
    """The losses are finite, one gradient is not: the loop finds that in `.grad`, and goes on."""
    world = World(make(), stream(1)[0], skippable=True, pieces=pieces)
    run(world, range(2))
    before = copy.deepcopy(world.method.state_dict())
    world.net.broken = True
    found = world.step(stream(1)[0], LOSSES)
    world.net.broken = False
    assert not found["first"].isfinite().all()
    for name, value in world.method.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(g.isfinite().all() for g in world.step(stream(1)[0], LOSSES).values())


def test_a_gradient_that_is_not_finite_ends_the_run_that_does_not_skip():
    world = World(DBMTL(tasks(3)), stream(1)[0], skippable=False)
    world.net.broken = True
    assert not world.step(stream(1)[0], LOSSES)["first"].isfinite().all()  # the loop looks at it


@WAYS
@pytest.mark.parametrize("make", [DBMTL, MoCo])
@pytest.mark.parametrize("name", DEGENERATE)
def test_survives_degenerate_gradients(make, name, skippable):
    grads = DEGENERATE[name].float()
    world = World(make(tasks(len(grads))), grads, skippable=skippable)
    for _ in range(5):
        assert all(part.isfinite().all() for part in world.step(grads, torch.ones(len(grads))).values())
