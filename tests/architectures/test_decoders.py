"""Decoder-focused architectures against formulas written out by hand."""

from __future__ import annotations

from contextlib import nullcontext

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


def test_invpt_has_the_parameters_of_its_formula() -> None:
    c, p = 56, 8
    model = make("invpt", channels=c, prediction_channels=p)
    k, w, last, expected = len(TASKS), c + p, 128, 0
    expected += k * (9 * last * last + 2 * last + 9 * last * c + 2 * c + (9 * w * w + 2 * w))  # preliminary, projection
    for t in TASKS.values():
        expected += c * t.out_channels + t.out_channels  # preliminary prediction
        expected += (c + t.out_channels) * w + w  # mix
        expected += w * t.out_channels + t.out_channels  # head
    for stage, level in enumerate((128, 64, 32)):
        d = w // 2**stage
        block = 2 * 2 * d + k * (9 * d + 2 * d) + 4 * (d * d + d) + (4 * d * d + 4 * d + 4 * d * d + d)
        expected += block + 2 * k * d
        if stage:
            expected += 2 * 4 + 2  # fusing 2 · 2 maps of scores into 2
            expected += 9 * level * d + d  # the backbone's skip connection
            expected += k * (9 * 2 * d * d + 2 * d + 9 * d * d + 2 * d + d * w + w)  # upsampling, widening
    assert count(model) - count(model.backbone) == expected


def test_invpt_attention_against_a_loop_over_queries() -> None:
    from runner.architectures.invpt import UpBlock

    torch.manual_seed(0)
    block = UpBlock(2, 8, 2, 2, "group", fuse=False).double().eval()
    x = {t: torch.randn(1, 8, 4, 6, dtype=torch.float64) for t in "ab"}
    made, scores = block(x, None)
    normed = [block.norm1(m.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for m in x.values()]
    queries = torch.cat([s(m).flatten(2) for s, m in zip(block.shrink, normed, strict=True)], 2)[0].T
    keys = torch.cat([torch.nn.functional.avg_pool2d(m, 2).flatten(2) for m in normed], 2)[0].T
    out = torch.zeros(len(queries), 8, dtype=torch.float64)
    for i, query in enumerate(queries):
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            score = torch.stack([block.query(query)[part] @ block.key(key)[part] * 8**-0.5 for key in keys])
            out[i, part] = sum(a * block.value(key)[part] for a, key in zip(score.softmax(0), keys, strict=True))
    out = block.out(out).T.reshape(8, 2, 2, 3)  # channels, tasks, H / 2, W / 2
    for n, t in enumerate("ab"):
        up = torch.nn.functional.interpolate(out[None, :, n], size=(4, 6), mode="bilinear", align_corners=False)
        y = x[t] + up
        y = y + block.mlp(block.norm2(y.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        torch.testing.assert_close(made[t], y)
    assert scores.shape == (1, 2, 2 * len(keys), 2, 3)


def test_scores_travel_to_the_queries_they_belong_to() -> None:
    """A score that is constant over a task's queries stays so, for every task, head and key."""
    from runner.architectures.invpt import _upsample_scores

    tasks, heads, keys = 3, 2, 5
    values = torch.arange(tasks * heads * keys, dtype=torch.float32).view(tasks, heads, keys)
    before = values.view(1, tasks, heads * keys, 1, 1).expand(1, tasks, heads * keys, 2, 3)
    fine = _upsample_scores(before, (4, 6), heads)
    assert fine.shape == (1, heads, tasks * 24, keys)
    for t in range(tasks):
        for query in range(24):
            assert torch.equal(fine[0, :, t * 24 + query], values[t])


def test_levels_that_are_not_read_are_not_made() -> None:
    def backbone():
        return build({**option("backbone", "vit"), "size": "tiny"}, SPECS["image"], where="backbone")

    whole, part = backbone(), backbone()
    part.load_state_dict(whole.state_dict())
    part.keep_levels([2, 3])
    everything_made = whole(example("image")).pyramid
    kept = part(example("image")).pyramid
    assert part.spec.strides == whole.spec.strides[2:]
    assert all(torch.equal(a, b) for a, b in zip(kept, everything_made[2:], strict=True))
    assert count(part) < count(whole)


def test_losses_of_single_examples_have_the_intermediate_ones_too() -> None:
    """What is minimised in place of each example's loss is a function of its whole loss."""

    class Squares(Task):
        kind, loss_kind = "pooled", "regression"

        def __init__(self) -> None:
            super().__init__("t", out_channels=1, directions={}, headline="loss")

        def loss_sum(self, prediction, target):
            return (prediction - target).square().sum()

        def loss_count(self, target):
            return torch.tensor(float(len(target)))

    one = torch.tensor([[1.0], [2.0]], requires_grad=True)
    two, target = torch.tensor([[3.0], [1.0]]), torch.tensor([[2.5], [0.5]])
    supervised = Supervised(one, ((0.5, two),))
    forward = Forward(
        lambda group, tasks: {"t": supervised}, {"t": Squares()}, torch.device("cpu"), nullcontext, torch.square
    )
    forward.loss_sums([Group("g", {"x": one}, {"t": target})])["t"].backward()
    whole = [1.5**2 + 0.5 * 0.5**2, 1.5**2 + 0.5 * 0.5**2]
    by_hand = [2 * whole[0] * 2 * (1.0 - 2.5), 2 * whole[1] * 2 * (2.0 - 0.5)]
    assert one.grad.flatten().tolist() == pytest.approx(by_hand)
