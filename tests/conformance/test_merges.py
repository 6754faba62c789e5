"""Every data-free option of configs/merge: identities, and the same result however it is read, cut and stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from runner.config import paths
from runner.config.build import build
from runner.config.source import constant
from runner.files import write_json
from runner.merging import engine as engine_module
from runner.merging import quantile, stream
from runner.merging.base import Merge, TaskVectorMerge, WholeModel
from runner.merging.blocks import GRAIN
from runner.merging.memory import line, merge_in_memory
from runner.merging.open import open_models, open_source
from runner.merging.plan import Settings, make_plan
from runner.merging.sources import Models, StateDict
from runner.merging.target import Target
from tests.merging.models import LARGE, base_model, close, expert_of, experts_of, flat, write


def data_free(option: paths.Option) -> bool:
    """Strategies on tensors alone that keep the experts' shapes; tests/merging has the others (stacks, adapters)."""
    target = yaml.safe_load(option.path.read_text()).get("_target_")
    return target is not None and constant(target, "needs") == "weights" and not constant(target, "structure")


OPTIONS = [option for option in paths.options("merge") if data_free(option)]
BASE = base_model()
WIDE = base_model(LARGE)


@pytest.fixture(params=OPTIONS, ids=lambda option: option.name)
def option(request) -> paths.Option:
    return request.param


def make(option, **keys) -> Merge:
    return build(yaml.safe_load(option.path.read_text()) | keys)


def plain(option, **keys) -> Merge:
    """With the keys that drop nothing, scale nothing and change nothing beforehand."""
    merge = make(option)
    neutral = dict(merge.neutral) | ({"scale": 1.0} if isinstance(merge, TaskVectorMerge) else {})
    return make(option, **(neutral | {"pre": []} | keys))


def count(merge: Merge) -> int:
    return min(max(3, merge.experts_min), merge.experts_max or 3)


def models(merge: Merge, number: int | None = None, base=BASE) -> Models:
    return Models.in_memory(experts_of(base, number or count(merge)), base)


def test_it_says_whether_it_streams(option):
    assert option.notes["cost"].startswith("streams") == make(option).streams


def test_one_model_is_given_back(option):
    merge = plain(option)
    if "one" not in merge.identities:
        pytest.skip("not among its identities")
    merged = merge_in_memory(merge, models(merge, 1))
    close(merged.tensors, expert_of(BASE, 0))
    close(merged.for_task("a"), expert_of(BASE, 0))


def test_copies_of_one_model_give_that_model(option):
    merge = plain(option)
    if "identical" not in merge.identities:
        pytest.skip("not among its identities")
    number, same = count(merge), expert_of(BASE, 0)
    copies = Models.in_memory({str(t): same for t in range(number)}, BASE)
    choices = (None,) if "weights" in merge.ignores else (None, [1 / number] * number)
    found = [merge_in_memory(plain(option, weights=w), copies).tensors for w in choices]
    assert min(float((flat(f) - flat(same)).abs().max()) for f in found) < 1e-5  # a mean, or a sum with weights 1/T


def test_experts_without_a_change_give_the_base(option):
    merge = make(option)
    assert "base" in merge.identities
    still = Models.in_memory({chr(97 + t): BASE for t in range(count(merge))}, BASE)
    merged = merge_in_memory(merge, still)
    close(merged.tensors, BASE, atol=1e-6)
    close(merged.for_task("a"), BASE, atol=1e-6)


def test_the_order_of_experts_does_not_matter(option):
    merge = plain(option)
    if "permuted" not in merge.identities:
        pytest.skip("not among its identities")
    merge = make(option, pre=[])
    there = models(merge)
    back = Models(dict(reversed(there.experts.items())), there.base)
    first, second = merge_in_memory(merge, there), merge_in_memory(merge, back)
    close(first.tensors, second.tensors)
    close(first.for_task("a"), second.for_task("a"))


def test_what_is_added_to_everything_is_added_to_the_result(option):
    merge = make(option)
    if "shift" not in merge.identities:
        pytest.skip("not among its identities")
    generator = torch.Generator().manual_seed(5)
    shift = {n: torch.randint(-256, 257, t.shape, generator=generator) / 256 for n, t in BASE.items()}
    there = models(merge)
    moved = Models.in_memory(
        {e: {n: s.whole(n) + shift[n] for n in BASE} for e, s in there.experts.items()},
        {n: t + shift[n] for n, t in BASE.items()},
    )
    found = merge_in_memory(merge, moved).tensors
    close({n: found[n] - shift[n] for n in found}, merge_in_memory(merge, there).tensors)


def test_the_result_is_linear_in_scale(option):
    merge = make(option)
    if not isinstance(merge, TaskVectorMerge):
        pytest.skip("has no scale")
    there = models(merge)
    still = merge_in_memory(make(option, scale=0.0), there).tensors
    close(still, BASE, atol=0)
    twice = merge_in_memory(make(option, scale=2.0), there).tensors
    delta = line(merge, there)
    close(twice, {n: BASE[n] + 2.0 * delta[n] for n in BASE})


def test_inputs_are_left_alone(option):
    merge = make(option)
    there = models(merge)
    before = {e: {n: s.whole(n).clone() for n in BASE} for e, s in there.experts.items()}
    merge_in_memory(merge, there)
    for e, source in there.experts.items():
        assert all(torch.equal(source.whole(n), before[e][n]) for n in BASE)


def test_a_pattern_takes_its_tensors_out(option):
    merge = make(option, layers={"layers.0.*": 0.0})
    if not isinstance(merge, TaskVectorMerge) or merge.experts_max == 1:
        pytest.skip("weights of one expert, or of none")
    merged = merge_in_memory(merge, models(merge)).tensors
    assert torch.equal(merged["layers.0.attn.bias"], BASE["layers.0.attn.bias"]) or type(merge).__name__ in ("Pcb",)


def run(merge: Merge, there: Models, out: Path, shard_bytes: int = 10**9, threads: int = 2, **settings) -> Path:
    plan = make_plan(merge, there, Settings(**settings))
    target = Target(out, "x")
    record = stream.stream(
        merge, plan, target, shard_bytes=shard_bytes, threads=threads, budget=10**8, tell=lambda *_: None
    )
    write_json(target.folder / "merge.json", {"config": {"base": None}} | record)
    target.publish()
    return out


def on_disk(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return {name: found[name] for name in BASE}


def test_streaming_equals_merging_in_memory(option, tmp_path):
    merge = make(option)
    there = models(merge, base=WIDE)
    expected = merge_in_memory(merge, there)
    for e, source in there.experts.items():
        write(tmp_path / e, {n: source.whole(n) for n in WIDE}, shards=3)
    write(tmp_path / "base", WIDE)
    opened = open_models([str(tmp_path / e) for e in there.experts], str(tmp_path / "base"))
    single = run(merge, opened, tmp_path / "single")
    many = run(merge, opened, tmp_path / "many", shard_bytes=2000, threads=1)
    assert len(list(many.glob("*.safetensors"))) > 2
    close(on_disk(single), expected.tensors, atol=1e-6)
    assert all(torch.equal(on_disk(single)[n], on_disk(many)[n]) for n in WIDE)
    if merge.decoder:
        for folder in (single, many):
            restored = open_source(folder.with_name(f"{folder.name}@a"), "a", StateDict(WIDE))
            close({n: restored.whole(n) for n in WIDE}, expected.for_task("a"), atol=1e-6)
            part = restored.read("embed.weight", 1003, 5021)
            torch.testing.assert_close(part, expected.for_task("a")["embed.weight"].reshape(-1)[1003:5021])


def test_how_tensors_are_cut_does_not_matter(option, monkeypatch):
    merge = make(option)
    there = models(merge, base=WIDE)
    names = list(WIDE)
    results = []
    for piece in (GRAIN, 10 * GRAIN):
        work = engine_module.Engine(merge, there, names, piece=piece)
        if isinstance(merge, WholeModel):
            pytest.skip("merges whole models")
        work.prepare()
        out = {n: torch.empty(WIDE[n].numel()) for n in names}
        for p in work.pieces():
            merged = work.merged(p)
            out[p.name][p.start : p.stop] = getattr(merged, "shared", merged).reshape(-1)
        results.append(out)
    close(*results, atol=1e-6)


def test_half_precision_storage_is_computed_in_float32(option, tmp_path):
    merge, stored = make(option), torch.bfloat16
    base = {n: t.to(stored) for n, t in BASE.items()}
    experts = {e: {n: t.to(stored) for n, t in x.items()} for e, x in experts_of(BASE, count(merge)).items()}
    half = Models.in_memory(experts, base)
    wide = Models.in_memory(
        {e: {n: t.float() for n, t in x.items()} for e, x in experts.items()}, {n: t.float() for n, t in base.items()}
    )
    expected = merge_in_memory(merge, wide).tensors
    assert all(torch.equal(t, expected[n]) for n, t in merge_in_memory(merge, half).tensors.items())
    kept = on_disk(run(merge, half, tmp_path / "half"))
    assert all(kept[n].dtype == stored for n in BASE)
    for n in BASE:
        torch.testing.assert_close(kept[n], expected[n].to(stored), rtol=1e-2, atol=1e-6)


def test_it_reads_no_more_often_than_it_says(option, monkeypatch):
    monkeypatch.setattr(quantile, "_SAMPLE", 20000)
    read = {}

    class Counted(StateDict):
        def read(self, name, start=0, stop=None):
            values = super().read(name, start, stop)
            read[self.label] = read.get(self.label, 0) + values.numel()
            return values

    merge = make(option)
    if isinstance(merge, WholeModel):
        pytest.skip("holds whole models")
    there = models(merge, base=WIDE)
    counted = Models(
        {e: Counted({n: s.whole(n) for n in WIDE}, e) for e, s in there.experts.items()}, Counted(WIDE, "base")
    )
    merge_in_memory(merge, counted)
    total = sum(t.numel() for t in WIDE.values())
    assert max(read.values()) <= 1.35 * merge.passes() * total  # and samples


def test_what_it_found_is_plain(option):
    """States are written down with the result, and read again by a merge that was killed."""
    merge = make(option)
    if isinstance(merge, WholeModel):
        pytest.skip("holds whole models")
    there = models(merge)
    work = engine_module.Engine(merge, there, list(BASE))
    states = work.prepare()
    again = json.loads(json.dumps(states))
    other = engine_module.Engine(merge, there, list(BASE))
    other.prepare(again)
    piece = next(iter(work.pieces()))
    first, second = work.merged(piece), other.merged(piece)
    assert torch.equal(getattr(first, "shared", first), getattr(second, "shared", second))


def test_files_open_with_other_tools(option, tmp_path):
    merge = make(option)
    out = run(merge, models(merge), tmp_path / "out")
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(BASE)
