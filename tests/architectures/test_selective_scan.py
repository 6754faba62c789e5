"""The selective scan against the recurrence written out, and the scan in four directions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from runner.architectures import selective_scan as module
from runner.architectures.mamba import DropPath, Expand, Scan2D, from_directions, in_directions
from runner.architectures.selective_scan import advance_, selective_scan
from runner.training.cost import measure


def inputs(batch=2, length=7, scans=2, channels=3, states=4, dtype=torch.float64):
    torch.manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, dtype=dtype).requires_grad_()

    x, delta = random(batch, length, scans, channels), random(batch, length, scans, channels)
    a = (-3 * torch.rand(scans, states, channels, dtype=dtype)).requires_grad_()
    b, c = random(batch, length, scans, states), random(batch, length, scans, states)
    return [x, delta, random(scans, channels), a, b, c, random(scans, channels)]


def recurrence(x, delta, bias, a, b, c, skip):
    """Equation 2 of the paper, one position after the other."""
    step = F.softplus(delta + bias)
    h, outputs = torch.zeros(x.shape[0], *a.shape, dtype=x.dtype), []
    for t in range(x.shape[1]):
        h = torch.exp(step[:, t, :, None] * a) * h + (step[:, t] * x[:, t])[:, :, None] * b[:, t, ..., None]
        outputs.append((h * c[:, t, ..., None]).sum(2) + skip * x[:, t])
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("length", [1, 2, 3, 16, 17, 101])
@pytest.mark.parametrize("budget", [1, 2**20])
def test_the_scan_is_the_recurrence(length, budget, monkeypatch):
    """Whatever the segments: values and all gradients."""
    monkeypatch.setitem(module.BUDGET, "cpu", budget)
    arguments = inputs(length=length)
    made, expected = selective_scan(*arguments), recurrence(*arguments)
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(made)
    found = torch.autograd.grad(made, arguments, direction)
    for gradient, right in zip(found, torch.autograd.grad(expected, arguments, direction), strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-10, atol=1e-12)


def test_gradients_and_their_gradients_are_those_of_finite_differences(monkeypatch):
    monkeypatch.setitem(module.BUDGET, "cpu", 1)
    arguments = inputs(batch=1, length=18, scans=1, channels=2, states=2)
    assert torch.autograd.gradcheck(selective_scan, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(selective_scan, arguments, fast_mode=True)


def test_decay_that_underflows_does_not_hurt():
    """A product of decays below the smallest number leaves the states finite, forwards and backwards."""
    arguments = [t.detach().float().requires_grad_() for t in inputs(length=200)]
    arguments[3] = (arguments[3].detach() * 1e3).requires_grad_()
    made = selective_scan(*arguments)
    torch.testing.assert_close(made, recurrence(*arguments), rtol=1e-4, atol=1e-5)
    assert all(g.isfinite().all() for g in torch.autograd.grad(made.sum(), arguments))


def test_states_are_kept_between_segments_only(monkeypatch):
    monkeypatch.setitem(module.BUDGET, "cpu", 1)
    _, states = torch.ops.runner.selective_scan(
        *(t.detach() for t in (*inputs(length=64)[:2], *inputs(length=64)[3:6]))
    )
    assert states.shape == (4, 2, 2, 4, 3)  # 64 positions in segments of 16


def test_bf16_is_scanned_in_float32():
    arguments = inputs(dtype=torch.bfloat16)
    made = selective_scan(*arguments)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, recurrence(*(t.detach().float() for t in arguments)))


def test_its_cost_is_counted():
    arguments = inputs()
    found = measure(torch.nn.Identity(), lambda: selective_scan(*arguments)).flops
    assert found == 9 * 2 * 7 * 2 * 3 * 4


@pytest.mark.parametrize("backwards", [False, True])
def test_advance(backwards):
    torch.manual_seed(0)
    decay, h, before = torch.rand(11, 3), torch.randn(11, 3), torch.randn(3)
    expected, state = h.clone(), before
    for t in reversed(range(11)) if backwards else range(11):
        expected[t] += decay[t] * state
        state = expected[t]
    advance_(decay, h, before, backwards)
    torch.testing.assert_close(h, expected)


def test_directions_visit_every_pixel_in_their_order_and_come_back():
    height, width = 2, 3
    pixels = torch.arange(6).view(1, height, width, 1, 1).expand(-1, -1, -1, 4, -1)
    visited = in_directions(pixels)[0, :, :, 0]
    assert visited.T.tolist() == [[0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5], [5, 4, 3, 2, 1, 0], [5, 2, 4, 1, 3, 0]]
    assert from_directions(in_directions(pixels), width).flatten().tolist() == [4 * i for i in range(6)]


@pytest.mark.parametrize("guided", [False, True])
def test_the_scan_of_an_image_is_four_recurrences(guided):
    torch.manual_seed(0)
    scan = Scan2D(4, 2, 3).double()
    x, other = torch.randn(2, 2, 3, 5, 4, dtype=torch.float64).unbind(0)
    torch.nn.init.normal_(scan.skip)
    total = torch.zeros(2, 3, 5, 4, dtype=torch.float64)
    guide = other if guided else x
    for k, order in enumerate((lambda m: m, lambda m: m.transpose(1, 2))):
        for backwards in (False, True):
            d = k + 2 * backwards
            line, guiding = (order(m).flatten(1, 2) for m in (x, guide))
            if backwards:
                line, guiding = line.flip(1), guiding.flip(1)
            rank, b, c = (guiding @ scan.project[d].T).split([2, 3, 3], dim=-1)
            one = [t.unsqueeze(2) for t in (line, rank @ scan.delta[d])]
            y = recurrence(
                *one,
                scan.bias[d : d + 1],
                -scan.log_a[d : d + 1].exp(),
                b.unsqueeze(2),
                c.unsqueeze(2),
                scan.skip[d : d + 1],
            )
            y = y[:, :, 0].flip(1) if backwards else y[:, :, 0]
            total += order(y.unflatten(1, (3, 5) if k == 0 else (5, 3)))
    torch.testing.assert_close(scan(x, other if guided else None), F.layer_norm(total, (4,)))


def test_the_first_steps_are_small():
    scan = Scan2D(64, 4, 16)
    step = F.softplus(scan.bias).detach()
    assert 0.001 <= float(step.min()) < 0.003 and 0.03 < float(step.max()) <= 0.1001


def test_expanding_lays_channels_out_as_pixels():
    expand = Expand(3, 5, 2)
    x = torch.randn(1, 2, 2, 3)
    wide = x @ expand.widen.weight.T
    made = expand(x)
    for row, column in ((0, 0), (1, 2), (3, 3)):
        part = 5 * (2 * (row % 2) + column % 2)
        torch.testing.assert_close(
            made[0, row, column], F.layer_norm(wide[0, row // 2, column // 2, part : part + 5], (5,))
        )


def test_stochastic_depth_keeps_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    made = drop(torch.ones(4000, 2))
    assert made.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(made.mean()) == pytest.approx(1, abs=0.05) and torch.equal(made[:, 0], made[:, 1])
    assert torch.equal(drop.eval()(made), made)
