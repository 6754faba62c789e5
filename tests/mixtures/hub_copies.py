"""Tiny copies of data sets as the hub stores them, for experiments whose data is not at hand."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def write_like(
    root: Path, sources: dict[str, dict[str, Any]], tasks: dict[str, dict[str, Any]], rows: int = 12
) -> Path:
    """Parquet files with random images or words for every source of a mixture, at the paths it names.

    Args:
        root: becomes the data root.
        sources, tasks: of the mixture's configuration; tasks with `num_classes` get labels below it, others numbers.
    """
    rng = np.random.default_rng(0)
    for source in sources.values():
        ((task, column),) = source["labels"].items()
        classes = tasks[task].get("num_classes")
        splits = {"train", source.get("splits", {}).get("test", "test")}
        for split in splits:
            labels = rng.integers(0, classes, rows) if classes else rng.uniform(0, 5, rows)
            columns: dict[str, Any] = {column: labels.tolist()}
            if "text" in source:
                for name in [source["text"]] if isinstance(source["text"], str) else source["text"]:
                    columns[name] = [" ".join(rng.choice(["one", "two", "red", "blue"], 5)) for _ in range(rows)]
            else:
                columns[source.get("image", "image")] = [{"bytes": _png(rng), "path": None} for _ in range(rows)]
            folder = root / source["path"]
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    return root


def _png(rng: np.random.Generator) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()
