"""Exported runs, read back by transformers and by runner."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.optim.swa_utils import AveragedModel
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from runner import exporting
from runner.backbones.hrnet import HRNetTrunk
from runner.backbones.teacher import Teacher
from runner.cli.main import main
from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.errors import UserError
from runner.exporting.folder import export
from runner.launching.rundir import RunDirectory
from runner.launching.signals import StopFlag
from runner.training.assemble import assemble
from runner.training.checkpoints import load_weights
from runner.training.loop import train
from runner.training.wrappers.run_teacher import open_teacher
from runner.types import Group
from tests.support import TINY

REVIEWS = """\
defaults:
  - /task@tasks.sentiment: classification
  - /task@tasks.stars: regression
  - _self_
_target_: runner.mixtures.text.Texts
max_length: 16
test: 0.2
sources:
  reviews:
    path: reviews
    text: text
    labels: {sentiment: sentiment, stars: stars}
tasks:
  sentiment: {num_classes: 2}
"""


def trained(tmp: Path, *overrides: str, config_dir: Path | None = None) -> RunDirectory:
    config = finalize(compose("train", [*overrides, f"output_dir={tmp}/outputs"], config_dir))
    run = RunDirectory.claim(config, "train", ["train", *overrides])
    assert train(run, StopFlag()) == 0
    return run


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> RunDirectory:
    overrides = [*TINY, "trainer.max_steps=6", "trainer.ema=0.5", "tasks=[segmentation,depth]", "backbone=vit"]
    return trained(tmp_path_factory.mktemp("dense"), *overrides, "backbone.size=tiny", "mixture.train=16")


def reference(run: RunDirectory, averaged: bool) -> torch.nn.Module:
    """The run's model with its best weights, without the code under test."""
    model = assemble(run.config()).model
    best = run.path / "checkpoints" / "best"
    if averaged:
        model = AveragedModel(model, use_buffers=True)
    load_weights(model, best / ("ema.safetensors" if averaged else "model.safetensors"))
    return (model.module if averaged else model).eval()


def test_the_whole_model_comes_back_with_its_averaged_weights(dense, tmp_path):
    export(dense, tmp_path / "ex", "best", None, None)
    found = exporting.load(tmp_path / "ex")
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = reference(dense, averaged=True)(Group("g", {"pixels": pixels}), ["segmentation", "depth"])
        other = reference(dense, averaged=False)(Group("g", {"pixels": pixels}), ["segmentation", "depth"])
    answer = found.predict({"pixels": pixels})
    assert list(answer) == ["segmentation", "depth"]
    for task, prediction in answer.items():
        torch.testing.assert_close(prediction, expected[task], rtol=0, atol=0)
        assert not torch.equal(prediction, other[task])
    assert list(found.predict({"pixels": pixels}, ["depth"])) == ["depth"]


def test_the_folder_says_what_it_is(dense, tmp_path):
    export(dense, tmp_path / "ex", "best", "apache-2.0", None)
    card = (tmp_path / "ex" / "README.md").read_text()
    matter = yaml.safe_load(card.split("---")[1])
    assert matter["license"] == "apache-2.0" and matter["library_name"] == "transformers"
    result = dense.result()
    for task, metrics in result["tasks"].items():
        headline = result["headline"][task]
        assert f"| {task} | **{headline}** " in card and f"**{metrics[headline]:.4g}** |" in card
    assert dense.info()["signature"] in card and "trainer.max_steps=6" in card and "averaged" in card
    assert not any(word in card for word in ("[More Information Needed]", "TODO", "None,", "@@"))
    kept = yaml.safe_load((tmp_path / "ex" / "runner" / "config.yaml").read_text())
    assert "output_dir" not in kept and kept["backbone"] == dense.config()["backbone"]
    image = json.loads((tmp_path / "ex" / "preprocessor_config.json").read_text())
    assert image["size"] == {"height": 32, "width": 32} and image["image_mean"] == [0.5, 0.5, 0.5]
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    made = AutoImageProcessor.from_pretrained(tmp_path / "ex")(images=pixels, return_tensors="pt")["pixel_values"]
    backbone = reference(dense, averaged=True).backbone
    ours = (torch.tensor(pixels).permute(2, 0, 1) / 255 - backbone.mean) / backbone.std  # as its forward does
    torch.testing.assert_close(made, ours, rtol=0, atol=1e-6)
    assert all(path.stat().st_mode & 0o444 for path in (tmp_path / "ex").rglob("*.safetensors"))


def test_a_named_checkpoint_says_that_the_numbers_are_of_another(tmp_path):
    run = trained(tmp_path, *TINY, "trainer.max_steps=8", "trainer.eval_every=4", "tasks=[depth]", "mixture.train=16")
    result = run.result()
    other = next(
        int(p.name[5:]) for p in (run.path / "checkpoints").glob("step-*") if int(p.name[5:]) != result["best_step"]
    )
    export(run, tmp_path / "ex", str(other), None, None)
    card = (tmp_path / "ex" / "README.md").read_text()
    assert f"step {result['best_step']}, not of the exported one" in card
    assert "None was stated at export" in card
    with pytest.raises(UserError, match="no whole checkpoint '7'"):
        export(run, tmp_path / "ex7", "7", None, None)
    assert not (tmp_path / "ex7").exists()


def test_an_export_starts_another_run(dense, tmp_path):
    export(dense, tmp_path / "ex", "best", None, None)
    overrides = [*TINY, "backbone=vit", "backbone.size=tiny", "tasks=[depth]", f"backbone.pretrained={tmp_path}/ex"]
    config = finalize(compose("train", overrides), data=False)
    torch.manual_seed(3)
    model = assemble(config, must_have_data=False).model
    held = reference(dense, averaged=True).backbone.trunk.state_dict()
    torch.testing.assert_close(dict(model.backbone.trunk.state_dict()), dict(held), rtol=0, atol=0)


def test_an_export_teaches_as_it_was_trained(dense, tmp_path):
    """A backbone whose settings transformers does not know gives the maps of the run, not those of `AutoModel`."""
    run = trained(
        tmp_path, *TINY, "trainer.max_steps=2", "tasks=[depth]", "backbone.stem_pool=false", "mixture.train=16"
    )
    export(run, tmp_path / "ex", "best", None, None)
    teacher = open_teacher(str(tmp_path / "ex"), "wrapper.teachers.depth").train()
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = reference(run, averaged=False).backbone({"pixels": pixels}).pyramid
    for found, wanted in zip(teacher.all_maps(pixels), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert teacher.widths == [level.shape[1] for level in expected] and teacher.chosen(2) == [1, 3]
    export(dense, tmp_path / "single", "best", None, None)
    shutil.rmtree(tmp_path / "single" / "runner")
    assert isinstance(open_teacher(str(tmp_path / "single"), "key"), Teacher)  # without the run, as transformers has it


def test_every_task_of_a_single_task_run_gets_its_backbone(tmp_path):
    overrides = [*TINY, "trainer.max_steps=2", "architecture=single_task", "tasks=[depth,edge]", "mixture.train=8"]
    run = trained(tmp_path, *overrides)
    trunks = export(run, tmp_path / "ex", "best", None, None)
    assert [t.folder for t in trunks] == ["backbones/depth", "backbones/edge"]
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = reference(run, averaged=False)(Group("g", {"pixels": pixels}), ["depth", "edge"])
    torch.testing.assert_close(exporting.load(tmp_path / "ex").predict({"pixels": pixels}), expected, rtol=0, atol=0)


def test_adapters_are_folded_into_the_backbone(tmp_path):
    overrides = [*TINY, "backbone=vit", "backbone.size=tiny", "adapter=lora", "trainer.max_steps=3", "tasks=[depth]"]
    run = trained(tmp_path, *overrides, "mixture.train=8", "optimizer.lr=0.1")
    (trunk,) = export(run, tmp_path / "ex", "best", None, None)
    assert trunk.problem == "" and "with its adapters folded in" in (tmp_path / "ex" / "README.md").read_text()
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = reference(run, averaged=False)(Group("g", {"pixels": pixels}), ["depth"])
    answer = exporting.load(tmp_path / "ex").predict({"pixels": pixels})
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)
    plain = AutoModel.from_pretrained(tmp_path / "ex", add_pooling_layer=False)
    assert not any("lora" in name for name in plain.state_dict())


@pytest.mark.slow
def test_a_linearised_backbone_is_no_transformers_model(dense, tmp_path):
    export(dense, tmp_path / "start", "best", None, None)
    overrides = [*TINY, "backbone=vit", "backbone.size=tiny", f"backbone.pretrained={tmp_path}/start"]
    overrides += ["finetune=linearized", "tasks=[depth]", "backbone.attention=eager"]
    run = trained(tmp_path, *overrides, "trainer.max_steps=2", "mixture.train=8", "optimizer.lr=0.01")
    (trunk,) = export(run, tmp_path / "ex", "best", None, None)
    assert trunk.name == "backbone" and trunk.folder is None and "Tangent" in trunk.problem
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference(run, averaged=False)(Group("g", {"pixels": pixels}), ["depth"])
    answer = exporting.load(tmp_path / "ex").predict({"pixels": pixels})
    torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-5)


def test_a_network_of_runners_own_is_exported_whole(tmp_path):
    overrides = [*TINY, "backbone.norm=group", "trainer.max_steps=2", "tasks=[depth]", "mixture.train=8"]
    run = trained(tmp_path, *overrides)
    export(run, tmp_path / "ex", "best", None, None)
    assert not (tmp_path / "ex" / "config.json").exists()
    card = (tmp_path / "ex" / "README.md").read_text()
    assert "cannot be loaded by transformers" in card and "library_name" not in card
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = reference(run, averaged=False)(Group("g", {"pixels": pixels}), ["depth"])
    torch.testing.assert_close(exporting.load(tmp_path / "ex").predict({"pixels": pixels}), expected, rtol=0, atol=0)


def test_texts_bring_their_tokenizer(tmp_path):
    (tmp_path / "my" / "mixture").mkdir(parents=True)
    (tmp_path / "my" / "mixture" / "reviews.yaml").write_text(REVIEWS)
    Path("data/reviews").mkdir(parents=True)
    with open("data/reviews/train.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "sentiment", "stars"])
        for i in range(40):
            writer.writerow([f"a {('bad', 'good')[i % 2]} {('soup', 'film', 'book')[i % 3]}", i % 2, i % 5])
    overrides = ["mixture=reviews", "backbone=bert", "backbone.size=tiny", "trainer.max_steps=2"]
    overrides += ["trainer.batch_size=4", "trainer.num_workers=0", "tracking=jsonl", "launch.device=cpu"]
    run = trained(tmp_path, *overrides, config_dir=tmp_path / "my")
    export(run, tmp_path / "ex", "best", None, None)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ex")
    parts = assemble(run.config())
    texts = ["a good film", "bad bad soup, unheard-of", "a book " * 20]
    ours = [encoded.ids for encoded in parts.mixture.encoder.encode(texts)]
    assert tokenizer(texts, truncation=True)["input_ids"] == ours
    batch = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
    found = exporting.load(tmp_path / "ex")
    answer = found.predict({"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]})
    assert answer["sentiment"].shape == (3, 2)
    # the same tokenizer serves a run that starts from the folder
    again = finalize(compose("train", [*overrides, f"backbone.pretrained={tmp_path}/ex"], tmp_path / "my"))
    fresh = assemble(again)
    assert [e.ids for e in fresh.mixture.encoder.encode(texts)] == ours
    held = parts.model.backbone.trunk.state_dict().keys()
    assert fresh.model.backbone.trunk.state_dict().keys() == held


@pytest.mark.slow
def test_the_command(dense, tmp_path, capfd):
    to = tmp_path / "folder" / "ex"
    assert main(["export", str(dense.path), "--to", str(to)]) == 0
    out = capfd.readouterr().out
    assert f'AutoModel.from_pretrained("{to}", add_pooling_layer=False)' in out and "the same features" in out
    before = {p: p.read_bytes() for p in to.rglob("*") if p.is_file()}
    assert main(["export", str(dense.path), "--to", str(to)]) == 2
    assert "exists already" in capfd.readouterr().err
    assert {p: p.read_bytes() for p in to.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "--to", "ex"], "there is no folder 'nowhere'"),
        (["RUN"], "--to DIR is missing"),
        (["RUN", "--to", "ex", "--checkpoint", "bst"], "did you mean 'best'?"),
        (["RUN", "--to", "ex", "--license", "[fill in]"], "is not an identifier"),
        (["RUN", "--too", "ex"], "did you mean '--to'?"),
    ],
)
def test_mistakes(dense, arguments, words, capfd):
    assert main(["export", *(str(dense.path) if a == "RUN" else a for a in arguments)]) == 2
    assert words in capfd.readouterr().err
    assert not Path("ex").exists()


def test_a_folder_that_is_no_export(tmp_path):
    with pytest.raises(UserError, match="is not an exported run"):
        exporting.load(tmp_path)


@pytest.mark.parametrize("levels", [pytest.param("all", marks=pytest.mark.slow), "some"])
def test_an_hrnet_comes_back_whatever_of_it_was_read(levels, tmp_path):
    """From a checkpoint whose size the configuration leaves open, by a decoder that reads all levels or three."""
    HRNetTrunk("w18_small").save_pretrained(tmp_path / "start")
    architecture = {"all": "hard_sharing", "some": "task_expert"}[levels]
    overrides = [*TINY, "trainer.max_steps=1", "tasks=[depth]", "mixture.train=8", f"architecture={architecture}"]
    overrides += ["backbone=hrnet", "backbone.size=null", f"backbone.pretrained={tmp_path}/start"]
    run = trained(tmp_path, *overrides)
    (trunk,) = export(run, tmp_path / "ex", "best", None, None)
    assert (trunk.folder is None) == (levels == "some")
    (tmp_path / "start").rename(tmp_path / "gone")
    card = (tmp_path / "ex" / "README.md").read_text()
    assert ("cannot be loaded by timm" in card) == (levels == "some")
    assert ('timm.create_model("local-dir:DIR", pretrained=True)' in card) == (levels == "all")
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = exporting.load(tmp_path / "ex").predict({"pixels": pixels})
    (tmp_path / "gone").rename(tmp_path / "start")
    with torch.inference_mode():
        expected = reference(run, averaged=False)(Group("g", {"pixels": pixels}), ["depth"])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
