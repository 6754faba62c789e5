"""Runs whose weights and data come from a hub on the loopback interface."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import ViTForImageClassification

from runner.backbones.vit import ViT
from runner.mixtures.tokenizer import WordPiece
from tests.backbones.samples import SPECS
from tests.hub import Hub, serve
from tests.mixtures.archives import rooms, write_nyuv2_hub
from tests.mixtures.hub_copies import write_like
from tests.support import TINY, environment, runner

SHORT = [*TINY, "mixture.train=16", "backbone=vit", "trainer.max_steps=2", "trainer.eval_every=2"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    config = ViT(SPECS["image"], size="tiny").trunk.config
    config.image_size = 64
    ViTForImageClassification(config).save_pretrained(root / "vit")
    write_nyuv2_hub(root / "nyuv2", rooms(6), rooms(4, 6))
    digits = {"mnist": {"path": "mnist", "labels": {"mnist": "label"}}}
    write_like(root, digits, {"mnist": {"num_classes": 10}})
    parts = {"cola": {"path": "glue/cola", "text": "sentence", "labels": {"cola": "label"}}}
    parts["rte"] = {"path": "glue/rte", "text": ["sentence1", "sentence2"], "labels": {"rte": "label"}}
    write_like(root, parts, {"cola": {"num_classes": 2}, "rte": {"num_classes": 2}}, rows=24)
    configs = "".join(
        f"- config_name: {part}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {part}/{name}*\n" for split, name in SPLITS.items())
        for part in parts
    )
    (root / "glue" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    with serve() as server:
        server.model("someone/vit", root / "vit")
        server.dataset("tanganke/nyuv2", root / "nyuv2")
        server.dataset("ylecun/mnist", root / "mnist")
        server.dataset("nyu-mll/glue", root / "glue")
        server.dataset("someone/gated", root / "mnist", gated=True)
        yield server


SPLITS = {"train": "train", "validation": "test"}
"""Split of the hub's GLUE → file: its test has no labels."""


def fails(hub: Hub, home: Path, *arguments: str, code: int = 2) -> str:
    done = runner(*arguments, **hub.environment(home))
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def works(hub: Hub, home: Path, *arguments: str, **extra: str) -> str:
    done = runner(*arguments, **(hub.environment(home) | extra))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def size(hub: Hub, name: str, file: str) -> int:
    return (hub.repositories["models", name].folder / file).stat().st_size


@pytest.mark.slow
def test_ranks_and_jobs_download_one_checkpoint_once(hub, tmp_path):
    run = ["train", *SHORT, "backbone.pretrained=someone/vit", f"output_dir={tmp_path / 'out'}"]
    hub.sent.clear()
    works(hub, tmp_path / "one", *run, "launch.num_processes=2")
    assert hub.sent["model.safetensors"] == size(hub, "someone/vit", "model.safetensors")
    hub.sent.clear()
    said = works(hub, tmp_path / "two", *run, "-m", "seed=1,2", "launch.jobs=2")
    assert "all 2 jobs are done" in said
    assert hub.sent["model.safetensors"] == size(hub, "someone/vit", "model.safetensors")


@pytest.mark.slow
def test_a_missing_checkpoint_is_named_in_every_job(hub, tmp_path):
    run = ["train", "-m", *SHORT, "backbone.pretrained=someone/nope", f"output_dir={tmp_path}"]
    said = fails(hub, tmp_path, *run, "seed=1,2", "launch.jobs=2", code=1)
    assert said.count("someone/nope: neither a local directory nor a repository on the Hugging Face hub") >= 2, said


CHILD = """
import json, sys
from runner.config.build import build
from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.errors import UserError

for line in json.loads(sys.argv[1]):
    config = finalize(compose("train", line), data=False)
    mixture = build(config["mixture"], config["data_root"], where="mixture")
    try:
        assert mixture.check() == []
        mixture.setup(None)
        print(json.dumps({name: len(data) for name, data in mixture.datasets("test").items()}))
    except UserError as error:
        print(json.dumps(str(error)))
"""
"""Opens the data of one run after the other."""


def opened(lines: list[list[str]], environ: dict[str, str]) -> list[Any]:
    command = [sys.executable, "-c", CHILD, json.dumps(lines)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**environ), timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_data_of_the_hub(hub, tmp_path):
    WordPiece(["one two red blue"], vocab_size=40, lowercase=True, max_length=16).save(tmp_path / "words")
    place = f"data_root={tmp_path}"
    nyu = ["mixture=nyuv2_hub", "mixture.validation=2", "backbone=resnet", place]
    glue = ["mixture=glue8", "tasks=[cola,rte]", "backbone=bert", f"mixture.tokenizer={tmp_path / 'words'}", place]
    glue += ["mixture.hub=true"]
    digits = ["mixture=images", "tasks=[mnist]", "mixture.hub=true", "backbone=lenet", place]
    online = hub.environment(tmp_path / "home")
    gated = [*digits, "mixture.sources.mnist.hub=someone/gated"]
    moved = [*digits, "+mixture.sources.mnist.revision=v9"]
    found = opened([nyu, glue, gated, moved], online)
    assert found[:2] == [{"nyuv2_hub": 4}, {"cola": 24, "rte": 24}]
    assert "'someone/gated' is a gated dataset" in found[2] and "Revision 'v9' doesn't exist" in found[3]

    away = online | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    assert opened([nyu, glue], away) == found[:2]
    began = time.monotonic()  # offline, and nobody said so: the library itself would try for a minute
    *cached, missing = opened([nyu, glue, digits], online | {"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert cached == found[:2]
    assert "cannot be read from the Hugging Face hub: the hub does not answer, and it is not in the cache" in missing
    assert time.monotonic() - began < 25
