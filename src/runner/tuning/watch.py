"""Following a run's validation metrics while it writes them."""

from __future__ import annotations

import json
from pathlib import Path

Evaluation = tuple[int, dict[str, dict[str, float]]]
"""A step, and task → metric → value on the validation split."""


class Watcher:
    """Reads metrics.jsonl from where it stopped.

    Args:
        run: the run's directory; it need not be there yet.

    Attributes:
        step: of the newest whole evaluation; None while there is none.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / "metrics.jsonl"
        self.step: int | None = None
        self._offset = 0
        self._open: Evaluation | None = None

    def new(self, ended: bool = False) -> list[Evaluation]:
        """The evaluations since the last call.

        Args:
            ended: nothing more will be written. Otherwise the newest evaluation is held back until a row of something
                else follows it, or until nothing came between two calls: it may be half written.
        """
        lines = self._lines()
        found: list[Evaluation] = []
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue  # torn by a kill, and cut off by the next attempt
            of_open = row["split"] == "validation" and self._open is not None and row["step"] == self._open[0]
            if self._open is not None and not of_open:
                found.append(self._open)
                self._open = None
            if row["split"] == "validation":
                self._open = self._open or (row["step"], {})
                if row["value"] is not None:
                    self._open[1].setdefault(row["task"], {})[row["metric"]] = row["value"]
        if self._open is not None and (ended or not lines):
            found.append(self._open)
            self._open = None
        if found:
            self.step = found[-1][0]
        return found

    def _lines(self) -> list[bytes]:
        """Whole lines that were not read yet."""
        try:
            with open(self.path, "rb") as file:
                if file.seek(0, 2) < self._offset:  # a new attempt has cut off what lay after its checkpoint
                    self._offset = 0
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.splitlines()
