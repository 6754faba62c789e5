"""Cross-stitch, sluice and NDDR networks against single-task networks and against their formulas."""

from __future__ import annotations

import pytest
import torch

from runner.architectures.parallel import own_and_others
from runner.errors import UserError
from tests.architectures.samples import task
from tests.architectures.worlds import TABLE, TASKS, copy_into, count, images, make, table

IDENTITY = {
    "cross_stitch": {"own": 1.0},
    "sluice": {"own": 1.0},
    "nddr_cnn": {"own": 1.0, "norm": "none"},
}


def close(left, right):
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", IDENTITY)
@pytest.mark.parametrize("backbone", ["resnet", "segnet"])
def test_without_an_exchange_these_are_the_single_task_networks(name, backbone):
    mine = make(name, backbone=backbone, **IDENTITY[name]).eval()
    single = make("single_task", backbone=backbone, seed=1).eval()
    copy_into(single, mine)
    close(mine(images(), list(TASKS)), single(images(), list(TASKS)))


@pytest.mark.parametrize("name", IDENTITY)
def test_the_same_on_tables(name):
    changes = {**IDENTITY[name], **({"activation": "none"} if name == "nddr_cnn" else {})}
    mine = make(name, TABLE, "mlp", **changes).eval()
    single = make("single_task", TABLE, "mlp", seed=1).eval()
    copy_into(single, mine)
    close(mine(table(), list(TABLE)), single(table(), list(TABLE)))


@pytest.mark.parametrize("name", ["cross_stitch", "sluice"])
def test_one_task_has_nobody_to_share_with(name):
    tasks = {"depth": TASKS["depth"]}
    mine = make(name, tasks, subspaces=1).eval() if name == "sluice" else make(name, tasks).eval()
    single = make("single_task", tasks, seed=1).eval()
    copy_into(single, mine)
    close(mine(images(), ["depth"]), single(images(), ["depth"]))


def test_rows_are_convex():
    for size in (1, 2, 5):
        rows = torch.tensor(own_and_others(0.9, size))
        torch.testing.assert_close(rows.sum(1), torch.ones(size))
        assert torch.equal(rows.diag(), torch.full((size,), 0.9 if size > 1 else 1.0))


def states(channels=16):
    generator = torch.Generator().manual_seed(4)
    return {name: torch.randn(2, channels, 3, 5, generator=generator) for name in TASKS}


@pytest.mark.parametrize("units", ["channel", "stage"])
def test_cross_stitch_is_its_equation(units):
    model, given = make("cross_stitch", units=units), states()
    unit = torch.randn_like(model.units[0])
    model.units[0].data = unit
    alpha_KKC = unit if units == "channel" else unit.unsqueeze(-1).expand(-1, -1, 16)
    expected = torch.einsum("kjc,jbchw->kbchw", alpha_KKC, torch.stack(list(given.values())))
    mixed = model.exchange(0, given, list(TASKS))
    torch.testing.assert_close(torch.stack(list(mixed.values())), expected)


def test_sluice_is_its_equation():
    model, given = make("sluice", subspaces=4), states()
    model.alpha[0].data = torch.randn(12, 12)
    parts = torch.stack(list(given.values()), 1).unflatten(2, (4, 4)).flatten(1, 2)  # (B, K·S, C/S, H, W)
    expected = torch.einsum("st,btchw->bschw", model.alpha[0], parts)
    mixed = model.exchange(0, given, list(TASKS))
    got = torch.stack(list(mixed.values()), 1).unflatten(2, (4, 4)).flatten(1, 2)
    torch.testing.assert_close(got, expected)


def test_sluice_weighs_levels_and_sums_vectors():
    model = make("sluice").eval()
    before = model(images(), ["depth"])["depth"]
    model.beta["depth"].data.zero_()
    bias = model(images(), ["depth"])["depth"]
    assert not torch.allclose(before, bias)
    other = images()
    other.inputs["pixels"] = torch.zeros_like(other.inputs["pixels"])
    assert torch.equal(bias, model(other, ["depth"])["depth"])  # nothing of the image is left
    vectors = make("sluice", TABLE, "mlp", own=0.7)
    torch.testing.assert_close(vectors.beta["income"].detach(), torch.tensor([0.3, 0.7]))


def test_the_penalty_is_the_overlap_of_the_subspaces_weights():
    model = make("sluice", {"depth": TASKS["depth"]}, orthogonality=0.5)
    expected = 0.0
    for stage in model.backbones["depth"].trunk.encoder.stages:
        weight = stage.layers[-1].layer[-1].convolution.weight.flatten(1).double()
        half = len(weight) // 2
        for i in range(half):
            for j in range(half, len(weight)):
                expected += float(weight[i] @ weight[j]) ** 2
    assert model.penalty().item() == pytest.approx(0.5 * expected, rel=1e-4)
    model.penalty().backward()
    assert model.backbones["depth"].trunk.encoder.stages[0].layers[-1].layer[-1].convolution.weight.grad.abs().sum() > 0
    assert make("sluice", orthogonality=0.0).penalty() is None
    assert make("cross_stitch").penalty() is None


def test_subspaces_must_divide_the_channels():
    with pytest.raises(UserError, match="subspaces=3 does not divide the 16 channels"):
        make("sluice", subspaces=3)


def test_nddr_is_a_convolution_of_all_tasks_channels():
    model, given = make("nddr_cnn", norm="none"), states()
    layers = model.fusion[0]["depth"]
    torch.nn.init.normal_(layers[0].weight)
    joined = torch.cat(list(given.values()), 1)
    expected = torch.einsum("oc,bchw->bohw", layers[0].weight[:, :, 0, 0], joined).relu()
    torch.testing.assert_close(model.exchange(0, given, ["depth"])["depth"], expected, atol=1e-5, rtol=1e-5)


def test_nddr_starts_as_a_mixture_of_the_same_channels():
    weight = make("nddr_cnn").fusion[1]["depth"][0].weight[:, :, 0, 0]
    eye = torch.eye(32)
    torch.testing.assert_close(weight.detach(), torch.cat([0.05 * eye, 0.9 * eye, 0.05 * eye], 1))


def test_sizes_on_resnet_50():
    """What each adds to three single-task networks, on the published stages of 256, 512, 1024 and 2048 channels."""
    backbone, widths = {"name": "resnet", "size": 50}, (256, 512, 1024, 2048)
    with torch.device("meta"):
        single = count(make("single_task", backbone=backbone))
        assert count(make("cross_stitch", backbone=backbone)) - single == sum(9 * w for w in widths)
        assert count(make("cross_stitch", backbone=backbone, units="stage")) - single == 9 * 4
        assert count(make("sluice", backbone=backbone)) - single == 36 * 4 + 3 * 4
        assert count(make("nddr_cnn", backbone=backbone)) - single == sum(3 * (3 * w * w + 2 * w) for w in widths)


def test_networks_of_different_depth_exchange_while_both_last():
    """SegNet for a pooled task has no decoder: five stages are exchanged by both, five belong to the dense task."""
    tasks = {"depth": TASKS["depth"], "scene": task("scene", "pooled", 4)}
    model = make("cross_stitch", tasks, "segnet")
    assert [len(model.members(i)) for i in range(10)] == [2] * 5 + [1] * 5
    assert [unit.shape[0] for unit in model.units] == [2] * 5 + [1] * 5
    calls = []
    model.backbones["depth"].decoder[0][0].register_forward_hook(lambda *_: calls.append(1))
    model(images(), ["scene"])
    assert calls == []  # the other task's decoder is no part of it


def test_the_penalty_of_sluice_needs_a_layer_that_makes_the_whole_state():
    with pytest.raises(UserError, match=r"the 24 channels of a stage"):
        make("sluice", TASKS, "hrnet")
    model = make("sluice", TASKS, "hrnet", orthogonality=0.0)
    assert set(model(images(batch=1), ["depth"])) == {"depth"}
