"""Slimmable networks against plain ones of the smaller size, and the search against brute force."""

from __future__ import annotations

import copy
import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from runner.architectures.slim import Width, slim
from runner.architectures.width_search import Flops, Search, Setting
from runner.backbones import resnet
from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.config.static import Report
from runner.config.weighting_fit import slimmable_statistics
from runner.errors import UserError
from runner.launching.rundir import RunDirectory
from runner.launching.signals import StopFlag
from runner.training.cost import forward_cost
from runner.training.loop import train
from runner.training.start import load_backbone
from runner.types import Supervised
from tests.architectures.worlds import NARROW, TASKS, count, images, make
from tests.support import TINY

HALF = {**NARROW, "channels": 4}


def cut(plain, source):
    """Give a smaller network the first channels of every tensor of a larger one."""
    found = source.state_dict()
    plain.load_state_dict(
        {n: found[n][tuple(slice(0, size) for size in t.shape)] for n, t in plain.state_dict().items()}
    )
    return plain.eval()


@pytest.fixture
def half_resnet(monkeypatch):
    preset = resnet.PRESETS["tiny"]
    halved = {k: [c // 2 for c in v] if k == "hidden_sizes" else v for k, v in preset.items()}
    monkeypatch.setitem(resnet.PRESETS, "tiny", halved | {"embedding_size": preset["embedding_size"] // 2})


def setting(encoder, decoder):
    return Setting(encoder, dict.fromkeys(TASKS, decoder))


def test_at_full_width_it_is_hard_sharing():
    model, plain = make("slimmable").eval(), make("hard_sharing").eval()
    assert count(model) == count(plain)
    with torch.no_grad():
        made, expected = model(images(), list(TASKS)), plain(images(), list(TASKS))
    assert all(torch.equal(made[name], expected[name]) for name in TASKS)


def test_half_of_it_is_a_network_of_half_the_width(half_resnet, monkeypatch):
    plain = make("hard_sharing", dense_head=HALF)
    monkeypatch.undo()
    model = make("slimmable", widths=[0.5, 1.0]).eval()
    cut(plain, model)
    model.setting = setting(1, 1)
    with torch.no_grad():
        made, expected = model(images(), list(TASKS)), plain(images(), list(TASKS))
    for name in TASKS:
        torch.testing.assert_close(made[name], expected[name], atol=1e-6, rtol=1e-5)
    flops = [forward_cost(m, images(batch=1), list(TASKS)).flops for m in (model, plain)]
    assert flops[0] == flops[1]


@pytest.mark.parametrize("backbone", ["swin", "segformer", "segnet"])
def test_other_backbones_run_at_every_width(backbone):
    model, group = make("slimmable", backbone=backbone, widths=[0.5, 1.0]), images(batch=1)
    costs = []
    for encoder, decoder in ((0, 0), (0, 1), (1, 0), (1, 1)):
        model.eval()
        model.setting = setting(encoder, decoder)
        costs.append(forward_cost(model, group, ["depth"]).flops)
    assert costs[0] > max(costs[1:3]) and costs[3] < min(costs[1:3])


def test_patch_merging_takes_the_same_channels_of_every_cell():
    """Four cells' channels side by side: the narrow layer has the first of each, not those of the first cells."""

    class PatchMerging(nn.Module):
        def __init__(self):
            super().__init__()
            self.reduction = nn.Linear(8, 4, bias=False)

        def forward(self, x):
            return self.reduction(x)

    part, width = nn.Sequential(PatchMerging()), Width((1.0, 0.5), follow=True)
    matrix = part[0].reduction.weight.detach()
    slim(part, width)
    x = torch.randn(3, 4)
    torch.testing.assert_close(part(x), x @ matrix[:2, ::2].T)


def test_statistics_are_apart():
    model = make("slimmable", widths=[0.5, 1.0], samples=1).train()
    norm = next(m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d))
    before = norm.slim_mean.clone()
    model.setting = model.full()
    with torch.no_grad():  # the full network alone
        model(images(), ["depth"])
    assert torch.equal(norm.slim_mean, before) and norm.running_mean.abs().sum() > 0
    model(images(), ["depth"])
    assert not torch.equal(norm.slim_mean[0, :8], before[0, :8])
    assert torch.equal(norm.slim_mean[0, 8:], before[0, 8:])  # channels that the narrow network does not have


def test_training_supervises_sub_networks_and_draws_them():
    torch.manual_seed(0)
    model = make("slimmable", samples=3, sub_weight=0.6).train()
    with model.watched() as seen:
        made = model(images(), list(TASKS))
    assert all(
        isinstance(p, Supervised) and [w for w, _ in p.auxiliary] == pytest.approx([0.2] * 3) for p in made.values()
    )
    widths = [features.pyramid[-1].shape[1] for features in seen[0]]
    assert widths[:2] == [128, 32] and len(widths) == 4
    with torch.no_grad():
        assert not any(isinstance(p, Supervised) for p in model(images(), list(TASKS)).values())
    copied = copy.deepcopy(model).eval()
    copied.setting = setting(3, 3)
    assert model.setting == model.full() and model.encoder_width is not copied.encoder_width


def test_widths_that_make_no_sense_are_refused():
    for widths in ([0.5], [0.5, 0.75], [1.0, 1.0], [0.0, 1.0]):
        with pytest.raises(UserError, match="1, and at least one smaller share"):
            make("slimmable", widths=widths)
    with pytest.raises(UserError, match="not all different for a layer"):
        make("slimmable", widths=[0.99, 1.0])
    with pytest.raises(UserError, match="cannot run at a smaller width"):
        make("slimmable", backbone="convnext")


def test_synchronised_statistics_are_refused():
    report = Report()
    target = {"_target_": "runner.architectures.slimmable.Slimmable"}
    slimmable_statistics({"architecture": target, "trainer": {"sync_batchnorm": True}}, report)
    assert "replaces layers that architecture=slimmable runs" in str(report.found)


def test_it_starts_from_another_run(tmp_path):
    source, model = make("hard_sharing", seed=1), make("slimmable")
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    load_backbone(model.backbone, [tmp_path / "model.safetensors"])
    found = model.backbone.state_dict()
    assert all(torch.equal(found[name], value) for name, value in source.backbone.state_dict().items())


def fake(encoders, heads):
    """A model of two tasks whose cost and quality are known."""
    tasks = {
        "a": SimpleNamespace(headline="acc", directions={"acc": "up"}),
        "b": SimpleNamespace(headline="err", directions={"err": "down"}),
    }
    model = SimpleNamespace(tasks=tasks, ratios=(1.0, 0.5, 0.25), setting=None)
    model.full = lambda: Setting(0, {"a": 0, "b": 0})

    def cost(names):
        return encoders[model.setting.encoder] + sum(heads[model.setting.decoders[n]] for n in names)

    def measure():
        s = model.setting
        quality = {n: 10 - 2 * s.encoder - 3 * s.decoders[n] for n in tasks}
        return {"a": {"acc": float(quality["a"])}, "b": {"err": 100.0 - quality["b"]}}

    return model, measure, cost


def test_flops_of_settings_are_sums_of_parts():
    model, _, cost = fake([100, 40, 10], [30, 12, 3])
    flops = Flops(model, cost)
    for e, a, b in itertools.product(range(3), repeat=3):
        assert flops.total(Setting(e, {"a": a, "b": b})) == [100, 40, 10][e] + [30, 12, 3][a] + [30, 12, 3][b]


def test_the_search_keeps_the_rule_and_the_budget():
    model, measure, cost = fake([100, 40, 10], [30, 12, 3])
    rows = Search([0.5, 0.7, 0.05], 0.8).table(model, measure, cost)
    assert [(r["budget"], r["preferred"]) for r in rows] == list(itertools.product([0.5, 0.7, 0.05], [None, "a", "b"]))
    assert all(r["encoder"] is None for r in rows if r["budget"] == 0.05)
    for row in rows[:6]:
        assert row["flops"] <= row["budget"]
        if row["preferred"]:
            other = "b" if row["preferred"] == "a" else "a"
            assert row["decoders"][row["preferred"]] >= row["decoders"][other]
    # 80 of 160: encoder 40 leaves 40: a full decoder of 30 and one of 3; encoder 10 leaves 70 for both in full.
    # a: 8 and 10 of 10 against 10: the encoder of 10 costs a 4 of 10; the one of 40 costs a 2 and b 2 + 6 of 90.
    assert rows[1]["encoder"] == 0.5 and rows[1]["decoders"] == {"a": 1.0, "b": 0.25}
    assert rows[1]["gain"] == pytest.approx(0.8 * -0.2 + 0.2 * -8 / 90, abs=1e-6)


def test_a_run_ends_with_the_table(tmp_path):
    overrides = [
        *TINY, "architecture=slimmable", "wrapper=ci_kd", "tasks=[segmentation,depth]", f"output_dir={tmp_path}",
        "architecture.widths=[0.5,1.0]", "architecture.budgets=[0.5,1.0]", "trainer.max_steps=2",
        "architecture.dense_head.channels=8", "trainer.ema=0.9",
    ]  # fmt: skip
    run = RunDirectory.claim(finalize(compose("train", overrides)), "train", [])
    assert train(run, StopFlag()) == 0
    result = json.loads((run.path / "result.json").read_text())
    rows = result["controllability"]
    assert len(rows) == 2 * 3 and all(row["gain"] >= 0 for row in rows[3:])  # the full network is one of the candidates
    assert all(row["flops"] <= row["budget"] for row in rows if row["encoder"])
    assert set(rows[3]["validation"]) == {"segmentation", "depth"}
