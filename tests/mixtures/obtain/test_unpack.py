from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from runner.errors import RunFailed, UserError
from runner.mixtures.obtain.unpack import unpack

FILES = {"set/lists/train.txt": b"a", "set/images/a.png": b"picture"}


def archive(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, content in files.items():
                file.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz") as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        for name, where in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, where
            file.addfile(info)
    return path


def inside(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", ["x.tar.gz", "x.zip"])
@pytest.mark.parametrize("above", ["", "one/", "one/two/"])
def test_the_folder_with_the_marker_is_found(tmp_path, kind, above) -> None:
    path = archive(tmp_path / kind, {f"{above}{name}": content for name, content in FILES.items()})
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_bytes(b"stays")
    unpack(path, tmp_path / "out", "lists/train.txt")
    expected = {name.removeprefix("set/"): content for name, content in FILES.items()}
    assert inside(tmp_path / "out") == expected | {"mine.txt": b"stays"}


def test_what_a_broken_attempt_left_is_replaced(tmp_path) -> None:
    (tmp_path / "out/images").mkdir(parents=True)
    (tmp_path / "out/images/half.png").write_bytes(b"ha")
    unpack(archive(tmp_path / "x.zip", FILES), tmp_path / "out", "lists/train.txt")
    assert sorted(inside(tmp_path / "out")) == ["images/a.png", "lists/train.txt"]


def test_another_archive(tmp_path) -> None:
    path = archive(tmp_path / "x.zip", {"readme": b""})
    with pytest.raises(UserError, match=r"no lists/train\.txt"):
        unpack(path, tmp_path / "out", "lists/train.txt")
    assert inside(tmp_path / "out") == {}


@pytest.mark.parametrize("kind", ["x.tar.gz", "x.zip"])
def test_a_damaged_archive_leaves_nothing(tmp_path, kind) -> None:
    path = archive(tmp_path / kind, FILES | {"set/big": bytes(range(256)) * 200})
    path.write_bytes(path.read_bytes()[:-120])
    with pytest.raises(RunFailed, match="cannot be unpacked"):
        unpack(path, tmp_path / "out", "lists/train.txt")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("kind", ["x.tar.gz", "x.zip"])
@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "set/../../evil.txt"])
def test_nothing_is_written_outside(tmp_path, kind, name) -> None:
    path = archive(tmp_path / kind, FILES | {name: b"evil"})
    (tmp_path / "deep/out").mkdir(parents=True)
    with pytest.raises(UserError, match="outside"):
        unpack(path, tmp_path / "deep/out", "lists/train.txt")
    assert all(found.is_relative_to(tmp_path / "deep/out") for found in tmp_path.rglob("evil.txt"))


@pytest.mark.parametrize("target", ["/etc", "../../etc"])
def test_links_out_of_the_folder_are_refused(tmp_path, target) -> None:
    path = archive(tmp_path / "x.tar.gz", FILES, {"set/secrets": target})
    with pytest.raises(UserError, match="outside"):
        unpack(path, tmp_path / "out", "lists/train.txt")
