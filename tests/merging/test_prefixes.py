"""A trunk by itself and the same trunk with a head around it are merged tensor by tensor."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from runner.merging.memory import merge_in_memory
from runner.merging.plan import Settings, make_plan
from runner.merging.prefixes import Shifted, aligned
from runner.merging.rules.task_arithmetic import TaskArithmetic
from runner.merging.sources import Models, StateDict

GENERATOR = torch.Generator().manual_seed(0)
TRUNK = {f"encoder.{i}.{part}": torch.randn(3, 2, generator=GENERATOR) for i in range(4) for part in ("weight", "bias")}


def tuned(prefix: str, **extra: Tensor) -> dict[str, Tensor]:
    return {**{prefix + name: value + 1 for name, value in TRUNK.items()}, **extra}


def test_experts_with_a_prefix_and_a_head_over_a_bare_base():
    head = {"classifier.weight": torch.ones(5, 3)}
    base = StateDict(TRUNK, "base")
    expert = aligned(StateDict(tuned("vit.", **head), "cars"), base)
    merge = TaskArithmetic(scale=0.5)
    models = Models({"cars": expert}, base)
    plan = make_plan(merge, models, Settings(exclude=("classifier.*",)))
    assert plan.notes[0] == "cars: tensors below 'vit' are taken as those of base without it"
    assert sorted(plan.merged) == sorted(TRUNK)
    for name, value in TRUNK.items():
        torch.testing.assert_close(expert.whole(name), value + 1)


def test_a_bare_expert_over_a_base_with_a_prefix():
    base = StateDict({"vit." + name: value for name, value in TRUNK.items()}, "base")
    expert = aligned(StateDict(tuned(""), "cars"), base)
    merged = merge_in_memory(TaskArithmetic(scale=0.5), Models({"cars": expert}, base))
    for name, value in TRUNK.items():
        torch.testing.assert_close(merged.tensors["vit." + name], value + 0.5)


@pytest.mark.parametrize(
    "theirs",
    [
        TRUNK,
        {name: value for name, value in TRUNK.items() if "weight" in name},
        {f"vit.{name}": torch.zeros(7) for name in TRUNK},
        {"other.weight": torch.zeros(3, 2)},
    ],
    ids=["the same names", "half of them", "other shapes", "another network"],
)
def test_what_is_left_as_it_is(theirs):
    source = StateDict(theirs, "x")
    assert aligned(source, StateDict(TRUNK, "base")) is source


def test_tied_tensors_stay_tied():
    shared = TRUNK["encoder.0.weight"]
    source = StateDict({**{f"m.{name}": value for name, value in TRUNK.items()}, "m.out.weight": shared}, "x")
    found = aligned(source, StateDict({**TRUNK, "out.weight": shared}, "base"))
    assert isinstance(found, Shifted)
    assert found.aliases == {"out.weight": "encoder.0.weight"}
