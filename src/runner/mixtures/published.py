"""What is known about a published data set: where it comes from, what may be downloaded, how much there must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from runner.errors import Problem

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and of how much; 0 where nobody knows."""


@dataclass(frozen=True)
class Download:
    """A file that `runner data prepare` may fetch.

    Attributes:
        url: http(s). name: what it is called on disk.
        size: bytes, 0 where it is not known.
        digest: "md5:…" or "sha256:…", "" where none is known: then a download is checked by its size alone.
        unpack: of a tar or zip file: a path that is in the folder to be unpacked, wherever in the file that folder is;
            None for a file that stays as it is.
    """

    url: str
    name: str
    size: int = 0
    digest: str = ""
    unpack: str | None = None


@dataclass(frozen=True)
class Published:
    """Of one data set.

    Attributes:
        home: the page that describes it.
        downloads: what may be downloaded without an account or a signed form; empty where there is no such file.
        by_hand: what to fetch oneself and where to put it, a step each; {folder} is the data set's own.
        hub: the id of a data set of the Hugging Face hub whose parquet files are fetched instead.
        counts: published split → number of examples, before validation is carved.
        ranges: annotation → (lowest, highest) value that makes sense, of targets that are no classes.
    """

    home: str
    downloads: tuple[Download, ...] = ()
    by_hand: tuple[str, ...] = ()
    hub: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def get(self) -> str:
        """How to come by it, in one line."""
        return f"get it from {self.downloads[0].url if self.downloads else self.home}"


@runtime_checkable
class Preparable(Protocol):
    """What a mixture has that `runner data prepare` can fetch or convert."""

    published: Published

    @property
    def folder(self) -> str:
        """Where it is put, below a root."""

    @property
    def located(self) -> Path | None:
        """Where it lies; None where it does not."""

    @property
    def converted(self) -> bool:
        """Whether there is nothing left to convert."""

    def check(self) -> list[Problem]:
        """What is wrong with it, see `runner.mixtures.base.Mixture`."""

    def count(self) -> dict[str, int]:
        """Published split → how many examples there are."""

    def convert(self, target: Path, progress: Progress) -> str:
        """Write the fast form into the folder `target`; returns what was done."""
