"""The selective scan of Mamba (Gu and Dao 2023, arXiv 2312.00752, section 3): its recurrence in plain torch operations.

    h_t = exp(Δ_t A) ⊙ h_{t-1} + Δ_t x_t B_t        y_t = C_t · h_t + D ⊙ x_t

The published CUDA kernel (package `mamba_ssm`) is used where it is installed and the tensors are on a GPU. Everywhere
else the positions are cut into segments that fit a memory budget and a segment into blocks of about the square root of
its length: all blocks advance together, the states between them are carried over, and all blocks advance once more from
the right states. That is about 3 √L small steps instead of L, twice the arithmetic of the plain recurrence, and exact
for any decay (nothing is divided by a product that may underflow). States are kept between segments only; the backward
pass makes the others again.

Both passes are operators of their own (`runner::selective_scan`), so that `torch.compile` has no graph break there and
the FLOP counter knows what they cost: 9 · B · L · D · N, as is usual for Mamba.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

BUDGET = {"cpu": 2**20, "cuda": 2**26}
"""Most elements of one tensor of states, (positions of a segment) · B · G · N · D; on a CPU they should stay cached."""


def selective_scan(
    x_BLGD: Tensor, delta_BLGD: Tensor, bias_GD: Tensor, a_GND: Tensor, b_BLGN: Tensor, c_BLGN: Tensor, skip_GD: Tensor
) -> Tensor:
    """(B, L, G, D), float32 or wider: G scans of L positions, each of D channels with N states.

    Args:
        x_BLGD: what is scanned.
        delta_BLGD, bias_GD: Δ = softplus(delta + bias).
        a_GND: A, negative.
        b_BLGN, c_BLGN: B and C.
        skip_GD: D.
    """
    kind = torch.promote_types(x_BLGD.dtype, torch.float32)
    x, delta, bias, a, b, c, skip = (t.to(kind) for t in (x_BLGD, delta_BLGD, bias_GD, a_GND, b_BLGN, c_BLGN, skip_GD))
    kernel = _kernel() if x.is_cuda and kind == torch.float32 else None
    if kernel is not None:
        return _by_kernel(kernel, x, delta, bias, a, b, c, skip)
    y, _ = _scan(x, F.softplus(delta + bias), a, b, c)
    return torch.addcmul(y, x, skip)


@functools.cache
def _kernel() -> Callable[..., Tensor] | None:
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    return selective_scan_fn


def _by_kernel(
    kernel: Callable[..., Tensor], x: Tensor, delta: Tensor, bias: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor
) -> Tensor:
    """The published kernel, whose tensors are (B, G · D, L), (G · D, N) and (B, G, N, L)."""
    long = [t.flatten(2).transpose(1, 2).contiguous() for t in (x, delta)]
    narrow = [t.permute(0, 2, 3, 1).contiguous() for t in (b, c)]
    y_BDL = kernel(
        *long, a.transpose(1, 2).flatten(0, 1), *narrow, skip.flatten(), delta_bias=bias.flatten(), delta_softplus=True
    )
    return y_BDL.transpose(1, 2).unflatten(2, x.shape[2:])


@torch.library.custom_op("runner::selective_scan", mutates_args=())
def _scan(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs without D ⊙ x, and the states (segments, B, G, N, D) before each segment; Δ is positive already."""
    batch, length = x.shape[:2]
    step, count = _segments(x, a)
    states = x.new_zeros(count, batch, *a.shape)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    for index in range(count):
        part = slice(index * step, min((index + 1) * step, length))
        decay, h = _decay_and_drive(x, delta, a, b, part)
        advance_(decay, h, states[index])
        y[:, part] = (c[:, part].transpose(0, 1).unsqueeze(-2) @ h).squeeze(-2).transpose(0, 1)
        if index + 1 < count:
            states[index + 1] = h[-1]
    return y, states


@torch.library.custom_op("runner::selective_scan_backward", mutates_args=())
def _scan_backward(
    grad: Tensor, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, Δ, A, B and C: the adjoint recurrence runs from the end to the beginning."""
    length = x.shape[1]
    step, count = _segments(x, a)
    of_x, of_delta, of_b, of_c = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, delta, b, c))
    of_a, carried = torch.zeros_like(a), torch.zeros_like(states[0])
    for index in reversed(range(count)):
        part = slice(index * step, min((index + 1) * step, length))
        decay, h = _decay_and_drive(x, delta, a, b, part)
        advance_(decay, h, states[index])
        x_L, delta_L, b_L, c_L, grad_L = (t[:, part].transpose(0, 1) for t in (x, delta, b, c, grad))
        g = c_L.unsqueeze(-1) * grad_L.unsqueeze(-2)  # the gradient of h, as its own position sees it
        g[-1] += carried
        advance_(decay[1:], g[:-1], g[-1], backwards=True)
        carried = decay[0] * g[0]
        of_c[:, part] = (h @ grad_L.unsqueeze(-1)).squeeze(-1).transpose(0, 1)
        of_b[:, part] = (g @ (delta_L * x_L).unsqueeze(-1)).squeeze(-1).transpose(0, 1)
        of_drive = (b_L.unsqueeze(-2) @ g).squeeze(-2)
        decay[1:].mul_(h[:-1])
        decay[0].mul_(states[index])
        exponent = decay.mul_(g)  # the gradient of Δ A
        of_a += torch.mul(exponent, delta_L.unsqueeze(-2), out=h).sum((0, 1))
        of_x[:, part] = (of_drive * delta_L).transpose(0, 1)
        of_delta[:, part] = torch.addcmul((exponent * a).sum(-2), of_drive, x_L).transpose(0, 1)
    return of_x, of_delta, of_a, of_b, of_c


def advance_(decay: Tensor, h: Tensor, before: Tensor, backwards: bool = False) -> None:
    """h_t ← h_t + decay_t ⊙ h_{t-1} along the first dimension, in place.

    Args:
        decay, h: (L, …). before: (…), h before the first position; after the last one where it goes backwards.
    """
    length = len(h)
    width = max(int(length**0.5), 1)
    blocks = length // width
    rest = range(blocks * width, length)
    main = slice(0, blocks * width)
    if backwards:  # the odd positions at the end come first
        for t in reversed(rest):
            before = h[t].addcmul_(decay[t], before)
    if blocks:
        decays, hs = (t[main].unflatten(0, (blocks, width)) for t in (decay, h))
        steps, order = (range(width), range(blocks)) if not backwards else (range(width)[::-1], range(blocks)[::-1])
        end, product = hs[:, steps[0]].clone(), decays[:, steps[0]].clone()
        for t in steps[1:]:
            torch.addcmul(hs[:, t], decays[:, t], end, out=end)
            product *= decays[:, t]
        entering = torch.empty_like(end)
        for block in order:
            entering[block] = before
            before = torch.addcmul(end[block], product[block], before)
        for t in steps:
            torch.addcmul(hs[:, t], decays[:, t], entering, out=entering)
            hs[:, t] = entering
    if not backwards:
        for t in rest:
            before = h[t].addcmul_(decay[t], before)


def _segments(x: Tensor, a: Tensor) -> tuple[int, int]:
    """Positions in a segment, and the number of segments."""
    length = x.shape[1]
    budget = BUDGET["cpu" if x.device.type == "cpu" else "cuda"]
    step = min(length, max(budget // (x.shape[0] * a.numel()), 16))
    return step, -(-length // step)


def _decay_and_drive(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """exp(Δ A) and Δ x B of some positions, (L, B, G, N, D)."""
    x_L, delta_L, b_L = (t[:, part].transpose(0, 1) for t in (x, delta, b))
    return (delta_L.unsqueeze(-2) * a).exp_(), (delta_L * x_L).unsqueeze(-2) * b_L.unsqueeze(-1)


def _differentiable(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The same in operations that can be differentiated twice, by doubling; it keeps every state in memory."""
    decay, h = _decay_and_drive(x, delta, a, b, slice(None))
    reach = 1
    while reach < len(h):
        h = torch.cat([h[:reach], h[reach:] + decay[reach:] * h[:-reach]])
        decay = torch.cat([decay[:reach], decay[reach:] * decay[:-reach]])
        reach *= 2
    return (c.transpose(0, 1).unsqueeze(-2) @ h).squeeze(-2).transpose(0, 1)


def _remember(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _gradients(ctx: Any, grad: Tensor, _states: Tensor | None) -> tuple[Tensor, ...]:
    *inputs, states = ctx.saved_tensors
    if torch.is_grad_enabled():  # somebody wants to differentiate the gradient
        return torch.autograd.grad(_differentiable(*inputs), inputs, grad, create_graph=True)
    return _scan_backward(grad, *inputs, states)


@_scan.register_fake
def _(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(
        _segments(x, a)[1], x.shape[0], *a.shape
    )


@_scan_backward.register_fake
def _(
    grad: Tensor, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    x, delta, a, b, c = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, delta, a, b, c))
    return x, delta, a, b, c


_scan.register_autograd(_gradients, setup_context=_remember)


@register_flop_formula(torch.ops.runner.selective_scan)
def _flops(x: Any, delta: Any, a: Any, *_: Any, **__: Any) -> int:
    batch, length, scans, channels = x
    return 9 * batch * length * scans * channels * a[1]


@register_flop_formula(torch.ops.runner.selective_scan_backward)
def _backward_flops(grad: Any, x: Any, delta: Any, a: Any, *_: Any, **__: Any) -> int:
    return 2 * _flops(x, delta, a)
