"""Task-wise SAM against the algorithm written out on copies of the model."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.training.wrappers.worlds import World, counts_of, make_group, make_tasks, option

TASKS = make_tasks(("a", "b"))


def loss_of(net, group, task):
    return (
        TASKS[task].loss_sum(net(group, [task])[task], group.targets[task])
        / TASKS[task].loss_count(group.targets[task]).float()
    )


def gradient(net, group, task):
    names = [n for n, _ in net.named_parameters() if n.startswith(("backbone", f"heads.{task}"))]
    found = torch.autograd.grad(loss_of(net, group, task), [net.get_parameter(n) for n in names])
    return dict(zip(names, found, strict=True))


def sam_gradient(net, group, task, rho, adaptive):
    """The gradient at the worst point to first order: shared and own parameters each go rho far."""
    plain = gradient(net, group, task)
    moved = copy.deepcopy(net)
    for prefix in ("backbone", "heads"):
        names = [n for n in plain if n.startswith(prefix)]
        size = {n: net.get_parameter(n).detach().abs() if adaptive else torch.ones(()) for n in names}
        length = sum((size[n] * plain[n]).pow(2).sum() for n in names).sqrt()
        for n in names:
            moved.get_parameter(n).data += rho * size[n] ** 2 * plain[n] / length
    return plain, gradient(moved, group, task)


def flat(grads):
    return torch.cat([g.reshape(-1) for n, g in grads.items() if n.startswith("backbone")])


def total(vectors):
    return vectors[0] + vectors[1]


def pcgrad(vectors):
    """With two tasks there is no order to draw: each loses its component along the other, if they conflict."""
    out = []
    for one, other in (vectors, vectors[::-1]):
        inner = one @ other
        out.append(one - inner / (other @ other) * other if inner < 0 else one)
    return out[0] + out[1]


def mgda(vectors):
    """The closed form of the shortest vector between two."""
    one, two = vectors
    share = (((two - one) @ two) / ((one - two) @ (one - two))).clamp(0, 1)
    return share * one + (1 - share) * two


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(
    ("weighting", "aggregate"), [("equal", total), ("pcgrad", pcgrad), ("mgda", mgda)], ids=["equal", "pcgrad", "mgda"]
)
def test_it_is_the_algorithm(weighting, aggregate, adaptive):
    rho = 0.7
    changes = {"heads": "unweighted"} if weighting != "equal" else {}
    made = World(
        TASKS, option("wrapper", "task_sam", rho=rho, adaptive=adaptive), option("weighting", weighting, **changes)
    )
    group = make_group(TASKS)
    expected = {task: sam_gradient(made.net, group, task, rho, adaptive) for task in TASKS}
    _, grads = made.step([[group]], counts_of(TASKS, [[group]]))
    plain = [flat(expected[t][0]) for t in TASKS]
    rest = [flat(expected[t][1]) - flat(expected[t][0]) for t in TASKS]
    shared = aggregate(plain) + aggregate(rest)
    assert (shared - aggregate(plain)).norm() > 0.05 * shared.norm(), (
        "the flatness part should matter, or nothing is shown"
    )
    torch.testing.assert_close(flat(grads), shared, rtol=1e-4, atol=1e-6)
    for task in TASKS:
        for name, grad in expected[task][1].items():
            if name.startswith("heads"):
                torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=1e-6)


def test_a_tiny_rho_is_the_weighting_alone():
    group = make_group(TASKS)
    grads = []
    for wrapper in (option("wrapper", "none"), option("wrapper", "task_sam", rho=1e-9)):
        made = World(TASKS, wrapper, option("weighting", "cagrad"))
        grads.append(made.step([[group]], counts_of(TASKS, [[group]]))[1])
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name], rtol=1e-3, atol=1e-5)


def test_both_aggregators_learn_and_are_saved():
    """GradNorm has weights of its own: the aggregator of the flatness parts brings a second set."""
    made = World(TASKS, option("wrapper", "task_sam"), option("weighting", "gradnorm"))
    groups = [*made.weighting.parameter_groups(), *made.wrapper.parameter_groups()]
    assert len({id(p) for g in groups for p in g["params"]}) == 2
    assert any(key.startswith("flat.") for key in made.wrapper.state_dict())
