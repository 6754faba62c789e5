"""Rep-MTL against the formulas written out with C×C matrices, one example at a time."""

from __future__ import annotations

import math

import pytest
import torch

from runner.config.build import build
from runner.errors import UserError
from runner.training.wrappers.features import FeatureTap
from tests.training.wrappers.worlds import World, counts_of, make_group, make_tasks, option, part

TASKS = make_tasks()


def objective(net, group, lambda_tsr, lambda_csa, tau):
    """Σ L_t + λ_tsr L_tsr + λ_csa L_csa of one batch, by the paper's equations."""
    seen = []
    handle = net.backbone.register_forward_hook(lambda module, inputs, output: seen.append(output))
    predictions = net(group, list(TASKS))
    handle.remove()
    z = seen[0].pyramid[0] if seen[0].pyramid else seen[0].pooled
    losses = [
        TASKS[k].loss_sum(predictions[k], group.targets[k]) / TASKS[k].loss_count(group.targets[k]).float()
        for k in TASKS
    ]
    saliency = [torch.autograd.grad(loss, z, create_graph=True)[0].reshape(len(z), 6, -1) for loss in losses]
    count, positions = len(z), saliency[0].shape[2]
    tsr = 0.0
    for b in range(count):
        for i in range(positions):
            size = [s[b, :, i].mean().abs() for s in saliency]
            for one in size:
                share = one / sum(size)
                if share > 0:
                    tsr = tsr - share * share.log()
    anchors = []
    for b in range(count):
        a = torch.stack([s[b].mean(1) for s in saliency], dim=1)
        anchors.append(a @ a.T)

    def cosine(x, y):
        return (x * y).sum() / (x.norm() * y.norm())

    csa = 0.0
    for b in range(count):
        below = sum(torch.exp(cosine(anchors[b], anchors[k]) / tau) for k in range(count) if k != b)
        there = [s[b] for s in saliency if s[b].norm() > 0]
        for s in there:
            csa = csa - torch.log(torch.exp(cosine(anchors[b], s @ s.T) / tau) / below) / len(there)
    return sum(losses) + lambda_tsr * tsr / (count * positions) + lambda_csa * csa / count


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(("tsr", "csa"), [(1.3, 0.0), (0.0, 0.7), (0.9, 1.1)])
def test_it_is_the_objective(dense, tsr, csa):
    tau = 0.4
    wrapper = option("wrapper", "rep_mtl", lambda_tsr=tsr, lambda_csa=csa, temperature=tau)
    made = World(TASKS, wrapper, option("weighting", "equal"), dense=dense)
    group = make_group(TASKS, 7)
    names = [n for n, _ in made.net.named_parameters()]
    total = objective(made.net, group, tsr, csa, tau)
    expected = torch.autograd.grad(total, list(made.net.parameters()))
    plain = torch.autograd.grad(objective(made.net, group, 0, 0, tau), list(made.net.parameters()))
    moved = math.sqrt(sum(float((e - p).square().sum()) for e, p in zip(expected, plain, strict=True)))
    assert moved > 1e-2, "the penalties should matter, or nothing is shown"
    _, grads = made.step([[group]], counts_of(TASKS, [[group]]))
    for name, want in zip(names, expected, strict=True):
        torch.testing.assert_close(grads[name], want, rtol=2e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_losses_of_any_scale_give_the_same_alignment():
    """Saliencies of 1e-10 square to less than float32 has."""
    made = World(TASKS, option("wrapper", "rep_mtl"), option("weighting", "equal"))
    group = make_group(TASKS)
    made.engine.begin(counts_of(TASKS, [[group]]))
    first = made.wrapper._look([group], graph=True)
    made.engine.counts = made.engine.counts * 1e10
    again = made.wrapper._look([group], graph=True)
    torch.testing.assert_close(first.positive, again.positive, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first.entropy, again.entropy, rtol=1e-4, atol=1e-4)


def test_a_group_of_one_task_counts_for_nothing():
    group = make_group(TASKS)
    batches = [[part(group, torch.arange(6), ["b"])]]
    grads = []
    for wrapper in ("none", "rep_mtl"):
        made = World(TASKS, option("wrapper", wrapper), option("weighting", "equal"))
        grads.append(made.step(batches, counts_of(TASKS, batches))[1])
    assert all(torch.equal(grads[0][n], grads[1][n]) for n in grads[0])


def test_tasks_without_a_common_backbone_are_refused():
    class Two(torch.nn.Module):
        def all_backbones(self):
            return [torch.nn.Identity(), torch.nn.Identity()]

    with pytest.raises(UserError, match="2 backbones"):
        FeatureTap(Two(), "rep_mtl")


def test_the_option_is_built_for_any_weighting():
    assert build(option("wrapper", "rep_mtl"), build(option("weighting", "pcgrad"), TASKS)).lambda_tsr == 0.9
