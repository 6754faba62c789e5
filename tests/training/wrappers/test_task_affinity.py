"""Task affinities against gradients taken one by one."""

from __future__ import annotations

import copy

import torch

from tests.training.wrappers.real import TASKS, Real, check_promises, data, split
from tests.training.wrappers.worlds import option


def affinity(**keys):
    return option("wrapper", "task_affinity", **keys)


def expected_cosine(made, group):
    """cos(∇L_segmentation, ∇L_depth) over all that both reach."""
    net = copy.deepcopy(made.net)
    names = [n for n, _ in net.named_parameters() if not n.startswith("heads.")]
    found = []
    for name, task in TASKS.items():
        net.zero_grad()
        task.loss_sum(net(group, [name])[name], group.targets[name]).backward()
        found.append(torch.cat([dict(net.named_parameters())[n].grad.reshape(-1) for n in names]))
    return torch.nn.functional.cosine_similarity(*found, dim=0)


def test_affinities_are_averaged_cosines():
    made, group = Real("vtagml", affinity(every=2, momentum=0.75)), data()
    cosine = expected_cosine(made, group)
    report, _ = made.step(split(group, 1), 0)
    torch.testing.assert_close(made.net.affinity[0, 1], 0.25 * cosine)
    torch.testing.assert_close(made.net.affinity.diagonal(), torch.ones(2))
    torch.testing.assert_close(report.cosines[0, 1], cosine)
    before = made.net.affinity.clone()
    made.step(split(group, 1), 1)  # not one of the steps that measure
    assert torch.equal(made.net.affinity, before)
    made.step(split(group, 1), 2)
    torch.testing.assert_close(made.net.affinity[0, 1], 0.25 * (1 + 0.75) * cosine, atol=1e-3, rtol=1e-2)


def test_micro_batches_and_scale_give_the_same_affinities():
    found = []
    for pieces, scale in ((1, 1.0), (2, 1.0), (1, 2.0**12)):
        made = Real("vtagml", affinity(), micro_batches=pieces, scale=scale)
        made.step(split(data(), pieces), 0)
        found.append(made.net.affinity)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_a_task_without_labels_keeps_its_affinities():
    made, group = Real("vtagml", affinity()), data()
    group.targets.pop("depth")
    made.step([[group]], 0)
    assert torch.equal(made.net.affinity, torch.eye(2))


def test_promises_of_a_wrapper():
    check_promises("vtagml", affinity(every=1), steps=2)
