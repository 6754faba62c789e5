"""What `runner predict` was asked for, as the front end hands it to the process that predicts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Request:
    """The flags of `runner predict`.

    Attributes:
        run: a run directory.
        image: a picture or a folder of them. texts: with pairs[i] beside texts[i], or no pairs. file: of rows or
            molecules. One of the three is given.
        to: a folder; None only prints.
        tasks: these alone; empty for all. columns: where a file has its texts. keep: columns of it to copy.
        format: csv or jsonl. raw: with all probabilities, or arrays.
        checkpoint: best, latest or a step. size: model or native, of dense tasks.
        batch_size: None takes the run's. device: auto, cpu or cuda. data_root: None takes the run's.
    """

    run: str
    image: str | None = None
    texts: list[str] = field(default_factory=list)
    pairs: list[str] = field(default_factory=list)
    file: str | None = None
    to: str | None = None
    tasks: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    keep: list[str] = field(default_factory=list)
    format: str = "csv"
    raw: bool = False
    checkpoint: str = "best"
    size: str = "model"
    batch_size: int | None = None
    device: str = "auto"
    data_root: str | None = None

    def __str__(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Request:
        """The inverse of `str`."""
        return cls(**json.loads(text))

    @property
    def file_path(self) -> Path:
        """Where `file` is."""
        return Path(self.file or "").expanduser()

    @property
    def folder(self) -> Path | None:
        """Where results go."""
        return None if self.to is None else Path(self.to).expanduser()
