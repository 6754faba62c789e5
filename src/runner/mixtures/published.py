"""What is known about a published data set: where it comes from, what may be downloaded, how much there must be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Download:
    """A file that `runner data prepare` may fetch.

    Attributes:
        url: http(s). name: what it is called on disk.
        size: bytes, 0 where it is not known.
        digest: "md5:…" or "sha256:…", "" where none is known: then a download is checked by its size alone.
        unpack: where an archive's content goes, below the data set's folder; None for a file that stays as it is.
        strip: leading folders of an archive's members that are left out.
    """

    url: str
    name: str
    size: int = 0
    digest: str = ""
    unpack: str | None = None
    strip: int = 0


@dataclass(frozen=True)
class Published:
    """Of one data set.

    Attributes:
        home: the page that describes it.
        downloads: what may be downloaded without an account or a signed form; empty where there is no such file.
        by_hand: what to fetch oneself, and where to put it: one step a line.
        counts: published split → number of examples, before validation is carved.
        ranges: annotation → (lowest, highest) value that makes sense, of targets that are no classes.
    """

    home: str
    downloads: tuple[Download, ...] = ()
    by_hand: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def get(self) -> str:
        """How to come by it, in one line."""
        if self.downloads:
            return f"get it from {self.downloads[0].url}"
        return f"get it from {self.home}"
