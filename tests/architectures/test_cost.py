"""FLOPs of the architectures against sums over their layers: nothing that is shared is computed more than once."""

from __future__ import annotations

import functools
import re

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from runner.backbones.resnet import ResNet
from runner.config import paths
from runner.training.cost import forward_cost, in_words, measure
from runner.types import Group
from tests.architectures.worlds import TABLE, TASKS, count, images, make, table
from tests.backbones.samples import SPECS, option

K = len(TASKS)


def layer_flops(module, run):
    """2 · (multiplications of every convolution and linear layer under `module`, each call once), by hooks."""
    total = []

    def add(layer, inputs, output):
        if isinstance(layer, nn.Conv2d):
            per_cell = layer.in_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]
            total.append(2 * per_cell * output.numel())
        else:
            total.append(2 * layer.in_features * output.numel())

    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    run()
    for hook in hooks:
        hook.remove()
    return sum(total)


def conv(before, after, kernel, cells):
    return 2 * before * after * kernel**2 * cells


WIDTHS = (16, 32, 64, 128)
CELLS = (16 * 16, 8 * 8, 4 * 4, 2 * 2)
"""Of the tiny ResNet for one image of 64 × 64."""


def backbone_flops():
    net = ResNet(SPECS["image"], size="tiny").eval()
    return layer_flops(net, lambda: net(images(batch=1).inputs))


def head_flops():
    """Lateral 1×1 convolutions to 8 channels, one 3×3 one, the classifiers of 5, 1 and 3 channels."""
    shared = sum(conv(w, 8, 1, c) for w, c in zip(WIDTHS, CELLS, strict=True)) + conv(8, 8, 3, CELLS[0])
    return K * shared + conv(8, 9, 1, CELLS[0])


def mtan_flops():
    total = 0
    for i, (w, c) in enumerate(zip(WIDTHS, CELLS, strict=True)):
        total += conv(w if i == 0 else 2 * w, w // 4, 1, c) + conv(w // 4, w, 1, c)
        if i < 3:
            b = WIDTHS[i + 1]
            total += conv(w, b // 4, 1, c) + conv(b // 4, b // 4, 3, c) + conv(b // 4, b, 1, c) + conv(w, b, 1, c)
    return K * total


def experts_flops(first, second, gates):
    """Experts of 8 channels on the backbone's levels and on those of other experts; heads on levels of 8."""
    lower = sum(conv(w, 8, 1, c) + conv(8, 8, 3, c) for w, c in zip(WIDTHS, CELLS, strict=True))
    upper = sum(conv(8, 8, 1, c) + conv(8, 8, 3, c) for c in CELLS)
    narrow = K * sum(conv(8, 8, 1, c) - conv(w, 8, 1, c) for w, c in zip(WIDTHS, CELLS, strict=True))
    return first * lower + second * upper + gates * 2 * 128 + narrow


def sak_flops():
    """Three paths of an adapter and what carries over per stage; a router per task and stage."""
    total = 0
    for i, (w, c) in enumerate(zip(WIDTHS, CELLS, strict=True)):
        total += 3 * 2 * conv(w, w // 4, 1, c) + K * (conv(w, w // 2, 1, c) + conv(w // 2, 8, 1, c))
        total += 3 * conv(WIDTHS[i - 1], w, 1, c) if i else 0
    return total


def vtagml_flops():
    """Per task and stage: down, queries, keys and values, up, what carries over; attention among the tasks."""
    total = 0
    for i, (w, c) in enumerate(zip(WIDTHS, CELLS, strict=True)):
        r = w // 3
        total += K * (2 * conv(w, r, 1, c) + conv(r, 3 * r, 1, c) + 2 * conv(K, r, 1, c))
        total += K * conv(WIDTHS[i - 1], w, 1, c) if i else 0
    return total


NDDR = K * sum(conv(K * w, w, 1, c) for w, c in zip(WIDTHS, CELLS, strict=True))
EXPERTS = ("mmoe", "cgc", "ple", "dselect_k", "adatt", "home")
EXPECTED = {
    "hard_sharing": lambda b, h: b + h,
    "single_task": lambda b, h: K * b + h,
    "cross_stitch": lambda b, h: K * b + h,
    "sluice": lambda b, h: K * b + h,
    "nddr_cnn": lambda b, h: K * b + h + NDDR,
    "ltb": lambda b, h: K * b + h,
    "mtan": lambda b, h: b + h + mtan_flops(),
    "yolor_implicit": lambda b, h: b + h,
    "mmoe": lambda b, h: b + h + experts_flops(4, 0, K * 4),
    "cgc": lambda b, h: b + h + experts_flops(2 + 2 * K, 0, K * 4),
    "ple": lambda b, h: b + h + experts_flops(2 + 2 * K, 2 + 2 * K, K * 4 + 2 + 2 * K),
    "dselect_k": lambda b, h: b + h + experts_flops(8, 0, K * (2 * 3 + 2)),
    "adatt": lambda b, h: b + h + experts_flops(1 + 2 * K, 1 + 2 * K, (K + 1) * (1 + 2 * K)),
    "sak": lambda b, h: b + h + sak_flops(),
    "vtagml": lambda b, h: b + h + vtagml_flops(),
    "slimmable": lambda b, h: b + h,
    "base_subtask": lambda b, h: K * b + h,
    "mtsl": lambda b, h: K * b + h,
    "home": lambda b, h: b + h + experts_flops(4, 4 + 2 * K, 4 * 3 + 4 * 16),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_flops_are_those_of_the_layers(name):
    model = make(name, **({"channels": 8} if name in EXPERTS else {}))
    found = forward_cost(model, images(batch=1), list(TASKS)).flops
    assert found == pytest.approx(EXPECTED[name](backbone_flops(), head_flops()), rel=0.02)


def test_flops_of_mtan_on_segnet():
    """The shared network once, and what a task adds times the number of tasks."""
    model = make("mtan", backbone="segnet").eval()
    group = images(batch=1)
    found = forward_cost(model, group, list(TASKS)).flops
    assert found == pytest.approx(layer_flops(model, lambda: model(group, list(TASKS))), rel=1e-6)
    shared = measure(model, lambda: model.backbone(group.inputs)).flops
    heads = layer_flops(model.heads, lambda: model(group, list(TASKS)))
    one = forward_cost(model, group, ["depth"]).flops - layer_flops(model.heads, lambda: model(group, ["depth"]))
    assert found - heads - shared == pytest.approx(3 * (one - shared), rel=1e-6)


def test_heads_and_gates_of_tasks_that_are_not_asked_for_cost_nothing():
    for name in ("hard_sharing", "mtan", "mmoe", "cgc", "yolor_implicit"):
        model = make(name)
        heads = model.heads
        full, one = (forward_cost(model, images(batch=1), tasks).flops for tasks in (list(TASKS), ["depth"]))
        all_of_them = layer_flops(heads, lambda model=model: model(images(batch=1), list(TASKS)))
        others = all_of_them - layer_flops(heads, lambda model=model: model(images(batch=1), ["depth"]))
        assert full - one >= others, name


def test_attention_on_cpu_is_counted():
    linear, q = nn.Linear(8, 8), torch.randn(2, 4, 16, 8, requires_grad=True)
    attention = torch.nn.functional.scaled_dot_product_attention
    found = measure(linear, lambda: attention(linear(q), q, q)).flops
    assert found == 2 * (2 * 4 * 16) * 8 * 8 + 2 * (2 * 2 * 4 * 16 * 16 * 8)


def test_measuring_leaves_no_trace():
    model = make("mmoe", TABLE, "mlp").train()
    model.heads["income"].eval()
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    cost = forward_cost(model, table(), list(TABLE))
    assert cost.flops > 0 and cost.saved_bytes > 0
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training and not model.heads["income"].training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_words():
    assert [in_words(x) for x in (12, 1234, 2.5e9, 7e15)] == ["12 FLOP", "1.23 KFLOP", "2.5 GFLOP", "7 PFLOP"]


DECODERS = ("mtmamba", "mtmamba_pp", "task_prompter", "task_expert", "atrc", "atrc_search", "medusa")


@pytest.mark.parametrize("name", [n for n in (*EXPECTED, *DECODERS) if n != "hard_sharing"])
def test_the_cost_line_of_the_option_is_true(name):
    """Three dense tasks with the default head on ResNet-50 at 288 × 384, against hard sharing; nothing is computed."""
    [note] = [o.notes["cost"] for o in paths.options("architecture") if o.name == name]
    said = re.match(r"x ([\d.]+) parameters, x ([\d.]+) FLOPs of hard sharing", note)
    (own, flops), (hard, hard_flops) = full_size(name), full_size("hard_sharing")
    assert [float(x) for x in said.groups()] == pytest.approx([own / hard, flops / hard_flops], rel=0.01)


@functools.cache
def full_size(name):
    """Parameters and FLOPs."""
    pixels = torch.empty(1, 3, 288, 384, device="meta")
    with torch.device("meta"):
        head = option("architecture", name)["dense_head"]
        model = make(name, backbone={"name": "resnet", "size": 50}, dense_head=head).eval()
        for backbone in model.all_backbones():
            backbone.mean, backbone.std = (torch.empty(1, 3, 1, 1, device="meta") for _ in range(2))
        with FlopCounterMode(display=False) as counter:
            model(Group("images", {"pixels": pixels}), list(TASKS))
    return count(model), counter.get_total_flops()
