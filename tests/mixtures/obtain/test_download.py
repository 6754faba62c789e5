from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runner.errors import RunFailed, UserError
from runner.mixtures.obtain.download import fetch
from runner.mixtures.published import Download
from tests.mixtures.obtain.server import Server, serving

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()
SHA = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as state:
        state.files["/set.tar"] = CONTENT
        yield state


def get(server: Server, folder: Path, *, retries: int = 8, **keys) -> Path:
    file = Download(f"{server.url}/set.tar", "set.tar", **keys)
    return fetch(file, folder, lambda done, total: None, retries=retries, wait=lambda seconds: None)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("keys", [{}, {"size": len(CONTENT)}, {"digest": MD5}, {"digest": SHA}])
def test_a_file_arrives_whole_and_is_not_asked_for_again(server, tmp_path, keys) -> None:
    told = []
    file = Download(f"{server.url}/set.tar", "set.tar", **keys)
    path = fetch(file, tmp_path, lambda *a: told.append(a))
    assert path.read_bytes() == CONTENT
    assert left(tmp_path) == ["set.tar"]
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert get(server, tmp_path, **keys) == path
    assert len(server.asked) == 1


def test_a_broken_connection_is_taken_up_where_it_broke(server, tmp_path) -> None:
    """Every answer is cut after 70,000 bytes: five connections, and no byte is sent twice."""
    server.break_after = 70_000
    assert get(server, tmp_path, digest=MD5).read_bytes() == CONTENT
    assert [wanted for _, wanted, _ in server.asked] == [None, *(f"bytes={n * 70_000}-" for n in range(1, 5))]
    assert sum(sent for *_, sent in server.asked) == len(CONTENT)


def test_another_command_goes_on_with_what_is_there(server, tmp_path) -> None:
    server.break_after = 100_000
    with pytest.raises(RunFailed, match="stopped at 100,000 bytes") as caught:
        get(server, tmp_path, retries=0)
    assert "the same command goes on" in str(caught.value)
    assert left(tmp_path) == ["set.tar.part", "set.tar.part.json"]
    server.break_after = None
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked[-1][1:] == ("bytes=100000-", 200_000)
    assert left(tmp_path) == ["set.tar"]


def test_bytes_of_two_versions_are_never_put_together(server, tmp_path) -> None:
    server.break_after = 100_000
    with pytest.raises(RunFailed):
        get(server, tmp_path, retries=0)
    server.break_after, server.etag = None, '"v2"'
    server.files["/set.tar"] = CONTENT[::-1]
    assert get(server, tmp_path).read_bytes() == CONTENT[::-1]
    assert server.asked[-1][2] == len(CONTENT)


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_name_for_the_version_and_without_a_digest_it_starts_again(server, tmp_path, etag) -> None:
    server.etag, server.break_after = etag, 100_000
    with pytest.raises(RunFailed):
        get(server, tmp_path, retries=0)
    server.break_after = None
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked[-1][1] is None


def test_a_digest_makes_it_safe_to_go_on_all_the_same(server, tmp_path) -> None:
    server.etag, server.break_after = "", 100_000
    with pytest.raises(RunFailed):
        get(server, tmp_path, retries=0, digest=SHA)
    server.break_after = None
    assert get(server, tmp_path, digest=SHA).read_bytes() == CONTENT
    assert server.asked[-1][1] == "bytes=100000-"


def test_a_server_that_knows_no_ranges(server, tmp_path) -> None:
    server.ranges, server.break_after = False, 100_000
    with pytest.raises(RunFailed):
        get(server, tmp_path, retries=0)
    server.break_after = None
    assert get(server, tmp_path, digest=MD5).read_bytes() == CONTENT


def test_a_part_that_is_whole_already(server, tmp_path) -> None:
    """Killed between the last byte and the new name."""
    (tmp_path / "set.tar.part").write_bytes(CONTENT)
    (tmp_path / "set.tar.part.json").write_text('{"validator": "\\"v1\\"", "total": 300000}')
    assert get(server, tmp_path, digest=MD5).read_bytes() == CONTENT
    assert server.asked == []  # the server was asked for what follows, and had nothing


@pytest.mark.parametrize(
    ("keys", "message"), [({"digest": "md5:0"}, "its md5 is"), ({"size": 5}, "300,000 bytes, not 5")]
)
def test_another_file_than_the_published_one_is_not_kept(server, tmp_path, keys, message) -> None:
    with pytest.raises(RunFailed, match=message):
        get(server, tmp_path, **keys)
    assert left(tmp_path) == []


def test_a_damaged_file_is_downloaded_again(server, tmp_path) -> None:
    (tmp_path / "set.tar").write_bytes(CONTENT[:-1] + b"?")
    assert get(server, tmp_path, digest=MD5).read_bytes() == CONTENT


def test_what_is_not_there_is_said_at_once(server, tmp_path) -> None:
    file = Download(f"{server.url}/else.tar", "set.tar")
    waited = []
    with pytest.raises(UserError, match="404"):
        fetch(file, tmp_path, lambda *_: None, wait=waited.append)
    assert waited == []


def test_a_busy_server_is_asked_again_and_less_and_less_often(server, tmp_path) -> None:
    server.status = {503: 2, 429: 1}
    waited = []
    file = Download(f"{server.url}/set.tar", "set.tar")
    assert fetch(file, tmp_path, lambda *_: None, wait=waited.append).read_bytes() == CONTENT
    assert waited == [1, 2, 4]


def test_nobody_there(tmp_path) -> None:
    with serving() as state:
        url = state.url
    waited = []
    with pytest.raises(RunFailed, match="stopped at 0 bytes"):
        fetch(Download(f"{url}/set.tar", "set.tar"), tmp_path, lambda *_: None, wait=waited.append)
    assert len(waited) == 3
