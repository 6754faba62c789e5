"""Checkpoints: the real loading path on checkpoints written here, and every way in which one may not fit."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    BertForMaskedLM,
    GPT2LMHeadModel,
    T5ForConditionalGeneration,
)

from runner.backbones.bert import Bert
from runner.backbones.convnext import ConvNext
from runner.backbones.dinov2 import DINOv2
from runner.backbones.gpt2 import GPT2
from runner.backbones.pvt_v2 import PvtV2
from runner.backbones.resnet import ResNet
from runner.backbones.segformer import Segformer
from runner.backbones.swin import Swin
from runner.backbones.t5 import T5
from runner.backbones.vit import ViT
from runner.errors import UserError
from runner.specs import InputSpec
from tests.backbones.samples import SPECS, example

IMAGE, TEXT = SPECS["image"], SPECS["text"]


@pytest.fixture
def bert(tmp_path):
    """A tiny BERT written by `save_pretrained`."""
    Bert(TEXT, size="tiny").trunk.save_pretrained(tmp_path)
    return tmp_path


def refuse(directory, *words: str, make=Bert, inputs=TEXT, **options) -> str:
    with pytest.raises(UserError) as caught:
        make(inputs, pretrained=str(directory), **{"size": "tiny", **options})
    message = str(caught.value)
    for word in words:
        assert word in message, message
    return message


@pytest.mark.parametrize("make", [ResNet, ConvNext, Swin, ViT, PvtV2, Segformer], ids=lambda c: c.__name__)
def test_pooled_features_are_those_the_published_classifier_reads(make, tmp_path):
    options = {"window": 2} if make is Swin else {}  # small enough that transformers' own forward shifts windows too
    torch.manual_seed(0)
    config = make(IMAGE, size="tiny", **options).trunk.config
    config.image_size = 64
    model = AutoModelForImageClassification.from_config(config).eval()
    model.save_pretrained(tmp_path)
    net = make(IMAGE, size="tiny", pretrained=str(tmp_path), mean=[0.0] * 3, std=[1.0] * 3).eval()
    seen = []
    model.classifier.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].flatten(1)))
    pixels = example("image")["pixels"]
    model(pixel_values=pixels)
    torch.testing.assert_close(net({"pixels": pixels}).pooled, seen[0], atol=1e-5, rtol=1e-5)


def test_dinov2_reads_images_at_seven_eighths(tmp_path):
    torch.manual_seed(0)
    DINOv2(IMAGE, size="tiny").trunk.save_pretrained(tmp_path)
    net = DINOv2(IMAGE, size="tiny", pretrained=str(tmp_path), mean=[0.0] * 3, std=[1.0] * 3).eval()
    flat = torch.full((1, 3, 64, 64), 0.25)  # resizing leaves a flat image as it is
    expected = net.trunk(torch.full((1, 3, 56, 56), 0.25)).pooler_output
    torch.testing.assert_close(net({"pixels": flat}).pooled, expected, atol=1e-5, rtol=1e-5)


def test_text_features_are_those_of_the_published_models(tmp_path):
    torch.manual_seed(0)
    model = BertForMaskedLM(Bert(TEXT, size="tiny").trunk.config).eval()
    model.save_pretrained(tmp_path / "bert")
    net = Bert(TEXT, size="tiny", pretrained=str(tmp_path / "bert")).eval()
    inputs = example("text")
    torch.testing.assert_close(net(inputs).tokens, model.bert(**inputs).last_hidden_state)

    model = GPT2LMHeadModel(GPT2(TEXT, size="tiny").trunk.config).eval()
    model.save_pretrained(tmp_path / "gpt2")
    net = GPT2(TEXT, size="tiny", pretrained=str(tmp_path / "gpt2")).eval()
    torch.testing.assert_close(net(inputs).tokens, model.transformer(**inputs).last_hidden_state)

    config = T5(TEXT, size="tiny").trunk.config
    config.is_encoder_decoder = True
    model = T5ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "t5")
    net = T5(TEXT, size="tiny", pretrained=str(tmp_path / "t5")).eval()
    torch.testing.assert_close(net(inputs).tokens, model.encoder(**inputs).last_hidden_state)


def test_heads_are_left_out_quietly_and_strangers_reported(tmp_path, caplog):
    torch.manual_seed(0)
    BertForMaskedLM(Bert(TEXT, size="tiny").trunk.config).save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, "runner"):
        Bert(TEXT, size="tiny", pretrained=str(tmp_path))
    assert "left out: cls.predictions.bias" in caplog.text
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "bert.adapter.down.weight": torch.ones(2)}, tmp_path / "model.safetensors", {"format": "pt"})
    with caplog.at_level(logging.INFO, "runner"):
        Bert(TEXT, size="tiny", pretrained=str(tmp_path))
    assert "no place for: " in caplog.text and "adapter.down.weight" in caplog.text


def test_half_precision_checkpoints_are_trained_in_single_precision(bert):
    weights = {name: tensor.bfloat16() for name, tensor in load_file(bert / "model.safetensors").items()}
    save_file(weights, bert / "model.safetensors", {"format": "pt"})
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    assert {p.dtype for p in Bert(TEXT, size="tiny", pretrained=str(bert)).parameters()} == {torch.float32}


def test_keys_hold_for_checkpoints_too(bert):
    net = Bert(TEXT, size="tiny", pretrained=str(bert), dropout=0.3, attention="eager")
    assert {m.p for m in net.modules() if isinstance(m, torch.nn.Dropout)} == {0.3}
    assert net.trunk.config._attn_implementation == "eager"


def test_another_family(bert):
    refuse(bert, "is a checkpoint of 'bert', this backbone is 'vit'", "runner ls backbone", make=ViT, inputs=IMAGE)


def test_another_size(bert):
    message = refuse(bert, "not of backbone.size=base", "hidden_size is 64, not 768", size="base")
    assert "set backbone.size=tiny" in message


def test_a_size_without_a_name(tmp_path):
    config = AutoConfig.for_model("bert", hidden_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=60)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    refuse(tmp_path, "set backbone.size=null to take whatever the checkpoint has")
    assert Bert(TEXT, size=None, pretrained=str(tmp_path)).spec.dim == 48


def test_no_size_and_no_checkpoint():
    with pytest.raises(UserError, match=r"backbone.size=null takes the size of a checkpoint") as caught:
        Bert(TEXT, size=None)
    assert "medium" in str(caught.value)


def test_nothing_there(tmp_path):
    refuse(tmp_path / "nowhere", "there is no such directory", "hub id")
    refuse("./nowhere", "there is no such directory")
    refuse("a/b/c", "there is no such directory")


def test_not_a_checkpoint(tmp_path):
    refuse(tmp_path, "has no config.json")
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "model.safetensors").write_bytes(b"")
    refuse(tmp_path, "config.json cannot be read")


def test_older_checkpoints_in_torch_files(bert):
    """As microsoft/deberta-v3-base and openai/clip-vit-base-patch32 lie on the hub."""
    expected = Bert(TEXT, size="tiny", pretrained=str(bert)).state_dict()
    held = load_file(bert / "model.safetensors")
    (bert / "model.safetensors").unlink()
    refuse(bert, "has no weights: neither *.safetensors nor pytorch_model.bin", "save_pretrained()")
    torch.save(held, bert / "pytorch_model.bin")
    torch.testing.assert_close(Bert(TEXT, size="tiny", pretrained=str(bert)).state_dict(), expected)
    halves = [dict(list(held.items())[i::2]) for i in (0, 1)]
    files = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    (bert / "pytorch_model.bin").unlink()
    for file, half in zip(files, halves, strict=True):
        torch.save(half, bert / file)
    names = {name: file for file, half in zip(files, halves, strict=True) for name in half}
    (bert / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    torch.testing.assert_close(Bert(TEXT, size="tiny", pretrained=str(bert)).state_dict(), expected)
    (bert / files[1]).unlink()
    refuse(bert, f"is incomplete: {files[1]} is not there")


def test_no_object_comes_out_of_a_torch_file(bert):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, ("made_by_a_pickle",))

    (bert / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": Evil()}, bert / "pytorch_model.bin")
    refuse(bert, "cannot be loaded")
    assert not Path("made_by_a_pickle").exists()


def test_remote_code_is_never_run(bert):
    config = json.loads((bert / "config.json").read_text())
    config |= {"auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Config"}}
    (bert / "config.json").write_text(json.dumps(config))
    (bert / "evil.py").write_text("raise SystemExit('remote code ran')")
    assert type(Bert(TEXT, size="tiny", pretrained=str(bert)).trunk).__name__ == "BertModel"


def test_a_torn_file(bert):
    path = bert / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refuse(bert, "cannot be loaded")


def test_values_its_class_refuses(bert):
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps({**config, "num_hidden_layers": "two"}))
    refuse(bert, "config.json does not hold", "num_hidden_layers")


def test_shards(bert):
    net = Bert(TEXT, size="tiny", pretrained=str(bert))
    (bert / "model.safetensors").unlink()
    net.trunk.save_pretrained(bert, max_shard_size="100KB")
    shards = sorted(bert.glob("model-*.safetensors"))
    assert len(shards) > 1
    again = Bert(TEXT, size="tiny", pretrained=str(bert))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    shards[1].unlink()
    refuse(bert, f"is incomplete: {shards[1].name} is not there", "1 files missing")


def test_missing_tensors(bert):
    weights = load_file(bert / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if ".layer.1." not in name}
    save_file(kept, bert / "model.safetensors", {"format": "pt"})
    refuse(bert, f"lacks {len(weights) - len(kept)} of the trunk's tensors", "encoder.layer.1.")


def test_wrong_shapes(bert):
    weights = load_file(bert / "model.safetensors")
    weights["encoder.layer.0.output.dense.weight"] = torch.zeros(64, 100)
    save_file(weights, bert / "model.safetensors", {"format": "pt"})
    refuse(bert, "1 tensors have another shape", "encoder.layer.0.output.dense.weight: (64, 100) instead of (64, 128)")


def test_a_window_that_the_checkpoint_was_not_trained_with(tmp_path):
    Swin(IMAGE, size="tiny", window=4).trunk.save_pretrained(tmp_path)
    assert Swin(IMAGE, size="tiny", pretrained=str(tmp_path)).trunk.config.window_size == 4
    refuse(tmp_path, "another shape", "relative_position_bias_table", make=Swin, inputs=IMAGE, window=7)


def test_too_few_tokens(bert):
    larger = InputSpec("text", vocab_size=61, pad_token_id=0, max_length=16)
    refuse(bert, "knows 60 tokens, the mixture's tokenizer makes 61", inputs=larger)


def test_too_few_positions(bert):
    longer = InputSpec("text", vocab_size=60, pad_token_id=0, max_length=513)
    refuse(bert, "has 512 positions", "up to 513 tokens", "mixture.max_length=512", inputs=longer)
    assert Bert(longer, size="tiny").trunk.config.max_position_embeddings == 513


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_id_without_network_answers_at_once(tmp_path, monkeypatch, offline):
    """Also where offline mode is not set and the address does not answer."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    why = "may not be asked (HF_HUB_OFFLINE)" if offline else "cannot be reached"
    refuse("nobody/no-such-model", why, "hf download nobody/no-such-model", "backbone.pretrained=null")
    assert time.monotonic() - start < 5


def test_a_hub_id_in_the_cache_needs_no_network(bert, tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    folder = cache / "models--someone--bert"
    snapshot = folder / "snapshots" / "0123456789012345678901234567890123456789"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(snapshot.name)
    for file in bert.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    net = Bert(TEXT, size="tiny", pretrained="someone/bert")
    weights = load_file(bert / "model.safetensors")
    assert torch.equal(net.trunk.embeddings.word_embeddings.weight, weights["embeddings.word_embeddings.weight"])
