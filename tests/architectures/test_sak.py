"""SAK against its formulas and the size of its released configuration."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from runner.architectures.sak import Adapter, Router
from runner.errors import UserError
from tests.architectures.worlds import TASKS, count, images, make


def adapter(width, reduction=4):
    hidden = width // reduction
    return 2 * width * hidden + hidden + width + 1


def router(width, experts):
    hidden = width // 2
    return width * hidden + hidden + 2 * hidden + hidden * 2 * experts + 2 * experts


def test_size_of_the_released_vit_base():
    """Per teacher 13 adapters and 4 norms, per task 4 routers over the stem and 3 paths, on ViT-B."""
    with torch.device("meta"):
        model = make("sak", backbone={"name": "vit", "size": "base"})
    assert count(model.paths) == 3 * (13 * adapter(768) + 4 * 2 * 768)
    assert count(model.paths) == 11_557_479
    assert count(model.routers) == len(TASKS) * 4 * router(768, 4)


def test_paths_follow_the_recursion():
    """On a plain transformer of four blocks: r_i = A_i(r_{i-1} + x_i), starting behind the patch embedding."""
    model, group = make("sak", backbone="vit").eval(), images(batch=1)
    with torch.no_grad(), model.watched() as seen:
        model(group, list(TASKS))
    with torch.no_grad():
        x, run = model.backbone.begin(group.inputs)
        path = model.paths["clip"]
        r, expected = path.first(x), []
        for index, block in enumerate(model.backbone.blocks()):
            x = block(x.transpose(1, 2)).transpose(1, 2)
            y = (r + x).transpose(1, 2)
            inner = path.stages[index][0]
            r = (y + inner.scale * inner.up(nn.functional.gelu(inner.down(y)))).transpose(1, 2)
            normed = nn.functional.layer_norm(
                r.transpose(1, 2), (64,), path.norms[index].weight, path.norms[index].bias
            )
            expected.append(normed[:, 1:].transpose(1, 2).unflatten(2, run.grid))
    for found, wanted in zip(seen[0]["clip"], expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_routers_that_choose_the_stem_leave_hard_sharing():
    model, plain = make("sak").eval(), make("hard_sharing").eval()
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if n.startswith(("backbone", "heads"))})
    for module in model.routers.modules():
        if isinstance(module, Router):
            nn.init.zeros_(module.layers[3].weight)
            with torch.no_grad():
                module.layers[3].bias.copy_(torch.tensor([40.0] + [0.0] * 7))
    with torch.no_grad():
        made, expected = model(images(), list(TASKS)), plain(images(), list(TASKS))
    for name in TASKS:
        torch.testing.assert_close(made[name], expected[name], atol=1e-5, rtol=1e-5)


def test_weights_are_noisy_in_training_only_and_sum_to_one():
    torch.manual_seed(0)
    router, x = Router(8, 3, noise=True), torch.randn(2, 8, 4, 4)
    assert not torch.equal(router.weights(x), router.weights(x))
    router.eval()
    assert torch.equal(router.weights(x), router.weights(x))
    torch.testing.assert_close(router.weights(x).sum(1), torch.ones(2))
    quiet = Router(8, 3, noise=False)
    assert torch.equal(quiet.weights(x), quiet.weights(x)) and quiet.layers[3].out_features == 3


def test_an_adapter_with_scale_zero_passes_everything():
    made, y = Adapter(8, 4), torch.randn(2, 8, 5)
    nn.init.zeros_(made.scale)
    assert torch.equal(made(y), y)


def test_watching_ends_and_copies_share_nothing():
    model = make("sak")
    with model.watched() as seen:
        model(images(), ["depth"])
    model(images(), ["depth"])
    assert len(seen) == 1 and [m.shape[1] for m in seen[0]["sam"]] == [16, 32, 64, 128]
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.paths["sam"].norms[0].weight.zero_()
    assert model.paths["sam"].norms[0].weight.abs().sum() > 0


def test_paths_need_names():
    with pytest.raises(UserError, match="one name per teacher"):
        make("sak", paths=["clip", "clip"])
