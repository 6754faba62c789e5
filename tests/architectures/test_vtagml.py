"""VTAGML against its formulas: adapters, the attention among tasks, and what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from runner.architectures.vtagml import Adapter, TaskScaledNorm
from runner.training.cost import forward_cost
from tests.architectures.worlds import TASKS, count, images, make

K = len(TASKS)


def test_it_starts_as_hard_sharing_and_trains_beside_a_frozen_backbone():
    frozen = {"name": "vit", "frozen": True}
    model, plain = make("vtagml", backbone=frozen).eval(), make("hard_sharing", backbone=frozen).eval()
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if n.startswith(("backbone", "heads"))})
    with torch.no_grad():
        made, expected = model(images(), list(TASKS)), plain(images(), list(TASKS))
    for name in TASKS:
        torch.testing.assert_close(made[name], expected[name])
    sum(p.square().mean() for p in model.train()(images(), list(TASKS)).values()).backward()
    assert all(p.grad is None for p in model.backbone.trunk.parameters())
    assert all(p.grad is not None for p in [model.embeddings, *model.adapters.parameters()])


def test_parameters_of_the_adapters():
    """Per level of width C with r = C // 3, E = 64: norm, down, attention, FiLM over the tasks, up."""
    with torch.device("meta"):
        model = make("vtagml", backbone={"name": "swin", "size": "small"})
    total = K * 64
    for width in (96, 192, 384, 768):
        r = width // 3
        total += 2 * width + 65 * 2 * width + width * r + r + 3 * r * (r + 1) + 65 * 2 * K + r * width + width
    carries = sum(a * b + b for a, b in ((96, 192), (192, 384), (384, 768)))
    assert count(model) - count(model.backbone) - count(model.heads) == total + carries


def test_attention_among_tasks_is_the_formula():
    torch.manual_seed(0)
    adapter, z, g = Adapter(6, 4, 5, 3), torch.randn(3, 5), torch.randn(3, 3)
    nn.init.normal_(adapter.up.weight)
    states = [torch.randn(2, 6, 7) for _ in range(3)]
    found = adapter(states, z, g)
    h = [adapter.down(adapter.norm(x.transpose(1, 2), z[t])) for t, x in enumerate(states)]
    parts = [adapter.qkv(one).split(4, dim=-1) for one in h]
    for t in range(3):
        film = adapter.film(z[t])
        logits = torch.stack(
            [(parts[t][0] * parts[s][1]).sum(-1) / 2 + (1 + film[s]) * g[t, s] + film[3 + s] for s in range(3)]
        )
        mixed = sum(w[..., None] * parts[s][2] for s, w in enumerate(logits.softmax(0)))
        expected = adapter.up(nn.functional.gelu(h[t] + mixed)).transpose(1, 2)
        torch.testing.assert_close(found[t], expected)


def test_a_task_scaled_norm_without_its_task_is_a_layer_norm():
    norm, x = TaskScaledNorm(6, 5), torch.randn(2, 7, 6)
    torch.testing.assert_close(norm(x, torch.zeros(5)), nn.LayerNorm(6)(x))
    assert not torch.allclose(norm(x, torch.ones(5)), norm(x, -torch.ones(5)))


def test_affinity_decides_who_attends_to_whom():
    """A task far away from another does not see it; the buffer travels with the model."""
    torch.manual_seed(0)
    adapter, z = Adapter(6, 4, 5, 2), torch.randn(2, 5)
    nn.init.zeros_(adapter.film.weight)
    nn.init.normal_(adapter.up.weight)
    one, other, changed = (torch.randn(2, 6, 7) for _ in range(3))
    for far, same in ((-100.0, True), (0.0, False)):
        g = torch.tensor([[1.0, far], [far, 1.0]])
        before, after = adapter([one, other], z, g)[0], adapter([one, changed], z, g)[0]
        assert torch.allclose(before, after) == same
    assert torch.equal(make("vtagml").state_dict()["affinity"], torch.eye(K))


def test_the_backbone_runs_once():
    model, plain = make("vtagml"), make("hard_sharing")
    all_tasks, one = (forward_cost(model, images(batch=1), tasks).flops for tasks in (list(TASKS), ["depth"]))
    heads = [forward_cost(plain, images(batch=1), tasks).flops for tasks in (list(TASKS), ["depth"])]
    assert all_tasks - one == pytest.approx(heads[0] - heads[1], rel=1e-6)
