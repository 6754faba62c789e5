"""Decoder-focused architectures against formulas written out by hand."""

from __future__ import annotations

import pytest
import torch

from runner.architectures.distillation import Distillation
from runner.architectures.mti_net import FeaturePropagation
from runner.config.build import build
from runner.tasks.base import Task
from runner.training.forward import Forward
from runner.types import Group, Supervised, everything, final
from tests.architectures.samples import task
from tests.backbones.samples import SPECS, example, kind_of, option

TASKS = {n: task(n, "dense", c) for n, c in (("segmentation", 5), ("depth", 1), ("normals", 3))}


def make(name: str, tasks=TASKS, **changes):
    def backbone():
        config = {**option("backbone", "resnet"), "size": "tiny"}
        return build(config, SPECS[kind_of(config)], where="backbone")

    torch.manual_seed(0)
    return build({**option("architecture", name), **changes}, backbone, tasks, where="architecture")


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def bottleneck(before: int, after: int) -> int:
    inner = after // 4
    body = before * inner + 2 * inner + 9 * inner * inner + 2 * inner + inner * after + 2 * after
    return body + (before * after + 2 * after if before != after else 0)


def basic(before: int, after: int) -> int:
    body = 9 * before * after + 2 * after + 9 * after * after + 2 * after
    return body + (before * after + 2 * after if before != after else 0)


def test_pad_net_has_the_parameters_of_its_formula() -> None:
    c, total = 32, 16 + 32 + 64 + 128
    model = make("pad_net", channels=c)
    per_task = bottleneck(total, c) + bottleneck(c, c)
    heads = sum(2 * bottleneck(c, c) + c * t.out_channels + t.out_channels for t in TASKS.values())
    classifiers = sum(c * t.out_channels + t.out_channels for t in TASKS.values())
    messages = 3 * 2 * 2 * 9 * c * c
    assert count(model) - count(model.backbone) == 3 * per_task + classifiers + messages + heads


def test_mti_net_has_the_parameters_of_its_formula() -> None:
    widths = [16, 32, 64, 128]
    model = make("mti_net")
    k, expected = len(TASKS), 0
    for level, c in enumerate(widths):
        coarser = widths[level + 1] if level < 3 else 0
        expected += k * (basic(c + coarser, c) + basic(c, c))
        expected += sum(c * t.out_channels + t.out_channels for t in TASKS.values())
        expected += k * (k - 1) * 2 * 9 * c * c
        if level > 0:
            whole, inner, squeeze = k * c, k * c // 4, c // 16
            expected += basic(whole, inner) + basic(inner, inner) + inner * whole + whole + basic(whole, c)
            expected += k * (c * squeeze + squeeze + squeeze * c + c)
    total = sum(widths)
    expected += sum(total * total + 2 * total + total * t.out_channels + t.out_channels for t in TASKS.values())
    assert count(model) - count(model.backbone) == expected


def test_distillation_is_the_sum_of_gated_messages() -> None:
    torch.manual_seed(0)
    module = Distillation(["a", "b", "c"], 4).double()
    x = {t: torch.randn(2, 4, 5, 6, dtype=torch.float64) for t in "abc"}
    made = module(x, ["b"])
    assert list(made) == ["b"]
    expected = x["b"].clone()
    for t in "ac":
        block = module.messages["b"][t]
        padded = torch.nn.functional.pad(x[t], (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)  # (B, C, H, W, 3, 3)
        gate, message = (torch.einsum("bihwkl,oikl->bohw", padded, m.weight) for m in (block.gate, block.message))
        expected += message / (1 + torch.exp(-gate))
    torch.testing.assert_close(made["b"], expected)


def test_the_mask_of_the_propagation_shares_each_channel_and_pixel_among_the_tasks() -> None:
    torch.manual_seed(0)
    module = FeaturePropagation(3, 8, "group")
    x = [torch.randn(2, 8, 4, 4) for _ in range(3)]
    seen = []
    module.reduce.register_forward_hook(lambda _m, given, _out: seen.append(given[0]))
    torch.nn.init.zeros_(module.mix[-1].weight)
    torch.nn.init.zeros_(module.mix[-1].bias)
    module(x)
    torch.testing.assert_close(seen[0], torch.cat(x, dim=1) / 3)  # equal scores: a third for every task


@pytest.mark.parametrize("name", ["pad_net", "mti_net"])
def test_intermediate_predictions_are_there_exactly_where_gradients_are(name: str) -> None:
    model = make(name, **({"channels": 32} if name == "pad_net" else {}))
    group = Group("some", example("image"))
    for prediction in model(group, list(TASKS)).values():
        assert len(everything(prediction)) == (2 if name == "pad_net" else 5)
    with torch.inference_mode():
        assert all(isinstance(p, torch.Tensor) for p in model(group, list(TASKS)).values())
    without = make(name, auxiliary_weight=0)
    assert all(isinstance(p, torch.Tensor) for p in without(group, list(TASKS)).values())


def test_the_loss_adds_the_weighted_intermediate_ones() -> None:
    class Squares(Task):
        kind, loss_kind = "pooled", "regression"

        def __init__(self) -> None:
            super().__init__("t", out_channels=1, directions={}, headline="loss")

        def loss_sum(self, prediction, target):
            return (prediction - target).square().sum()

    one, two, target = torch.tensor([[1.0]]), torch.tensor([[3.0]]), torch.tensor([[2.5]])
    supervised = Supervised(one, ((0.5, two),))
    forward = Forward(lambda group, tasks: {"t": supervised}, {"t": Squares()}, torch.device("cpu"), torch.no_grad)
    sums = forward.loss_sums([Group("g", {"x": one}, {"t": target})])
    assert sums["t"].item() == pytest.approx(1.5**2 + 0.5 * 0.5**2)
    assert final(supervised) is one
