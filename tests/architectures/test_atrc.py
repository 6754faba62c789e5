"""ATRC against formulas written out by hand."""

from __future__ import annotations

import pytest
import torch

from runner.architectures.relations import GlobalContext, LabelContext, Labels, LocalContext
from runner.errors import UserError
from runner.training.cost import forward_cost
from runner.types import everything
from tests.architectures.samples import task
from tests.architectures.test_cost import backbone_flops
from tests.architectures.worlds import count, images, make

HEAD = {"_target_": "runner.architectures.heads.bottleneck.BottleneckHead", "blocks": 0}
TASKS = {n: task(n, "dense", c) for n, c in (("segmentation", 5), ("depth", 1), ("edge", 1))}
TASKS["segmentation"].loss_kind = TASKS["edge"].loss_kind = "classification"
CONTEXTS = {
    "segmentation": {"segmentation": "target_label", "depth": "none", "edge": "source_label"},
    "depth": {"segmentation": "source_label", "depth": "global", "edge": "local"},
    "edge": {"segmentation": "none", "depth": "none", "edge": "none"},
}
D, C, A, N = 240, 16, 8, 256
"""All levels of the tiny ResNet together; widths of features and attention; cells of the finest level."""


def atrc(**changes):
    return make("atrc", TASKS, channels=C, contexts=CONTEXTS, dense_head=HEAD, dropout=0.0, **changes)


def test_parameters_and_flops_are_those_of_the_formulas():
    model = atrc(bins=7)
    assert set(model.labels) == {"segmentation", "edge"}  # nobody asks for regions of equal depth
    outs = 7
    labels = {5: D * D + 2 * D + D * 5 + 5, 2: D * D + 2 * D + D * 2 + 2}
    attention = 2 * (C * A + A * A + 4 * A) + C * A + 2 * A
    refine = 5 * attention + sum(k * A * C + 2 * C + 2 * C * C + 2 * C for k in (2, 3)) + C * C + 2 * C
    expected = 3 * (9 * D * C + 2 * C) + sum(labels.values()) + refine + C * outs + outs
    assert count(model) - count(model.backbone) == expected
    flops = 3 * 2 * N * 9 * D * C + 2 * N * (2 * D * D + D * 7) + 2 * N * C * outs
    query, value = 2 * (C * A + A * A), 2 * C * A
    for size in (5, 2, 5):  # labels: target of segmentation, source edge, source segmentation
        flops += N * query + size * (query + value) + 2 * N * size * (C + 2 * A)
    flops += N * (2 * query + value) + 2 * N * (A + 2 * A * A)  # global
    flops += N * (2 * query + value)  # local: the rest is element by element
    flops += 2 * N * (5 * A * C + 2 * 2 * C * C + C * C)
    found = forward_cost(model, images(batch=1), list(TASKS)).flops
    assert found == pytest.approx(backbone_flops() + flops, rel=0.02)


def test_attention_to_every_place():
    torch.manual_seed(0)
    block = GlobalContext(6, 4, "batch").double().eval()
    target, source = torch.randn(2, 1, 6, 3, 5, dtype=torch.float64).unbind(0)
    q, k, v = (
        layer(x)[0].flatten(1) for layer, x in ((block.query, target), (block.key, source), (block.value, source))
    )
    similar = q.T @ k
    expected = v @ (similar / similar.sum(1, keepdim=True)).T
    torch.testing.assert_close(block(target, source, None)[0].flatten(1), expected)


def test_attention_to_neighbours():
    torch.manual_seed(0)
    block = LocalContext(6, 4, "batch", kernel=3).double().eval()
    target, source = torch.randn(2, 1, 6, 3, 5, dtype=torch.float64).unbind(0)
    q, k, v = (layer(x)[0] for layer, x in ((block.query, target), (block.key, source), (block.value, source)))
    made = block(target, source, None)[0]
    for row, column in ((1, 2), (0, 0), (2, 4)):
        scores, values = [], []
        for i in (row - 1, row, row + 1):
            for j in (column - 1, column, column + 1):
                inside = 0 <= i < 3 and 0 <= j < 5
                scores.append(q[:, row, column] @ k[:, i, j] / 2 if inside else torch.tensor(0.0, dtype=torch.float64))
                values.append(v[:, i, j] if inside else torch.zeros(4, dtype=torch.float64))
        weights = torch.stack(scores).softmax(0)
        torch.testing.assert_close(made[:, row, column], sum(w * x for w, x in zip(weights, values, strict=True)))


def test_attention_to_regions():
    torch.manual_seed(0)
    block = LabelContext(6, 4, "batch").double().eval()
    target, source = torch.randn(2, 1, 6, 3, 5, dtype=torch.float64).unbind(0)
    labels = torch.randn(1, 7, 15, dtype=torch.float64).softmax(-1)
    means = torch.stack([(source[0].flatten(1) * weights).sum(1) for weights in labels[0]], dim=1)[None, :, :, None]
    q, k, v = (layer(x)[0].flatten(1) for layer, x in ((block.query, target), (block.key, means), (block.value, means)))
    expected = v @ (q.T @ k / 2).softmax(-1).T
    torch.testing.assert_close(block(target, source, labels)[0].flatten(1), expected)


@pytest.mark.parametrize(("outs", "classes", "count_of_labels"), [(5, True, 5), (1, True, 2), (3, False, 7)])
def test_label_maps_and_what_they_predict(outs, classes, count_of_labels):
    torch.manual_seed(0)
    labels = Labels(6, outs, classes, 7, "batch").eval()
    x = torch.randn(2, 6, 3, 4)
    places, prediction = labels(x)
    logits = labels.logits(labels.features(x))
    assert logits.shape[1] == count_of_labels and prediction.shape == (2, outs, 3, 4)
    torch.testing.assert_close(places.sum(-1), torch.ones(2, count_of_labels))
    if not classes:
        expected = torch.stack([(logits.softmax(1) * row[None, :, None, None]).sum(1) for row in labels.values], dim=1)
    else:
        expected = logits if outs > 1 else logits[:, 1:] - logits[:, :1]
    torch.testing.assert_close(prediction, expected)


def test_label_maps_are_cut_off_from_the_backbone():
    model = atrc().train()
    made = model(images(), list(TASKS))
    assert [len(everything(made[t])) for t in TASKS] == [2, 1, 2]
    auxiliary = sum(x.sum() for t in TASKS for x in everything(made[t])[1:])
    auxiliary.backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {"labels"}


def test_at_first_the_contexts_change_nothing():
    model = atrc().eval()
    before = model(images(), ["depth"])["depth"]
    for block in model.refine["depth"].attend.values():
        for parameter in block.parameters():
            parameter.data.mul_(3)
    torch.testing.assert_close(model(images(), ["depth"])["depth"], before)


def test_only_what_the_asked_for_tasks_read_is_computed():
    model = atrc().eval()
    ran = []
    for name, module in [*model.enter.items(), *model.labels.items()]:
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    model(images(), ["edge"])
    assert ran == ["edge", "edge"]  # its features and its label maps


def test_mistakes_are_named_together():
    with pytest.raises(UserError) as caught:
        make("atrc", TASKS, contexts={"dept": {}, "edge": {"segmentatoin": "global", "depth": "globl"}})
    said = str(caught.value)
    assert len(caught.value.problems) == 3
    assert "architecture.contexts.dept" in said and "segmentatoin" in said and "'globl'" in said and "global" in said
    with pytest.raises(UserError, match="odd"):
        make("atrc", TASKS, kernel=4)
