"""Merges that give modules: against the experts they are made of, and through a checkpoint."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from runner.merging.base import Merge, Merged
from runner.merging.blocks import Block, Split
from runner.merging.memory import merge_in_memory
from runner.merging.modules import Bank, Switch, rebuild
from runner.merging.packing import pack
from runner.merging.with_data.adamerging import AdaMerging
from runner.merging.with_data.common import experts_of
from runner.merging.with_data.concrete import Concrete
from runner.merging.with_data.fda import Fda
from runner.merging.with_data.output_ensemble import OutputEnsemble
from runner.merging.with_data.smile import RoutedLayer, Smile
from runner.merging.with_data.surgery import Surgery
from runner.merging.with_data.tint import Tint
from runner.merging.with_data.twin import TwinMerging, compressed, restored
from runner.merging.with_data.we_moe import WeMoe
from tests.merging.toy import make, outputs, outputs_of


class Keep(Merge):
    """A mask of one bit per weight and task over the first expert."""

    decoder = "masked"

    def merge(self, block: Block, state) -> Split:
        codes = {e: pack((block.models[t] > block.base).to(torch.int64), 1) for t, e in enumerate(block.experts)}
        return Split(block.models[0].clone(), codes)

    def parts(self, experts):
        return dict.fromkeys(experts, 1)

    def scalars(self, name, experts, state):
        return {e: [1.0 + i] for i, e in enumerate(experts)}


def test_a_switch_gives_every_task_its_own_weights():
    models, data = make()
    strategy = Keep()
    merged = merge_in_memory(strategy, models)
    switch = Switch.of(data.model, strategy, merged, models)
    found = outputs(switch, data)
    for task in ("a", "b"):
        expected = outputs_of(merged.for_task(task), data)[task]
        assert torch.allclose(found[task], expected, atol=1e-6)
    assert not torch.allclose(found["b"], outputs_of(merged.for_task("a"), data)["b"])
    stored = sum(t.numel() * t.element_size() for n, t in switch.state_dict().items() if n.startswith("parts."))
    count = sum(t.numel() for t in merged.tensors.values())
    assert stored <= 2 * (count / 8 + len(merged.tensors))


def test_an_ensemble_averages_probabilities_or_logits():
    models, data = make()
    experts = experts_of(models)
    both = [outputs_of(t, data)["a"] for t in experts.values()]
    found = outputs(OutputEnsemble().fit(models, data).module, data)["a"]
    assert torch.allclose(found.softmax(1), sum(o.softmax(1) for o in both) / 2, atol=1e-6)
    logits = outputs(OutputEnsemble(average="logits").fit(models, data).module, data)["a"]
    assert torch.allclose(logits, sum(both) / 2, atol=1e-6)


def test_surgery_brings_features_nearer_and_leaves_equal_ones_alone():
    models, data = make()
    merged = Surgery(steps=300, rank=5, lr=1e-2).fit(models, data)
    for bias in merged.report["representation_bias"].values():
        assert bias["after"] < 0.8 * bias["before"]
    same, still = make(spread=0.0)
    found = outputs(Surgery(steps=20).fit(same, still).module, still)
    for task, expected in outputs_of(experts_of(same)["a"], still).items():
        assert torch.allclose(found[task], expected, atol=1e-6)


def test_compression_at_full_rank_is_exact_and_stores_factors_below():
    tau = torch.randn(6, 4, 3)
    bank = Bank(compressed("w", tau, 1.0))
    assert torch.allclose(restored(bank, "w", tau), tau)
    small = compressed("w", tau, 0.2)
    assert set(small) == {"w|u", "w|v"} and small["w|u"].shape == (6, 1)
    u, s, vh = torch.linalg.svd(tau.flatten(1))
    expected = (s[0] * torch.outer(u[:, 0], vh[0])).view(tau.shape)
    assert torch.allclose(restored(Bank(small), "w", tau), expected, atol=1e-5)


def test_twin_merging_with_a_perfect_router_is_the_experts():
    models, data = make()
    module = TwinMerging(rank=1.0, steps=1).fit(models, data).module
    experts = experts_of(models)
    for t, task in enumerate(models.names):
        nn.init.zeros_(module.router[2].weight)
        with torch.no_grad():
            module.router[2].bias.copy_(torch.nn.functional.one_hot(torch.tensor(t), 2) * 50.0)
        found = outputs(module, data)[task]
        assert torch.allclose(found, outputs_of(experts[task], data)[task], atol=1e-5)


def test_twin_merging_routes_examples_one_by_one():
    models, data = make()
    module = TwinMerging(steps=50).fit(models, data).module
    whole = outputs(module, data)["a"]
    group = data.validation["a"]
    from runner.merging.data import slices

    with torch.no_grad():
        single = torch.cat([module(g, ["a"])["a"] for g in slices(group, 1)])
    assert torch.allclose(whole, single, atol=1e-5)


def test_a_router_tells_apart_what_can_be_told_apart():
    models, data = make()
    data.unlabelled["a"].inputs["numeric"] += 6.0
    assert TwinMerging(steps=300, lr=1e-2).fit(models, data).report["router_accuracy"] > 0.9


@pytest.mark.parametrize(
    "layer", [nn.Linear(6, 4), nn.Conv2d(3, 4, 3, stride=2, padding=1, dilation=2)], ids=["linear", "conv"]
)
def test_a_routed_layer_with_one_expert_at_full_rank_is_that_expert(layer):
    expert = copy.deepcopy(layer)
    with torch.no_grad():
        expert.weight.add_(torch.randn_like(layer.weight))
        expert.bias.add_(1.0)
    routed = RoutedLayer(layer, 1, rank=100, gates=2, top=1)
    routed.fill([(expert.weight - layer.weight).detach().flatten(1)], [(expert.bias - layer.bias).detach()])
    x = torch.randn(5, 6) if isinstance(layer, nn.Linear) else torch.randn(2, 3, 9, 8)
    assert torch.allclose(routed(x), expert(x), atol=1e-4)


def test_rows_go_to_the_expert_whose_directions_they_have():
    layer = nn.Linear(4, 4, bias=False)
    nn.init.zeros_(layer.weight)
    routed = RoutedLayer(layer, 2, rank=1, gates=1, top=1)
    first, second = torch.zeros(4, 4), torch.zeros(4, 4)
    first[0, 0], second[1, 1] = 2.0, 3.0
    routed.fill([first, second], [None, None])
    x = torch.tensor([[1.0, 0.2, 0.0, 0.0], [0.2, 1.0, 0.0, 0.0]])
    assert torch.allclose(routed(x), torch.tensor([[2.0, 0, 0, 0], [0, 3.0, 0, 0]]), atol=1e-6)


def test_smile_of_one_expert_is_that_expert():
    models, data = make({"a": 3})
    module = Smile(rank=100).fit(models, data).module
    expected = outputs_of(experts_of(models)["a"], data)["a"]
    assert torch.allclose(outputs(module, data)["a"], expected, atol=1e-4)


@pytest.mark.parametrize(
    "strategy", [OutputEnsemble(), Surgery(steps=2), TwinMerging(steps=2), Smile(rank=2), Keep()],
    ids=lambda s: type(s).__name__,
)  # fmt: skip
def test_a_module_comes_back_from_its_tensors_and_plain_values(strategy, tmp_path):
    from runner.merging.modules import realise
    from runner.training.checkpoints import load_weights, save_weights

    models, data = make()
    merged: Merged = strategy.fit(models, data) if hasattr(strategy, "fit") else merge_in_memory(strategy, models)
    module = realise(merged, strategy, data.model, models)
    expected = outputs(module, data)
    save_weights(module, tmp_path / "model.safetensors")
    _, fresh = make(seed=5)
    shapes = {e: {n: torch.empty_like(t) for n, t in ts.items()} for e, ts in experts_of(models).items()}
    again = rebuild(strategy, fresh.model, module.plain(), shapes)
    load_weights(again, tmp_path / "model.safetensors")
    found = outputs(again, data)
    assert all(torch.equal(found[t], expected[t]) for t in expected)


def test_what_all_experts_know_can_be_left_out():
    """around=general: base + routed (θ_t − mean), of which the mean over experts is nothing."""
    models, data = make()
    merged = Smile(around="general", rank=8, top=2).fit(models, data).module
    own, base = merged.frame.state_dict(), models.base
    for path in ("backbone.first", "backbone.second"):
        torch.testing.assert_close(own[f"{path}.layer.weight"], base.whole(f"{path}.weight"))
        layer = merged.frame.get_submodule(path)
        whole = layer.up @ layer.down
        torch.testing.assert_close(whole.sum(0), torch.zeros_like(whole[0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [AdaMerging, Concrete, Fda, Tint, WeMoe])
def test_long_work_can_be_stopped(kind):
    models, data = make()

    def stop() -> None:
        raise KeyboardInterrupt

    data.check_stop = stop
    with pytest.raises(KeyboardInterrupt):
        kind().fit(models, data)
