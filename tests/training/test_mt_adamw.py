"""MT-AdamW against the formulas written out in numpy, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.errors import UserError
from runner.training.mt_adamw import mt_adamw

SHARES = {"x": 0.7, "y": 0.25, "z": 0.05}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(3, 4)
        self.heads = nn.ModuleDict({name: nn.Linear(4, 1) for name in SHARES})


def gradients(net, drawn, number):
    """Set the gradients of a step that drew one data set; other heads have none."""
    generator = torch.Generator().manual_seed(number)
    for name, p in net.named_parameters():
        other = name.startswith("heads") and not name.startswith(f"heads.{drawn}")
        scale = {"x": 100.0, "y": 1.0, "z": 1e-3}[drawn]
        p.grad = None if other else torch.randn(p.shape, generator=generator) * scale


DRAWN = ["x", "x", "y", "x", "z", "x", "y", "x", "x", "y"]


def test_it_is_the_algorithm():
    lr, decay, beta1, beta2, eps, omega = 0.01, 0.1, 0.8, 0.95, 1e-6, {"y": 2.5}
    net = Net()
    optimizer = mt_adamw(net, lr=lr, weight_decay=decay, betas=[beta1, beta2], eps=eps, omega=omega, no_decay=["bias"])
    theta = {n: p.detach().double().numpy().copy() for n, p in net.named_parameters()}
    m, n2 = ({k: np.zeros_like(v) for k, v in theta.items()} for _ in range(2))
    for t, drawn in enumerate(DRAWN, start=1):
        gradients(net, drawn, t)
        given = {
            k: np.zeros_like(theta[k]) if p.grad is None else p.grad.double().numpy() for k, p in net.named_parameters()
        }
        norm = np.sqrt(sum((g**2).sum() for g in given.values()))
        for k in theta:
            g = omega.get(drawn, 1.0) * given[k] / norm
            m[k] = beta1 * m[k] + (1 - beta1) / SHARES[drawn] * g
            n2[k] = beta2 * n2[k] + (1 - beta2) / SHARES[drawn] * g**2
            first, second = m[k] / (1 - beta1**t), n2[k] / (1 - beta2**t)
            shrink = 0.0 if k.endswith("bias") else decay
            theta[k] = theta[k] * (1 - lr * shrink) - lr * first / (np.sqrt(second) + eps)
        optimizer.draw(drawn, SHARES[drawn])
        optimizer.step()
    for k, p in net.named_parameters():
        np.testing.assert_allclose(p.detach().numpy(), theta[k], rtol=2e-5, atol=2e-6, err_msg=k)


def test_with_one_data_set_it_is_adamw_on_unit_gradients():
    nets = [Net(), Net()]
    ours = mt_adamw(nets[0], lr=0.01, weight_decay=0.1, no_decay=[])
    theirs = torch.optim.AdamW(nets[1].parameters(), lr=0.01, weight_decay=0.1)
    for number in range(5):
        for net in nets:
            generator = torch.Generator().manual_seed(number)
            for p in net.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
        norm = torch.cat([p.grad.reshape(-1) for p in nets[1].parameters()]).norm()
        for p in nets[1].parameters():
            p.grad /= norm
        ours.draw("x", 1.0)
        ours.step()
        theirs.step()
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_scale_of_a_data_sets_loss_does_not_matter():
    ends = []
    for factor in (1.0, 1e4):
        net = Net()
        optimizer = mt_adamw(net, lr=0.01)
        for number, drawn in enumerate(DRAWN):
            gradients(net, drawn, number)
            if drawn == "y":
                for p in net.parameters():
                    if p.grad is not None:
                        p.grad *= factor
            optimizer.draw(drawn, SHARES[drawn])
            optimizer.step()
        ends.append([p.detach().clone() for p in net.parameters()])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_zero_gradient_moves_nothing_at_first():
    net = Net()
    optimizer = mt_adamw(net, weight_decay=0.0)
    before = [p.detach().clone() for p in net.parameters()]
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_parameters_of_a_weighting_are_stepped_by_adamw():
    net, extra, twin = Net(), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = mt_adamw(net, lr=0.05)
    optimizer.add_param_group({"params": [extra], "weight_decay": 0.0})
    plain = torch.optim.AdamW([twin], lr=0.05, weight_decay=0.0)
    for number, drawn in enumerate(DRAWN):
        gradients(net, drawn, number)
        extra.grad = torch.tensor([1.0, -20.0]) * (number + 1)
        twin.grad = extra.grad.clone()
        optimizer.draw(drawn, SHARES[drawn])
        optimizer.step()
        plain.step()
    torch.testing.assert_close(extra, twin)


def test_resume_in_the_middle():
    whole, first, second = Net(), Net(), Net()
    optimizers = [mt_adamw(net, lr=0.01) for net in (whole, first, second)]

    def run(net, optimizer, numbers):
        for number in numbers:
            gradients(net, DRAWN[number], number)
            optimizer.draw(DRAWN[number], SHARES[DRAWN[number]])
            optimizer.step()

    run(whole, optimizers[0], range(10))
    run(first, optimizers[1], range(6))
    second.load_state_dict(first.state_dict())
    optimizers[2].load_state_dict(optimizers[1].state_dict())
    run(second, optimizers[2], range(6, 10))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_steps_of_several_data_sets_and_unknown_ones_are_refused():
    optimizer = mt_adamw(Net(), omega={"w": 2.0})
    with pytest.raises(UserError) as error:
        optimizer.check(SHARES, 3)
    text = str(error.value)
    assert "optimizer.omega.w" in text and "draws 3" in text and "sampler=proportional" in text


@pytest.mark.parametrize(("override", "said"), [("sampler=all", "draws all 4"), ("sampler.draws=2", "sampler.draws=2")])
def test_the_command_line_says_so_before_anything_starts(override, said):
    chosen = ["mixture=sentences", "backbone=bert", "sampler=proportional", "optimizer=mt_adamw", override]
    with pytest.raises(UserError, match=said):
        finalize(compose("train", chosen), data=False)
