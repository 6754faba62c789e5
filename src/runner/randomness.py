"""The global random generators of a process: their state in a checkpoint, and work that leaves them as they were.

Of several GPUs only the one that this process works on counts: the others belong to other ranks, and the next attempt
may see fewer of them.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch


def rng_state() -> dict[str, Any]:
    """State of every global generator of this process, in types that `weights_only=True` reads."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(np.array(keys, dtype=np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restore `rng_state`; a state that was taken without a GPU leaves the GPU's generator alone."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        here = torch.cuda.current_device() if len(state["cuda"]) > 1 else 0  # older checkpoints hold every GPU's
        torch.cuda.set_rng_state(state["cuda"][min(here, len(state["cuda"]) - 1)])


@contextlib.contextmanager
def forked_rng() -> Iterator[None]:
    """Within: torch may draw; afterwards its generators, of the CPU and of this process's GPU, are as before."""
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if on_gpu else [], device_type="cuda"):
        yield
