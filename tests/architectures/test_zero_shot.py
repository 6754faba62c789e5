"""CLIP and its zero-shot heads, against transformers' own model, with a tiny checkpoint written here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from runner.architectures.hard_sharing import HardSharing
from runner.architectures.heads.zero_shot import ZeroShot, text_embeddings
from runner.backbones.clip import CLIP, CLIP_MEAN, CLIP_STD
from runner.config.compose import compose
from runner.errors import UserError
from runner.specs import FeatureSpec, InputSpec
from runner.tasks.classification import Classification
from runner.types import Group

WORDS = ["a", "photo", "of", "the", "cat", "dog", "blurry", "truck"]
CLASSES = ["cat", "dog", "truck"]
TEMPLATES = ["a photo of a {}", "a blurry photo of the {}"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny CLIP with random weights, and a tokenizer of a few words."""
    folder = tmp_path_factory.mktemp("clip")
    letters = sorted({c for w in WORDS for c in w})
    tokens = [*letters, *(f"{c}</w>" for c in letters)]
    merges = []
    for word in WORDS:  # so that every word becomes one token
        symbols = [*word[:-1], f"{word[-1]}</w>"]
        while len(symbols) > 1:
            if (pair := f"{symbols[0]} {symbols[1]}") not in merges:
                merges.append(pair)
                tokens.append(symbols[0] + symbols[1])
            symbols = [symbols[0] + symbols[1], *symbols[2:]]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    end = vocabulary["<|endoftext|>"]
    text = {"vocab_size": len(vocabulary), "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 16, "eos_token_id": end, "bos_token_id": end - 1}
    image = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2}
    image |= {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=image, projection_dim=20, logit_scale_init_value=3.0)
    ).save_pretrained(folder)
    return folder


def loaded(checkpoint: Path) -> CLIPModel:
    return CLIPModel.from_pretrained(checkpoint).eval()


def test_image_features_are_clip_s(checkpoint):
    net = CLIP(InputSpec("image", size=(32, 32)), size=None, pretrained=str(checkpoint)).eval()
    pixels = torch.rand(3, 3, 32, 32)
    normal = (pixels - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    with torch.no_grad():
        found = net({"pixels": pixels}).pooled
        vision = loaded(checkpoint).vision_model(pixel_values=normal)
        expected = loaded(checkpoint).visual_projection(vision.pooler_output)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert net.spec.dim == 20
    assert net({"pixels": torch.rand(1, 3, 40, 24)}).pooled.shape == (1, 20)  # positions are interpolated


def test_class_embeddings_are_means_over_templates(checkpoint):
    found, scale = text_embeddings(str(checkpoint), tuple(CLASSES), tuple(TEMPLATES))
    model, tokenizer = loaded(checkpoint), CLIPTokenizer.from_pretrained(checkpoint)
    rows = []
    with torch.no_grad():
        for c in CLASSES:
            each = []
            for template in TEMPLATES:
                ids = tokenizer([template.replace("{}", c)], return_tensors="pt")["input_ids"]
                z = model.text_projection(model.text_model(input_ids=ids).pooler_output)[0]
                each.append(z / z.norm())
            mean = torch.stack(each).mean(0)
            rows.append(mean / mean.norm())
    torch.testing.assert_close(found, torch.stack(rows), rtol=1e-4, atol=1e-5)
    assert scale == pytest.approx(float(torch.tensor(3.0).exp()), rel=1e-5)


def test_predictions_are_clip_s_logits(checkpoint):
    task = Classification(
        "pets", num_classes=3, class_names=CLASSES, head={"classes": CLASSES, "templates": ["a photo of a {}"]}
    )
    head = {"_target_": "runner.architectures.heads.zero_shot.ZeroShot", "checkpoint": str(checkpoint)}
    head |= {"classes": [], "templates": TEMPLATES}
    model = HardSharing(
        lambda: CLIP(InputSpec("image", size=(32, 32)), size=None, pretrained=str(checkpoint)),
        {"pets": task}, dense_head={}, pooled_head=head, token_head={},
    ).eval()  # fmt: skip
    pixels = torch.rand(2, 3, 32, 32)
    normal = (pixels - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    tokenizer = CLIPTokenizer.from_pretrained(checkpoint)
    texts = tokenizer([f"a photo of a {c}" for c in CLASSES], return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = loaded(checkpoint)(pixel_values=normal, **texts).logits_per_image
        found = model(Group("pets", {"pixels": pixels}), ["pets"])["pets"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    assert [n for n, _ in model.heads.named_parameters()] == []  # nothing to train, everything saved
    assert {"heads.pets.weight_CD", "heads.pets.scale"} <= set(model.state_dict())


def test_a_given_scale_and_random_texts():
    head = ZeroShot(FeatureSpec(dim=6), 3, checkpoint=None, classes=CLASSES, templates=TEMPLATES, scale=2.0)
    assert float(head.scale) == 2.0
    torch.testing.assert_close(head.weight_CD.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": ["cat"]}, "names of 3 classes, not 1"),
        ({"templates": ["a photo"]}, "templates with {}"),
        ({"templates": []}, "templates with {}"),
        ({"checkpoint": "/nowhere"}, "no such directory"),
    ],
)
def test_what_it_refuses(change, words):
    keys = {"checkpoint": None, "classes": CLASSES, "templates": TEMPLATES} | change
    with pytest.raises(UserError, match=words):
        ZeroShot(FeatureSpec(dim=20), 3, **keys)


def test_texts_of_another_size_and_towers_that_are_not_there(checkpoint, tmp_path):
    with pytest.raises(UserError, match="20 dimensions, the backbone's features 8"):
        ZeroShot(FeatureSpec(dim=8), 3, checkpoint=str(checkpoint), classes=CLASSES, templates=TEMPLATES)
    net = CLIP(InputSpec("image", size=(32, 32)), size=None, pretrained=str(checkpoint))
    net.trunk.save_pretrained(tmp_path)  # the image encoder alone
    again = CLIP(InputSpec("image", size=(32, 32)), size=None, pretrained=str(tmp_path))
    assert torch.equal(again.trunk.visual_projection.weight, net.trunk.visual_projection.weight)
    with pytest.raises(UserError, match=r"text tower|cannot be loaded"):
        ZeroShot(FeatureSpec(dim=20), 3, checkpoint=str(tmp_path), classes=CLASSES, templates=TEMPLATES)


def test_the_shipped_tasks_have_a_name_for_every_class():
    tasks = compose("train", ["+experiment=clip20"]).config.mixture.tasks
    assert len(tasks) == 20
    for name, task in tasks.items():
        assert len(set(task.class_names)) == task.num_classes, name
        assert list(task.head.classes) == list(task.class_names) and all("{}" in t for t in task.head.templates)
