"""Downloading a file over http so that a broken connection costs nothing: what is there is kept, and gone on with."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runner.errors import RunFailed, UserError
from runner.files import write_json
from runner.mixtures.published import Download

CHUNK = 1 << 18
TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as broken."""

FIRST = 3
"""How often a server is tried that has not sent a byte yet: it may not exist."""

_BROKEN = (OSError, http.client.HTTPException)  # URLError, timeouts and resets are OSErrors


def fetch(
    file: Download,
    folder: Path,
    progress: Callable[[int, int], None],
    *,
    retries: int = 8,
    wait: Callable[[float], None] = time.sleep,
) -> Path:
    """Download a file into a folder, or go on with it; a file that is there and right is left alone.

    The bytes go to `name.part`, with what identifies the server's file beside it: bytes of another version are never
    put together. A connection that breaks is taken up again after 1, 2, 4, … seconds, at most 30; the count starts
    again with every byte that comes.

    Args:
        progress: told how many bytes there are, and of how many, 0 where nobody says.
        retries: how often in a row nothing may come. wait: sleeps.

    Raises:
        UserError: the server has no such file. RunFailed: the connection stays broken, or the file is not the published
            one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / file.name, folder / f"{file.name}.part"
    if path.is_file() and not _wrong(path, file):
        return path
    failures, started = 0, False
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            _go_on(file, part, progress)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:
                what = f"{file.url} cannot be downloaded: {error.code} {error.reason}"
                raise UserError(what, "the address may have changed: look at the data set's page") from error
            problem: Exception = error
        except _BROKEN as error:
            problem = error
        now = part.stat().st_size if part.is_file() else 0
        failures, started = (1, True) if now > before else (failures + 1, started)
        if failures > (retries if started else min(retries, FIRST)):
            what = f"the download of {file.url} stopped at {now:,} bytes: {problem}"
            raise RunFailed(what, f"the same command goes on from there; the part is {part}") from problem
        wait(min(2.0 ** (failures - 1), 30.0))
    if wrong := _wrong(part, file):
        _remove(part)
        raise RunFailed(f"{file.url} is not the published file: {wrong}", "nothing was kept; try again")
    part.replace(path)
    _remove(part)
    return path


def _go_on(file: Download, part: Path, progress: Callable[[int, int], None]) -> None:
    """One connection: everything that is still missing, or an error."""
    have = part.stat().st_size if part.is_file() else 0
    known = _identity(part)
    request = urllib.request.Request(file.url, headers={"User-Agent": "runner", "Accept-Encoding": "identity"})
    if have and (known.get("validator") or file.digest):
        request.add_header("Range", f"bytes={have}-")
        if known.get("validator"):
            request.add_header("If-Range", known["validator"])
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)  # http and https only: checked by Download's users
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            if known.get("total") == have or file.size == have:
                return  # all of it is there
            _remove(part)
        raise
    with answer:
        first, total = _range(answer)
        if first != have:
            first = 0  # the server sends all of it, or another version
        if first == 0:
            _remove(part)
        write_json(_beside(part), {"url": file.url, "validator": _validator(answer), "total": total})
        with open(part, "ab") as out:
            while chunk := answer.read(CHUNK):
                out.write(chunk)
                first += len(chunk)
                progress(first, total or file.size)
            out.flush()
            os.fsync(out.fileno())
    if total and first != total:
        raise ConnectionError(f"{first:,} of {total:,} bytes came")


def _range(answer: Any) -> tuple[int, int]:
    """(first byte, bytes of the whole file) of an answer; 0 where the server does not say how many."""
    if answer.status == http.HTTPStatus.PARTIAL_CONTENT:
        unit, _, rest = answer.headers.get("Content-Range", "").partition(" ")
        span, _, total = rest.partition("/")
        first = span.partition("-")[0]
        if unit != "bytes" or not first.isdigit():
            raise ConnectionError(f"the server's answer to a range makes no sense: {unit} {rest}")
        return int(first), int(total) if total.isdigit() else 0
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else 0


def _validator(answer: Any) -> str:
    """What tells this version of the file from another: a strong ETag, else the date of its last change."""
    tag = answer.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified", "")


def _beside(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _identity(part: Path) -> dict[str, Any]:
    """What the server said of the file when the part was begun."""
    try:
        return dict(json.loads(_beside(part).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _remove(part: Path) -> None:
    part.unlink(missing_ok=True)
    _beside(part).unlink(missing_ok=True)


def _wrong(path: Path, file: Download) -> str:
    """In what a file differs from the published one; "" in nothing that is known of it."""
    size = path.stat().st_size
    if file.size and size != file.size:
        return f"it has {size:,} bytes, not {file.size:,}"
    kind, _, expected = file.digest.partition(":")
    if not kind:
        return ""
    with open(path, "rb") as data:
        found = hashlib.file_digest(data, kind).hexdigest()
    return "" if found == expected else f"its {kind} is {found}, not {expected}"
