"""Every option of configs/architecture keeps what `runner.architectures.base` promises."""

from __future__ import annotations

import copy

import pytest
import torch

from runner.backbones.base import Backbone
from runner.config.build import build, locate
from runner.errors import UserError
from runner.training.cost import forward_cost, in_shapes_only
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
    "one task on resnet": ("resnet", {"depth": DENSE["depth"]}, "image"),
    "dense and pooled on segnet": ("segnet", MIXED, "image"),
}


NARROW = 32
"""Widest features that an option makes here; published widths of 512 and more are slow and show nothing else."""


@pytest.fixture(params=options("architecture"), scope="module")
def config(request):
    chosen = option("architecture", request.param)
    widths = {key: NARROW for key in ("channels", "out_channels") if (chosen.get(key) or 0) > NARROW}
    return {**chosen, **widths}


def fits(config, name) -> bool:
    """Whether the architecture can work on this backbone."""
    needs = locate(config["_target_"]).needs
    staged = hasattr(locate(option("backbone", name)["_target_"]), "stage")
    maps = staged and name not in ("vit", "mlp")  # their states are tokens and vectors
    return {"features": True, "stages": staged, "maps": maps}[needs]


@pytest.fixture(params=WORLDS.values(), ids=WORLDS, scope="module")
def world(request, config):
    if not fits(config, request.param[0]):
        pytest.skip("this backbone has no such stages; its refusal is a test of its own")
    return request.param


def pooled_place(config) -> str:
    """A backbone for pooled tasks, the cheapest that fits."""
    return "mlp" if fits(config, "mlp") else "resnet"


def test_backbones_without_the_stages_it_needs_are_refused(config):
    for name, tasks, _ in WORLDS.values():
        if not fits(config, name):
            with pytest.raises(UserError, match=r"between (the )?stages"):
                make(config, name, tasks)


def make(config, name, tasks, seed=0, **changes):
    def make_backbone() -> Backbone:
        config = {**option("backbone", name), "size": "tiny", **changes}
        return build(config, SPECS[kind_of(config)], where="backbone")

    torch.manual_seed(seed)
    return build(config, make_backbone, tasks, where="architecture")


@pytest.fixture(scope="module")
def model(config, world):
    """One per option and world; tests may change its mode and its running statistics, but no weights."""
    return make(config, *world[:2])


def narrow(config):
    """The option with narrow dense heads, for tests that train."""
    if "channels" not in config["dense_head"]:
        return config
    return {**config, "dense_head": {**config["dense_head"], "channels": 16}}


def group(kind, **options) -> Group:
    return Group("some", example(kind, **options))


def shape(one, batch: int = 2) -> tuple[int, ...]:
    c = one.out_channels
    return {"dense": (batch, c, 64, 64), "pooled": (batch, c), "token": (batch, 8, c)}[one.kind]


def test_predictions_of_the_asked_for_tasks_only(model, world):
    _, tasks, kind = world
    model.train()
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


def test_heads_of_other_tasks_do_not_run(model, world):
    _, tasks, kind = world
    model.train()
    ran = []
    hooks = [h.register_forward_hook(lambda *_, one=one: ran.append(one)) for one, h in model.heads.items()]
    first = next(iter(tasks))
    model(group(kind), [first])
    for hook in hooks:
        hook.remove()
    assert set(ran) == {first}  # it may run more than once, for intermediate supervision


def test_every_parameter_is_reached_by_a_task(model, world):
    _, tasks, kind = world
    model.train()
    parameters = list(model.parameters())
    reach = find_reach({t: everything(p) for t, p in model(group(kind), list(tasks)).items()}, parameters)
    reached = set().union(*reach.reached.values())
    assert [n for i, (n, _) in enumerate(model.named_parameters()) if i not in reached] == []


def test_backbones_and_heads_are_where_other_rooms_look(model, world):
    _, tasks, _ = world
    assert set(model.heads) == set(tasks)
    backbones = model.all_backbones()
    assert all(isinstance(b, Backbone) for b in backbones)
    owned = {id(p) for part in [*backbones, model.heads] for p in part.parameters()}
    assert owned <= {id(p) for p in model.parameters()}
    assert hasattr(model, "backbone") or hasattr(model, "backbones")


def test_the_same_seed_gives_the_same_weights(config):
    first, second, other = (make(config, "resnet", MIXED, seed=s).state_dict() for s in (0, 0, 1))
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
    heads = make(config, pooled_place(config), tasks).heads
    assert [type(heads[name]).__name__ for name in "abc"] == ["MLP", "Linear", "Linear"]
    assert heads["a"].layers[0].out_features == 6
    assert [heads[name].dropout.p for name in "bc"] == [0.5, 0.0]


def test_a_head_of_another_kind_is_refused(config):
    own = {"_target_": "runner.architectures.heads.token.TokenLinear"}
    with pytest.raises(UserError, match="is a head for token tasks, task 'a' is pooled"):
        make(config, pooled_place(config), {"a": task("a", "pooled", head=own)})


def test_an_unknown_key_of_a_head_names_its_place(config):
    with pytest.raises(UserError, match=r"mixture\.tasks\.a\.head\.dropuot"):
        make(config, pooled_place(config), {"a": task("a", "pooled", head={"dropuot": 0.5})})


def test_frozen_backbones_stay_in_evaluation_mode(config):
    model = make(config, "resnet", DENSE, frozen=True).train()
    assert all(not m.training for b in model.all_backbones() for m in b.trunk.modules())
    assert all(head.training for head in model.heads.values())


def test_odd_image_sizes(config):
    """Predictions are as large as the image, and the padding of whole cells does not show."""
    model = make(config, "resnet", DENSE).eval()
    with torch.no_grad():
        made = model(group("image", size=(70, 51)), list(DENSE))
    assert {tuple(p.shape[2:]) for p in made.values()} == {(70, 51)}


def test_cost_is_known_from_shapes_alone(config):
    """FLOPs, activations and which parameters each task reaches, as a pass with values gives them."""
    model, given = make(narrow(config), "resnet", DENSE).eval(), group("image", size=(64, 48))
    parameters = list(model.parameters())

    def described():
        made = model(given, list(DENSE))
        reach = find_reach({task: everything(p) for task, p in made.items()}, parameters)
        return reach, forward_cost(model, given, list(DENSE))

    (reach, cost), (found, shapes) = described(), in_shapes_only(described)
    assert found == reach and shapes.flops == cost.flops
    assert shapes.saved_bytes == pytest.approx(cost.saved_bytes, rel=0.01)


def gradients(model, size=(32, 32)):
    torch.manual_seed(3)
    made = model(group("image", size=size), list(DENSE))
    sum(p.float().square().mean() for prediction in made.values() for p in everything(prediction)).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_mixed_precision_and_gradient_checkpointing(config):
    """bf16 gives every parameter a finite gradient; checkpointing of the backbone changes none."""
    plain, saved, low = (
        make(narrow(config), "resnet", DENSE, gradient_checkpointing=on).train() for on in (False, True, False)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # not 32: torch's bf16 depth-wise convolution on CPU leaves parts of the gradient of the weights unwritten
        # where channels-last maps are one cell wide
        rough = gradients(low, size=(64, 64))
    assert [name for name, grad in rough.items() if grad is None or not grad.isfinite().all()] == []
    exact, again = gradients(plain), gradients(saved)
    for name, grad in exact.items():
        torch.testing.assert_close(again[name], grad, atol=1e-3 * float(grad.abs().max()) + 1e-7, rtol=1e-3, msg=name)


def test_training_goes_on_from_a_state_dict(config):
    """Steps with all tasks, and with some missing; a copy from the state continues with the same numbers."""

    def steps(model, optimizer, asked):
        for names in asked:
            torch.manual_seed(11)
            made = model(group("image", size=(32, 32)), names)
            loss = sum(p.square().mean() for prediction in made.values() for p in everything(prediction))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    first, second = (make(narrow(config), "resnet", DENSE, seed=s).train() for s in (0, 1))
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-3, momentum=0.9) for m in (first, second)]
    steps(first, optimizers[0], [list(DENSE), ["depth"]])
    state = {k: v.clone() for k, v in first.state_dict().items()}
    assert len({t.data_ptr() for t in first.state_dict().values()}) == len(state), "safetensors refuses shared memory"
    second.load_state_dict(state, strict=True)
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    went = [steps(m, o, [["normals", "segmentation"]]) for m, o in zip((first, second), optimizers, strict=True)]
    assert went[0] == went[1]
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_a_task_without_labels_leaves_its_own_part_alone(config):
    """A step without a task gives its head no gradient at all."""
    model = make(narrow(config), "resnet", DENSE).train()
    made = model(group("image", size=(32, 32)), ["depth"])
    sum(p.square().mean() for p in everything(made["depth"])).backward()
    assert all(p.grad is None for name in ("segmentation", "normals") for p in model.heads[name].parameters())
    assert all(p.grad is not None for p in model.heads["depth"].parameters())
