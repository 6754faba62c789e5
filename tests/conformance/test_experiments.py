"""Every experiment is described by a dry run, and its smallest form trains two steps."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.config.paths import config_root
from runner.launching.rundir import RunDirectory
from runner.launching.signals import StopFlag
from runner.training.loop import train
from runner.training.summary import print_summary
from tests.mixtures.archives import rooms, write_celeba, write_cityscapes2, write_pascal_context
from tests.mixtures.hub_copies import write_like
from tests.mixtures.miniature import write_nyud_mt, write_nyuv2
from tests.mixtures.molecules import write_sdf

EXPERIMENTS = sorted(
    p.relative_to(config_root() / "experiment").with_suffix("") for p in config_root().glob("experiment/**/*.yaml")
)

SMALLEST = [
    "trainer.max_steps=2", "trainer.epochs=null", "trainer.batch_size=2", "trainer.eval_every=2",
    "trainer.num_workers=0", "trainer.eval_batch_size=16", "trainer.panels=1", "trainer.precision=fp32",
    "tracking=jsonl", "tracking.plots=false", "launch.device=cpu",
]  # fmt: skip
BY_MIXTURE = {
    "rooms": ["mixture.size=[32,32]", "mixture.train=8", "mixture.validation=2", "mixture.test=2"],
    "nyud": ["mixture.size=[32,48]", "mixture.augment.crop=null"],
    "nyuv2": ["mixture.size=[32,48]"],
    "pascal_context": ["mixture.size=[32,48]", "mixture.augment.crop=null"],
    "cityscapes2": ["mixture.size=[32,48]"],
    "qm9": ["mixture.validation=4", "mixture.test=4"],
    "clip20": ["mixture.size=[32,32]", "tasks=[mnist,dtd]"],
}
WRITERS = {
    "nyud": write_nyud_mt,
    "nyuv2": write_nyuv2,
    "pascal_context": lambda root: write_pascal_context(root, rooms(4), rooms(2, 4)),
    "cityscapes2": lambda root: write_cityscapes2(root, rooms(4), rooms(2, 4)),
    "celeba": lambda root: write_celeba(root, 24),
    "qm9": lambda root: write_sdf(root, 24),
}
"""Mixtures whose archive is written here, in miniature."""

COPIED = ("clip20", "glue8")
"""Mixtures of data that is on the hub alone: tests write a little that looks like it."""
LONGER = ("merge_text", "merge_text_base", "sentences")
"""Experiments that read a vocabulary from all their texts."""
NEEDS_DATA = {
    "multimnist": "hub",
    "images": "hub",
    "images_base": "hub",
    "images_merge": "hub",
    "intents": "hub",
    "sentences": "hub",
    "sentences_merge": "hub",
    "adult": "adult",
    "adult_five": "adult",
}


def write_teacher(folder: Path) -> Path:
    """A small vision transformer in place of one that would be downloaded."""
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 8}
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16)).save_pretrained(folder)
    return folder


def smallest(experiment: str, place: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The frozen configuration of an experiment cut down to seconds, with data for it."""
    overrides = [f"+experiment={experiment}", f"output_dir={place / 'outputs'}", *SMALLEST]
    choices = compose("train", overrides).choices
    mixture = choices["mixture"]
    overrides += [] if choices["backbone"] == "toy_point" else ["backbone.size=tiny"]
    overrides += (
        []
        if choices["backbone"] in ("mlp", "segnet", "toy_point", "lenet", "cnn9", "mpnn")
        else ["backbone.pretrained=null"]
    )
    overrides += BY_MIXTURE.get(mixture, [])
    if choices["wrapper"] == "sak_distill":
        teachers = compose("train", overrides).config.wrapper.teachers
        folder = write_teacher(place / "teacher")
        overrides += [f"wrapper.teachers.{name}={folder}" for name, given in teachers.items() if given is not None]
    overrides += ["architecture.budgets=[0.5]"] if choices["architecture"] == "slimmable" else []
    if compose("train", overrides).config.init is not None:  # its base has another size
        overrides += ["init=null", "finetune.heads=train"]
    if mixture in WRITERS:
        overrides.append(f"mixture.path={WRITERS[mixture](place / mixture)}")
    elif mixture in COPIED:
        config = OmegaConf.to_container(compose("train", overrides).config.mixture, resolve=True)
        overrides.append(f"data_root={write_like(place / 'data', config['sources'], config['tasks'])}")
    elif mixture in NEEDS_DATA:
        overrides.append(f"data_root={request.getfixturevalue('runner_data')}")
    return finalize(compose("train", overrides))


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Models of gigabytes lie in cycles of references, which Python counts and does not weigh."""
    yield
    gc.collect()


@pytest.mark.parametrize(
    "experiment",
    [pytest.param(e, marks=pytest.mark.slow) if e.parts[0] == "papers" or e.name in LONGER else e for e in EXPERIMENTS],
    ids=str,
)
def test_smallest_form_is_described_and_trains(experiment, tmp_path, request, capsys):
    config = smallest(str(experiment), tmp_path, request)
    print_summary(config)
    said = capsys.readouterr().out
    assert "parameters are reached by more than one task" in said and "memory" in said
    assert "missing" not in said
    run = RunDirectory.claim(config, "train", [])
    assert train(run, StopFlag()) == 0
    result = json.loads((run.path / "result.json").read_text())
    assert result["status"] == "COMPLETED" and result["steps"] == 2
    assert set(result["tasks"]) == set(config["mixture"]["tasks"])
    assert any((run.path / "panels").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=str)
def test_published_form_is_described_without_its_data(experiment, capsys, monkeypatch, request):
    asked = [f"+experiment={experiment}"]
    if (mixture := compose("train", asked).choices["mixture"]) in NEEDS_DATA:
        monkeypatch.setenv("RUNNER_DATA", str(request.getfixturevalue("runner_data")))
    print_summary(finalize(compose("train", asked), data=False))
    said = capsys.readouterr().out
    if mixture == "glue8":  # a vocabulary comes from data or weights, and neither is here
        assert "missing" in said and "model     not described" in said
        assert "weights   'FacebookAI/roberta-large'" in said
        return
    assert "memory" in said and ("steps" in said or "epochs" in said)
    assert ("missing" in said) == (mixture in (*WRITERS, "clip20"))
