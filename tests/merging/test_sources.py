"""Where tensors come from: shards, torch files, adapters (against PEFT), other vocabularies, stacks of layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.errors import UserError
from runner.merging import worker
from runner.merging.adapters import AdapterSource
from runner.merging.memory import merge_in_memory
from runner.merging.open import expert_names, open_source
from runner.merging.packing import pack, packed_bytes, unpack
from runner.merging.plan import Settings, make_plan
from runner.merging.rules.average import Average
from runner.merging.rules.masks import TallMask
from runner.merging.rules.task_arithmetic import TaskArithmetic
from runner.merging.sources import Models, StateDict, shared_names
from runner.merging.vocabulary import Rows, reconcile
from tests.merging.models import base_model, close, experts_of, write

BASE = base_model()


def settings(strategy: dict, models: list[str], out: str = "out", base: str | None = None, **keys) -> dict:
    plain = {"names": None, "include": [], "exclude": [], "dtype": "base", "embed": "error", "batchnorm": "keep"}
    plain |= {"shard_size": 5.0, "threads": 1, "memory": 0.5, "plugins": []}
    return plain | {"merge": strategy, "models": models, "base": base, "out": str(Path(out).absolute())} | keys


def rule(name: str, **keys) -> dict:
    return {"_target_": f"runner.merging.rules.{name}", **keys}


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["one file", "shards", "torch", "wrapped", "old torch", "torch shards"])
def test_every_form_of_a_model_reads_the_same(form):
    folder = Path("model")
    if form == "one file":
        write(folder, BASE)
    elif form == "shards":
        write(folder, BASE, shards=3)
    else:
        folder.mkdir()
        if form == "torch shards":
            names = list(BASE)
            for n in range(2):
                torch.save({k: BASE[k] for k in names[n::2]}, folder / f"{n}.bin")
            weight_map = {k: f"{i % 2}.bin" for i, k in enumerate(names)}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
        else:
            content = {"state_dict": BASE, "epoch": 3} if form == "wrapped" else BASE
            torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=form != "old torch")
    source = open_source(folder, "x")
    assert set(source.tensors()) == set(BASE)
    for name, tensor in BASE.items():
        assert torch.equal(source.whole(name), tensor)
        count = tensor.numel()
        assert torch.equal(source.read(name, count // 3, count), tensor.reshape(-1)[count // 3 :])


def test_a_header_of_odd_length_is_read_all_the_same():
    """Legal: the data need not be aligned."""
    text = json.dumps({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}).encode()
    text += b" " * (3 - len(text) % 4)
    values = torch.tensor([1.0, 2.0, 3.0])
    Path("x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + values.numpy().tobytes())
    assert torch.equal(open_source(Path("x.safetensors"), "x").whole("w"), values)


def test_a_tensor_in_fortran_order():
    tensor = torch.arange(6.0).view(2, 3).T
    torch.save({"w": tensor}, "x.pt")
    assert torch.equal(open_source(Path("x.pt"), "x").read("w", 1, 4), tensor.reshape(-1)[1:4])


def test_names_are_as_long_as_they_must_be():
    assert expert_names(["runs/a", "runs/b/"]) == ["a", "b"]
    assert expert_names(["x/model", "y/model"]) == ["x-model", "y-model"]


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8, 12])
def test_packing(bits):
    codes = torch.randint(0, 2**bits, (1003,), generator=torch.Generator().manual_seed(bits))
    packed = pack(codes, bits)
    assert len(packed) == packed_bytes(1003, bits)
    assert torch.equal(unpack(packed, bits, 1003), codes)


# ---- tied weights, buffers, statistics -----------------------------------------------------------------------------


def test_tied_tensors_are_merged_once_and_stay_tied():
    shared = torch.arange(8.0)
    torch.save({"wte": shared, "lm_head": shared, "b": torch.zeros(2)}, "base.pt")
    other = shared + 1
    torch.save({"wte": other, "lm_head": other, "b": torch.ones(2)}, "a.pt")
    save_file({"wte": shared + 3, "b": torch.ones(2)}, "b.safetensors")  # as transformers stores it
    worker.run(settings(rule("average.Average"), ["a.pt", "b.safetensors"], base="base.pt"))
    found = load_file("out/model.safetensors")
    assert torch.equal(found["wte"], shared + 2)
    assert torch.equal(found["lm_head"], found["wte"])


def test_a_head_that_one_expert_stores_although_it_is_tied():
    base = {"wte.weight": torch.randn(5, 3), "b": torch.zeros(2)}
    expert = {"wte.weight": base["wte.weight"] + 1, "b": torch.ones(2)}
    twice = Models.in_memory({"a": expert | {"lm_head.weight": expert["wte.weight"].clone()}}, base)
    plan = make_plan(TaskArithmetic(), twice, Settings())
    assert [o.name for o in plan.outputs] == list(base)
    assert "tied to wte.weight" in plan.notes[0]
    untied = Models.in_memory({"a": expert | {"lm_head.weight": torch.randn(5, 3)}}, base)
    with pytest.raises(UserError, match="lacks: lm_head"):
        make_plan(TaskArithmetic(), untied, Settings())


def test_shared_storage_is_seen_and_slices_are_not():
    x = torch.arange(6.0)
    assert shared_names({"a": x, "b": x, "c": x[:3], "d": x.clone()}) == {"b": "a"}


@pytest.mark.parametrize("policy", ["keep", "average"])
def test_batch_normalisation(policy):
    def model(v):
        return {
            "w": torch.full((2,), v),
            "bn.running_mean": torch.full((2,), v),
            "bn.num_batches_tracked": torch.tensor(9),
        }

    for n, v in (("base", 0.0), ("a", 1.0), ("b", 3.0)):
        write(Path(n), model(v))
    worker.run(settings(rule("task_arithmetic.TaskArithmetic", scale=1.0), ["a", "b"], base="base", batchnorm=policy))
    found = load_file("out/model.safetensors")
    assert found["w"].tolist() == [4.0, 4.0]
    assert found["bn.running_mean"].tolist() == ([0.0, 0.0] if policy == "keep" else [2.0, 2.0])
    assert found["bn.num_batches_tracked"] == 9  # not 9 + 9


def test_include_exclude_and_heads_of_experts():
    base = {"body.w": torch.zeros(2), "body.b": torch.zeros(2), "head.w": torch.zeros(2)}
    a = {n: t + 1 for n, t in base.items()} | {"extra.w": torch.ones(3)}
    write(Path("base"), base)
    write(Path("a"), a)
    worker.run(settings(rule("average.Average"), ["a"], base="base", exclude=["head.*", "extra.*"], include=["*.w"]))
    found = load_file("out/model.safetensors")
    assert {n: t[0].item() for n, t in found.items()} == {"body.w": 1.0, "body.b": 0.0, "head.w": 0.0}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_storing_in_another_type_changes_the_configuration_too(dtype):
    write(Path("a"), BASE, torch_dtype="float32")
    worker.run(settings(rule("average.Average"), ["a"], dtype=dtype))
    assert {t.dtype for t in load_file("out/model.safetensors").values()} == {getattr(torch, dtype)}
    config = json.loads(Path("out/config.json").read_text())
    assert (config["dtype"], config["torch_dtype"], config["model_type"]) == (dtype, dtype, "toy")


# ---- adapters ------------------------------------------------------------------------------------------------------


class Toy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 6)
        self.up = torch.nn.Linear(6, 10)
        self.down = torch.nn.Linear(10, 6)

    def forward(self, x):
        return self.down(torch.relu(self.up(self.embed(x))))


def peft_model(seed: int, folder: str, **keys):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    toy = Toy()
    if not Path("base").is_dir():
        write(Path("base"), {n: t.clone() for n, t in toy.state_dict().items()})
    config = peft.LoraConfig(**({"r": 3, "lora_alpha": 5, "target_modules": ["embed", "up", "down"]} | keys))
    model = peft.get_peft_model(toy, config)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"up": 2}, "alpha_pattern": {"up": 9}},
        {"target_modules": ["up"], "modules_to_save": ["down"]},
    ],
)
def test_an_adapter_on_its_base_is_what_peft_merges(keys):
    model = peft_model(1, "a", **keys)
    merged = model.merge_and_unload().state_dict()
    source = open_source(Path("a"), "a", open_source(Path("base"), "base"))
    assert isinstance(source, AdapterSource)
    assert set(source.tensors()) == set(merged)
    for name, tensor in merged.items():
        torch.testing.assert_close(source.whole(name).float(), tensor, rtol=1e-5, atol=1e-5)
        part = source.read(name, 4, tensor.numel() - 1)
        torch.testing.assert_close(part.float(), tensor.reshape(-1)[4:-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("ours", "keys", "theirs"),
    [
        ("LoraCat", {}, {"combination_type": "cat"}),
        ("LoraLinear", {}, {"combination_type": "linear"}),
        ("LoraSvd", {"size": 2}, {"combination_type": "svd", "svd_rank": 2}),
        ("LoraTies", {"density": 0.5}, {"combination_type": "ties", "density": 0.5, "majority_sign_method": "total"}),
    ],
)
def test_rules_on_factors_against_peft(ours, keys, theirs):
    peft_model(1, "a", target_modules=["up", "down"])
    model = peft_model(2, "b", target_modules=["up", "down"])
    model.load_adapter("a", "one")
    model.load_adapter("b", "two")
    weights = [0.5, 0.5] if ours == "LoraTies" else [0.7, 0.4]  # PEFT elects signs without weights, we with
    model.add_weighted_adapter(["one", "two"], weights, "both", **theirs)
    worker.run(settings(rule(f"lora.{ours}", weights=weights, **keys), ["a", "b"]))
    assert Path("out/adapter_model.safetensors").is_file()
    model.load_adapter("out", "ours")
    x = torch.arange(11)
    for layer in ("up", "down"):
        module = getattr(model.base_model.model, layer)
        torch.testing.assert_close(
            module.get_delta_weight("ours"), module.get_delta_weight("both"), rtol=1e-4, atol=1e-4
        )
    model.set_adapter("ours")
    assert model(x).isfinite().all()


def test_adapters_of_other_ranks_and_modules():
    peft_model(1, "a", r=2)
    peft_model(2, "b", r=3)
    worker.run(settings(rule("lora.LoraCat"), ["a", "b"]))
    assert json.loads(Path("out/adapter_config.json").read_text())["r"] == 5
    with pytest.raises(UserError, match="needs the same rank"):
        worker.run(settings(rule("lora.LoraLinear"), ["a", "b"], out="other"))
    peft_model(3, "c", target_modules=["up"])
    with pytest.raises(UserError, match="does not change"):
        worker.run(settings(rule("lora.LoraCat"), ["a", "c"], out="other"))
    assert not Path("other").exists()


# ---- vocabularies --------------------------------------------------------------------------------------------------


def tokenizer(folder: str, added: dict[str, int]) -> None:
    content = {
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": 2}},
        "added_tokens": [{"id": i, "content": t, "special": True} for t, i in added.items()],
    }
    Path(folder, "tokenizer.json").write_text(json.dumps(content))


def rows(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32)[:, None].repeat(1, 2)


def test_vocabularies_are_cut_to_the_base_s():
    write(Path("base"), {"embed.weight": rows(0, 1, 2, 3)}, vocab_size=4)
    write(Path("long"), {"embed.weight": rows(10, 11, 12, 13, 14)}, vocab_size=5)
    write(Path("short"), {"embed.weight": rows(20, 21, 22)}, vocab_size=3)
    worker.run(
        settings(rule("task_arithmetic.TaskArithmetic", scale=1.0), ["long", "short"], base="base", embed="base")
    )
    found = load_file("out/model.safetensors")["embed.weight"]
    assert found[:, 0].tolist() == [30.0, 31.0, 32.0, 13.0]  # the short one leaves row 3 alone


def test_vocabularies_are_joined_by_token():
    write(Path("base"), {"embed.weight": rows(0, 1, 2, 3)}, vocab_size=4)
    write(Path("a"), {"embed.weight": rows(10, 11, 12, 13, 14)}, vocab_size=5)
    write(Path("b"), {"embed.weight": rows(20, 21, 22, 23, 24, 25)}, vocab_size=6)
    tokenizer("base", {"<s>": 3})
    tokenizer("a", {"<s>": 3, "<x>": 4})
    tokenizer("b", {"<y>": 3, "<s>": 4, "<x>": 5})
    worker.run(settings(rule("average.Average"), ["a", "b"], base="base", embed="union"))
    found = load_file("out/model.safetensors")["embed.weight"][:, 0].tolist()
    #                 a     b     c     <s>                <x>                <y>: b's, and the base's mean for a
    assert found == [15.0, 16.0, 17.0, (13 + 24) / 2, (14 + 25) / 2, 23.0]
    assert json.loads(Path("out/config.json").read_text())["vocab_size"] == 6
    added = json.loads(Path("out/tokenizer.json").read_text())["added_tokens"]
    assert [(t["content"], t["id"]) for t in added] == [("<s>", 3), ("<x>", 4), ("<y>", 5)]


def test_vocabularies_that_differ_beyond_added_tokens_are_refused():
    models = {}
    for name in ("base", "a"):
        write(Path(name), {"embed.weight": rows(0, 1, 2)}, vocab_size=3)
        tokenizer(name, {})
        models[name] = open_source(Path(name), name)
    content = json.loads(Path("a/tokenizer.json").read_text())
    content["model"]["vocab"] = {"a": 0, "z": 1, "c": 2}
    Path("a/tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="beyond added tokens"):
        reconcile(Models({"a": models["a"]}, models["base"]), "union")


def test_rows_in_any_order_and_in_slices():
    inner = StateDict({"e": torch.arange(12.0).view(6, 2)})
    table = torch.tensor([5, 0, 1, -1, -1, 3])
    filled = torch.tensor([[70.0, 71.0], [80.0, 81.0]])
    source = Rows(inner, {"e": table}, {"e": filled})
    expected = torch.tensor([10.0, 11, 0, 1, 2, 3, 70, 71, 80, 81, 6, 7])
    for start in range(12):
        for stop in range(start + 1, 13):
            assert torch.equal(source.read("e", start, stop), expected[start:stop])


# ---- stacks --------------------------------------------------------------------------------------------------------


def layered(value: float, depth: int) -> dict[str, torch.Tensor]:
    found = {"model.embed.weight": torch.full((2,), value), "model.norm.weight": torch.full((2,), value)}
    return found | {f"model.layers.{n}.w": torch.full((2,), value + n) for n in range(depth)}


def test_layers_are_stacked():
    write(Path("a"), layered(100.0, 4), num_hidden_layers=4)
    write(Path("b"), layered(200.0, 3), num_hidden_layers=3)
    slices = [{"model": 0, "layers": [0, 2]}, {"model": 1, "layers": [1, 3]}, {"model": 0, "layers": [1, 2]}]
    worker.run(settings(rule("passthrough.Passthrough", slices=slices), ["a", "b"]))
    found = {n: t[0].item() for n, t in load_file("out/model.safetensors").items()}
    assert [found[f"model.layers.{n}.w"] for n in range(5)] == [100.0, 101.0, 201.0, 202.0, 101.0]
    assert (found["model.embed.weight"], found["model.norm.weight"]) == (100.0, 100.0)
    assert json.loads(Path("out/config.json").read_text())["num_hidden_layers"] == 5


@pytest.mark.parametrize(
    ("slices", "words"),
    [
        ([], "merge.slices says"),
        ([{"model": 0, "layers": [2, 1]}], "entry 0 must be"),
        ([{"model": 3, "layers": [0, 1]}], "names model 3"),
        ([{"model": 0, "layers": [0, 9]}], "has 4 layers, not 9"),
    ],
)
def test_stacks_that_cannot_be(slices, words):
    write(Path("a"), layered(1.0, 4))
    with pytest.raises(UserError, match=words):
        worker.run(settings(rule("passthrough.Passthrough", slices=slices), ["a"]))


# ---- codes per task ------------------------------------------------------------------------------------------------


def test_one_task_out_of_a_stored_merge_is_a_model_like_any_other():
    write(Path("base"), BASE)
    for name, tensors in experts_of(BASE, 3).items():
        write(Path(name), tensors)
    worker.run(settings(rule("masks.TallMask"), ["a", "b", "c"], base="base"))
    stored = sum(p.stat().st_size for p in Path("out/tasks").iterdir())
    assert stored < 3 * sum(t.numel() for t in BASE.values()) / 8 + 3 * 1000 + 3 * len(BASE)
    worker.run(settings(rule("average.Average"), ["out@b"], out="restored"))
    restored = load_file("restored/model.safetensors")
    expected = merge_in_memory(TallMask(), Models.in_memory(experts_of(BASE, 3), BASE)).for_task("b")
    close({n: restored[n] for n in BASE}, expected)
    with pytest.raises(UserError, match="valid: a, b, c"):
        worker.run(settings(rule("average.Average"), ["out@d"], out="x"))


def test_average_of_one_model_copies_it():
    write(Path("a"), BASE)
    worker.run(settings(rule("average.Average"), ["a"]))
    close({n: load_file("out/model.safetensors")[n] for n in BASE}, BASE, atol=0)
    assert Average().streams
