"""Broken models and wrong settings of `runner merge`: one clear message each, nothing written, nothing overwritten."""

from __future__ import annotations

import contextlib
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from runner.cli import merge as verb
from runner.cli.main import main
from runner.errors import EXIT_USER, UserError
from runner.merging import stream, worker

SHAPES = {"embed.weight": (10, 4), "layer.weight": (4, 4), "layer.bias": (4,), "norm.running_mean": (4,)}
ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["layer"]}


def model(seed: int = 0, **shapes) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {n: torch.randn(s, generator=generator) for n, s in (SHAPES | shapes).items()}
    return found | {"norm.num_batches_tracked": torch.tensor(3)}


def put(folder: str, tensors: dict[str, torch.Tensor], **config) -> Path:
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"model_type": "toy", "vocab_size": 10} | config))
    return path


def put_shards(folder: str, files: dict[str, dict[str, torch.Tensor]], weight_map=None) -> None:
    path = Path(folder)
    path.mkdir()
    for name, tensors in files.items():
        save_file(tensors, path / name)
    weight_map = weight_map or {t: name for name, tensors in files.items() for t in tensors}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def damage(folder: str, change: Callable[[bytes], bytes]) -> None:
    file = put(folder, model()) / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))


def header(entries: dict) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + b"\0" * 64


def entry(**changes) -> dict:
    return {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes}


def nan(tensors: dict[str, torch.Tensor], value: float = float("nan")) -> dict[str, torch.Tensor]:
    tensors["layer.weight"][1, 2] = value
    return tensors


def adapter(folder: str, tensors: dict[str, torch.Tensor] | None = None, **config) -> None:
    path = Path(folder)
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps(ADAPTER | config))
    prefix = "base_model.model.layer"
    tensors = tensors or {f"{prefix}.lora_A.weight": torch.ones(2, 4), f"{prefix}.lora_B.weight": torch.ones(4, 2)}
    save_file(tensors, path / "adapter_model.safetensors")


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil"),))


def cut(data: bytes) -> bytes:
    return data[:-20]


TA, AVERAGE = ["merge=task_arithmetic", "base=base"], ["merge=average"]
LORA = "base_model.model."

# name → (what makes it, the command line after "merge", words of the message)
CASES: dict[str, tuple[Callable[[], object], list[str], tuple[str, ...]]] = {
    # command line and places
    "no strategy": (lambda: 0, ["models=[a,b]", "out=out"], ("no strategy is chosen", "runner ls merge")),
    "strategy": (lambda: 0, ["merge=tise", "models=[a]", "out=out"], ("did you mean 'ties'?",)),
    "no models": (lambda: 0, [*AVERAGE, "out=out"], ("missing value for 'models'",)),
    "empty models": (lambda: 0, [*AVERAGE, "models=[]", "out=out"], ("'models' is empty",)),
    "one model as text": (lambda: 0, [*AVERAGE, "models=a", "out=out"], ("list of texts", "'models=[a]'")),
    "no out": (lambda: 0, [*AVERAGE, "models=[a,b]"], ("missing value for 'out'",)),
    "unknown key": (lambda: 0, [*AVERAGE, "models=[a]", "out=out", "outt=x"], ("did you mean 'out'?",)),
    "unknown key of the strategy": (
        lambda: 0,
        [*TA, "models=[a]", "out=out", "merge.scal=1"],
        ("did you mean 'merge.scale'?",),
    ),
    "wrong value": (
        lambda: 0,
        ["merge=ties", "base=base", "models=[a]", "out=out", "merge.density=20"],
        ("from 0 to 1",),
    ),
    "several at once": (lambda: 0, ["-m", *AVERAGE, "models=[a]", "out=out"], ("without -m",)),
    "mistyped flag": (
        lambda: 0,
        [*AVERAGE, "models=[a]", "out=out", "--dryrun"],
        ("unknown flag '--dryrun'", "did you mean '--dry-run'?"),
    ),
    "no such model": (lambda: 0, [*AVERAGE, "models=[a,nowhere]", "out=out"], ("no model at", "nowhere")),
    "no such base": (lambda: 0, [*TA, "base=nowhere", "models=[a]", "out=out"], ("base: there is no model",)),
    "same model twice": (lambda: 0, [*AVERAGE, "models=[a,b,./a]", "out=out"], ("stands there twice", "merge.weights")),
    "base among the models": (lambda: 0, [*TA, "models=[a,base]", "out=out"], ("task vector is zero",)),
    "no base": (lambda: 0, ["merge=ties", "models=[a,b]", "out=out"], ("needs the base", "base=DIR")),
    "base that nobody reads": (
        lambda: 0,
        ["merge=rebasin", "base=base", "models=[a,b]", "out=out"],
        ("'ReBasin' reads no base",),
    ),
    "strategy that needs data": (lambda: 0, ["merge=fisher", "models=[a,b]", "out=out"], ("'Fisher' needs data",)),
    "rounds without tuning": (
        lambda: 0,
        [*AVERAGE, "models=[a,b]", "merge.rounds=2", "out=out"],
        ("alternates tuning and merging",),
    ),
    "key that means nothing": (
        lambda: 0,
        ["merge=slerp", "models=[a,b]", "merge.weights=[1,2]", "out=out"],
        ("means nothing to Slerp",),
    ),
    "out exists": (lambda: put("out", model()), [*AVERAGE, "models=[a,b]", "out=out"], ("exists already",)),
    "out is a file": (lambda: Path("out").write_text("x"), [*AVERAGE, "models=[a,b]", "out=out"], ("is a file",)),
    "one model without brackets": (lambda: 0, [*AVERAGE, "models=a", "out=out"], ("'models=[a]'",)),
    "out in an input": (lambda: 0, [*AVERAGE, "models=[a,b]", "out=a/merged"], ("lies in an input",)),
    "names": (lambda: 0, [*AVERAGE, "models=[a,b]", "names=[x]", "out=out"], ("1 names for 2 models",)),
    "names with a slash": (lambda: 0, [*AVERAGE, "models=[a]", "names=[x/y]", "out=out"], ("plain words",)),
    "weights": (lambda: 0, [*AVERAGE, "models=[a,b]", "merge.weights=[1]", "out=out"], ("1 values for 2 experts",)),
    "too many models": (lambda: 0, ["merge=slerp", "models=[a,b,base]", "out=out"], ("takes 2 experts at most",)),
    "statistics without data": (
        lambda: 0,
        [*AVERAGE, "models=[a,b]", "batchnorm=reestimate", "out=out"],
        ("needs data",),
    ),
    "pattern without a tensor": (lambda: 0, [*TA, "models=[a]", "exclude=['x.*']", "out=out"], ("no tensor is named",)),
    "nothing left": (lambda: 0, [*TA, "models=[a]", "exclude=['*']", "out=out"], ("nothing is left to merge",)),
    "layers without a tensor": (
        lambda: 0,
        [*TA, "models=[a]", "merge.layers={x.*: 2}", "out=out"],
        ("no merged tensor is named",),
    ),
    # folders and files
    "no weights": (lambda: Path("bad").mkdir(), [*AVERAGE, "models=[a,bad]", "out=out"], ("holds no weights",)),
    "no model file": (
        lambda: Path("bad.txt").write_text("x"),
        [*AVERAGE, "models=[a,bad.txt]", "out=out"],
        ("is no model file",),
    ),
    "several files, no index": (
        lambda: (
            [save_file(model(), put("bad", model()) / f"{n}.safetensors") for n in "xy"]
            and Path("bad/model.safetensors").unlink()
        ),
        [*AVERAGE, "models=[a,bad]", "out=out"],
        ("no index that joins them",),
    ),
    "missing shard": (
        lambda: put_shards(
            "bad", {"one.safetensors": {"w": torch.ones(2)}}, {"w": "one.safetensors", "v": "two.safetensors"}
        ),
        [*AVERAGE, "models=[a,bad]", "out=out"],
        ("1 of 2 shards are missing", "two.safetensors"),
    ),
    "index names a missing tensor": (
        lambda: put_shards(
            "bad", {"one.safetensors": {"w": torch.ones(2)}}, {"w": "one.safetensors", "v": "one.safetensors"}
        ),
        [*AVERAGE, "models=[a,bad]", "out=out"],
        ("not in their files: v",),
    ),
    "index names another folder": (
        lambda: put_shards("bad", {}, {"w": "../a/model.safetensors"}),
        [*AVERAGE, "models=[a,bad]", "out=out"],
        ("outside its folder",),
    ),
    "torn index": (
        lambda: (put("bad", model()) / "model.safetensors.index.json").write_text("{"),
        [*AVERAGE, "models=[a,bad]", "out=out"],
        ("the index cannot be read",),
    ),
    "cut off": (lambda: damage("bad", cut), [*AVERAGE, "models=[a,bad]", "out=out"], ("is cut off", "20 of")),
    "empty file": (
        lambda: damage("bad", lambda _: b""),
        [*AVERAGE, "models=[a,bad]", "out=out"],
        ("not a safetensors",),
    ),
    "no safetensors": (
        lambda: damage("bad", lambda _: b"<!DOCTYPE html>" * 9),
        [*AVERAGE, "models=[a,bad]", "out=out"],
        ("not a safetensors file",),
    ),
    "torn header": (
        lambda: damage("bad", lambda d: d[:8] + b"x" + d[9:]),
        [*AVERAGE, "models=[a,bad]", "out=out"],
        ("the header",),
    ),
    "size that cannot be": (
        lambda: damage("bad", lambda _: header(entry(data_offsets=[0, 12]))),
        [*AVERAGE, "models=[a,bad]", "out=out"],
        ("should take 16 bytes, not 12",),
    ),
    "unknown type": (
        lambda: damage("bad", lambda _: header(entry(dtype="F4"))),
        [*AVERAGE, "models=[a,bad]", "out=out"],
        ("of type F4",),
    ),
    "unsound entry": (
        lambda: damage("bad", lambda _: header({"w": 3})),
        [*AVERAGE, "models=[a,bad]", "out=out"],
        ("nothing sound about tensor 'w'",),
    ),
    "pickle that runs code": (
        lambda: torch.save({"w": Evil()}, "bad.pt"),
        [*AVERAGE, "models=[a,bad.pt]", "out=out"],
        ("holds more than tensors",),
    ),
    "torch file without weights": (
        lambda: torch.save({"epoch": 3}, "bad.pt"),
        [*AVERAGE, "models=[a,bad.pt]", "out=out"],
        ("holds no state dict",),
    ),
    "cut torch file": (
        lambda: torch.save(model(), "bad.pt") or Path("bad.pt").write_bytes(Path("bad.pt").read_bytes()[:200]),
        [*AVERAGE, "models=[a,bad.pt]", "out=out"],
        ("is damaged",),
    ),
    # tensors that do not fit
    "other shapes": (
        lambda: put("bad", model(**{"layer.weight": (5, 4), "layer.bias": (5,)})),
        [*TA, "models=[a,bad]", "out=out"],
        ("'layer.weight' is [5, 4] in bad and [4, 4] in base", "'layer.bias' is [5] in bad"),
    ),
    "missing tensors": (
        lambda: put("bad", {n: t for n, t in model().items() if "bias" not in n}),
        [*TA, "models=[a,bad]", "out=out"],
        ("bad lacks 1 tensors", "exclude=[layer.*]"),
    ),
    "extra tensors": (
        lambda: put("bad", model(**{"head.weight": (2, 4)})),
        [*TA, "models=[a,bad]", "out=out"],
        ("bad has 1 tensors that base lacks: head.weight", "exclude=[head.*]"),
    ),
    "NaN": (
        lambda: put("bad", nan(model())),
        [*TA, "models=[a,bad]", "out=out"],
        ("bad: 'layer.weight' holds 1 values",),
    ),
    "infinity where signs are elected": (
        lambda: put("bad", nan(model(), float("inf"))),
        ["merge=ties", "base=base", "models=[a,bad]", "out=out"],
        ("bad: 'layer.weight' holds 1 values that are NaN or infinite",),
    ),
    "quantised weights": (
        lambda: put("bad", model() | {"layer.weight": torch.ones(4, 4, dtype=torch.int8)}),
        [*TA, "models=[a,bad]", "out=out"],
        ("stored as I8 in bad",),
    ),
    "another vocabulary": (
        lambda: put("bad", model(**{"embed.weight": (12, 4)}), vocab_size=12),
        [*TA, "models=[a,bad]", "out=out"],
        ("'embed.weight' is [12, 4]", "embed=union"),
    ),
    "vocabularies without tokenizers": (
        lambda: put("bad", model(**{"embed.weight": (12, 4)}), vocab_size=12),
        [*TA, "models=[a,bad]", "embed=union", "out=out"],
        ("has no tokenizer.json", "embed=base"),
    ),
    "another kind of model": (
        lambda: put("bad", model(), model_type="other"),
        [*TA, "models=[a,bad]", "out=out"],
        ("different kinds", "bad: other"),
    ),
    # adapters and per-task results
    "adapter without base": (
        lambda: adapter("bad"),
        [*AVERAGE, "models=[bad]", "out=out"],
        ("needs the model it was",),
    ),
    "adapter of another kind": (
        lambda: adapter("bad", peft_type="IA3"),
        [*TA, "models=[bad]", "out=out"],
        ("adapter of kind IA3",),
    ),
    "DoRA": (lambda: adapter("bad", use_dora=True), [*TA, "models=[bad]", "out=out"], ("DoRA", "merge_and_unload")),
    "adapter of another base": (
        lambda: adapter(
            "bad", {f"{LORA}x.lora_A.weight": torch.ones(2, 4), f"{LORA}x.lora_B.weight": torch.ones(4, 2)}
        ),
        [*TA, "models=[bad]", "out=out"],
        ("the base has no 'x.weight'",),
    ),
    "adapter of another size": (
        lambda: adapter(
            "bad", {f"{LORA}layer.lora_A.weight": torch.ones(2, 5), f"{LORA}layer.lora_B.weight": torch.ones(4, 2)}
        ),
        [*TA, "models=[bad]", "out=out"],
        ("changes a weight of [4, 5], the base's is [4, 4]",),
    ),
    "half an adapter": (
        lambda: adapter("bad", {f"{LORA}layer.lora_A.weight": torch.ones(2, 4)}),
        [*TA, "models=[bad]", "out=out"],
        ("but no base_model.model.layer.lora_B.weight",),
    ),
    "task of a plain model": (lambda: 0, [*AVERAGE, "models=[a@x]", "out=out"], ("stores tasks",)),
    # mergekit files
    "no mergekit file": (lambda: 0, ["--from", "nowhere.yml", "out=out"], ("nowhere.yml",)),
    "unknown mergekit method": (
        lambda: Path("m.yml").write_text("merge_method: magic\nmodels: [{model: a}]\n"),
        ["--from", "m.yml", "out=out"],
        ("magic", "merge_method"),
    ),
}


@pytest.fixture(autouse=True)
def _models() -> None:
    for seed, name in enumerate(("base", "a", "b")):
        put(name, model(seed))


@pytest.fixture(autouse=True)
def _worker_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing torch once instead of sixty times; `test_merge.py` starts real workers."""

    def work(config: dict, child: None) -> int:
        config = json.loads(json.dumps(config))
        try:
            return worker.run(config)
        except UserError as error:
            import sys

            print(error, file=sys.stderr)
            return error.exit_code

    monkeypatch.setattr(verb, "start", lambda dry: None)
    monkeypatch.setattr(verb, "work", work)


def snapshot() -> dict[str, bytes]:
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in sorted(Path().rglob("*"))}


def answer(arguments: list[str]) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["merge", *arguments])
    return code, err.getvalue()


def test_there_are_enough():
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", CASES)
def test_it_says_what_is_wrong_and_writes_nothing(name):
    prepare, arguments, words = CASES[name]
    prepare()
    before = snapshot()
    code, told = answer(arguments)
    assert code == EXIT_USER, told
    for word in words:
        assert word in told, told
    assert told.startswith("error: ")
    for noise in ("traceback", "hydra_full_error", "omegaconf", "exception", "torch.load"):
        assert noise not in told.lower(), told
    for block in told.strip().split("error: ")[1:]:
        assert len(block.strip().splitlines()) <= 3, told
    assert snapshot() == before


def test_everything_that_does_not_fit_is_said_at_once():
    put("bad", model(**{"layer.weight": (5, 4), "layer.bias": (5,), "head.weight": (2, 4), "head.bias": (2,)}))
    code, told = answer([*TA, "models=[a,bad]", "exclude=['nowhere']", "merge.weights=[1]", "out=out"])
    assert code == EXIT_USER
    assert told.count("error: ") == 5


def test_a_full_disk(monkeypatch):
    usage = stream.shutil.disk_usage(".")
    monkeypatch.setattr(stream.shutil, "disk_usage", lambda _: usage._replace(free=100))
    before = snapshot()
    code, told = answer([*AVERAGE, "models=[a,b]", "out=out"])
    assert code == EXIT_USER
    assert "needs 16.8 MB" in told and "100 B are free" in told  # a little is left to everybody else
    assert snapshot() == before


def test_a_disk_that_fills_up_meanwhile(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runner.merging.writer.os.pwrite", full)
    code, told = answer([*AVERAGE, "models=[a,b]", "out=out"])
    assert code == 1
    assert "is full" in told
    assert not Path("out").exists()


@pytest.mark.parametrize("where", ["writer.os.pwrite", "writer.SafetensorsWriter.finish"])
def test_a_write_that_fails_otherwise(monkeypatch, where):
    def broken(*_):
        raise OSError(27, "File too large")

    with monkeypatch.context() as patch:
        patch.setattr(f"runner.merging.{where}", broken)
        code, told = answer([*AVERAGE, "models=[a,b]", "out=out"])
    assert code == 1
    assert "'out' cannot be written: File too large" in told.replace(str(Path.cwd()) + "/", "")
    assert not Path("out").exists()
    code, told = answer([*AVERAGE, "models=[a,b]", "out=out"])
    assert code == 0, told


def test_a_place_that_cannot_be_written():
    Path("file").write_text("x")
    code, told = answer([*AVERAGE, "models=[a,b]", "out=file/below/out"])
    assert code == EXIT_USER
    assert "cannot be written" in told
