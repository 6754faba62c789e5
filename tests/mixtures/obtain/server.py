"""An http server on the loopback that breaks connections, forgets ranges, or changes its file, as it is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Server:
    """What it serves and what it was asked.

    Attributes:
        files: path → content. break_after: bytes of every answer after which the connection is cut; None never.
        ranges: whether it knows ranges. etag: of everything; "" for none.
        status: an answer to give instead, a number of times: {"code": times}.
        asked: (path, Range header, bytes that were sent).
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    break_after: int | None = None
    ranges: bool = True
    etag: str = '"v1"'
    status: dict[int, int] = field(default_factory=dict)
    asked: list[tuple[str, str | None, int]] = field(default_factory=list)


@contextmanager
def serving() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            for code, times in state.status.items():
                if times:
                    state.status[code] -= 1
                    self.send_error(code)
                    return
            content = state.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            wanted, first = self.headers.get("Range"), 0
            same = self.headers.get("If-Range", state.etag) == state.etag
            if wanted and state.ranges and same:
                first = int(wanted.removeprefix("bytes=").rstrip("-"))
                if first >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            part = content[first:]
            self.send_header("Content-Length", str(len(part)))
            if state.etag:
                self.send_header("ETag", state.etag)
            self.end_headers()
            cut = state.break_after is not None and state.break_after < len(part)
            part = part[: state.break_after] if cut else part
            state.asked.append((self.path, wanted, len(part)))
            self.wfile.write(part)
            self.wfile.flush()
            if cut:
                self.close_connection = True
                self.connection.close()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
