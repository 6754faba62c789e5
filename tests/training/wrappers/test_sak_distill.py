"""SAK's distillation against its formula, with teachers of every form, written by transformers itself."""

from __future__ import annotations

import functools

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    SamVisionConfig,
    SamVisionModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
)

from runner.backbones.teacher import Teacher
from runner.config.static import Report
from runner.config.weighting_fit import wrapper_architecture, wrapper_fit
from runner.errors import UserError
from tests.training.wrappers.real import Real, check_promises, data, split
from tests.training.wrappers.worlds import option

SMALL = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 8}
FAMILIES = {
    "vit": (ViTModel, ViTConfig(**SMALL, image_size=32, patch_size=16)),
    "dinov2": (Dinov2Model, Dinov2Config(**SMALL, mlp_ratio=1, image_size=28, patch_size=14)),
    "clip": (CLIPVisionModel, CLIPVisionConfig(**SMALL, image_size=32, patch_size=16)),
    "sam": (
        SamVisionModel,
        SamVisionConfig(
            **SMALL, image_size=64, patch_size=16, window_size=2, output_channels=8, global_attn_indexes=[1]
        ),
    ),
    "swin": (SwinModel, SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2)),
    "resnet": (ResNetModel, ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])),
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    @functools.cache
    def write(family):
        model, config = FAMILIES[family]
        folder = tmp_path_factory.mktemp(family)
        torch.manual_seed(1)
        model(config).save_pretrained(folder)
        return str(folder)

    return write


def wrapper(checkpoint, families=("vit", "resnet"), **keys):
    return option("wrapper", "sak_distill", teachers={f: checkpoint(f) for f in families}, **keys)


PATHS = {"paths": ["vit", "resnet"], "noise": False}


@pytest.mark.parametrize("family", FAMILIES)
def test_teachers_of_every_form_give_maps(checkpoint, family):
    """Of any size of image, frozen, one cell per 16 pixels where they are plain."""
    teacher = Teacher(checkpoint(family), "key").train()
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    maps = teacher.all_maps(torch.rand(2, 3, 48, 32))
    assert [m.shape[1] for m in maps] == teacher.widths and len(teacher.chosen(4)) == 4
    if family in ("vit", "dinov2", "clip"):
        assert {tuple(m.shape[2:]) for m in maps} == {(3, 2)}
    if family == "sam":  # scaled to 64 and padded: the padding is cut off
        assert {tuple(m.shape[2:]) for m in maps} == {(4, 3)}


def test_the_loss_is_the_formula(checkpoint):
    made = Real("sak", wrapper(checkpoint, alpha=0.7, cosine=0.6), **PATHS)
    group = data()
    with made.wrapper.watching():
        made.net(group, ["depth"])
        made.wrapper.total = 4
        found = made.wrapper.added([group])
        seen = made.wrapper._seen[0]
    expected = 0.0
    for name, maps in seen.items():
        teacher = made.wrapper._teachers[name]
        everything = teacher.all_maps(group.inputs["pixels"])
        for own, at, aligner in zip(maps, teacher.chosen(4), made.wrapper.aligners[name], strict=True):
            own, other = aligner(own), everything[at]
            size = max(own.shape[2:], other.shape[2:])
            own, other = (torch.nn.functional.interpolate(x, size=size, mode="bilinear") for x in (own, other))
            for a, b in zip(own.flatten(1), other.flatten(1), strict=True):
                difference = (a - b).abs()
                smooth = torch.where(difference < 1, 0.5 * difference**2, difference - 0.5).mean()
                expected = expected + 0.6 * (1 - a @ b / a.norm() / b.norm()) + 0.4 * smooth
    torch.testing.assert_close(found, 0.7 * expected / 4)


def test_promises_of_a_wrapper(checkpoint):
    check_promises("sak", wrapper(checkpoint, ["vit"]), paths=["vit"], noise=False)


def test_a_first_stage_only_distils_and_trains_paths_and_aligners(checkpoint):
    made = Real("sak", wrapper(checkpoint, alone=1), **PATHS)
    report, grads = made.step(split(data(), 1), 0)
    assert report.losses.isfinite().all()
    assert not any(n.startswith(("heads", "routers")) for n in grads)
    assert any(n.startswith("paths.vit") for n in grads) and any(n.startswith("wrapper.aligners.resnet") for n in grads)
    _, later = made.step(split(data(), 1), 1)
    assert {n for n in later if not n.startswith("wrapper")} == {n for n, _ in made.net.named_parameters()}


def test_it_brings_paths_to_their_teachers(checkpoint):
    """A few steps of the first stage lower the distance."""
    made = Real("sak", wrapper(checkpoint, alone=100), **PATHS)
    parameters = [*made.net.parameters(), *made.wrapper.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=5e-3)
    losses = []
    for step in range(8):
        made.step(split(data(), 1), step)
        with torch.no_grad(), made.wrapper.watching():
            made.net(data(), ["depth"])
            losses.append(float(made.wrapper.added([data()])))
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


def test_teachers_are_in_no_checkpoint(checkpoint):
    made = Real("sak", wrapper(checkpoint), **PATHS)
    assert all(name.startswith("aligners.") for name in made.wrapper.state_dict())
    assert all("teacher" not in name for name in made.net.state_dict())


def test_names_that_do_not_match_are_refused(checkpoint):
    with pytest.raises(UserError, match="swin is in one of them only"):
        Real("sak", wrapper(checkpoint, ["vit", "resnet", "swin"]), **PATHS)
    with pytest.raises(UserError, match=r"wrapper.teachers.vit=.*no such directory"):
        Real("sak", option("wrapper", "sak_distill", teachers={"vit": "./nothing"}), paths=["vit"])


def test_the_command_line_refuses_other_architectures():
    report = Report()
    config = {"wrapper": option("wrapper", "sak_distill"), "trainer": {"log_losses": False, "compile": True}}
    config["architecture"] = {"_target_": "runner.architectures.mtan.MTAN"}
    config["weighting"] = option("weighting", "cagrad")
    wrapper_architecture(config, report)
    wrapper_fit(config, report)
    said = str(report.found)
    assert "SAKDistill works with architecture=sak only" in said and "trainer.compile=true" in said
