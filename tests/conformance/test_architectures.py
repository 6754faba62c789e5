"""Every option of configs/architecture keeps what `runner.architectures.base` promises."""

from __future__ import annotations

import pytest
import torch

from runner.backbones.base import Backbone
from runner.config.build import build
from runner.errors import UserError
from runner.types import Group, everything
from runner.weighting.reach import find_reach
from tests.architectures.samples import task
from tests.backbones.samples import SPECS, example, kind_of, option, options

DENSE = {n: task(n, "dense", c) for n, c in (("segmentation", 5), ("depth", 1), ("normals", 3))}
MIXED = {"depth": task("depth", "dense", 1), "scene": task("scene", "pooled", 4)}
TEXT = {"intent": task("intent", "pooled", 7), "tags": task("tags", "token", 5)}
TABLE = {"income": task("income", "pooled", 1), "married": task("married", "pooled", 1)}
WORLDS = {
    "dense on resnet": ("resnet", DENSE, "image"),
    "dense and pooled on swin": ("swin", MIXED, "image"),
    "pooled only on vit": ("vit", {"scene": MIXED["scene"]}, "image"),
    "pooled and token on bert": ("bert", TEXT, "text"),
    "token only on llama": ("llama", {"tags": TEXT["tags"]}, "text"),
    "pooled on mlp": ("mlp", TABLE, "table"),
}


@pytest.fixture(params=options("architecture"))
def config(request):
    return option("architecture", request.param)


@pytest.fixture(params=WORLDS.values(), ids=WORLDS)
def world(request):
    return request.param


def make(config, name, tasks, seed=0, **changes):
    def make_backbone() -> Backbone:
        config = {**option("backbone", name), "size": "tiny", **changes}
        return build(config, SPECS[kind_of(config)], where="backbone")

    torch.manual_seed(seed)
    return build(config, make_backbone, tasks, where="architecture")


def group(kind, **options) -> Group:
    return Group("some", example(kind, **options))


def shape(one, batch: int = 2) -> tuple[int, ...]:
    c = one.out_channels
    return {"dense": (batch, c, 64, 64), "pooled": (batch, c), "token": (batch, 8, c)}[one.kind]


def test_predictions_of_the_asked_for_tasks_only(config, world):
    name, tasks, kind = world
    model = make(config, name, tasks)
    made = model(group(kind), list(tasks))
    assert list(made) == list(tasks)
    for one, prediction in made.items():
        assert {tuple(p.shape) for p in everything(prediction)} == {shape(tasks[one])}
    assert model(group(kind), []) == {}
    for one in tasks:
        model.eval()
        with torch.no_grad():
            both = model(group(kind), list(tasks))
            alone = model(group(kind), [one])
        assert list(alone) == [one]
        assert torch.equal(alone[one], both[one])  # evaluation gets plain tensors


def test_heads_of_other_tasks_do_not_run(config, world):
    name, tasks, kind = world
    model = make(config, name, tasks)
    ran = []
    for one, head in model.heads.items():
        head.register_forward_hook(lambda *_, one=one: ran.append(one))
    first = next(iter(tasks))
    model(group(kind), [first])
    assert ran == [first]


def test_every_parameter_is_reached_by_a_task(config, world):
    name, tasks, kind = world
    model = make(config, name, tasks)
    parameters = list(model.parameters())
    reach = find_reach({t: everything(p) for t, p in model(group(kind), list(tasks)).items()}, parameters)
    reached = set().union(*reach.reached.values())
    assert [n for i, (n, _) in enumerate(model.named_parameters()) if i not in reached] == []


def test_backbones_and_heads_are_where_other_rooms_look(config, world):
    name, tasks, _ = world
    model = make(config, name, tasks)
    assert set(model.heads) == set(tasks)
    backbones = model.all_backbones()
    assert all(isinstance(b, Backbone) for b in backbones)
    owned = {id(p) for part in [*backbones, model.heads] for p in part.parameters()}
    assert owned <= {id(p) for p in model.parameters()}
    assert hasattr(model, "backbone") or hasattr(model, "backbones")


def test_the_same_seed_gives_the_same_weights(config, world):
    name, tasks, _ = world
    first, second, other = (make(config, name, tasks, seed=s).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_tasks_the_backbone_cannot_serve_are_named_together(config):
    tasks = {"depth": task("depth", "dense"), "tags": task("tags", "token"), "intent": task("intent", "pooled")}
    with pytest.raises(UserError) as caught:
        make(config, "mlp", tasks)
    assert len(caught.value.problems) == 2
    assert "task 'depth' is dense and needs a feature pyramid" in str(caught.value)
    assert "task 'tags' is token and needs tokens" in str(caught.value)


def test_a_task_may_bring_its_own_head(config):
    own = {"_target_": "runner.architectures.heads.pooled.MLP", "hidden": [6]}
    tasks = {
        "a": task("a", "pooled", head=own),
        "b": task("b", "pooled", head={"dropout": 0.5}),
        "c": task("c", "pooled"),
    }
    heads = make(config, "mlp", tasks).heads
    assert [type(heads[name]).__name__ for name in "abc"] == ["MLP", "Linear", "Linear"]
    assert heads["a"].layers[0].out_features == 6
    assert [heads[name].dropout.p for name in "bc"] == [0.5, 0.0]


def test_a_head_of_another_kind_is_refused(config):
    own = {"_target_": "runner.architectures.heads.token.TokenLinear"}
    with pytest.raises(UserError, match="is a head for token tasks, task 'a' is pooled"):
        make(config, "mlp", {"a": task("a", "pooled", head=own)})


def test_an_unknown_key_of_a_head_names_its_place(config):
    with pytest.raises(UserError, match=r"mixture\.tasks\.a\.head\.dropuot"):
        make(config, "mlp", {"a": task("a", "pooled", head={"dropuot": 0.5})})


def test_frozen_backbones_stay_in_evaluation_mode(config):
    model = make(config, "resnet", DENSE, frozen=True).train()
    assert all(not m.training for b in model.all_backbones() for m in b.trunk.modules())
    assert all(head.training for head in model.heads.values())
