"""Every option of configs/wrapper, over weightings of every kind, keeps what the engine promises."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from runner.config.build import build, locate
from runner.config.paths import config_root
from runner.config.static import Report
from runner.config.weighting_fit import wrapper_architecture, wrapper_fit
from runner.mixtures.base import Example
from runner.training.wrappers.base import Wrapper
from runner.weighting.step import NonFiniteLoss
from tests.training.wrappers.worlds import Net, Ranks, World, counts_of, make_group, make_tasks, option, part

EVERY = sorted(path.stem for path in config_root().glob("wrapper/*.yaml"))
CLASSES = {n: locate(t) for n in EVERY if (t := option("wrapper", n)["_target_"])}
ONE_ARCHITECTURE = [name for name, cls in CLASSES.items() if cls.architecture is not None]
REAL = [name for name, cls in CLASSES.items() if cls.architecture is not None or cls.needs_dense]
"""Wrappers that need more than the net of this suite: their own tests call `check_promises`."""
NAMES = [name for name in EVERY if name not in REAL]
WEIGHTINGS = ["equal", "uncertainty", "imtl_l", "cagrad", "gradvac", "db_mtl"]
TASKS = make_tasks()


class Examples:
    """A training set for wrappers that look at it first."""

    name = "d"

    def __init__(self, tasks) -> None:
        self.tasks = tuple(tasks)
        self.group = part(make_group(TASKS, 20, seed=9), torch.arange(20), tasks)

    def __len__(self) -> int:
        return 20

    def example(self, index, rng):
        targets = {
            k: v[index].numpy() for k, v in self.group.targets.items() if not bool(torch.isnan(v[index].float()))
        }
        return Example({"numeric": self.group.inputs["numeric"][index].numpy()}, targets, str(index))


@pytest.fixture(params=NAMES)
def wrapper(request):
    return option("wrapper", request.param)


@pytest.fixture(params=WEIGHTINGS)
def weighting(request):
    return option("weighting", request.param)


def world(wrapper, weighting, tasks=TASKS, **settings):
    return World(tasks, wrapper, weighting, train_set=Examples(tasks), **settings)


def whole(group, tasks=None):
    return [[part(group, torch.arange(len(group)), tasks)]]


def split(group, pieces, tasks=None):
    return [[part(group, rows, tasks)] for rows in torch.arange(len(group)).chunk(pieces)]


def assert_close(one, other, atol=2e-6):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=2e-4, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def one_step(wrapper, weighting, batches, tasks=TASKS, **settings):
    made = world(wrapper, weighting, tasks, micro_batches=len(batches), **settings)
    made.wrapper.start()
    return made.step(batches, counts_of(tasks, batches))


def test_it_is_a_wrapper(wrapper, weighting):
    made = build(wrapper, build(weighting, TASKS))
    assert made is None or isinstance(made, Wrapper)


@pytest.mark.parametrize("pieces", [3, 4])
def test_accumulation_changes_nothing(wrapper, weighting, pieces):
    group = make_group(TASKS)
    report, grads = one_step(wrapper, weighting, whole(group))
    again, parts = one_step(wrapper, weighting, split(group, pieces))
    assert_close(grads, parts)
    torch.testing.assert_close(report.losses, again.losses)
    torch.testing.assert_close(report.weights, again.weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["equal", "imtl_l", "cagrad", "db_mtl"])
def test_two_ranks_equal_one(wrapper, kind):
    """Two steps: what the sum over ranks leaves in a buffer must not count again in the next."""
    group, weighting = make_group(TASKS), option("weighting", kind)
    batches = split(group, 4)
    counts = counts_of(TASKS, batches).sum(0)
    alone = world(wrapper, weighting, micro_batches=2)
    alone.wrapper.start()
    grads = [alone.step(split(group, 2), counts, number)[1] for number in range(2)]
    ranks = Ranks(2)

    def work(rank, reduce):
        made = world(wrapper, weighting, micro_batches=2, rank=rank, world_size=2, reduce=reduce)
        made.wrapper.start()
        return [made.step([batches[rank], batches[2 + rank]], counts, number)[1] for number in range(2)]

    for one, first, second in zip(grads, *ranks.run(work), strict=True):
        assert_close(first, second, atol=0)
        assert_close(first, one)


@pytest.mark.parametrize("kind", ["cagrad", "db_mtl"])
def test_a_rank_without_a_tasks_labels(kind):
    """Two steps in which one of two ranks has no label of a task, as in a partially labelled batch."""
    group, weighting = make_group(TASKS), option("weighting", kind)
    halves = [part(group, torch.arange(6), ["a", "c"]), part(group, torch.arange(6, 12))]
    counts = counts_of(TASKS, [halves])[0]
    none = option("wrapper", "none")
    alone = world(none, weighting, micro_batches=2)
    grads = [alone.step([[half] for half in halves], counts, number)[1] for number in range(2)]
    ranks = Ranks(2)

    def work(rank, reduce):
        made = world(none, weighting, rank=rank, world_size=2, reduce=reduce)
        return [made.step([[halves[rank]]], counts, number)[1] for number in range(2)]

    for one, first, second in zip(grads, *ranks.run(work), strict=True):
        assert_close(first, second, atol=0)
        assert_close(first, one)


def test_loss_scaling_changes_nothing(wrapper, weighting):
    group = make_group(TASKS)
    _, grads = one_step(wrapper, weighting, whole(group))
    _, scaled = one_step(wrapper, weighting, whole(group), scale=2.0**14)
    assert_close(grads, scaled)


def test_an_absent_task_is_left_alone(wrapper, weighting):
    group = make_group(TASKS)
    report, grads = one_step(wrapper, weighting, whole(group, ["a", "c"]))
    assert report.weights[1].isnan() and report.losses[[0, 2]].isfinite().all()
    assert {n for n in grads if n.startswith("heads")} == {n for n in grads if n.startswith(("heads.a", "heads.c"))}
    assert any(n.startswith("backbone") for n in grads)


def test_tasks_on_different_data(wrapper, weighting):
    """One group per task, as in a mixture of data sets; a group without labels of a task counts for the others."""
    a, c = make_group(TASKS, seed=1), make_group(TASKS, seed=2, name="e")
    batches = [[part(a, torch.arange(12), ["a"]), part(c, torch.arange(12), ["b", "c"])]]
    report, grads = one_step(wrapper, weighting, batches)
    assert report.losses.isfinite().all() and all(g.isfinite().all() for g in grads.values())
    halves = [[part(a, rows, ["a"]), part(c, rows, ["b", "c"])] for rows in torch.arange(12).chunk(2)]
    assert_close(grads, one_step(wrapper, weighting, halves)[1])


def test_one_task(wrapper, weighting):
    tasks = {"a": TASKS["a"]}
    report, grads = one_step(wrapper, weighting, whole(make_group(TASKS), ["a"]), tasks)
    assert report.losses.isfinite().all() and all(g.isfinite().all() for g in grads.values())


def test_a_loss_that_is_not_finite_names_its_task(wrapper):
    group = make_group(TASKS)
    group.targets["b"][2] = float("inf")
    with pytest.raises(NonFiniteLoss) as error:
        one_step(wrapper, option("weighting", "equal"), whole(group))
    assert error.value.tasks == ["b"]


def test_nothing_but_gradients_changes(wrapper, weighting):
    """Weights to the bit, mode, BatchNorm as after one pass, random numbers as after one pass."""
    group = make_group(TASKS)
    results = []
    for config in (option("wrapper", "none"), wrapper):
        made = world(config, weighting, dropout=0.3)
        made.wrapper.start()
        torch.manual_seed(5)
        before = copy.deepcopy(made.net.state_dict())
        made.step(split(group, 2), counts_of(TASKS, whole(group)))
        after = made.net.state_dict()
        assert made.net.training
        assert all(torch.equal(before[n], after[n]) for n, _ in made.net.named_parameters())
        results.append(({n: b.clone() for n, b in made.net.named_buffers()}, torch.rand(3)))
    (plain, drawn), (wrapped, again) = results
    assert all(torch.equal(plain[n], wrapped[n]) for n in plain)
    assert torch.equal(drawn, again)


def test_state_continues_exactly(wrapper, weighting):
    """Three steps, saved, three more: the same as six."""
    group = make_group(TASKS)

    def run(made, numbers):
        out = []
        for number in numbers:
            rows = torch.arange(number, number + 6)
            tasks = None if number % 2 else ["a", "b"]
            batches = [[part(group, rows, tasks)]]
            out.append(made.step(batches, counts_of(TASKS, batches), number)[1])
        return out

    first = world(wrapper, weighting)
    first.wrapper.start()
    run(first, range(3))
    saved = copy.deepcopy([first.weighting.state_dict(), first.wrapper.state_dict()])
    other = world(wrapper, weighting)
    other.weighting.load_state_dict(saved[0])
    other.wrapper.load_state_dict(saved[1])
    for one, two in zip(run(first, range(3, 6)), run(other, range(3, 6)), strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[n], two[n]) for n in one)


@pytest.mark.parametrize("name", sorted(path.stem for path in config_root().glob("weighting/*.yaml")))
def test_with_every_weighting(wrapper, name):
    """Either the command line refuses the pair, or a step of it is whole."""
    weighting = option("weighting", name)
    report = Report()
    trainer = {"log_losses": False, "compile": False}
    wrapper_fit({"wrapper": wrapper, "weighting": weighting, "trainer": trainer}, report)
    made = build(weighting, TASKS)
    if report.found:
        assert made.mode != "parameters" or sum(made.parts) > 1
        return
    if made.look_ahead_on is not None:
        return  # its weights are set by what it sees of other examples, before the wrapper has a say
    batches = split(make_group(TASKS), sum(made.parts))
    _, grads = one_step(wrapper, weighting, batches)
    assert len(grads) == len(list(Net(TASKS).parameters()))
    assert all(grad.isfinite().all() for grad in grads.values())
    assert any(grad.abs().sum() > 0 for grad in grads.values())


@pytest.mark.parametrize("name", REAL)
def test_wrappers_that_need_a_real_model_are_tested_with_one(name):
    tests = (Path(__file__).parents[1] / f"training/wrappers/test_{name}.py").read_text()
    assert "check_promises(" in tests


@pytest.mark.parametrize("name", ONE_ARCHITECTURE)
def test_wrappers_of_one_architecture_are_refused_elsewhere(name):
    wrapper, report = option("wrapper", name), Report()
    wrapper_architecture({"wrapper": wrapper, "architecture": {"_target_": "runner.architectures.mtan.MTAN"}}, report)
    [(_, problem)] = report.found
    assert f"works with architecture={locate(wrapper['_target_']).architecture} only" in str(problem)
