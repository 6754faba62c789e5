"""ATRC's search: it finds the contexts that toys were made to need, and says so in the form that ATRC takes."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F

from runner.architectures.atrc_search import Choice, SearchedRefine, override
from runner.cli.main import main
from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.errors import UserError
from runner.launching.rundir import RunDirectory
from runner.launching.signals import StopFlag
from runner.training.loop import train
from tests.architectures.samples import task
from tests.architectures.worlds import count, images, make
from tests.support import TINY

HEAD = {"_target_": "runner.architectures.heads.bottleneck.BottleneckHead", "blocks": 0}
TASKS = {n: task(n, "dense", c) for n, c in (("segmentation", 5), ("depth", 1))}
TASKS["segmentation"].loss_kind = "classification"
STEPS = 120
KINDS = ["none", "global", "local", "target_label", "source_label"]


def search(**changes):
    return make("atrc_search", TASKS, channels=16, dense_head=HEAD, kernel=3, passes=10, **changes)


def world(context: str, batch: int = 8):
    """Features of two tasks, label maps, and an answer that only one context of the source holds."""
    own, source = torch.randn(2, batch, 4, 6, 6).unbind(0)
    labels = {}
    for name, columns in (("a", (0, 1)), ("b", (4, 5))):  # one label each: two columns at one side
        places = torch.zeros(1, 1, 6, 6)
        places[..., list(columns)] = 1 / 12
        labels[name] = places.flatten(2).expand(batch, -1, -1)
    means = {
        "global": source.mean((2, 3), keepdim=True).expand_as(source) * 4,
        "local": source,
        "target_label": source[..., :2].mean((2, 3), keepdim=True).expand_as(source) * 3,
        "source_label": source[..., 4:].mean((2, 3), keepdim=True).expand_as(source) * 3,
    }
    return {"a": own, "b": source}, labels, means[context]


@pytest.mark.parametrize(
    "context",
    ["global", *(pytest.param(c, marks=pytest.mark.slow) for c in ("local", "target_label")), "source_label"],
)
def test_the_search_finds_the_context_that_is_needed(context):
    torch.manual_seed(0)
    block = SearchedRefine("a", ["a", "b"], 4, 8, 1, 0.0, "batch").train()
    out = torch.nn.Conv2d(4, 4, 1)
    weights = [p for n, p in block.named_parameters() if not n.endswith("logits")]
    choices = [c.logits for c in block.attend.values()]
    optimizer = torch.optim.Adam(
        [{"params": [*weights, *out.parameters()], "lr": 0.02}, {"params": choices, "lr": 0.03}]
    )
    for step in range(STEPS):
        share = step / STEPS
        for choice in block.attend.values():
            choice.temperature = 1 - 0.9 * share
        features, labels, answer = world(context)
        made = out(block("a", features, labels))
        entropy = torch.stack([-(c.softmax(0) * c.log_softmax(0)).sum() for c in choices]).mean()
        loss = F.mse_loss(made, answer) + (-0.02 + 0.08 * share) * entropy
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = block.attend["b"]
    assert found.kinds[int(found.logits.argmax())] == context


def one_hot(model, contexts):
    for (target, source), choice in model.choices().items():
        choice.logits.data = 9.0 * torch.eye(len(choice.kinds))[choice.kinds.index(contexts[target][source])]


FOUND = {
    "segmentation": {"segmentation": "global", "depth": "source_label"},
    "depth": {"segmentation": "target_label", "depth": "local"},
}


def test_evaluated_it_is_atrc_with_the_found_contexts():
    model = search().eval()
    one_hot(model, FOUND)
    assert model.found() == FOUND
    plain = make("atrc", TASKS, channels=16, dense_head=HEAD, kernel=3, contexts=FOUND, seed=1).eval()
    for module in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d) and m.affine):
        module.weight.data.uniform_(0.5, 1.5)  # the join starts at zero and would hide the contexts
    state = model.state_dict()
    used = {}
    for (target, source), choice in model.choices().items():
        at = [kind for kind in choice.kinds if kind != "none"].index(FOUND[target][source])
        used[f"refine.{target}.attend.{source}."] = f"refine.{target}.attend.{source}.contexts.{at}."
    for name, tensor in plain.state_dict().items():
        prefix = next((p for p in used if name.startswith(p)), None)
        theirs = state.get(name if prefix is None else name.replace(prefix, used[prefix]))
        if theirs is None:  # the scale and shift of a value, which the search does without
            assert ".value.1." in name
        else:
            tensor.copy_(theirs)
    ran = []
    for choice in model.choices().values():
        for block in choice.contexts:
            block.register_forward_hook(lambda *_: ran.append(1))
    group = images()
    with torch.no_grad():
        for name, prediction in plain(group, list(TASKS)).items():
            torch.testing.assert_close(model(group, [name])[name], prediction)
    assert len(ran) == 4, "contexts that lost are not computed"
    graph = model(group, list(TASKS))["depth"]  # also where a graph is built, with all contexts in it
    torch.testing.assert_close(graph, plain(group, ["depth"])["depth"])


def test_weights_are_drawn_until_one_is_ahead_and_then_fixed():
    torch.manual_seed(0)
    choice = Choice(KINDS, 4, 2, "batch", 3).train()
    choice.logits.data[3] = 0.8
    shares = choice.logits.detach().softmax(0)
    choice.temperature = 0.05
    drawn = torch.stack([choice.weights().detach().argmax() for _ in range(3000)])
    counts = torch.bincount(drawn, minlength=5) / 3000
    assert (counts - shares).abs().max() < 4 * math.sqrt(0.25 / 3000)
    choice.temperature = 5.0
    assert float(choice.weights().detach().min()) > 0.01  # high temperatures mix
    assert not choice.fixed
    choice.logits.data[3] = 2.0  # 0.65 against 0.09
    with torch.no_grad():
        assert choice.weights().tolist() == [0, 0, 0, 1, 0] and not choice.fixed  # asking changes nothing
    assert choice.weights().tolist() == [0, 0, 0, 1, 0] and choice.fixed
    choice.logits.data[3] = 0.1
    weights = choice.weights()
    assert weights.tolist() == [0, 0, 0, 1, 0]
    weights[3].backward()
    assert choice.logits.grad.abs().sum() == 0


def test_nothing_comes_from_none_and_no_task_has_labels_of_a_source_of_its_own():
    model = search()
    kinds = {pair: choice.kinds for pair, choice in model.choices().items()}
    assert kinds[("depth", "depth")] == ("none", "global", "local", "target_label")
    assert kinds[("depth", "segmentation")] == tuple(KINDS)
    choice = model.choices()[("depth", "segmentation")].eval()
    choice.logits.data[0] = 1.0
    x = torch.randn(1, 16, 4, 4)
    labels = {name: torch.full((1, 3, 16), 1 / 16) for name in ("target_label", "source_label")}
    with torch.no_grad():
        assert torch.equal(choice(x, x, labels), torch.zeros(1, 8, 4, 4))


def test_temperature_and_entropy_go_linearly_from_one_end_to_the_other():
    model = search().train()
    seen = []
    for _ in range(12):
        model(images(batch=1), ["depth"])
        for choice in model.choices().values():
            choice.logits.data = torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0][: len(choice.kinds)])
        seen.append((next(iter(model.choices().values())).temperature, float(model.penalty().detach())))
    with torch.no_grad():
        model(images(batch=1), ["depth"])  # a second look is no pass
    assert int(model.steps) == 12
    entropies = []
    for n in (4, 5, 5, 4):
        top, other = math.e / (math.e + n - 1), 1 / (math.e + n - 1)
        entropies.append(-top * math.log(top) - (n - 1) * other * math.log(other))
    mean = sum(entropies) / 4
    for step, (temperature, penalty) in enumerate(seen):
        share = min(step / 10, 1)
        assert temperature == pytest.approx(1 - 0.95 * share)
        assert penalty == pytest.approx((-0.02 + 0.08 * share) * mean, rel=1e-5)
    again = search(seed=1)
    again.load_state_dict(model.state_dict())
    assert int(again.steps) == 12


def test_what_a_run_finds_is_what_atrc_takes(tmp_path, capsys):
    overrides = [*TINY, "tasks=[depth,edge]", "mixture.train=8", "trainer.max_steps=3"]
    run_overrides = [*overrides, "architecture=atrc_search", "architecture.channels=8", "architecture.kernel=3"]
    config = finalize(compose("train", [*run_overrides, f"output_dir={tmp_path}"]))
    assert config["architecture"]["passes"] == 3
    run = RunDirectory.claim(config, "train", run_overrides)
    assert train(run, StopFlag()) == 0
    result = json.loads((run.path / "result.json").read_text())
    assert {t: set(by) for t, by in result["contexts"].items()} == {t: {"depth", "edge"} for t in ("depth", "edge")}
    assert sum(result["context_probabilities"]["edge"]["depth"].values()) == pytest.approx(1, abs=1e-3)
    word = override(result["contexts"])
    assert f"architecture=atrc '{word}'" in capsys.readouterr().out
    then = finalize(compose("train", [*overrides, "architecture=atrc", word]), data=False)
    assert then["architecture"]["contexts"] == result["contexts"]


def test_epochs_need_a_number_of_passes(capsys):
    words = ["mixture=rooms", "backbone.size=tiny", "architecture=atrc_search", "trainer.max_steps=null"]
    assert main(["train", *words, "trainer.epochs=1", "--dry-run"]) == 2
    assert "architecture.passes" in capsys.readouterr().err


def test_a_temperature_that_rises_is_refused():
    with pytest.raises(UserError, match=r"final_temperature=2\.0 is above"):
        search(final_temperature=2.0)


def test_parameters_are_those_of_all_contexts():
    model, plain = search(bins=7), make("atrc", TASKS, channels=16, dense_head=HEAD, kernel=3, bins=7, context="none")
    c, a, d, n = 16, 8, 240, 2
    contexts = 2 * (c * a + a * a + 4 * a) + c * a  # queries and keys of any kind, a value without scale
    own = 3 * contexts + 4
    other = 4 * contexts + 5
    joins = n * a * c + 2 * c + c * c
    labels = 2 * (d * d + 2 * d) + (d + 1) * 5 + (d + 1) * 7 + 7
    assert count(model) - count(plain) == n * (own + other + joins) + labels
