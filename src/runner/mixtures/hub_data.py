"""Data sets of the Hugging Face hub, through its library `datasets`: downloaded once, then read from its cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

TIMEOUT_S = 5.0
"""For the hub's first answer. Without one the cache is read at once; the library itself would try for a minute."""


def load(hub: str, *arguments: Any, **keys: Any) -> Any:
    """`datasets.load_dataset`, quiet, and at once from the cache where the hub does not answer.

    Raises:
        ConnectionError: there is neither an answer nor a copy in the cache.
        Exception: whatever else the libraries raise: not found, gated, an unknown subset, a torn file, …
    """
    import datasets

    datasets.disable_progress_bars()
    if answers():
        return datasets.load_dataset(hub, *arguments, **keys)
    with _offline():
        try:
            return datasets.load_dataset(hub, *arguments, **keys)
        except ConnectionError as error:
            raise ConnectionError("the hub does not answer, and it is not in the cache") from error


def answers() -> bool:
    """Whether the hub may not be asked (then nobody needs to know), or says anything at all."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return True
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_S)
    except Exception:  # no route, no name, no proxy, no answer in time, …
        return False
    return True


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """As with HF_HUB_OFFLINE=1, which the libraries read only when they are imported."""
    from datasets import config
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before
