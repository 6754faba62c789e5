"""`trainer.log_losses`: any weighting on the logarithms of the losses, against autograd."""

from __future__ import annotations

import pytest
import torch

from runner.errors import RunFailed
from runner.weighting.engine import Engine
from runner.weighting.equal import Equal
from runner.weighting.mgda import MGDA, min_norm_weights
from runner.weighting.moco import MoCo, project_simplex
from runner.weighting.reach import find_reach
from runner.weighting.step import identity
from tests.weighting.test_engine import TASKS, full_losses, sums_and_counts, task_gradients
from tests.weighting.test_engine import setting as setting


def run(net, weighting, x, targets, micro_batches=1, scale=1.0):
    parameters = list(net.parameters())
    reach = find_reach({k: [v] for k, v in net(x[:1]).items()}, parameters)
    engine = Engine(
        weighting, parameters, reach, micro_batches=micro_batches, reduce=identity, device=torch.device("cpu"),
        loss_scale=lambda: scale, log=True,
    )  # fmt: skip
    engine.begin(torch.tensor([sums_and_counts(0, targets[k])[1] for k in TASKS]))
    for rows in torch.arange(len(x)).chunk(micro_batches):
        found = net(x[rows])
        engine.backward({k: sums_and_counts(found[k], targets[k][rows])[0] for k in TASKS})
    return engine.finish(), [p.grad.clone() / scale for p in parameters]


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_equal_is_the_sum_of_the_logarithms(setting, micro_batches):
    net, x, targets = setting
    total = sum(loss.log() for loss in full_losses(net, x, targets).values())
    report, got = run(net, Equal(TASKS), x, targets, micro_batches)
    for grad, want in zip(got, torch.autograd.grad(total, list(net.parameters())), strict=True):
        torch.testing.assert_close(grad, want, rtol=1e-4, atol=1e-6)
    plain = torch.stack(list(full_losses(net, x, targets).values())).detach()
    torch.testing.assert_close(report.losses, plain)  # what is reported are the losses themselves
    torch.testing.assert_close(report.weights, 1 / plain)


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("heads", ["weighted", "unweighted"])
@pytest.mark.parametrize("scale", [1.0, 64.0])
def test_mgda_sees_the_gradients_of_the_logarithms(setting, micro_batches, heads, scale):
    net, x, targets = setting
    logs = {k: loss.log() for k, loss in full_losses(net, x, targets).items()}
    grads = task_gradients(net, logs)
    rows = torch.stack([torch.cat([g.flatten() for g in grads[k][:2]]) for k in TASKS]).double()
    weights = min_norm_weights(rows @ rows.T)
    _, got = run(net, MGDA(TASKS, heads=heads), x, targets, micro_batches, scale)
    torch.testing.assert_close(torch.cat([g.flatten() for g in got[:2]]).double(), weights @ rows, rtol=1e-4, atol=1e-6)
    for n, name in enumerate(TASKS):
        want = grads[name][2 + 2 * n] * (weights[n].float() if heads == "weighted" else 1.0)
        torch.testing.assert_close(got[2 + 2 * n], want, rtol=1e-4, atol=1e-6)


def test_a_method_on_averages_sees_them_too(setting):
    """The first step of MoCo: the rows are β times the gradients of the logarithms, the weights λ - γ Y Yᵀ λ."""
    net, x, targets = setting
    logs = {k: loss.log() for k, loss in full_losses(net, x, targets).items()}
    grads = task_gradients(net, logs)
    rows = 0.5 * torch.stack([torch.cat([g.flatten() for g in grads[k][:2]]) for k in TASKS])
    weights = project_simplex(torch.full((3,), 1 / 3) - 0.1 * rows @ rows.mean(0))
    _, got = run(net, MoCo(TASKS), x, targets, 2, 16.0)
    torch.testing.assert_close(torch.cat([g.flatten() for g in got[:2]]), weights @ rows, rtol=1e-4, atol=1e-6)


def test_a_negative_loss_has_no_logarithm(setting):
    net, x, _ = setting
    parameters = list(net.parameters())
    reach = find_reach({k: [v] for k, v in net(x[:1]).items()}, parameters)
    engine = Engine(
        Equal(TASKS), parameters, reach, micro_batches=1, reduce=identity, device=torch.device("cpu"), log=True
    )
    engine.begin(torch.ones(3))
    engine.backward({k: v.sum() * 0 - 1.0 for k, v in net(x).items()})
    with pytest.raises(RunFailed, match=r"trainer.log_losses needs losses of 0 or more"):
        engine.finish()
