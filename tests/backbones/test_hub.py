"""Checkpoints by their hub id, from a hub on the loopback interface, in the layouts of the real one."""

from __future__ import annotations

import json
import logging
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM, CLIPConfig, CLIPModel, ViTForImageClassification

from runner.architectures.heads.zero_shot import learned_scale, text_embeddings
from runner.backbones import hub as ours
from runner.backbones.bert import Bert
from runner.backbones.clip import CLIP, PRESETS
from runner.backbones.hrnet import HRNet
from runner.backbones.hub import is_local, local_checkpoint
from runner.backbones.resnet import ResNet
from runner.backbones.teacher import Teacher
from runner.backbones.vit import ViT
from runner.errors import RunFailed, UserError
from runner.mixtures.tokenizer import Pretrained, WordPiece
from runner.training.summary import without_weights
from runner.training.wrappers.run_teacher import look_for
from tests.backbones.samples import SPECS
from tests.backbones.test_timm_resnet import tensors, write
from tests.hub import Hub, serve

IMAGE, TEXT = SPECS["image"], SPECS["text"]


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as they lie on the hub: safetensors, shards, a torch file only, with tokenizers and other frameworks."""
    root = tmp_path_factory.mktemp("repositories")
    torch.manual_seed(0)
    tokens = WordPiece(["one two three a photo of . abc"], vocab_size=60, lowercase=True, max_length=16)
    bert = BertForMaskedLM(Bert(TEXT, size="tiny").trunk.config)
    bert.save_pretrained(root / "bert")
    tokens.save(root / "bert")
    (root / "bert" / "flax_model.msgpack").write_bytes(b"other weights")
    (root / "bert" / "onnx").mkdir()
    (root / "bert" / "onnx" / "model.safetensors").write_bytes(b"not these")
    bert.save_pretrained(root / "shards", max_shard_size="100KB")
    bert.config.save_pretrained(root / "torch")
    torch.save(bert.state_dict(), root / "torch" / "pytorch_model.bin")
    config = ViT(IMAGE, size="tiny").trunk.config
    config.image_size = 64
    ViTForImageClassification(config).save_pretrained(root / "vit")
    (root / "vit" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    vision = {k: v for k, v in PRESETS["tiny"].items() if k != "projection_dim"} | {"image_size": 224}
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = shape | {"vocab_size": tokens.vocab_size, "max_position_embeddings": 16, "eos_token_id": 3}
    clip = CLIPModel(
        CLIPConfig(text_config=words, vision_config=vision, projection_dim=PRESETS["tiny"].get("projection_dim", 32))
    )
    clip.config.save_pretrained(root / "clip")
    torch.save(clip.state_dict(), root / "clip" / "pytorch_model.bin")
    tokens.save(root / "clip")
    return root


@pytest.fixture
def hub(repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub that this process uses, with an empty cache."""
    from huggingface_hub import _tree_cache, constants, file_download

    with serve() as server:
        for folder in repositories.iterdir():
            server.model(f"someone/{folder.name}", folder)
        use(server.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
        _tree_cache._IN_MEMORY_TREE_CACHE.clear()
        yield server


def use(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def refuse(pretrained: str, *words: str, make=Bert, inputs=TEXT, kind: type[UserError] = UserError) -> None:
    with pytest.raises(kind) as caught:
        make(inputs, size="tiny", pretrained=pretrained)
    assert type(caught.value) is kind
    for word in words:
        assert word in str(caught.value), str(caught.value)


def blobs(cache: Path) -> list[Path]:
    """Files in the cache that hold contents."""
    return list((cache / "cache").rglob("blobs/*"))


@pytest.mark.parametrize("name", ["bert", "shards", "torch"])
def test_every_layout_gives_the_same_weights(hub, repositories, name):
    net = Bert(TEXT, size="tiny", pretrained=f"someone/{name}")
    expected = Bert(TEXT, size="tiny", pretrained=str(repositories / "bert"))
    torch.testing.assert_close(net.state_dict(), expected.state_dict(), rtol=0, atol=0)
    weights = {"bert": ["model.safetensors"], "torch": ["pytorch_model.bin"]}.get(name)
    weights = weights or [p.name for p in (repositories / "shards").glob("*.safetensors*")]
    assert set(hub.sent) == {"config.json", *weights}, "other files than needed were downloaded"
    before = len(hub.asked)
    Bert(TEXT, size="tiny", pretrained=f"someone/{name}")
    assert len(hub.asked) == before, "what is in the cache needs no question"


def test_what_was_downloaded_once_needs_no_network(hub, monkeypatch):
    from huggingface_hub import constants

    def everything() -> int:
        Teacher("someone/vit", "teacher")
        Bert(TEXT, size="tiny", pretrained="someone/torch")
        return Pretrained("someone/bert", max_length=16).vocab_size

    size = everything()
    use("http://127.0.0.1:9", monkeypatch)
    assert everything() == size
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert everything() == size
    refuse("someone/bert", "the hub may not be asked (HF_HUB_OFFLINE)", "hf download someone/bert --local-dir DIR")


def test_a_teacher_sees_images_as_its_preprocessor_says(hub):
    assert Teacher("someone/vit", "teacher").mean.flatten().tolist() == [0.5] * 3


TIMM = {  # config.json of timm/resnet50.tv_in1k
    "architecture": "resnet50",
    "num_classes": 1000,
    "num_features": 2048,
    "pretrained_cfg": {
        "tag": "tv_in1k",
        "custom_load": False,
        "input_size": [3, 224, 224],
        "interpolation": "bilinear",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "num_classes": 1000,
        "pool_size": [7, 7],
        "first_conv": "conv1",
        "classifier": "fc",
    },
}


def test_a_repository_of_timm(hub, tmp_path):
    """With timm's config.json and names, and the same weights as a torch file beside them."""
    folder = tmp_path / "timm"
    state = tensors(bottleneck=True)
    write(folder, state)
    (folder / "config.json").write_text(json.dumps(TIMM))
    torch.save(state, folder / "pytorch_model.bin")
    hub.model("timm/resnet50.tv_in1k", folder)
    hub.model("timm/torch", folder.parent / "only")
    write(folder.parent / "only", state)
    (folder.parent / "only" / "model.safetensors").rename(folder.parent / "only" / "pytorch_model.bin")
    torch.save(state, folder.parent / "only" / "pytorch_model.bin")
    expected = ResNet(IMAGE, size=None, pretrained=str(folder)).state_dict()
    for name in ("timm/resnet50.tv_in1k", "timm/torch"):
        torch.testing.assert_close(ResNet(IMAGE, size=None, pretrained=name).state_dict(), expected)
    assert hub.sent["model.safetensors"] == (folder / "model.safetensors").stat().st_size
    assert hub.sent["pytorch_model.bin"] == (folder.parent / "only" / "pytorch_model.bin").stat().st_size
    with pytest.raises(UserError, match="is a checkpoint of 'resnet50', this backbone is a plain ViT"):
        ViT(IMAGE, size=None, pretrained="timm/resnet50.tv_in1k")


def test_zero_shot_heads_of_a_torch_file(hub, repositories):
    """As openai/clip-vit-base-patch32 lies there: weights in a torch file, the tokenizer beside them."""
    text_embeddings.cache_clear()
    found, scale = text_embeddings("someone/clip", ("one", "two"), ("a photo of {}.",))
    text_embeddings.cache_clear()
    expected, _ = text_embeddings(str(repositories / "clip"), ("one", "two"), ("a photo of {}.",))
    torch.testing.assert_close(found, expected)
    assert scale == learned_scale(repositories / "clip") == pytest.approx(1 / 0.07, rel=1e-3)
    assert CLIP(IMAGE, size="tiny", pretrained="someone/clip").spec.dim == found.shape[1]


def test_a_revision(hub, repositories, tmp_path):
    hub.repositories["models", "someone/bert"].revisions = ("main", "v1", "refs/pr/7")
    for revision in ("v1", "refs/pr/7", hub.repositories["models", "someone/bert"].sha):
        assert local_checkpoint(f"someone/bert@{revision}").name == hub.repositories["models", "someone/bert"].sha
    refuse("someone/bert@v2", "'someone/bert' has no revision 'v2'", f"{hub.url}/someone/bert/tree/main")
    assert is_local("someone/bert@v1") and not is_local("someone/bert@v2")


def test_what_is_not_there_or_not_allowed(hub):
    refuse("someone/nothing", "neither a local directory nor a repository", "hf auth login")
    refuse("-bad--name", "neither a local directory nor a repository")
    hub.repositories["models", "someone/bert"].gated = True
    refuse("someone/bert", "'someone/bert' is gated", f"accept its terms at {hub.url}/someone/bert", "HF_TOKEN")
    with pytest.raises(UserError, match=r"mixture\.tokenizer=someone/bert: 'someone/bert' is gated"):
        Pretrained("someone/bert", max_length=16)
    hub.down = True
    refuse("someone/shards", "cannot be reached (it answers 503 Service Unavailable)")


def test_another_architecture_is_refused_before_its_weights_are_downloaded(hub, tmp_path):
    refuse("someone/bert", "is a checkpoint of 'bert', this backbone is 'vit'", make=ViT, inputs=IMAGE)
    refuse("someone/bert", "is a checkpoint of 'bert', this backbone is 'clip'", make=CLIP, inputs=IMAGE)
    refuse("someone/bert", "is a checkpoint of 'bert', this backbone is 'hrnet'", make=HRNet, inputs=IMAGE)
    with pytest.raises(UserError, match=r"not of backbone\.size=base"):
        Bert(TEXT, size="base", pretrained="someone/bert")
    assert set(hub.sent) == {"config.json"}


def test_a_download_goes_on_where_the_connection_dropped(hub, repositories, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)  # what arrives in part of one is asked for again
    size = (repositories / "bert" / "model.safetensors").stat().st_size
    hub.cut["model.safetensors"] = [size // 3, 2]
    Bert(TEXT, size="tiny", pretrained="someone/bert")
    assert size <= hub.sent["model.safetensors"] < size + 2 * 4096, "bytes were sent twice"


def test_a_download_that_breaks_off_leaves_nothing_that_is_taken_for_whole(hub, tmp_path):
    hub.cut["model.safetensors"] = [0, 99]
    refuse("someone/bert", "the download broke off", "same command again", kind=RunFailed)
    assert [p.name for p in blobs(tmp_path) if "incomplete" in p.name] == []
    assert not is_local("someone/bert")
    missing: set[str] = set()
    assert without_weights({"pretrained": "someone/bert"}, missing) == {"pretrained": None}
    assert missing == {"someone/bert"}
    hub.cut.clear()
    Bert(TEXT, size="tiny", pretrained="someone/bert")
    assert is_local("someone/bert")


def test_a_cache_that_cannot_be_written(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    refuse("someone/bert", "cannot be kept in the hub's cache", "set HF_HOME", kind=RunFailed)


def test_a_disk_without_room_for_the_weights(hub, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        refuse("someone/bert", f"cannot be kept in the hub's cache: File too large in {tmp_path}", kind=RunFailed)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not is_local("someone/bert") and [p for p in blobs(tmp_path) if "incomplete" in p.name] == []
    Bert(TEXT, size="tiny", pretrained="someone/bert")


def test_all_teachers_that_are_not_there_are_named_before_one_is_downloaded(hub):
    with pytest.raises(UserError) as caught:
        look_for({"a": "someone/vit", "b": "someone/nothing", "c": "nowhere/at/all"})
    assert [p.what.partition("=")[0] for p in caught.value.problems] == ["wrapper.teachers.b", "wrapper.teachers.c"]
    assert set(hub.sent) == {"config.json"}


def test_the_commit_is_in_the_log(hub, caplog):
    with caplog.at_level(logging.INFO, "runner"):
        Bert(TEXT, size="tiny", pretrained="someone/bert")
    assert f"commit {hub.repositories['models', 'someone/bert'].sha} of the hub" in caplog.text


def test_tensors_that_changed_on_the_hub_stay_as_they_are_in_the_cache(hub, repositories, tmp_path):
    """Two runs of one machine compare; who wants the new ones names a revision."""
    folder = tmp_path / "moving"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((repositories / "bert" / name).read_bytes())
    hub.model("someone/moving", folder)
    first = Bert(TEXT, size="tiny", pretrained="someone/moving").state_dict()
    held = load_file(folder / "model.safetensors")
    save_file({k: v + 1 for k, v in held.items()}, folder / "model.safetensors", {"format": "pt"})
    again = Bert(TEXT, size="tiny", pretrained="someone/moving").state_dict()
    torch.testing.assert_close(first, again)
    sha = hub.repositories["models", "someone/moving"].sha
    moved = Bert(TEXT, size="tiny", pretrained=f"someone/moving@{sha}").state_dict()
    assert not torch.equal(first["trunk.embeddings.LayerNorm.bias"], moved["trunk.embeddings.LayerNorm.bias"])


def test_a_repository_without_a_model(hub, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("nothing yet")
    hub.model("someone/empty", tmp_path / "empty")
    refuse("someone/empty", "is not a checkpoint: it has no config.json")


def test_ids_and_paths():
    assert ours.may_be_on_hub("a/b") and ours.may_be_on_hub("a/b@refs/pr/1") and ours.may_be_on_hub("gpt2")
    assert not any(map(ours.may_be_on_hub, ("a/b/c", "./a", "/a", "~/a", "a b", "a/b@")))
