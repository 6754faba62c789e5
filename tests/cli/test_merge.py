"""`runner merge` as a user runs it: results, plans, kills, mergekit files."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from runner.cli.main import main
from runner.cli.merge import work
from runner.cli.mergekit import overrides_from
from runner.config.compose import compose
from runner.config.freeze import finalize_merge
from runner.config.paths import config_root, options
from runner.config.schema import MergeKeys, merge_defaults
from runner.errors import UserError
from runner.merging import stream, worker
from runner.merging.memory import merge_in_memory
from runner.merging.rules.task_arithmetic import TaskArithmetic
from runner.merging.sources import Models
from runner.merging.target import Target
from tests.merging.models import base_model, close, experts_of, write
from tests.support import environment, runner

BASE = base_model()


@pytest.fixture
def models() -> Models:
    experts = experts_of(BASE, 3)
    write(Path("base"), BASE, shards=2)
    for name, tensors in experts.items():
        write(Path(name), tensors)
    return Models.in_memory(experts, BASE)


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        found |= load_file(file)
    return {name: found[name] for name in BASE}


def test_a_merge_from_the_shell(models, capsys):
    line = ["merge", "merge=task_arithmetic", "base=base", "models=[a,b,c]", "out=out/merged"]
    plan = runner(*line, "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert "3: a, b, c" in plan.stdout and "every input once" in plan.stdout and "GB free" in plan.stdout
    assert not Path("out").exists()
    done = runner(*line)
    assert done.returncode == 0, done.stderr
    assert "merged" in done.stdout and re.search(r"out/merged: [\d.]+ kB in", done.stdout)
    close(weights("out/merged"), merge_in_memory(TaskArithmetic(), models).tensors, atol=1e-6)
    assert sorted(p.name for p in Path("out").iterdir()) == ["merged"]
    record = json.loads(Path("out/merged/merge.json").read_text())
    assert record["config"]["merge"]["scale"] == 0.3
    assert record["tensors"] == {"merge": len(BASE), "average": 0, "copy": 0}
    assert (Path("out/merged/config.json")).read_text() == Path("base/config.json").read_text()
    before = {p: p.stat().st_mtime_ns for p in Path("out/merged").iterdir()}
    config = finalize_merge(compose("merge", line[1:]))
    assert worker.run(config) == 0
    assert "done already" in capsys.readouterr().out
    config["merge"]["scale"] = 0.5
    with pytest.raises(UserError, match="exists already"):
        worker.run(config)
    assert {p: p.stat().st_mtime_ns for p in Path("out/merged").iterdir()} == before


def test_it_does_not_import_torch_in_the_front(models):
    code = "import sys\nfrom runner.cli.main import main\nmain(sys.argv[1:])\nprint('torch' in sys.modules)"
    line = ["merge", "merge=ties", "base=base", "models=[a,nowhere]", "out=out"]
    done = subprocess.run([sys.executable, "-c", code, *line], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_keys_of_the_schema_are_those_of_the_file():
    content = finalize_merge_keys()
    assert content == {**merge_defaults(), "models": "???", "out": "???"}
    assert set(content) == set(MergeKeys.__dataclass_fields__)


def finalize_merge_keys() -> dict:
    plain = yaml.safe_load((config_root() / "merge.yaml").read_text())
    return {k: v for k, v in plain.items() if k not in ("defaults", "hydra")}


# ---- kills ---------------------------------------------------------------------------------------------------------


def run_until(models: Models, stop_after: int, shard_bytes: int, out: Path, strategy) -> dict[str, int]:
    """Stream, and raise once so many tensors were put; returns how often each shard was begun."""
    from runner.merging.plan import Settings, make_plan
    from runner.merging.writer import SafetensorsWriter

    begun: dict[str, int] = {}
    puts = [0]
    real_put, real_init = SafetensorsWriter.put, SafetensorsWriter.__init__

    def put(self, *arguments):
        puts[0] += 1
        if puts[0] > stop_after:
            raise KeyboardInterrupt
        return real_put(self, *arguments)

    def init(self, path, *arguments):
        begun[path.name] = begun.get(path.name, 0) + 1
        real_init(self, path, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SafetensorsWriter, "put", put)
        patch.setattr(SafetensorsWriter, "__init__", init)
        plan = make_plan(strategy, models, Settings())
        target = Target(out, "same")
        try:
            stream.stream(
                strategy, plan, target, shard_bytes=shard_bytes, threads=1, budget=10**8, tell=lambda *_: None
            )
            target.publish()
        finally:
            target.close()
    return begun


def test_a_stopped_merge_goes_on_after_its_whole_shards(models):
    from runner.merging.rules.ties import Ties

    looks = []

    class Watched(Ties):
        def survey(self, look):
            looks.append(1)
            return super().survey(look)

    with pytest.raises(KeyboardInterrupt):
        run_until(models, 3, 600, Path("out"), Watched())
    assert not Path("out").exists()
    left = sorted(p.name for p in Path(".out.merging").glob("*.safetensors"))
    assert left and not any(p.name.endswith(".part") for p in Path(".out.merging").glob("*"))
    begun = run_until(models, 10**6, 600, Path("out"), Watched())
    assert not set(begun) & set(left)  # whole shards are not written again
    assert len(looks) == 1  # nor is everything looked at again
    close(weights("out"), merge_in_memory(Ties(), models).tensors, atol=1e-6)
    assert not Path(".out.merging").exists()


def test_another_merge_does_not_go_on_with_what_was_left(models):
    with pytest.raises(KeyboardInterrupt):
        run_until(models, 3, 600, Path("out"), TaskArithmetic())
    target = Target(Path("out"), "other")
    assert not target.resumed
    assert not list(Path(".out.merging").glob("*.safetensors"))
    target.give_up()


def test_two_processes_do_not_merge_into_one_place():
    first = Target(Path("out"), "x")
    with pytest.raises(UserError, match="another process"):
        Target(Path("out"), "x")
    first.give_up()
    assert not Path(".out.merging").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_at_any_moment_the_same_command_ends_with_the_same_model(number):
    """Kills land before, in and after the shards; the result is bit for bit that of an undisturbed merge."""
    for name, seed in (("base", 0), ("a", 1), ("b", 2)):
        generator = torch.Generator().manual_seed(seed)
        write(Path(name), {f"h.{n}.w": torch.randn(1000, 1500, generator=generator) for n in range(16)})
    line = ["merge", "merge=ties", "base=base", "models=[a,b]", "shard_size=0.012", "threads=1"]
    done = runner(*line, "out=whole")
    assert done.returncode == 0, done.stderr
    for attempt in range(12):
        child = subprocess.Popen(
            [sys.executable, "-m", "runner", *line, "out=out"],
            env=environment(),
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        time.sleep(2.0 + 0.4 * attempt)
        finished = child.poll() is not None
        if not finished:
            if number == signal.SIGKILL:
                os.killpg(child.pid, number)
            else:
                child.send_signal(number)
        child.communicate(timeout=60)
        if finished:
            break
        if Path("out").exists():  # whole, as the end shows: the signal may have come after the rename
            break
        time.sleep(0.5)  # the worker of a killed front end dies of its parent's death
    again = runner(*line, "out=out")
    assert again.returncode == 0, again.stderr
    for file in Path("whole").glob("*.safetensors"):
        assert file.read_bytes() == (Path("out") / file.name).read_bytes()


# ---- mergekit ------------------------------------------------------------------------------------------------------


def frozen(text: str) -> dict:
    Path("m.yml").write_text(text)
    return finalize_merge(compose("merge", [*overrides_from("m.yml"), "out=out"]))


HEAD = """models:
  - {model: a, parameters: {weight: 0.7, density: 0.5}}
  - {model: b, parameters: {weight: 0.3, density: 0.5}}
"""


@pytest.mark.parametrize(
    ("text", "strategy", "keys"),
    [
        ("merge_method: linear\n" + HEAD, "weighted", {"weights": [0.7, 0.3], "normalize": True}),
        (
            "merge_method: task_arithmetic\nbase_model: base\nparameters: {lambda: 0.8}\n" + HEAD,
            "task_arithmetic",
            {"weights": [0.7, 0.3], "scale": 0.8},
        ),
        (
            "merge_method: ties\nbase_model: base\nparameters: {normalize: true}\n" + HEAD,
            "ties",
            {"density": 0.5, "scope": "tensor", "aggregate": "mean", "scale": 1.0},
        ),
        ("merge_method: ties\nbase_model: base\nparameters: {normalize: false}\n" + HEAD, "ties", {"aggregate": "sum"}),
        (
            "merge_method: dare_ties\nbase_model: base\n" + HEAD,
            "dare_ties",
            {
                "pre": {
                    "drop": {"_target_": "runner.merging.transforms.drop.Dare", "rate": 0.5, "rescale": True, "seed": 0}
                }
            },
        ),
        ("merge_method: model_stock\nbase_model: base\nmodels: [{model: a}, {model: b}]\n", "model_stock", {}),
        (
            "merge_method: slerp\nbase_model: a\nmodels: [{model: b}, {model: a}]\nparameters: {t: 0.25}\n",
            "slerp",
            {"t": 0.25},
        ),
        (
            "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 2]}]}, "
            "{sources: [{model: b, layer_range: [1, 3]}]}]\n",
            "passthrough",
            {"slices": [{"model": 0, "layers": [0, 2]}, {"model": 1, "layers": [1, 3]}]},
        ),
    ],
)
def test_mergekit_files(models, text, strategy, keys):
    config = frozen(text)
    option = next(o for o in options("merge") if o.name == strategy)
    assert config["merge"]["_target_"] in option.path.read_text()
    assert {k: config["merge"][k] for k in keys} == keys
    assert [Path(m).name for m in config["models"]] == ["a", "b"]


def test_mergekit_gradients_become_patterns(models):
    config = frozen(
        "merge_method: slerp\nbase_model: a\n"
        "slices: [{sources: [{model: a, layer_range: [0, 3]}, {model: b, layer_range: [0, 3]}]}]\n"
        "parameters: {t: [{filter: attn, value: [0, 0.5, 1]}, {value: 0.3}]}\ndtype: bfloat16\n"
    )
    assert config["merge"]["t"] == 0.3
    assert config["dtype"] == "bfloat16"
    worker.run(json.loads(json.dumps(config)))
    found, a, b = weights("out"), weights("a"), weights("b")
    assert torch.equal(found["layers.0.attn.weight"], a["layers.0.attn.weight"].bfloat16())
    assert not torch.equal(found["layers.1.norm.weight"], a["layers.1.norm.weight"].bfloat16())
    assert not torch.equal(found["layers.1.norm.weight"], b["layers.1.norm.weight"].bfloat16())


LAYERS = (
    "slices:\n  - sources:\n    - {model: a, layer_range: [0, 2], parameters: {weight: [0, 1], density: [1, 0.5]}}\n"
)
LAYERS += "    - model: b\n      layer_range: [0, 2]\n      parameters:\n        density: 0.25\n"
LAYERS += "        weight: [{filter: attn, value: 0.5}, {value: [1, 0]}]\n"


def test_mergekit_values_by_model_layer_and_name(models):
    """Weight and density of its manual's first example: gradients, filters, a density per model."""
    config = frozen(
        f"merge_method: ties\nbase_model: base\n{LAYERS}    parameters: {{normalize: false}}\n".replace("\n", "\r\n")
    )
    assert config["merge"]["aggregate"] == "sum"
    worker.run(json.loads(json.dumps(config)))
    found, base, a, b = (weights(name) for name in ("out", "base", "a", "b"))
    last = max(int(name.split(".")[1]) for name in base if name.startswith("layers."))
    for name, origin in base.items():
        layer = int(name.split(".")[1]) if name.startswith("layers.") else None
        spot = 0.0 if "embed" in name or layer == 0 else 1.0
        if layer not in (None, 0, 1) or not origin.is_floating_point():
            continue  # layers that the file does not speak of
        total = torch.zeros_like(origin)
        kept = []
        weight = [spot, 0.5 if "attn" in name else 1.0 - spot]
        for values, density in ((a[name], 1.0 - 0.5 * spot), (b[name], 0.25)):
            tau = values - origin
            bar = tau.abs().flatten().sort(descending=True).values[max(round(density * tau.numel()), 1) - 1]
            kept.append(torch.where(tau.abs() >= bar, tau, 0.0))
        total = sum(w * tau for w, tau in zip(weight, kept, strict=True))
        agrees = [tau.sign() * (1 if w >= 0 else -1) == total.sign() for w, tau in zip(weight, kept, strict=True)]
        wanted = origin + sum(w * tau * agree for w, tau, agree in zip(weight, kept, agrees, strict=True))
        torch.testing.assert_close(found[name], wanted, atol=1e-6, rtol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    assert last >= 1


def test_what_mergekit_files_ask_for_in_vain_is_said_at_once(models, capsys):
    Path("m.yml").write_text(
        "merge_method: ties\nbase_model: base\nmystery: 1\ndtype: int8\ntokenizer_source: model:x\n"
        "parameters: {lambda: [0.1, 1], wieght: 2}\n"
        "models: [{model: a, parameters: {density: [0.5, 1]}}, {model: b, parametres: {density: 0.7}}]\n"
    )
    assert main(["merge", "--from", "m.yml", "out=out"]) == 2
    told = capsys.readouterr().err
    for words in (
        "'mystery'", "dtype: int8", "tokenizer_source: model:x", "lambda that depends", "density as a gradient",
        "'wieght' is not known here", "a model: parametres",
    ):  # fmt: skip
        assert words in told


@pytest.mark.parametrize(("number", "words"), [(signal.SIGBUS, "an input became shorter"), (signal.SIGKILL, "memory")])
def test_a_worker_that_dies_without_a_word(capfd, number, words):
    """Inputs are mapped: who cuts one off while it is read gives the worker a SIGBUS."""
    code = f"import os, sys; sys.stdin.read(); os.kill(os.getpid(), {int(number)})"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert work({}, child) == 1
    told = capfd.readouterr().err
    assert f"signal {number.name}: {words}" in told and "files that are whole are kept" in told
