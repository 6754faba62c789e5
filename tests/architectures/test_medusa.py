"""Medusa against formulas written out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from runner.architectures.medusa import MultiScale, resampled
from runner.training.cost import forward_cost
from runner.types import everything, final
from tests.architectures.test_cost import CELLS, WIDTHS, backbone_flops
from tests.architectures.worlds import TASKS, count, images, make

HEAD = {"_target_": "runner.architectures.heads.hrnet.HRNetHead"}
C, T = 8, 3


def test_parameters_and_flops_are_those_of_the_formulas():
    model = make("medusa", channels=C, dense_head=HEAD)
    outs = sum(t.out_channels for t in TASKS.values())
    total, flops = 0, 0
    for w, n in zip(WIDTHS, CELLS, strict=True):
        convolutions = 18 * w * w + 9 * w * C + 27 * C * C + w * C + 18 * C * C
        total += T * (convolutions + 2 * 5 * C) + C * outs + outs
        flops += 2 * n * (T * convolutions + C * outs)
    wide = 4 * C
    total += T * (wide * wide + 2 * wide) + wide * outs + outs
    flops += 2 * CELLS[0] * (T * wide * wide + wide * outs)
    assert count(model) - count(model.backbone) == total
    found = forward_cost(model, images(batch=1), list(TASKS)).flops
    assert found == pytest.approx(backbone_flops() + flops, rel=0.02)


def test_tasks_do_not_touch():
    """A task's loss reaches its own part and the backbone, and its prediction does not know which others there are."""
    model = make("medusa", channels=C, dense_head=HEAD).train()
    made = model(images(), ["depth"])["depth"]
    assert len(everything(made)) == 5  # a supervised prediction at each level
    sum(x.sum() for x in everything(made)).backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None}
    own = {n for n, _ in model.named_parameters() if ".depth." in n or n.startswith("backbone.")}
    assert reached == own
    alone = make("medusa", {"depth": TASKS["depth"]}, channels=C, dense_head=HEAD).eval()
    state = model.eval().state_dict()
    alone.load_state_dict({name: state[name] for name in alone.state_dict()})
    torch.testing.assert_close(
        alone(images(), ["depth"])["depth"].prediction, final(model(images(), ["depth"])["depth"])
    )


def test_each_level_adds_what_it_attends_to_at_all_others():
    torch.manual_seed(0)
    combine = MultiScale((6, 4), 4, (4, 8)).double()
    fine, coarse = torch.randn(1, 6, 5, 7, dtype=torch.float64), torch.randn(1, 4, 3, 4, dtype=torch.float64)
    made = combine([fine, coarse])
    own = combine.project[0](fine)
    messages = []
    for x, block in ((own, combine.attend[0]), (coarse, combine.attend[1])):
        gate = F.conv2d(x, block.gate.weight, padding=1)
        messages.append(F.conv2d(x, block.message.weight, padding=1) / (1 + torch.exp(-gate)))
    up = F.interpolate(messages[1], scale_factor=2, mode="bilinear")[..., :5, :7]
    torch.testing.assert_close(made[0], own + up)
    torch.testing.assert_close(made[1][0, :, 0, 1], coarse[0, :, 0, 1] + messages[0][0, :, 0:2, 2:4].mean((1, 2)))
    torch.testing.assert_close(made[1][0, :, 2, 3], coarse[0, :, 2, 3] + messages[0][0, :, 4, 6])  # cut at the border


def test_a_single_level_has_nothing_to_add():
    x = torch.randn(1, 4, 3, 3)
    [made] = MultiScale((4,), 4, (16,))([x])
    assert torch.equal(made, x)
    assert torch.equal(resampled(x, 8, 8, (3, 3)), x)


@pytest.mark.parametrize("blocks", [0, 1])
def test_fewer_residual_blocks(blocks):
    model = make("medusa", channels=C, blocks=blocks, auxiliary_weight=0)
    assert model(images(), ["normals"])["normals"].shape == (2, 3, 64, 64)
