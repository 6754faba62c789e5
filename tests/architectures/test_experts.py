"""MMoE, CGC, PLE, DSelect-k, AdaTT, HoME and YOLOR's implicit knowledge against their formulas and special cases."""

from __future__ import annotations

import pytest
import torch

from runner.architectures.dselect_k import smooth_step
from runner.architectures.experts import weigh
from runner.errors import UserError
from tests.architectures.samples import task
from tests.architectures.worlds import TABLE, TASKS, copy_into, count, images, make, table

HIDDEN = [6, 5]


def vectors(model):
    """The backbone's vector of a table, and the mixer that reads it."""
    x = torch.randn(4, model.backbone.spec.dim, generator=torch.Generator().manual_seed(1))
    return x, model.mixers["pooled"]


def close(left, right, **tolerance):
    torch.testing.assert_close(left, right, **(tolerance or {"atol": 1e-6, "rtol": 1e-5}))


def softmax_gate(gate, x):
    return torch.softmax(x @ gate.out.weight.T, -1)


def test_weights_apply_to_vectors_tokens_and_maps():
    for shape, weights in (((2, 5), (2, 3)), ((2, 7, 5), (2, 7, 3)), ((2, 5, 4, 6), (2, 3)), ((2, 5), (3,))):
        streams = [[torch.randn(shape)] for _ in range(3)]
        w = torch.randn(weights)
        rows = w.expand(2, 3) if w.ndim == 1 else w
        expected = torch.zeros(shape)
        for b in range(2):
            for e in range(3):
                scale = rows[b, :, e].unsqueeze(-1) if w.ndim == 3 else rows[b, e]
                expected[b] += scale * streams[e][0][b]
        close(weigh(w, streams)[0], expected)


def test_mmoe_is_its_formula():
    model = make("mmoe", TABLE, "mlp", experts=3, hidden=HIDDEN)
    x, mixer = vectors(model)
    made = mixer([x], list(TABLE))
    for name in TABLE:
        gate = softmax_gate(mixer.gates[name], x)
        expected = sum(gate[:, e : e + 1] * expert.parts[0](x) for e, expert in enumerate(mixer.experts))
        close(made[name][0], expected)
    assert made["income"][0].shape == (4, 5)


@pytest.mark.parametrize(("tasks", "backbone", "group"), [(TASKS, "resnet", images), (TABLE, "mlp", table)])
def test_mmoe_with_one_expert_is_hard_sharing_behind_it(tasks, backbone, group):
    model = make("mmoe", tasks, backbone, experts=1, hidden=HIDDEN, channels=8).eval()
    kind = next(iter(tasks.values())).kind
    features, expert = model.backbone(group().inputs), model.mixers[kind].experts[0]
    if kind == "dense":
        features.pyramid = expert(features.pyramid)
    else:
        features.pooled = expert([features.pooled])[0]
    for name, prediction in model(group(), list(tasks)).items():
        close(prediction, model.heads[name](features), atol=1e-5, rtol=1e-4)


def test_sizes_of_expert_architectures():
    """Backbone and heads apart: experts of 32·6+6 + 6·5+5 parameters, gates of 32 a choice (second level: 5)."""
    expert, second, first = 32 * 6 + 6 + 6 * 5 + 5, 5 * 6 + 6 + 6 * 5 + 5, 32

    def mixer(name, **changes):
        return count(make(name, TABLE, "mlp", hidden=HIDDEN, **changes).mixers)

    assert mixer("mmoe", experts=3) == 3 * expert + 2 * 3 * first
    assert mixer("cgc", shared_experts=3, task_experts=2) == 7 * expert + 2 * 5 * first
    ple = 7 * (expert + second) + 2 * 5 * (first + 5) + 7 * first
    assert mixer("ple", shared_experts=3, task_experts=2) == ple
    codes, k = 3, 2
    gate = (first + 1) * (k * codes + k)
    assert mixer("dselect_k", experts=8, k=2) == 8 * expert + 2 * gate
    assert mixer("dselect_k", experts=8, k=2, per_example=False) == 8 * expert + 2 * (k * codes + k)
    # AdaTT: 2 own experts per task and 1 shared one, native weights, a shared gate below the last level
    adatt = 5 * (expert + second) + 5 * (3 * first + 2 * 5) + 2 * (2 + 2)
    assert mixer("adatt") == adatt


def test_cgc_without_experts_of_its_own_is_mmoe():
    cgc = make("cgc", TABLE, "mlp", shared_experts=3, task_experts=0, hidden=HIDDEN).eval()
    mmoe = make("mmoe", TABLE, "mlp", experts=3, hidden=HIDDEN, seed=1).eval()
    copy_into(mmoe, cgc, lambda n: n.replace("levels.0.shared", "experts").replace("levels.0.gates", "gates"))
    for name in TABLE:
        close(cgc(table(), [name])[name], mmoe(table(), [name])[name])


def test_ple_with_one_level_is_cgc():
    ple = make("ple", TABLE, "mlp", levels=1, hidden=HIDDEN).eval()
    cgc = make("cgc", TABLE, "mlp", hidden=HIDDEN, seed=1).eval()
    cgc.load_state_dict(ple.state_dict())
    for name in TABLE:
        close(ple(table(), list(TABLE))[name], cgc(table(), list(TABLE))[name])


def test_ple_is_its_formula():
    model = make("ple", TABLE, "mlp", shared_experts=1, task_experts=1, hidden=HIDDEN)
    x, mixer = vectors(model)
    low, high = mixer.levels
    own = {name: low.own[name][0].parts[0](x) for name in TABLE}
    common = low.shared[0].parts[0](x)
    task_x = {}
    for name in TABLE:
        g = softmax_gate(low.gates[name], x)
        task_x[name] = g[:, :1] * own[name] + g[:, 1:] * common
    g = softmax_gate(low.shared_gate, x)
    shared_x = g[:, :1] * own["income"] + g[:, 1:2] * own["married"] + g[:, 2:] * common
    made = mixer([x], ["married"])
    g = softmax_gate(high.gates["married"], task_x["married"])
    expected = g[:, :1] * high.own["married"][0].parts[0](task_x["married"]) + g[:, 1:] * high.shared[0].parts[0](
        shared_x
    )
    close(made["married"][0], expected)
    assert list(made) == ["married"]


def test_own_experts_of_other_tasks_do_not_run_where_they_are_not_read():
    for name, expected in (("cgc", 0), ("ple", 2)):  # the first level of PLE feeds the shared path
        model, ran = make(name, TABLE, "mlp", hidden=HIDDEN), []
        for level in model.mixers["pooled"].levels:
            for expert in level.own["married"]:
                expert.register_forward_hook(lambda *_, ran=ran: ran.append(1))
        model(table(), ["income"])
        assert len(ran) == expected


def test_smooth_step():
    gamma = 0.5
    t = torch.linspace(-1, 1, 2001, dtype=torch.float64, requires_grad=True)
    s = smooth_step(t, gamma)
    assert s[t <= -gamma / 2].eq(0).all() and s[t >= gamma / 2].eq(1).all()
    assert smooth_step(torch.zeros(()), gamma) == 0.5
    [slope] = torch.autograd.grad(s.sum(), t)
    assert slope.min() >= 0 and slope[(t.abs() > gamma / 2)].eq(0).all()
    close(slope[1000], torch.tensor(1.5 / gamma, dtype=torch.float64))
    close(s + s.flip(0), torch.ones_like(s))  # symmetric about one half


def test_dselect_is_a_product_over_bits():
    gate = make("dselect_k", TABLE, "mlp", hidden=HIDDEN).mixers["pooled"].gates["income"]
    z, alpha = 0.6 * torch.rand(2, 6) - 0.3, torch.randn(2, 2)
    weights = gate.weights(z, alpha)
    for b in range(2):
        share = torch.softmax(alpha[b], 0)
        for e in range(8):
            expected = 0.0
            for i in range(2):
                product = share[i]
                for j in range(3):
                    step = smooth_step(z[b, 3 * i + j], 1.0)
                    product = product * (step if (e >> j) & 1 else 1 - step)
                expected = expected + product
            close(weights[b, e], expected)
    close(weights.sum(-1), torch.ones(2))


def test_dselect_picks_at_most_k():
    gate = make("dselect_k", TABLE, "mlp", k=2, hidden=HIDDEN).mixers["pooled"].gates["income"]
    z = torch.sign(torch.randn(100, 6, generator=torch.Generator().manual_seed(0)))
    chosen = gate.weights(z, torch.randn(100, 2)).gt(0).sum(-1)
    assert chosen.max() == 2 and chosen.min() >= 1


def test_entropy_of_static_gates():
    model = make("dselect_k", TABLE, "mlp", per_example=False, entropy=0.1, hidden=HIDDEN)
    gates = model.mixers["pooled"].gates.values()
    expected = 0.0
    for gate in gates:
        assert gate([torch.zeros(4, 32)]).shape == (8,)
        rows = gate.selectors(gate.z).double()
        expected -= (rows * rows.log()).sum().item()
    assert model.penalty().item() == pytest.approx(0.1 * expected, rel=1e-5)
    for gate in gates:
        gate.z.data.fill_(2.0)
    assert model.penalty().item() == 0.0
    assert make("dselect_k", TABLE, "mlp", hidden=HIDDEN).penalty() is None


def test_all_wrong_values_of_dselect_together():
    with pytest.raises(UserError) as caught:
        make("dselect_k", TABLE, "mlp", experts=6, k=7, entropy=0.1, hidden=HIDDEN)
    assert [p.what.split("=")[0] for p in caught.value.problems] == [
        "architecture.experts",
        "architecture.k",
        "architecture.entropy",
    ]


def test_adatt_is_its_formula():
    model = make("adatt", TABLE, "mlp", levels=2, task_experts=2, shared_experts=1, hidden=HIDDEN)
    x, mixer = vectors(model)
    for level in mixer.levels:
        for weights in level.native.values():
            weights.data = torch.randn(2)
    streams, shared = dict.fromkeys(TABLE, x), x
    for number, level in enumerate(mixer.levels):
        own = {n: [expert.parts[0](streams[n]) for expert in level.experts[n]] for n in TABLE}
        common = level.shared[0].parts[0](shared)
        everything = [*own["income"], *own["married"], common]
        after = {}
        for n in TABLE:
            gate = softmax_gate(level.gates[n], streams[n])
            after[n] = sum(gate[:, e : e + 1] * y for e, y in enumerate(everything))
            after[n] = after[n] + level.native[n][0] * own[n][0] + level.native[n][1] * own[n][1]
        if number == 0:
            gate = softmax_gate(level.shared_gate, shared)
            shared = sum(gate[:, e : e + 1] * y for e, y in enumerate(everything)) + common
        streams = after
    made = mixer([x], list(TABLE))
    for n in TABLE:
        close(made[n][0], streams[n])
    assert mixer.levels[1].shared_gate is None


def test_adatt_sp_has_no_shared_unit():
    model = make("adatt", TABLE, "mlp", shared_experts=0, hidden=HIDDEN)
    assert all(len(level.shared) == 0 and level.shared_gate is None for level in model.mixers["pooled"].levels)
    assert model(table(), ["income"])["income"].shape == (4, 1)


def test_a_task_may_be_called_shared():
    tasks = {name: task(name, "pooled", 1) for name in ("shared", "other")}
    assert set(make("adatt", tasks, "mlp", hidden=HIDDEN)(table(), ["shared"])) == {"shared"}


def test_home_is_its_description():
    tasks = {name: task(name, "pooled", 1) for name in "abc"}
    model = make("home", tasks, "mlp", categories={"x": ["a", "b"], "y": ["c"]}, task_experts=1, hidden=HIDDEN).eval()
    x, m = vectors(model)

    def run(unit, v):
        made = []
        for e in unit.experts:
            gated = v * 2 * torch.sigmoid(v @ e.down[0].weight.T @ e.up[0].weight.T)
            made.append(e.parts[0](gated))
        return made

    def self_gate(layer, v):
        logits = v @ layer.out.weight.T
        return torch.sigmoid(logits) if logits.shape[1] == 1 else torch.softmax(logits, -1)

    def mix(weights, parts):
        return sum(weights[:, e : e + 1] * part for e, part in enumerate(parts))

    first = {c: run(m.first[c], x) for c in "xy"}
    common = run(m.first_shared, x)
    shared = mix(softmax_gate(m.first_shared_gate, x), first["x"] + first["y"] + common)
    shared = shared + mix(self_gate(m.first_shared_self, x), common)
    z = mix(softmax_gate(m.first_gates["x"], x), first["x"] + common) + mix(self_gate(m.first_self["x"], x), first["x"])
    own = run(m.own["b"], z)
    expected = mix(softmax_gate(m.gates["b"], z), own + run(m.second["x"], z) + run(m.second_shared, shared))
    expected = expected + mix(self_gate(m.selves["b"], z), own)
    close(m([x], ["b"])["b"][0], expected, atol=1e-5, rtol=1e-4)


def test_home_experts_are_normalised():
    model = make("home", TABLE, "mlp", hidden=HIDDEN)
    names = [type(layer).__name__ for layer in model.mixers["pooled"].first_shared.experts[0].parts[0]]
    assert names == ["Linear", "BatchNorm1d", "SiLU"] * 2
    text = make("home", {"tags": task("tags", "token", 5)}, "bert", hidden=HIDDEN)
    names = [type(layer).__name__ for layer in text.mixers["token"].first_shared.experts[0].parts[0]]
    assert names == ["Linear", "LayerNorm", "SiLU"] * 2


def test_all_wrong_categories_together():
    with pytest.raises(UserError) as caught:
        make("home", TASKS, categories={"one": ["depth", "depht"], "two": ["depth"]})
    assert [p.what for p in caught.value.problems] == [
        "architecture.categories names 'depht', which is no task of the mixture",
        "architecture.categories has task 'segmentation' 0 times",
        "architecture.categories has task 'depth' 2 times",
        "architecture.categories has task 'normals' 0 times",
    ]


@pytest.mark.parametrize(("tasks", "backbone", "group"), [(TASKS, "resnet", images), (TABLE, "mlp", table)])
def test_implicit_knowledge_that_says_nothing_is_hard_sharing(tasks, backbone, group):
    model = make("yolor_implicit", tasks, backbone, deviation=0.0).eval()
    hard = make("hard_sharing", tasks, backbone, seed=1).eval()
    copy_into(hard, model)
    for name in tasks:
        close(model(group(), [name])[name], hard(group(), [name])[name])


@pytest.mark.parametrize("align", ["add", "multiply", "none"])
@pytest.mark.parametrize("refine", ["add", "multiply", "none"])
def test_implicit_knowledge_is_added_or_multiplied(align, refine):
    model = make("yolor_implicit", TABLE, "mlp", align=align, refine=refine, deviation=0.5)
    x, y = model.backbone(table().inputs).pooled, model(table(), ["income"])["income"]
    do = {"add": torch.add, "multiply": torch.mul, "none": lambda a, _: a}
    x = do[align](x, model.align["income"][0] if align != "none" else None)
    out = torch.nn.functional.linear(x, model.heads["income"].out.weight, model.heads["income"].out.bias)
    close(y, do[refine](out, model.refine["income"] if refine != "none" else None))


def test_implicit_knowledge_costs_its_vectors():
    backbone = {"name": "resnet", "size": 50}
    with torch.device("meta"):
        extra = count(make("yolor_implicit", backbone=backbone)) - count(make("hard_sharing", backbone=backbone))
    assert extra == 3 * (256 + 512 + 1024 + 2048) + 5 + 1 + 3
