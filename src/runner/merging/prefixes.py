"""Models of one network whose tensors stand below different names: a trunk by itself, and with a head around it.

`AutoModel` saves a ViT as `encoder.layer.0…`, `AutoModelForImageClassification` as `vit.encoder.layer.0…`: a base and
its experts often differ in just that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from runner.merging.sources import Source, TensorInfo


class Shifted(Source):
    """A source under other names.

    Args:
        names: the name that is answered to → the name in the source, of every tensor.
        note: what a person should know about it.
    """

    def __init__(self, source: Source, names: Mapping[str, str], note: str) -> None:
        self.source, self.label, self.note = source, source.label, note
        self.folder: Path | None = source.folder
        self._names = dict(names)
        back = {stored: name for name, stored in self._names.items()}
        self.aliases = {back[name]: back[first] for name, first in source.aliases.items()}

    def tensors(self) -> dict[str, TensorInfo]:
        inner = self.source.tensors()
        return {name: inner[stored] for name, stored in self._names.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        return self.source.read(self._names[name], start, stop)

    def close(self) -> None:
        self.source.close()


def aligned(source: Source, origin: Source) -> Source:
    """`source` under the names that the same tensors have in `origin`; itself where that takes no prefix.

    A prefix counts where at least half of the tensors without a counterpart find one of the same shape by it.
    """
    ours, theirs = origin.tensors(), source.tensors()
    common = ours.keys() & theirs.keys()
    if len(common) * 2 >= min(len(ours), len(theirs)):
        return source
    longer, shorter = _prefix(theirs, ours), _prefix(ours, theirs)
    if longer is not None:  # theirs stand below a prefix
        names = {name.removeprefix(longer) if name.startswith(longer) else name: name for name in theirs}
        note = f"{source.label}: tensors below '{longer[:-1]}' are taken as those of {origin.label} without it"
    elif shorter is not None:  # ours do
        names = {shorter + name if shorter + name in ours else name: name for name in theirs}
        note = f"{source.label}: its tensors are taken as those of {origin.label} below '{shorter[:-1]}'"
    else:
        return source
    return Shifted(source, names, note) if len(names) == len(theirs) else source


def _prefix(long: Mapping[str, TensorInfo], short: Mapping[str, TensorInfo]) -> str | None:
    """What names of `long` have in front of those of `short`, for most of either; None for nothing."""
    lone = [name for name in short if name not in long]
    candidates = dict.fromkeys(
        other.removesuffix(name)
        for name in lone[:: max(1, len(lone) // 8)]
        for other in long
        if other.endswith(f".{name}")
    )
    found = {
        prefix: sum(prefix + name in long and long[prefix + name].shape == short[name].shape for name in lone)
        for prefix in candidates
    }
    best = max(found, key=lambda prefix: found[prefix], default=None)
    return best if best is not None and found[best] * 2 >= min(len(short), len(long)) else None
