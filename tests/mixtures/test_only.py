"""`only` in a source: rows with other values are as if they were not there."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from runner.errors import UserError
from runner.mixtures.rows import Rows, only

TABLE = pa.table({"label": [0, 1, 2, 1, 0, 3], "kind": ["a", "b", "a", "a", None, "b"]})


def kept(wanted) -> list[int]:
    return only(Rows("d", "train", TABLE), wanted).table.column("label").to_pylist()


def test_rows_of_the_wanted_values_stay_in_their_order():
    assert kept({"label": [1, 3]}) == [1, 1, 3]
    assert kept({"kind": ["a"]}) == [0, 2, 1]
    assert kept({"label": [1], "kind": ["a"]}) == [1]
    assert kept({}) == [0, 1, 2, 1, 0, 3]


def test_mistakes_are_named():
    with pytest.raises(UserError, match="no row of 'train' has 7 in column 'label'"):
        kept({"label": [7]})
    with pytest.raises(UserError, match="has no column 'labels'"):
        kept({"labels": [1]})
    with pytest.raises(UserError, match="leaves no row"):
        kept({"label": [3], "kind": ["a"]})


def test_splits_and_classes_are_those_of_what_is_left(tmp_path):
    import io

    import pyarrow.parquet as parquet
    from PIL import Image

    from runner.mixtures.images import Images

    def encoded(shade: int) -> dict:
        buffer = io.BytesIO()
        Image.fromarray(np.full((4, 4, 3), shade, np.uint8)).save(buffer, format="PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    labels = [0, 5, 7] * 10
    table = pa.table({"image": [encoded(10 * n) for n in labels], "label": labels})
    for split in ("train", "test"):
        parquet.write_table(table, tmp_path / f"{split}.parquet")
    task = {"_target_": "runner.tasks.classification.Classification", "num_classes": 2}
    source = {"path": str(tmp_path), "only": {"label": [7, 5]}, "labels": {"t": {"column": "label", "classes": [5, 7]}}}
    mixture = Images(str(tmp_path), tasks={"t": task}, sources={"s": source}, size=[4, 4], crop_padding=0)
    assert mixture.check() == []
    mixture.setup(None)
    sizes = {split: len(mixture.datasets(split)["s"]) for split in ("train", "validation", "test")}
    assert sizes == {"train": 18, "validation": 2, "test": 20}
    example = mixture.datasets("test")["s"].example(1, None)
    assert example.targets["t"] == 1 and round(float(example.inputs["pixels"].mean()) * 255) == 70
