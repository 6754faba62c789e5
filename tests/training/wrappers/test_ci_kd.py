"""Configuration-invariant distillation against its formula."""

from __future__ import annotations

import torch

from tests.training.wrappers.real import Real, check_promises, data, split
from tests.training.wrappers.worlds import option

KEYS = {"widths": [0.5, 1.0], "samples": 1}


def test_the_loss_is_the_formula():
    made, group = Real("slimmable", option("wrapper", "ci_kd", weight=0.3), **KEYS), data()
    with made.wrapper.watching():
        made.net(group, ["depth"])
        made.wrapper.total = 4
        found = made.wrapper.added([group])
        whole, narrow = made.wrapper._seen[0]
    expected = 0.0
    for full, part in zip(whole.pyramid, narrow.pyramid, strict=True):
        for a, b in zip(full.detach(), part, strict=True):
            aim = a[: len(a) // 2]
            expected = expected + ((b - aim) ** 2).sum() / (aim**2).sum()
    torch.testing.assert_close(found, 0.3 * expected / 4 / 4)


def test_it_moves_the_encoder_and_not_towards_the_narrow_one():
    """Only weights that the narrow network has get a gradient of it, and heads none."""
    made = Real("slimmable", option("wrapper", "ci_kd"), **KEYS)
    with made.wrapper.watching():
        made.net(data(), ["depth"])
        made.wrapper.total = 4
        made.wrapper.added([data()]).backward()
    weight = made.net.backbone.trunk.embedder.embedder.convolution.weight
    assert weight.grad[:8].abs().sum() > 0 and not weight.grad[8:].any()
    assert all(p.grad is None for p in made.net.heads.parameters())


def test_promises_of_a_wrapper():
    check_promises("slimmable", option("wrapper", "ci_kd"), **KEYS)


def test_without_weight_nothing_is_added():
    plain, none = (Real("slimmable", option("wrapper", "ci_kd", weight=w), **KEYS) for w in (1.0, 0.0))
    with_it, without = (made.step(split(data(), 1))[1] for made in (plain, none))
    name = "heads.depth.out.weight"
    torch.testing.assert_close(with_it[name], without[name])
    assert any(not torch.allclose(with_it[n], without[n]) for n in with_it if n.startswith("backbone"))
