"""Learning to branch: the tree it evaluates, the draws it trains with."""

from __future__ import annotations

import pytest
import torch

from runner.errors import UserError
from tests.architectures.worlds import TASKS, copy_into, count, images, make


def set_tree(model, parents, leaves):
    for logits, row in zip(model.parents, parents, strict=True):
        logits.data = 9.0 * torch.eye(logits.shape[0])[torch.tensor(row)]
    for name, leaf in zip(TASKS, leaves, strict=True):
        model.leaves[name].data = 9.0 * torch.eye(len(model.leaves[name]))[leaf]


def close(left, right):
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("graph", [True, False])
def test_a_tree_that_never_joins_is_the_single_task_networks(graph):
    model = make("ltb").eval()
    set_tree(model, [[0, 1, 2]] * 3, [0, 1, 2])
    single = make("single_task", seed=1).eval()
    names = dict(zip("012", TASKS, strict=True))
    copy_into(single, model, lambda n: f"backbones.{names[n[10]]}{n[11:]}" if n.startswith("backbones.") else n)
    with torch.set_grad_enabled(graph):
        close(model(images(), list(TASKS)), single(images(), list(TASKS)))


def test_a_tree_that_never_branches_is_hard_sharing():
    model = make("ltb").eval()
    set_tree(model, [[1, 1, 1]] * 3, [1, 1, 1])
    hard = make("hard_sharing", seed=1).eval()
    copy_into(hard, model, lambda n: n.replace("backbones.1.", "backbone."))
    close(model(images(), list(TASKS)), hard(images(), list(TASKS)))
    one = make("ltb", nodes=1).eval()
    copy_into(hard, one, lambda n: n.replace("backbones.0.", "backbone."))
    close(one(images(), list(TASKS)), hard(images(), list(TASKS)))
    assert count(one) == count(hard)


def test_evaluation_runs_the_nodes_on_a_path_only():
    model, ran = make("ltb").eval(), []
    set_tree(model, [[0, 0, 2], [0, 0, 0], [1, 1, 2]], [0, 0, 2])
    for node, backbone in model.backbones.items():
        for index, stage in enumerate(backbone.trunk.encoder.stages):
            stage.layers[0].register_forward_hook(lambda *_, at=(index, int(node)): ran.append(at))
    assert model.tree() == {"segmentation": [0, 0, 1, 0], "depth": [0, 0, 1, 0], "normals": [0, 0, 2, 2]}
    with torch.no_grad():
        model(images(), ["segmentation", "depth"])
        assert sorted(ran) == [(0, 0), (1, 0), (2, 1), (3, 0)]
        ran.clear()
        model(images(), list(TASKS))
        assert sorted(ran) == [(0, 0), (1, 0), (2, 1), (2, 2), (3, 0), (3, 2)]


def test_choices_are_uniform_in_the_warm_up_then_drawn_one_parent_at_a_time():
    model = make("ltb", warmup=2, temperature=1.0).train()
    for _ in range(2):
        assert torch.allclose(model.choose(model.parents[0], model.passed()), torch.full((3, 3), 1 / 3))
        model.steps += 1
    torch.manual_seed(0)
    model.parents[0].data = torch.tensor([[2.0, 0.0, 0.0]]).repeat(3, 1)
    draws = torch.stack([model.choose(model.parents[0], model.passed())[0] for _ in range(4000)])
    assert set(draws.detach().round(decimals=5).flatten().tolist()) == {0.0, 1.0}
    share = draws.mean(0)[0].item()
    expected = torch.tensor([2.0, 0.0, 0.0]).softmax(0)[0].item()
    assert share == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 4000) ** 0.5)
    draws[:50, 0].sum().backward()
    assert model.parents[0].grad[0].abs().sum() > 0


def test_the_temperature_falls_to_its_floor(monkeypatch):
    model, seen = make("ltb", warmup=0, temperature=8.0, final_temperature=1.0, anneal=10).train(), []
    real = torch.nn.functional.gumbel_softmax
    monkeypatch.setattr(
        "runner.architectures.ltb.F.gumbel_softmax", lambda x, **k: seen.append(k["tau"]) or real(x, **k)
    )
    for steps in (0, 30, 10**6):
        model.steps.fill_(steps)
        model.choose(model.parents[0], model.passed())
    assert seen == [8.0, 4.0, 1.0]


def test_passes_are_counted_in_training_and_saved():
    model = make("ltb")
    model.train()(images(), ["depth"])
    with torch.no_grad():
        model(images(), ["depth"])
    model.eval()(images(), ["depth"])
    assert int(model.steps) == 1
    again = make("ltb", seed=1)
    again.load_state_dict(model.state_dict())
    assert int(again.steps) == 1


def test_a_second_look_without_gradients_repeats_the_draw():
    """FAMO asks for the losses of the same pass again: same random numbers, same temperature."""
    model = make("ltb", warmup=0).train()
    torch.manual_seed(3)
    first = model(images(), ["depth"])["depth"]
    torch.manual_seed(3)
    with torch.no_grad():
        second = model(images(), ["depth"])["depth"]
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def test_more_nodes_than_tasks_are_refused():
    with pytest.raises(UserError, match="nodes=4 is more than the 3 tasks"):
        make("ltb", nodes=4)
