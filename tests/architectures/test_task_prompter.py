"""TaskPrompter against formulas written out by hand, and against the published size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from runner.architectures.task_prompter import Affinity, Channels, Decode
from runner.errors import UserError
from runner.training.cost import forward_cost
from tests.architectures.samples import task
from tests.architectures.test_cost import backbone_flops
from tests.architectures.worlds import TASKS, count, images, make

HEAD = {"_target_": "runner.architectures.heads.bottleneck.BottleneckHead", "blocks": 0}
SMALL = {"channels": 8, "out_channels": 12, "grid": [4, 4], "windows": 2, "dense_head": HEAD}
C, OUT, G, T = 8, 12, 16, 3
PASCAL = {
    n: task(n, "dense", c)
    for n, c in (("segmentation", 21), ("human_parts", 7), ("saliency", 1), ("normals", 3), ("edge", 1))
}


def decoder_parameters(widths):
    """Of every layer and task, and what follows them."""
    layers = sum(2 * (w * C + C) + 2 * C * OUT + OUT + 9 * OUT * OUT + OUT + 2 * OUT + OUT * OUT + OUT for w in widths)
    heads = sum(OUT * t.out_channels + t.out_channels for t in TASKS.values())
    return T * (layers + 9 * OUT * OUT + OUT + 2 * OUT) + heads


def test_parameters_and_flops_on_a_pyramid():
    widths, cells = (32, 64, 128), (64, 16, 4)
    model = make("task_prompter", **SMALL)
    expected = decoder_parameters(widths) + T * 32 + 32 * 64 + 64 * 128
    flops = 2 * T * (32 * 64 + 64 * 128) + 2 * 256 * (T * 9 * OUT * OUT + OUT * 9)
    for n, (w, cell) in enumerate(zip(widths, cells, strict=True)):
        side, reached = int(cell**0.5), T + cell
        expected += 2 * w + 2 * (w * w + w) + w * G + G
        flops += 2 * T * w * w + 2 * reached * w * w + 2 * T * reached * w
        flops += 2 * T * w * G * 2 + 2 * w * 4 * cell + 2 * w * 4 * side * 4
        flops += T * cell * (4 * w * C + 4 * C * OUT + 20 * OUT * OUT)
        if n < 2:
            expected += 2 * (w * w + w) + 8 * w * w + 7 * w + G * w + w
            flops += 2 * reached * w * w + 2 * T * reached * w + 2 * T * w * w + 16 * T * w * w + 2 * T * G * w
    assert count(model) - count(model.backbone) == expected
    found = forward_cost(model, images(batch=1), list(TASKS)).flops
    assert found == pytest.approx(backbone_flops() + flops, rel=0.02)


def test_parameters_on_a_plain_transformer():
    model = make("task_prompter", backbone="vit", **SMALL)
    maps = 4 * (64 * G + G) + 3 * (G * 64 + 64)  # 4 blocks of width 64; the last one's prompts are not read again
    assert count(model) - count(model.backbone) == decoder_parameters([64] * 4) + T * 64 + maps
    assert not list(model.backbone.neck_modules()[0].parameters())


def test_the_size_is_the_published_one():
    """401 M with ViT-L on PASCAL-Context; the authors keep one projection that nothing reads, and more positions."""
    with torch.device("meta"):
        model = make(
            "task_prompter",
            PASCAL,
            {"name": "vit", "size": "large"},
            channels=300,
            out_channels=350,
            grid=[32, 32],
            windows=1,
            reweight=True,
            dense_head=HEAD,
        )
    unread, positions = 1024 * 1024 + 1024, (32 * 32 - 14 * 14) * 1024
    assert round((count(model) + unread + positions) / 1e6) == 401


def test_flops_on_a_plain_transformer_grow_by_the_prompts():
    """Two tasks more are two tokens more in every block: nothing of the image is computed again for them."""
    from tests.architectures.test_cost import layer_flops

    model = make("task_prompter", backbone={"name": "vit", "attention": "eager"}, **SMALL).eval()
    plain = make("hard_sharing", backbone="vit").backbone.eval()
    blocks = [m.trunk.layers for m in (model.backbone, plain)]
    with torch.no_grad():
        own, alone = (
            layer_flops(b, run)
            for b, run in zip(
                blocks,
                (lambda: model(images(batch=1), list(TASKS)), lambda: plain(images(batch=1).inputs)),
                strict=True,
            )
        )
    tokens, taps = 1 + 16, 4 * 2 * (16 + 2 * T) * 64 * 64  # keys of the patches and prompts, queries of the prompts
    assert own == alone * (tokens + T) / tokens + taps


def test_scores_are_what_the_block_attends_by():
    model = make("task_prompter", backbone={"name": "vit", "attention": "eager"}, **SMALL).eval()
    block = model.backbone.blocks()[0]
    tokens = torch.randn(2, 9, 64)
    normal = model.backbone.entry_norm(block)(tokens)
    _, weights = block.attention(normal)
    scores = model.backbone.scores(block, normal[:, :3], normal)
    torch.testing.assert_close((scores * block.attention.scaling).softmax(-1), weights[:, :, :3])


def test_prompts_change_what_the_image_becomes_and_the_image_what_they_become():
    model = make("task_prompter", backbone="vit", **SMALL).eval()
    with torch.no_grad():
        first = model.features(images(batch=1).inputs)
        model.prompts.add_(torch.randn_like(model.prompts))
        second = model.features(images(batch=1).inputs)
        third = model.features({"pixels": images(batch=1).inputs["pixels"].flip(-1)})
    assert not torch.allclose(first.pyramid[-1], second.pyramid[-1])
    assert not torch.allclose(second.affinities[-1].prompts, third.affinities[-1].prompts)


def test_channels_are_compared_window_by_window():
    torch.manual_seed(0)
    compare = Channels(5, (4, 6), 2, last=False)
    prompts, x = torch.randn(2, 3, 24), torch.randn(2, 5, 8, 6)
    maps = F.adaptive_avg_pool2d(x, (4, 6))
    made = compare(prompts, x)
    assert made.shape == (2, 3, 5, 2, 2)
    own = prompts.view(2, 3, 4, 6)
    expected = (own[1, 2, 2:, :3] * maps[1, 4, 2:, :3]).sum()
    torch.testing.assert_close(made[1, 2, 4, 1, 0], expected)


def test_features_are_weighted_by_place_and_by_channel():
    torch.manual_seed(0)
    decode = Decode(6, 4, 5, "batch").eval()
    x, places, channels = torch.randn(1, 6, 3, 5), torch.randn(1, 2, 4, 6), torch.randn(1, 6, 2, 2)
    seen = []
    decode.fuse[0].register_forward_hook(lambda _m, given, _out: seen.append(given[0]))
    decode(x, places, channels)
    row, column = 1, 4
    head = torch.tensor([0, 0, 0, 1, 1, 1])
    here = x[0, :, row, column]
    by_place = here * (1 + places[0, head, row, column])
    by_channel = here * (1 + channels[0, :, 0, 1])  # row 1 of 3 lies in the first half, column 4 of 5 in the second
    for part, weighted, layer in ((0, by_place, decode.by_place), (4, by_channel, decode.by_channel)):
        expected = layer.weight[:, :, 0, 0] @ weighted + layer.bias
        torch.testing.assert_close(seen[0][0, part : part + 4, row, column], expected)


def test_reweighting_mixes_the_features_of_all_tasks():
    model = make("task_prompter", reweight=True, **SMALL).eval()
    made = {t: torch.randn(2, OUT, 3, 3) for t in TASKS}
    affinity = Affinity(torch.randn(2, 1, T, T), torch.randn(2, 1, T, 3, 3), torch.randn(2, T, 32, 2, 2))
    weigh = model.reweight[0]["depth"]
    row = list(TASKS).index("depth")
    weights = [weigh(affinity.prompts[:, :, row : row + 1])[:, :, :, s : s + 1] for s in range(T)]
    expected = sum(w * x for w, x in zip(weights, made.values(), strict=True))
    torch.testing.assert_close(model._mixed(made, affinity, 0, ["depth"])["depth"], expected)
    assert model(images(), ["depth"])["depth"].shape == (2, 1, 64, 64)


def test_images_that_are_no_whole_patches():
    model = make("task_prompter", backbone="vit", **SMALL).eval()
    assert model(images(size=(70, 51)), ["normals"])["normals"].shape == (2, 3, 70, 51)


@pytest.mark.parametrize("grid", [[5, 4], [4], [4, 4, 4]])
def test_a_grid_that_windows_do_not_divide_is_refused(grid):
    with pytest.raises(UserError, match=r"architecture\.grid"):
        make("task_prompter", **{**SMALL, "grid": grid})
