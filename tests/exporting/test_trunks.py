"""Every backbone as transformers folder: loaded by transformers itself, and started from again."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig

from runner.exporting.trunks import write_trunks
from tests.backbones.samples import SPECS, backbone, example, kind_of, option, options, tensors

FAMILIES = {option("backbone", name)["_target_"]: name for name in reversed(options("backbone"))}
OURS = (".CNN9", ".HRNet", ".LeNet", ".MLP", ".MPNN", ".SegNet", ".ToyPoint")
"""Networks that are not models of transformers."""
NAMES = sorted(name for target, name in FAMILIES.items() if not target.endswith(OURS))
SMALL = {"pretrained": None, "size": "tiny"}


class Model(nn.Module):
    """A model with one backbone."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.backbone = part


def made(name: str, **changes):
    config = option("backbone", name)
    return config, backbone(config, **{**SMALL, **changes}).eval()


@pytest.mark.parametrize("name", NAMES)
def test_transformers_loads_it_with_equal_outputs(name, tmp_path):
    config, part = made(name)
    (found,) = write_trunks(Model(part), SPECS[kind_of(config)], tmp_path)
    assert found.problem == "" and found.folder == "."
    loaded = getattr(transformers, found.auto).from_pretrained(tmp_path, **found.arguments).eval()
    assert type(loaded) is type(part.trunk)
    if kind_of(config) == "text":
        inputs = example("text")
    else:
        size = getattr(AutoConfig.from_pretrained(tmp_path), "image_size", 64)
        height, width = size if isinstance(size, list) else (size, size)
        pixels = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(5))
        inputs = {"pixel_values": pixels}
    with torch.inference_mode():
        ours, theirs = (model(**inputs).last_hidden_state for model in (part.trunk.eval(), loaded))
    assert ours.std() > 0
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_starts_another_run(name, tmp_path):
    config, part = made(name)
    kind = kind_of(config)
    write_trunks(Model(part), SPECS[kind], tmp_path)
    again = backbone(config, seed=1, size="tiny", pretrained=str(tmp_path)).eval()
    fresh = backbone(config, seed=1, **SMALL).eval()
    if again.neck_modules():  # the neck never comes from a checkpoint
        for module in (again, fresh):
            module.neck.load_state_dict(part.neck.state_dict())
    inputs = example(kind)
    with torch.inference_mode():
        for ours, theirs in zip(tensors(part(inputs)), tensors(again(inputs)), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
        assert not all(torch.allclose(a, b) for a, b in zip(tensors(part(inputs)), tensors(fresh(inputs)), strict=True))


def test_a_network_of_runners_own_is_named(tmp_path):
    config = option("backbone", "mlp")
    (found,) = write_trunks(Model(backbone(config, size="tiny")), SPECS["table"], tmp_path)
    assert found.folder is None and "MLP" in found.problem
    assert not list(tmp_path.iterdir())


def test_hrnet_becomes_a_folder_of_timm_and_starts_another_run(tmp_path):
    config = option("backbone", "hrnet")
    part = backbone(config, size="w18_small").eval()
    (found,) = write_trunks(Model(part), SPECS["image"], tmp_path)
    assert (found.library, found.kind, found.folder, found.problem) == ("timm", "hrnet_w18_small", ".", "")
    assert found.difference == 0 and found.call("DIR") == 'timm.create_model("local-dir:DIR", pretrained=True)'
    about = json.loads((tmp_path / "config.json").read_text())
    assert about["architecture"] == "hrnet_w18_small" and about["model_args"] == {"head": ""}
    torch.testing.assert_close(load_file(tmp_path / "model.safetensors"), dict(part.trunk.state_dict()), rtol=0, atol=0)
    again = backbone(config, seed=1, size=None, pretrained=str(tmp_path)).eval()
    with torch.inference_mode():
        for ours, theirs in zip(tensors(part(example("image"))), tensors(again(example("image"))), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("changes", "levels", "words"),
    [
        ({"norm": "group"}, None, "other norms"),
        ({}, [1, 2, 3], "not all levels were read"),
        ({"size": "tiny"}, None, "no HRNet of size tiny"),
    ],
)
def test_an_hrnet_that_timm_does_not_have(changes, levels, words, tmp_path):
    part = backbone(option("backbone", "hrnet"), **{"size": "w18_small", **changes})
    if levels:
        part.restrict(["dense"])
        part.keep_levels(levels)
    (found,) = write_trunks(Model(part), SPECS["image"], tmp_path)
    assert found.folder is None and words in found.problem and found.size == part.trunk.size
    assert not list(tmp_path.iterdir())


def test_bilinear_upsampling_is_found_out(tmp_path):
    part = backbone(option("backbone", "hrnet"), size="w18_small", upsampling="bilinear")
    (found,) = write_trunks(Model(part), SPECS["image"], tmp_path)
    assert found.folder == "." and found.difference > 1e-4
    assert "change how a hrnet_w18_small computes" in found.problem


def test_group_norm_is_no_transformers_model(tmp_path):
    _, part = made("resnet", norm="group")
    (found,) = write_trunks(Model(part), SPECS["image"], tmp_path)
    assert found.folder is None and "its tensors are not those of a ResNetModel" in found.problem
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changes", [{"output_stride": 8}, {"stem_pool": False}])
def test_a_changed_computation_is_found_out(changes, tmp_path):
    """Either gives maps of another size."""
    _, part = made("resnet", **changes)
    (found,) = write_trunks(Model(part), SPECS["image"], tmp_path)
    assert found.folder == "." and found.difference is None
    assert found.problem.endswith("from the same weights transformers gives features of another size")


def test_several_backbones_get_folders_of_their_own(tmp_path):
    parts = nn.ModuleDict({name: backbone(option("backbone", "vit"), seed=i, **SMALL) for i, name in enumerate("ab")})
    model = nn.Module()
    model.backbones = parts
    found = write_trunks(model, SPECS["image"], tmp_path)
    assert [t.folder for t in found] == ["backbones/a", "backbones/b"]
    for name, part in parts.items():
        kept = transformers.AutoModel.from_pretrained(tmp_path / "backbones" / name, add_pooling_layer=False)
        torch.testing.assert_close(kept.state_dict(), dict(part.trunk.state_dict()), rtol=0, atol=0)
    assert json.loads((tmp_path / "backbones" / "a" / "config.json").read_text())["model_type"] == "vit"
