"""`runner data`, on miniatures of the published archives, downloaded from the loopback."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runner.cli.completion import candidates
from runner.config import paths
from runner.mixtures import packed
from runner.mixtures.nyud import NYUD
from runner.mixtures.qm9 import QM9
from tests.mixtures.archives import rooms, write_celeba, write_cityscapes2, write_nyuv2_hub
from tests.mixtures.miniature import write_nyud_mt
from tests.mixtures.molecules import write_sdf
from tests.mixtures.obtain.server import Server, serving


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as state:
        yield state


@pytest.fixture(autouse=True)
def _no_data(monkeypatch) -> None:
    monkeypatch.delenv("RUNNER_DATA", raising=False)


def nyud_archive(place: Path) -> bytes:
    write_nyud_mt(place / "NYUDv2", train=8, val=3)
    with tarfile.open(place / "x.tar.gz", "w:gz") as file:
        file.add(place / "NYUDv2", "NYUDv2")
    return (place / "x.tar.gz").read_bytes()


@pytest.fixture
def nyud(server, tmp_path, monkeypatch) -> Server:
    """The published NYUD, on a server of ours, and as small as it is there."""
    server.files["/NYUDv2.tar.gz"] = nyud_archive(tmp_path / "made")
    (file,) = NYUD.published.downloads
    ours = replace(file, url=f"{server.url}/NYUDv2.tar.gz")
    published = replace(NYUD.published, downloads=(ours,), counts={"train": 8, "val": 3})
    monkeypatch.setattr(NYUD, "published", published)
    return server


def test_every_option_that_reads_data_is_listed_with_licence_and_size(runner) -> None:
    answer = runner("data", "list")
    assert answer.code == 0
    listed = {line.split()[0] for line in answer.out.splitlines()[1:] if line}
    archives = {"nyud", "nyuv2", "nyuv2_hub", "pascal_context", "cityscapes", "cityscapes2", "taskonomy"}
    assert listed >= archives | {"celeba", "multimnist", "qm9", "images", "sentences", "intents", "adult"}
    assert "rooms" not in listed
    for option in paths.options("mixture"):
        assert ("licence" in option.notes) == ("size" in option.notes)
        assert (option.name in listed) == ("licence" in option.notes)
        assert option.notes.get("licence", "") in answer.out
    assert f"looked for in {Path.cwd()}/data, {Path.cwd()}" in answer.out


def test_list_says_what_is_there_and_where(runner, tmp_path) -> None:
    write_nyud_mt(tmp_path / "sets/NYUD_MT")
    write_cityscapes2(tmp_path / "sets/cityscapes2", rooms(2), rooms(1, 2))
    shutil.rmtree(tmp_path / "sets/cityscapes2/val/depth")
    found = {e["name"]: e for e in json.loads(runner("data", "list", "--root", str(tmp_path / "sets"), "--json").out)}
    assert found["nyud"]["state"] == "there"
    assert found["nyud"]["places"] == [str(tmp_path / "sets/NYUD_MT")]
    assert found["cityscapes2"]["state"] == "parts"
    assert "no folder 'val/depth'" in found["cityscapes2"]["problems"][0]
    assert found["qm9"]["state"] == "missing"
    assert found["qm9"]["licence"] == "CC0"


def test_prepare_downloads_unpacks_converts_and_verifies(runner, nyud, tmp_path) -> None:
    """Over a connection that breaks after a third of the file."""
    nyud.break_after = len(nyud.files["/NYUDv2.tar.gz"]) // 3
    answer = runner("data", "prepare", "nyud", "mixture.size=[48,64]", "--root", "sets")
    assert answer.code == 0, answer.err
    assert len(nyud.asked) >= 3
    assert sum(sent for *_, sent in nyud.asked) == len(nyud.files["/NYUDv2.tar.gz"])
    assert "train: 8 examples, as published" in answer.out
    assert "'nyud' is right" in answer.out
    assert packed.covers(Path("sets/NYUD_MT"), ["train", "val"], ["segmentation", "depth", "normals", "edge"])
    assert sorted(p.name for p in Path("sets/NYUD_MT").iterdir()) == sorted(
        ["images", "segmentation", "depth", "normals", "edge", "gt_sets", "packed"]
    )
    again = runner("data", "prepare", "nyud", "mixture.size=[48,64]", "--root", "sets")
    assert again.code == 0
    assert "it is in its fast form" in again.out
    state = {e["name"]: e["state"] for e in json.loads(runner("data", "list", "--root", "sets", "--json").out)}
    assert state["nyud"] == "prepared"


def test_prepare_can_leave_the_data_as_it_is_and_keep_the_archive(runner, nyud) -> None:
    answer = runner("data", "prepare", "nyud", "--root", "sets", "--no-convert", "--keep")
    assert answer.code == 0
    assert not Path("sets/NYUD_MT/packed").exists()
    assert Path("sets/NYUD_MT/.downloads/NYUDv2.tar.gz").is_file()


def test_prepare_from_a_folder_of_ones_own(runner, tmp_path, monkeypatch) -> None:
    write_sdf(tmp_path / "made", 24)
    with zipfile.ZipFile(tmp_path / "qm9.zip", "w") as file:
        for name in ("gdb9.sdf", "gdb9.sdf.csv"):
            file.write(tmp_path / "made" / name, name)
    shutil.copy(tmp_path / "made/uncharacterized.txt", tmp_path / "uncharacterized.txt")
    downloads = tuple(replace(d, size=0, digest="") for d in QM9.published.downloads)
    monkeypatch.setattr(QM9, "published", replace(QM9.published, downloads=downloads, counts={"all": 22}, ranges={}))
    keys = ["mixture.validation=4", "mixture.test=4"]
    answer = runner("data", "prepare", "qm9", *keys, "--root", "sets", "--from", str(tmp_path))
    assert answer.code == 0, answer.err
    assert (tmp_path / "qm9.zip").is_file()  # the user's own stays
    assert "22 molecules in" in answer.out
    assert Path("sets/qm9/qm9.npz").is_file()
    missing = runner("data", "prepare", "qm9", "--root", "elsewhere", "--from", str(tmp_path / "made"))
    assert missing.code == 2
    assert "there is no qm9.zip in" in missing.err


def test_a_mirror(runner, nyud) -> None:
    nyud.files["/mirror/NYUDv2.tar.gz"] = nyud.files.pop("/NYUDv2.tar.gz")
    answer = runner("data", "prepare", "nyud", "--root", "sets", "--no-convert", "--from", f"{nyud.url}/mirror/")
    assert answer.code == 0, answer.err


def test_data_elsewhere_is_converted_into_the_given_root(runner, tmp_path, monkeypatch) -> None:
    """The archive may lie on a disk that cannot be written."""
    monkeypatch.setenv("RUNNER_DATA", str(tmp_path / "slow"))
    root = write_celeba(tmp_path / "slow/celeba", 24)
    before = sorted(root.rglob("*"))
    answer = runner("data", "prepare", "celeba", "--root", str(tmp_path / "fast"))
    assert "24 faces of 64 x 64" in answer.out
    assert answer.code == 1  # 24 faces are not the published ones
    assert "162,770 were published" in answer.err
    assert sorted(root.rglob("*")) == before
    assert np.load(tmp_path / "fast/celeba/packed/64x64-resize.npy", mmap_mode="r").shape == (24, 64, 64, 3)


@pytest.mark.parametrize("name", ["cityscapes", "cityscapes2", "celeba", "taskonomy", "nyuv2"])
def test_where_a_licence_forbids_it_says_what_to_fetch_and_where_to_put_it(runner, name) -> None:
    answer = runner("data", "prepare", name, "--root", "sets")
    assert answer.code == 2
    assert "1. " in answer.err and "2. " in answer.err
    assert f"sets/{name}" in answer.err
    assert "see: https://" in answer.err
    assert not Path("sets").exists()


def test_the_hub_is_downloaded_by_its_own_library(runner, monkeypatch) -> None:
    import huggingface_hub

    def download(name: str, *, repo_type: str, local_dir: Path, allow_patterns: list[str]) -> None:
        assert (name, repo_type, allow_patterns) == ("tanganke/nyuv2", "dataset", ["*.parquet"])
        write_nyuv2_hub(local_dir, rooms(4), rooms(2, 4))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    answer = runner("data", "prepare", "nyuv2_hub", "mixture.size=[48,64]", "--root", "sets")
    assert "6 images with segmentation, depth, normals" in answer.out
    assert "the split 'train' has 4 examples, and 795 were published" in answer.err
    shutil.rmtree("sets/nyuv2_hub/data")  # the packed form is enough
    again = runner("data", "verify", "nyuv2_hub", "mixture.size=[48,64]", "--root", "sets")
    assert "2" in again.out and "cannot" not in again.err


def test_verify_says_everything_that_is_wrong(runner, nyud) -> None:
    assert runner("data", "prepare", "nyud", "--root", "sets", "--no-convert").code == 0
    root = Path("sets/NYUD_MT")
    depth = np.load(root / "depth/0000.npy")
    np.save(root / "depth/0000.npy", depth * 1000)  # millimetres
    for name in ("0008", "0009"):
        (root / f"images/{name}.png").write_bytes(b"")
    answer = runner("data", "verify", "nyud", "--root", "sets", "mixture.validation=1", "--all")
    assert answer.code == 1
    assert answer.err.count("cannot read") == 2
    assert "'depth' of nyud" in answer.err and "outside 0.1 to 10.5" in answer.err
    report = json.loads(
        runner("data", "verify", "nyud", "--root", "sets", "mixture.validation=1", "--all", "--json").out
    )
    assert report["counts"]["train"] == {"there": 8, "published": 8}
    assert len(report["problems"]) == 3
    (test,) = (s for s in report["splits"] if s["split"] == "test")
    assert (test["examples"], test["read"]) == (3, 1)
    assert test["values"]["segmentation"]["unlabelled"] > 0


def test_verify_without_data(runner) -> None:
    answer = runner("data", "verify", "pascal_context")
    assert answer.code == 2
    assert "is not there: looked for" in answer.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([], "say what to do"),
        (["lst"], "did you mean 'list'?"),
        (["verify"], "NAME is missing"),
        (["verify", "nyuds"], "did you mean 'nyud'?"),
        (["verify", "rooms"], "there is no data set 'rooms'"),
        (["verify", "nyud", "--kep"], "unknown flag '--kep'"),
        (["verify", "nyud", "size"], "is no KEY=VALUE"),
        (["verify", "nyud", "optimizer.lr=1"], "is no key of the data"),
        (["verify", "nyud", "mixture.sze=[1,2]"], "mixture.sze"),
        (["prepare", "nyud", "--root"], "--root needs a value"),
    ],
)
def test_mistakes(runner, line, message) -> None:
    answer = runner("data", *line)
    assert answer.code == 2
    assert message in answer.err


def test_completion() -> None:
    assert candidates(["data", ""]) == ["list", "verify", "prepare"]
    assert candidates(["data", "verify", "nyu"]) == ["nyud", "nyuv2", "nyuv2_hub"]
    assert "mixture.fit=" in candidates(["data", "verify", "nyud", "mixture.f"])
    assert "--root" in candidates(["data", "prepare", "nyud", "--r"])
    assert candidates(["data", "prepare", "nyud", "--root", ""]) == [":directories"]
