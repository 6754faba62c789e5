"""Fisher, RegMean, learned coefficients and search against closed forms and brute force."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from runner.errors import UserError
from runner.merging.with_data.adamerging import AdaMerging
from runner.merging.with_data.atlas import Atlas
from runner.merging.with_data.coefficients import Mixed
from runner.merging.with_data.common import base_of, experts_of, vectors_of
from runner.merging.with_data.concrete import Concrete, masked
from runner.merging.with_data.fisher import Fisher, fisher_average
from runner.merging.with_data.regmean import RegMean, as_matrix, from_matrix, inputs_of, regression_mean
from runner.merging.with_data.search import Search
from runner.merging.with_data.tint import Tint, tinted_loss
from tests.merging.toy import make, outputs_of


def test_equal_fishers_give_the_average():
    experts = {"a": {"w": torch.tensor([1.0, 3.0])}, "b": {"w": torch.tensor([3.0, -1.0])}}
    same = {"a": {"w": torch.full((2,), 0.7)}, "b": {"w": torch.full((2,), 0.7)}}
    assert torch.allclose(fisher_average(experts, same, [1.0, 1.0], 1e-6)["w"], torch.tensor([2.0, 1.0]))


def test_fisher_weighs_by_information():
    experts = {"a": {"w": torch.tensor([1.0])}, "b": {"w": torch.tensor([5.0])}}
    fishers = {"a": {"w": torch.tensor([3.0])}, "b": {"w": torch.tensor([1.0])}}
    assert fisher_average(experts, fishers, [1.0, 1.0], 1e-9)["w"] == pytest.approx(2.0, rel=1e-6)
    assert fisher_average(experts, fishers, [1.0, 3.0], 1e-9)["w"] == pytest.approx(3.0, rel=1e-6)


def test_no_information_at_all_gives_the_average():
    experts = {"a": {"w": torch.tensor([1.0])}, "b": {"w": torch.tensor([5.0])}}
    none = {"a": {"w": torch.zeros(1)}, "b": {"w": torch.zeros(1)}}
    assert fisher_average(experts, none, [1.0, 1.0], 1e-6)["w"] == pytest.approx(3.0)


def test_expected_fisher_of_the_last_bias_is_that_of_softmax():
    """Through a linear head, d log p / d bias of the features is Wᵀ (1_y - p), of covariance Wᵀ (diag p - p pᵀ) W."""
    models, data = make(rows=7)
    found = Fisher(labels="expected", examples=7).diagonal(
        {n: models.experts["a"].whole(n) for n in models.experts["a"].tensors()}, data, "a"
    )
    weight_CD = data.model.heads["a"].out.weight.detach()
    logits = outputs_of({n: models.experts["a"].whole(n) for n in models.experts["a"].tensors()}, data)["a"]
    p_BC = logits.softmax(1)
    covariance = torch.stack([torch.diag(p) - torch.outer(p, p) for p in p_BC])
    expected = torch.einsum("cd,bce,ed->bd", weight_CD, covariance, weight_CD).mean(0)
    assert torch.allclose(found["backbone.second.bias"], expected, atol=1e-6)


def test_sampled_fisher_nears_the_expected_one():
    models, data = make(rows=30)
    tensors = {n: models.experts["a"].whole(n) for n in models.experts["a"].tensors()}
    exact = Fisher(labels="expected", examples=30).diagonal(tensors, data, "a")["backbone.second.weight"]
    runs = [Fisher(seed=s, examples=30).diagonal(tensors, data, "a")["backbone.second.weight"] for s in range(20)]
    assert torch.stack(runs).mean(0).sum() == pytest.approx(float(exact.sum()), rel=0.15)


def test_fisher_with_true_labels_asks_for_them():
    assert Fisher(labels="true").needs == "labelled"
    assert Fisher().needs == "unlabelled"


def test_regression_mean_is_the_least_squares_solution():
    torch.manual_seed(0)
    x = [torch.randn(30, 4, dtype=torch.float64) for _ in range(3)]
    w = [torch.randn(4, 2, dtype=torch.float64) for _ in range(3)]
    found = regression_mean([a.T @ a for a in x], w, shrink=1.0, ridge=0.0)
    expected = torch.linalg.lstsq(torch.cat(x), torch.cat([a @ b for a, b in zip(x, w, strict=True)])).solution
    assert torch.allclose(found, expected, atol=1e-10)


def test_equal_grams_give_the_average_and_no_offdiagonals_weigh_by_input():
    gram = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    w = [torch.eye(2, dtype=torch.float64), 3 * torch.eye(2, dtype=torch.float64)]
    assert torch.allclose(regression_mean([gram, gram], w, 0.9, 0.0), 2 * torch.eye(2, dtype=torch.float64))
    other = torch.tensor([[6.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    found = regression_mean([gram, other], w, 0.0, 0.0)
    assert torch.allclose(found.diagonal(), torch.tensor([(2 + 18) / 8, (3 + 3) / 4], dtype=torch.float64))


def test_singular_grams_are_solved():
    gram = torch.zeros(3, 3, dtype=torch.float64)
    gram[0, 0] = 1.0
    w = [torch.ones(3, 2, dtype=torch.float64), 3 * torch.ones(3, 2, dtype=torch.float64)]
    assert torch.allclose(regression_mean([gram, gram], w, 0.9, 1e-6), 2 * torch.ones(3, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 4),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(3, 5, 3, stride=2, padding=2, dilation=2),
        nn.Conv2d(3, 5, (3, 2), padding="same"),
    ],
    ids=["linear", "conv", "dilated", "same"],
)
def test_layers_are_matrices_on_their_inputs(layer):
    x = torch.randn(2, 7, 6) if isinstance(layer, nn.Linear) else torch.randn(2, 3, 8, 9)
    rows = inputs_of(layer, x) @ as_matrix(layer, layer.weight) + layer.bias
    out = layer(x)
    expected = out.flatten(0, -2) if isinstance(layer, nn.Linear) else out.flatten(2).transpose(1, 2).flatten(0, 1)
    assert torch.allclose(rows, expected, atol=1e-5)
    assert torch.equal(from_matrix(layer, as_matrix(layer, layer.weight), layer.weight), layer.weight)


def test_regmean_on_one_linear_layer_minimises_the_distance_of_outputs():
    """With all layers below equal, W is the best on the union of the data, so no other does better."""
    models, data = make()
    for expert in models.experts.values():
        for name in expert.tensors():
            if not name.startswith("backbone.second.weight"):
                expert._tensors[name] = models.base.whole(name)
    merged = RegMean(shrink=1.0, ridge=0.0).fit(models, data).tensors

    def distance(tensors) -> float:
        total = 0.0
        for task, expert in models.experts.items():
            own = {n: expert.whole(n) for n in expert.tensors()}
            group = data.unlabelled[task]
            total += float((data.features(tensors, group, task) - data.features(own, group, task)).square().sum())
        return total

    best = distance(merged)
    torch.manual_seed(1)
    for _ in range(5):
        moved = dict(merged)
        moved["backbone.second.weight"] = moved["backbone.second.weight"] + 0.01 * torch.randn(5, 8)
        assert best <= distance(moved) + 1e-6


def test_mixed_is_task_arithmetic_and_per_tensor():
    models, _ = make()
    base, vectors = base_of(models), vectors_of(models)
    mixed = Mixed(base, vectors)
    one = mixed(torch.tensor([[1.0], [0.0]]))
    assert all(torch.allclose(one[n], models.experts["a"].whole(n), atol=1e-6) for n in base)
    lam = torch.zeros(2, len(base))
    lam[1, list(base).index("backbone.second.bias")] = 1.0
    found = mixed(lam)
    assert torch.allclose(found["backbone.second.bias"], models.experts["b"].whole("backbone.second.bias"), atol=1e-6)
    assert torch.equal(found["backbone.first.weight"], base["backbone.first.weight"])


def test_adamerging_lowers_the_entropy_and_atlas_the_loss():
    models, data = make()

    def mean_entropy(tensors) -> float:
        p = [o.softmax(1) for o in outputs_of(tensors, data).values()]
        return sum(float(-(q * q.log()).sum(1).mean()) for q in p)

    start = AdaMerging(steps=1, lr=1e-12, init=0.3).fit(models, data).tensors
    end = AdaMerging(steps=25, lr=5e-2, init=0.3).fit(models, data).tensors
    assert mean_entropy(end) < mean_entropy(start) - 0.05

    def mean_loss(tensors) -> float:
        found = outputs_of(tensors, data)
        return sum(float(nn.functional.cross_entropy(found[t], data.labelled[t].targets[t])) for t in found)

    zero = base_of(models)
    assert mean_loss(Atlas(steps=25, lr=5e-2).fit(models, data).tensors) < mean_loss(zero) - 0.1


def test_clamped_coefficients_stay_between_zero_and_one():
    models, data = make()
    report = AdaMerging(level="task", steps=40, lr=0.2, init=0.9, clamp=True).fit(models, data).report
    assert all(0 <= value <= 1 for value in report["coefficients"].values())


@pytest.mark.parametrize("method", ["grid", "random", "cma"])
def test_search_finds_the_minimum_of_a_quadratic(method):
    """The objective is replaced by the distance to a known point."""
    models, data = make()
    target = Mixed(base_of(models), vectors_of(models))(torch.tensor([[0.25], [0.75]]))
    search = Search(method=method, evaluations=81, rule=None, parameters={"weights": [0.0, 1.0], "scale": [0.9, 1.1]})
    search.parameters = {"weights": [0.0, 1.0]}
    search.rule = {"_target_": "runner.merging.rules.task_arithmetic.TaskArithmetic", "scale": 1.0}
    search._score = lambda _: lambda tensors: sum(float((tensors[n] - target[n]).square().sum()) for n in target)
    found = search.fit(models, data)
    assert found.report["chosen"]["weights"] == pytest.approx([0.25, 0.75], abs=0.13)
    assert len(found.report["tried"]) <= 81
    assert all(0.0 <= w <= 1.0 for point in found.report["tried"] for w in point["weights"])


def test_search_over_another_rule_and_its_mistakes():
    models, data = make()
    rule = {"_target_": "runner.merging.rules.task_arithmetic.TaskArithmetic"}
    found = Search(rule=rule, parameters={"scale": [0.0, 1.0]}, method="grid", evaluations=5).fit(models, data)
    assert [round(p["scale"], 2) for p in found.report["tried"]] == [0.0, 0.25, 0.5, 0.75, 1.0]
    wrong = Search(rule=rule, parameters={"scales": [0.0, 1.0], "scale": [1.0, 0.0]}).check(("a", "b"), True)
    assert "no 'scales'" in wrong[0].what and "'scale'" in wrong[0].hint
    assert "[lowest, highest]" in wrong[1].what
    with pytest.raises(UserError, match="too few for a grid"):
        Search(method="grid", evaluations=3).fit(models, data)


def test_the_penalty_prefers_small_weights():
    models, data = make()
    free = Search(method="cma", evaluations=40, objective="loss", parameters={"weights": [-1.5, 1.5]})
    tight = Search(method="cma", evaluations=40, objective="loss", parameters={"weights": [-1.5, 1.5]}, penalty=50.0)

    def size(search: Search) -> float:
        return sum(map(abs, search.fit(models, data).report["chosen"]["weights"]))

    assert size(tight) < size(free)


def test_a_full_concrete_mask_is_task_arithmetic_and_its_size_is_kept():
    models, data = make()
    base, total = base_of(models), {n: sum(v[n] for v in vectors_of(models).values()) for n in base_of(models)}
    full = masked(base, total, {n: torch.ones_like(t) for n, t in base.items()}, 0.4)
    half = masked(base, total, {n: torch.full_like(t, 0.5) for n, t in base.items()}, 0.4)
    for name in base:
        assert torch.allclose(full[name], base[name] + 0.4 * total[name], atol=1e-6)
        assert torch.allclose(half[name], full[name], atol=1e-6)
    kept = Concrete(logits=9.0, steps=1, lr=1e-9, scale=0.4).fit(models, data).tensors
    assert all(torch.allclose(kept[n], full[n], atol=1e-3) for n in base)


def test_tint_learns_from_the_examples_with_the_largest_gap():
    expert = torch.tensor([[9.0, 0.0], [0.1, 0.0], [0.0, 9.0], [0.0, 0.1]])
    output = torch.zeros(4, 2)
    output[:, 0] = 2.0
    found = tinted_loss(output, expert, 0.5)
    expected = nn.functional.cross_entropy(output[[0, 2]], torch.tensor([0, 1]))
    assert torch.allclose(found, expected)
    models, data = make()

    def distance(strategy) -> float:
        final = strategy.fit(models, data).module
        total = 0.0
        for task, expert_out in ((t, outputs_of(e, data)[t]) for t, e in experts_of(models).items()):
            with torch.no_grad():
                total += float((final(data.validation[task], [task])[task].argmax(1) != expert_out.argmax(1)).sum())
        return total

    assert distance(Tint(steps=40, lr=2e-2, head_lr=2e-2)) < distance(Tint(steps=1, lr=1e-9, head_lr=1e-9, init=0.0))
