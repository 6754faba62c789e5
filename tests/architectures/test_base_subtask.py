"""Base task and sparse deltas against the formulas."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from runner.architectures.base_subtask import Delta
from runner.errors import UserError
from tests.architectures.worlds import TASKS, count, images, make


def deltas(model, task):
    return [m for m in model.backbones[task].modules() if isinstance(m, Delta)]


def test_sub_tasks_start_as_the_base():
    model = make("base_subtask", threshold=0).eval()
    with torch.no_grad():
        x = [b(images().inputs).pyramid for b in model.backbones.values()]
    for other in x[1:]:
        assert all(torch.equal(a, b) for a, b in zip(x[0], other, strict=True))


def test_parameters():
    """A backbone, and for every sub-task a change and a gate per weight of it."""
    model, plain = make("base_subtask"), make("hard_sharing")
    size, subtasks = count(plain.backbone), len(TASKS) - 1
    assert count(model) == size + 2 * subtasks * size + count(plain.heads)
    frozen = make("base_subtask", backbone={"name": "resnet", "frozen": True})
    assert count(frozen) == size + count(plain.heads)


def test_weights_are_the_base_and_gated_changes():
    torch.manual_seed(0)
    base = nn.Parameter(torch.randn(50))
    made, change = Delta(base, 0.0, joint=True), torch.randn(50)
    with torch.no_grad():
        made.alpha.copy_(torch.linspace(-3, 3, 50))
    z = (torch.sigmoid(made.alpha) * 3 - 1.5).clamp(0, 1)
    torch.testing.assert_close(made.eval()(change), base + z * change)
    assert made.open() == int((made.alpha > 0).sum())  # σ(a) · 3 - 1.5 is above 0 where a is
    torch.testing.assert_close(made.expected(), torch.sigmoid(made.alpha).sum())
    drawn = torch.stack([made.train().gates() > 0 for _ in range(4000)]).float().mean(0)
    torch.testing.assert_close(drawn, torch.sigmoid(made.alpha), atol=0.04, rtol=0)  # what `expected` counts


def test_activations_near_the_base_are_the_base():
    model = make("base_subtask", threshold=0.5)
    x, base = torch.tensor([0.0, 0.4, 0.6, -0.7], requires_grad=True), torch.zeros(4)
    found = model._shared("depth", x, base)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 0.6, -0.7]))
    found.sum().backward()
    assert torch.equal(x.grad, torch.ones(4))


@pytest.mark.parametrize("joint", [False, True])
def test_sub_tasks_train_the_base_only_if_asked_to(joint):
    model = make("base_subtask", base="depth", joint=joint).train()
    model(images(), ["normals"])["normals"].square().mean().backward()
    reached = any(p.grad is not None and p.grad.any() for p in model.backbones["depth"].parameters())
    assert reached == joint
    changed = [p.grad for n, p in model.backbones["normals"].named_parameters() if n.endswith("original")]
    assert any(g is not None and g.any() for g in changed)


def test_the_penalty_is_the_expected_number_of_changes():
    model = make("base_subtask", sparsity=1e-3, gate=1.0)
    size = sum(m.alpha.numel() for task in ("depth", "normals") for m in deltas(model, task))
    assert float(model.penalty()) == pytest.approx(1e-3 * size / (1 + math.exp(-1.0)), rel=1e-5)
    assert make("base_subtask", sparsity=0).penalty() is None


def test_sharing_is_reported():
    model = make("base_subtask", threshold=0.1).eval()
    with torch.no_grad():
        for m in deltas(model, "depth"):
            m.alpha.fill_(-5.0)
            m.alpha.view(-1)[0] = 5.0

    def measure():
        with torch.no_grad():
            model(images(), list(TASKS))
        return {}

    found = model.study(measure, lambda tasks: 0)["sharing"]
    assert found["base"] == "segmentation" and set(found["own"]) == {"depth", "normals"}
    sizes = [m.alpha.numel() for m in deltas(model, "depth")]
    assert found["own"]["depth"]["weights"] == pytest.approx(len(sizes) / sum(sizes))
    assert found["own"]["normals"] == {"weights": 1.0, "activations": 0.0}  # every change is still 0


def test_copies_and_files_are_whole():
    """A copy's sub-tasks change the copy's base; a checkpoint holds no weight twice."""
    model = make("base_subtask").eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.backbones["segmentation"].parameters():
            parameter.mul_(2)
        for name, found in (("same", model), ("other", other)):
            weights = [b.trunk.embedder.embedder.convolution.weight for b in found.backbones.values()]
            assert torch.equal(weights[0], weights[1]), name
    assert set(load(save(model.state_dict()))) == set(model.state_dict())


def test_the_base_must_be_a_task():
    with pytest.raises(UserError, match="is no task of the mixture"):
        make("base_subtask", base="dpeth")
