"""Functional dual anchors: closed forms of linear blocks, attention twice differentiated."""

from __future__ import annotations

import pytest
import torch

from runner.backbones.vit import ViT
from runner.merging.sources import Models
from runner.merging.with_data.common import base_of, experts_of
from runner.merging.with_data.fda import Fda, alignment, find_stages
from runner.specs import InputSpec
from tests.merging.test_units import images
from tests.merging.toy import body, make


def stage_of(data, tensors, path="backbone.first"):
    return next(s for s in find_stages(data, tensors) if s.path == path)


def test_alignment_of_a_linear_layer_has_a_closed_form():
    """The gradient at θ₀ of ‖X(W − W_t)ᵀ‖² is −2 τ XᵀX: whitened anchors point exactly along τ."""
    models, data = make()
    base, expert = base_of(models), dict(experts_of(models)["a"])
    name = "backbone.first.weight"
    expert["backbone.first.bias"] = base["backbone.first.bias"]
    stage, tau = stage_of(data, base), expert[name] - base[name]
    x = torch.randn(5, 6)
    found = alignment(stage, base, expert, x, [name], [tau])
    expected = torch.cosine_similarity((tau @ x.T @ x).flatten(), tau.flatten(), 0)
    torch.testing.assert_close(found.float(), expected[None], rtol=1e-4, atol=1e-5)
    basis = torch.linalg.qr(torch.randn(6, 6)).Q
    assert float(alignment(stage, base, expert, basis, [name], [tau])) == pytest.approx(1.0, abs=1e-5)


def test_anchors_turn_towards_the_task_vector():
    models, data = make()
    base, expert = base_of(models), experts_of(models)["a"]
    for start in ("weights", "noise"):
        strategy = Fda(anchor_steps=150, anchor_lr=0.05, anchors=12, start=start)
        x, before, after = strategy.make(stage_of(data, base), base, expert, torch.Generator().manual_seed(0))
        assert x.shape == (12, 6) and after > max(0.9, before)


def test_anchors_start_at_weight_rows_of_the_given_size():
    models, data = make()
    base, expert = base_of(models), experts_of(models)["a"]
    x = Fda(spread=0.5).first(stage_of(data, base), expert, torch.Generator().manual_seed(0))
    assert float(x.square().mean().sqrt()) == pytest.approx(0.5)
    rows = torch.nn.functional.normalize(expert["backbone.first.weight"], dim=1)
    assert torch.allclose((torch.nn.functional.normalize(x, dim=1) @ rows.T).amax(1), torch.ones(16), atol=1e-5)


def test_a_linear_block_ends_at_the_mean_when_anchors_span_everything():
    models, data = make()
    base, experts = base_of(models), experts_of(models)
    stage = stage_of(data, base)
    x = torch.cat([torch.eye(6), torch.zeros(1, 6)])
    merged = dict(base)
    before, after = Fda(lr=0.02, steps=800).tune(stage, merged, list(experts.values()), [x, x])
    for name in stage.names:
        mean = torch.stack([e[name] for e in experts.values()]).mean(0)
        torch.testing.assert_close(merged[name], mean, rtol=0, atol=5e-3)
    assert after < before
    assert all(torch.equal(merged[n], base[n]) for n in base if n not in stage.names)


def test_it_starts_from_any_merge():
    models, data = make()
    rule = {"_target_": "runner.merging.rules.average.Average"}
    base, experts = base_of(models), experts_of(models)
    near = Fda(steps=1, lr=1e-12, anchor_steps=1).fit(models, data)
    torch.testing.assert_close(near.tensors["backbone.first.weight"], base["backbone.first.weight"])
    from_mean = Fda(steps=1, lr=1e-12, anchor_steps=1, rule=rule).fit(models, data)
    for name, tensor in from_mean.tensors.items():
        torch.testing.assert_close(tensor, (experts["a"][name] + experts["b"][name]) / 2)
    learned = Fda(steps=100, lr=1e-2).fit(models, data)
    assert learned.report["distance"]["after"] < 0.6 * learned.report["distance"]["before"]
    assert learned.report["alignment"]["after"] > learned.report["alignment"]["before"]


def test_blocks_of_attention_are_differentiated_twice():
    data = images(ViT(InputSpec("image"), size="tiny"))
    base = body(data.model)
    torch.manual_seed(1)
    expert = {n: t + 0.02 * torch.randn(t.shape) for n, t in base.items()}
    merged = Fda(anchors=2, anchor_steps=2, steps=2, lr=1e-3).fit(Models.in_memory({"a": expert}, base), data)
    assert merged.report["blocks"] == 4
    moved = {n for n in base if not torch.equal(merged.tensors[n], base[n])}
    assert any("layers.3" in n for n in moved) and not any("embeddings" in n for n in moved)
