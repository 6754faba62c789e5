"""Runs whose weights and data come from a hub on the loopback interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import ViTForImageClassification

from runner.backbones.vit import ViT
from runner.mixtures.tokenizer import WordPiece
from tests.backbones.samples import SPECS
from tests.hub import Hub, serve
from tests.mixtures.archives import rooms, write_nyuv2_hub
from tests.mixtures.hub_copies import write_like
from tests.support import TINY, runner

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
    asked = len(hub.asked)
    works(hub, tmp_path / "two", *run, "seed=3", HF_HUB_OFFLINE="1")
    assert len(hub.asked) == asked


@pytest.mark.slow
def test_a_missing_checkpoint_is_named_in_every_job(hub, tmp_path):
    run = ["train", "-m", *SHORT, "backbone.pretrained=someone/nope", f"output_dir={tmp_path}"]
    said = fails(hub, tmp_path, *run, "seed=1,2", "launch.jobs=2", code=1)
    assert said.count("someone/nope: neither a local directory nor a repository on the Hugging Face hub") >= 2, said


@pytest.mark.slow
def test_a_dry_run_downloads_nothing(hub, tmp_path):
    hub.sent.clear()
    run = ["train", *SHORT, "backbone.pretrained=someone/vit", "--dry-run"]
    assert "'someone/vit' is not on this machine: it is downloaded when the run starts" in works(hub, tmp_path, *run)
    assert not hub.sent


@pytest.mark.slow
def test_data_of_the_hub(hub, tmp_path):
    WordPiece(["one two red blue"], vocab_size=40, lowercase=True, max_length=16).save(tmp_path / "words")
    few = ["trainer.max_steps=1", "trainer.epochs=null", "trainer.batch_size=2", "trainer.num_workers=0"]
    few += ["trainer.eval_every=1", "trainer.checkpoint_every=1", "trainer.panels=0", "tracking=jsonl"]
    few += ["tracking.plots=false", "launch.threads=1", f"output_dir={tmp_path / 'out'}", f"data_root={tmp_path}"]
    nyu = ["train", "mixture=nyuv2_hub", "mixture.size=[32,32]", "mixture.validation=2", "backbone=resnet", *few]
    nyu += ["backbone.size=tiny"]
    works(hub, tmp_path / "home", *nyu)
    works(hub, tmp_path / "home", *nyu, "seed=1", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    glue = ["train", "mixture=glue8", "tasks=[cola,rte]", "backbone=bert", "backbone.size=tiny", *few]
    glue += [f"mixture.sources.{name}.path=null" for name in ("cola", "rte")]
    works(hub, tmp_path / "home", *glue, f"mixture.tokenizer={tmp_path / 'words'}")
    digits = ["train", "mixture=images", "tasks=[mnist]", "mixture.sources.mnist.path=null", "backbone=lenet", *few]
    said = fails(hub, tmp_path / "home", *digits, "mixture.sources.mnist.hub=someone/gated")
    assert "'someone/gated' is a gated dataset" in said
    said = fails(hub, tmp_path / "home", *digits, "+mixture.sources.mnist.revision=v9")
    assert "Revision 'v9' doesn't exist" in said
