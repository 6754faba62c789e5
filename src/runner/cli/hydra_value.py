"""Values as the override grammar of Hydra reads them."""

from __future__ import annotations

import json
import re
from typing import Any


def hydra_value(value: Any) -> str:
    """A value as Hydra's grammar reads it."""
    if isinstance(value, dict):
        if any(not str(k).isidentifier() for k in value):  # the grammar takes no quoted keys: a list of pairs
            return hydra_value([[k, v] for k, v in value.items()])
        return "{" + ",".join(f"{k}:{hydra_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(hydra_value, value)) + "]"
    return _quote(value) if isinstance(value, str) else json.dumps(value)


def readable(word: str) -> str:
    """An override with quotes around values that the grammar refuses for their letters alone, as in `out=Läufe`."""
    key, equals, value = word.partition("=")
    if not equals or value.isascii() or any(mark in value for mark in "'\"{}()=:$\\"):
        return word
    parts = re.split(r"([\[\],])", value)
    return f"{key}={''.join(part if part.isascii() else _quote(part.strip()) for part in parts)}"


def _quote(text: str) -> str:
    """A quoted text; backslashes are plain there unless a quote follows."""
    escaped = re.sub(r"(\\*)'", lambda m: m[1] * 2 + "\\'", text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return "'" + escaped + "\\" * trailing + "'"
