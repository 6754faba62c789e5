"""MTSL's structure: what is shared is computed once and gives what its owner gives."""

from __future__ import annotations

import pytest
import torch

from runner.training.cost import forward_cost, measure
from tests.architectures.worlds import TASKS, count, images, make


def test_it_starts_as_identical_single_task_networks():
    model, plain = make("mtsl").eval(), make("single_task")
    assert count(model) == count(plain)
    first, *others = (b.state_dict() for b in model.backbones.values())
    assert all(torch.equal(first[k], other[k]) for other in others for k in first)
    assert model.groups() == [[[name] for name in TASKS]] * 4
    costs = [forward_cost(m, images(batch=1), list(TASKS)).flops for m in (model, plain)]
    assert costs[0] == costs[1]


@pytest.mark.parametrize("backbone", ["resnet", "segnet", "vit"])
def test_a_group_runs_its_owners_stages_once(backbone):
    model, group = make("mtsl", backbone=backbone).eval(), images(batch=1)
    with torch.no_grad():
        for name in ("depth", "normals"):
            for p in model.backbones[name].parameters():
                p.add_(0.02 * torch.randn_like(p))
    alone = forward_cost(model, group, list(TASKS)).flops
    model.owner[0] = torch.tensor([0, 0, 0])
    model.owner[1] = torch.tensor([0, 1, 1])
    with torch.no_grad():
        together, _ = model.states(group, dict.fromkeys(TASKS, 2))
        own = model.backbones["segmentation"].begin(group.inputs)
        x = model.backbones["segmentation"].stage(0, *own)[1]
    assert all(torch.equal(together[name][0], x) for name in TASKS)
    assert together["depth"][1] is together["normals"][1]
    assert not torch.equal(together["segmentation"][1], together["depth"][1])
    assert model.groups()[:2] == [[list(TASKS)], [["segmentation"], ["depth", "normals"]]]
    parts = [measure(model, lambda d=d: model.states(group, {"depth": d})).flops for d in (1, 2)]
    saved = 2 * parts[0] + (parts[1] - parts[0])
    assert alone - forward_cost(model, group, list(TASKS)).flops == saved
    with torch.no_grad():
        both, one = (model(group, names) for names in (list(TASKS), ["depth"]))
    assert torch.equal(both["depth"], one["depth"])


def test_the_structure_is_part_of_the_weights():
    model, other = make("mtsl"), make("mtsl", seed=1)
    model.owner[0] = torch.tensor([0, 0, 2])
    other.load_state_dict(model.state_dict())
    assert other.groups()[0] == [["segmentation", "depth"], ["normals"]]
    assert other.study(dict, lambda tasks: 0) == {"structure": other.groups()}
