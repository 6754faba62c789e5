"""Dynamic logit fusion: matched divergences by brute force, and a larger model in the result."""

from __future__ import annotations

import pytest
import torch

from runner.errors import UserError
from runner.merging.modules import rebuild
from runner.merging.with_data import dynamic_logit_fusion as dlf
from runner.merging.with_data.common import experts_of
from runner.merging.with_data.dynamic_logit_fusion import DynamicLogitFusion, divergence, fuse
from runner.training.checkpoints import load_weights, save_weights
from tests.merging.toy import ToyModel, make, outputs, outputs_of


def logits(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_divergences_match_as_by_brute_force():
    large, small, expert = (logits(6, 4, seed=s) for s in range(3))
    found = fuse(large, small, [expert], 4.0, 40)
    wanted = divergence(expert, small)
    for b in range(6):
        grid = torch.linspace(0, 4, 40001)[:, None]
        fused = large[b] + grid * (expert - small)[b]
        miss = (divergence(fused, large[b]) - wanted[b]).square()
        torch.testing.assert_close(found[b], fused[miss.argmin()], rtol=0, atol=2e-3)


def test_what_the_expert_did_not_change_stays_the_large_model_s():
    large, small = logits(5, 3, seed=0), logits(5, 3, seed=1)
    torch.testing.assert_close(fuse(large, small, [small], 4.0), large)
    torch.testing.assert_close(fuse(small, small, [large], 4.0, 40), large, rtol=1e-4, atol=1e-4)  # α = 1
    far = fuse(large, small, [small + 100 * logits(5, 3, seed=2)], 0.01)
    torch.testing.assert_close(far, large + 0.01 * 100 * logits(5, 3, seed=2), rtol=1e-4, atol=1e-4)  # the largest α


def test_equal_experts_count_as_one_and_a_silent_one_has_no_say_in_the_direction():
    large, small, expert = (logits(6, 4, seed=s) for s in range(3))
    one = fuse(large, small, [expert], 4.0, 40)
    torch.testing.assert_close(fuse(large, small, [expert, expert], 4.0, 40), one, rtol=1e-4, atol=1e-4)
    mixed = fuse(large, small, [expert, small], 4.0, 40) - large
    assert torch.allclose(torch.cosine_similarity(mixed, expert - small, 1), torch.ones(6), atol=1e-4)


def test_one_logit_and_maps():
    large, small, expert = (logits(6, 1, seed=s) for s in range(3))
    both = [torch.cat([torch.zeros_like(x), x], 1) for x in (large, small, expert)]
    two = fuse(both[0], both[1], [both[2]], 4.0, 40)
    torch.testing.assert_close(fuse(large, small, [expert], 4.0, 40), two[:, 1:] - two[:, :1])
    maps = [logits(2, 3, 4, 5, seed=s) for s in range(3)]
    found = fuse(maps[0], maps[1], [maps[2]], 4.0, 40)
    flat = [x.movedim(1, -1).reshape(-1, 3) for x in maps]
    torch.testing.assert_close(found.movedim(1, -1).reshape(-1, 3), fuse(flat[0], flat[1], [flat[2]], 4.0, 40))


def test_without_a_large_model_it_gives_the_experts():
    models, data = make()
    found = outputs(DynamicLogitFusion(halvings=40).fit(models, data).module, data)
    for task, tensors in experts_of(models).items():
        p, q = found[task].softmax(1), outputs_of(tensors, data)[task].softmax(1)
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-3)


def test_a_large_model_takes_part_and_comes_back(tmp_path, monkeypatch):
    models, data = make()

    def load(path: str):
        assert path == "there"
        torch.manual_seed(5)
        return ToyModel({"a": 3, "b": 4}).eval()

    monkeypatch.setattr(dlf, "load_large", load)
    strategy = DynamicLogitFusion(large="there")
    merged = strategy.fit(models, data)
    found = outputs(merged.module, data)
    base = {n: models.base.whole(n) for n in models.base.tensors()}
    for task, tensors in experts_of(models).items():
        large = outputs(load("there"), data)[task]
        small, expert = outputs_of(base, data)[task], outputs_of(tensors, data)[task]
        torch.testing.assert_close(found[task], fuse(large, small, [expert], 4.0, 20))
    save_weights(merged.module, tmp_path / "w.safetensors")
    _, fresh = make(seed=3)
    shapes = {e: {n: torch.empty_like(t) for n, t in ts.items()} for e, ts in experts_of(models).items()}
    restored = rebuild(strategy, fresh.model, merged.module.plain(), shapes)
    load_weights(restored, tmp_path / "w.safetensors")
    again = outputs(restored, data)
    assert all(torch.equal(again[t], found[t]) for t in found)


def test_a_large_model_that_is_not_there(tmp_path):
    models, data = make()
    with pytest.raises(UserError, match="no run directory"):
        DynamicLogitFusion(large=str(tmp_path)).fit(models, data)
