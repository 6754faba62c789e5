"""A model and data set hub on the loopback interface: what huggingface_hub, transformers and datasets ask the real one.

Small files come from git (a relative redirect, then 200), those of LFS by a redirect to a content store, with the
headers X-Repo-Commit, X-Linked-Size and X-Linked-ETag on the first answer, as https://huggingface.co gives them. What
may go wrong there can be made to go wrong here: gated and private repositories, broken connections, silence.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS = (".safetensors", ".bin", ".parquet", ".h5", ".msgpack", ".png", ".model")
"""Kinds of files that a repository keeps in LFS; the others lie in git."""


@dataclass
class Repository:
    """One repository: a folder as its only commit.

    Attributes:
        gated: answers 403 (GatedRepo) for files without a token, and 200 for what is said about it.
    """

    folder: Path
    gated: bool = False
    revisions: tuple[str, ...] = ("main",)

    @property
    def sha(self) -> str:
        """The commit: of names and contents."""
        digest = hashlib.sha1()
        for name, path in sorted(self.files().items()):
            digest.update(name.encode() + path.read_bytes())
        return digest.hexdigest()

    def files(self) -> dict[str, Path]:
        return {p.relative_to(self.folder).as_posix(): p for p in sorted(self.folder.rglob("*")) if p.is_file()}

    def entry(self, name: str, path: Path) -> dict[str, Any]:
        """What `/tree` and `/paths-info` say about a file."""
        content = path.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        about: dict[str, Any] = {"type": "file", "oid": git, "size": len(content), "path": name}
        if name.endswith(LFS):
            about["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return about


@dataclass
class Hub:
    """The server and what it serves.

    Attributes:
        repositories: ("models" or "datasets", id) → what lies there.
        asked: method and path of every request.
        sent: bytes of file contents sent, by name of file.
        cut: file name → how many bytes of a transfer pass before the connection drops, and how many times it does.
        down: answer 503 to everything.
    """

    url: str = ""
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    cut: dict[str, list[int]] = field(default_factory=dict)
    down: bool = False

    def model(self, name: str, folder: Path, **options: Any) -> None:
        self.repositories["models", name] = Repository(folder, **options)

    def dataset(self, name: str, folder: Path, **options: Any) -> None:
        self.repositories["datasets", name] = Repository(folder, **options)

    def environment(self, home: Path) -> dict[str, str]:
        """For a process that shall use this hub, with a cache of its own below `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_TOKEN": "",
            "NO_PROXY": "127.0.0.1",
        }


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub until the end of the block."""
    hub = Hub()

    class Bound(_Handler):
        pass

    Bound.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


_API = re.compile(r"/api/(models|datasets)/([^/]+(?:/[^/]+)?)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
_FILE = re.compile(r"/(?:(datasets)/)?([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)")
_STORE = re.compile(r"/(cdn|api/resolve-cache)/(models|datasets)/([^/]+(?:/[^/]+)?)/([0-9a-f]{40})/(.+)")


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        """Nothing: what was asked stands in `Hub.asked`."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.hub.asked.append(f"{self.command} {self.path}")
        if self.hub.down:
            return self._error(503, "", "The hub is down for maintenance")
        if found := _STORE.fullmatch(parts.path):
            _, kind, name, _, file = found.groups()
            return self._content(self.hub.repositories[kind, name], unquote(file))
        if found := _FILE.fullmatch(parts.path):
            kind, name, revision, file = found.groups()
            return self._resolve(kind or "models", name, unquote(revision), unquote(file))
        if found := _API.fullmatch(parts.path):
            kind, name, what, revision, inside = found.groups()
            return self._api(kind, name, what, unquote(revision or "main"), unquote(inside or ""), body)
        return self._error(404, "", "Sorry, we can't find the page you are looking for.")

    def _repository(self, kind: str, name: str, revision: str) -> Repository | None:
        """The repository at a revision, or None after an error was answered."""
        repository = self.hub.repositories.get((kind, name))
        if repository is None:
            # Who is not logged in is not told whether there is a private repository of that name.
            self._error(401, "RepoNotFound", "Repository not found")
        elif revision not in (*repository.revisions, repository.sha):
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repository
        return None

    def _api(self, kind: str, name: str, what: str | None, revision: str, inside: str, body: str) -> None:
        repository = self._repository(kind, name, revision)
        if repository is None:
            return None
        files = repository.files()
        if what in (None, "revision"):
            about = {
                "_id": "0",
                "id": name,
                ("modelId" if kind == "models" else "author"): name,
                "sha": repository.sha,
                "private": False,
                "gated": "manual" if repository.gated else False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "lastModified": "2024-01-01T00:00:00.000Z",
                "createdAt": "2024-01-01T00:00:00.000Z",
                "siblings": [{"rfilename": file} for file in files],
            }
            return self._json(about)
        folders = {p.as_posix() for file in files for p in Path(file).parents} - {"."}
        if what == "paths-info":
            wanted = parse_qs(body).get("paths", []) if "=" in body else json.loads(body)["paths"]
            listed = [repository.entry(p, files[p]) for p in wanted if p in files]
            listed += [{"type": "directory", "oid": "0" * 40, "size": 0, "path": p} for p in wanted if p in folders]
            return self._json(listed)
        if inside and inside not in folders:
            return self._error(404, "EntryNotFound", f"{inside} does not exist on '{revision}'")
        deep = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"

        def is_in(path: str) -> bool:
            parents = [p.as_posix() for p in Path(path).parents]
            return (inside or ".") in parents if deep else parents[0] == (inside or ".")

        listed = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": p} for p in sorted(folders) if is_in(p)]
        return self._json(listed + [repository.entry(p, path) for p, path in files.items() if is_in(p)])

    def _resolve(self, kind: str, name: str, revision: str, file: str) -> None:
        repository = self._repository(kind, name, revision)
        if repository is None:
            return None
        if repository.gated and "Authorization" not in self.headers:
            return self._error(401, "GatedRepo", f"Access to {kind[:-1]} {name} is restricted.")
        if file not in repository.files():
            return self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": repository.sha})
        about = repository.entry(file, repository.files()[file])
        headers = {"X-Repo-Commit": repository.sha, "Content-Length": "0"}
        place = f"{kind}/{name}/{repository.sha}/{file}"
        if lfs := about.get("lfs"):
            headers |= {"X-Linked-Size": str(lfs["size"]), "X-Linked-ETag": f'"{lfs["oid"]}"'}
            return self._send(302, headers | {"Location": f"{self.hub.url}/cdn/{place}"})
        return self._send(307, headers | {"Location": f"/api/resolve-cache/{place}"})

    def _content(self, repository: Repository, file: str) -> None:
        content = repository.files()[file].read_bytes()
        about = repository.entry(file, repository.files()[file])
        headers = {"X-Repo-Commit": repository.sha, "Accept-Ranges": "bytes"}
        headers["ETag"] = f'"{about["lfs"]["oid"] if "lfs" in about else about["oid"]}"'
        begin, status = 0, 200
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            begin, end = int(found[1]), min(int(found[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
            content, status = content[begin : end + 1], 206
        headers["Content-Length"] = str(len(content))
        cut = self.hub.cut.get(Path(file).name)
        if self.command == "GET" and cut and cut[1] > 0:
            cut[1] -= 1
            self._send(status, headers, content[: cut[0]])
            self.hub.sent[file] += len(content[: cut[0]])
            self.close_connection = True
            return None
        self.hub.sent[file] += len(content) if self.command == "GET" else 0
        return self._send(status, headers, content)

    def _json(self, value: Any) -> None:
        content = json.dumps(value).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        self._send(200, headers, content)

    def _error(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        content = json.dumps({"error": message}).encode()
        known = {"X-Error-Message": message, "Content-Length": str(len(content)), "Content-Type": "application/json"}
        self._send(status, known | ({"X-Error-Code": code} if code else {}) | (headers or {}), content)

    def _send(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
